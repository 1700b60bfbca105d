"""`LocalIndex`: exact search of one version of an index, without Beam."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from hashing_model.errors import InputError
from pipelines import files
from pipelines.index import code_tables
from pipelines.index.manifest import DataFile, Partition
from pipelines.index.versions import Version, open_version
from pipelines.search import multi_index
from pipelines.search.memory import MemoryTables
from pipelines.search.on_demand import search_on_demand
from pipelines.search.partition_reader import read_rows
from pipelines.search.search_plan import Matches, check_limits, plan_search

Where: TypeAlias = pc.Expression | Mapping[str, str | Sequence[str]]


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """Answers ordered by (distance, row), one line of k places per query.

    Args:
        distances: int32 [Q, k]; -1 where there are fewer than k answers.
        rows: int64 [Q, k]; -1 where there are fewer.
        exact: bool [Q], whether the answers are certainly those of an exhaustive search.
        visited: int64 [Q], how many codes were compared with each query. For an index that is not in memory, the number
            of rows read for all queries together.
    """

    distances: NDArray[np.int32]
    rows: NDArray[np.int64]
    exact: NDArray[np.bool_]
    visited: NDArray[np.int64]
    _index: LocalIndex = dataclasses.field(repr=False)

    @functools.cached_property
    def image_ids(self) -> NDArray[np.object_]:
        """The answers' image ids, object [Q, k]; None where there are fewer. Read from the index when first asked."""
        image_ids = np.full(self.rows.shape, None, object)
        there = self.rows >= 0
        image_ids[there] = self._index.images(self.rows[there], ['image_id'])['image_id'].to_pylist()
        return image_ids


