"""Training images out of shards: a uniform sample of records, for `hashing_model.training.fit.fit`; and what to tell of a fit.

grainhash train --images PATTERN... --model DIR
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import rich.progress
from numpy.typing import NDArray
from rich.console import Console

from hashing_model.images.decode import ImageError, Resizing, decode
from hashing_model.labels import LabelLevel
from hashing_model.model import HashModel
from hashing_model.networks.loop import Progress
from pipelines import files
from pipelines.inputs.shards import FILES, PARQUET, ReadOptions, WorkUnit, read_unit
from pipelines.records import Record, Reject
from pipelines.reports import plots

T = TypeVar('T')
TRAINING_FILE = 'training.json'
CURVES_FILE = 'training.png'
MAX_UNITS = 64  # a sample reads no more of a large catalogue than this many of its units hold


def sample_records(
    units: Sequence[WorkUnit], options: ReadOptions, size: int, seed: int, keep: Callable[[Record], T]
) -> tuple[list[T], list[Reject]]:
    """What to keep of at most `size` records drawn uniformly from those of `draw_units`.

    Reservoir sampling (Vitter 1985, algorithm R): every record read is as likely to stay as any other.

    Args:
        units, options: see `read_unit`.
        size: how many to draw.
        seed: of the draw.
        keep: called for the records that enter the reservoir, so that not all bytes are held; one for which it raises
            ImageError is not drawn.

    Returns:
        What was kept, and what could not be read or decoded.
    """
    rng = np.random.default_rng(seed)
    kept: list[T] = []
    rejects: list[Reject] = []
    seen = 0
    for item in (item for unit in draw_units(units, rng) for item in read_unit(unit, options)):
        if isinstance(item, Reject):
            rejects.append(item)
            continue
        place = len(kept) if len(kept) < size else int(rng.integers(seen + 1))
        if place < size:
            try:
                kept[place : place + 1] = [keep(item)]
            except ImageError as e:
                rejects.append(Reject(item.source, e.reason, e.detail, item.image_id))
                continue
        seen += 1
    return kept, rejects


def draw_units(units: Sequence[WorkUnit], rng: np.random.Generator) -> list[WorkUnit]:
    """The units to sample, in random order: all, or as much as MAX_UNITS of them hold, where there are more.

    That much is drawn from image files and from row groups of Parquet one by one, since catalogues are often sorted by
    class; whole tar and TFRecord shards, which have no beginning in the middle, are drawn as they are.
    """
    pieces = list(units)
    if len(units) > MAX_UNITS:
        pieces = [piece for unit in units for piece in _pieces(unit)]
    drawn = rng.permutation(len(pieces))[: round(len(pieces) * min(1, MAX_UNITS / max(len(units), 1)))]
    return [pieces[i] for i in drawn]


def _pieces(unit: WorkUnit) -> list[WorkUnit]:
    if unit.format == FILES:
        return [dataclasses.replace(unit, paths=(path,)) for path in unit.paths]
    if unit.format == PARQUET and unit.row_groups:
        return [dataclasses.replace(unit, row_groups=(group, group + 1)) for group in range(*unit.row_groups)]
    return [unit]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Training images: pixels uint8 [size, size, 3] each, labels by level, captions, and what could not be used.

    `digest` is a SHA-256 over ids, files and labels, in order: a training that goes on after a kill must have the same.
    """

    images: Sequence[NDArray[np.uint8]]
    labels: Mapping[str, LabelLevel]
    captions: Sequence[str | None]
    rejects: Sequence[Reject]
    digest: str


def sample_images(units: Sequence[WorkUnit], options: ReadOptions, size: int, seed: int, resizing: Resizing) -> Sample:
    """Decoded training images with their labels at all levels that any of them has; see `sample_records`."""

    def keep(record: Record) -> tuple[NDArray[np.uint8], Record]:
        digest = hashlib.sha256(record.data).digest()
        return decode(record.data, resizing).pixels, dataclasses.replace(record, data=digest)

    kept, rejects = sample_records(units, options, size, seed, keep)
    levels = dict.fromkeys(level for _, record in kept for level in record.labels)
    labels = {level: LabelLevel.from_values([r.labels.get(level, ()) for _, r in kept]) for level in levels}
    known = [[r.image_id, r.data.hex(), sorted(r.labels.items())] for _, r in kept]
    digest = hashlib.sha256(json.dumps(known).encode()).hexdigest()
    return Sample([pixels for pixels, _ in kept], labels, [r.caption for _, r in kept], rejects, digest)


