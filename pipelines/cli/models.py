"""What the commands about models do: train, keep features, calibrate, evaluate.

As in `commands.py`, each function takes the parsed arguments and the options left over for Beam; nothing here computes.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hashing_model.codes.spec import CodeSpec, parse_pairs
from hashing_model.errors import InputError
from pipelines import files
from pipelines.cli.query import READING_OPTIONS, STAGED, absolute, code_spec, read_options, refuse, tell
from pipelines.index import versions

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from hashing_model.images.decode import Resizing
    from hashing_model.model import HashModel
    from hashing_model.networks.loop import Training
    from hashing_model.training.fit import History
    from pipelines.quality.coded_images import Images
    from pipelines.records import Reject

GRADIENT_STAGES = {'heads', 'fine-tuning'}
INPUT_SIZE, RESIZE, BACKBONE = 224, 'squash', 'efficientnet_lite0'  # where neither the user nor a cache says so


def train(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Fit a hash model on a sample of the images, or on features that were made before, and save it."""
    from hashing_model.model import CHECKPOINT_FILE, check_model_folder
    from hashing_model.networks.loop import Checkpoint, Training
    from pipelines.training.training_log import describe_training, write_training

    _check_train(args)
    settings = {f.name: getattr(args, f.name) for f in dataclasses.fields(Training) if f.name in args}
    training = Training(**{name: value for name, value in settings.items() if value is not None})
    spec = code_spec(args)
    folder = Path(args.model)
    check_model_folder(folder)
    files.check_writable(str(folder / 'model.json'))
    started = time.monotonic()
    fit_given = _fit_features if args.features else _fit_images
    model, history = fit_given(args, spec, training)
    model.save(folder)
    write_training(folder, model, history)
    Checkpoint(folder / CHECKPOINT_FILE, {}).remove()
    for line in describe_training(model):
        tell(line)
    _tell_of_unused_settings(args, history)
    segments = ', '.join(f'{s.name} {s.bits}' for s in spec.segments)
    tell(
        f'{args.model}: {model.training["method"]} on {model.training["images"]:,} images, {segments} bits, '
        f'fingerprint {model.fingerprint[:12]}, {time.monotonic() - started:.0f} s'
    )


def _check_train(args: argparse.Namespace) -> None:
    if args.max_images < 1:
        raise InputError(f'--max-images is {args.max_images}; at least 1 is needed')
    if not args.features:
        return
    if args.finetune_blocks:
        raise InputError('--finetune-blocks needs --images: the backbone learns from pictures, not from features')
    refuse(args, READING_OPTIONS, 'tells how images are read; --features has them read already')


def _tell_of_unused_settings(args: argparse.Namespace, history: History) -> None:
    from hashing_model.networks.supervised import BY_GRADIENTS

    for option, stages in (('epochs', {'heads'}), ('balance', GRADIENT_STAGES), ('decorrelation', GRADIENT_STAGES)):
        if getattr(args, option, None) is not None and not stages & set(history):
            tell(f'--{option} changed nothing: it is for {", ".join(BY_GRADIENTS)}')


def _fit_images(args: argparse.Namespace, spec: CodeSpec, training: Training) -> tuple[HashModel, History]:
    from hashing_model.model import CHECKPOINT_FILE
    from hashing_model.networks.loop import Checkpoint
    from hashing_model.training.fit import fit
    from pipelines.inputs.sampling import sample_images
    from pipelines.inputs.shards import list_units
    from pipelines.training.training_log import TrainingLog, describe_rejects

    resizing, options = _resizing(args), read_options(args)
    units = list_units(absolute(args.images), options)
    sample = sample_images(units, options, args.max_images, args.seed, resizing)
    if sample.rejects:
        tell(f'{len(sample.rejects)} records could not be used: {describe_rejects(sample.rejects)}')
    _tell_of_unused(sample.labels, args, spec)
    shown = {'verbose': None, 'tensorboard': None}  # what they are makes no difference to the model
    key = {**vars(args), **shown, 'sample': sample.digest}
    checkpoint = Checkpoint(Path(args.model, CHECKPOINT_FILE), key)
    with TrainingLog(_stderr(), args.tensorboard) as log:
        return fit(
            sample.images,
            sample.labels,
            training,
            spec,
            resizing,
            _backbone(args),
            log.report,
            checkpoint,
            sample.captions,
        )


