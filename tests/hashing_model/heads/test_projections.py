"""Hash functions without gradients, against numpy's SVD and what their authors promise of them."""

import itertools

import numpy as np
import pytest

from hashing_model.codes.bits import hamming, pack_bits
from hashing_model.errors import InputError
from hashing_model.heads.head import HashHead
from hashing_model.heads.projections import METHODS, itq, pca_random_rotation, random_projection


def rng(seed=0):
    return np.random.default_rng(seed)


def uneven(count=300, dims=12, seed=0):
    """Vectors off the origin, of different spread along skewed axes, float32 [count, dims]."""
    source = rng(seed)
    axes = source.standard_normal((dims, dims))
    return (source.standard_normal((count, dims)) * np.linspace(0.1, 3, dims) @ axes + 5).astype(np.float32)


def clustered(seed, clusters=20, members=30, dims=48):
    """Clusters in a space of few dimensions, with noise in all: float32 [N, dims]; and each one's cluster."""
    source = rng(seed)
    centres = source.standard_normal((clusters, 12)) @ source.standard_normal((12, dims))
    labels = np.repeat(np.arange(clusters), members)
    x = centres[labels] + 2.5 * source.standard_normal((len(labels), dims))
    return (x - x.mean(axis=0)).astype(np.float32), labels


def principal_space(x, bits):
    _, _, right = np.linalg.svd(x.astype(np.float64) - x.mean(axis=0, dtype=np.float64), full_matrices=False)
    return right[:bits].T @ right[:bits]


def quantization_loss(projection, x):
    v = x.astype(np.float64) @ projection.weights + projection.offset
    return float(((np.where(v >= 0, 1, -1) - v) ** 2).sum())


# Random projection


def test_random_bits_are_the_signs_of_normal_projections():
    x = uneven() - uneven().mean(axis=0)
    projection = random_projection(x, 24, rng(7))
    normals = rng(7).standard_normal((12, 24))
    expected = [[sum(a * w for a, w in zip(row, column, strict=True)) >= 0 for column in normals.T] for row in x[:50]]
    np.testing.assert_array_equal(projection.bits(x[:50]), expected)
    assert not projection.offset.any()


def test_random_bits_differ_in_proportion_to_the_angle():
    angles = np.linspace(0, np.pi, 7)
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    bits = random_projection(x, 20_000, rng()).bits(x)
    shares = (bits != bits[0]).mean(axis=1)
    np.testing.assert_allclose(shares, angles / np.pi, atol=0.02)  # Charikar 2002


def test_the_sign_of_zero_is_plus_one():
    zeros = np.zeros((2, 5), np.float32)
    assert random_projection(zeros, 9, rng()).bits(zeros).all()
    on_the_edge = HashHead(np.array([[1.0]], np.float32), np.array([-2.0], np.float32))
    assert on_the_edge.bits(np.array([[2.0], [np.nextafter(np.float32(2), 0)]], np.float32)).tolist() == [
        [True],
        [False],
    ]


def test_random_needs_neither_many_images_nor_many_dimensions():
    x = uneven(1, 2)
    assert random_projection(x, 64, rng()).bits(x).shape == (1, 64)


# PCA and a random rotation, ITQ


@pytest.mark.parametrize('fit', [pca_random_rotation, itq])
@pytest.mark.parametrize('bits', [1, 5, 12])
def test_weights_are_an_orthonormal_basis_of_the_principal_space(fit, bits):
    x = uneven()
    projection = fit(x, bits, rng())
    weights = projection.weights.astype(np.float64)
    assert weights.shape == (12, bits)
    np.testing.assert_allclose(weights.T @ weights, np.eye(bits), atol=1e-5)
    np.testing.assert_allclose(weights @ weights.T, principal_space(x, bits), atol=1e-4)
    np.testing.assert_allclose(projection.offset, -x.mean(axis=0, dtype=np.float64) @ weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('fit', [pca_random_rotation, itq])
def test_the_origin_does_not_matter(fit):
    x = uneven()
    moved = x + np.linspace(-20, 20, 12, dtype=np.float32)
    a, b = fit(x, 8, rng()).bits(x), fit(moved, 8, rng()).bits(moved)
    assert (a == b).mean() > 0.99
    assert 0.3 < a.mean() < 0.7


def test_the_rotation_is_random_and_evens_out_the_spread():
    x = uneven()
    a, b = pca_random_rotation(x, 8, rng(1)), pca_random_rotation(x, 8, rng(2))
    assert np.abs(a.weights - b.weights).max() > 0.1
    spread = np.mean([pca_random_rotation(x, 8, rng(s)).weights for s in range(200)], axis=0)
    assert np.abs(spread).max() < 0.15  # uniform: no direction is preferred
    variances = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)[:8] ** 2
    rotated = (x @ a.weights).var(axis=0)
    assert rotated.max() / rotated.min() < variances.max() / variances.min()


