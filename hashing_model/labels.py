"""The labels of N images at one level: which classes each image has; an image may have none, one or several.

The sorted class numbers of all images are stored end to end (compressed sparse rows), which stays small with many
classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class LabelLevel:
    """Classes of N images. Image i has the classes `classes[starts[i]:starts[i + 1]]`.

    Args:
        names: the level's class names; a class is an index into them.
        starts: int64 [N + 1], ascending from 0.
        classes: int32 [starts[-1]], ascending and distinct within an image.
    """

    names: tuple[str, ...]
    starts: NDArray[np.int64]
    classes: NDArray[np.int32]

    @classmethod
    def from_values(cls, values: Sequence[Iterable[str]], names: Sequence[str] | None = None) -> LabelLevel:
        """Make a level of the class names of each image; names that are not in `names` are left out.

        >>> level = LabelLevel.from_values([['cat'], [], ['dog', 'cat']])
        >>> level.names, level.starts.tolist(), level.classes.tolist()
        (('cat', 'dog'), [0, 1, 1, 3], [0, 0, 1])

        Args:
            values: names per image.
            names: the classes there are; by default the sorted names that occur.
        """
        names = tuple(sorted({v for vs in values for v in vs}) if names is None else names)
        number = {name: i for i, name in enumerate(names)}
        classes = [sorted({number[v] for v in vs if v in number}) for vs in values]
        starts = np.concatenate([[0], np.cumsum([len(c) for c in classes])]).astype(np.int64)
        return cls(names, starts, np.array([c for cs in classes for c in cs], np.int32))

    def __len__(self) -> int:
        """The number of images N."""
        return len(self.starts) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many classes each image has: int64 [N]."""
        return np.diff(self.starts)

    def take(self, rows: NDArray) -> LabelLevel:
        """The level for some of the images, given as indices or as a mask [N]."""
        rows = np.arange(len(self))[rows]
        counts = self.counts[rows]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
        return LabelLevel(self.names, starts, self.classes[np.repeat(self.starts[rows], counts) + within])

    def targets(self) -> NDArray[np.float32]:
        """The label distribution of each image, float32 [N, classes]: y / sum(y); all zero where there is no label."""
        out = np.zeros((len(self), len(self.names)), np.float32)
        images = np.repeat(np.arange(len(self)), self.counts)
        out[images, self.classes] = 1 / self.counts[images]
        return out
