"""Fusion: the feature groups of an image, brought to one scale and laid side by side for a segment to read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hashing_model.errors import InputError

Groups = Mapping[str, NDArray[np.float32]]  # feature group -> float32 [N, d]
LEAST_SPREAD = 0.01  # of a group's typical deviation: a dimension that hardly varies is not blown up


@dataclasses.dataclass(frozen=True)
class Fusion:
    """Per-group standardisation: (x - mean) / scale has mean 0 and variance 1 / d in each of a group's d dimensions.

    Every group thus has the same total variance and weighs the same, however many dimensions it has.

    Args:
        mean: feature group -> float32 [d].
        scale: feature group -> float32 [d], all positive.
    """

    mean: Mapping[str, NDArray[np.float32]]
    scale: Mapping[str, NDArray[np.float32]]

    @classmethod
    def fit(cls, groups: Groups) -> Fusion:
        """Mean and scale of each group over the N training images.

        Raises:
            InputError: a feature that is not a finite number, for example of a network that overflows.
        """
        for name, x in groups.items():
            if wrong := int((~np.isfinite(x)).any(axis=1).sum()):
                raise InputError(f'the features {name} of {wrong:,} of {len(x):,} images are not numbers')
        mean = {name: x.mean(axis=0, dtype=np.float64).astype(np.float32) for name, x in groups.items()}
        return cls(mean, {name: _scale(x) for name, x in groups.items()})

    def fuse(self, groups: Groups, names: Sequence[str]) -> NDArray[np.float32]:
        """The standardised groups `names`, concatenated: float32 [N, sum of d]."""
        return np.concatenate([(groups[name] - self.mean[name]) / self.scale[name] for name in names], axis=1)


def _scale(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The deviation of each dimension times sqrt(d); 1 where the whole group is constant."""
    deviation = x.std(axis=0, dtype=np.float64)
    floor = LEAST_SPREAD * np.sqrt(np.mean(deviation**2)) or 1.0
    return (np.maximum(deviation, floor) * np.sqrt(x.shape[1])).astype(np.float32)
