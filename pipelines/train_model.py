"""Training images out of shards: a uniform sample of records, for `hashing_model.train.fit`.

grainhash train --method itq --images PATTERN... --model DIR
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hashing_model.images import ImageError
from pipelines.encode import BATCH_SIZE
from pipelines.records import Record, Reject
from pipelines.shards import ReadOptions, WorkUnit, read_unit

T = TypeVar('T')
MAX_UNITS = 64  # a sample needs no more of a large catalogue than this many of its units


def sample_records(
    units: Sequence[WorkUnit], options: ReadOptions, size: int, seed: int, keep: Callable[[Record], T]
) -> tuple[list[T], list[Reject]]:
    """What to keep of at most `size` records drawn uniformly from the units (from 64 random ones, if there are more).

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
    chosen = [units[i] for i in rng.permutation(len(units))[:MAX_UNITS]]
    kept: list[T] = []
    rejects: list[Reject] = []
    seen = 0
    for item in (item for unit in chosen for item in read_unit(unit, options)):
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


def training_batches(images: Sequence[NDArray[np.uint8]], progress: Callable[[int], None]) -> Iterator[NDArray]:
    """Batches uint8 [N, size, size, 3] of equally large images; `progress` hears how many were taken."""
    for start in range(0, len(images), BATCH_SIZE):
        batch = images[start : start + BATCH_SIZE]
        yield np.stack(batch)
        progress(len(batch))


def describe_rejects(rejects: Iterable[Reject]) -> str:
    """Rejects by reason, for a message: `3 truncated, 1 empty`."""
    return ', '.join(f'{n} {reason}' for reason, n in collections.Counter(r.reason for r in rejects).most_common())