class LocalIndex:
    """One version of an index, for notebooks, evaluation and reports; searched in memory unless opened otherwise.

    Example:
        >>> index = LocalIndex.open('my-index')  # doctest: +SKIP
        >>> index.search(codes, k=10, profile={'coarse': 1, 'fine': 2}).image_ids  # doctest: +SKIP
        >>> index.search(codes, k=10, where={'fine': 'cat'}).image_ids  # doctest: +SKIP
    """

    def __init__(self, version: Version, in_memory: bool = True):
        self.version = version
        self.manifest = manifest = version.manifest
        self.spec = manifest.spec
        self.in_memory = in_memory
        self._part_starts = np.cumsum([0, *(file.rows for file in manifest.images)])

    @classmethod
    def open(cls, index: str | PathLike, version: str | None = None, in_memory: bool = True) -> LocalIndex:
        """Open the served version, or a named one.

        Args:
            index: path or uri of the index.
            version: its id.
            in_memory: True reads a table when a search first needs it, and keeps it. False keeps nothing: each search
                reads those row groups that can hold an answer, one file at a time, for an index larger than memory or
                a few queries to one in a bucket.

        Raises:
            InputError: no index there, no such version, or one that this library cannot read.
        """
        return cls(open_version(files.absolute(index), version), in_memory)

    def __len__(self) -> int:
        return self.manifest.rows

    @functools.cached_property
    def sample(self) -> NDArray[np.uint8]:
        """The version's sample of codes, uint8 [S, B]."""
        return code_tables.codes_from_arrow(self.version.read_table(self.manifest.sample, ['code'])['code'])

    @functools.cached_property
    def tables(self) -> MemoryTables:
        """The code tables in memory, each read when a search first needs it."""
        substrings = [table.substring for table in self.manifest.tables]
        return MemoryTables(self.spec, substrings, len(self), self.sample, self._read_table)

    def search(
        self,
        codes: NDArray[np.uint8],
        k: int | None = 10,
        radius: int | None = None,
        profile: Mapping[str, int] | None = None,
        where: Where | None = None,
        exact: bool = True,
        threads: int = 1,
    ) -> SearchResult:
        """The k nearest codes of each query, ranked by (weighted distance, row), as an exhaustive search finds them.

        Args:
            codes: uint8 [Q, B], as `HashModel.encode` makes them.
            k: answers per query; None for all within `radius`.
            radius: largest weighted distance of an answer; None for no limit.
            profile: weight per segment; segments left out weigh 0; None weighs every bit 1.
            where: which images may be answers: an Arrow expression over the columns of `images`, such as
                `pc.field('width') >= 500`, or label values by level, such as `{'fine': ['cat', 'dog']}`.
            exact: False looks only under each query's own values (on demand: in the row groups that have them). This
                finds most near answers at the lowest cost; `SearchResult.exact` tells for which queries they are exact.
            threads: how many threads share the queries.

        Raises:
            InputError: an impossible k, radius or number of threads, an unknown segment, column or label level, or
                codes of another length.
            OSError: a file of the index is missing or damaged; the message names it.
        """
        allowed = None if where is None else self.allowed(where)
        if not isinstance(threads, int) or threads < 1:
            raise InputError(f'threads are {threads}; a whole number of at least 1 is needed')
        check_limits(self.spec, k, radius, profile)
        wanted, k = k, None if k is None else min(k, max(len(self), 1))
        if not self.in_memory:
            plan = plan_search(self.spec, self.manifest.tables, len(self), codes[:0], codes, k, radius, profile)
            chosen = None if allowed is None else lambda rows, file: allowed[self._numbers_of(rows, [file])]
            matches, read = search_on_demand(self.version, plan, chosen, exact)
            complete = np.ones(len(codes), bool) if exact else plan.complete_at_home(matches)
            return self._result(matches, wanted, complete, np.full(len(codes), read.rows))
        found = self.tables.search(codes, k, radius, profile, allowed, exact, threads)
        matches = Matches(found.queries, found.distances, self._rows_of(found.numbers))
        return self._result(matches, wanted, found.exact, found.visited)

    def _result(
        self, matches: Matches, k: int | None, exact: NDArray[np.bool_], visited: NDArray[np.int64]
    ) -> SearchResult:
        """The result of ordered matches."""
        width = k if k is not None else int(matches.ranks.max(initial=-1)) + 1
        distances, rows = np.full((len(exact), width), -1, np.int32), np.full((len(exact), width), -1, np.int64)
        distances[matches.queries, matches.ranks] = matches.distances
        rows[matches.queries, matches.ranks] = matches.rows
        return SearchResult(distances, rows, exact, visited, self)

    def allowed(self, where: Where) -> NDArray[np.bool_]:
        """Which images fulfil a condition (see `search`), bool [N] in the order of the images parts.

        Raises:
            InputError: no such column or label level, or an expression that is not a condition.
        """
        if not isinstance(where, (pc.Expression, Mapping)):
            raise InputError(f'where is {where!r}; give an Arrow expression, or label values by level')
        found = [self._allowed_in(part, where) for part in range(len(self.manifest.images))]
        if isinstance(where, Mapping):
            for level in where:
                if not any(level in levels for _, levels in found):
                    raise InputError(f'where: no image has a label {level}')
        return np.concatenate([allowed for allowed, _ in found])

    def _allowed_in(self, part: int, where: Where) -> tuple[NDArray[np.bool_], set[str]]:
        """Which images of a part fulfil a condition, and the label levels that any of them has."""
        file = self.manifest.images[part]
        if not isinstance(where, pc.Expression):
            labels = self.version.read_table(file, ['labels'])['labels']
            kept = (has_label(labels, level, values) for level, values in where.items())
            levels = {level for chunk in labels.chunks for level in pc.unique(chunk.keys).to_pylist()}
            return functools.reduce(np.logical_and, kept, np.ones(len(labels), bool)), levels
        filesystem, path = files.filesystem(self.version.path(file.path))
        try:
            found = ds.dataset(path, filesystem=filesystem, format='parquet').to_table(columns={'kept': where})['kept']
            if not pa.types.is_boolean(found.type):
                raise pa.ArrowInvalid(f'it gives {found.type}')
            return pc.fill_null(found, False).to_numpy(), set()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as e:
            raise InputError(f'where: {where} is no condition on the images: {e}') from e

    def images(self, rows: NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.Table:
        """What is known of the images in some rows, in the order asked: a table of `code_tables.images_schema`.

        Raises:
            InputError: a row that the index does not have (search results have -1 where there are fewer answers), or no
                such column.
        """
        rows = np.asarray(rows, np.int64)
        names = code_tables.images_schema(self.spec.num_bytes).names
        chosen = names if columns is None else list(columns)
        for name in chosen:
            if name not in names:
                raise InputError(f'images have no column {name!r}; they have {", ".join(names)}')
        if len(rows) and rows.min() < 0:
            raise InputError(f'row {rows.min()} is no row: leave out the places without answer')
        parts = rows >> 32
        sizes = np.diff(self._part_starts)
        there = parts < len(sizes)
        there[there] = (rows & 0xFFFFFFFF)[there] < sizes[parts[there]]
        if not there.all():
            raise InputError(f'row {rows[~there][0]} is no row of this index')
        pieces = [
            read_rows(self.version, self.manifest.images[part], rows[parts == part] & 0xFFFFFFFF, chosen)[0]
            for part in np.unique(parts).tolist()
        ]
        if not pieces:
            return code_tables.images_schema(self.spec.num_bytes).empty_table().select(chosen)
        grouped = np.argsort(parts, kind='stable')
        return pa.concat_tables(pieces).take(np.argsort(grouped))

    def _read_table(self, number: int) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.int64]]]:
        """The runs of a table for `MemoryTables`, a partition at a time."""
        start = 0
        for partition in self.manifest.tables[number].partitions:
            codes, rows = self._read_partition(number, partition)
            yield start, codes, self._numbers_of(rows, partition.files)
            start += len(rows)

    def _read_partition(self, number: int, partition: Partition) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Codes and rows of a partition, in the table's order; each of its files is in order by itself."""
        parts = [self.version.read_table(file, ['code', 'row']) for file in partition.files]
        codes = [code_tables.codes_from_arrow(part['code']) for part in parts]
        rows = [part['row'].to_numpy() for part in parts]
        if len(parts) == 1:
            return codes[0], rows[0]
        all_codes = np.concatenate([np.zeros((0, self.spec.num_bytes), np.uint8), *codes])
        order = np.argsort(self.tables.leading_values(number, all_codes), kind='stable')
        return all_codes[order], np.concatenate([np.zeros(0, np.int64), *rows])[order]

    def _numbers_of(self, rows: NDArray[np.int64], found_in: Sequence[DataFile]) -> NDArray[np.int64]:
        """Number rows (images part << 32 | row in it) from 0 over all parts, as the tables in memory do."""
        numbers = np.empty(len(rows), np.int64)
        if not multi_index.number_rows(rows, self._part_starts, numbers):
            names = ', '.join(self.version.path(file.path) for file in found_in)
            raise OSError(f'{names}: rows that no images part has')
        return numbers

    def _rows_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Inverse of `_numbers_of`."""
        parts = np.searchsorted(self._part_starts, numbers, side='right') - 1
        return (parts << 32) + numbers - self._part_starts[parts]


def has_label(labels: pa.ChunkedArray, level: str, values: str | Sequence[str]) -> NDArray[np.bool_]:
    """Which images have one of some label values at a level, from their `labels` column: bool [N]."""
    wanted: Any = pa.array([values] if isinstance(values, str) else list(values), pa.string())
    found = pc.map_lookup(labels, query_key=pa.scalar(level, pa.string()), occurrence='first').combine_chunks()
    has = np.zeros(len(labels), bool)
    parents = pc.list_parent_indices(found).to_numpy()
    has[parents[pc.is_in(pc.list_flatten(found), value_set=wanted).to_numpy(zero_copy_only=False)]] = True
    return has
