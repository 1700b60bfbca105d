"""A uniform sample of the records of shards, and the training images made of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hashing_model.images.decode import ImageError, Resizing, decode
from hashing_model.labels import LabelLevel
from pipelines.inputs.options import ReadOptions
from pipelines.inputs.shards import FILES, PARQUET, WorkUnit, read_unit
from pipelines.records import Record, Reject

T = TypeVar('T')
MAX_UNITS = 64  # a sample reads no more of a large catalogue than this many of its units hold


def sample_records(
    units: Sequence[WorkUnit], options: ReadOptions, size: int, seed: int, keep: Callable[[Record], T]
) -> tuple[list[T], list[Reject]]:
    """Draw at most `size` records uniformly from the units of `draw_units`, and keep what `keep` makes of them.

    Reservoir sampling (Vitter 1985, algorithm R): every record read is as likely to stay as any other.

    Args:
        units, options: see `read_unit`.
        size: how many to draw.
        seed: of the draw.
        keep: called for each record that enters the reservoir, so that not all bytes are held in memory. A record for
            which it raises ImageError is not drawn.

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
    """The units to sample, in random order: all units, or as many records as MAX_UNITS of them hold.

    Image files and row groups of Parquet are then drawn one by one, because catalogues are often sorted by class. Tar
    and TFRecord shards are drawn as a whole, because they cannot be read from the middle.
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
class TrainingSample:
    """Training images: pixels uint8 [size, size, 3] each, labels by level, captions, and what could not be used.

    `digest` is a SHA-256 over ids, files and labels in order; a training resumes from a checkpoint only if it is the
    same.
    """

    images: Sequence[NDArray[np.uint8]]
    labels: Mapping[str, LabelLevel]
    captions: Sequence[str | None]
    rejects: Sequence[Reject]
    digest: str


def sample_images(
    units: Sequence[WorkUnit], options: ReadOptions, size: int, seed: int, resizing: Resizing
) -> TrainingSample:
    """Decoded training images with their labels at all levels that any of them has; see `sample_records`."""

    def keep(record: Record) -> tuple[NDArray[np.uint8], Record]:
        digest = hashlib.sha256(record.data).digest()
        return decode(record.data, resizing).pixels, dataclasses.replace(record, data=digest)

    kept, rejects = sample_records(units, options, size, seed, keep)
    levels = dict.fromkeys(level for _, record in kept for level in record.labels)
    labels = {level: LabelLevel.from_values([r.labels.get(level, ()) for _, r in kept]) for level in levels}
    known = [[r.image_id, r.data.hex(), sorted(r.labels.items())] for _, r in kept]
    digest = hashlib.sha256(json.dumps(known).encode()).hexdigest()
    return TrainingSample([pixels for pixels, _ in kept], labels, [r.caption for _, r in kept], rejects, digest)
