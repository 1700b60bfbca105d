"""The part of a build that comes after encoding: images parts -> key histograms -> layout -> partitions -> manifest.

Pure functions over files and arrays; `build_index.py` wires them into a Beam job.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import importlib.metadata
import logging
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashing_model.code_spec import CodeSpec
from hashing_model.errors import BuildError, InputError
from pipelines.base_version import CHANGES, CODING_LIBRARIES, UNSETTLED, Origin
from pipelines.blocks import READING_THREADS, Block, get_blocks, put_blocks
from pipelines.build_stats import Stage, Work, write_stats
from pipelines.duplicates import id_hashes
from pipelines.gate import Limits, enforce, judge
from pipelines.index import code_tables, files, layout, versions
from pipelines.index.code_tables import INPUTS, UNITS, CodeRows
from pipelines.index.current import Current
from pipelines.index.manifest import DataFile, Manifest, Partition, Table
from pipelines.index.plan import selectivity
from pipelines.prune_index import prune_behind
from pipelines.records import DUPLICATE_ID
from pipelines.shards import InputFile, ReadOptions

SAMPLE_ROWS = 65_536
PARTITION_ROWS = 2_000_000

log = logging.getLogger(__name__)

PartitionKey = tuple[int, int, int]  # table, prefix number, file number
WrittenPartition = tuple[int, str, DataFile, Work]  # table, prefix


@dataclasses.dataclass(frozen=True)
class BuildConfig:
    """What a build reads and where it writes.

    Args:
        index: absolute path or uri of the index.
        version: id of the version to write.
        spec: the code spec.
        unit_count: how many work units there are (`unit_list.write_unit_list`).
        inputs: the version's list of the files they read (`write_inputs`).
        model: uri of the model, None when the units hold codes.
        model_info: fingerprint and method of the model, for the manifest.
        options: which column or key holds what.
        partition_rows: rows a partition file should not exceed.
        threads: per worker process, for TensorFlow and the features; None for one per core.
        believed: what `CURRENT` was when the build began; see `versions.publish`.
        base: the version that an incremental build starts from; None for a full build.
        started: when the command began, in seconds since 1970.
        gate: what the version must keep to be served; None to serve it unchecked.
        keep: how many finished versions stay once this one is served; None for all.
    """

    index: str
    version: str
    spec: CodeSpec
    unit_count: int
    inputs: DataFile
    model: str | None = None
    model_info: dict[str, str] | None = None
    options: ReadOptions = ReadOptions()
    partition_rows: int = PARTITION_ROWS
    threads: int | None = None
    believed: Current | None = None
    base: str | None = None
    started: float = dataclasses.field(default_factory=time.time)
    gate: Limits | None = Limits()
    keep: int | None = None

    def __post_init__(self) -> None:
        if self.partition_rows < 1:
            raise InputError(f'partition rows are {self.partition_rows}; at least 1 is needed')
        if self.keep is not None and self.keep < 1:
            raise InputError(f'--keep is {self.keep}; at least 1 is needed')

    @property
    def folder(self) -> str:
        """The version's folder."""
        return versions.version_folder(self.index, self.version)

    def path(self, name: str) -> str:
        """The full path of a file of the version."""
        return files.join(self.folder, name)


@dataclasses.dataclass(frozen=True)
class Part:
    """A unit that is finished: its files, its counts, what it was made from, what needed no encoding, and its work.

    `taken_over` if the whole unit is that of the base; else `reused` images are. `sums` are those of `encode.Measures`.
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


def write_inputs(folder: str, inputs: Sequence[InputFile]) -> DataFile:
    """Write the list of files that a build reads into a version's folder, before the build."""
    paths = [i.path.encode(errors='backslashreplace').decode() for i in inputs]  # names need not be UTF-8
    columns = [paths, [i.size for i in inputs], [i.mtime for i in inputs], [i.generation for i in inputs]]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, INPUTS, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=INPUTS)
    return versions.write_data_file(folder, versions.INPUTS_PATH, len(table), files.table_bytes(table))


