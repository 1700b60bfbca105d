"""Fitting a hash model: pictures, with or without labels -> features -> fusion -> one head per segment.

A segment named like a label level is trained on that level's labels; the others are fitted without labels. The caller
reads the pictures (`pipelines/inputs/sampling.py` reads them from shards).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashing_model.codes.bit_order import order_bits
from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.errors import InputError
from hashing_model.features import FEATURES, check_names
from hashing_model.features.extractor import Extractor
from hashing_model.features.fusion import Fusion, Groups
from hashing_model.heads.head import HashHead
from hashing_model.heads.lda import fit_lda
from hashing_model.heads.projections import METHODS as PROJECTIONS
from hashing_model.heads.projections import check_count
from hashing_model.heads.ridge import fit_ridge
from hashing_model.heads.supervision import supervise
from hashing_model.heads.text import fit_text
from hashing_model.images.decode import Resizing
from hashing_model.keras_runtime import import_keras
from hashing_model.labels import LabelLevel
from hashing_model.model import HashModel
from hashing_model.networks.contrastive import fit_contrastive
from hashing_model.networks.finetune import finetune
from hashing_model.networks.loop import Checkpoint, Report, Training
from hashing_model.networks.supervised import BY_GRADIENTS, SUPERVISED, fit_supervised, trained_heads
from hashing_model.training.feature_set import FeatureSet, extract

METHODS = (*SUPERVISED, 'contrastive', 'lda', *PROJECTIONS)
_SOME = 4096  # images are enough to see how much each feature group tells
FROM_VIEWS = ('contrastive', 'lda')
History = dict[str, list[dict[str, float]]]  # stage -> epochs


def fit(
    images: Sequence[NDArray[np.uint8]],
    labels: Mapping[str, LabelLevel] | None = None,
    training: Training | None = None,
    spec: CodeSpec | None = None,
    resizing: Resizing | None = None,
    backbone: str = 'efficientnet_lite0',
    report: Report | None = None,
    checkpoint: Checkpoint | None = None,
    captions: Sequence[str | None] = (),
) -> tuple[HashModel, History]:
    """Fit a hash model.

    Args:
        images: N training images, uint8 [size, size, 3] each.
        labels: label level -> the labels of the N images, coarse levels first.
        training: method, seed and so on.
        spec: segments and the features they read; `CodeSpec.default()` if None.
        resizing: the model's input size and rule; 224 px if None.
        backbone: see `hashing_model.features.backbone.load_backbone`.
        report: told of progress.
        checkpoint: where fine-tuning keeps its state.
        captions: of the N images, if there are any; the model then encodes texts with words of the captions and labels.

    Returns:
        The model, and the epochs of each stage that had any.

    Raises:
        InputError: an unknown method or feature, no images, too few for the bits wanted, labels that do not fit the
            method or the segments, or a loss that is not a number.
    """
    spec, resizing, labels = spec or CodeSpec.default(), resizing or Resizing(224), labels or {}
    training = choose_method(training or Training(), spec, labels)

    # Whatever can be refused is refused before minutes of work
    if not len(images):
        raise InputError('no training image could be read')
    _check_labels(labels, captions, len(images))
    if training.finetune_blocks and training.method not in BY_GRADIENTS:
        raise InputError(f'finetune-blocks needs labels and one of {", ".join(BY_GRADIENTS)}, not {training.method}')
    for segment in spec.segments:
        if method_of(segment.name, training, labels) in ('lda', 'itq', 'pca-rr'):
            check_count(len(images), segment.bits)

    # The backbone, then the features by it
    if training.finetune_blocks:
        import_keras().utils.set_random_seed(training.seed)  # of layers of the backbone that drop what they choose
    extractor = make_extractor(spec, resizing, backbone)
    tuned = None
    if training.finetune_blocks:
        tuned = _finetune(images, labels, extractor, spec, training, report, checkpoint)
    groups = extract(images, extractor, extractor.groups, report)
    seen = view_groups(spec, training, labels)
    views = tuple(extract(images, extractor, seen, report, seed) for seed in view_seeds(training) if seen)
    return fit_features(FeatureSet(groups, views, labels, captions), extractor, resizing, spec, training, report, tuned)


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What fine-tuning returns besides the changed backbone: scales of features, the trained network, its epochs."""

    fusion: Fusion
    network: Any
    history: History


