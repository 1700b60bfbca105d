"""The part of a build that comes after encoding: images parts -> key histograms -> layout -> partition files.

Pure functions over files and arrays; `job.py` wires them into a Beam job.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashing_model.codes.spec import CodeSpec
from pipelines import files
from pipelines.build.base import Origin
from pipelines.build.config import BuildConfig
from pipelines.build.stats import Work
from pipelines.encoding.ids import id_hashes
from pipelines.index import code_tables, layout, versions
from pipelines.index.code_tables import CodeRows
from pipelines.index.manifest import DataFile
from pipelines.jobs.blocks import READING_THREADS, Block, get_blocks, put_blocks

SAMPLE_ROWS = 65_536

PartitionKey = tuple[int, int, int]  # table, prefix number, file number
WrittenPartition = tuple[int, str, DataFile, Work]  # table, prefix


@dataclasses.dataclass(frozen=True)
class Part:
    """A unit that is finished: its files, its counts, what it was made from, what needed no encoding, and its work.

    `taken_over` tells whether the whole unit was taken over from the base; if not, `reused` images were. `sums` are
    those of `encode.Measures`.
    """

    number: int
    images: DataFile
    rejects: DataFile | None
    records_read: int
    reasons: dict[str, int]
    origin: Origin
    taken_over: bool = False
    reused: int = 0
    encoding: Work | None = None
    finishing: Work | None = None
    sums: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TableLayout:
    """A table's substring, its prefixes, and how many files each prefix gets."""

    substring: layout.Substring
    prefixes: tuple[str, ...]
    part_counts: NDArray[np.int64]


def keep_sample(images: pa.Table) -> pa.Table:
    """The SAMPLE_ROWS images with the smallest hashes of ids, in that order: rows of `code_tables.sample_schema`.

    The next version's sample has the same images, as far as it still has them. The first rows alone are a uniform
    sample too.
    """
    hashes, rows = id_hashes(images['image_id']), images['row'].to_numpy()
    least = np.arange(len(rows))
    if len(rows) > SAMPLE_ROWS:
        least = np.flatnonzero(hashes <= np.partition(hashes, SAMPLE_ROWS - 1)[SAMPLE_ROWS - 1])
    order = least[np.lexsort((rows[least], hashes[least]))[:SAMPLE_ROWS]]
    return images.take(pa.array(order))


def read_part(part: Part, config: BuildConfig) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Codes uint8 [N, B] and row numbers int64 [N] of an images part."""
    codes = code_tables.codes_from_arrow(config.index_version.read_table(part.images, ['code'])['code'])
    return codes, layout.row_numbers(part.number, len(codes))


def sample_part(part: Part, config: BuildConfig) -> pa.Table:
    """A part's share of the sample."""
    schema = code_tables.sample_schema(config.spec.num_bytes)
    images = config.index_version.read_table(part.images, ['code', 'image_id', 'labels'])
    rows = pa.array(layout.row_numbers(part.number, len(images)))
    return keep_sample(images.append_column('row', rows).select(schema.names).cast(schema))


def read_run(parts: Iterable[Part], config: BuildConfig) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Codes uint8 [N, B] and row numbers int64 [N], ascending, of a run of parts."""
    with ThreadPoolExecutor(READING_THREADS) as pool:
        read = list(pool.map(lambda part: read_part(part, config), sorted(parts, key=lambda p: p.number)))
    codes, rows = (np.concatenate(arrays) for arrays in zip(*read, strict=True))
    return codes, rows


def count_keys(
    element: tuple[int, Iterable[Part]], config: BuildConfig, rows: int
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The key histogram of each table over one run of parts: (table, histogram)."""
    codes, _ = read_run(element[1], config)
    for table, substring in enumerate(layout.cut_substrings(config.spec, rows)):
        yield table, layout.key_histogram(layout.substring_keys(codes, substring), substring.bits)


def lay_out(element: tuple[int, NDArray[np.int64]], config: BuildConfig, rows: int) -> tuple[int, TableLayout]:
    """Prefixes and file counts of a table from the histogram of all its keys."""
    table, histogram = element
    prefixes = layout.cut_prefixes(histogram, config.partition_rows)
    counts = layout.part_counts(histogram, prefixes, config.partition_rows)
    return table, TableLayout(layout.cut_substrings(config.spec, rows)[table], prefixes, counts)


