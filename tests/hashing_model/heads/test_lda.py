"""The projection for near-duplicates, against scipy's generalised eigenvectors, and that it finds copies."""

import numpy as np
import pytest
import scipy.linalg

from hashing_model.codes.bits import hamming, pack_bits
from hashing_model.errors import InputError
from hashing_model.heads.lda import SHRINKAGE, fit_lda
from hashing_model.heads.projections import itq


def pictures_and_copies(images=400, dims=24, views=2, seed=0):
    """Vectors that differ in all directions; copies differ from them most where the pictures differ most."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((dims, dims)))[0]
    between, within = np.linspace(3, 0.5, dims), np.linspace(3, 0.05, dims) ** 1.5
    x = rng.standard_normal((images, dims)) * between
    copies = [x + rng.standard_normal(x.shape) * within for _ in range(views)]
    return [(v @ axes + 4).astype(np.float32) for v in (x, *copies)]


def scatters(every):
    """Covariances within images and of all, by loops over images."""
    every = np.array(every, np.float64)  # [views, N, d]
    views, images, dims = every.shape
    within = np.zeros((dims, dims))
    for i in range(images):
        centred = every[:, i] - every[:, i].mean(axis=0)
        within += centred.T @ centred
    flat = every.reshape(-1, dims) - every.reshape(-1, dims).mean(axis=0)
    return within / (images * (views - 1)), flat.T @ flat / len(flat)


@pytest.mark.parametrize('bits', [1, 7, 24])
def test_directions_are_the_generalised_eigenvectors_of_the_largest_values(bits):
    every = pictures_and_copies()
    head = fit_lda(every[0], every[1:], bits)
    within, total = scatters(every)
    within += SHRINKAGE * np.trace(within) / 24 * np.eye(24)
    values, vectors = scipy.linalg.eigh(total, within)
    expected = vectors[:, ::-1][:, :bits]
    assert values[-1] > 2 * values[0]  # not trivial
    cosines = np.abs(np.sum(head.weights * expected, axis=0))
    cosines /= np.linalg.norm(head.weights, axis=0) * np.linalg.norm(expected, axis=0)
    np.testing.assert_allclose(cosines, 1, atol=1e-3)
    quotients = np.diag(head.weights.T @ total @ head.weights) / np.diag(head.weights.T @ within @ head.weights)
    np.testing.assert_allclose(quotients, values[::-1][:bits], rtol=1e-3)
    assert head.hidden == ()


def test_the_mean_is_the_threshold_and_signs_are_definite():
    every = pictures_and_copies()
    head = fit_lda(every[0], every[1:], 12)
    activations = np.concatenate([head.activations(x) for x in every])
    np.testing.assert_allclose(activations.mean(axis=0), 0, atol=1e-3 * np.abs(activations).max())
    assert (head.weights[np.abs(head.weights).argmax(axis=0), np.arange(12)] > 0).all()
    again = fit_lda(every[0], every[1:], 12)
    np.testing.assert_array_equal(again.weights, head.weights)
    np.testing.assert_array_equal(again.offset, head.offset)
    assert (head.weights.dtype, head.offset.dtype) == (np.float32, np.float32)


def found_first(head, x, queries):
    """How often a query's original is nearer than others; ties share."""
    distances = hamming(pack_bits(head.bits(queries))[:, None], pack_bits(head.bits(x))[None])
    own = np.diag(distances)[:, None]
    return np.mean(np.where((distances < own).any(axis=1), 0, 1 / (distances == own).sum(axis=1)))


def test_copies_are_found_better_than_by_itq():
    for seed in range(3):
        every = pictures_and_copies(views=3, seed=seed)
        lda = fit_lda(every[0], every[1:3], 16)
        rival = itq(every[0], 16, np.random.default_rng(seed))
        x, copies = every[0], every[3]  # a view that it has not seen
        assert found_first(lda, x, copies) > found_first(rival, x, copies) + 0.1


def test_directions_that_never_vary_among_copies_are_not_blown_up():
    every = pictures_and_copies()
    constant = [np.hstack([x, np.full((len(x), 1), 3, np.float32)]) for x in every]
    head = fit_lda(constant[0], constant[1:], 24)
    assert np.isfinite(head.weights).all()
    np.testing.assert_allclose(head.weights[24], 0, atol=1e-4 * np.abs(head.weights).max())
    alone = fit_lda(every[0], every[1:], 23)
    bits = [fit.bits(x) for fit, x in ((head, constant[0]), (alone, every[0]))]
    assert (bits[0][:, :23] == bits[1]).mean() > 0.9


def test_what_cannot_be_fitted_is_refused():
    every = pictures_and_copies(images=9, dims=8)
    assert fit_lda(every[0], every[1:], 8).weights.shape == (8, 8)
    with pytest.raises(InputError, match='lda needs augmented views'):
        fit_lda(every[0], [], 4)
    with pytest.raises(InputError, match='9 bits need more than 9 training images; there are 9'):
        fit_lda(every[0], every[1:], 9)
    wide = pictures_and_copies(images=30, dims=8)
    with pytest.raises(InputError, match='9 bits cannot come from features of 8 dimensions'):
        fit_lda(wide[0], wide[1:], 9)


def test_views_that_are_the_pictures_themselves_do_no_harm():
    x = pictures_and_copies()[0]
    for every in (x, np.zeros_like(x)):
        head = fit_lda(every, [every, every], 8)
        assert np.isfinite(head.weights).all()
        assert np.isfinite(head.offset).all()
    assert 0.4 < fit_lda(x, [x, x], 8).bits(x).mean() < 0.6
