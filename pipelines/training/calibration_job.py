"""The calibration job: thresholds of a model moved so that every bit splits a catalogue near its middle.

    grainhash calibrate --model DIR --images PATTERN... --output DIR

    units -> Reshuffle -> SumActivations -> AddTotals -> SaveCalibrated

The thresholds are the batch normalisation statistics of a hash layer, taken from the catalogue to be indexed: Hoe et
al., "One Loss for All: Deep Hashing with a Single Cosine Similarity based Learning Objective", NeurIPS 2021. There is
one element per unit. The sums are exact, so that they do not depend on how the catalogue is divided into units.

Segments that were learned from labels are left alone unless they are named: if the classes have other shares in the
catalogue, the middle may lie inside a class.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import BuildError, InputError
from hashing_model.model import MODEL_FILE, MODEL_FILES, HashModel
from pipelines import files
from pipelines.encoding.encode import BATCH_SIZE, decoded_batches, sort_batch
from pipelines.encoding.ids import id_hashes
from pipelines.encoding.models import check_backbone, load_model
from pipelines.index import versions
from pipelines.inputs.options import ReadOptions
from pipelines.inputs.shards import WorkUnit, read_unit
from pipelines.jobs.counts import count
from pipelines.records import Record, Reject, Tally

SAMPLE_ROWS = 4096  # pictures on which the balance of the bits is measured
QUANTUM = 2.0**-24  # activations are added as whole multiples of it, so that the order of adding does not matter
LARGEST = 2.0**38  # activation that fits in 64 bits so

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CalibrationConfig:
    """What the job reads and where it saves.

    Args:
        model: absolute path or uri of the model.
        fingerprint: of the model.
        out: absolute path or uri of the folder for the new one.
        spec: the model's code spec.
        segments: whose thresholds are moved.
        unit_count: how many work units there are.
        options: which column or key holds what.
        threads: per worker process; None for one per core.
    """

    model: str
    fingerprint: str
    out: str
    spec: CodeSpec
    segments: tuple[str, ...]
    unit_count: int
    options: ReadOptions = ReadOptions()
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class Totals:
    """Sums over some pictures.

    Args:
        sums: of their activations in multiples of QUANTUM, as Python integers of any size: object [bits].
        sample: the activations of the SAMPLE_ROWS pictures whose ids have the smallest hashes, float32 [n, bits].
        hashes: of these, uint64 [n], ascending.
        pictures: how many there are.
        records_read: pictures and rejects.
        reasons: how many rejects, by reason.
        units: how many work units they come from.
    """

    sums: NDArray
    sample: NDArray[np.float32]
    hashes: NDArray[np.uint64]
    pictures: int = 0
    records_read: int = 0
    reasons: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    units: int = 0

    @classmethod
    def none(cls, bits: int) -> Totals:
        """The totals of no pictures."""
        return cls(np.zeros(bits, object), np.zeros((0, bits), np.float32), np.zeros(0, np.uint64))

    @classmethod
    def of(cls, activations: NDArray, hashes: NDArray[np.uint64]) -> Totals:
        """The totals of a batch of pictures, given activations [N, bits] and a hash of each id.

        Raises:
            InputError: activations that are not finite, or are 2^38 or more.
        """
        if not (np.abs(activations) < LARGEST).all():
            raise InputError('the model gives activations that are not numbers')
        whole = np.rint(activations.astype(np.float64) / QUANTUM).astype(np.int64)
        sample = activations.astype(np.float32)
        return cls(whole.astype(object).sum(axis=0), sample, hashes, len(hashes), len(hashes))

    def plus(self, other: Totals) -> Totals:
        """The totals of the pictures of both."""
        hashes = np.concatenate([self.hashes, other.hashes])
        least = np.argsort(hashes, kind='stable')[:SAMPLE_ROWS]
        return Totals(
            self.sums + other.sums,
            np.concatenate([self.sample, other.sample])[least],
            hashes[least],
            self.pictures + other.pictures,
            self.records_read + other.records_read,
            self.reasons + other.reasons,
            self.units + other.units,
        )

    @property
    def means(self) -> NDArray[np.float32]:
        """The mean activation of each bit: float32 [bits]."""
        return np.array([s / self.pictures * QUANTUM for s in self.sums], np.float64).astype(np.float32)


def imbalance(activations: NDArray) -> float:
    """How unbalanced bits are: the mean over bits of |share of ones - 1/2|, from 0 to 1/2.

    >>> imbalance(np.array([[1, -1], [1, 1]]))
    0.25
    """
    return float(np.abs((activations >= 0).mean(axis=0) - 0.5).mean())


def define_pipeline(root: beam.Pipeline, config: CalibrationConfig, units: Sequence[WorkUnit]) -> beam.PCollection:
    """Wire the job; the result is one element, the fingerprint of the calibrated model."""
    return (
        root
        | 'Units' >> beam.Create(units)
        | 'Spread' >> beam.Reshuffle()
        | 'SumActivations' >> beam.ParDo(SumActivations(config))
        | 'AddTotals' >> beam.CombineGlobally(AddTotals(config.spec.bits))
        | 'SaveCalibrated' >> beam.Map(save_calibrated, config)
    )


class SumActivations(beam.DoFn):
    """The totals of one unit."""

    def __init__(self, config: CalibrationConfig):
        self.config = config

    def process(self, unit: WorkUnit) -> Iterator[Totals]:
        """One `Totals`."""
        config = self.config
        model = load_model(config.model, config.threads, config.fingerprint)
        totals = sum_unit(read_unit(unit, config.options), model)
        log.info('unit %d of %d, %s: %d pictures', unit.number + 1, config.unit_count, unit.shard, totals.pictures)
        count(records_read=totals.records_read, pictures=totals.pictures)
        yield totals


class AddTotals(beam.CombineFn):
    """Adds `Totals`."""

    def __init__(self, bits: int):
        self.bits = bits

    def create_accumulator(self) -> Totals:
        """No pictures yet."""
        return Totals.none(self.bits)

    def add_input(self, total: Totals, one: Totals) -> Totals:
        """Add those of one unit."""
        return total.plus(one)

    def merge_accumulators(self, totals: Iterable[Totals]) -> Totals:
        """Add sums."""
        merged = Totals.none(self.bits)
        for total in totals:
            merged = merged.plus(total)
        return merged

    def extract_output(self, total: Totals) -> Totals:
        """The sum."""
        return total


def sum_unit(items: Iterable[Record | Reject], model: HashModel, batch_size: int = BATCH_SIZE) -> Totals:
    """The totals of the records of one unit.

    The features are the same as for codes. The activations are computed in float64, because the last bits of float32
    matrix products depend on the size of the batch.
    """
    totals, rejects, records_read = Totals.none(model.spec.bits), [], 0
    for batch in decoded_batches(items, model.resizing, batch_size):
        records_read += len(batch)
        records, decoded, bad = sort_batch(batch)
        rejects += [reject.reason for reject in bad]
        if records:
            check_backbone(model)
            groups = model.extractor.features(np.stack([d.pixels for d in decoded]))
            activations = model.activations({name: x.astype(np.float64) for name, x in groups.items()})
            hashes = id_hashes(pa.array([record.image_id for record in records], pa.string()))
            totals = totals.plus(Totals.of(np.concatenate(list(activations.values()), axis=1), hashes))
    return dataclasses.replace(totals, records_read=records_read, reasons=collections.Counter(rejects), units=1)


def choose_segments(model: HashModel, wanted: str | None = None) -> tuple[str, ...]:
    """The segments to calibrate: those wanted (`NAME,...`), or else all that were not learned from labels.

    Raises:
        InputError: a segment that the model does not have, or none is left.
    """
    names = model.spec.names
    if wanted is None:
        chosen = tuple(name for name in names if name not in model.training.get('labelled', {}))
        if not chosen:
            raise InputError(
                f'all segments have learned from labels ({", ".join(names)}); moving their thresholds can make them '
                'worse: name those to move all the same, as --segments ' + ','.join(names)
            )
        return chosen
    chosen = tuple(dict.fromkeys(name.strip() for name in wanted.split(',')))
    for name in chosen:
        if name not in names:
            raise InputError(f'the model has no segment {name!r}; it has {", ".join(names)}')
    return chosen


def calibrate(model: HashModel, totals: Totals, segments: Sequence[str]) -> HashModel:
    """The model with the means of the totals as thresholds of some segments, and a note about the calibration."""
    spec = model.spec
    places = {s.name: slice(spec.start(s.name), spec.start(s.name) + s.bits) for s in spec.segments}
    means = {name: totals.means[places[name]] for name in segments}
    moved = np.concatenate([np.arange(spec.bits)[places[name]] for name in segments])
    sample = totals.sample[:, moved]
    about = {
        'segments': list(segments),
        'rejected': dict(sorted(totals.reasons.items())),
        'imbalance': [imbalance(sample), imbalance(sample - totals.means[moved])],
        'measured_on': len(sample),
    }
    noted = {**model.training, 'calibrated_on': totals.pictures, 'calibration': about}
    return dataclasses.replace(model.calibrated(means), training=noted)


def save_calibrated(totals: Totals, config: CalibrationConfig) -> str:
    """Check that nothing is missing, calibrate the model and save it; returns its fingerprint.

    Raises:
        BuildError: units or records are missing, or no picture could be read.
    """
    if totals.units != config.unit_count:
        raise BuildError(f'{totals.units} of {config.unit_count} work units were finished')
    Tally.of(totals.records_read, totals.pictures, totals.reasons).check()
    given = load_model(config.model, config.threads, config.fingerprint)
    check_backbone(given)
    model = calibrate(given, totals, config.segments)
    with tempfile.TemporaryDirectory(prefix='grainhash-model-') as folder:
        model.save(folder)
        files.delete_file(files.join(config.out, MODEL_FILE))  # it is written last: half a model does not load
        for name in MODEL_FILES:
            path = Path(folder, name)
            if path.exists():
                files.write_bytes(files.join(config.out, name), path.read_bytes())
            else:
                files.delete_file(files.join(config.out, name))
    return model.fingerprint


def check_out(out: str, model: str) -> None:
    """Refuse a folder in which a calibrated model must not be saved.

    Raises:
        InputError: it is the folder of the model itself or of an index, a file, or a folder that holds something else.
    """
    if out == model:
        raise InputError(f'{out} is the model itself; give another folder: indexes built with it need it as it is')
    version, _, name = out.rpartition('/')
    if name == versions.MODEL_FOLDER and files.exists(files.join(version, versions.MANIFEST_PATH)):
        raise InputError(f'{out} belongs to an index, whose codes need it as it is; give another folder')
    try:
        names = files.names_in(out)
    except NotADirectoryError as e:
        raise InputError(f'{out} is a file; give a folder for the model') from e
    if names and not set(MODEL_FILES) & set(names):
        raise InputError(f'{out} is not a model: it holds {", ".join(names[:3])}; give a new or empty folder')