def write_units(folder: str, parts: Sequence[Part]) -> DataFile:
    """Write what each part was made from, for a later incremental build."""
    rows = []
    for part in parts:
        settled = not UNSETTLED & set(part.reasons)
        content = part.origin.content if settled else ''
        rows.append({**dataclasses.asdict(part.origin), 'content': content, 'records_read': part.records_read})
    table = pa.Table.from_pylist(rows, schema=UNITS)
    return versions.write_data_file(folder, versions.UNITS_PATH, len(table), files.table_bytes(table))


def keep_sample(images: pa.Table) -> pa.Table:
    """The SAMPLE_ROWS images whose ids have the least hashes, in that order: rows of `code_tables.sample_schema`.

    The next version's sample has the same images, as far as they are still there. Any beginning is a sample too.
    """
    hashes, rows = id_hashes(images['image_id']), images['row'].to_numpy()
    least = np.arange(len(rows))
    if len(rows) > SAMPLE_ROWS:
        least = np.flatnonzero(hashes <= np.partition(hashes, SAMPLE_ROWS - 1)[SAMPLE_ROWS - 1])
    order = least[np.lexsort((rows[least], hashes[least]))[:SAMPLE_ROWS]]
    return images.take(pa.array(order))


def read_part(part: Part, config: BuildConfig) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Codes uint8 [N, B] and row numbers int64 [N] of an images part."""
    codes = code_tables.codes_from_arrow(code_tables.read_file(config.folder, part.images, ['code'])['code'])
    return codes, layout.row_numbers(part.number, len(codes))


def sample_part(part: Part, config: BuildConfig) -> pa.Table:
    """A part's share of the sample."""
    schema = code_tables.sample_schema(config.spec.num_bytes)
    images = code_tables.read_file(config.folder, part.images, ['code', 'image_id', 'labels'])
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
    """Layouts by the number of their table."""
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
        uri = config.path(f'{versions.STAGING_FOLDER}/codes-{run:05d}-{table}.arrow')
        for key, block in put_blocks(uri, batches):
            yield key, (run, block)


def rows_batch(codes: NDArray[np.uint8], rows: NDArray[np.int64]) -> pa.RecordBatch:
    """Codes uint8 [N, B] and row numbers int64 [N] as rows of `rows_schema`."""
    columns = [pa.array(rows), code_tables.codes_to_arrow(codes)]
    return pa.RecordBatch.from_arrays(columns, ['row', 'code'])


def rows_schema(spec: CodeSpec) -> pa.Schema:
    """Codes on the way from their images parts to a partition, with their row numbers."""
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
    file = versions.write_data_file(config.folder, name, len(content), written)
    yield table, prefix, file, Work(started, time.time())


