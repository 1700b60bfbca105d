"""Images of an index with their codes: some drawn uniformly, or those of some ids. For `grainhash evaluate`.

Those of shards, which have to be encoded, are in `shard_images.py`; neither Beam nor TensorFlow is needed here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.index.manifest import DataFile, Manifest
from pipelines.index.versions import Version

COLUMNS = ['image_id', 'digest', 'labels', 'code']


class Images(Protocol):
    """Where images with codes come from; tables have at least COLUMNS."""

    def draw(self, size: int | None, seed: int) -> pa.Table:
        """At most `size` images drawn uniformly, or all."""

    def find(self, ids: Collection[str]) -> pa.Table:
        """Those of some ids that are there."""


@dataclasses.dataclass(frozen=True)
class IndexImages:
    """The images of a version of an index."""

    version: Version

    @property
    def manifest(self) -> Manifest:
        """The version's manifest."""
        return self.version.manifest

    def draw(self, size: int | None, seed: int) -> pa.Table:
        """At most `size` images drawn uniformly over all rows, or all: a table of COLUMNS."""
        rows = self.manifest.rows
        drawn = np.sort(np.random.default_rng(seed).choice(rows, min(size or rows, rows), replace=False))
        firsts = np.cumsum([0, *(file.rows for file in self.manifest.images)])
        of_part = np.split(drawn, np.searchsorted(drawn, firsts[1:-1]))
        parts = zip(self.manifest.images, of_part, firsts, strict=False)
        return pa.concat_tables([self._read(file).take(own - first) for file, own, first in parts if len(own)])

    def find(self, ids: Collection[str]) -> pa.Table:
        """The images that have these ids: a table of COLUMNS."""
        return pa.concat_tables([with_ids(self._read(file), ids) for file in self.manifest.images])

    def _read(self, file: DataFile) -> pa.Table:
        return self.version.read_table(file, COLUMNS)


def with_ids(images: pa.Table, ids: Collection[str]) -> pa.Table:
    """The rows of a table whose `image_id` is one of some ids, in the table's order."""
    return images.filter(pc.is_in(images['image_id'], pa.array(list(ids), pa.string())))
