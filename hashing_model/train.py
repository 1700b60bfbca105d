"""Fitting a hash model: feature groups of training images -> fusion -> one hash function per segment.

Where the images come from is the caller's business (`pipelines/train_model.py` reads shards).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hashing_model.baselines import METHODS
from hashing_model.code_spec import CodeSpec
from hashing_model.errors import InputError
from hashing_model.features import BACKBONE_FEATURES, FEATURES, check_names
from hashing_model.fusion import Fusion
from hashing_model.images import Resizing
from hashing_model.model import Extractor, HashModel


def fit(
    batches: Iterable[NDArray[np.uint8]],
    method: str = 'itq',
    spec: CodeSpec | None = None,
    resizing: Resizing | None = None,
    backbone: str = 'efficientnet_lite0',
    seed: int = 0,
) -> HashModel:
    """Fit a hash model without labels.

    Args:
        batches: training images, uint8 [N, size, size, 3] each.
        method: one of `hashing_model.baselines.METHODS`.
        spec: segments and the features they read; `CodeSpec.default()` if None.
        resizing: the model's input size and rule; 224 px if None.
        backbone: see `hashing_model.features.backbone.load_backbone`.
        seed: of every random choice.

    Raises:
        InputError: an unknown method or feature, no images, or too few for the bits wanted.
    """
    spec = spec or CodeSpec.default()
    resizing = resizing or Resizing(224)
    if method not in METHODS:
        raise InputError(f'unknown method {method!r}; there are {", ".join(METHODS)}')
    blind = [segment.name for segment in spec.segments if not segment.features]
    if blind:
        raise InputError(f'segment {blind[0]} reads no features')
    wanted = {name for segment in spec.segments for name in segment.features}
    check_names(tuple(sorted(wanted)))
    extractor = Extractor(backbone, resizing.size, [name for name in FEATURES if name in wanted])
    made = [extractor.features(batch) for batch in batches]
    if not made:
        raise InputError('no training image could be read')
    groups = {name: np.concatenate([m[name] for m in made]) for name in extractor.groups}
    fusion = Fusion.fit(groups)
    seeds = np.random.SeedSequence(seed).spawn(len(spec.segments))
    projections = {
        segment.name: METHODS[method](fusion.fuse(groups, segment.features), segment.bits, np.random.default_rng(s))
        for segment, s in zip(spec.segments, seeds, strict=True)
    }
    digest = extractor.backbone.digest if wanted & set(BACKBONE_FEATURES) else ''
    training = {'method': method, 'seed': seed, 'images': len(next(iter(groups.values())))}
    return HashModel(spec, resizing, extractor, digest, fusion, projections, training)
