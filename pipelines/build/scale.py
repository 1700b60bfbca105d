"""The scale plan: what an index of a given size costs to build, to store and to query, before anything is built.

    grainhash plan --images 10M 1B 10B --bits 64

Layout, radii and file sizes come from the functions that builds and queries use, for codes that are spread evenly.
Seconds and bytes of memory come from measurements; each constant says of what. `cli/plan.py` prints plans.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from pipelines import files
from pipelines.build.config import PARTITION_ROWS
from pipelines.build.id_buckets import id_buckets
from pipelines.build.part_runs import RUN_ROWS, count_runs
from pipelines.build.partitions import SAMPLE_ROWS, rows_schema
from pipelines.encoding.code_files import UNIT_ROWS
from pipelines.encoding.ids import IDS
from pipelines.index import code_tables, layout, versions
from pipelines.index.code_tables import CodeRows
from pipelines.index.manifest import DataFile, Manifest, Partition, Table
from pipelines.inputs.shards import MAX_UNIT_ROWS
from pipelines.jobs.blocks import INLINE_BYTES, THREADS
from pipelines.requests import option, set_fields, spec_of

# Measured on 2 shared cores of an Intel Xeon with python 3.11, beam 2.77, pyarrow 25, numpy 2.4, November 2026.
#
# CPU seconds (user and system) of builds of `python -m benchmarks.build_codes`: 15.4 for 10 million and 4.8 for 2
# million codes of 64 bits (3 tables each), 24.7 and 7.3 for 128 bits (6 and 7 tables), 2.2 of each for starting; 22.1
# and 30.1 for 10 million of 128 bits in 4 and 8 tables, on a busy machine. These figures fit them within 8 %.
ROW_SECONDS, CODE_BYTE_SECONDS = 0.4e-6, 0.04e-6  # of a row: read, its id compared, its images part written
TABLE_ROW_SECONDS = 0.2e-6  # of a row, in every table: cut, sorted, written
# Making, coding and gathering a block of 1 to 20 rows took 37 to 39 us; a GroupByKey some 4 us for an element.
BLOCK_SECONDS = 42e-6
# Whole builds of 789 emoji: `python -m benchmarks.build --images examples/catalogue/index-fluent-0000[01].tar.gz
# --rounds 1`, at 224 px.
IMAGES_PER_CORE_SECOND = 37.0
# Most memory of whole builds of 10 million codes in files of 5 million rows, two at once: 1.39 GB for 64 bits, 2.08 GB
# for 128; in files of 1.25 million rows, where reading 2 million rows takes most: 0.98 and 1.10 GB.
CODES_WORKER_BYTES = 0.27e9  # before it has any rows
IMAGES_WORKER_BYTES = 1.0e9  # with the default model loaded and at work on one thread at 224 px
SORTED_ROW_BYTES, SORTED_CODE_BYTES = 43, 8.6  # of a row that is sorted and written, and for each byte of its code
READ_ROW_BYTES = 400  # of a row of codes that are read
COMPARED_ID_BYTES = 46  # 4 million ids in a bucket, 167 MB more than before; row numbers have 4 bytes more since
# 2 million rows of a run of small parts: 222 MB to split their ids; 180 MB to cut codes of 64 bits, 323 of 256.
SPLIT_ID_BYTES, CUT_ROW_BYTES, CUT_CODE_BYTES = 112, 66, 3
# Bytes of a row of images parts without its code: the embedded catalogue's 3,195 rows, with labels and captions; and
# of `benchmarks.build_codes`.
IMAGE_ROW_BYTES, CODES_ROW_BYTES = 48, 10
ID_LETTERS = 16
REFERENCE_BYTES = 106  # of an element that names a block in a bucket, as Beam codes it
ELEMENT_BYTES = 20  # of an element around a block that it holds
# A unit's own elements, pickled: what it reads, where it waits (721 bytes) and its ids do, its finished part (655).
UNIT_SHUFFLED_BYTES = 2_000

NEIGHBOURS = 10  # nearest answers asked for
QUERIES = 1000  # asked at once
CLUSTER_ROWS, FLIPPED = 200, 0.06  # as the benchmarks draw codes
SAMPLED_ROWS = 4 * files.ROW_GROUP_ROWS  # written to see what a row takes


@dataclasses.dataclass(frozen=True)
class Scale:
    """What is to be built.

    Args:
        rows: images, all indexed.
        spec: the code spec.
        from_codes: whether codes are given, so that nothing is decoded and encoded.
        unit_rows: records of a work unit; None for as many as builds put in one of Parquet.
        partition_rows: rows a partition file should not exceed.
        images_per_core_second: how many images one core reads, decodes and encodes per second.
    """

    rows: int
    spec: CodeSpec
    from_codes: bool = False
    unit_rows: int | None = None
    partition_rows: int = PARTITION_ROWS
    images_per_core_second: float = IMAGES_PER_CORE_SECOND

    def __post_init__(self) -> None:
        """Raises InputError where there is nothing to plan."""
        for name in ('rows', 'unit_rows', 'partition_rows', 'images_per_core_second'):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f'{name.replace("_", " ")} are {value:g}; more than 0 are needed')

    @property
    def units(self) -> int:
        """Work units, each with its images part."""
        return math.ceil(self.rows / (self.unit_rows or (UNIT_ROWS if self.from_codes else MAX_UNIT_ROWS)))

    @property
    def rows_per_unit(self) -> int:
        """Rows of an images part."""
        return math.ceil(self.rows / self.units)

    @property
    def runs(self) -> int:
        """Runs of units whose ids and codes are sent together."""
        return count_runs(self.units, self.rows_per_unit)

    @property
    def substrings(self) -> tuple[layout.Substring, ...]:
        """One per table."""
        return layout.cut_substrings(self.spec, self.rows)


@dataclasses.dataclass(frozen=True)
class TableScale:
    """One table: its substring, partitions, files, rows of the largest file, bytes of all, most files of a prefix."""

    substring: layout.Substring
    partitions: int
    files: int
    file_rows: int
    bytes: float
    files_per_prefix: int


def plan_tables(scale: Scale) -> list[TableScale]:
    """The tables of evenly spread codes."""
    return [_plan_table(scale, substring) for substring in scale.substrings]


def _plan_table(scale: Scale, substring: layout.Substring) -> TableScale:
    histogram = even_histogram(scale.rows, substring.bits)
    prefixes = layout.cut_prefixes(histogram, scale.partition_rows)
    counts = layout.part_counts(histogram, prefixes, scale.partition_rows)
    rows = layout.prefix_rows(histogram, prefixes)
    return TableScale(
        substring,
        partitions=len(prefixes),
        files=int(counts[rows > 0].sum()),
        file_rows=int(np.ceil(rows / counts).max()),
        bytes=scale.rows * table_row_bytes(scale, substring, int(np.ceil(rows / counts).max())),
        files_per_prefix=int(counts.max()),
    )


def even_histogram(rows: int, bits: int) -> NDArray[np.int64]:
    """What `layout.key_histogram` counts of `rows` codes that are spread as evenly as they can be.

    >>> even_histogram(6, 2).tolist()
    [1, 2, 1, 2]
    """
    values = 1 << min(bits, layout.HISTOGRAM_BITS)
    return np.diff(np.arange(values + 1) * rows // values)


def table_row_bytes(scale: Scale, substring: layout.Substring, file_rows: int) -> float:
    """Bytes of a row in a partition file of so many rows, by writing the beginning of one with random keys and rows."""
    rng = np.random.default_rng(0)
    count = min(file_rows, SAMPLED_ROWS)
    values = max(round(count * 2**substring.bits / scale.rows), 1)  # under which so many rows are
    keys = rng.integers(values, size=count)
    rows = (rng.integers(scale.units, size=count) << 32) + rng.integers(scale.rows_per_unit, size=count)
    codes = np.zeros((count, scale.spec.num_bytes), np.uint8)  # stored as they are, whatever they are
    content = files.table_bytes(CodeRows.sorted(keys, codes, rows).to_table(), **code_tables.PARTITION_OPTIONS)
    return len(content) / count


def images_bytes(scale: Scale) -> float:
    """Bytes of all images parts."""
    return scale.rows * ((CODES_ROW_BYTES if scale.from_codes else IMAGE_ROW_BYTES) + scale.spec.num_bytes)


def manifest_bytes(scale: Scale, tables: Sequence[TableScale]) -> int:
    """Bytes of the manifest, from those of manifests with no file, one images part, and one partition."""
    listed = DataFile('', scale.rows_per_unit, round(images_bytes(scale) / scale.units), 'f' * 32)
    image = dataclasses.replace(listed, path=versions.images_path(scale.units))
    path = versions.codes_path(0, '0' * layout.HISTOGRAM_BITS, 0)
    partition = Partition(0, '0' * layout.HISTOGRAM_BITS, (dataclasses.replace(listed, path=path),))

    def size(images: Sequence[DataFile] = (), partitions: Sequence[Partition] = ()) -> int:
        of_tables = [Table(t.substring, (1 / 3,) * (t.substring.bits + 1), ()) for t in tables]
        of_tables[0] = dataclasses.replace(of_tables[0], partitions=tuple(partitions))
        made = Manifest('', '', scale.spec, {}, tuple(of_tables), tuple(images), (), listed, {}, {}, listed)
        return len(made.dumps())

    partitions = sum(t.files for t in tables)
    return size() + scale.units * (size([image]) - size()) + partitions * (size((), [partition]) - size())


# What is shuffled


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Blocks of rows between two steps (`pipelines/jobs/blocks.py`).

    Args:
        count: how many, each an element of a GroupByKey.
        rows: in each.
        shuffled: bytes that the runner shuffles.
        staged: bytes that wait in files instead; then each block is read by itself.
    """

    count: float
    rows: float
    shuffled: float
    staged: float

    @classmethod
    def cut(cls, units: int, rows: int, groups: int, batch: Callable[[int], pa.RecordBatch]) -> Blocks:
        """The blocks of some units whose rows are spread over groups at random.

        Args:
            units, rows: work units, or runs of them, and rows of each.
            groups: partition files of a table, or buckets of ids.
            batch: a batch of rows as it is sent, to measure its size.
        """
        reached = groups * -math.expm1(rows * math.log1p(-1 / groups)) if groups > 1 else 1.0
        size = batch(math.ceil(rows / reached)).serialize().size
        if reached * size <= INLINE_BYTES:
            return cls(units * reached, rows / reached, units * reached * (size + ELEMENT_BYTES), 0)
        return cls(units * reached, rows / reached, units * reached * REFERENCE_BYTES, units * reached * size)


