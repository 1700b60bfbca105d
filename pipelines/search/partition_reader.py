"""Reading only the row groups and columns of a version's Parquet files that are needed, and counting how much that was.

Row groups of code tables are chosen by their statistics of `key`; those of images by the rows wanted, or by their
statistics of `image_id`. The query job and the on-demand search both use this module.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import files
from pipelines.index import code_tables
from pipelines.index.code_tables import CodeRows
from pipelines.index.layout import Substring, intervals_near, substring_keys
from pipelines.index.manifest import DataFile
from pipelines.index.versions import REMOVED, Version

CODE_COLUMNS = ('code', 'row')  # the key is in the code: computing it takes as long as decoding it, and reads less
FOOTER_BYTES = 65_536  # what Arrow reads at the end of a file at first


@dataclasses.dataclass(frozen=True)
class Amount:
    """How much was read.

    Args:
        bytes: bytes requested from the filesystem: footers, and column chunks as they are stored.
        row_groups, rows, files: how many of each columns were read from; a file of which only the footer was read does
            not count.
    """

    bytes: int = 0
    row_groups: int = 0
    rows: int = 0
    files: int = 0

    def __add__(self, other: Amount) -> Amount:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Amount(*(a + b for a, b in pairs))


def read_near(
    version: Version, file: DataFile, substring: Substring, query_keys: NDArray[np.int64], radii: NDArray[np.int64]
) -> tuple[CodeRows, Amount]:
    """Read the row groups of a partition file in which some query may have an answer, as one run of rows.

    Args:
        version, file: of an index, and one of its partition files.
        substring: the table's.
        query_keys, radii: int64 [Q], the queries' values of the substring, and how many of its bits may differ.

    Raises:
        OSError: see `opened`.
    """
    with opened(version, file) as parquet:
        lows, highs = key_ranges(parquet.metadata, substring.bits)
        groups = np.flatnonzero(intervals_near(query_keys, radii, lows, highs)).tolist()
        table, amount = _read_groups(parquet, file, groups, CODE_COLUMNS)
        codes = code_tables.codes_from_arrow(table['code'])
    return CodeRows(substring_keys(codes, substring), codes, table['row'].to_numpy()), amount


def read_rows(
    version: Version, file: DataFile, rows: NDArray[np.int64], columns: Sequence[str]
) -> tuple[pa.Table, Amount]:
    """Read some rows of a file, in the order asked; only row groups that hold any of them are read.

    Args:
        version, file: of an index, and one of its files.
        rows: int64 [R], numbers of rows in the file; they may repeat.
        columns: names of columns.

    Raises:
        OSError: see `opened`.
    """
    with opened(version, file) as parquet:
        sizes = np.array([parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)], np.int64)
        group_of = np.searchsorted(np.cumsum(sizes), rows, side='right')
        groups = np.unique(group_of)
        table, amount = _read_groups(parquet, file, groups.tolist(), columns)
        skipped = np.where(np.isin(np.arange(len(sizes)), groups), 0, sizes)
        return table.take(rows - np.cumsum(skipped)[group_of]), amount


def find_texts(
    version: Version, file: DataFile, column: str, texts: pa.Array, ordered: Sequence[str]
) -> tuple[NDArray[np.int64], Amount]:
    """Find the rows of a file that hold some texts; only row groups whose range of texts includes any of them are read.

    Args:
        version, file: of an index, and one of its files.
        column: the column of texts, without nulls; of equal texts the first is found.
        texts: what to find, T texts.
        ordered: the same in ascending order.

    Returns:
        The row number of each text in the file, -1 where there is none, int64 [T]; how much was read.

    Raises:
        OSError: see `opened`.
    """
    with opened(version, file) as parquet:
        groups = [
            group
            for group, (least, greatest) in enumerate(text_ranges(parquet.metadata, column))
            if least is None or bisect.bisect_left(ordered, least) < bisect.bisect_right(ordered, greatest)
        ]
        table, amount = _read_groups(parquet, file, groups, [column])
        sizes = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
    firsts = np.cumsum([0, *sizes])
    rows = np.concatenate([*(np.arange(firsts[g], firsts[g + 1]) for g in groups), [-1]])
    return rows[pc.fill_null(pc.index_in(texts, table[column]), -1).to_numpy()], amount


def read_all(version: Version, file: DataFile, columns: Sequence[str]) -> tuple[pa.Table, Amount]:
    """Whole columns of a file.

    Raises:
        OSError: see `opened`.
    """
    with opened(version, file) as parquet:
        return _read_groups(parquet, file, range(parquet.num_row_groups), columns)


@contextlib.contextmanager
def opened(version: Version, file: DataFile) -> Iterator[pq.ParquetFile]:
    """An open Parquet file of a version. Neighbouring ranges are read together, which saves requests to a bucket.

    Raises:
        OSError: the file is missing, damaged, or has other rows than the manifest says; the message names it.
    """
    uri = version.path(file.path)
    filesys, path = files.filesystem(uri)
    try:
        with filesys.open_input_file(path) as stream:
            parquet = pq.ParquetFile(stream, pre_buffer=True)
            if parquet.metadata.num_rows == file.rows:
                yield parquet
                return
    except (pa.ArrowInvalid, OSError) as e:
        reason = REMOVED if version.was_removed(e) else e
        raise OSError(f'cannot read {uri}: {reason}') from e
    raise OSError(f'{uri} has {parquet.metadata.num_rows} rows; the manifest says {file.rows}')


def key_ranges(metadata: pq.FileMetaData, bits: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The least and greatest key of each row group, int64 [G] each.

    The whole range of `bits` bits if the file has no statistics.
    """
    place = metadata.schema.to_arrow_schema().get_field_index('key')
    noted = [metadata.row_group(g).column(place).statistics for g in range(metadata.num_row_groups)]
    ranges = [(s.min, s.max) if s is not None and s.has_min_max else (0, (1 << bits) - 1) for s in noted]
    lows, highs = np.array(ranges, np.int64).reshape(-1, 2).T
    return lows, highs


