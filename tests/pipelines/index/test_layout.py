"""Substrings, prefixes and radii: the arithmetic that makes a search exact, against plain Python."""

import itertools
import math
from collections import Counter, defaultdict
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing_model.codes.bits import pack_bits, unpack_bits
from hashing_model.codes.spec import CodeSpec, Segment
from pipelines.index import layout
from pipelines.index.layout import (
    HISTOGRAM_BITS,
    MAX_SUBSTRING_BITS,
    NOT_PROBED,
    PROBE_COST,
    Substring,
    choose_radii,
    cut_prefixes,
    cut_substrings,
    groups_of,
    home_reach,
    interval_distances,
    intervals_near,
    key_histogram,
    key_order,
    mix,
    part_counts,
    prefix_distances,
    prefix_numbers,
    prefix_rows,
    prefix_starts,
    probe_costs,
    radii_cost,
    reading_costs,
    substring_keys,
    table_weights,
)

SIZES = st.lists(st.integers(1, 200), min_size=1, max_size=5)
HISTOGRAMS = st.integers(1, 6).flatmap(
    lambda depth: st.lists(st.integers(0, 40), min_size=1 << depth, max_size=1 << depth)
)


def spec_of(sizes):
    return CodeSpec(tuple(Segment(f's{i}', bits) for i, bits in enumerate(sizes)))


# Substrings


