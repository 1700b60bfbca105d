"""Ridge regression of target codes: against least squares, and on labels that are missing or many."""

import dataclasses

import numpy as np
import pytest

from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.errors import InputError
from hashing_model.heads import ridge
from hashing_model.heads.projections import itq
from hashing_model.heads.ridge import RIDGE, choose_anchors, fit_ridge, regress, target_codes
from hashing_model.heads.supervision import supervise
from hashing_model.labels import LabelLevel
from tests.helpers.make_labelled import LEARNED, dataset, mean_average_precision, vectors


@pytest.fixture(scope='module')
def fitted():
    fused, labels = dataset()
    supervision = supervise(LEARNED, labels, np.random.default_rng(0))
    return supervision, fit_ridge(fused, supervision)


@pytest.mark.parametrize(('n', 'd'), [(50, 8), (8, 50), (9000, 5)])
def test_the_weights_are_those_of_least_squares(n, d):
    """Least squares of [A; sqrt(lambda) I] W = [B; 0] are the same problem, solved by another algorithm."""
    rng = np.random.default_rng(n)
    x = (rng.standard_normal((n + 7, d)) * rng.uniform(0.1, 3, d) + rng.uniform(-1, 1, d)).astype(np.float32)
    rows = rng.permutation(n + 7)[:n]
    targets = rng.choice([-1, 1], (n, 6)).astype(np.float32)
    a = x[rows].astype(np.float64)
    a -= a.mean(axis=0)
    b = targets - targets.mean(axis=0, dtype=np.float64)
    damped = np.sqrt((a**2).sum() / n) * np.eye(d)
    expected = np.linalg.lstsq(np.vstack([a, damped]), np.vstack([b, np.zeros((d, 6))]))[0]
    np.testing.assert_allclose(regress(x, targets, rows, 1.0), expected, rtol=1e-4, atol=1e-5)


def kernel_of(x, y, anchors):
    """The Gaussian kernel of two sets of vectors, in double precision and from the definition."""
    a, b = (v @ anchors.projection.astype(np.float64) for v in (x, y))
    return np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2))


def test_with_every_image_an_anchor_it_is_kernel_ridge_regression():
    """Of centred images, by its dual: (H K H + r I)^-1 B, another problem of another size (Saunders et al. 1998)."""
    fused, labels = dataset()
    supervision = supervise(LEARNED, labels, np.random.default_rng(0))
    new, _ = dataset(seed=5)
    for segment in LEARNED.segments[:2]:
        head, x, rows = fit_ridge(fused, supervision)[segment.name], vectors(segment, fused), supervision.train
        k, n = kernel_of(x[rows], x[rows], head.anchors), len(rows)
        centring = np.eye(n) - 1 / n
        centred = centring @ k @ centring
        b = target_codes(supervision.levels[segment.name].take(rows), supervision.centers[segment.name])
        dual = np.linalg.solve(centred + RIDGE * np.trace(centred) / n * np.eye(n), centring @ b)
        for y in (x, vectors(segment, new)):
            expected = kernel_of(y, x[rows], head.anchors) @ centring @ dual
            found = head.activations(y)
            np.testing.assert_allclose(found - found.mean(axis=0), expected - expected.mean(axis=0), atol=2e-3)


def test_images_are_compared_by_their_mean_distance():
    x = vectors(LEARNED.segments[0], dataset()[0])
    anchors = choose_anchors(x, np.arange(len(x)))
    assert anchors.points.shape == (len(x), min(len(x) - 1, x.shape[1]))
    squares = ((x[:, None].astype(np.float64) - x[None]) ** 2).sum(axis=2)  # all dimensions: nothing is lost
    np.testing.assert_allclose(anchors.kernel(x), np.exp(-squares / squares.mean()), atol=1e-4)


def test_anchors_are_spread_over_the_images(monkeypatch):
    monkeypatch.setattr(ridge, 'ANCHORS', 4)
    monkeypatch.setattr(ridge, 'DIMENSIONS', 2)
    x = np.random.default_rng(0).standard_normal((30, 5)).astype(np.float32)
    anchors = choose_anchors(x, np.arange(0, 30, 3))
    assert anchors.projection.shape == (5, 2)
    assert anchors.kernel(x[[0, 9, 18, 27]]).argmax(axis=1).tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(np.diag(anchors.kernel(x[[0, 9, 18, 27]])), 1, atol=1e-6)