def text_ranges(metadata: pq.FileMetaData, column: str) -> Iterator[tuple[str | None, str]]:
    """The least and greatest text of each row group; None if the file has no statistics."""
    place = [metadata.schema.column(i).path for i in range(metadata.num_columns)].index(column)
    for group in range(metadata.num_row_groups):
        noted = metadata.row_group(group).column(place).statistics
        yield (noted.min, noted.max) if noted is not None and noted.has_min_max else (None, '')


def _read_groups(
    parquet: pq.ParquetFile, file: DataFile, groups: Sequence[int], columns: Sequence[str]
) -> tuple[pa.Table, Amount]:
    table = parquet.read_row_groups(list(groups), columns=list(columns))
    footer = footer_bytes(parquet.metadata.serialized_size, file.bytes)
    chunks = chunk_bytes(parquet.metadata, groups, columns)
    return table, Amount(footer + chunks, len(groups), len(table), int(len(groups) > 0))


def footer_bytes(metadata_bytes: int, file_bytes: int) -> int:
    """How many bytes Arrow reads to open a file: its last 64 KiB, and again all metadata if they are larger."""
    first = min(FOOTER_BYTES, file_bytes)
    return first if metadata_bytes + 8 <= first else first + metadata_bytes


def chunk_bytes(metadata: pq.FileMetaData, groups: Iterable[int], columns: Sequence[str]) -> int:
    """The stored bytes of some columns, with all fields in them, of some row groups."""
    paths = [metadata.schema.column(i).path.split('.')[0] for i in range(metadata.num_columns)]
    chosen = [i for i, name in enumerate(paths) if name in columns]
    return sum(metadata.row_group(g).column(i).total_compressed_size for g in groups for i in chosen)
