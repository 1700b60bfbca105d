"""`build_index`: what `grainhash build` does. Input is checked, a version is built, checked by its gate, and served.

The job is in `job.py`; Beam loads when it starts.

    grainhash build my-index --images 'photos/' --model my-model
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.errors import InputError, exit_code
from hashing_model.model import MODEL_FILES, HashModel
from pipelines import files
from pipelines.build.config import PARTITION_ROWS, BuildConfig
from pipelines.build.metrics_file import write_metrics
from pipelines.encoding.models import library_versions, local_model
from pipelines.index import versions
from pipelines.index.manifest import Manifest
from pipelines.index.versions import Version
from pipelines.inputs.options import ReadOptions
from pipelines.quality.gate import Limits
from pipelines.records import Tally
from pipelines.requests import STAGED, Paths, Report, Tell, check_one_of, paths_of, refuse, set_fields

if TYPE_CHECKING:
    from pipelines.build.base import Base
    from pipelines.inputs.shards import InputFile, WorkUnit

DISCARD_AGAIN = (1, 3, 0)  # seconds after each attempt that fails


@dataclasses.dataclass(frozen=True)
class BuildRequest:
    """What to build an index of.

    Args:
        index: folder of the index, on a disk or `gs://`; it is made if it is not there.
        images: patterns of image shards, image files or folders; or else
        codes: patterns of Parquet files with `image_id` and `code`.
        model: folder of the model that encodes the images.
        segments: bits per segment of the codes, `NAME=BITS,...`; one segment if None. With images, they are the
            model's.
        read: which column or key of the shards holds what.
        full: make everything anew, even what did not change since the served version.
        partition_rows: rows a partition file should not exceed.
        keep: how many finished versions stay once the new one is served; None for all.
        metrics_file: where to write how the build ended, for Prometheus; None for nowhere.
        gate: what the version must keep to be served; None serves it unchecked.

    Raises:
        InputError: both or none of images and codes, what does not go with them, or a number that is not possible.
    """

    index: str
    images: Paths = ()
    codes: Paths = ()
    model: str | None = None
    segments: str | None = None
    read: ReadOptions = ReadOptions()
    full: bool = False
    partition_rows: int = PARTITION_ROWS
    keep: int | None = None
    metrics_file: str | None = None
    gate: Limits | None = Limits()

    def __post_init__(self) -> None:
        set_fields(self, images=paths_of(self.images), codes=paths_of(self.codes))
        if check_one_of(images=self.images, codes=self.codes) == 'codes':
            refuse(self, ['model'], 'does not go with --codes: codes are taken as they are')
            self.read.refuse('does not go with --codes: codes are taken as they are')
        elif not self.model:
            raise InputError('--images need --model, the model that encodes them; grainhash train makes one')
        elif self.segments:
            raise InputError("--segments goes with --codes; the images' segments are the model's")
        if self.partition_rows < 1:
            raise InputError(f'--partition-rows is {self.partition_rows}; at least 1 is needed')
        if self.keep is not None and self.keep < 1:
            raise InputError(f'--keep is {self.keep}; at least 1 is needed')
        if self.metrics_file and '://' in self.metrics_file:
            raise InputError(f'--metrics-file is {self.metrics_file}; node-exporter reads files of a disk')


@dataclasses.dataclass(frozen=True)
class BuildReport(Report):
    """What was built.

    Args:
        index, version: of what was asked for.
        seconds: that it took.
        tally: what became of the records; None of a job that is only staged.
        changes: how it differs from the version that it was built on, and what was taken over from there; None of a
            full build.
        units: work units that it was built from.
        gate: `passed`, or `skipped` where no gate was asked for.
    """

    index: str
    version: str
    seconds: float
    tally: Tally | None = None
    changes: Mapping[str, Any] | None = None
    units: int = 0
    gate: str | None = None

    def lines(self) -> list[str]:
        """What changed, and what became of the records."""
        if self.tally is None:
            return [f'{self.index}: version {self.version}: {STAGED}']
        done = f'{self.index}: version {self.version} in {self.seconds:.0f} s; {self.tally.describe("indexed")}'
        return [describe_changes(self.changes, self.units), done] if self.changes else [done]


def build_index(request: BuildRequest, beam_args: Sequence[str] = (), tell: Tell | None = None) -> BuildReport:
    """Build a version of an index and serve it.

    Args:
        request: what to build.
        beam_args: options of Apache Beam, such as `--runner=FlinkRunner`.
        tell: hears why nothing can be taken over from the served version, and such.

    Raises:
        InputError: input that is not there or does not fit; nothing was written.
        GateError: the version is finished, but not served, because it failed its gate.
        BuildError: the build's own numbers do not add up, or another version was served meanwhile.
        OSError: files that cannot be read or written.
    """
    started, version, code = time.time(), versions.new_version_id(), 0
    if request.metrics_file:
        files.check_writable(request.metrics_file)
    tell = tell or _say_nothing
    try:
        return _build(request, beam_args, tell, version, started)
    except BaseException as e:
        code = exit_code(e)
        raise
    finally:
        if request.metrics_file:
            try:
                write_metrics(request.metrics_file, files.absolute(request.index), version, code, started)
            except OSError as e:
                tell(f'the metrics were not written: {e}')


def _say_nothing(_: str) -> None:
    pass


def _build(request: BuildRequest, beam_args: Sequence[str], tell: Tell, version: str, started: float) -> BuildReport:
    from pipelines.build.base import with_base_parts, with_states
    from pipelines.build.job import define_pipeline
    from pipelines.build.unit_list import write_inputs, write_unit_list
    from pipelines.jobs.runner import JobLostError, pipeline_options, run_pipeline, threads_per_worker

    # What is asked, and what may be taken over
    options = pipeline_options(beam_args)
    index = files.absolute(request.index)
    versions.check_index_folder(index)
    believed = versions.look(index)
    given = _codes_input(request) if request.codes else _images_input(request)
    base = None if request.full or not believed.text else _base(index, believed.text, given, tell)
    units = with_states(given.units, given.inputs)
    units = with_base_parts(units, base, given.options) if base else units

    # The job; of one that fails nothing stays
    target = Version(index, version)
    files.check_writable(target.manifest_path)
    try:
        config = BuildConfig(
            index=index,
            version=version,
            spec=given.spec,
            unit_count=write_unit_list(target, units),
            inputs=write_inputs(target, given.inputs),
            model=_copy_model(files.absolute(request.model), target.model_path) if request.model else None,
            model_info=given.model_info,
            options=given.options,
            partition_rows=request.partition_rows,
            threads=threads_per_worker(options),
            believed=believed,
            base=base.manifest.version if base else None,
            gate=request.gate,
            keep=request.keep,
            started=started,
        )
        result = run_pipeline(lambda root: define_pipeline(root, config), options)
    except JobLostError:
        raise
    except BaseException:
        if not target.finished:
            _discard(index, version, tell)
        raise
    if result is None:
        return BuildReport(request.index, version, time.time() - started)
    manifest = Version.open(index, version).manifest
    done = time.time() - started, tally_of(manifest), manifest.changes, len(manifest.images), manifest.gate
    return BuildReport(request.index, version, *done)


def _discard(index: str, version: str, tell: Tell) -> None:
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


@dataclasses.dataclass(frozen=True)
class _BuildInput:
    """What a build reads: units and the files they are in, the code spec, the model, and where records hold what."""

    units: Sequence[WorkUnit]
    inputs: Sequence[InputFile]
    spec: CodeSpec
    options: ReadOptions
    model_info: dict[str, str] | None = None


def _base(index: str, version: str, given: _BuildInput, tell: Tell) -> Base | None:
    """The served version, if what it holds may be taken over; else it is told why everything is made anew."""
    from pipelines.build.base import check_base, open_base

    try:
        base = open_base(index, version)
        check_base(base.manifest, given.spec, given.model_info, library_versions())
    except (InputError, OSError) as e:
        tell(f'nothing is taken over from version {version}: {e}')
        return None
    return base


def _images_input(request: BuildRequest) -> _BuildInput:
    from pipelines.inputs.shards import cut_units, list_inputs

    model = HashModel.load(local_model(files.absolute(str(request.model))))
    info = {'fingerprint': model.fingerprint, 'method': str(model.training.get('method'))}
    inputs = list_inputs([files.absolute(pattern) for pattern in paths_of(request.images)])
    return _BuildInput(cut_units(inputs, request.read), inputs, model.spec, request.read, info)


def _codes_input(request: BuildRequest) -> _BuildInput:
    from pipelines.encoding.code_files import code_bytes, list_code_units

    units, inputs = list_code_units([files.absolute(pattern) for pattern in paths_of(request.codes)])
    num_bytes = code_bytes(units)
    spec = CodeSpec.parse(request.segments) if request.segments else CodeSpec((Segment('code', num_bytes * 8),))
    if spec.num_bytes != num_bytes:
        raise InputError(f'--segments {request.segments} make {spec.num_bytes} bytes; the codes have {num_bytes} bytes')
    plain = CodeSpec(tuple(Segment(s.name, s.bits) for s in spec.segments))
    return _BuildInput(units, inputs, plain, request.read)


def _copy_model(model: str, copy: str) -> str:
    """Give a version its own copy of the model: what the build encodes with, and queries later; returns where."""
    for name in MODEL_FILES:
        if files.exists(files.join(model, name)):
            files.write_bytes(files.join(copy, name), files.read_bytes(files.join(model, name)))
    return copy


def tally_of(manifest: Manifest) -> Tally:
    """What became of the records that a version was built of."""
    c = manifest.counters
    return Tally(c['records_read'], c['indexed'], c['duplicates'], c['reasons'])


def describe_changes(changes: Mapping[str, Any], units: int) -> str:
    """How a version differs from its base, and what was taken over from there."""
    counts = ', '.join(f'{changes[name]:,} {name}' for name in ('added', 'changed', 'unchanged', 'removed'))
    taken = f'{changes["units"]:,} of {units:,} units taken over'
    known = f', and {changes["images"]:,} images of other units were known' if changes['images'] else ''
    return f'since version {changes["base"]}: {counts}; {taken}{known}'