@given(SIZES, st.integers(0, 2**40))
def test_substrings_cover_each_segment_once(sizes, rows):
    spec = spec_of(sizes)
    found = cut_substrings(spec, rows)
    wanted = min(max(math.log2(max(rows, 1) / 3), 16), 32)
    for number, segment in enumerate(spec.segments):
        pieces = [s for s in found if s.segment == number]
        bits = [bit for s in pieces for bit in range(s.start, s.start + s.bits)]
        start = spec.start(segment.name)
        assert bits == list(range(start, start + segment.bits))
        lengths = [s.bits for s in pieces]
        assert 1 <= min(lengths) <= max(lengths) <= MAX_SUBSTRING_BITS
        assert max(lengths) - min(lengths) <= 1
        fewest = -(-segment.bits // MAX_SUBSTRING_BITS)
        assert abs(len(pieces) - segment.bits / wanted) <= 0.5 + 1e-9 or len(pieces) in (1, fewest)
    assert [s.segment for s in found] == sorted(s.segment for s in found)


@pytest.mark.parametrize(
    ('rows', 'lengths'),
    [(0, [16, 16]), (2**16, [16, 16]), (2**22, [16, 16]), (2**23, [32]), (2**32, [32]), (2**60, [32])],
)
def test_more_rows_give_longer_substrings(rows, lengths):
    assert [s.bits for s in cut_substrings(spec_of([32]), rows)] == lengths


@given(st.integers(1, 12), st.data())
def test_a_key_is_the_value_of_its_bits(num_bytes, data):
    codes = np.frombuffer(data.draw(st.binary(min_size=3 * num_bytes, max_size=3 * num_bytes)), np.uint8)
    codes = codes.reshape(3, num_bytes)
    start = data.draw(st.integers(0, num_bytes * 8 - 1))
    bits = data.draw(st.integers(1, min(MAX_SUBSTRING_BITS, num_bytes * 8 - start)))
    texts = [f'{int.from_bytes(bytes(code), "big"):0{num_bytes * 8}b}' for code in codes]
    keys = substring_keys(codes, Substring(0, start, bits))
    assert keys.dtype == np.int64
    assert keys.tolist() == [int(text[start : start + bits], 2) for text in texts]


def test_no_codes_have_no_keys():
    assert substring_keys(np.zeros((0, 4), np.uint8), Substring(0, 3, 9)).shape == (0,)


def test_tables_weigh_what_their_segments_weigh():
    assert table_weights([Substring(1, 8, 4), Substring(0, 0, 8), Substring(1, 12, 4)], (5, 7)) == (7, 5, 7)


# Prefixes


@given(st.integers(1, 20), st.data())
def test_a_histogram_counts_leading_bits(bits, data):
    keys = data.draw(st.lists(st.integers(0, (1 << bits) - 1), max_size=30))
    depth = min(bits, HISTOGRAM_BITS)
    histogram = key_histogram(np.array(keys, np.int64), bits)
    assert len(histogram) == 1 << depth
    expected = Counter(int(f'{key:0{bits}b}'[:depth], 2) for key in keys)
    assert {i: n for i, n in enumerate(histogram.tolist()) if n} == expected


@given(HISTOGRAMS, st.integers(1, 100))
def test_prefixes_are_a_partition_into_leaves_near_the_target(histogram, target):
    depth = len(histogram).bit_length() - 1
    prefixes = cut_prefixes(np.array(histogram), target)
    values = [f'{i:0{depth}b}' for i in range(1 << depth)]
    covering = [[p for p in prefixes if value.startswith(p)] for value in values]
    assert all(len(ps) == 1 for ps in covering)  # prefix-free, and nothing is left out
    assert list(prefixes) == sorted(prefixes)
    rows = Counter()
    for (prefix,), count in zip(covering, histogram, strict=True):
        rows[prefix] += count
    assert all(rows[p] <= target or len(p) == depth for p in prefixes)
    for prefix in prefixes:
        parent = prefix[:-1]
        below = sum(n for value, n in zip(values, histogram, strict=True) if value.startswith(parent))
        assert parent == '' or below > target  # else it need not have been cut
    assert prefix_rows(np.array(histogram), prefixes).tolist() == [rows[p] for p in prefixes]


@given(HISTOGRAMS, st.integers(1, 100))
def test_parts_hold_the_target_and_are_no_more_than_needed(histogram, target):
    histogram = np.array(histogram)
    prefixes = cut_prefixes(histogram, target)
    for parts, rows in zip(
        part_counts(histogram, prefixes, target).tolist(), prefix_rows(histogram, prefixes).tolist(), strict=True
    ):
        assert parts * target >= rows
        assert parts == 1 or (parts - 1) * target < rows


@given(HISTOGRAMS, st.integers(1, 100), st.integers(0, 10))
def test_starts_are_the_least_keys_of_the_prefixes(histogram, target, more_bits):
    bits = len(histogram).bit_length() - 1 + more_bits
    prefixes = cut_prefixes(np.array(histogram), target)
    starts = prefix_starts(prefixes, bits)
    assert starts.tolist() == [int(p.ljust(bits, '0'), 2) for p in prefixes]
    keys = np.unique(np.linspace(0, (1 << bits) - 1, 50).astype(np.int64))
    leaves = prefix_numbers(keys, bits, prefixes)
    for key, leaf in zip(keys.tolist(), leaves.tolist(), strict=True):
        assert f'{key:0{bits}b}'.startswith(prefixes[leaf])


@pytest.mark.parametrize('bits', range(1, MAX_SUBSTRING_BITS + 1))
def test_keys_are_put_in_the_order_of_a_stable_sort(bits):
    keys = np.random.default_rng(bits).integers(0, 1 << bits, 200).repeat(2)
    for count in (0, 1, 400):
        assert key_order(keys[:count], bits).tolist() == sorted(range(count), key=lambda i: int(keys[i]))
    shuffled = np.random.default_rng(bits).permutation(keys)
    assert key_order(shuffled, bits).tolist() == sorted(range(400), key=lambda i: int(shuffled[i]))


@given(st.integers(1, 7), st.data())
def test_a_prefix_is_as_far_as_its_nearest_key(bits, data):
    prefix = data.draw(st.text('01', min_size=1, max_size=bits))
    under = [key for key in range(1 << bits) if f'{key:0{bits}b}'.startswith(prefix)]
    queries = np.arange(1 << bits)
    nearest = [min((query ^ key).bit_count() for key in under) for query in queries.tolist()]
    assert prefix_distances(queries, bits, prefix).tolist() == nearest


def test_prefixes_of_one_bit_and_of_32():
    assert cut_prefixes(np.array([0, 900]), 10) == ('0', '1')
    key = 0x9ABCDEF0
    assert prefix_distances(np.array([key]), 32, f'{key:032b}').tolist() == [0]
    assert prefix_distances(np.array([key]), 32, f'{key ^ 0xFFFFFFFF:032b}').tolist() == [32]


# Intervals of keys


@given(st.integers(1, 7), st.data())
def test_an_interval_is_as_far_as_its_nearest_integer(bits, data):
    ends = st.tuples(st.integers(0, (1 << bits) - 1), st.integers(0, (1 << bits) - 1)).map(sorted)
    intervals = data.draw(st.lists(ends, min_size=1, max_size=5))
    keys = np.arange(1 << bits)
    expected = [[min((x ^ key).bit_count() for x in range(a, b + 1)) for a, b in intervals] for key in keys.tolist()]
    lows, highs = np.array(intervals).T
    assert interval_distances(keys, lows, highs).tolist() == expected


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 300), st.integers(0, 31))
def test_intervals_of_long_keys(key, low, length, flipped):
    high = min(low + length, 2**32 - 1)
    for asked in (key, low ^ 1 << flipped, high ^ 1 << flipped):
        nearest = min((x ^ asked).bit_count() for x in range(low, high + 1))
        assert interval_distances(np.array([asked]), np.array([low]), np.array([high])).tolist() == [[nearest]]


