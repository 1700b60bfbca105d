"""The code spec: what it refuses, where its segments lie, and how profiles become weights."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing_model.codes.spec import DEFAULT_FEATURES, MAX_BITS, CodeSpec, Segment, parse_pairs
from hashing_model.errors import InputError

NAMES = st.from_regex(r'[a-z][a-z0-9_]{0,5}', fullmatch=True)
SIZES = st.dictionaries(NAMES, st.integers(1, 60), min_size=1, max_size=8)


def spec_of(sizes):
    return CodeSpec(tuple(Segment(name, bits) for name, bits in sizes.items()))


@given(SIZES)
def test_segments_lie_side_by_side_and_fill_whole_bytes(sizes):
    spec = spec_of(sizes)
    assert spec.names == tuple(sizes)
    places = [bit for name, bits in sizes.items() for bit in range(spec.start(name), spec.start(name) + bits)]
    assert places == list(range(spec.bits))
    assert 0 <= spec.num_bytes * 8 - spec.bits < 8


@given(SIZES)
def test_a_spec_survives_text_and_json(sizes):
    text = ', '.join(f' {name} = {bits}' for name, bits in sizes.items())
    spec = CodeSpec.parse(text)
    assert {s.name: s.bits for s in spec.segments} == sizes
    assert CodeSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    swapped = CodeSpec(spec.segments[::-1])
    assert (swapped == spec) == (len(sizes) == 1)


def test_known_segments_read_their_features_and_others_read_all():
    spec = CodeSpec.parse('look=8,mine=8')
    assert spec.segments[0].features == DEFAULT_FEATURES['look']
    assert sorted(spec.segments[1].features) == sorted({f for fs in DEFAULT_FEATURES.values() for f in fs})
    assert {s.name: (s.bits, s.features) for s in CodeSpec.default().segments} == {
        'coarse': (32, DEFAULT_FEATURES['coarse']),
        'fine': (32, DEFAULT_FEATURES['fine']),
        'look': (64, DEFAULT_FEATURES['look']),
    }


@pytest.mark.parametrize('name', ['', 'Coarse', '1st', 'a-b', 'a b', '_a', 'ä', 'a\n'])
def test_segment_names_are_lower_case_identifiers(name):
    with pytest.raises(InputError, match='lower-case identifier'):
        Segment(name, 8)


def test_a_code_has_from_1_to_1024_bits():
    for bits in (-1, 0, MAX_BITS + 1):
        with pytest.raises(InputError, match=f'segment a has {bits} bits; 1 to 1024'):
            Segment('a', bits)
    assert CodeSpec((Segment('a', 1),)).num_bytes == 1
    assert CodeSpec((Segment('a', 1000), Segment('b', 24))).num_bytes == 128
    with pytest.raises(InputError, match='a code of 1025 bits is longer than 1024'):
        CodeSpec((Segment('a', 1000), Segment('b', 25)))


def test_a_spec_has_segments_with_different_names():
    with pytest.raises(InputError, match='at least one segment'):
        CodeSpec(())
    with pytest.raises(InputError, match='segment names repeat: a, b, a'):
        CodeSpec((Segment('a', 1), Segment('b', 2), Segment('a', 3)))


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', "'' is not NAME=INTEGER"),
        ('a', "'a' is not NAME=INTEGER"),
        ('a=', "'a=' is not NAME=INTEGER"),
        ('=3', "'=3' is not NAME=INTEGER"),
        ('a=-3', "'a=-3' is not NAME=INTEGER"),
        ('a=1.5', "'a=1.5' is not NAME=INTEGER"),
        ('a=²', "'a=²' is not NAME=INTEGER"),
        ('a=1,', "'' is not NAME=INTEGER"),
        ('a=1=2', "'a=1=2' is not NAME=INTEGER"),
        ('a=1,b=2,a=1', 'a is given twice'),
    ],
)
def test_malformed_pairs_are_refused_by_name(text, message):
    with pytest.raises(InputError) as raised:
        parse_pairs(text, '--profile')
    assert str(raised.value) == f"--profile '{text}': {message}"


@given(st.dictionaries(NAMES, st.integers(0, 10**12), min_size=1))
def test_pairs_keep_their_order(pairs):
    text = ','.join(f'{name}={value}' for name, value in pairs.items())
    assert list(parse_pairs(text, 'x').items()) == list(pairs.items())


@given(SIZES, st.data())
def test_weights_follow_the_order_of_the_segments(sizes, data):
    names = data.draw(st.lists(st.sampled_from(sorted(sizes)), unique=True))
    profile = {name: data.draw(st.integers(0, 100)) for name in names}
    spec = spec_of(sizes)
    assert spec.weights() == (1,) * len(sizes)
    if any(profile.values()):
        assert spec.weights(profile) == tuple(profile.get(name, 0) for name in sizes)
    else:
        with pytest.raises(InputError, match='weighs every segment 0'):
            spec.weights(profile)


def test_unfit_profiles_are_refused():
    spec = CodeSpec.parse('coarse=1,fine=3')
    with pytest.raises(InputError, match="unknown segment 'fin' in the profile; the index has coarse, fine"):
        spec.weights({'fin': 1, 'coarse': 1})
    for weight in (-1, 0.5, 1.0, True, '1', None):
        with pytest.raises(InputError, match='of segment fine is not a non-negative integer'):
            spec.weights({'fine': weight})
    weights = spec.weights({'fine': np.int32(2)})
    assert weights == (0, 2)
    assert [type(w) for w in weights] == [int, int]


def test_distances_stay_below_two_to_the_31():
    spec = CodeSpec.parse('coarse=1,fine=3')
    assert spec.weights({'coarse': 2**31 - 4, 'fine': 1}) == (2**31 - 4, 1)
    with pytest.raises(InputError, match=r'distances of 2\^31 or more'):
        spec.weights({'coarse': 2**31 - 3, 'fine': 1})
