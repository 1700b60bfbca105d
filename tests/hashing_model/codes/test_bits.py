"""Bits, codes and Hamming distances, against Python's integers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hashing_model.codes.bits import bit_mask, check_codes, hamming, pack_bits, segment_distances, to_words, unpack_bits
from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.errors import InputError

BITS = hnp.arrays(bool, st.tuples(st.integers(0, 6), st.integers(1, 150)))
SPECS = st.lists(st.integers(1, 40), min_size=1, max_size=5).map(
    lambda sizes: CodeSpec(tuple(Segment(f's{i}', bits) for i, bits in enumerate(sizes)))
)


def random_codes(spec, count, seed):
    return pack_bits(np.random.default_rng(seed).integers(0, 2, (count, spec.bits)))


def as_int(code):
    return int.from_bytes(bytes(code), 'big')


def as_text(code, bits):
    return f'{as_int(code):0{8 * len(code)}b}'[:bits]


@given(BITS)
def test_packed_bits_come_back(bits):
    codes = pack_bits(bits)
    assert codes.dtype == np.uint8
    assert codes.shape == (len(bits), (bits.shape[1] + 7) // 8)
    np.testing.assert_array_equal(unpack_bits(codes, bits.shape[1]), bits)
    np.testing.assert_array_equal(pack_bits(unpack_bits(codes, bits.shape[1])), codes)


@given(BITS)
def test_bit_0_is_the_first_of_the_first_byte_and_spare_bits_are_zero(bits):
    width = bits.shape[1]
    for row, code in zip(bits, pack_bits(bits), strict=True):
        text = ''.join('01'[int(bit)] for bit in row)
        assert as_int(code) == int(text, 2) << (8 * len(code) - width)


def test_a_lone_bit_has_its_place():
    assert pack_bits(np.eye(9, dtype=int))[[0, 7, 8]].tolist() == [[128, 0], [1, 0], [0, 128]]


@given(SPECS, st.integers(0, 2**32 - 1))
def test_distances_equal_those_of_python_integers(spec, seed):
    a, b = random_codes(spec, 5, seed), random_codes(spec, 5, seed + 1)
    assert hamming(a, b).tolist() == [(as_int(x) ^ as_int(y)).bit_count() for x, y in zip(a, b, strict=True)]
    expected = []
    for x, y in zip(a, b, strict=True):
        different = [p != q for p, q in zip(as_text(x, spec.bits), as_text(y, spec.bits), strict=True)]
        expected.append([sum(different[spec.start(s.name) :][: s.bits]) for s in spec.segments])
    got = segment_distances(a, b, spec)
    assert got.tolist() == expected
    assert (got.dtype, hamming(a, b).dtype) == (np.int32, np.int32)


@given(SPECS, st.integers(0, 2**32 - 1))
def test_distances_of_all_pairs_are_those_of_each_pair(spec, seed):
    a, b = random_codes(spec, 4, seed), random_codes(spec, 3, seed + 1)
    pairs, by_segment = hamming(a[:, None], b[None]), segment_distances(a[:, None], b[None], spec)
    assert by_segment.shape == (4, 3, len(spec.segments))
    np.testing.assert_array_equal(by_segment.sum(axis=2), pairs)
    for i in range(4):
        np.testing.assert_array_equal(pairs[i], hamming(a[i], b))
        np.testing.assert_array_equal(by_segment[i], segment_distances(a[i], b, spec))


@given(SPECS, st.integers(0, 2**32 - 1))
def test_masked_words_count_the_bits_of_a_segment(spec, seed):
    a, b = random_codes(spec, 3, seed), random_codes(spec, 3, seed + 1)
    different = to_words(a) ^ to_words(b)
    assert different.shape == (3, (spec.num_bytes + 7) // 8)
    np.testing.assert_array_equal(np.bitwise_count(different).sum(axis=1), hamming(a, b))
    masks = [bit_mask(spec.start(s.name), s.bits, spec.num_bytes) for s in spec.segments]
    counted = np.stack([np.bitwise_count(different & mask).sum(axis=1) for mask in masks], axis=1)
    np.testing.assert_array_equal(counted, segment_distances(a, b, spec))
    assert [int(np.bitwise_count(mask).sum()) for mask in masks] == [s.bits for s in spec.segments]


def test_words_of_a_slice_are_those_of_its_copy():
    codes = random_codes(CodeSpec.parse('a=200'), 6, 0)
    np.testing.assert_array_equal(to_words(codes[::2, 3:15]), to_words(codes[::2, 3:15].copy()))


def test_good_codes_pass_unchanged():
    spec = CodeSpec.parse('a=11,b=1')
    codes = np.array([[0xFF, 0xF0], [0, 0]], np.uint8)
    assert check_codes(codes, spec) is codes
    assert check_codes(np.zeros((0, 2), np.uint8), spec).shape == (0, 2)
    whole_bytes = np.full((3, 4), 255, np.uint8)
    assert check_codes(whole_bytes, CodeSpec.parse('a=32')) is whole_bytes


@pytest.mark.parametrize(
    ('codes', 'message'),
    [
        (np.zeros((1, 2), np.int64), r'codes are int64 \[1, 2\]; uint8 \[N, 2\] is needed'),
        (np.zeros((1, 2), np.int8), r'codes are int8 \[1, 2\]'),
        (np.zeros(2, np.uint8), r'codes are uint8 \[2\]'),
        (np.zeros((1, 1, 2), np.uint8), r'codes are uint8 \[1, 1, 2\]'),
        ([b'ab'], r'codes are \|S2 \[1\]'),
        (np.zeros((1, 3), np.uint8), 'a code has 3 bytes; the index has codes of 2 bytes'),
        (np.zeros((0, 1), np.uint8), 'a code has 1 bytes'),
        (np.array([[0, 0], [0, 8]], np.uint8), 'bits set beyond the 12 bits'),
        (np.array([[0, 1], [0, 0]], np.uint8), 'bits set beyond the 12 bits'),
    ],
)
def test_other_codes_are_refused(codes, message):
    with pytest.raises(InputError, match=message):
        check_codes(codes, CodeSpec.parse('a=5,b=7'))