@given(st.lists(st.tuples(st.integers(0, 63), st.integers(-1, 3)), max_size=9), st.data())
def test_intervals_are_needed_by_any_query_of_any_block(queries, data):
    ends = st.tuples(st.integers(0, 63), st.integers(0, 63)).map(sorted)
    intervals = data.draw(st.lists(ends, max_size=6))
    keys, radii = np.array(queries, np.int64).reshape(-1, 2).T
    lows, highs = np.array(intervals, np.int64).reshape(-1, 2).T
    expected = [any((x ^ k).bit_count() <= r for k, r in queries for x in range(a, b + 1)) for a, b in intervals]
    with mock.patch.object(layout, 'INTERVAL_QUERIES', 2):
        assert intervals_near(keys, radii, lows, highs).tolist() == expected


# Pseudo-random numbers


@given(st.lists(st.integers(0, 2**62), max_size=20))
def test_mix_is_splitmix64(values):
    def reference(value):
        z = (value + 0x9E3779B97F4A7C15) % 2**64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    assert mix(np.array(values, np.int64)).tolist() == [reference(v) for v in values]


def test_mix_begins_as_published():
    assert mix(np.zeros(1, np.int64)).tolist() == [0xE220A8397B1DCDAF]


# Radii


@given(st.integers(1, 32), st.integers(0, 10**9))
def test_costs_count_probes_and_candidates(bits, rows):
    shares = np.linspace(0.25, 1, bits + 1)
    costs = probe_costs(shares.tolist(), bits, rows)
    probes = 0
    for radius in range(bits + 1):
        probes += math.comb(bits, radius)
        search = min(probes * PROBE_COST, rows)
        assert costs[radius] == pytest.approx(search + shares[radius] * rows)


@given(st.integers(1, 20), st.integers(0, 7), st.integers(1, 50))
def test_reading_costs_are_the_share_of_groups_that_any_of_random_queries_needs(bits, log_groups, queries):
    groups = 2 ** min(log_groups, bits)
    costs = reading_costs(bits, 1000 * groups, 1000, queries) * queries / (layout.READ_COST * 1000)
    depth = int(math.log2(groups))
    near = [sum(i.bit_count() <= r for i in range(groups)) for r in range(bits + 1)]
    assert len(costs) == bits + 1
    by_any = np.array([groups * (1 - (1 - n / groups) ** queries) for n in near])
    anyway = by_any[0] if by_any[0] > groups / 2 else 0  # that much is read for the queries' own keys
    assert costs == pytest.approx(by_any - anyway)
    assert costs[depth:] == pytest.approx([groups - anyway] * (bits + 1 - depth))


@pytest.mark.parametrize(('bits', 'rows'), [(22, 10**7), (16, 2**16), (32, 10**9), (7, 10), (21, 0)])
def test_a_first_look_probes_as_far_as_its_share_of_a_scan(bits, rows):
    reach = home_reach(bits, rows)
    limit = rows * layout.HOME_SHARE / layout.PROBE_COST
    probes = [sum(math.comb(bits, i) for i in range(r + 1)) for r in range(bits + 1)]
    assert reach == max([0, *(r for r, n in enumerate(probes) if n <= limit)])


def test_a_search_costs_what_its_tables_cost():
    assert radii_cost([np.array([1.0, 2]), np.array([10.0, 20]), np.array([100.0])], [1, NOT_PROBED, 0]) == 102


TABLES = st.lists(
    st.tuples(st.integers(0, 5), st.lists(st.floats(0, 100), min_size=2, max_size=6)), min_size=1, max_size=4
).filter(lambda tables: any(weight for weight, _ in tables))


@given(TABLES, st.integers(0, 60), st.integers(0, 500))
def test_radii_suffice_and_waste_nothing(tables, bound, rows):
    weights = [weight for weight, _ in tables]
    costs = [np.cumsum(rises) for _, rises in tables]
    radii = choose_radii(costs, weights, bound, rows)
    probed = [t for t, r in enumerate(radii) if r != NOT_PROBED]
    assert all(weights[t] and 0 <= radii[t] < len(costs[t]) for t in probed)
    reached = sum(weights[t] * (radii[t] + 1) for t in probed)
    spent = sum(costs[t][radii[t]] for t in probed)
    first = next(t for t, w in enumerate(weights) if w)
    scan = [len(costs[t]) - 1 if t == first else NOT_PROBED for t in range(len(tables))]
    if radii != scan:  # a scan is exact whatever the bound
        assert reached > bound
        assert spent < rows + 1e-6
        assert reached - max(weights[t] for t in probed) <= bound


