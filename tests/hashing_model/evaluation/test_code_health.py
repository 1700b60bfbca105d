"""The health of codes, against Python's integers and counting."""

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing_model.codes.bits import hamming, pack_bits, unpack_bits
from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from hashing_model.evaluation.code_health import collisions, health, substring_entropy


def values_of(codes, start, bits):
    """The bits of each code from a start, as a Python integer."""
    width = 8 * codes.shape[1]
    return [int(f'{int.from_bytes(bytes(code), "big"):0{width}b}'[start : start + bits], 2) for code in codes]


def agreeing(values):
    return sum(a == b for a, b in itertools.combinations(values, 2)), math.comb(len(values), 2)


def uneven_codes(spec, count, seed):
    """Codes of few clusters, so that some collide."""
    source = np.random.default_rng(seed)
    bits = source.integers(0, 2, (5, spec.bits))[source.integers(0, 5, count)]
    return pack_bits(bits ^ (source.random(bits.shape) < 0.5 / spec.bits))


@settings(deadline=None)
@given(
    st.sampled_from(['a=1,b=1', 'a=3,b=9,c=2', 'a=30,b=60', 'a=64,b=64', 'a=7,b=150']),
    st.integers(1, 60),
    st.integers(0, 2**32 - 1),
)
def test_health_is_that_of_the_values_and_bits(text, count, seed):
    spec = CodeSpec.parse(text)
    codes = uneven_codes(spec, count, seed)
    found = health(codes, spec)
    bits = unpack_bits(codes, spec.bits).astype(float)
    assert tuple(found.segments) == spec.names
    parts = [(found.code, 0, spec.bits), *((found.segments[s.name], spec.start(s.name), s.bits) for s in spec.segments)]
    for part, start, width in parts:
        values = values_of(codes, start, width)
        agree, pairs = agreeing(values)
        counts = Counter(values)
        assert (part.images, part.distinct, part.largest_bucket) == (count, len(counts), max(counts.values()))
        assert part.collision_probability == pytest.approx(agree / max(pairs, 1))
        own = bits[:, start : start + width]
        np.testing.assert_allclose(part.ones, own.mean(axis=0))
        with np.errstate(invalid='ignore', divide='ignore'):
            expected = (
                np.nan_to_num(np.corrcoef(own.T).reshape(width, width)) if count > 1 else np.zeros((width, width))
            )
        np.fill_diagonal(expected, 1)
        np.testing.assert_allclose(part.correlation, expected, atol=1e-9)
        written = json.loads(json.dumps(part.to_json(), allow_nan=False))
        off = np.abs(part.correlation[~np.eye(width, dtype=bool)])
        assert written['max_correlation'] == pytest.approx(off.max(initial=0))
        assert written['mean_correlation'] == pytest.approx(off.mean() if width > 1 else 0)
        assert written['max_imbalance'] == pytest.approx(np.abs(own.mean(axis=0) - 0.5).max())
        assert written['mean_imbalance'] == pytest.approx(np.abs(own.mean(axis=0) - 0.5).mean())
        assert written['distinct_ratio'] == len(counts) / count
        assert (written['bits'], len(written['ones'])) == (width, width)


def test_correlations_of_many_codes_are_counted_in_blocks():
    spec, source = CodeSpec.parse('a=5'), np.random.default_rng(0)
    base = source.integers(0, 2, (40_000, 5))
    base[:, 3] = base[:, 0] ^ (source.random(40_000) < 0.1)
    base[:, 4] = 1
    found = health(pack_bits(base), spec).code
    np.testing.assert_allclose(found.correlation[:4, :4], np.corrcoef(base[:, :4].T), atol=1e-12)
    assert found.correlation[0, 3] > 0.7
    assert found.correlation[4].tolist() == [0, 0, 0, 0, 1]


def test_health_names_the_segments_in_its_json():
    spec = CodeSpec.parse('coarse=3,fine=5')
    written = health(uneven_codes(spec, 20, 0), spec).to_json()
    assert set(written) == {'code', 'segments'}
    assert {name: part['bits'] for name, part in written['segments'].items()} == {'coarse': 3, 'fine': 5}
    assert 'correlation' not in written['code']


@given(st.integers(0, 30), st.integers(1, 20), st.integers(2, 60), st.integers(0, 2**32 - 1))
def test_entropy_is_that_of_the_pairs_that_agree(start, bits, count, seed):
    codes = uneven_codes(CodeSpec.parse('a=50'), count, seed)
    agree, pairs = agreeing(values_of(codes, start, bits))
    assert substring_entropy(codes, start, bits) == pytest.approx(min(math.log2(pairs / max(agree, 1)), bits))


def test_entropy_of_even_values_is_the_number_of_bits():
    codes = np.random.default_rng(0).integers(0, 256, (20_000, 4), np.uint8)
    assert substring_entropy(codes, 5, 10) == pytest.approx(10, abs=0.05)
    assert substring_entropy(np.zeros((9, 4), np.uint8), 5, 10) == 0
    assert substring_entropy(codes[:1], 5, 10) == 0


def test_entropy_without_a_collision_is_what_one_would_show():
    codes = np.arange(100, dtype=np.uint8)[:, None]
    assert substring_entropy(codes, 0, 8) == 8
    wide = np.repeat(codes, 4, axis=1)
    assert substring_entropy(wide, 0, 32) == pytest.approx(math.log2(100 * 99 / 2))


@pytest.mark.parametrize(('start', 'bits'), [(-1, 4), (0, 0), (30, 3)])
def test_bits_outside_the_code_have_no_entropy(start, bits):
    with pytest.raises(InputError, match='are not within codes of 32 bits'):
        substring_entropy(np.zeros((3, 4), np.uint8), start, bits)


def test_the_entropies_of_tables_tell_what_random_queries_visit():
    spec, substrings = CodeSpec.parse('a=12,b=20'), [(0, 12), (12, 10), (22, 10)]
    codes = uneven_codes(spec, 400, 7)
    visited = sum(agreeing(values_of(codes, *s))[0] for s in substrings)  # each pair found once per table it agrees in
    expected = 400 * visited / math.comb(400, 2)
    assert expected > 100
    assert 400 * sum(2 ** -substring_entropy(codes, *s) for s in substrings) == pytest.approx(expected)


@given(st.integers(0, 40), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_collisions_are_groups_of_equal_codes(count, limit, seed):
    codes = uneven_codes(CodeSpec.parse('a=70'), count, seed)
    rows = {}
    for row, value in enumerate(values_of(codes, 0, 70)):
        rows.setdefault(value, []).append(row)
    expected = sorted((r for r in rows.values() if len(r) > 1), key=lambda r: (-len(r), r))
    got = collisions(codes, limit)
    assert [group.tolist() for group in got] == expected[:limit]
    assert all((hamming(codes[group], codes[group[:1]]) == 0).all() for group in got)


def test_no_codes_have_no_health():
    with pytest.raises(InputError, match='there are no codes to measure'):
        health(np.zeros((0, 1), np.uint8), CodeSpec.parse('a=8'))
    with pytest.raises(InputError, match='bits set beyond the 4 bits'):
        health(np.ones((2, 1), np.uint8), CodeSpec.parse('a=4'))
