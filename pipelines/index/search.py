"""`LocalIndex`: exact search in memory, without Beam."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashing_model.errors import InputError
from pipelines.index import code_tables, files, versions
from pipelines.index.code_tables import CodeRows
from pipelines.index.manifest import Manifest
from pipelines.index.plan import Matches, SearchPlan, plan_search


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """Answers ordered by (distance, row), one line of k places per query.

    Args:
        distances: int32 [Q, k]; -1 where there are fewer than k answers.
        rows: int64 [Q, k]; -1 where there are fewer.
        image_ids: object [Q, k]; None where there are fewer.
    """

    distances: NDArray[np.int32]
    rows: NDArray[np.int64]
    image_ids: NDArray[np.object_]


class LocalIndex:
    """One version of an index in memory, for notebooks, evaluation and reports.

    Example:
        >>> index = LocalIndex.open('my-index')  # doctest: +SKIP
        >>> index.search(codes, k=10, profile={'coarse': 1, 'fine': 2}).image_ids  # doctest: +SKIP
    """

    def __init__(self, folder: str, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest
        self.spec = manifest.spec
        self._tables: dict[int, CodeRows] = {}
        self._images: dict[int, pa.Table] = {}

    @classmethod
    def open(cls, index: str | PathLike, version: str | None = None) -> LocalIndex:
        """Open the served version, or a named one; tables are read when a search first needs them.

        Raises:
            InputError: no index there, no such version, or one that this library cannot read.
        """
        root = files.absolute(index)
        manifest = versions.read_manifest(root, version)
        return cls(versions.version_folder(root, manifest.version), manifest)

    def __len__(self) -> int:
        return self.manifest.rows

    @functools.cached_property
    def sample(self) -> NDArray[np.uint8]:
        """The version's sample of codes, uint8 [S, B]."""
        return code_tables.codes_from_arrow(code_tables.read_file(self.folder, self.manifest.sample, ['code'])['code'])

    def search(
        self,
        codes: NDArray[np.uint8],
        k: int | None = 10,
        radius: int | None = None,
        profile: Mapping[str, int] | None = None,
    ) -> SearchResult:
        """The exact k nearest codes of each query, ranked by (weighted distance, row).

        Args:
            codes: uint8 [Q, B], as `HashModel.encode` makes them.
            k: answers per query; None for all within `radius`.
            radius: largest weighted distance of an answer; None for no limit.
            profile: weight per segment; segments left out weigh 0; None weighs every bit 1.

        Raises:
            InputError: k < 1, a negative radius, an unknown segment, codes of another length.
            OSError: a file of the index is missing or damaged; the message names it.
        """
        plan = self.plan(codes, k, radius, profile)
        matches = self._matches(plan)
        width = k if k is not None else int(matches.ranks.max(initial=-1)) + 1
        distances = np.full((len(plan.codes), width), -1, np.int32)
        rows = np.full((len(plan.codes), width), -1, np.int64)
        distances[matches.queries, matches.ranks] = matches.distances
        rows[matches.queries, matches.ranks] = matches.rows
        image_ids = np.full(rows.shape, None, object)
        image_ids[rows >= 0] = self.images(rows[rows >= 0], ['image_id'])['image_id'].to_pylist()
        return SearchResult(distances, rows, image_ids)

    def plan(
        self,
        codes: NDArray[np.uint8],
        k: int | None = 10,
        radius: int | None = None,
        profile: Mapping[str, int] | None = None,
    ) -> SearchPlan:
        """How `search` answers the same arguments: the bounds after a first look, and the radii for them."""
        manifest = self.manifest
        plan = plan_search(self.spec, manifest.tables, len(self), self.sample, codes, k, radius, profile)
        return plan if k is None else plan.tightened(self._matches(plan.at_home()))

    def _matches(self, plan: SearchPlan) -> Matches:
        probed = np.flatnonzero((plan.radii >= 0).any(axis=0)).tolist()
        return Matches.merged((plan.search(t, '', self._table(t)) for t in probed), plan.k)

    def images(self, rows: NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.Table:
        """What is known of the images in some rows, in the order asked: a table of `code_tables.images_schema`.

        Raises:
            InputError: a negative row: search results have -1 where there are fewer answers.
        """
        if len(rows) and rows.min() < 0:
            raise InputError(f'row {rows.min()} is no row: leave out the places without answer')
        parts = np.unique(rows >> 32)
        tables = {int(p): self._images_part(int(p)) for p in parts}
        chosen = columns or code_tables.images_schema(self.spec.num_bytes).names
        pieces = [tables[int(p)].select(chosen).take(rows[rows >> 32 == p] & 0xFFFFFFFF) for p in parts]
        if not pieces:
            return code_tables.images_schema(self.spec.num_bytes).empty_table().select(chosen)
        grouped = np.argsort(rows >> 32, kind='stable')
        return pa.concat_tables(pieces).take(np.argsort(grouped))

    def _images_part(self, part: int) -> pa.Table:
        if part not in self._images:
            self._images[part] = code_tables.read_file(self.folder, self.manifest.images[part])
        return self._images[part]

    def _table(self, number: int) -> CodeRows:
        """A whole table, ordered by key and row."""
        if number not in self._tables:
            table = self.manifest.tables[number]
            parts = [
                CodeRows.from_table(code_tables.read_file(self.folder, file))
                for partition in table.partitions
                for file in partition.files
            ]
            empty = np.zeros(0, np.int64), np.zeros((0, self.spec.num_bytes), np.uint8), np.zeros(0, np.int64)
            keys, codes, rows = (
                np.concatenate([getattr(p, name) for p in parts] or [nothing])
                for name, nothing in zip(('keys', 'codes', 'rows'), empty, strict=True)
            )
            self._tables[number] = CodeRows.sorted(keys, codes, rows)
        return self._tables[number]