def gather_blocks(blocks: Iterable[tuple[int, Block]], spec: CodeSpec) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Codes uint8 [N, B] and row numbers int64 [N], ascending, of (run number, block of `cut_codes`)."""
    _, found = zip(*sorted(blocks, key=lambda block: block[0]), strict=True)
    batches = get_blocks(found, rows_schema(spec))
    codes = np.concatenate([code_tables.codes_from_arrow(batch['code']) for batch in batches])
    return codes, np.concatenate([batch['row'].to_numpy() for batch in batches])


def publish_version(
    _: None,
    config: BuildConfig,
    tables: Sequence[TableLayout],
    parts: Sequence[Part],
    partitions: Sequence[WrittenPartition],
    sample: pa.Table,
    changes: NDArray[np.int64] | int = 0,
) -> int:
    """Finish the version unless it is, publish it if its gate lets it, and prune older ones if asked; returns its rows.

    Done again, as runners may, it takes the version as finished, and leaves `CURRENT` alone if it names it.

    Raises:
        BuildError: something is missing, or another version was published since the build began.
        GateError: the version is finished, but failed its gate.
    """
    if not files.exists(config.path(versions.MANIFEST_PATH)):
        started = time.time()
        parts = sorted(parts, key=lambda p: p.number)
        manifest = describe_version(config, tables, parts, partitions, sample, changes)
        check_version(manifest, config.folder)
        served = (config.believed or versions.look(config.index)).text
        manifest = judge(manifest, config.index, sample, config.gate, served)
        stages = [*describe_stages(parts, partitions), Stage.of('check', [Work(started, time.time())])]
        stats = write_stats(config.folder, manifest, stages, config.started)
        manifest = dataclasses.replace(manifest, build=stats)
        files.flush(config.folder)  # a manifest must not outlive a loss of power that its files do not
        files.write_bytes(config.path(versions.MANIFEST_PATH), manifest.dumps(), durable=True)
    manifest = versions.read_manifest(config.index, config.version)
    try:
        enforce(manifest, config.index)
        versions.publish(config.index, config.version, config.believed)
    finally:
        delete_staged(config)
    if config.keep is not None:
        prune_behind(config.index, config.keep)
    return manifest.rows


def delete_staged(config: BuildConfig) -> None:
    """Remove what is not needed any more, which must not fail a build: `grainhash prune` removes what is left."""
    try:
        files.delete_folder(config.path(versions.STAGING_FOLDER))
    except OSError as e:
        log.warning('what was staged is left there: %s', e)


def describe_stages(parts: Sequence[Part], partitions: Sequence[WrittenPartition]) -> Iterator[Stage]:
    """What was done until all files were there."""
    sums = sum((collections.Counter(p.sums) for p in parts), collections.Counter())
    milliseconds = {f'{name.removesuffix("_us")}_ms': us // 1000 for name, us in sums.items() if name.endswith('_us')}
    rejected = sum((collections.Counter(p.reasons) for p in parts), collections.Counter())
    yield Stage.of(
        'encode',
        [p.encoding for p in parts if p.encoding],
        records_read=sum(p.records_read for p in parts),
        taken_over=sum(p.images.rows for p in parts if p.taken_over),
        reused=sum(p.reused for p in parts),
        image_bytes=sums['image_bytes'],
        **milliseconds,
    )
    yield Stage.of(
        'finish',
        [p.finishing for p in parts if p.finishing],
        indexed=sum(p.images.rows for p in parts),
        **{f'rejected_{reason}': count for reason, count in sorted(rejected.items())},
        bytes=sum(p.images.bytes for p in parts),
    )
    yield Stage.of(
        'partition',
        [work for *_, work in partitions],
        rows=sum(file.rows for _, _, file, _ in partitions),
        bytes=sum(file.bytes for _, _, file, _ in partitions),
    )


def describe_version(
    config: BuildConfig,
    tables: Sequence[TableLayout],
    parts: Sequence[Part],
    partitions: Sequence[WrittenPartition],
    sample: pa.Table,
    changes: NDArray[np.int64] | int = 0,
) -> Manifest:
    """Write the sample, and list all that was written in a manifest that is not written yet."""
    sampled = files.table_bytes(sample)
    return Manifest(
        version=config.version,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        spec=config.spec,
        model=config.model_info,
        tables=list_tables(tables, partitions, code_tables.codes_from_arrow(sample['code'])),
        images=tuple(p.images for p in parts),
        rejects=tuple(p.rejects for p in parts if p.rejects),
        inputs=config.inputs,
        counters=add_counters(parts, config.unit_count),
        libraries=library_versions(),
        sample=versions.write_data_file(config.folder, versions.SAMPLE_PATH, len(sample), sampled),
        model_files=tuple(list_model_files(config.folder)),
        units=write_units(config.folder, parts),
        changes=add_changes(parts, config.base, changes) if config.base else None,
    )


def list_model_files(folder: str) -> Iterator[DataFile]:
    """The files of a version's model, if it has one, as they are."""
    for name in files.sizes_below(files.join(folder, versions.MODEL_FOLDER)):
        path = f'{versions.MODEL_FOLDER}/{name}'
        content = files.read_bytes(files.join(folder, path))
        yield DataFile(path, 0, len(content), files.digest(content))