class TrainingLog:
    """Shows how far a training is, and writes TensorBoard logs if wanted.

    Args:
        console: where the progress bar goes.
        tensorboard: a folder for the logs.
    """

    def __init__(self, console: Console, tensorboard: str | None = None) -> None:
        self._bar = rich.progress.Progress(
            '{task.description}',
            rich.progress.BarColumn(),
            rich.progress.TimeRemainingColumn(compact=True),
            '{task.fields[figures]}',
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, rich.progress.TaskID] = {}
        self._folder = tensorboard
        self._writer: Any = None

    def __enter__(self) -> TrainingLog:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._writer:
            self._writer.close()

    def report(self, progress: Progress) -> None:
        """Take note of a step."""
        figures = [f'loss {progress.loss:.3f}'] if progress.loss is not None else []
        figures += [f'validation mAP {progress.score:.3f}'] if progress.score is not None else []
        if progress.stage not in self._tasks:
            self._tasks[progress.stage] = self._bar.add_task(progress.stage, total=progress.steps, figures='')
        self._bar.update(self._tasks[progress.stage], completed=progress.step, figures=', '.join(figures))
        if self._folder and progress.loss is not None:
            self._write(progress)

    def _write(self, progress: Progress) -> None:
        import tensorflow as tf

        self._writer = self._writer or tf.summary.create_file_writer(self._folder)
        with self._writer.as_default():
            scalar = tf.compat.v1.SummaryMetadata()  # tf.summary.scalar itself needs the package tensorboard
            scalar.plugin_data.plugin_name = 'scalars'
            for name, value in (('loss', progress.loss), ('validation mAP', progress.score)):
                if value is not None:
                    tf.summary.write(f'{progress.stage}/{name}', tf.constant(value), progress.step, scalar)


def write_training(folder: Path, model: HashModel, history: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Write `training.json`, and `training.png` with the curves if there are any, beside a model."""
    described = {**model.training, 'fingerprint': model.fingerprint, 'history': history}
    files.write_bytes(str(folder / TRAINING_FILE), json.dumps(described, indent=1).encode())
    (folder / CURVES_FILE).unlink(missing_ok=True)
    if history:
        files.write_bytes(str(folder / CURVES_FILE), plots.training_curves(history))


def describe_training(model: HashModel) -> list[str]:
    """What a person wants to know of a fit, a line each: images without labels, validation, what segments read."""
    about, lines = model.training, []
    for name, labelled in about.get('labelled', {}).items():
        if labelled < about['images']:
            missing = about['images'] - labelled
            lines.append(f'{missing:,} of {about["images"]:,} images have no label {name}: it did not learn from them')
    if about.get('hierarchy_order', 1) < 1:
        lines.append(
            f'target codes keep the order of the label levels in {about["hierarchy_order"]:.1%} of the cases: '
            'weigh the coarser segment more when you ask, or give it more bits'
        )
    for name in model.spec.names:
        score = about.get('validation_map', {}).get(name)
        held_out = '' if score is None else f'mAP {score:.3f} on images held out; '
        lines.append(f'{name}: {held_out}made of {describe_shares(about["shares"][name])}')
    if text := about.get('text'):
        lines.append(f'text: {text["words"]:,} words of the captions and labels of {text["images"]:,} images')
    return lines


def describe_shares(shares: Mapping[str, float]) -> str:
    """How much each feature group tells in a segment: `45 % top, 33 % high, 22 % mid`."""
    return ', '.join(f'{share:.0%} {name}'.replace('%', ' %') for name, share in shares.items())


def describe_rejects(rejects: Iterable[Reject]) -> str:
    """Rejects by reason, for a message: `3 truncated, 1 empty`."""
    return ', '.join(f'{n} {reason}' for reason, n in collections.Counter(r.reason for r in rejects).most_common())
