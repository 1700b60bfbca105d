"""The last step from fused features to bits: an affine map whose sign is the code, after any hidden layers.

Only numpy: what is fitted elsewhere, by formulas or by gradients, ends up here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class HashHead:
    """bit_j = (h . weights[:, j] + offset[j] >= 0), so sign(0) = +1; h is the input or the last hidden layer's output.

    Args:
        weights: float32 [d, bits].
        offset: float32 [bits].
        hidden: weights and offset of each hidden layer, h = max(0, h weights + offset), in order.
    """

    weights: Floats
    offset: Floats
    hidden: tuple[tuple[Floats, Floats], ...] = ()

    def activations(self, x: Floats) -> Floats:
        """What the bits are the signs of: float32 [N, bits] of vectors float32 [N, d]."""
        for weights, offset in self.hidden:
            x = np.maximum(x @ weights + offset, 0)
        return x @ self.weights + self.offset

    def bits(self, x: Floats) -> NDArray[np.bool_]:
        """Bits bool [N, bits] of vectors float32 [N, d]."""
        return self.activations(x) >= 0

    def shares(self, groups: Mapping[str, Floats]) -> dict[str, float]:
        """How much each feature group moves the bits, or the first hidden layer: shares that add up to 1.

        A group's share of a bit is the variance of its part of the sum, as if groups were independent; all bits count
        the same, as in a distance.

        Args:
            groups: what the head reads, in order: name -> float32 [N, d of the group].
        """
        weights = self.hidden[0][0] if self.hidden else self.weights
        ends = np.cumsum([x.shape[1] for x in groups.values()])
        parts = zip(groups.values(), np.split(weights, ends[:-1]), strict=True)
        variance = np.stack([np.var(x @ part, axis=0, dtype=np.float64) for x, part in parts])
        if not self.hidden:
            variance /= np.maximum(variance.sum(axis=0), np.finfo(np.float64).tiny)
        shares = variance.sum(axis=1) / (variance.sum() or 1.0)
        return {name: round(float(share), 4) for name, share in zip(groups, shares, strict=True)}

    def shifted(self, by: NDArray) -> HashHead:
        """The head whose activations are `by` [bits] less: less their mean, for instance, so that bits are balanced."""
        return dataclasses.replace(self, offset=(self.offset - by).astype(np.float32))

    def scaled(self, by: NDArray) -> HashHead:
        """The head whose activations are multiplied by `by` [bits], all positive: the bits are the same."""
        weights, offset = (self.weights * by).astype(np.float32), (self.offset * by).astype(np.float32)
        return dataclasses.replace(self, weights=weights, offset=offset)

    def reordered(self, order: NDArray) -> HashHead:
        """The head whose bit j is this one's bit order[j]."""
        return dataclasses.replace(self, weights=self.weights[:, order], offset=self.offset[order])
