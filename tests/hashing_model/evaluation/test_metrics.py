"""Metrics of codes, against averages over every order of the ties, plain definitions and Python's integers."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing_model.codes.bits import pack_bits, segment_distances
from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from hashing_model.evaluation.metrics import (
    average_precision,
    average_precision_bounds,
    empty_rate,
    hierarchical_average_precision,
    hit_at,
    ndcg,
    precision_at,
    precision_recall_curve,
    precision_within,
    recall_at,
)
from hashing_model.evaluation.ranking import rank
from hashing_model.labels import LabelLevel

GRADES = 3
# The grades of the images at each distance, few enough to try all orders
TIES = st.lists(st.lists(st.integers(0, GRADES), max_size=5), min_size=1, max_size=4).filter(
    lambda ties: sum(map(len, ties)) <= 7
)
CUTS = st.one_of(st.none(), st.integers(1, 9))


def histograms(*queries):
    """Totals [Q, D + 1] and graded [Q, G, D + 1] of lists of grades by distance."""
    width = max(map(len, queries))
    totals = np.zeros((len(queries), width), np.int64)
    graded = np.zeros((len(queries), GRADES, width), np.int64)
    for q, ties in enumerate(queries):
        for d, grades in enumerate(ties):
            totals[q, d] = len(grades)
            for grade in grades:
                if grade:
                    graded[q, grade - 1, d] += 1
    return totals, graded


def binary(*queries):
    totals, graded = histograms(*queries)
    return totals, graded.sum(axis=1)


def orders(ties):
    """Every ranking that the ties allow; those that look alike once, for all are equally many."""
    for parts in itertools.product(*(sorted(set(itertools.permutations(tie))) for tie in ties)):
        yield [grade for part in parts for grade in part]


def over_orders(metric, ties, *arguments):
    return [metric(order, *arguments) for order in orders(ties)]


# The definitions, of one ranking without ties: grades in order


def plain_precision(order, k):
    return sum(g > 0 for g in order[:k]) / k


def plain_ap(order, k=None):
    k = k or max(len(order), 1)
    hits = [plain_precision(order, i + 1) for i, grade in enumerate(order[:k]) if grade]
    return sum(hits) / min(sum(g > 0 for g in order), k)


def plain_recall(order, k):
    return sum(g > 0 for g in order[:k]) / sum(g > 0 for g in order)


def plain_hit(order, k):
    return float(any(order[:k]))


def plain_dcg(order, k):
    return sum((2**grade - 1) / math.log2(2 + i) for i, grade in enumerate(order[:k]))


def plain_ndcg(order, k=None):
    return plain_dcg(order, k) / plain_dcg(sorted(order, reverse=True), k)


def plain_hap(order):
    terms = [sum(min(a, b) for a in order[: i + 1]) / (i + 1) for i, b in enumerate(order)]
    return sum(terms) / sum(order)


def plain_precision_at_recall(order, level):
    places = [i + 1 for i, grade in enumerate(order) if grade]
    hits = max(1, math.ceil(round(level * len(places), 6)))
    return hits / places[hits - 1]


def check(value, metric, ties, *arguments):
    """The value of the only query is the mean over all orders of its ties, or NaN if nothing is relevant."""
    assert value.dtype == np.float64
    assert value.shape == (1,)
    if not any(map(any, ties)):
        assert np.isnan(value[0])
    else:
        assert value[0] == pytest.approx(np.mean(over_orders(metric, ties, *arguments)), abs=1e-12)


@given(TIES, CUTS)
def test_average_precision_is_the_mean_over_all_orders_of_the_ties(ties, k):
    check(average_precision(*binary(ties), k), plain_ap, ties, k)


@given(TIES, CUTS)
def test_bounds_are_the_worst_and_the_best_order(ties, k):
    low, high = average_precision_bounds(*binary(ties), k)
    if not any(map(any, ties)):
        assert np.isnan([*low, *high]).all()
    else:
        every = over_orders(plain_ap, ties, k)
        assert (low[0], high[0]) == (pytest.approx(min(every), abs=1e-12), pytest.approx(max(every), abs=1e-12))


@given(TIES, st.integers(1, 9))
def test_precision_recall_and_hits_are_means_over_all_orders(ties, k):
    check(precision_at(*binary(ties), k), plain_precision, ties, k)
    check(recall_at(*binary(ties), k), plain_recall, ties, k)
    check(hit_at(*binary(ties), k), plain_hit, ties, k)


@given(TIES, CUTS)
def test_ndcg_is_the_mean_over_all_orders(ties, k):
    check(ndcg(*histograms(ties), k), plain_ndcg, ties, k)


@given(TIES)
def test_hierarchical_average_precision_is_the_mean_over_all_orders(ties):
    check(hierarchical_average_precision(*histograms(ties)), plain_hap, ties)


@given(TIES, st.sampled_from([0, 0.2, 1 / 3, 0.5, 0.6, 1]))
def test_precision_at_a_recall_is_the_mean_over_all_orders(ties, level):
    check(precision_recall_curve(*binary(ties), [level]), plain_precision_at_recall, ties, level)


@given(st.lists(TIES, min_size=1, max_size=4), CUTS)
def test_queries_do_not_mix(queries, k):
    totals, graded = histograms(*queries)
    relevant = graded.sum(axis=1)
    for metric, counts in [
        (average_precision, relevant),
        (lambda *a: average_precision_bounds(*a)[0], relevant),
        (lambda t, r, k: hit_at(t, r, k or 1), relevant),
        (lambda t, r, k: precision_within(t, r, k or 0), relevant),
        (ndcg, graded),
        (lambda t, g, k: hierarchical_average_precision(t, g), graded),
    ]:
        alone = np.concatenate([metric(totals[[q]], counts[[q]], k) for q in range(len(queries))])
        np.testing.assert_allclose(metric(totals, counts, k), alone, atol=1e-12)


# Many images in one tie


def large_ties(seed, queries=3):
    """Ties of up to thousands of images, of which 0 to all are relevant."""
    source = np.random.default_rng(seed)
    totals = source.choice([0, 1, 2, 50, 3000], (queries, 6))
    return totals, source.binomial(totals, source.random(totals.shape))


@pytest.mark.parametrize('k', [None, 1, 700, 5000, 10**6])
def test_average_precision_of_large_ties_is_the_published_sum(k):
    totals, relevant = large_ties(0)
    for q, value in enumerate(average_precision(totals, relevant, k)):
        total, before, hits = 0.0, 0, 0
        for n, m in zip(totals[q].tolist(), relevant[q].tolist(), strict=True):
            for t in range(1, n + 1):
                if k is None or before + t <= k:
                    total += m / n * (hits + 1 + (t - 1) * (m - 1) / max(n - 1, 1)) / (before + t)
            before, hits = before + n, hits + m
        assert value == pytest.approx(total / min(hits, k or hits), rel=1e-10)


@pytest.mark.parametrize('seed', range(3))
def test_the_precision_recall_curve_averages_to_average_precision(seed):
    totals, relevant = large_ties(seed, queries=1)
    found = relevant.sum()
    assert found > 100
    curve = precision_recall_curve(totals, relevant, np.arange(1, found + 1) / found)
    assert curve.mean() == pytest.approx(average_precision(totals, relevant)[0], rel=1e-9)


def test_hits_in_large_ties_are_hypergeometric():
    totals, relevant = np.array([[3, 4000], [0, 4000], [0, 4000]]), np.array([[0, 7], [0, 1], [0, 3500]])
    for k in (3, 4, 100, 2000, 3996, 3997, 4003, 9999):
        for value, before, members in zip(hit_at(totals, relevant, k), (3, 0, 0), (7, 1, 3500), strict=True):
            drawn = min(max(k - before, 0), 4000)
            missed = math.comb(4000 - members, drawn) / math.comb(4000, drawn)
            assert value == pytest.approx(1 - missed, abs=1e-12)


def test_one_grade_makes_the_hierarchical_one_ordinary():
    totals, relevant = large_ties(4)
    hap = hierarchical_average_precision(totals, relevant[:, None])
    np.testing.assert_allclose(hap, average_precision(totals, relevant), rtol=1e-9)


# Definitions that no order decides


def test_a_ball_holds_what_is_within_its_radius():
    totals, relevant = np.array([[0, 0, 4], [1, 3, 9], [2, 0, 1]]), np.array([[0, 0, 2], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(precision_within(totals, relevant, 0), [0, 1, np.nan])
    np.testing.assert_array_equal(precision_within(totals, relevant, 1), [0, 0.25, np.nan])
    np.testing.assert_array_equal(precision_within(totals, relevant, 99), [0.5, 1 / 13, np.nan])
    assert [empty_rate(totals, radius) for radius in (0, 1, 2, 99)] == [1 / 3, 1 / 3, 0, 0]
    assert math.isnan(empty_rate(totals[:0], 2))


def test_the_curve_weighs_queries_alike_and_leaves_out_those_with_nothing_relevant():
    totals, relevant = np.array([[1, 1, 0], [1, 0, 3], [5, 5, 5]]), np.array([[0, 1, 0], [1, 0, 3], [0, 0, 0]])
    np.testing.assert_allclose(precision_recall_curve(totals, relevant), np.full(20, 0.75))
    assert np.isnan(precision_recall_curve(totals[2:], relevant[2:], [0.5, 1])).tolist() == [True, True]


def test_a_good_order_is_worth_one_and_a_better_one_more():
    perfect, swapped = histograms([[3], [2], [1], [0]]), histograms([[2], [3], [1], [0]])
    for metric in (ndcg, hierarchical_average_precision):
        assert metric(*perfect)[0] == pytest.approx(1)
        assert metric(*swapped)[0] < 0.999


def test_no_queries_and_an_empty_database_have_no_values():
    none = np.zeros((0, 5), np.int64), np.zeros((0, 5), np.int64)
    empty = np.zeros((2, 5), np.int64), np.zeros((2, 5), np.int64)
    for counts, size in ((none, 0), (empty, 2)):
        for values in (average_precision(*counts), hit_at(*counts, 3), *average_precision_bounds(*counts, 2)):
            assert values.shape == (size,)
            assert np.isnan(values).all()
        graded = counts[1][:, None]
        for values in (ndcg(counts[0], graded), hierarchical_average_precision(counts[0], graded)):
            assert values.shape == (size,)
            assert np.isnan(values).all()


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda t, g: average_precision(t, g), r'histograms are \[2, 4\] and \[2, 3, 4\]; both must be \[Q, D \+ 1\]'),
        (lambda t, g: ndcg(t, t), r'graded histograms are \[2, 4\]'),
        (lambda t, g: precision_at(t, t, 0), 'k is 0'),
        (lambda t, g: precision_within(t, t, -1), 'the radius is -1'),
        (lambda t, g: empty_rate(t, -2), 'the radius is -2'),
        (lambda t, g: precision_recall_curve(t, t, [0.5, 1.5]), r'\[0.5, 1.5\] are not all between 0 and 1'),
    ],
)
def test_other_histograms_and_cuts_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(np.ones((2, 4), np.int64), np.ones((2, 3, 4), np.int64))


# Ranking codes


def random_codes(spec, count, source):
    return pack_bits(source.integers(0, 2, (count, spec.bits)))


def random_levels(count, source, classes=(3, 5, 8)):
    """Labels of none, one or several classes per image at each level."""
    return [
        LabelLevel.from_values(
            [[f'c{c}' for c in source.choice(n, source.integers(0, 3), replace=False)] for _ in range(count)],
            [f'c{c}' for c in range(n)],
        )
        for n in classes
    ]


def one_class(values, names=None):
    return LabelLevel.from_values([[str(v)] for v in values], names)


def take(levels, rows):
    return [level.take(rows) for level in levels]


def shared_depth(a, i, b, j):
    depth = 0
    for x, y in zip(a, b, strict=True):
        own = set(x.classes[x.starts[i] : x.starts[i + 1]].tolist())
        if not own & set(y.classes[y.starts[j] : y.starts[j + 1]].tolist()):
            break
        depth += 1
    return depth


def counted(queries, query_labels, codes, labels, spec, weights, leave_out):
    """Totals and graded histograms, pair by pair."""
    distances = segment_distances(queries[:, None], codes[None], spec) @ np.array(weights)
    largest = sum(w * s.bits for w, s in zip(weights, spec.segments, strict=True))
    totals = np.zeros((len(queries), largest + 1), np.int64)
    graded = np.zeros((len(queries), len(labels), largest + 1), np.int64)
    for q, row in itertools.product(range(len(queries)), range(len(codes))):
        if row == leave_out[q]:
            continue
        totals[q, distances[q, row]] += 1
        depth = shared_depth(query_labels, q, labels, row)
        if depth:
            graded[q, depth - 1, distances[q, row]] += 1
    return totals, graded


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(['a=1', 'a=13', 'a=64', 'a=3,b=70', 'coarse=32,fine=32,look=64']),
    st.sampled_from([None, (1, 1, 1), (1, 2, 4), (3, 3, 0), (5, 0, 5)]),
    st.integers(0, 9),
    st.integers(0, 40),
    st.integers(0, 2**32 - 1),
)
def test_rankings_equal_those_counted_pair_by_pair(text, weights, queries, images, seed):
    spec, source = CodeSpec.parse(text), np.random.default_rng(seed)
    profile = weights and dict(zip(spec.names, weights, strict=False))
    codes, labels = random_codes(spec, images, source), random_levels(images, source)
    query_codes, query_labels = random_codes(spec, queries, source), random_levels(queries, source)
    leave_out = source.integers(-1, images, queries)
    got = rank(query_codes, query_labels, codes, labels, spec, profile, leave_out)
    totals, graded = counted(query_codes, query_labels, codes, labels, spec, spec.weights(profile), leave_out)
    np.testing.assert_array_equal(got.totals, totals)
    np.testing.assert_array_equal(got.graded, graded)
    assert (got.totals.dtype, got.graded.dtype) == (np.int64, np.int64)


def test_rankings_of_many_images_equal_a_matrix_of_distances():
    spec, source = CodeSpec.parse('a=40,b=60'), np.random.default_rng(1)
    codes, classes = random_codes(spec, 3011, source), source.integers(0, 7, 3011)
    level = one_class(classes)
    got = rank(codes[:67], [level.take(np.arange(67))], codes, [level], spec, {'a': 1, 'b': 3}, np.arange(67))
    distances = segment_distances(codes[:67, None], codes[None], spec) @ np.array([1, 3])
    for q in range(67):
        others = np.delete(distances[q], q)
        alike = np.delete(classes, q) == classes[q]
        np.testing.assert_array_equal(got.totals[q], np.bincount(others, minlength=221))
        np.testing.assert_array_equal(got.relevant[q], np.bincount(others[alike], minlength=221))


def test_relevance_is_the_depth_of_the_common_ancestor():
    spec, codes = CodeSpec.parse('a=8'), np.zeros((4, 1), np.uint8)
    coarse = one_class(['pet', 'pet', 'car', 'car'])
    fine = one_class(['cat', 'dog', 'cat', 'van'])  # the third shares the fine class, but not the coarse one
    levels = [coarse, fine]
    got = rank(codes[:1], take(levels, [0]), codes, levels, spec)
    assert got.totals[0, 0] == 4
    assert got.graded[0, :, 0].tolist() == [1, 1]
    assert (got.at_least(1)[0, 0], got.relevant[0, 0], got.at_least(2)[0, 0]) == (2, 2, 1)
    for grade in (0, 3):
        with pytest.raises(InputError, match=f'grade {grade} does not exist; the labels have grades 1 to 2'):
            got.at_least(grade)


def test_queries_with_nothing_relevant_are_counted_and_have_no_value():
    spec, codes = CodeSpec.parse('a=8'), np.array([[0], [1], [3]], np.uint8)
    labels = LabelLevel.from_values([['x'], ['x'], []], ['x', 'y'])
    queries = LabelLevel.from_values([['x'], [], ['y']], ['x', 'y'])
    got = rank(codes, [queries], codes, [labels], spec)
    assert got.without_relevant == 2
    np.testing.assert_array_equal(np.isnan(average_precision(got.totals, got.relevant)), [False, True, True])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'query_codes': np.zeros((2, 3), np.uint8)}, 'a code has 3 bytes'),
        ({'query_labels': []}, '0 label levels of the queries and 1 of the database'),
        ({'query_labels': [one_class('xx')]}, 'label level 0 has other class names'),
        ({'query_labels': [one_class('x', ['x', 'y'])]}, 'level 0 has 1 and 3 images; there are 2 and 3 codes'),
        ({'leave_out': [0]}, r'leave_out is int64 \[1\]; one integer per query, \[2\], is needed'),
        ({'leave_out': [0.0, 1.0]}, 'leave_out is float64'),
        ({'leave_out': [0, 3]}, 'leave_out has rows 0 to 3; the database has 3'),
        ({'leave_out': [-2, 0]}, 'leave_out has rows -2 to 0'),
        ({'profile': {'b': 1}}, "unknown segment 'b'"),
        ({'profile': {'a': 2**27}}, 'distances up to 1073741824 need too much memory; give smaller weights'),
    ],
)
def test_what_does_not_fit_together_is_not_ranked(changes, message):
    labels = one_class('xyx')
    arguments = {
        'query_codes': np.zeros((2, 1), np.uint8),
        'query_labels': [labels.take(np.arange(2))],
        'database_codes': np.zeros((3, 1), np.uint8),
        'database_labels': [labels],
        'spec': CodeSpec.parse('a=8'),
    }
    assert rank(**arguments).totals[:, 0].tolist() == [3, 3]
    with pytest.raises(InputError, match=message):
        rank(**{**arguments, **changes})


# Traps of published code


def test_a_constant_code_is_worth_what_chance_is_however_the_database_is_ordered():
    spec, classes = CodeSpec.parse('a=64'), np.repeat(np.arange(10), 200)
    codes, level = np.zeros((2000, 8), np.uint8), one_class(classes)
    got = rank(codes[::50], take([level], slice(None, None, 50)), codes, [level], spec)
    ap = average_precision(got.totals, got.relevant)
    np.testing.assert_allclose(ap, 0.1, atol=0.004)  # a little above: the mean of chance rankings
    assert np.ptp(ap) == 0
    as_stored = [plain_ap((classes == c).tolist()) for c in range(10)]
    assert np.mean(as_stored) == pytest.approx(0.208, abs=1e-3)  # what a stable sort by distance says
    low, high = average_precision_bounds(got.totals, got.relevant)
    worst = np.mean([j / (1800 + j) for j in range(1, 201)])
    np.testing.assert_allclose((low, high), [[worst] * 40, [1] * 40])


def test_the_order_of_the_database_does_not_matter():
    spec, source = CodeSpec.parse('a=16'), np.random.default_rng(3)
    classes = np.repeat(np.arange(5), 80)
    bits = source.integers(0, 2, (5, 16))[classes] ^ (source.random((400, 16)) < 0.3)
    codes, level, shuffled = pack_bits(bits), one_class(classes), source.permutation(400)
    a = rank(codes, [level], codes, [level], spec, leave_out=np.arange(400))
    b = rank(codes, [level], codes[shuffled], take([level], shuffled), spec, leave_out=np.argsort(shuffled))
    np.testing.assert_array_equal(a.totals, b.totals)
    np.testing.assert_array_equal(a.graded, b.graded)
    assert 0.3 < average_precision(a.totals, a.relevant).mean() < 0.9


def test_a_missed_image_lowers_average_precision():
    totals, relevant = binary([[1], [0], [0], [1]])  # found at ranks 1 and 4
    assert average_precision(totals, relevant, 2)[0] == 0.5  # not 1, as if divided by the hits retrieved
    assert average_precision(totals, relevant, 3)[0] == pytest.approx(0.5)
    assert average_precision(totals, relevant)[0] == pytest.approx(0.75)
