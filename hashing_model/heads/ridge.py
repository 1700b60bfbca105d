"""Heads with labels in closed form: ridge regression of each picture's target code on a kernel of its features.

This is the F-step of Fast Supervised Discrete Hashing (Gui et al. 2018) with fixed target codes. On frozen features it
takes seconds and has no settings, and it does not overfit a few thousand pictures as training by gradients does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hashing_model.codes.spec import Segment
from hashing_model.errors import InputError
from hashing_model.heads.head import Anchors, Floats, HashHead, gaussian
from hashing_model.heads.projections import principal_components
from hashing_model.heads.supervision import Arrays, Supervision
from hashing_model.labels import LabelLevel

# Chosen on pictures held out of the training images of CIFAR-10 and of the catalogue. Fewer anchors find less, 256
# dimensions about as much.
ANCHORS = 4096  # images at most
DIMENSIONS = 512  # principal components in which they are compared
RIDGE, LINEAR_RIDGE = 0.3, 1.0  # of the variance of one image
_JITTER = 1e-6  # added to the kernel's diagonal: images may be there twice
_BLOCK = 4096  # images


def fit_ridge(fused: Arrays, supervision: Supervision) -> dict[str, HashHead]:
    """Fit the head of each supervised segment by kernel ridge regression; a bit is the sign of its prediction.

    The threshold of a bit is therefore the regression's intercept. The mean of the bit's activations would be worse:
    with uneven classes it lies inside the largest one. Images without a label of a level are no examples for that
    level's segment.

    Args:
        fused: standardised feature groups, name -> float32 [N, d].
        supervision: see `hashing_model.heads.supervision.supervise`.

    Raises:
        InputError: with some images held out, those left to train on have labels of fewer than two classes.
    """
    heads = {}
    for segment, x, rows, targets in _examples(fused, supervision):
        anchors = choose_anchors(x, rows)
        weights = regress(x, targets, rows, RIDGE, anchors)
        head = HashHead(weights, np.zeros(segment.bits, np.float32), anchors=anchors)
        heads[segment.name] = head.shifted(_mean(head, x[rows]) - targets.mean(axis=0, dtype=np.float64))
    return heads


def fit_linear_ridge(fused: Arrays, supervision: Supervision) -> dict[str, HashHead]:
    """As `fit_ridge`, but without a kernel and with thresholds at the mean over the N images.

    Fine-tuning starts from these heads.
    """
    heads = {}
    for segment, x, rows, targets in _examples(fused, supervision):
        head = HashHead(regress(x, targets, rows, LINEAR_RIDGE), np.zeros(segment.bits, np.float32))
        heads[segment.name] = head.shifted(_mean(head, x))
    return heads


def _examples(
    fused: Arrays, supervision: Supervision
) -> Iterator[tuple[Segment, Floats, NDArray[np.int64], NDArray[np.float32]]]:
    """For each segment the features that it reads, of all images, the rows to learn from, and their target codes."""
    for segment in supervision.segments:
        x = np.concatenate([fused[name] for name in segment.features], axis=1)
        level = supervision.levels[segment.name]
        rows = supervision.train[level.counts[supervision.train] > 0]
        examples = level.take(rows)
        if len(np.unique(examples.classes)) < 2:
            raise InputError(f'{segment.name}: {len(rows)} labelled images to train on are too few; give more')
        yield segment, x, rows, target_codes(examples, supervision.centers[segment.name])


def _mean(head: HashHead, x: Floats) -> NDArray[np.float64]:
    return head.activations(x).mean(axis=0, dtype=np.float64)


def target_codes(level: LabelLevel, centers: NDArray[np.int8]) -> NDArray[np.float32]:
    """The code that each image is to get, float32 [N, bits]: the mean of its classes' target codes.

    Args:
        level: labels of N images, N and those of each at least 1.
        centers: target codes of -1 and +1, int8 [classes, bits].
    """
    sums = np.add.reduceat(centers[level.classes], level.starts[:-1], axis=0, dtype=np.float32)
    return (sums / level.counts[:, None]).astype(np.float32)


def choose_anchors(x: Floats, rows: NDArray[np.int64]) -> Anchors:
    """Up to ANCHORS of n images, evenly spread over their order, in their DIMENSIONS leading principal components.

    The kernel of two images is exp(-|difference|^2 / mean of |difference|^2), so that no width needs to be chosen.

    Args:
        x: features, float32 [N, d].
        rows: int64 [n], the images to choose from, at least 2.
    """
    chosen = x[rows[np.linspace(0, len(rows) - 1, min(len(rows), ANCHORS)).astype(int)]]
    _, axes = principal_components(chosen, min(DIMENSIONS, x.shape[1], len(chosen) - 1))
    points = chosen @ axes
    scale = np.sqrt(2 * points.var(axis=0).sum()) or 1.0
    return Anchors((axes / scale).astype(np.float32), (points / scale).astype(np.float32))


def regress(
    x: Floats, targets: NDArray[np.float32], rows: NDArray[np.int64], ridge: float, anchors: Anchors | None = None
) -> Floats:
    """W = (A^T A + r M)^-1 A^T B, where A and B are inputs and targets less their means; float32 [d or m, bits].

    Without anchors, A holds the features and M is the identity. With anchors, A holds the kernel's values at the
    anchors and M those among the anchors, which is kernel ridge regression by Nystrom's method. The ridge r is a
    multiple of tr(M^-1 A^T A) / n, the variance of one image.

    Args:
        x: features, float32 [N, d].
        targets: float32 [n, bits], those of the rows `rows` of x.
        rows: int64 [n], n at least 1.
        ridge: r, in variances of one image.
        anchors: m of them, of a kernel, if there is one.
    """
    d = x.shape[1] if anchors is None else len(anchors.points)
    products, crossed, total = np.zeros((d, d)), np.zeros((d, targets.shape[1])), np.zeros(d)
    for start in range(0, len(rows), _BLOCK):
        block = x[rows[start : start + _BLOCK]]
        a = (block if anchors is None else anchors.kernel(block)).astype(np.float64)
        products += a.T @ a
        crossed += a.T @ targets[start : start + _BLOCK]
        total += a.sum(axis=0)
    products -= np.outer(total, total) / len(rows)
    crossed -= np.outer(total, targets.mean(axis=0, dtype=np.float64))
    norm = np.eye(d)
    variances = np.diag(products)
    if anchors is not None:
        points = anchors.points.astype(np.float64)
        norm = gaussian(points, points) + _JITTER * norm
        variances = np.diag(np.linalg.solve(norm, products))
    strength = ridge * variances.sum() / len(rows) or 1.0
    return np.linalg.solve(products + strength * norm, crossed).astype(np.float32)