def _fit_features(args: argparse.Namespace, spec: CodeSpec, training: Training) -> tuple[HashModel, History]:
    from hashing_model.training.feature_key import check_weights
    from hashing_model.training.fit import fit_features, make_extractor
    from pipelines.training.feature_cache import check_readable, load_features, read_manifest
    from pipelines.training.training_log import TrainingLog

    cache = read_manifest(files.absolute(args.features))
    key = cache.key
    made = {'input_size': key.resizing.size, 'resize': key.resizing.rule, 'backbone': key.backbone}
    for option, value in made.items():
        if getattr(args, option) not in (None, value):
            name = option.replace('_', '-')
            raise InputError(f'--{name} is {getattr(args, option)}; {args.features} was made with {value}')
    check_readable(cache, spec)
    if args.views is None and key.view_seeds:
        training = dataclasses.replace(training, views=len(key.view_seeds))
    extractor = make_extractor(spec, key.resizing, key.backbone)
    features, training = load_features(cache, extractor.groups, spec, training, args.max_images)
    check_weights(extractor, key)
    _tell_of_unused(features.labels, args, spec)
    with TrainingLog(_stderr(), args.tensorboard) as log:
        return fit_features(features, extractor, key.resizing, spec, training, log.report)


def _tell_of_unused(labels: Collection[str], args: argparse.Namespace, spec: CodeSpec) -> None:
    if labels and not args.method and not set(labels) & set(spec.names):
        tell(f'no segment is named after a level of the labels ({", ".join(labels)}): no bits are learned from them')


def features(args: argparse.Namespace, beam_args: Sequence[str]) -> None:
    """Make the features of images and keep them in files."""
    from hashing_model.training.feature_key import FeatureKey, views_for
    from hashing_model.training.fit import make_extractor
    from pipelines.inputs.shards import cut_units, list_inputs
    from pipelines.jobs.counts import counters
    from pipelines.jobs.runner import pipeline_options, run_pipeline, threads_per_worker
    from pipelines.training.feature_cache import MANIFEST, check_cache_folder, describe, part_name, read_manifest
    from pipelines.training.features_job import FeaturesConfig, NamedUnit, cached_extractor, define_pipeline

    if args.views < 0:
        raise InputError(f'--views is {args.views}; 0 or more are possible')
    beam_options, options = pipeline_options(beam_args), read_options(args)
    threads = threads_per_worker(beam_options)
    spec, resizing, backbone = code_spec(args), _resizing(args), _backbone(args)
    groups = tuple(make_extractor(spec, resizing, backbone).groups)
    out = files.absolute(args.output)
    check_cache_folder(out)
    inputs = list_inputs(absolute(args.images))
    units = cut_units(inputs, options)
    files.check_writable(files.join(out, MANIFEST))
    started = time.monotonic()
    digest = cached_extractor(backbone, resizing.size, groups, threads).weights_digest
    of_views, seeds = views_for(spec, options.labels, args.views, args.seed)
    key = FeatureKey(resizing, backbone, digest, groups, of_views, tuple(seeds))
    check_cache_folder(out, key)
    known = {file.path: file for file in inputs}
    named = [NamedUnit(unit, part_name(unit, known, options, key.fingerprint)) for unit in units]
    config = FeaturesConfig(out, key, len(units), options, threads)
    result = run_pipeline(lambda root: define_pipeline(root, config, named), beam_options)
    if result is None:
        tell(f'{args.output}: {STAGED}')
        return
    reused = counters(result).get('reused', 0)
    tell(f'{args.output}: {describe(read_manifest(out), reused)}, {time.monotonic() - started:.0f} s')


def calibrate(args: argparse.Namespace, beam_args: Sequence[str]) -> None:
    """Move thresholds of a model to the middle of a catalogue, and save it as another model."""
    from hashing_model.model import MODEL_FILE, HashModel
    from pipelines.encoding.models import local_model
    from pipelines.inputs.shards import list_units
    from pipelines.jobs.runner import pipeline_options, run_pipeline, threads_per_worker
    from pipelines.training.calibration_job import CalibrationConfig, check_out, choose_segments, define_pipeline

    beam_options, options = pipeline_options(beam_args), read_options(args)
    source, out = files.absolute(args.model), files.absolute(args.output)
    model = HashModel.load(local_model(source))
    check_out(out, source)
    segments = choose_segments(model, args.segments)
    units = list_units(absolute(args.images), options)
    files.check_writable(files.join(out, MODEL_FILE))
    started = time.monotonic()
    threads = threads_per_worker(beam_options)
    config = CalibrationConfig(source, model.fingerprint, out, model.spec, segments, len(units), options, threads)
    if run_pipeline(lambda root: define_pipeline(root, config, units), beam_options) is None:
        tell(f'{args.output}: {STAGED}')
        return
    made = HashModel.load(local_model(out))
    about = made.training['calibration']
    if about['rejected']:
        reasons = ', '.join(f'{n:,} {reason}' for reason, n in about['rejected'].items())
        tell(f'{sum(about["rejected"].values()):,} records could not be used: {reasons}')
    before, after = about['imbalance']
    tell(
        f'balance of {", ".join(about["segments"])}: share of ones off 1/2 by {before:.3f} before, by {after:.3f} now '
        f'(mean over bits, {about["measured_on"]:,} images)'
    )
    tell(
        f'{args.output}: calibrated on {made.training["calibrated_on"]:,} images, fingerprint {made.fingerprint[:12]} '
        f'(was {model.fingerprint[:12]}), {time.monotonic() - started:.0f} s'
    )