@given(
    st.lists(st.lists(st.integers(0, 20), min_size=4, max_size=4), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(0, 11),
)
def test_radii_are_the_cheapest_where_each_step_costs_more_than_the_last(rises, weight, bound):
    costs = [np.cumsum(sorted(r)).astype(float) for r in rises]
    radii = choose_radii(costs, [weight] * len(costs), bound, 10**9)
    enough = [
        sum(float(c[r]) for c, r in zip(costs, choice, strict=True) if r >= 0)
        for choice in itertools.product(range(-1, 4), repeat=len(costs))
        if sum(weight * (r + 1) for r in choice) > bound
    ]
    if enough:
        assert sum(float(c[r]) for c, r in zip(costs, radii, strict=True) if r >= 0) == min(enough)
    else:
        assert radii == [3] + [NOT_PROBED] * (len(costs) - 1)


def test_a_heavy_table_counts_by_its_weight():
    cheap, dear = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])
    assert choose_radii([cheap, dear], [1, 3], 2, 10**6) == [NOT_PROBED, 0]  # 2 / 3 a unit is less than 1
    assert choose_radii([cheap, dear], [1, 3], 3, 10**6) == [NOT_PROBED, 1]
    assert choose_radii([cheap, dear], [1, 1], 1, 10**6) == [1, NOT_PROBED]


def test_a_table_of_no_weight_is_never_probed_nor_scanned():
    free, paid = np.zeros(5), np.full(5, 50.0)
    assert choose_radii([free, paid], [0, 1], 2, 100) == [NOT_PROBED, 2]
    assert choose_radii([free, paid], [0, 1], 2, 50) == [NOT_PROBED, 4]


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    pieces=st.integers(1, 3),
    bound=st.integers(0, 30),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_no_code_within_the_bound_escapes_the_probed_tables(sizes, pieces, bound, seed, data):
    """The pigeonhole itself: all codes of a few bits, one query, any cut, weights and costs."""
    spec = spec_of(sizes)
    weights = data.draw(st.lists(st.integers(0, 4), min_size=len(sizes), max_size=len(sizes)).filter(any))
    rng = np.random.default_rng(seed)
    tables = []
    for number, bits in enumerate(sizes):
        cuts = sorted({0, bits, *rng.integers(0, bits, pieces).tolist()})
        tables += [Substring(number, spec.start(f's{number}') + a, b - a) for a, b in itertools.pairwise(cuts)]
    bits = min(spec.bits, 10)
    everything = np.array(list(itertools.product([0, 1], repeat=bits)))
    padding = rng.integers(0, 2, (len(everything), spec.bits - bits))
    codes = pack_bits(np.hstack([everything, padding]))
    query = pack_bits(rng.integers(0, 2, (1, spec.bits)))
    costs = [np.cumsum(rng.random(t.bits + 1) * rng.choice([1, 500])) for t in tables]
    radii = choose_radii(costs, table_weights(tables, weights), bound, len(codes))
    different = unpack_bits(codes, spec.bits) != unpack_bits(query, spec.bits)
    distance = sum(
        w * different[:, spec.start(f's{i}') :][:, :b].sum(axis=1)
        for i, (w, b) in enumerate(zip(weights, sizes, strict=True))
    )
    near = np.stack(
        [different[:, t.start : t.start + t.bits].sum(axis=1) <= r for t, r in zip(tables, radii, strict=True)], axis=1
    )
    assert near[distance <= bound].any(axis=1).all()
    owners = [[t for t in range(len(tables)) if row[t] and not row[:t].any()] for row in near]
    assert all(len(owner) == 1 for owner, d in zip(owners, distance, strict=True) if d <= bound)


def test_groups_are_those_of_a_dict():
    values = np.random.default_rng(0).choice([0, 3, 70_000, 2**40], 200)
    expected = defaultdict(list)
    for place, value in enumerate(values.tolist()):
        expected[value].append(place)
    found = [(value, places.tolist()) for value, places in groups_of(values)]
    assert found == sorted(expected.items())
    assert list(groups_of(np.zeros(0, np.int64))) == []
