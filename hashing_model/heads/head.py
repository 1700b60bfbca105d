"""The last step from fused features to bits: an affine map whose sign is the code.

A kernel or hidden layers may come before the map.

It needs only numpy. Heads are fitted elsewhere, by formulas or by gradients, and all end up in this form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_BLOCK = 4096  # vectors whose kernel values are in memory at once


@dataclasses.dataclass(frozen=True)
class Anchors:
    """How near a vector is to each of m others: k_j(x) = exp(-|x projection - points[j]|^2).

    A Gaussian kernel; both arrays are scaled so that its width is 1. Anchors are those of Liu, Wang, Ji, Jiang and
    Chang 2012, "Supervised Hashing with Kernels".

    Args:
        projection: float32 [d, p].
        points: float32 [m, p].
    """

    projection: Floats
    points: Floats

    def kernel(self, x: Floats) -> Floats:
        """Values float32 [N, m] above 0 to 1, of vectors float32 [N, d]."""
        return gaussian(x @ self.projection, self.points)


def gaussian(a: NDArray, b: NDArray) -> NDArray:
    """exp(-|a_i - b_j|^2) of vectors [N, p] and [m, p]: [N, m]."""
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * (a @ b.T)
    return np.exp(-np.maximum(squares, 0))


@dataclasses.dataclass(frozen=True)
class HashHead:
    """The bits of a segment from its fused features: bit_j = (h . weights[:, j] + offset[j] >= 0), so sign(0) = +1.

    The vector h is the input, or what the kernel and the hidden layers make of it.

    Args:
        weights: float32 [d, bits].
        offset: float32 [bits].
        hidden: weights and offset of each hidden layer, h = max(0, h weights + offset), in order.
        anchors: a kernel that is applied to the input first, or None.
    """

    weights: Floats
    offset: Floats
    hidden: tuple[tuple[Floats, Floats], ...] = ()
    anchors: Anchors | None = None

    def activations(self, x: Floats) -> Floats:
        """What the bits are the signs of: float32 [N, bits] of vectors float32 [N, d]."""
        if self.anchors is None:
            return self._after(x)
        starts = range(0, max(len(x), 1), _BLOCK)
        return np.concatenate([self._after(self.anchors.kernel(x[i : i + _BLOCK])) for i in starts])

    def _after(self, h: Floats) -> Floats:
        for weights, offset in self.hidden:
            h = np.maximum(h @ weights + offset, 0)
        return h @ self.weights + self.offset

    def bits(self, x: Floats) -> NDArray[np.bool_]:
        """Bits bool [N, bits] of vectors float32 [N, d]."""
        return self.activations(x) >= 0

    def shares(self, groups: Mapping[str, Floats]) -> dict[str, float]:
        """How much each feature group moves the bits: shares that add up to 1.

        The share of a group is the mean square by which the activations change when the group is set to 0, its mean
        over the training images. All bits count the same, as they do in a distance.

        Args:
            groups: what the head reads, in order: name -> float32 [N, d of the group].
        """
        whole = self.activations(np.concatenate(list(groups.values()), axis=1))
        moved = []
        for name in groups:
            without = [np.zeros_like(x) if g == name else x for g, x in groups.items()]
            moved.append(((whole - self.activations(np.concatenate(without, axis=1))) ** 2).mean(axis=0))
        shares = (np.stack(moved) / np.maximum(np.sum(moved, axis=0), np.finfo(np.float32).tiny)).sum(axis=1)
        total = shares.sum() or 1.0
        return {name: round(float(share / total), 4) for name, share in zip(groups, shares, strict=True)}

    def shifted(self, by: NDArray) -> HashHead:
        """A head whose activations are lower by `by`, float [bits]. Subtracting their mean makes the bits balanced."""
        return dataclasses.replace(self, offset=(self.offset - by).astype(np.float32))

    def scaled(self, by: NDArray) -> HashHead:
        """A head whose activations are multiplied by `by`, float [bits], all positive; its bits are the same."""
        weights, offset = (self.weights * by).astype(np.float32), (self.offset * by).astype(np.float32)
        return dataclasses.replace(self, weights=weights, offset=offset)

    def reordered(self, order: NDArray) -> HashHead:
        """A head whose bit j is bit order[j] of this one."""
        return dataclasses.replace(self, weights=self.weights[:, order], offset=self.offset[order])
