"""Fusion: the feature groups of an image, brought to one scale and laid side by side for a segment to read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Groups = Mapping[str, NDArray[np.float32]]  # feature group -> float32 [N, d]


@dataclasses.dataclass(frozen=True)
class Fusion:
    """Per-group standardisation: (x - mean) / scale, so that every group has zero mean and total variance 1.

    One scale per group, not per dimension: what varies little inside a group stays small, and a group of many
    dimensions weighs no more than a group of few.

    Args:
        mean: feature group -> float32 [d].
        scale: feature group -> root of the summed variances; 1 where a group does not vary at all.
    """

    mean: Mapping[str, NDArray[np.float32]]
    scale: Mapping[str, float]

    @classmethod
    def fit(cls, groups: Groups) -> Fusion:
        """Mean and scale of each group over the N training images."""
        mean = {name: x.mean(axis=0, dtype=np.float64).astype(np.float32) for name, x in groups.items()}
        scale = {name: float(np.sqrt(x.var(axis=0, dtype=np.float64).sum())) or 1.0 for name, x in groups.items()}
        return cls(mean, scale)

    def fuse(self, groups: Groups, names: Sequence[str]) -> NDArray[np.float32]:
        """The standardised groups `names`, concatenated: float32 [N, sum of d]."""
        return np.concatenate(
            [(groups[name] - self.mean[name]) / np.float32(self.scale[name]) for name in names], axis=1
        )