def id_blocks(scale: Scale) -> Blocks:
    """Ids on their way to the buckets in which duplicates are found, from runs of units."""

    def batch(rows: int) -> pa.RecordBatch:
        columns = [pa.array(np.zeros(rows, np.int64)), pa.array(['x' * ID_LETTERS] * rows)]
        return pa.RecordBatch.from_arrays(columns, schema=IDS)

    return Blocks.cut(scale.runs, math.ceil(scale.rows / scale.runs), id_buckets(scale.rows), batch)


def code_blocks(scale: Scale, tables: Sequence[TableScale]) -> list[Blocks]:
    """Codes on their way to the partition files of each table, from runs of units."""
    schema = rows_schema(scale.spec)

    def batch(rows: int) -> pa.RecordBatch:
        codes = code_tables.codes_to_arrow(np.zeros((rows, scale.spec.num_bytes), np.uint8))
        return pa.RecordBatch.from_arrays([pa.array(np.zeros(rows, np.int64)), codes], schema=schema)

    return [Blocks.cut(scale.runs, math.ceil(scale.rows / scale.runs), table.files, batch) for table in tables]


# What a query visits


def expected_candidates(scale: Scale, cluster_rows: int = 0) -> float:
    """The mean number of rows that each of `QUERIES` queries for `NEIGHBOURS` answers visits.

    The distance of the last answer is taken as known.

    The model: codes lie around uniform centres, so many around each, from which `FLIPPED` of their bits differ, and
    queries are such codes. Segments weigh 1 each. Radii are chosen as `SearchPlan` does.

    Args:
        scale: what is asked.
        cluster_rows: codes around a centre; 0 for uniform codes.
    """
    rows, bits, tables = scale.rows, scale.spec.bits, scale.substrings
    near = min(cluster_rows / rows, 1)
    shares = [near * _within(s.bits, 2 * FLIPPED * (1 - FLIPPED)) + (1 - near) * _within(s.bits, 0.5) for s in tables]
    costs = [
        layout.probe_costs(share.tolist(), s.bits, rows)
        + layout.reading_costs(s.bits, rows, files.ROW_GROUP_ROWS, QUERIES)
        for share, s in zip(shares, tables, strict=True)
    ]
    expected = 0.0
    for flips, chance in enumerate(_binomial(bits, FLIPPED)):  # of a query's own bits
        of_cluster = np.cumsum(np.convolve(_binomial(bits - flips, FLIPPED), _binomial(flips, 1 - FLIPPED)))
        within = rows * (near * of_cluster + (1 - near) * _within(bits, 0.5))
        bound = int(np.searchsorted(within, min(NEIGHBOURS, rows) * (1 - 1e-9)))
        radii = layout.choose_radii(costs, [1] * len(tables), bound, float(costs[0][-1]))
        visited = sum(float(share[r]) for share, r in zip(shares, radii, strict=True) if r != layout.NOT_PROBED)
        expected += chance * rows * visited
    return expected


