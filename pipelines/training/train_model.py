"""`train_model`: what `grainhash train` does. A model is fitted on a sample of images, or on features made before.

TensorFlow loads when it is needed.

    grainhash train --images 'photos/' --model my-model
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from hashing_model.images.decode import Resizing
from hashing_model.model import CHECKPOINT_FILE, MODEL_FILE, HashModel, check_model_folder
from hashing_model.networks.loop import Checkpoint, Training
from pipelines import files
from pipelines.inputs.options import ReadOptions
from pipelines.records import describe_reasons
from pipelines.requests import Paths, Report, Tell, check_one_of, option, paths_of, set_fields, spec_of

if TYPE_CHECKING:
    from hashing_model.training.fit import History

INPUT_SIZE, RESIZE, BACKBONE = 224, 'squash', 'efficientnet_lite0'  # where neither the user nor a cache says so
MAX_IMAGES = 10_000
GRADIENT_STAGES = {'heads', 'fine-tuning'}


def resizing_of(input_size: int | None, resize: str | None) -> Resizing:
    """How pictures become square, where nothing is said by default.

    Raises:
        InputError: a size or rule that is not possible.
    """
    return Resizing(INPUT_SIZE if input_size is None else input_size, resize or RESIZE)


@dataclasses.dataclass(frozen=True)
class TrainRequest:
    """What to fit a model on, and how.

    Args:
        model: folder to save the model in.
        images: patterns of image shards, image files or folders; or else
        features: a folder that `make_features` made; no image is read, and size and backbone are its own.
        method: how the bits are made, one of `hashing_model.training.fit.METHODS`; None takes the best for the labels.
        segments: bits per segment, as a code spec or `NAME=BITS,...`; coarse=32,fine=32,look=64 if None.
        input_size: side of the square in pixels; 224 if None.
        resize: how a picture becomes square: `squash`, `crop` or `pad`; `squash` if None.
        backbone: `efficientnet_lite0`, a model of keras.applications, or a `.keras` file; the first if None.
        max_images: fit on at most so many.
        seed: of every random choice.
        epochs, learning_rate, views, balance, decorrelation, finetune_blocks, finetune_epochs: see
            `hashing_model.networks.loop.Training`; None takes what is best, as a rule.
        tensorboard: folder for TensorBoard logs; None for none.
        read: which column or key of the shards holds what.

    Raises:
        InputError: both or none of images and features, what does not go with them, or a number that is not possible.
    """

    model: str
    images: Paths = ()
    features: str | None = None
    method: str | None = None
    segments: str | CodeSpec | None = None
    input_size: int | None = None
    resize: str | None = None
    backbone: str | None = None
    max_images: int = MAX_IMAGES
    seed: int = 0
    epochs: int | None = None
    learning_rate: float | None = None
    views: int | None = None
    balance: float | None = None
    decorrelation: float | None = None
    finetune_blocks: int | None = None
    finetune_epochs: int | None = None
    tensorboard: str | None = None
    read: ReadOptions = ReadOptions()

    def __post_init__(self) -> None:
        set_fields(self, images=paths_of(self.images))
        check_one_of(images=self.images, features=self.features)
        if self.max_images < 1:
            raise InputError(f'--max-images is {self.max_images}; at least 1 is needed')
        if self.features:
            if self.finetune_blocks:
                raise InputError(
                    '--finetune-blocks needs --images: the backbone learns from pictures, not from features'
                )
            self.read.refuse('tells how images are read; --features has them read already')
        spec_of(self.segments)
        self.resizing  # noqa: B018 - raises what is wrong with it
        self.training  # noqa: B018

    @property
    def resizing(self) -> Resizing:
        """How pictures become square."""
        return resizing_of(self.input_size, self.resize)

    @property
    def training(self) -> Training:
        """Those settings that are given, and the usual ones."""
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(Training) if hasattr(self, f.name)}
        return Training(**{name: value for name, value in settings.items() if value is not None})


@dataclasses.dataclass(frozen=True)
class TrainReport(Report):
    """What was fitted.

    Args:
        model: its folder.
        fingerprint: of the model, SHA-256 in hex.
        method: how its bits are made.
        images: that it was fitted on.
        spec: its segments.
        seconds: that it took.
        about: what a person wants to know of the fit, in words.
        training: what `training.json` keeps, as plain values.
        rejected: records that could not be used, by reason.
    """

    model: str
    fingerprint: str
    method: str
    images: int
    spec: CodeSpec
    seconds: float
    about: Sequence[str]
    training: Mapping[str, Any]
    rejected: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def lines(self) -> list[str]:
        """What the segments are made of, and the model."""
        segments = ', '.join(f'{s.name} {s.bits}' for s in self.spec.segments)
        return [
            *self.about,
            f'{self.model}: {self.method} on {self.images:,} images, {segments} bits, '
            f'fingerprint {self.fingerprint[:12]}, {self.seconds:.0f} s',
        ]


def train_model(request: TrainRequest, tell: Tell | None = None) -> TrainReport:
    """Fit a hash model on a sample of images, or on features that were made before, and save it.

    Args:
        request: what to fit on, and how.
        tell: hears at once what could not be used, before the fit takes its time.

    Raises:
        InputError: no images, too few for the bits, labels that do not fit, or a folder that holds something else.
        OSError: files that cannot be read or written.
    """
    from pipelines.training.training_log import describe_training, write_training

    spec, folder = spec_of(request.segments), Path(request.model)
    check_model_folder(folder)
    files.check_writable(str(folder / MODEL_FILE))
    started = time.monotonic()
    hear = tell or (lambda _: None)
    fitted = _fit_features(request, spec, hear) if request.features else _fit_images(request, spec, hear)
    model, history = fitted.model, fitted.history
    model.save(folder)
    write_training(folder, model, history)
    Checkpoint(folder / CHECKPOINT_FILE, {}).remove()
    return TrainReport(
        model=request.model,
        fingerprint=model.fingerprint,
        method=model.training['method'],
        images=model.training['images'],
        spec=spec,
        seconds=time.monotonic() - started,
        about=[*describe_training(model), *_unused_settings(request, history)],
        training=dict(model.training),
        rejected=fitted.rejected,
    )


@dataclasses.dataclass(frozen=True)
class _Fitted:
    """A model, the epochs of what gradients trained, and rejects by reason."""

    model: HashModel
    history: History
    rejected: Mapping[str, int] = dataclasses.field(default_factory=dict)


def _fit_images(request: TrainRequest, spec: CodeSpec, tell: Tell) -> _Fitted:
    from hashing_model.training.fit import fit
    from pipelines.inputs.sampling import sample_images
    from pipelines.inputs.shards import list_units
    from pipelines.reports.console import progress_console
    from pipelines.training.training_log import TrainingLog

    resizing, options = request.resizing, request.read
    units = list_units([files.absolute(pattern) for pattern in paths_of(request.images)], options)
    sample = sample_images(units, options, request.max_images, request.seed, resizing)
    rejected = dict(collections.Counter(reject.reason for reject in sample.rejects))
    for line in (*unused_records(rejected), *_unused_labels(sample.labels, request, spec)):
        tell(line)
    asked = {**dataclasses.asdict(request), 'tensorboard': None}  # what is shown makes no difference to the model
    checkpoint = Checkpoint(Path(request.model, CHECKPOINT_FILE), {**asked, 'sample': sample.digest})
    with TrainingLog(progress_console(), request.tensorboard) as log:
        model, history = fit(
            sample.images,
            sample.labels,
            request.training,
            spec,
            resizing,
            request.backbone or BACKBONE,
            log.report,
            checkpoint,
            sample.captions,
        )
    return _Fitted(model, history, rejected)


def _fit_features(request: TrainRequest, spec: CodeSpec, tell: Tell) -> _Fitted:
    from hashing_model.training.feature_key import check_weights
    from hashing_model.training.fit import fit_features, make_extractor
    from pipelines.reports.console import progress_console
    from pipelines.training.feature_cache import check_readable, load_features, read_cache
    from pipelines.training.training_log import TrainingLog

    cache, training = read_cache(files.absolute(str(request.features))), request.training
    key = cache.key
    made = {'input_size': key.resizing.size, 'resize': key.resizing.rule, 'backbone': key.backbone}
    for name, value in made.items():
        if getattr(request, name) not in (None, value):
            raise InputError(f'{option(name)} is {getattr(request, name)}; {request.features} was made with {value}')
    check_readable(cache, spec)
    if request.views is None and key.view_seeds:
        training = dataclasses.replace(training, views=len(key.view_seeds))
    extractor = make_extractor(spec, key.resizing, key.backbone)
    features, training = load_features(cache, extractor.groups, spec, training, request.max_images)
    check_weights(extractor, key)
    for line in _unused_labels(features.labels, request, spec):
        tell(line)
    with TrainingLog(progress_console(), request.tensorboard) as log:
        return _Fitted(*fit_features(features, extractor, key.resizing, spec, training, log.report))


def _unused_labels(labels: Collection[str], request: TrainRequest, spec: CodeSpec) -> list[str]:
    if labels and not request.method and not set(labels) & set(spec.names):
        return [f'no segment is named after a level of the labels ({", ".join(labels)}): no bits are learned from them']
    return []


def _unused_settings(request: TrainRequest, history: History) -> list[str]:
    from hashing_model.networks.supervised import BY_GRADIENTS

    needed = {'epochs': {'heads'}, 'balance': GRADIENT_STAGES, 'decorrelation': GRADIENT_STAGES}
    unused = [
        name for name, stages in needed.items() if getattr(request, name) is not None and not stages & set(history)
    ]
    return [f'{option(name)} changed nothing: it is for {", ".join(BY_GRADIENTS)}' for name in unused]


def unused_records(rejected: Mapping[str, int]) -> list[str]:
    """A line about records that could not be used, by reason; none if all could."""
    if not rejected:
        return []
    return [f'{sum(rejected.values()):,} records could not be used: {describe_reasons(rejected)}']