def test_equal_images_are_no_obstacle():
    """Neither that some are there twice, which makes the kernel singular, nor that all are the same."""
    fused, labels = dataset()
    supervision = supervise(LEARNED, labels, np.random.default_rng(0))
    for twice in ({n: x[np.arange(len(x)) // 2 * 2] for n, x in fused.items()}, {n: x * 0 for n, x in fused.items()}):
        for head in fit_ridge(twice, supervision).values():
            assert np.isfinite(head.weights).all()


def test_few_anchors_learn_too(monkeypatch):
    monkeypatch.setattr(ridge, 'ANCHORS', 60)
    fused, labels = dataset()
    head = fit_ridge(fused, supervise(LEARNED, labels, np.random.default_rng(0)))['coarse']
    assert head.anchors.points.shape[0] == 60
    new, new_labels = dataset(seed=5)
    assert mean_average_precision(head, LEARNED.segments[0], new, new_labels['coarse']) > 0.8


def test_a_target_is_the_mean_of_the_codes_of_an_images_classes():
    level = LabelLevel.from_values([['a'], ['b', 'a'], ['c']])
    centers = np.array([[1, 1, -1], [-1, 1, -1], [1, -1, 1]], np.int8)
    assert target_codes(level, centers).tolist() == [[1, 1, -1], [0, 1, -1], [1, -1, 1]]
    np.testing.assert_allclose(target_codes(level, centers), level.targets() @ centers)


def test_what_is_learned_holds_for_new_images(fitted):
    _, heads = fitted
    fused, labels = dataset(seed=5)
    for segment in LEARNED.segments[:2]:
        x, level = vectors(segment, fused), labels[segment.name]
        rival = itq(x - x.mean(axis=0), segment.bits, np.random.default_rng(0))
        moved = {name: values - values.mean(axis=0) for name, values in fused.items()}
        found = mean_average_precision(heads[segment.name], segment, fused, level)
        assert found > 0.8
        assert found > mean_average_precision(rival, segment, moved, level) + 0.2


def test_a_bit_is_the_sign_of_what_is_predicted_for_it(fitted):
    """The mean of predictions over what was learned from is the mean of the targets."""
    supervision, heads = fitted
    fused, _ = dataset()
    for segment in LEARNED.segments[:2]:
        predicted = heads[segment.name].activations(vectors(segment, fused))[supervision.train]
        level = supervision.levels[segment.name].take(supervision.train)
        targets = target_codes(level, supervision.centers[segment.name])
        np.testing.assert_allclose(predicted.mean(axis=0), targets.mean(axis=0), atol=1e-4)


def test_a_class_that_most_images_have_is_not_cut_in_two():
    fused, labels = dataset(members=80)
    classes = labels['coarse'].classes
    rows = np.flatnonzero((classes == 0) | (np.arange(len(classes)) % 8 == 0))
    uneven = {name: x[rows] for name, x in fused.items()}
    level = labels['coarse'].take(rows)
    assert 0.75 < (level.classes == 0).mean() < 0.85
    segment = LEARNED.segments[0]
    head = fit_ridge(uneven, supervise(CodeSpec((segment,)), {'coarse': level}, np.random.default_rng(0)))['coarse']
    balanced = head.shifted(head.activations(vectors(segment, uneven)).mean(axis=0, dtype=np.float64))
    new, new_labels = dataset(seed=5)
    scores = [mean_average_precision(h, segment, new, new_labels['coarse']) for h in (head, balanced)]
    assert scores[0] > scores[1] + 0.05


def test_what_cannot_be_measured_is_not_told():
    fused, labels = dataset()
    rare = LabelLevel.from_values([[f'{i:04}'] for i in range(len(labels['coarse']))])
    spec = CodeSpec((LEARNED.segments[0], Segment('fine', 64, ('top',))))
    supervision = supervise(spec, {'coarse': labels['coarse'], 'fine': rare}, np.random.default_rng(0))
    told = supervision.about(fit_ridge(fused, supervision), fused)['validation_map']
    assert list(told) == ['coarse']


def test_too_few_labels_are_refused():
    fused, labels = dataset()
    held_out = supervise(LEARNED, labels, np.random.default_rng(0)).held_out
    once = LabelLevel.from_values([['x' if i in held_out else 'y'] for i in range(len(labels['fine']))])
    supervision = supervise(LEARNED, {'coarse': labels['coarse'], 'fine': once}, np.random.default_rng(0))
    supervision = dataclasses.replace(supervision, train=np.setdiff1d(np.arange(len(once)), held_out))
    with pytest.raises(InputError, match=r'fine: \d+ labelled images to train on are too few; give more'):
        fit_ridge(fused, supervision)


def test_images_without_a_label_of_a_level_are_no_examples_of_it():
    """Their features may be anything: the weights are the same."""
    fused, labels = dataset()
    half = LabelLevel.from_values([['x' if i % 3 else 'y'] if i % 2 else [] for i in range(len(labels['fine']))])
    supervision = supervise(LEARNED, {'coarse': labels['coarse'], 'fine': half}, np.random.default_rng(0))
    before = fit_ridge(fused, supervision)['fine'].weights
    rows = supervision.train[supervision.train % 2 == 0]
    changed = {name: x.copy() for name, x in fused.items()}
    for x in changed.values():
        x[rows] += 100
    np.testing.assert_array_equal(fit_ridge(changed, supervision)['fine'].weights, before)


def test_images_may_have_several_labels():
    rng = np.random.default_rng(3)
    present = rng.random((400, 4)) < 0.4
    present[~present.any(axis=1), 0] = True
    x = present @ rng.standard_normal((4, 12)) + 0.3 * rng.standard_normal((400, 12))
    level = LabelLevel.from_values([[f'tag {j}' for j in np.flatnonzero(row)] for row in present])
    spec = CodeSpec((Segment('tags', 16, ('top',)),))
    supervision = supervise(spec, {'tags': level}, np.random.default_rng(0))
    fused = {'top': (x - x.mean(axis=0)).astype(np.float32)}
    bits = fit_ridge(fused, supervision)['tags'].bits(fused['top'])
    overlap = (present[:, None] & present[None]).sum(axis=2) / (present[:, None] | present[None]).sum(axis=2)
    distances = (bits[:, None] != bits[None]).sum(axis=2)
    assert distances[overlap == 1].mean() < 0.5 * distances[overlap == 0].mean()
    assert distances[overlap == 1].mean() < 0.8 * distances[(overlap > 0.3) & (overlap < 0.6)].mean()