def _finetune(
    images: Sequence[NDArray[np.uint8]],
    labels: Mapping[str, LabelLevel],
    extractor: Extractor,
    spec: CodeSpec,
    training: Training,
    report: Report | None,
    checkpoint: Checkpoint | None,
) -> Tuned:
    supervision = supervise(spec, labels, np.random.default_rng(training.seed))
    if checkpoint:
        made_of = {'backbone': extractor.weights_digest, 'grainhash': importlib.metadata.version('grainhash')}
        checkpoint = dataclasses.replace(checkpoint, key={**checkpoint.key, **made_of})
    groups = extract(images, extractor, supervision.groups, report)
    fusion = Fusion.fit(groups)
    fused = _standardised(fusion, groups)
    network, epochs = finetune(images, extractor.backbone, fusion, supervision, fused, training, report, checkpoint)
    return Tuned(fusion, network, {'fine-tuning': epochs})


def fit_features(
    features: FeatureSet,
    extractor: Extractor,
    resizing: Resizing,
    spec: CodeSpec,
    training: Training,
    report: Report | None = None,
    tuned: Tuned | None = None,
) -> tuple[HashModel, History]:
    """Fit a hash model on features that were made before.

    Args:
        features: at least the groups that the spec reads; views if a segment is fitted by `contrastive` or `lda`.
        extractor: what made them.
        resizing: what the pictures went through before.
        spec, training, report: see `fit`.
        tuned: the result of fine-tuning, from which the supervised heads are taken.

    Raises:
        InputError: see `fit`.
    """
    training = choose_method(training, spec, features.labels)
    _check_labels(features.labels, features.captions, len(features))
    methods = {s.name: method_of(s.name, training, features.labels) for s in spec.segments}
    about: dict[str, Any] = {
        'method': '+'.join(dict.fromkeys(methods.values())),
        'seed': training.seed,
        'images': len(features),
    }
    heads: dict[str, HashHead] = {}
    activations: dict[str, NDArray[np.float32]] = {}
    history: History = {}

    # The scales of the features; those of fine-tuning stay as the network knows them
    fusion = Fusion.fit(features.groups)
    if tuned:
        fusion = Fusion({**fusion.mean, **tuned.fusion.mean}, {**fusion.scale, **tuned.fusion.scale})

    # A head per segment: those with labels together, the others one by one, each with a seed of its own
    if training.method in SUPERVISED:
        heads, history, learned = _supervised_heads(features, fusion, spec, training, report, tuned)
        about |= learned
    seeds = np.random.SeedSequence(training.seed).spawn(len(spec.segments))
    for segment, seed in zip(spec.segments, seeds, strict=True):
        if methods[segment.name] not in SUPERVISED:
            own = dataclasses.replace(training, method=methods[segment.name])
            head, epochs = _unsupervised_head(features, fusion, segment, own, seed, report)
            history |= {segment.name: epochs} if epochs else {}
        else:
            head = heads[segment.name]
        # the order of the bits decides how well the index parts the codes
        made = head.activations(fusion.fuse(features.groups, segment.features))
        if methods[segment.name] not in PROJECTIONS:
            order = order_bits(made >= 0)
            head, made = head.reordered(order), made[:, order]
        heads[segment.name], activations[segment.name] = head, made

    # What is told of the model: how much each feature group weighs, and the words that it knows
    some = {name: x[:: len(x) // _SOME + 1] for name, x in features.groups.items()}
    about['shares'] = {
        s.name: heads[s.name].shares({name: fusion.fuse(some, [name]) for name in s.features}) for s in spec.segments
    }
    texts = features.texts()
    text = fit_text(texts, activations)
    if text:
        about['text'] = {'images': sum(map(bool, texts)), 'words': text.vocabulary.word_count}
    return HashModel(spec, resizing, extractor, extractor.weights_digest, fusion, heads, about, text), history


def _supervised_heads(
    features: FeatureSet,
    fusion: Fusion,
    spec: CodeSpec,
    training: Training,
    report: Report | None,
    tuned: Tuned | None,
) -> tuple[dict[str, HashHead], History, dict[str, Any]]:
    """The heads of the segments with labels, the epochs they took, and what to tell of them."""
    history: History = {}
    about: dict[str, Any] = {}
    supervision = supervise(spec, features.labels, np.random.default_rng(training.seed))
    fused = _standardised(fusion, {name: features.groups[name] for name in supervision.groups})
    if training.method == 'ridge':
        heads = fit_ridge(fused, supervision)
    else:
        if tuned:
            network, history = tuned.network, dict(tuned.history)
        else:
            network, history['heads'] = fit_supervised(fused, supervision, training, report)
        heads, about['gates'] = trained_heads(network, supervision, fused)
    return heads, history, about | supervision.about(heads, fused)


def _unsupervised_head(
    features: FeatureSet,
    fusion: Fusion,
    segment: Segment,
    training: Training,
    seed: np.random.SeedSequence,
    report: Report | None,
) -> tuple[HashHead, list[dict[str, float]]]:
    """Fit the head of a segment by `training.method`, which needs no labels; returns the head and its epochs."""
    x = fusion.fuse(features.groups, segment.features)
    if training.method in PROJECTIONS:
        return PROJECTIONS[training.method](x, segment.bits, np.random.default_rng(seed)), []
    views = [fusion.fuse(view, segment.features) for view in features.views]
    if training.method == 'lda':
        return fit_lda(x, views, segment.bits), []
    own = dataclasses.replace(training, seed=int(seed.generate_state(1)[0] >> 1))  # 31 bits, as Keras takes
    return fit_contrastive(x, views, segment, own, report)


def _check_labels(labels: Mapping[str, LabelLevel], captions: Sequence[str | None], images: int) -> None:
    for name, level in labels.items():
        if len(level) != images:
            raise InputError(f'{name} has labels of {len(level):,} images; there are {images:,}')
    if len(captions) not in (0, images):
        raise InputError(f'there are captions of {len(captions):,} images; there are {images:,}')


def _standardised(fusion: Fusion, groups: Groups) -> dict[str, NDArray[np.float32]]:
    return {name: fusion.fuse(groups, [name]) for name in groups}


def choose_method(training: Training, spec: CodeSpec, labels: Mapping[str, LabelLevel]) -> Training:
    """Choose a method if none is given and a segment has labels: `ridge`, or `ortho` where the backbone is fine-tuned.

    Raises:
        InputError: an unknown method.
    """
    if training.method not in (None, *METHODS):
        raise InputError(f'unknown method {training.method!r}; there are {", ".join(METHODS)}')
    labelled = set(labels) & set(spec.names)
    if training.method or not labelled:
        return training
    return dataclasses.replace(training, method='ortho' if training.finetune_blocks else 'ridge')


def method_of(segment: str, training: Training, labels: Mapping[str, LabelLevel]) -> str:
    """How a segment is fitted: by `training.method`, unless that needs labels and the segment has none.

    Without labels, `look` is fitted by `lda`, whose codes find copies of a picture, and other segments by
    `contrastive`, whose codes find similar pictures.
    """
    if training.method and (training.method not in SUPERVISED or segment in labels):
        return training.method
    return 'lda' if segment == 'look' else 'contrastive'


def view_groups(spec: CodeSpec, training: Training, labels: Mapping[str, LabelLevel]) -> list[str]:
    """The feature groups that augmented views need to have: those of the segments that are fitted from views."""
    read = {name for s in spec.segments if method_of(s.name, training, labels) in FROM_VIEWS for name in s.features}
    return [name for name in FEATURES if name in read]


def view_seeds(training: Training) -> list[int]:
    """The seed of each augmented view."""
    return np.random.SeedSequence([training.seed, *b'views']).generate_state(training.views).tolist()


def make_extractor(spec: CodeSpec, resizing: Resizing, backbone: str) -> Extractor:
    """What makes the features that a code spec reads.

    Raises:
        InputError: a segment that reads no features, or an unknown one.
    """
    blind = [segment.name for segment in spec.segments if not segment.features]
    if blind:
        raise InputError(f'segment {blind[0]} reads no features')
    wanted = {name for segment in spec.segments for name in segment.features}
    check_names(tuple(sorted(wanted)))
    return Extractor(backbone, resizing.size, [name for name in FEATURES if name in wanted])
