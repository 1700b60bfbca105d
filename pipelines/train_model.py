"""Training images out of shards: a uniform sample of records, decoded, for `hashing_model.train.fit`.

grainhash train --method itq --images PATTERN... --model DIR
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from hashing_model.images import Decoded, ImageError, Resizing, decode
from pipelines.encode import BATCH_SIZE, DECODING_THREADS
from pipelines.records import Record, Reject
from pipelines.shards import ReadOptions, WorkUnit, read_unit

MAX_UNITS = 64  # a sample needs no more of a large catalogue than this many of its units


def sample_records(
    units: Sequence[WorkUnit], options: ReadOptions, size: int, seed: int
) -> tuple[list[Record], list[Reject]]:
    """At most `size` records drawn uniformly from the units (from 64 random ones, if there are more), and rejects.

    Reservoir sampling (Vitter 1985, algorithm R): every record read is as likely to stay as any other.
    """
    rng = np.random.default_rng(seed)
    chosen = [units[i] for i in rng.permutation(len(units))[:MAX_UNITS]]
    kept: list[Record] = []
    rejects: list[Reject] = []
    seen = 0
    for item in (item for unit in chosen for item in read_unit(unit, options)):
        if isinstance(item, Reject):
            rejects.append(item)
            continue
        seen += 1
        if len(kept) < size:
            kept.append(item)
        elif (place := int(rng.integers(seen))) < size:
            kept[place] = item
    return kept, rejects


def training_batches(
    records: Sequence[Record], resizing: Resizing, rejects: list[Reject], progress: Callable[[int], None]
) -> Iterator[NDArray[np.uint8]]:
    """Batches uint8 [N, size, size, 3] of the records that decode; the others are appended to `rejects`.

    Args:
        records: in any order.
        resizing: the model's input size and rule.
        rejects: grows.
        progress: called with the number of records done since the last call.
    """

    def try_decode(record: Record) -> Decoded | Reject:
        try:
            return decode(record.data, resizing)
        except ImageError as e:
            return Reject(record.source, e.reason, e.detail, record.image_id)

    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        for start in range(0, len(records), BATCH_SIZE):
            results = list(pool.map(try_decode, records[start : start + BATCH_SIZE]))
            rejects += [r for r in results if isinstance(r, Reject)]
            pixels = [r.pixels for r in results if isinstance(r, Decoded)]
            if pixels:
                yield np.stack(pixels)
            progress(len(results))


def describe_rejects(rejects: Iterable[Reject]) -> str:
    """Rejects by reason, for a message: `3 truncated, 1 empty`."""
    return ', '.join(f'{n} {reason}' for reason, n in collections.Counter(r.reason for r in rejects).most_common())