def in_order(numbered: Iterable[tuple[int, TableLayout]]) -> list[TableLayout]:
    """Layouts in order of their table's number."""
    return [found for _, found in sorted(numbered, key=lambda element: element[0])]


def cut_codes(
    element: tuple[int, Iterable[Part]], config: BuildConfig, tables: Sequence[TableLayout]
) -> Iterator[tuple[PartitionKey, tuple[int, Block]]]:
    """The codes of one run of parts by partition file, ((table, prefix number, file number), (run number, block))."""
    run, parts = element
    codes, rows = read_run(parts, config)
    for table in range(len(tables)):
        batches = (
            (key, rows_batch(codes.take(places, axis=0), rows[places]))
            for key, places in partition_places(codes, rows, table, tables[table])
        )
        uri = config.index_version.path(f'{versions.STAGING_FOLDER}/codes-{run:05d}-{table}.arrow')
        for key, block in put_blocks(uri, batches):
            yield key, (run, block)


def rows_batch(codes: NDArray[np.uint8], rows: NDArray[np.int64]) -> pa.RecordBatch:
    """Codes uint8 [N, B] and row numbers int64 [N] as rows of `rows_schema`."""
    columns = [pa.array(rows), code_tables.codes_to_arrow(codes)]
    return pa.RecordBatch.from_arrays(columns, ['row', 'code'])


def rows_schema(spec: CodeSpec) -> pa.Schema:
    """The schema of codes with their row numbers, on the way from images parts to partitions."""
    return pa.schema([('row', pa.int64()), ('code', pa.binary(spec.num_bytes))])


def partition_places(
    codes: NDArray[np.uint8], rows: NDArray[np.int64], table: int, table_layout: TableLayout
) -> Iterator[tuple[PartitionKey, NDArray[np.int64]]]:
    """The partition files of one table that get some of N codes, and which, as ascending indices."""
    substring, counts = table_layout.substring, table_layout.part_counts
    leaves = layout.prefix_numbers(layout.substring_keys(codes, substring), substring.bits, table_layout.prefixes)
    numbers = np.zeros(len(rows), np.int64)
    shared = np.flatnonzero(counts[leaves] > 1)
    numbers[shared] = layout.mix(rows[shared]) % counts[leaves[shared]].astype(np.uint64)
    firsts = np.cumsum(counts) - counts  # files of all leaves numbered through
    for file, places in layout.groups_of(firsts[leaves] + numbers):
        leaf = int(np.searchsorted(firsts, file, side='right')) - 1
        yield (table, leaf, file - int(firsts[leaf])), places


def write_partition(
    element: tuple[PartitionKey, Iterable[tuple[int, Block]]], config: BuildConfig, tables: Sequence[TableLayout]
) -> Iterator[WrittenPartition]:
    """Sort the blocks of one partition file by key and row and write it."""
    started = time.time()
    (table, leaf, number), blocks = element
    substring, prefix = tables[table].substring, tables[table].prefixes[leaf]
    codes, rows = gather_blocks(blocks, config.spec)
    keys = layout.substring_keys(codes, substring)
    order = layout.key_order(keys, substring.bits)  # rows are ascending: equal keys stay so
    content = CodeRows(keys[order], codes.take(order, axis=0), rows[order]).to_table()
    name = versions.codes_path(table, prefix, number)
    written = files.table_bytes(content, **code_tables.PARTITION_OPTIONS)
    file = config.index_version.write(name, len(content), written)
    yield table, prefix, file, Work(started, time.time())


def gather_blocks(blocks: Iterable[tuple[int, Block]], spec: CodeSpec) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Codes uint8 [N, B] and row numbers int64 [N], ascending, of (run number, block of `cut_codes`)."""
    _, found = zip(*sorted(blocks, key=lambda block: block[0]), strict=True)
    batches = get_blocks(found, rows_schema(spec))
    codes = np.concatenate([code_tables.codes_from_arrow(batch['code']) for batch in batches])
    return codes, np.concatenate([batch['row'].to_numpy() for batch in batches])