def _binomial(bits: int, chance: float) -> NDArray[np.float64]:
    """Chances of 0, 1, ..., bits."""
    return np.array([math.comb(bits, n) * chance**n * (1 - chance) ** (bits - n) for n in range(bits + 1)])


def _within(bits: int, chance: float) -> NDArray[np.float64]:
    """Chances of at most 0, 1, ..., bits."""
    return np.minimum(np.cumsum(_binomial(bits, chance)), 1)


# All of it


@dataclasses.dataclass(frozen=True)
class ScalePlan:
    """What a `Scale` costs, part by part."""

    scale: Scale
    tables: list[TableScale]
    ids: Blocks
    codes: list[Blocks]
    manifest_bytes: int
    uniform_candidates: float
    clustered_candidates: float

    @classmethod
    def of(cls, scale: Scale) -> ScalePlan:
        """Plan everything."""
        tables = plan_tables(scale)
        return cls(
            scale,
            tables,
            id_blocks(scale),
            code_blocks(scale, tables),
            manifest_bytes(scale, tables),
            expected_candidates(scale),
            expected_candidates(scale, CLUSTER_ROWS),
        )

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values: bytes, core-hours, and how many there are of what."""
        scale = self.scale
        return {
            'images': scale.rows,
            'segments': {segment.name: segment.bits for segment in scale.spec.segments},
            'units': scale.units,
            'tables': [
                {'bits': t.substring.bits, 'partitions': t.partitions, 'files': t.files, 'file_rows': t.file_rows}
                for t in self.tables
            ],
            'table_files': self.table_files,
            'table_bytes': round(self.table_bytes),
            'images_bytes': round(images_bytes(scale)),
            'manifest_bytes': self.manifest_bytes,
            'stored_bytes': round(self.stored_bytes),
            'staged_bytes': round(self.staged_bytes),
            'shuffled_bytes': round(self.shuffled_bytes),
            'encoding_core_hours': round(self.encoding_hours, 3),
            'indexing_core_hours': round(self.indexing_hours, 3),
            'worker_bytes': round(self.worker_bytes),
            'uniform_candidates': round(float(self.uniform_candidates), 1),
            'clustered_candidates': round(float(self.clustered_candidates), 1),
        }

    @property
    def blocks(self) -> list[Blocks]:
        """Of ids and of every table."""
        return [self.ids, *self.codes]

    @property
    def table_files(self) -> int:
        """Partition files of all tables."""
        return sum(table.files for table in self.tables)

    @property
    def table_bytes(self) -> float:
        """Bytes of all tables."""
        return sum(table.bytes for table in self.tables)

    @property
    def stored_bytes(self) -> float:
        """Bytes of the version without its model, its rejects and the list of its inputs."""
        sample = min(self.scale.rows, SAMPLE_ROWS) * (
            images_bytes(self.scale) / self.scale.rows + 8
        )  # with row numbers
        return self.table_bytes + images_bytes(self.scale) + self.manifest_bytes + sample

    @property
    def shuffled_bytes(self) -> float:
        """Bytes that the runner shuffles, without histograms and samples."""
        return self.scale.units * UNIT_SHUFFLED_BYTES + sum(b.shuffled for b in self.blocks)

    @property
    def staged_bytes(self) -> float:
        """Bytes of files that are written on the way and deleted: images parts with duplicates, and blocks."""
        return images_bytes(self.scale) + sum(b.staged for b in self.blocks)

    @property
    def staged_files(self) -> int:
        """How many files these are: images and rejects of each unit, and ids and codes by table of each run."""
        return self.scale.units * 2 + self.scale.runs * sum(b.staged > 0 for b in self.blocks)

    @property
    def compared_bytes(self) -> float:
        """Memory of a bucket of ids in which duplicates are found."""
        return self.scale.rows / id_buckets(self.scale.rows) * COMPARED_ID_BYTES

    @property
    def range_reads(self) -> float:
        """Requests for blocks in files."""
        return sum(b.count for b in self.blocks if b.staged)

    @property
    def encoding_hours(self) -> float:
        """Core-hours of reading, decoding and encoding images."""
        return 0 if self.scale.from_codes else self.scale.rows / self.scale.images_per_core_second / 3600

    @property
    def indexing_hours(self) -> float:
        """Core-hours of everything else, without waiting for files."""
        scale = self.scale
        per_row = ROW_SECONDS + CODE_BYTE_SECONDS * scale.spec.num_bytes + TABLE_ROW_SECONDS * len(self.tables)
        return (scale.rows * per_row + sum(b.count for b in self.blocks) * BLOCK_SECONDS) / 3600

    @property
    def worker_bytes(self) -> float:
        """Bytes of memory of a worker process with one core: without any rows, and in the step that holds most."""
        scale = self.scale
        sorting = max(t.file_rows for t in self.tables) * (SORTED_ROW_BYTES + SORTED_CODE_BYTES * scale.spec.num_bytes)
        reading = scale.rows_per_unit * READ_ROW_BYTES if scale.from_codes else 0
        of_run = max(SPLIT_ID_BYTES, CUT_ROW_BYTES + CUT_CODE_BYTES * scale.spec.num_bytes)
        in_run = min(scale.rows, max(RUN_ROWS, scale.rows_per_unit)) * of_run
        base = CODES_WORKER_BYTES if scale.from_codes else IMAGES_WORKER_BYTES
        return base + max(THREADS * sorting, THREADS * self.compared_bytes, THREADS * in_run, reading)


# The command


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """What to plan, before it is built.

    Args:
        images: how many images, one plan for each.
        segments: bits per segment, as a code spec or `NAME=BITS,...`; the default ones if None.
        codes: plan builds from codes, so that no image is encoded.
        unit_rows: images per shard, or per work unit of large shards; None for as many as builds take.
        partition_rows: rows a partition file should not exceed.
        images_per_core_second: what one core encodes; None for what was measured.
        workers: cores that share the work; None leaves out how long they take.
        core_hour_price: of a core with its memory, in any currency; None leaves out money.

    Raises:
        InputError: a number that is not possible.
    """

    images: int | Sequence[int]
    segments: str | CodeSpec | None = None
    codes: bool = False
    unit_rows: int | None = None
    partition_rows: int = PARTITION_ROWS
    images_per_core_second: float | None = None
    workers: int | None = None
    core_hour_price: float | None = None

    def __post_init__(self) -> None:
        set_fields(self, images=(self.images,) if isinstance(self.images, int) else tuple(self.images))
        if self.codes and self.images_per_core_second:
            raise InputError('--images-per-core-second does not go with --codes: they are not encoded')
        for name in ('workers', 'core_hour_price'):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f'{option(name)} is {value:g}; more than 0 is needed')
        self.scales  # noqa: B018 - raises what is wrong with one

    @property
    def scales(self) -> list[Scale]:
        """What is to be built, for each number of images."""
        spec, rate = spec_of(self.segments), self.images_per_core_second or IMAGES_PER_CORE_SECOND
        images = [self.images] if isinstance(self.images, int) else self.images
        return [Scale(rows, spec, self.codes, self.unit_rows, self.partition_rows, rate) for rows in images]


def plan(request: PlanRequest) -> list[ScalePlan]:
    """What indexes of some sizes take to build, to keep and to ask; a plan for each."""
    return [ScalePlan.of(scale) for scale in request.scales]
