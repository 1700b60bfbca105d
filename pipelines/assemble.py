"""The part of a build that comes after encoding: images parts -> key histograms -> layout -> partitions -> manifest.

Pure functions over files and arrays; `build_index.py` wires them into a Beam job.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import importlib.metadata
import platform
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashing_model.code_spec import CodeSpec
from hashing_model.errors import BuildError, InputError
from pipelines.blocks import Block, get_blocks, put_blocks
from pipelines.index import code_tables, files, layout, versions
from pipelines.index.code_tables import INPUTS, CodeRows
from pipelines.index.current import Current
from pipelines.index.manifest import DataFile, Manifest, Partition, Table
from pipelines.index.plan import selectivity
from pipelines.records import DUPLICATE_ID
from pipelines.shards import InputFile, ReadOptions

SAMPLE_ROWS = 65_536
PARTITION_ROWS = 2_000_000

PartitionKey = tuple[int, int, int]  # table, prefix number, file number


@dataclasses.dataclass(frozen=True)
class BuildConfig:
    """What a build reads and where it writes.

    Args:
        index: absolute path or uri of the index.
        version: id of the version to write.
        spec: the code spec.
        unit_count: how many work units there are; the units themselves travel as elements only.
        inputs: the version's list of the files they read (`write_inputs`).
        model: uri of the model, None when the units hold codes.
        model_info: fingerprint and method of the model, for the manifest.
        options: which column or key holds what.
        partition_rows: rows a partition file should not exceed.
        threads: per worker process, for TensorFlow and the features; None for one per core.
        believed: what `CURRENT` was when the build began; see `versions.publish`.
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

    def __post_init__(self) -> None:
        if self.partition_rows < 1:
            raise InputError(f'partition rows are {self.partition_rows}; at least 1 is needed')

    @property
    def folder(self) -> str:
        """The version's folder."""
        return versions.version_folder(self.index, self.version)

    def path(self, name: str) -> str:
        """The full path of a file of the version."""
        return files.join(self.folder, name)


@dataclasses.dataclass(frozen=True)
class Part:
    """A unit that is finished: its files and its counts."""

    number: int
    images: DataFile
    rejects: DataFile | None
    records_read: int
    reasons: dict[str, int]


@dataclasses.dataclass(frozen=True)
class TableLayout:
    """Substrings, and per table its prefixes and how many files each prefix gets."""

    substrings: tuple[layout.Substring, ...]
    prefixes: tuple[tuple[str, ...], ...]
    part_counts: tuple[NDArray[np.int64], ...]


def write_inputs(folder: str, inputs: Sequence[InputFile]) -> DataFile:
    """Write the list of files that a build reads into a version's folder, before the build."""
    paths = [i.path.encode(errors='backslashreplace').decode() for i in inputs]  # names need not be UTF-8
    columns = [paths, [i.size for i in inputs], [i.mtime for i in inputs]]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, INPUTS, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=INPUTS)
    return versions.write_data_file(folder, versions.INPUTS_PATH, len(table), files.table_bytes(table))


