"""Hash functions that are fitted without gradients: random projection, PCA + random rotation, ITQ.

Each is an affine map whose sign is the code. Heads that are fitted by gradients are in `networks/`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hashing_model.errors import InputError
from hashing_model.heads.head import Floats, HashHead


def random_projection(x: Floats, bits: int, rng: np.random.Generator) -> HashHead:
    """h(x) = sign(W^T x) with W ~ N(0, 1): the baseline (Charikar 2002, locality-sensitive hashing for cosine).

    Args:
        x: float32 [N, d], centred; only d is used.
        bits: number of hash bits.
        rng: source of W.
    """
    weights = rng.standard_normal((x.shape[1], bits)).astype(np.float32)
    return HashHead(weights, np.zeros(bits, np.float32))


def pca_random_rotation(x: Floats, bits: int, rng: np.random.Generator) -> HashHead:
    """PCA to `bits` dimensions, then a random rotation that evens out their variances (Jegou et al. 2010, PCA-RR).

    Raises:
        InputError: fewer than bits + 1 vectors, or fewer than `bits` dimensions.
    """
    check_size(x, bits)
    mean, components = principal_components(x, bits)
    weights = components @ _random_rotation(bits, rng)
    return _centred(mean, weights)


def itq(x: Floats, bits: int, rng: np.random.Generator, iterations: int = 50) -> HashHead:
    """Iterative quantization (Gong and Lazebnik 2011): the rotation of the PCA space nearest to its own signs.

    Alternates B = sign(V R) and the orthogonal Procrustes solution R = argmin |B - V R|, from a random rotation.

    Raises:
        InputError: fewer than bits + 1 vectors, or fewer than `bits` dimensions.
    """
    check_size(x, bits)
    mean, components = principal_components(x, bits)
    v = (x - mean).astype(np.float64) @ components
    rotation = _random_rotation(bits, rng)
    for _ in range(iterations):
        signs = np.where(v @ rotation >= 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(v.T @ signs)
        rotation = left @ right
    return _centred(mean, components @ rotation)


METHODS: dict[str, Callable[[Floats, int, np.random.Generator], HashHead]] = {
    'random': random_projection,
    'pca-rr': pca_random_rotation,
    'itq': itq,
}


def check_size(x: Floats, bits: int) -> None:
    """Refuse vectors [N, d] to which `bits` directions cannot be fitted.

    Raises:
        InputError: fewer than bits + 1 vectors, or fewer than `bits` dimensions.
    """
    n, d = x.shape
    check_count(n, bits)
    if d < bits:
        raise InputError(f'{bits} bits cannot come from features of {d} dimensions: take fewer bits or random')


def check_count(images: int, bits: int) -> None:
    """Refuse fewer images than are needed to find `bits` directions in which they differ.

    Raises:
        InputError: fewer than bits + 1.
    """
    if images <= bits:
        raise InputError(
            f'{bits} bits need more than {bits} training images; there are {images}: give more images, or fewer bits '
            'with --segments'
        )


def principal_components(x: Floats, bits: int) -> tuple[NDArray, NDArray]:
    """The mean [d] and the `bits` leading eigenvectors [d, bits] of the covariance, signs made definite."""
    mean = x.mean(axis=0, dtype=np.float64)
    centred = x - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)
    leading = vectors[:, ::-1][:, :bits]
    largest = leading[np.abs(leading).argmax(axis=0), np.arange(bits)]
    return mean, leading * np.where(largest < 0, -1.0, 1.0)


def _random_rotation(size: int, rng: np.random.Generator) -> NDArray:
    """A rotation [size, size] drawn uniformly (QR of a Gaussian matrix with the signs of R's diagonal)."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


def _centred(mean: NDArray, weights: NDArray) -> HashHead:
    return HashHead(weights.astype(np.float32), (-mean @ weights).astype(np.float32))