def test_itq_starts_from_the_random_rotation_and_never_gets_worse():
    x, _ = clustered(0)
    start = pca_random_rotation(x, 16, rng(3))
    np.testing.assert_allclose(itq(x, 16, rng(3), iterations=0).weights, start.weights, atol=1e-6)
    losses = [quantization_loss(itq(x, 16, rng(3), iterations=n), x) for n in (0, 1, 2, 4, 8, 16, 50)]
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.97 * quantization_loss(start, x)


def test_itq_takes_the_nearest_rotation_to_its_signs():
    """After one iteration no rotation is nearer to the signs it began with (orthogonal Procrustes)."""
    x = uneven(200, 6)
    v = (x - x.mean(axis=0)).astype(np.float64) @ pca_random_rotation(x, 6, rng(1)).weights
    signs = np.where(v >= 0, 1, -1)
    after = (x - x.mean(axis=0)).astype(np.float64) @ itq(x, 6, rng(1), iterations=1).weights
    best = ((signs - after) ** 2).sum()
    assert best < ((signs - v) ** 2).sum()
    for seed in range(50):
        small = rng(seed).standard_normal((6, 6)) * 0.05
        q, r = np.linalg.qr(np.eye(6) + small - small.T)
        assert ((signs - after @ (q * np.sign(np.diag(r)))) ** 2).sum() >= best * (1 - 1e-9)


# All


@pytest.mark.parametrize('method', METHODS)
def test_a_seed_gives_one_function(method):
    x = uneven()
    fits = [METHODS[method](x, 8, rng(seed)) for seed in (5, 5, 6)]
    np.testing.assert_array_equal(fits[0].weights, fits[1].weights)
    np.testing.assert_array_equal(fits[0].offset, fits[1].offset)
    assert not np.array_equal(fits[0].weights, fits[2].weights)
    assert (fits[0].weights.dtype, fits[0].offset.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize('fit', [pca_random_rotation, itq])
def test_too_few_images_or_dimensions_are_refused(fit):
    x = uneven(9, 8)
    assert fit(x, 8, rng()).weights.shape == (8, 8)
    with pytest.raises(InputError, match='8 bits need more than 8 training images; there are 8'):
        fit(x[:8], 8, rng())
    with pytest.raises(InputError, match='8 bits cannot come from features of 7 dimensions'):
        fit(x[:, :7], 8, rng())


def test_itq_finds_neighbours_better_than_pca_and_pca_better_than_random():
    shares = {method: [] for method in METHODS}
    for seed in range(4):
        x, labels = clustered(seed)
        same = labels[:, None] == labels[None]
        np.fill_diagonal(same, False)
        for method, fit in METHODS.items():
            codes = pack_bits(fit(x, 16, rng(seed)).bits(x))
            distances = hamming(codes[:, None], codes[None])
            near, far = distances[same], distances[labels[:, None] != labels[None]]
            near, far = (np.bincount(d, minlength=17) / len(d) for d in (near, far))
            nearer = (near * (1 - np.cumsum(far))).sum() + (near * far).sum() / 2
            shares[method].append(nearer)  # how often one of its cluster is nearer than another, ties half
    means = {method: np.mean(values) for method, values in shares.items()}
    assert means['itq'] > means['pca-rr'] + 0.01
    assert means['pca-rr'] > means['random'] + 0.02
