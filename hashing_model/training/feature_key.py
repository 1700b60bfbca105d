"""What determines the features of a picture and of its views, so that they can be kept and used again.

`pipelines/training/features_job.py` keeps them in files. A view depends on the picture's bytes and a seed, never on
its place.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from hashing_model.features.backbone import SAVED
from hashing_model.features.extractor import FEATURES_VERSION, Extractor
from hashing_model.features.fusion import Groups
from hashing_model.images.augment import LOOK, augment
from hashing_model.images.decode import Resizing
from hashing_model.labels import LabelLevel
from hashing_model.networks.loop import Training
from hashing_model.training.fit import choose_method, view_groups, view_seeds


@dataclasses.dataclass(frozen=True)
class FeatureKey:
    """All that features depend on besides the pictures.

    Args:
        resizing: what the pictures go through before.
        backbone: its name.
        backbone_digest: SHA-256 of its weights; empty if no group reads them.
        groups: the feature groups of the pictures.
        view_groups: those of their augmented views; some of `groups`.
        view_seeds: a seed per view.
    """

    resizing: Resizing
    backbone: str
    backbone_digest: str
    groups: tuple[str, ...]
    view_groups: tuple[str, ...] = ()
    view_seeds: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FeatureKey:
        """Inverse of `to_json`."""
        groups, of_views, seeds = (tuple(value[name]) for name in ('groups', 'view_groups', 'view_seeds'))
        resizing = Resizing.from_json(value['resizing'])
        return cls(resizing, value['backbone'], value['backbone_digest'], groups, of_views, seeds)

    def to_json(self) -> dict[str, Any]:
        """A plain dict, with the versions of what makes the features."""
        described = dataclasses.asdict(self) | {'resizing': self.resizing.to_json()}
        return described | {'features_version': FEATURES_VERSION, 'recipe': dataclasses.asdict(LOOK)}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all of it, 64 hex digits; of a `.keras` file the weights count, its path does not."""
        described = self.to_json() | ({'backbone': SAVED} if self.backbone.endswith('.keras') else {})
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def views_for(spec: CodeSpec, labelled: Iterable[str], views: int, seed: int) -> tuple[tuple[str, ...], list[int]]:
    """The groups and seeds of the views that a training without a method of its own reads.

    Args:
        spec: the segments.
        labelled: the label levels that the pictures will have.
        views: how many views of each picture; 0 for none.
        seed: of the training.
    """
    training = Training(views=max(views, 1), seed=seed)
    labels = {level: LabelLevel.from_values([]) for level in labelled}
    groups = tuple(view_groups(spec, choose_method(training, spec, labels), labels))
    return (groups, view_seeds(training)) if groups and views else ((), [])


def check_weights(extractor: Extractor, key: FeatureKey) -> None:
    """Refuse an extractor whose backbone has other weights than the one that made some features.

    Raises:
        InputError: the weights differ, so that the features do not fit.
    """
    found = extractor.weights_digest
    if found not in ('', key.backbone_digest):
        raise InputError(
            f'the weights of {key.backbone} on this machine are not those that made the features: '
            f'{found[:12]} and {key.backbone_digest[:12]}'
        )


def extract_views(
    images: NDArray[np.uint8], digests: Sequence[bytes], extractor: Extractor, key: FeatureKey
) -> list[Groups]:
    """Features of a batch of pictures, then of each of their views: group -> float32 [N, d].

    Args:
        images: uint8 [N, size, size, 3].
        digests: of each picture's encoded bytes; with the view's seed it decides what befalls the picture.
        extractor: makes the groups.
        key: which groups, and the seeds of the views.
    """
    made: list[Groups] = [extractor.features(images, key.groups)]
    with ThreadPoolExecutor(extractor.threads or os.cpu_count() or 1) as pool:
        for seed in key.view_seeds:
            numbers = [np.random.default_rng([seed, int.from_bytes(digest, 'little')]) for digest in digests]
            views = list(pool.map(lambda image, rng: augment(image[None], rng, LOOK)[0], images, numbers))
            made.append(extractor.features(np.stack(views) if views else images, key.view_groups))
    return made
