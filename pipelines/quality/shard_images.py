"""Images out of shards with their codes: a uniform sample, or those of some ids. For `grainhash evaluate`."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashing_model.model import HashModel
from pipelines.encoding.encode import encode_unit
from pipelines.encoding.ids import find_duplicates, without_duplicates
from pipelines.inputs.options import ReadOptions
from pipelines.inputs.shards import WorkUnit, read_unit
from pipelines.records import Record, Reject, Source

ENOUGH = 3  # units are looked at in random order until they hold so many times the records wanted

Items = Iterator[Record | Reject]


@dataclasses.dataclass(frozen=True)
class ShardImages:
    """The images of shards, encoded as they are asked for; duplicate ids are rejected.

    Args:
        units, options: see `read_unit`.
        model: makes the codes.
        rejects: what could not be read or decoded is added here.
        progress: hears how many records were taken, of how many.
    """

    units: Sequence[WorkUnit]
    options: ReadOptions
    model: HashModel
    rejects: list[Reject]
    progress: Callable[[int, int], None]

    def draw(self, size: int | None, seed: int) -> pa.Table:
        """At most `size` records drawn uniformly, or all: a table of `code_tables.images_schema`.

        Units are read twice, to count and to encode: encoding takes far longer than reading.
        """
        size = sys.maxsize if size is None else size
        rng = np.random.default_rng(seed)
        units, counts = _count(self.units, self.options, ENOUGH * size, rng)
        total = sum(counts)
        drawn = np.zeros(total, bool)
        drawn[rng.choice(total, min(size, total), replace=False)] = True
        return self._encode(self._at(units, counts, drawn))

    def find(self, ids: Collection[str]) -> pa.Table:
        """The records of some ids: a table of `code_tables.images_schema`; of several with one id, the first."""
        return self._encode(self._listed(set(ids)))

    def _at(self, units: Sequence[WorkUnit], counts: Sequence[int], drawn: NDArray[np.bool_]) -> Items:
        """The items that are drawn, a mask over the items of all units in order."""
        total, taken, first = int(drawn.sum()), 0, 0
        for unit, count in zip(units, counts, strict=True):
            own = drawn[first : first + count]
            first += count
            if own.any():
                for item in itertools.compress(read_unit(unit, self.options), own):
                    taken += 1
                    self.progress(taken, total)
                    yield item

    def _listed(self, wanted: set[str]) -> Items:
        total = len(wanted)
        for unit in self.units:
            for item in read_unit(unit, self.options):
                if not wanted:
                    return
                if isinstance(item, Record) and item.image_id in wanted:
                    wanted.remove(item.image_id)
                    self.progress(total - len(wanted), total)
                    yield item

    def _encode(self, items: Items) -> pa.Table:
        unit = encode_unit(items, self.model)
        images, dropped = without_duplicates(unit.images, find_duplicates(unit.images['image_id']))
        rejects = [Reject(**{**row, 'source': Source(**row['source'])}) for row in dropped.to_pylist()]
        self.rejects.extend([*unit.rejects, *rejects])
        return images


def _count(
    units: Sequence[WorkUnit], options: ReadOptions, enough: int, rng: np.random.Generator
) -> tuple[list[WorkUnit], list[int]]:
    """Random units, as many as hold enough records, in the order given; and how many records each holds."""
    counts: dict[int, int] = {}
    for i in rng.permutation(len(units)).tolist():
        if sum(counts.values()) >= enough:
            break
        counts[i] = sum(1 for _ in read_unit(units[i], options))
    return [units[i] for i in sorted(counts)], [counts[i] for i in sorted(counts)]