def evaluate(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Measure how good the codes of an index or of a model are, and write figures and plots."""
    from rich.progress import Progress

    from pipelines.quality.measure import Split, check_folder, choose, measure, write_results
    from pipelines.reports.quality_table import print_quality

    _check_evaluate(args)
    profiles = [parse_pairs(text, '--profile') for text in args.profile or ()]
    out = files.absolute(args.output)
    check_folder(out)
    split = Split.read(files.absolute(args.split)) if args.split else None
    started, console = time.monotonic(), _stderr()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        given = _evaluated(args, progress)
        for profile in profiles:
            given.spec.weights(profile)
        queries, database = choose(given.images, given.asking, split, args.max_images, args.max_queries, args.seed)
    rejects = dict(collections.Counter(reject.reason for reject in given.rejects).most_common())
    quality, split = measure(queries, database, given.spec, profiles, given.catalogue_images or len(database))
    names = write_results(out, quality, split, {**given.facts, 'rejects': rejects})
    print_quality(quality, given.facts['model'])
    if rejects:
        reasons = ', '.join(f'{n:,} {reason}' for reason, n in rejects.items())
        tell(f'{len(given.rejects):,} records could not be used: {reasons}')
    tell(f'{args.output}: {", ".join(names)} in {time.monotonic() - started:.0f} s')


def _check_evaluate(args: argparse.Namespace) -> None:
    if args.images and not args.model:
        raise InputError('--images need --model, the model that encodes them; grainhash train makes one')
    if args.index and args.model:
        raise InputError('--model does not go with --index: the codes are those of the model inside')
    if args.version and not args.index:
        raise InputError('--version goes with --index')
    if args.index and not args.queries:
        refuse(args, READING_OPTIONS, 'tells how images are read; --index has them read already')
    for option in ('max_images', 'max_queries'):
        name, given = f'--{option.replace("_", "-")}', getattr(args, option)
        if given is not None and args.split:
            raise InputError(f'{name} does not go with --split, which lists the images')
        if given is not None and given < 1:
            raise InputError(f'{name} is {given}; at least 1 is needed')


@dataclasses.dataclass(frozen=True)
class _Evaluated:
    """The images asked and those that ask, their code spec, where they are from, and what could not be read."""

    images: Images
    asking: Images | None
    spec: CodeSpec
    facts: Mapping[str, Any]
    rejects: list[Reject]
    catalogue_images: int | None = None


def _evaluated(args: argparse.Namespace, progress: Progress) -> _Evaluated:
    from hashing_model.model import HashModel
    from pipelines.encoding.models import load_model, local_model
    from pipelines.quality.coded_images import IndexImages

    rejects: list[Reject] = []

    def encoded(patterns: Sequence[str], model: HashModel) -> Images:
        from pipelines.inputs.shards import list_units
        from pipelines.quality.shard_images import ShardImages

        options = read_options(args)
        units, task = list_units(absolute(patterns), options), progress.add_task('encoding', total=None)
        return ShardImages(units, options, model, rejects, lambda n, of: progress.update(task, completed=n, total=of))

    facts: dict[str, Any] = {'index': args.index, 'images': args.images, 'queries_from': args.queries}
    if not args.index:
        model = HashModel.load(local_model(files.absolute(args.model)))
        facts['model'] = {'fingerprint': model.fingerprint, 'method': str(model.training.get('method'))}
        asking = encoded(args.queries, model) if args.queries else None
        return _Evaluated(encoded(args.images, model), asking, model.spec, facts, rejects)
    index = files.absolute(args.index)
    manifest = versions.read_manifest(index, args.version)
    folder = versions.version_folder(index, manifest.version)
    asking = None
    if args.queries:
        if manifest.model is None:
            raise InputError(f'{args.index} has no model to encode --queries with: it was built from codes')
        model = load_model(files.join(folder, versions.MODEL_FOLDER), fingerprint=manifest.model['fingerprint'])
        asking = encoded(args.queries, model)
    facts |= {'version': manifest.version, 'model': manifest.model}
    return _Evaluated(IndexImages(folder, manifest), asking, manifest.spec, facts, rejects, manifest.rows)


def _resizing(args: argparse.Namespace) -> Resizing:
    from hashing_model.images.decode import Resizing

    return Resizing(INPUT_SIZE if args.input_size is None else args.input_size, args.resize or RESIZE)


def _backbone(args: argparse.Namespace) -> str:
    return args.backbone or BACKBONE


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)
