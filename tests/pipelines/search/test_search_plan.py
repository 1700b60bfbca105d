"""The parts of a plan: matches, metrics and the statistics that radii are chosen by."""

import dataclasses
import functools
import unittest.mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hashing_model.codes.bits import pack_bits, to_words
from hashing_model.codes.spec import CodeSpec
from pipelines.index.layout import Substring, substring_keys
from pipelines.search import search_plan
from pipelines.search.search_plan import Matches, Metric, add_matches, selectivity
from tests.helpers.make_index import skewed_codes


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 10**12)), max_size=15), max_size=4
    ),
    st.sampled_from([None, 1, 2, 5, 100]),
    st.integers(0, 20),
)
def test_merged_matches_are_sorted_and_cut(parts, k, at_once):
    seen = set()
    disjoint = [[m for m in part if not ((m[0], m[2]) in seen or seen.add((m[0], m[2])))] for part in parts]
    blocks = [Matches(*np.array(part, np.int64).reshape(-1, 3).T) for part in disjoint]
    merged = Matches.merged(iter(blocks), k)
    with unittest.mock.patch.object(search_plan, 'MERGED_AT_ONCE', at_once):
        kept = functools.reduce(lambda kept, more: add_matches(kept, more, k), blocks, [])
    assert dataclasses.astuple(Matches.merged(kept, k))[2].tolist() == merged.rows.tolist()
    everything = sorted(m for part in disjoint for m in part)
    expected = [[m for m in everything if m[0] == query][:k] for query in range(5)]
    assert list(zip(merged.queries, merged.distances, merged.rows, strict=True)) == [m for ms in expected for m in ms]
    assert merged.ranks.tolist() == [rank for ms in expected for rank in range(len(ms))]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 2**32 - 1), st.data())
def test_a_metric_is_the_weighted_sum_over_segments(sizes, seed, data):
    spec = CodeSpec.parse(','.join(f's{i}={bits}' for i, bits in enumerate(sizes)))
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)).filter(any))
    a, b = np.random.default_rng(seed).integers(0, 2, (2, 6, spec.bits))
    metric = Metric.of(spec, weights)
    different = to_words(pack_bits(a)) ^ to_words(pack_bits(b))
    got = sum(
        w * np.bitwise_count(different & m).sum(axis=1) for w, m in zip(metric.weights, metric.masks, strict=True)
    )
    by_bit = np.repeat(weights, sizes)
    np.testing.assert_array_equal(got, ((a != b) * by_bit).sum(axis=1))
    assert metric.max_distance == by_bit.sum()
    assert metric.weights.tolist() == sorted(set(weights) - {0})


def test_selectivity_is_the_share_of_pairs_within_each_radius():
    codes = skewed_codes(300)
    s = Substring(1, 11, 10)
    keys = substring_keys(codes, s).tolist()
    for queries in (256, 7):
        pairs = [(a ^ b).bit_count() for a in keys[:queries] for b in keys]
        expected = [sum(d <= radius for d in pairs) / len(pairs) for radius in range(11)]
        np.testing.assert_allclose(selectivity(codes, s, queries), expected, rtol=1e-12)
    assert selectivity(codes, s) == selectivity(codes, s, 256)
    assert selectivity(codes[:0], s) == (0.0,) * 11