def check_version(manifest: Manifest, folder: str) -> None:
    """Refuse to publish a version of which something is missing.

    Raises:
        BuildError: a table with other rows than were indexed, or a file that is not there in its size.
    """
    for number, table in enumerate(manifest.tables):
        held = sum(p.rows for p in table.partitions)
        if held != manifest.rows:
            raise BuildError(f'table {number} holds {held} rows; {manifest.rows} images were indexed')
    sizes = files.sizes_below(folder)
    for file in manifest.all_files:
        if sizes.get(file.path) != file.bytes:
            found = 'is missing' if file.path not in sizes else f'has {sizes[file.path]} bytes instead of {file.bytes}'
            raise BuildError(f'{files.join(folder, file.path)} {found}: it was changed during the build')


def add_counters(parts: Sequence[Part], units: int) -> dict[str, Any]:
    """The build's counters: records read = indexed + rejected + duplicates, or BuildError."""
    if [p.number for p in parts] != list(range(units)):
        raise BuildError(f'{len(parts)} of {units} work units were finished')
    reasons = sum((collections.Counter(p.reasons) for p in parts), collections.Counter())
    duplicates = reasons.pop(DUPLICATE_ID, 0)
    counters = {
        'records_read': sum(p.records_read for p in parts),
        'indexed': sum(p.images.rows for p in parts),
        'rejected': sum(reasons.values()),
        'duplicates': duplicates,
    }
    if counters['records_read'] != counters['indexed'] + counters['rejected'] + counters['duplicates']:
        raise BuildError('records are missing: ' + ', '.join(f'{name} {n}' for name, n in counters.items()))
    if not counters['indexed']:
        why = ', '.join(f'{n} {reason}' for reason, n in sorted(reasons.items())) or 'there was none'
        raise BuildError(f'none of {counters["records_read"]} records could be indexed: {why}')
    return {**counters, 'reasons': dict(sorted(reasons.items()))}


def add_changes(parts: Sequence[Part], base: str, changes: NDArray[np.int64] | int) -> dict[str, Any]:
    """The manifest's `changes`: every image is added, changed or unchanged, or BuildError.

    Args:
        parts, base: of the version, and from which it was made.
        changes: int64 [4], the counts that `CHANGES` names; 0 if there was nothing to compare.
    """
    counts = dict(zip(CHANGES, np.broadcast_to(changes, len(CHANGES)).tolist(), strict=True))
    rows = sum(p.images.rows for p in parts)
    if counts['added'] + counts['changed'] + counts['unchanged'] != rows:
        raise BuildError(f'{rows} images were indexed: {", ".join(f"{n} {name}" for name, n in counts.items())}')
    return {
        'base': base,
        **counts,
        'units': sum(p.taken_over for p in parts),
        'images': sum(p.reused for p in parts),
    }


def list_tables(
    tables: Sequence[TableLayout], partitions: Sequence[WrittenPartition], sample: NDArray[np.uint8]
) -> tuple[Table, ...]:
    """The manifest's tables, with every prefix of the layout, those without rows too."""
    written = collections.defaultdict(list)
    for number, prefix, file, _ in partitions:
        written[number, prefix].append(file)
    return tuple(
        Table(
            table.substring,
            selectivity(sample, table.substring),
            tuple(
                Partition(number, prefix, tuple(sorted(written[number, prefix], key=lambda f: f.path)))
                for prefix in table.prefixes
            ),
        )
        for number, table in enumerate(tables)
    )


def library_versions() -> dict[str, str]:
    """Versions of what wrote the index."""
    names = (*CODING_LIBRARIES, 'apache-beam', 'pyarrow')
    return {'python': platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
