"""Target codes, against all pairs, all words of their linear codes, Plotkin's bound and rejection sampling."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing_model.errors import InputError
from hashing_model.heads.target_codes import (
    check_centers,
    hierarchical_centers,
    hierarchy_order,
    make_centers,
    minimum_distance,
)

MANY = 40_000
COARSE_OF_FINE = np.repeat(np.arange(20), 5).astype(np.int32)


def nested_centers(parents, coarse_bits, fine_bits, rng):
    """Target codes of two levels, given the coarse class of each fine class."""
    classes = [int(np.max(parents)) + 1, len(parents)]
    return hierarchical_centers([None, parents], classes, [coarse_bits, fine_bits], rng)


def rng(seed=0):
    return np.random.default_rng(seed)


def distances(centers):
    """Hamming distances of all pairs, [C, C]."""
    return (centers[:, None] != centers[None]).sum(axis=2)


def least_distance(centers):
    return distances(centers)[np.triu_indices(len(centers), 1)].min()


def plotkin(classes, bits):
    half = classes // 2
    return bits * half * (classes - half) / math.comb(classes, 2)


def rejection_sampled(classes, bits, seed=0, rejections=2000):
    """Random codes at a distance that is lowered by .01 of the bits after so many rejections in a row."""
    source, least, failed = rng(seed), 0.61 * bits, 0
    kept = source.choice([-1, 1], (1, bits))
    while len(kept) < classes:
        drawn = source.choice([-1, 1], bits)
        if (kept != drawn).sum(axis=1).min() >= least:
            kept, failed = np.concatenate([kept, drawn[None]]), 0
        else:
            failed += 1
            if failed == rejections:
                least, failed = least - 0.01 * bits, 0
    return kept


def distinct_bits(centers):
    """How many different functions of the class the bits are, a function and its complement being one."""
    return len(np.unique(centers * centers[:1], axis=1).T)


def check_signs(centers, classes, bits):
    assert centers.shape == (classes, bits)
    assert centers.dtype == np.int8
    assert set(np.unique(centers)) == {-1, 1}
    assert len(np.unique(centers, axis=0)) == classes


# Classes without order


@pytest.mark.parametrize(
    ('classes', 'bits', 'least'),
    [
        (2, 32, 32),
        (3, 16, 10),
        (4, 64, 42),
        (5, 64, 38),
        (10, 16, 8),
        (10, 32, 17),
        (10, 48, 26),
        (10, 64, 35),
        (10, 128, 70),
        (20, 64, 32),
        (32, 16, 8),
        (50, 32, 16),
        (64, 64, 32),
        (100, 16, 6),
        (100, 32, 12),
        (100, 48, 22),
        (100, 64, 32),
        (100, 128, 64),
        (1000, 32, 12),
        (1000, 48, 17),
        (1000, 64, 28),
        (1000, 128, 56),
    ],
)
def test_centres_are_far_apart_balanced_and_of_distinct_bits(classes, bits, least):
    centers = make_centers(classes, bits, rng())
    check_signs(centers, classes, bits)
    assert least <= least_distance(centers) <= plotkin(classes, bits)
    uneven = np.abs(centers.sum(axis=0, dtype=int))
    assert uneven.max() <= (2 if (classes, bits) == (10, 128) else classes % 2)  # 10 classes have 126 even halvings
    assert distinct_bits(centers) == min(bits, 2 ** (classes - 1) - 1) or classes <= 5


@pytest.mark.parametrize(('classes', 'bits'), [(10, 32), (40, 48), (100, 64)])
def test_centres_are_farther_apart_than_by_rejection(classes, bits):
    theirs, ours = rejection_sampled(classes, bits), make_centers(classes, bits, rng())
    assert minimum_distance(ours) >= minimum_distance(theirs) + 1
    assert np.abs(ours.sum(axis=0, dtype=int)).max() < np.abs(theirs.sum(axis=0)).max()


@settings(max_examples=60)
@given(st.data())
def test_any_number_of_classes_that_fits_gets_distinct_centres(data):
    bits = data.draw(st.integers(1, 40))
    classes = data.draw(st.integers(2, min(2**bits, 300)))
    centers = make_centers(classes, bits, rng(data.draw(st.integers(0, 2**32 - 1))))
    check_signs(centers, classes, bits)
    assert minimum_distance(centers) <= plotkin(classes, bits) + 1e-9
    assert (np.abs(centers.sum(axis=0, dtype=int)) < classes).all()  # no bit is constant
    if classes <= 2 ** (bits - 2):
        assert minimum_distance(centers) >= 2
        check_centers(centers, [str(i) for i in range(classes)])
    if classes > 64:
        assert np.abs(centers.sum(axis=0, dtype=int)).max() == classes % 2
        assert distinct_bits(centers) == bits


@pytest.mark.parametrize('bits', range(3, 20))
def test_the_bits_that_the_errors_ask_for_suffice(bits):
    for classes in {2 ** (bits - 2), 2 ** (bits - 3) + 1}:
        if 2 <= classes <= MANY:
            assert minimum_distance(make_centers(classes, bits, rng())) >= min(2, bits)


@pytest.mark.parametrize('classes', range(2, 9))
def test_bits_repeat_only_where_they_must(classes):
    halvings = math.comb(classes, classes // 2) // (2 if classes % 2 == 0 else 1)
    kinds = 2 ** (classes - 1) - 1
    for bits in (halvings, min(kinds, 60), 64):
        centers = make_centers(classes, bits, rng())
        functions, counts = np.unique(centers * centers[:1], axis=1, return_counts=True)
        if bits <= kinds:
            assert counts.max() == 1
        else:
            assert counts.max() <= -(-bits // halvings)
            assert np.abs(functions.sum(axis=0)).max() <= classes % 2


def test_distances_are_nearly_equal_for_few_classes():
    d = distances(make_centers(10, 64, rng()))[np.triu_indices(10, 1)]
    assert d.max() - d.min() <= 4
    assert d.mean() == pytest.approx(plotkin(10, 64))


@pytest.mark.parametrize(('classes', 'bits'), [(100, 64), (1000, 64), (2000, 128), (10_000, 32), (MANY, 64)])
def test_substrings_of_16_bits_tell_the_classes_apart(classes, bits):
    """Where Sylvester-Hadamard rows leave 32 values for 100 classes."""
    centers = make_centers(classes, bits, rng())
    for start in range(bits - 15):
        values = np.packbits(centers[:, start : start + 16] > 0, axis=1).view('>u2')
        assert len(np.unique(values)) == classes


def test_centres_of_many_classes_are_made_in_seconds_and_without_comparing_pairs():
    start = time.perf_counter()
    centers = make_centers(MANY, 64, rng())
    made = time.perf_counter()
    check_centers(centers, range(MANY))
    least = minimum_distance(centers)
    compared = time.perf_counter()
    assert least == 24  # of the BCH code of 2^16 words; random codes come to about 9
    assert made - start < 5
    assert compared - made < 60
    assert len(np.unique(centers, axis=0)) == MANY


def test_a_seed_gives_one_set_of_centres():
    for classes, bits in ((10, 32), (50, 24), (300, 48)):
        a, b, other = (make_centers(classes, bits, rng(seed)) for seed in (4, 4, 5))
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, other)


@pytest.mark.parametrize(
    ('classes', 'bits', 'message'),
    [
        (1, 32, 'one class only: nothing to tell apart'),
        (3, 1, 'more centres than the bits can hold apart: 3 classes in 1 bits; give the segment 4 bits or more'),
        (257, 8, '257 classes in 8 bits; give the segment 11 bits or more'),
    ],
)
def test_too_few_or_too_many_classes_are_refused(classes, bits, message):
    with pytest.raises(InputError, match=message):
        make_centers(classes, bits, rng())
    with pytest.raises(InputError, match=message):
        hierarchical_centers([None], [classes], [bits], rng())


# Distances and checks


@given(st.integers(2, 200), st.integers(1, 150), st.integers(0, 2**32 - 1))
def test_the_minimum_distance_is_that_of_all_pairs(classes, bits, seed):
    centers = rng(seed).choice(np.array([-1, 1], np.int8), (classes, bits))
    assert minimum_distance(centers) == least_distance(centers)


@pytest.mark.parametrize('pair', [(0, 1), (63, 64), (0, 4999), (4095, 4096), (4000, 4200), (4998, 4999)])
def test_the_minimum_distance_sees_every_pair(pair):
    centers = make_centers(5000, 128, rng())
    a, b = pair
    centers[b] = centers[a]
    centers[b, [3, 70, 127]] *= -1
    assert minimum_distance(centers) == 3
    centers[b] = rng(1).choice([-1, 1], 128)
    assert minimum_distance(centers) > 3


@given(st.integers(2, 40), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_centres_pass_if_no_two_differ_in_one_bit_or_none(classes, bits, seed):
    centers = rng(seed).choice(np.array([-1, 1], np.int8), (classes, bits))
    names = [f'class {i}' for i in range(classes)]
    if classes <= 2**bits and least_distance(centers) >= min(2, bits):
        check_centers(centers, names)
    else:
        with pytest.raises(InputError, match='more centres than the bits can hold apart'):
            check_centers(centers, names)


@pytest.mark.parametrize('flipped', [[], [0], [69]])
def test_the_check_names_the_classes_and_the_bits_that_suffice(flipped):
    centers = make_centers(50, 70, rng())
    centers[31] = centers[7]
    centers[31, flipped] *= -1
    message = rf"of 50 classes in 70 bits, 'c7' and 'c31' differ in {len(flipped)}; give the segment 8 bits or more"
    with pytest.raises(InputError, match=message):
        check_centers(centers, [f'c{i}' for i in range(50)])


def test_one_row_has_no_distance():
    for function in (minimum_distance, lambda c: check_centers(c, ['a'])):
        with pytest.raises(InputError, match='one class only'):
            function(np.ones((1, 8), np.int8))


# Hierarchies


def plain_order(centers, parents):
    """The share of triples in order, by three loops; levels all nested."""
    ancestors = [list(range(len(centers[-1])))]
    for above in reversed(parents[1:]):
        ancestors.insert(0, [int(above[a]) for a in ancestors[0]])
    rows = np.concatenate([c[a] for c, a in zip(centers, ancestors, strict=True)], axis=1)
    depth = [[sum(a[i] == a[j] for a in ancestors) for j in range(len(rows))] for i in range(len(rows))]
    d = distances(rows)
    kept = total = 0
    for i, near, far in itertools.permutations(range(len(rows)), 3):
        if depth[i][near] > depth[i][far]:
            total += 1
            kept += d[i, near] < d[i, far]
    return kept / total if total else 1.0


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 3), st.integers(2, 9), st.integers(2, 20), st.integers(2, 30))
def test_the_order_is_that_of_all_triples(seed, levels, coarse, fine, bits):
    source = rng(seed)
    classes = [coarse, fine, 14][:levels]
    parents = [None, *(source.integers(0, a, b) for a, b in itertools.pairwise(classes))]
    centers = [source.choice(np.array([-1, 1], np.int8), (c, bits)) for c in classes]
    assert hierarchy_order(centers, parents) == pytest.approx(plain_order(centers, parents))


def test_levels_that_do_not_nest_are_ordered_apart():
    good = nested_centers(COARSE_OF_FINE, 32, 32, rng())
    poor = [rng(s).choice(np.array([-1, 1], np.int8), (n, 8)) for s, n in enumerate((20, 100))]
    nested = [None, COARSE_OF_FINE]
    worse = hierarchy_order(poor, nested)
    assert hierarchy_order(good, nested) == 1
    assert worse < 0.95
    assert hierarchy_order([*good, *poor], nested * 2) == hierarchy_order([*poor, *good], nested * 2) == worse
    assert hierarchy_order(poor, [None, None]) == 1  # nobody has kin


@pytest.mark.parametrize(
    ('coarse_bits', 'fine_bits', 'siblings', 'across', 'whole'),
    [(32, 32, 16, 12, 28), (16, 48, 20, 20, 27), (16, 32, 16, 12, 20), (64, 64, 32, 28, 60), (24, 40, 16, 16, 26)],
)
def test_siblings_come_nearer_than_cousins(coarse_bits, fine_bits, siblings, across, whole):
    """20 x 5 classes, as CIFAR-100 has them."""
    coarse, fine = nested_centers(COARSE_OF_FINE, coarse_bits, fine_bits, rng())
    check_signs(coarse, 20, coarse_bits)
    check_signs(fine, 100, fine_bits)
    same = COARSE_OF_FINE[:, None] == COARSE_OF_FINE
    d, d_coarse = distances(fine), distances(coarse[COARSE_OF_FINE])
    assert d[same & ~np.eye(100, dtype=bool)].min() >= siblings
    assert d[~same].min() >= across
    assert (d + d_coarse)[~same].min() >= whole > d[same].max()
    assert hierarchy_order([coarse, fine], [None, COARSE_OF_FINE]) == 1
    assert (fine.sum(axis=0) == 0).all()
    assert distinct_bits(fine) == fine_bits


def test_too_few_coarse_bits_are_told():
    coarse, fine = nested_centers(COARSE_OF_FINE, 6, 58, rng())
    assert 0.5 < hierarchy_order([coarse, fine], [None, COARSE_OF_FINE]) < 1
    weighed = [np.tile(coarse, (1, 6)), fine]  # as a profile coarse=6 would
    assert hierarchy_order(weighed, [None, COARSE_OF_FINE]) == 1


def test_siblings_differ_as_in_every_other_family():
    """One common set of rows, in which a family turns the signs of some columns."""
    _, fine = nested_centers(COARSE_OF_FINE, 32, 32, rng())
    families = fine.reshape(20, 5, 32)
    np.testing.assert_array_equal(families * families[:, :1], np.tile(families[:1] * families[:1, :1], (20, 1, 1)))


@settings(max_examples=25)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=25), st.integers(10, 70), st.integers(0, 2**32 - 1))
def test_uneven_families_get_distinct_centres(sizes, bits, seed):
    parents = rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    coarse, fine = nested_centers(parents, 32, bits, rng(seed))
    check_signs(coarse, len(sizes), 32)
    check_signs(fine, sum(sizes), bits)
    assert (np.abs(fine.sum(axis=0, dtype=int)) < len(fine)).all()
    again = nested_centers(parents, 32, bits, rng(seed))
    np.testing.assert_array_equal(fine, again[1])


def test_a_family_of_hundreds_beside_families_of_one():
    parents = rng().permutation(np.concatenate([np.zeros(300, int), np.arange(1, 200), rng(1).integers(1, 200, 500)]))
    coarse, fine = nested_centers(parents, 32, 32, rng())
    assert minimum_distance(coarse) >= 12
    assert minimum_distance(fine) >= 12
    assert hierarchy_order([coarse, fine], [None, parents]) == 1
    assert np.abs(fine.sum(axis=0, dtype=int)).max() < 100
    assert distinct_bits(fine) == 32


def test_classes_without_siblings_and_parents_without_children():
    coarse, fine = nested_centers(np.arange(100), 32, 32, rng())
    assert minimum_distance(fine) >= 12
    assert hierarchy_order([coarse, fine], [None, np.arange(100)]) == 1
    childless = np.where(COARSE_OF_FINE == 3, 4, COARSE_OF_FINE)
    made = hierarchical_centers([None, childless], [25, 100], [32, 32], rng())
    assert [len(c) for c in made] == [25, 100]
    assert hierarchy_order(made, [None, childless]) == 1


def test_two_families_and_few_classes():
    parents = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    coarse, fine = nested_centers(parents, 16, 32, rng())
    np.testing.assert_array_equal(coarse[0], -coarse[1])
    assert minimum_distance(fine) >= 16
    assert distinct_bits(fine) == 32
    assert hierarchy_order([coarse, fine], [None, parents]) == 1


def test_three_levels_and_one_that_does_not_nest():
    """8 kinds x 5 x 4 items, beside a level on its own."""
    parents = [None, np.repeat(np.arange(8), 5), np.repeat(np.arange(40), 4), None]
    made = hierarchical_centers(parents, [8, 40, 160, 7], [32, 32, 32, 24], rng())
    for centers, classes, bits in zip(made, [8, 40, 160, 7], [32, 32, 32, 24], strict=True):
        check_signs(centers, classes, bits)
    assert hierarchy_order(made, parents) == 1
    assert minimum_distance(made[3]) >= 12


def test_thousands_of_classes_in_a_hierarchy():
    source = rng()
    parents = source.permutation(np.concatenate([np.arange(300), source.integers(0, 300, 2700)]))
    start = time.perf_counter()
    coarse, fine = nested_centers(parents, 32, 64, source)
    made = time.perf_counter() - start
    assert hierarchy_order([coarse, fine], [None, parents]) > 0.999
    assert time.perf_counter() - start < 30
    assert made < 5
    assert minimum_distance(fine) >= 24


def test_more_siblings_than_codes_are_refused():
    with pytest.raises(InputError, match='500 classes in 8 bits; give the segment 11 bits or more'):
        nested_centers(np.repeat([0, 1], 250), 8, 8, rng())
    with pytest.raises(InputError, match='one class only'):
        nested_centers(np.zeros(5, int), 8, 8, rng())
