"""`calibrate_model`: what `grainhash calibrate` does. Thresholds of a model are moved to the middle of a catalogue.

The job is in `calibration_job.py`; Beam and TensorFlow load when they are needed.

    grainhash calibrate --model my-model --images 'photos/' --output my-model-here
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

from hashing_model.model import MODEL_FILE, HashModel
from pipelines import files
from pipelines.encoding.models import local_model
from pipelines.inputs.options import ReadOptions
from pipelines.requests import STAGED, Paths, Report, check_one_of, paths_of, set_fields
from pipelines.training.train_model import unused_records


@dataclasses.dataclass(frozen=True)
class CalibrateRequest:
    """Which model to fit to which catalogue.

    Args:
        model: folder of the model; it stays as it is.
        images: patterns of the catalogue to be indexed.
        output: folder to save the calibrated model in.
        segments: whose thresholds to move, `NAME,...`; None for those that were not learned from labels.
        read: which column or key of the shards holds what.

    Raises:
        InputError: no images.
    """

    model: str
    images: Paths
    output: str
    segments: str | None = None
    read: ReadOptions = ReadOptions()

    def __post_init__(self) -> None:
        set_fields(self, images=paths_of(self.images))
        check_one_of(images=self.images)


@dataclasses.dataclass(frozen=True)
class CalibrateReport(Report):
    """What was calibrated.

    Args:
        output: folder of the model.
        seconds: that it took.
        fingerprint, was: of the model that was made, and of the one that it was made from.
        images: of the catalogue; None of a job that is only staged.
        segments: whose thresholds were moved.
        imbalance: how far the share of ones is off 1/2, before and after, in the mean over bits.
        measured_on: images on which that was measured.
        rejected: records that could not be used, by reason.
    """

    output: str
    seconds: float
    was: str
    fingerprint: str | None = None
    images: int | None = None
    segments: Sequence[str] = ()
    imbalance: tuple[float, float] = (0, 0)
    measured_on: int = 0
    rejected: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def lines(self) -> list[str]:
        """What could not be used, how balanced the bits are, and the model."""
        if self.fingerprint is None:
            return [f'{self.output}: {STAGED}']
        before, after = self.imbalance
        return [
            *unused_records(self.rejected),
            f'balance of {", ".join(self.segments)}: share of ones off 1/2 by {before:.3f} before, by {after:.3f} now '
            f'(mean over bits, {self.measured_on:,} images)',
            f'{self.output}: calibrated on {self.images:,} images, fingerprint {self.fingerprint[:12]} '
            f'(was {self.was[:12]}), {self.seconds:.0f} s',
        ]


def calibrate_model(request: CalibrateRequest, beam_args: Sequence[str] = ()) -> CalibrateReport:
    """Move thresholds of a model to the middle of a catalogue, so that its bits are balanced there; save a new model.

    Args:
        request: which model, which catalogue.
        beam_args: options of Apache Beam, such as `--runner=FlinkRunner`.

    Raises:
        InputError: no model, no images, segments that it does not have, or a folder that holds something else.
        BuildError: records are missing, or none could be read.
        OSError: files that cannot be read or written.
    """
    from pipelines.inputs.shards import list_units
    from pipelines.jobs.runner import pipeline_options, run_pipeline, threads_per_worker
    from pipelines.training.calibration_job import CalibrationConfig, check_out, choose_segments, define_pipeline

    beam_options, options = pipeline_options(beam_args), request.read
    source, out = files.absolute(request.model), files.absolute(request.output)
    model = HashModel.load(local_model(source))
    check_out(out, source)
    segments = choose_segments(model, request.segments)
    units = list_units([files.absolute(pattern) for pattern in paths_of(request.images)], options)
    files.check_writable(files.join(out, MODEL_FILE))
    started = time.monotonic()
    threads = threads_per_worker(beam_options)
    config = CalibrationConfig(source, model.fingerprint, out, model.spec, segments, len(units), options, threads)
    staged = run_pipeline(lambda root: define_pipeline(root, config, units), beam_options) is None
    seconds = time.monotonic() - started
    if staged:
        return CalibrateReport(request.output, seconds, model.fingerprint)
    made = HashModel.load(local_model(out))
    about = made.training['calibration']
    return CalibrateReport(
        output=request.output,
        seconds=time.monotonic() - started,
        was=model.fingerprint,
        fingerprint=made.fingerprint,
        images=made.training['calibrated_on'],
        segments=tuple(about['segments']),
        imbalance=tuple(about['imbalance']),
        measured_on=about['measured_on'],
        rejected=about['rejected'],
    )
