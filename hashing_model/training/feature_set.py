"""The features of a training set: what every head is fitted on, once the network has seen the pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hashing_model.features.extractor import Extractor
from hashing_model.features.fusion import Groups
from hashing_model.images.augment import LOOK, augment
from hashing_model.labels import LabelLevel
from hashing_model.networks.loop import Progress, Report

BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """N images as feature groups.

    Args:
        groups: feature group -> float32 [N, d].
        views: some of these groups of augmented views of the same images, for `contrastive` and `lda`.
        labels: label level -> the labels of the N images; coarse levels first.
        captions: of the N images; None where there is none. Empty if no image has any.
    """

    groups: Groups
    views: tuple[Groups, ...] = ()
    labels: Mapping[str, LabelLevel] = dataclasses.field(default_factory=dict)
    captions: Sequence[str | None] = ()

    def __len__(self) -> int:
        """The number of images N."""
        return len(next(iter(self.groups.values())))

    def texts(self) -> list[list[str]]:
        """The texts that describe each image: its caption, and the names of its labels."""
        captions = self.captions if len(self.captions) else [None] * len(self)
        said = [[caption] if caption else [] for caption in captions]
        for level in self.labels.values():
            for texts, start, end in zip(said, level.starts[:-1], level.starts[1:], strict=True):
                texts += [level.names[c] for c in level.classes[start:end]]
        return said


def extract(
    images: Sequence[NDArray[np.uint8]],
    extractor: Extractor,
    groups: Sequence[str],
    report: Report | None = None,
    view: int | None = None,
) -> Groups:
    """The feature groups `groups` of images, or of an augmented view of each.

    Args:
        images: uint8 [size, size, 3] each.
        extractor: makes the groups.
        groups: their names.
        report: told after every batch.
        view: the seed of the view; with an image's place in the list it determines the augmentation. None takes images
            as they are.
    """
    made = []
    for start in range(0, len(images), BATCH_SIZE):
        batch = np.stack(images[start : start + BATCH_SIZE])
        if view is not None:
            batch = augment(batch, np.random.default_rng([view, start]), LOOK)
        made.append(extractor.features(batch, groups))
        if report:
            report(Progress('features' if view is None else 'features of views', start + len(batch), len(images)))
    return {name: np.concatenate([m[name] for m in made]) for name in groups}
