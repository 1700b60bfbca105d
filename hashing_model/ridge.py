"""Heads with labels in closed form: ridge regression of each picture's target code on its features.

The F-step of Fast Supervised Discrete Hashing (Gui et al. 2018), with target codes that are given. On frozen features
it takes seconds, and its one setting is chosen by the images held out, where gradients fit a few thousand pictures by
heart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hashing_model.code_spec import Segment
from hashing_model.errors import InputError
from hashing_model.hash_head import HashHead
from hashing_model.labels import LabelLevel
from hashing_model.supervised import LEAST_VALIDATION, Arrays, Supervision

RIDGES = (3e-4, 1e-4, 1e-3, 3e-5, 3e-3)  # shares of the features' whole variance; the first where nothing else is known
_BLOCK = 4096  # images


def fit_ridge(fused: Arrays, supervision: Supervision) -> tuple[dict[str, HashHead], dict[str, float]]:
    """The head of each supervised segment, with its thresholds at the mean over N images, and the ridge it took.

    The ridge is the one of RIDGES whose codes find the images held out best; the first, if too few have any like there.
    An image without a label of a level is no example for that segment.

    Args:
        fused: standardised feature groups, name -> float32 [N, d].
        supervision: see `hashing_model.supervised.supervise`.

    Raises:
        InputError: with some images held out, those left to train on have labels of fewer than two classes.
    """
    heads, chosen = {}, {}
    for segment in supervision.segments:
        x = np.concatenate([fused[name] for name in segment.features], axis=1)
        level, centers = supervision.levels[segment.name], supervision.centers[segment.name]
        rows = supervision.train[level.counts[supervision.train] > 0]
        examples = level.take(rows)
        if len(np.unique(examples.classes)) < 2:
            raise InputError(f'{segment.name}: {len(rows)} labelled images to train on are too few; give more')
        best = -1.0
        for ridge, weights in zip(RIDGES, regress(x, target_codes(examples, centers), rows, RIDGES), strict=True):
            head = HashHead(weights, np.zeros(segment.bits, np.float32))
            v = head.activations(x)
            head = head.shifted(v.mean(axis=0, dtype=np.float64))
            score = _validate(supervision, segment, v + head.offset)
            if score is None or score > best:
                best, heads[segment.name], chosen[segment.name] = score or 0.0, head, ridge
            if score is None:
                break
    return heads, chosen


def _validate(supervision: Supervision, segment: Segment, activations: NDArray[np.float32]) -> float | None:
    """The mAP of the images held out; None where too few of them have a like there to say anything."""
    rows = supervision.held_out
    precision = supervision.precision(segment, activations[rows], rows) if len(rows) else np.zeros(0)
    return float(np.nanmean(precision)) if np.isfinite(precision).sum() >= LEAST_VALIDATION else None


def target_codes(level: LabelLevel, centers: NDArray[np.int8]) -> NDArray[np.float32]:
    """What the code of each image should be, float32 [N, bits]: the mean of its classes' target codes.

    Args:
        level: labels of N images, N and those of each at least 1.
        centers: target codes of -1 and +1, int8 [classes, bits].
    """
    sums = np.add.reduceat(centers[level.classes], level.starts[:-1], axis=0, dtype=np.float32)
    return (sums / level.counts[:, None]).astype(np.float32)


def regress(
    x: NDArray[np.float32], targets: NDArray[np.float32], rows: NDArray[np.int64], ridges: Sequence[float]
) -> Iterator[NDArray[np.float32]]:
    """W = (A^T A + ridge tr(A^T A) I)^-1 A^T B for each ridge; A and B are features and targets less their means.

    Args:
        x: features, float32 [N, d].
        targets: float32 [n, bits], those of the rows `rows` of x.
        rows: int64 [n], n at least 1.
        ridges: positive; made relative to the variance, they mean the same for any scale and number of images.

    Yields:
        float32 [d, bits].
    """
    d, bits = x.shape[1], targets.shape[1]
    products, crossed, total = np.zeros((d, d)), np.zeros((d, bits)), np.zeros(d)
    for start in range(0, len(rows), _BLOCK):
        a = x[rows[start : start + _BLOCK]].astype(np.float64)
        products += a.T @ a
        crossed += a.T @ targets[start : start + _BLOCK]
        total += a.sum(axis=0)
    products -= np.outer(total, total) / len(rows)
    crossed -= np.outer(total, targets.mean(axis=0, dtype=np.float64))
    variance = np.trace(products) or 1.0
    for ridge in ridges:
        yield np.linalg.solve(products + ridge * variance * np.eye(d), crossed).astype(np.float32)
