"""What `grainhash build` does: input checked, the version built, its model copied, results told.

As in `commands.py`, each function takes the parsed arguments and the options left over for Beam; nothing here computes.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.errors import InputError, exit_code
from pipelines import files
from pipelines.cli.query import READING_OPTIONS, STAGED, absolute, read_options, refuse, tell
from pipelines.index import versions
from pipelines.index.manifest import Manifest

if TYPE_CHECKING:
    from pipelines.build.base import Base
    from pipelines.inputs.options import ReadOptions
    from pipelines.inputs.shards import InputFile, WorkUnit
    from pipelines.quality.gate import Limits

DISCARD_AGAIN = (1, 3, 0)  # seconds after each attempt that fails


def build(args: argparse.Namespace, beam_args: Sequence[str]) -> None:
    """Build an index and publish it; with --metrics-file, tell also a machine how it ended."""
    from pipelines.build.metrics_file import write_metrics

    started, version, code = time.time(), versions.new_version_id(), 0
    if args.metrics_file:
        if '://' in args.metrics_file:
            raise InputError(f'--metrics-file is {args.metrics_file}; node-exporter reads files of a disk')
        files.check_writable(args.metrics_file)
    try:
        _build(args, beam_args, version, started)
    except BaseException as e:
        code = exit_code(e)
        raise
    finally:
        if args.metrics_file:
            try:
                write_metrics(args.metrics_file, files.absolute(args.index), version, code, started)
            except OSError as e:
                tell(f'the metrics were not written: {e}')


def _check_build(args: argparse.Namespace) -> None:
    if args.codes:
        refuse(args, ('model', *READING_OPTIONS), 'does not go with --codes: codes are taken as they are')
    elif not args.model:
        raise InputError('--images need --model, the model that encodes them; grainhash train makes one')
    elif args.segments:
        raise InputError("--segments goes with --codes; the images' segments are the model's")


def _build(args: argparse.Namespace, beam_args: Sequence[str], version: str, started: float) -> None:
    _check_build(args)
    from pipelines.build.base import with_base_parts, with_states
    from pipelines.build.config import BuildConfig
    from pipelines.build.job import define_pipeline
    from pipelines.build.unit_list import write_inputs, write_unit_list
    from pipelines.jobs.runner import JobLostError, pipeline_options, run_pipeline, threads_per_worker

    options = pipeline_options(beam_args)
    gate = _gate_limits(args)
    index = files.absolute(args.index)
    versions.check_index_folder(index)
    believed = versions.look(index)
    given = _codes_input(args) if args.codes else _images_input(args)
    base = None if args.full or not believed.text else _base(index, believed.text, given)
    units = with_states(given.units, given.inputs)
    units = with_base_parts(units, base, given.options) if base else units
    folder = versions.version_folder(index, version)
    files.check_writable(files.join(folder, versions.MANIFEST_PATH))
    try:
        config = BuildConfig(
            index=index,
            version=version,
            spec=given.spec,
            unit_count=write_unit_list(folder, units),
            inputs=write_inputs(folder, given.inputs),
            model=_copy_model(files.absolute(args.model), folder) if args.model else None,
            model_info=given.model_info,
            options=given.options,
            partition_rows=args.partition_rows,
            threads=threads_per_worker(options),
            believed=believed,
            base=base.manifest.version if base else None,
            gate=gate,
            keep=args.keep,
            started=started,
        )
        result = run_pipeline(lambda root: define_pipeline(root, config), options)
    except JobLostError:
        raise
    except BaseException:
        if not files.exists(files.join(folder, versions.MANIFEST_PATH)):
            _discard(index, version)
        raise
    if result is None:
        tell(f'{args.index}: version {version}: {STAGED}')
        return
    manifest = versions.read_manifest(index, version)
    if manifest.changes:
        tell(describe_changes(manifest))
    tell(f'{args.index}: version {version} in {time.time() - started:.0f} s; {describe_counters(manifest)}')


def _discard(index: str, version: str) -> None:
    """Remove what a build that failed has written. Its workers may write on for a moment, if they are not told.

    Whatever prevents it must not hide why the build failed.
    """
    for seconds in DISCARD_AGAIN:
        try:
            versions.discard(index, version)
            return
        except OSError as e:
            problem = e
            time.sleep(seconds)
    tell(f'{index}: what version {version} has written is left there, for grainhash prune to remove: {problem}')


def _gate_limits(args: argparse.Namespace) -> Limits | None:
    """What the version must keep to be served; None for no gate."""
    from pipelines.quality.gate import Limits

    settings = {f.name: getattr(args, f.name) for f in dataclasses.fields(Limits)}
    given = {name: value for name, value in settings.items() if value is not None}
    if args.no_gate and given:
        raise InputError(f'--{next(iter(given)).replace("_", "-")} does not go with --no-gate, which checks nothing')
    return None if args.no_gate else Limits(**given)


@dataclasses.dataclass(frozen=True)
class _BuildInput:
    """What a build reads: units and the files they are in, the code spec, the model, and where records hold what."""

    units: Sequence[WorkUnit]
    inputs: Sequence[InputFile]
    spec: CodeSpec
    options: ReadOptions
    model_info: dict[str, str] | None = None


def _base(index: str, version: str, given: _BuildInput) -> Base | None:
    """The served version, if what it holds may be taken over; else it is told why everything is made anew."""
    from pipelines.build.base import check_base, open_base
    from pipelines.encoding.models import library_versions

    try:
        base = open_base(index, version)
        check_base(base.manifest, given.spec, given.model_info, library_versions())
    except (InputError, OSError) as e:
        tell(f'nothing is taken over from version {version}: {e}')
        return None
    return base


def _images_input(args: argparse.Namespace) -> _BuildInput:
    from hashing_model.model import HashModel
    from pipelines.encoding.models import local_model
    from pipelines.inputs.shards import cut_units, list_inputs

    model = HashModel.load(local_model(files.absolute(args.model)))
    info = {'fingerprint': model.fingerprint, 'method': str(model.training.get('method'))}
    options = read_options(args)
    inputs = list_inputs(absolute(args.images))
    return _BuildInput(cut_units(inputs, options), inputs, model.spec, options, info)


def _codes_input(args: argparse.Namespace) -> _BuildInput:
    from pipelines.encoding.code_files import code_bytes, list_code_units

    units, inputs = list_code_units(absolute(args.codes))
    num_bytes = code_bytes(units)
    spec = CodeSpec.parse(args.segments) if args.segments else CodeSpec((Segment('code', num_bytes * 8),))
    if spec.num_bytes != num_bytes:
        raise InputError(f'--segments {args.segments} make {spec.num_bytes} bytes; the codes have {num_bytes} bytes')
    plain = CodeSpec(tuple(Segment(s.name, s.bits) for s in spec.segments))
    return _BuildInput(units, inputs, plain, read_options(args))


def _copy_model(model: str, version_folder: str) -> str:
    """Give a version its own copy of the model: what the build encodes with, and queries later; returns where."""
    from hashing_model.model import MODEL_FILES

    copy = files.join(version_folder, versions.MODEL_FOLDER)
    for name in MODEL_FILES:
        if files.exists(files.join(model, name)):
            files.write_bytes(files.join(copy, name), files.read_bytes(files.join(model, name)))
    return copy


def describe_counters(manifest: Manifest) -> str:
    """What became of the records: `3,195 of 3,200 records indexed, 1 duplicate, 4 rejected (3 truncated, 1 empty)`."""
    c = manifest.counters
    text = f'{c["indexed"]:,} of {c["records_read"]:,} records indexed'
    if c['duplicates']:
        text += f', {c["duplicates"]:,} with a duplicate id'
    if c['rejected']:
        reasons = ', '.join(f'{n:,} {reason}' for reason, n in c['reasons'].items())
        text += f', {c["rejected"]:,} rejected ({reasons})'
    return text


def describe_changes(manifest: Manifest) -> str:
    """How a version differs from its base, and what was taken over from there."""
    c = manifest.changes or {}
    counts = ', '.join(f'{c[name]:,} {name}' for name in ('added', 'changed', 'unchanged', 'removed'))
    taken = f'{c["units"]:,} of {len(manifest.images):,} units taken over'
    known = f', and {c["images"]:,} images of other units were known' if c['images'] else ''
    return f'since version {c["base"]}: {counts}; {taken}{known}'
