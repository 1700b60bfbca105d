"""Pixels to feature groups: Extractor, which runs the backbone beside the hand-made features."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashing_model.features import BACKBONE_FEATURES, HAND_FEATURES, hand_features
from hashing_model.features.backbone import Backbone, load_backbone

FEATURES_VERSION = 2  # raise it when a feature function gives other values: old codes no longer fit


@dataclasses.dataclass
class Extractor:
    """Pixels to feature groups; loads its backbone when it first needs it.

    Args:
        backbone_name: see `hashing_model.features.backbone.load_backbone`.
        size: side of the square input images in pixels.
        groups: the feature groups to make.
        folder: where the backbone's weights were saved, if they were.
        threads: of TensorFlow and of the hand-made features; None for one per core.
    """

    backbone_name: str
    size: int
    groups: Sequence[str]
    folder: Path | None = None
    threads: int | None = None

    @functools.cached_property
    def backbone(self) -> Backbone:
        """The loaded backbone."""
        return load_backbone(self.backbone_name, self.size, self.folder, self.threads)

    @property
    def weights_digest(self) -> str:
        """The digest of the backbone's weights; empty, and nothing loaded, if all groups are hand-made."""
        return self.backbone.digest if set(self.groups) & set(BACKBONE_FEATURES) else ''

    def features(
        self, images: NDArray[np.uint8], groups: Sequence[str] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Feature groups float32 [N, d] of images uint8 [N, size, size, 3]; some groups, or all that this one makes.

        The backbone runs beside the hand-made features: neither keeps all cores busy alone.
        """
        groups = self.groups if groups is None else groups
        hand = [g for g in groups if g in HAND_FEATURES]
        taps = [g for g in groups if g in BACKBONE_FEATURES]
        with ThreadPoolExecutor(1) as pool:
            made = pool.submit(self.backbone.taps, images) if taps else None
            found = hand_features(images, hand, self.threads or os.cpu_count() or 1) if hand else {}
            return found | {g: made.result()[g] for g in taps if made}
