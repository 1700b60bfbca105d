"""The projection for near-duplicates: directions in which pictures differ, but a picture and its copies do not.

Linear discriminant analysis with each image as its own class, as in Strecha et al. 2012, "LDAHash: Improved Matching
with Smaller Descriptors". Closed form, and made of sums over images only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hashing_model.errors import InputError
from hashing_model.heads.head import HashHead
from hashing_model.heads.projections import check_size

SHRINKAGE = 0.01  # of the mean variance within images: directions that never vary are not blown up


def fit_lda(x: NDArray[np.float32], views: Sequence[NDArray[np.float32]], bits: int) -> HashHead:
    """The `bits` directions u of largest u^T S_t u / u^T S_w u, S_t the covariance of all vectors, S_w within images.

    Args:
        x: the features of N images, float32 [N, d].
        views: those of augmented views of the same images, float32 [N, d] each.
        bits: at most d.

    Raises:
        InputError: no views, fewer than bits + 1 images, or fewer than `bits` dimensions.
    """
    n, d = x.shape
    if not views:
        raise InputError('lda needs augmented views of the images; there are none')
    check_size(x, bits)
    every = [x, *views]
    centers = np.mean(every, axis=0, dtype=np.float64)
    mean = centers.mean(axis=0)
    within = sum(_scatter(view - centers) for view in every) / (n * len(views))
    total = sum(_scatter(view - mean) for view in every) / (n * len(every))
    least = SHRINKAGE / d * (np.trace(within) or np.trace(total) or 1.0)  # copies may be the pictures themselves
    values, vectors = np.linalg.eigh(within + least * np.eye(d))
    whitening = vectors / np.sqrt(np.maximum(values, least))
    _, directions = np.linalg.eigh(whitening.T @ total @ whitening)
    weights = whitening @ directions[:, ::-1][:, :bits]
    largest = weights[np.abs(weights).argmax(axis=0), np.arange(bits)]
    weights *= np.where(largest < 0, -1.0, 1.0)  # an eigenvector has no sign of its own
    return HashHead(weights.astype(np.float32), (-mean @ weights).astype(np.float32))


def _scatter(x: NDArray) -> NDArray:
    return x.T @ x