def groups_of(values: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each distinct value, none below 0, with the indices where it stands, ascending."""
    small = values.astype(np.min_scalar_type(values.max(initial=0)))  # 16 bits sort by counting
    order = np.argsort(small, kind='stable')
    ordered = small[order]
    starts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    for places in np.split(order, starts) if len(order) else ():
        yield int(values[places[0]]), places


def keep_sample(codes: NDArray[np.uint8], rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The SAMPLE_ROWS rows with the least `layout.mix`, in that order, so that any beginning is a sample too."""
    mixed = layout.mix(rows)
    least = np.argpartition(mixed, SAMPLE_ROWS)[:SAMPLE_ROWS] if len(rows) > SAMPLE_ROWS else np.arange(len(rows))
    order = least[np.argsort(mixed[least])]  # no two rows mix to the same
    return codes[order], rows[order]


def read_part(part: Part, config: BuildConfig) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Codes uint8 [N, B] and row numbers int64 [N] of an images part."""
    codes = code_tables.codes_from_arrow(code_tables.read_file(config.folder, part.images, ['code'])['code'])
    return codes, (np.int64(part.number) << 32) + np.arange(len(codes))


def part_histograms(part: Part, config: BuildConfig, rows: int) -> list[NDArray[np.int64]]:
    """The key histogram of each table over one part."""
    codes, _ = read_part(part, config)
    substrings = layout.cut_substrings(config.spec, rows)
    return [layout.key_histogram(layout.substring_keys(codes, s), s.bits) for s in substrings]


def sample_part(part: Part, config: BuildConfig) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A part's share of the sample."""
    return keep_sample(*read_part(part, config))


def make_layout(histograms: list[NDArray[np.int64]], config: BuildConfig, rows: int) -> TableLayout:
    """Prefixes and file counts from the histograms of all codes."""
    prefixes = tuple(layout.cut_prefixes(h, config.partition_rows) for h in histograms)
    counts = (layout.part_counts(h, p, config.partition_rows) for h, p in zip(histograms, prefixes, strict=True))
    return TableLayout(layout.cut_substrings(config.spec, rows), prefixes, tuple(counts))


def cut_codes(part: Part, config: BuildConfig, tables: TableLayout) -> Iterator[tuple[PartitionKey, tuple[int, Block]]]:
    """One part's codes by partition file, ((table, prefix number, file number), (part number, block))."""
    codes, rows = read_part(part, config)
    for table in range(len(tables.substrings)):
        keys, batches = [], []
        for key, places in partition_places(codes, rows, table, tables):
            keys.append(key)
            taken = [pa.array(places, pa.uint32()), code_tables.codes_to_arrow(codes.take(places, axis=0))]
            batches.append(pa.RecordBatch.from_arrays(taken, schema=places_schema(config.spec)))
        uri = config.path(f'{versions.STAGING_FOLDER}/codes-{part.number:05d}-{table}.arrow')
        for key, block in zip(keys, put_blocks(uri, batches), strict=True):
            yield key, (part.number, block)


def places_schema(spec: CodeSpec) -> pa.Schema:
    """Codes on the way from an images part to a partition: `place` is the row in the part."""
    return pa.schema([('place', pa.uint32()), ('code', pa.binary(spec.num_bytes))])


def partition_places(
    codes: NDArray[np.uint8], rows: NDArray[np.int64], table: int, tables: TableLayout
) -> Iterator[tuple[PartitionKey, NDArray[np.int64]]]:
    """The partition files of one table that get some of N codes, and which, as ascending indices."""
    substring, prefixes, counts = tables.substrings[table], tables.prefixes[table], tables.part_counts[table]
    leaves = layout.prefix_numbers(layout.substring_keys(codes, substring), substring.bits, prefixes)
    numbers = np.zeros(len(rows), np.int64)
    shared = np.flatnonzero(counts[leaves] > 1)
    numbers[shared] = layout.mix(rows[shared]) % counts[leaves[shared]].astype(np.uint64)
    firsts = np.cumsum(counts) - counts  # files of all leaves numbered through
    for file, places in groups_of(firsts[leaves] + numbers):
        leaf = int(np.searchsorted(firsts, file, side='right')) - 1
        yield (table, leaf, file - int(firsts[leaf])), places


def write_partition(
    element: tuple[PartitionKey, Iterable[tuple[int, Block]]], config: BuildConfig, tables: TableLayout
) -> Iterator[tuple[int, str, DataFile]]:
    """Sort the blocks of one partition file by key and row and write it: (table, prefix, file)."""
    (table, leaf, number), blocks = element
    substring, prefix = tables.substrings[table], tables.prefixes[table][leaf]
    codes, rows = gather_blocks(blocks, config.spec)
    keys = layout.substring_keys(codes, substring)
    order = layout.key_order(keys, substring.bits)  # rows are ascending: equal keys stay so
    content = CodeRows(keys[order], codes.take(order, axis=0), rows[order]).to_table()
    name = versions.codes_path(table, prefix, number)
    written = files.table_bytes(content, **code_tables.PARTITION_OPTIONS)
    yield table, prefix, versions.write_data_file(config.folder, name, len(content), written)


def gather_blocks(blocks: Iterable[tuple[int, Block]], spec: CodeSpec) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Codes uint8 [N, B] and row numbers int64 [N], ascending, of (part number, block of `cut_codes`)."""
    numbers, found = zip(*sorted(blocks, key=lambda block: block[0]), strict=True)
    batches = get_blocks(found, places_schema(spec))
    codes = np.concatenate([code_tables.codes_from_arrow(batch['code']) for batch in batches])
    rows = [(np.int64(n) << 32) + batch['place'].to_numpy() for n, batch in zip(numbers, batches, strict=True)]
    return codes, np.concatenate(rows)


def publish_version(
    _: None,
    config: BuildConfig,
    tables: TableLayout,
    parts: Sequence[Part],
    partitions: Sequence[tuple[int, str, DataFile]],
    sample: tuple[NDArray[np.uint8], NDArray[np.int64]],
) -> int:
    """Write the sample, check everything, write the manifest, publish the version; returns its rows.

    Done again, as runners may, it writes the same and leaves `CURRENT` alone.

    Raises:
        BuildError: something is missing, or another version was published since the build began.
    """
    sampled = files.table_bytes(code_tables.sample_table(*sample))
    parts = sorted(parts, key=lambda p: p.number)
    manifest = Manifest(
        version=config.version,
        created=finished_at(config),
        spec=config.spec,
        model=config.model_info,
        tables=list_tables(tables, partitions, sample[0]),
        images=tuple(p.images for p in parts),
        rejects=tuple(p.rejects for p in parts if p.rejects),
        inputs=config.inputs,
        counters=add_counters(parts, config.unit_count),
        libraries=library_versions(),
        sample=versions.write_data_file(config.folder, versions.SAMPLE_PATH, len(sample[0]), sampled),
        model_files=tuple(list_model_files(config.folder)),
    )
    check_version(manifest, config.folder)
    files.flush(config.folder)  # a manifest must not outlive a loss of power that its files do not
    files.write_bytes(config.path(versions.MANIFEST_PATH), manifest.dumps(), durable=True)
    files.delete_folder(config.path(versions.STAGING_FOLDER))
    versions.publish(config.index, config.version, config.believed)
    return manifest.rows


def finished_at(config: BuildConfig) -> str:
    """The time, UTC and ISO 8601: now, or when an earlier attempt wrote the manifest."""
    if files.exists(config.path(versions.MANIFEST_PATH)):
        return versions.read_manifest(config.index, config.version).created
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')


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


def list_tables(
    tables: TableLayout, partitions: Sequence[tuple[int, str, DataFile]], sample: NDArray[np.uint8]
) -> tuple[Table, ...]:
    """The manifest's tables, with every prefix of the layout, those without rows too."""
    written = collections.defaultdict(list)
    for table, prefix, file in partitions:
        written[table, prefix].append(file)
    return tuple(
        Table(
            substring,
            selectivity(sample, substring),
            tuple(
                Partition(number, prefix, tuple(sorted(written[number, prefix], key=lambda f: f.path)))
                for prefix in tables.prefixes[number]
            ),
        )
        for number, substring in enumerate(tables.substrings)
    )


def library_versions() -> dict[str, str]:
    """Versions of what wrote the index."""
    names = ('grainhash', 'apache-beam', 'numpy', 'pyarrow', 'tensorflow', 'keras')
    return {'python': platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
