"""Whether a version of an index is what its manifest says, file by file: for `grainhash verify INDEX`.

Every file is read once, a few at a time. Whether a table holds the codes of the images is seen from sums of a 64-bit
hash of each (row, code). These do not depend on the order, so that only those few files are in memory.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import files
from pipelines.index import layout, versions
from pipelines.index.code_tables import (
    INPUTS,
    REJECTS,
    UNITS,
    CodeRows,
    codes_from_arrow,
    images_schema,
    partition_schema,
    sample_schema,
)
from pipelines.index.manifest import DataFile, Manifest
from pipelines.index.versions import Version

THREADS = 4  # files in memory at once; reading, hashing and decoding leave Python's lock
IMAGES = -1  # the group of the images parts; other groups are numbers of tables
LATER_COLUMNS = frozenset(['generation'])  # that files may lack
_SUMS = 1 << 64

Content = tuple[str | None, int | None]  # what is wrong, if anything, and the sum of the codes, if they can be told

Sampled = tuple[NDArray[np.int64], NDArray[np.uint8]]  # rows [S] and codes [S, B] of the sample
NO_SAMPLE: Sampled = np.zeros(0, np.int64), np.zeros((0, 0), np.uint8)


@dataclasses.dataclass(frozen=True)
class Job:
    """A file to check: the group whose codes it is a part of, if any, and what its table must be."""

    file: DataFile
    group: int | None = None
    schema: pa.Schema | None = None
    check: Callable[[pa.Table], Content] = lambda _: (None, 0)


def verify_version(version: Version) -> Iterator[str]:
    """Everything that is wrong with a version, a line each; nothing if it is whole.

    A file that is missing or changed is reported once, without the problems that follow from it.
    """
    manifest, sizes = version.manifest, files.sizes_below(version.folder)
    yield from layout_problems(version)
    yield from listing_problems(manifest, sizes)
    sample = read_sample(version)
    yield from sample_problems(manifest, sample[0])
    jobs = [job for job in list_jobs(manifest, sample) if sizes.get(job.file.path) == job.file.bytes]
    complete = set(range(IMAGES, len(manifest.tables)))
    complete -= {job.group for job in list_jobs(manifest, sample) if sizes.get(job.file.path) != job.file.bytes}
    sums = dict.fromkeys(range(IMAGES, len(manifest.tables)), 0)
    with ThreadPoolExecutor(THREADS) as pool:
        for job, (problem, total) in zip(jobs, pool.map(functools.partial(check_file, version), jobs), strict=True):
            if problem:
                yield f'{job.file.path} {problem}'
            if total is None:
                complete -= {job.group}
            elif job.group is not None:
                sums[job.group] = (sums[job.group] + total) % _SUMS
    for table in sorted(complete - {IMAGES}) if IMAGES in complete else ():
        if sums[table] != sums[IMAGES]:
            yield f'codes/table={table} holds other rows or codes than the images'


def layout_problems(version: Version) -> Iterator[str]:
    """What is wrong with the manifest alone."""
    manifest = version.manifest
    if version.id != manifest.version:
        yield f'{versions.MANIFEST_PATH} is of version {manifest.version}'
    for number, table in enumerate(manifest.tables):
        held = sum(p.rows for p in table.partitions)
        if held != manifest.rows:
            yield f'{versions.MANIFEST_PATH}: table {number} has {held} rows, and there are {manifest.rows} images'
        if not covers_once([p.prefix for p in table.partitions]):
            yield f'{versions.MANIFEST_PATH}: the prefixes of table {number} do not cover every key once, in order'


def covers_once(prefixes: Sequence[str]) -> bool:
    """Whether every key has exactly one of these prefixes, and they ascend.

    >>> covers_once(['0', '10', '11']), covers_once(['0', '11']), covers_once(['0', '01', '1'])
    (True, False, False)
    """
    depth = max(map(len, prefixes), default=0)
    reached = 0
    for prefix in prefixes:
        if int(f'0{prefix}', 2) << (depth - len(prefix)) != reached:
            return False
        reached += 1 << (depth - len(prefix))
    return bool(prefixes) and reached == 1 << depth


def listing_problems(manifest: Manifest, sizes: dict[str, int]) -> Iterator[str]:
    """Files that are missing, of another size, or not in the manifest, given path -> size of those that are there."""
    listed = {file.path for file in manifest.all_files}
    for file in manifest.all_files:
        if file.path not in sizes:
            yield f'{file.path} is missing'
        elif sizes[file.path] != file.bytes:
            yield f'{file.path} has {sizes[file.path]} bytes instead of {file.bytes}'
    for path in sizes:
        of_model = manifest.model and not manifest.model_files and path.startswith(f'{versions.MODEL_FOLDER}/')
        if path not in listed and path != versions.MANIFEST_PATH and not of_model:
            yield f'{path} does not belong to the version'


def read_sample(version: Version) -> Sampled:
    """Rows and codes of the sample; none if something is wrong with the file, which its own job reports."""
    (job,) = [job for job in list_jobs(version.manifest) if job.file == version.manifest.sample]
    if check_file(version, job)[0]:
        return NO_SAMPLE
    table = version.read_table(job.file)
    return table['row'].to_numpy(), codes_from_arrow(table['code'])


def sample_problems(manifest: Manifest, rows: NDArray[np.int64]) -> Iterator[str]:
    """Rows of the sample that the manifest's images do not have."""
    ends = np.array([*(file.rows for file in manifest.images), 0])
    parts, places = rows >> 32, rows & 0xFFFFFFFF
    known = (parts >= 0) & (parts < len(manifest.images))
    missing = ~known | (places >= ends[np.where(known, parts, -1)])
    if missing.any():
        yield f'{manifest.sample.path} has {int(missing.sum())} rows that no images part has'


def list_jobs(manifest: Manifest, sample: Sampled = NO_SAMPLE) -> Iterator[Job]:
    """A job for every file of a version; those of images also compare them with the sample."""
    num_bytes, (rows, codes) = manifest.spec.num_bytes, sample
    for part, file in enumerate(manifest.images):
        of_part = rows >> 32 == part
        sampled = rows[of_part] & 0xFFFFFFFF, codes[of_part]
        yield Job(file, IMAGES, images_schema(num_bytes), functools.partial(check_images, part, sampled))
    for number, table in enumerate(manifest.tables):
        for partition in table.partitions:
            check = functools.partial(check_partition, table.substring, partition.prefix)
            yield from (Job(file, number, partition_schema(num_bytes), check) for file in partition.files)
    yield from (Job(file, schema=REJECTS) for file in manifest.rejects)
    yield Job(manifest.inputs, schema=INPUTS)
    if manifest.units:
        yield Job(manifest.units, schema=UNITS)
    of_sample = sample_schema(num_bytes)
    yield Job(
        manifest.sample, schema=of_sample if manifest.quality else pa.schema([of_sample.field(i) for i in (0, 1)])
    )
    yield from (Job(file) for file in manifest.other_files)


def check_file(version: Version, job: Job) -> Content:
    """Read a file and compare it with what the manifest says of it."""
    try:
        content = files.read_bytes(version.path(job.file.path))
    except OSError as e:
        return f'cannot be read: {e}', None
    if job.file.digest not in (None, files.digest(content)):
        return f'has the digest {files.digest(content)} instead of {job.file.digest}', None
    if job.schema is None:
        return None, 0
    try:
        table = pq.ParquetFile(pa.BufferReader(content)).read()
    except (pa.ArrowException, OSError) as e:
        return f'is not readable Parquet: {" ".join(str(e).split())}', None
    if not fits(table.schema, job.schema):
        return f'has other columns: {", ".join(f"{f.name} {f.type}" for f in table.schema)}', None
    if len(table) != job.file.rows:
        return f'has {len(table)} rows instead of {job.file.rows}', None
    return job.check(table)


def fits(found: pa.Schema, wanted: pa.Schema) -> bool:
    """Whether a file has the columns wanted, and its codes, keys and rows their types.

    The types of other columns may vary.

    Columns in LATER_COLUMNS may be missing, as older releases did not write them.
    """
    of_type = [name for name in ('key', 'code', 'row') if name in wanted.names]
    needed = [name for name in wanted.names if name in found.names or name not in LATER_COLUMNS]
    return found.names == needed and all(found.field(n).type == wanted.field(n).type for n in of_type)


def check_images(part: int, sampled: Sampled, table: pa.Table) -> Content:
    """Check an images part, and that the codes in the sample are those of the part's rows."""
    if table['code'].null_count or table['image_id'].null_count:
        return 'has rows without an id or a code', None
    rows, codes = layout.row_numbers(part, len(table)), codes_from_arrow(table['code'])
    places, wanted = sampled
    inside = places < len(table)
    other = (codes[places[inside]] != wanted[inside]).any(axis=1) if inside.any() else np.zeros(0, bool)
    problem = f'has other codes than {versions.SAMPLE_PATH} says, of {int(other.sum())} images' if other.any() else None
    return problem, mixed_sum(rows, codes)


def check_partition(substring: layout.Substring, prefix: str, table: pa.Table) -> Content:
    """Check a file of a partition: it is in order, its keys are under the prefix, and they are those of its codes."""
    if any(column.null_count for column in table.columns):
        return 'has rows without a key, a code or a row number', None
    held = CodeRows.from_table(table)
    keys, rows = held.keys, held.rows
    ascends = (keys[1:] > keys[:-1]) | ((keys[1:] == keys[:-1]) & (rows[1:] > rows[:-1]))
    if not ascends.all():
        return f'is not in order of key and row, first at row {int(np.argmin(ascends)) + 1}', None
    outside = keys >> (substring.bits - len(prefix)) != int(prefix, 2)
    if outside.any():
        return f'has {int(outside.sum())} keys that are not under its prefix', None
    other = keys != layout.substring_keys(held.codes, substring)
    if other.any():
        return f"has {int(other.sum())} keys that are not their code's", None
    return None, mixed_sum(rows, held.codes)


def mixed_sum(rows: NDArray[np.int64], codes: NDArray[np.uint8]) -> int:
    """The sum, modulo 2^64, of a hash of each row number and code. It does not depend on their order.

    >>> codes = np.array([[1, 2], [3, 4]], np.uint8)
    >>> mixed_sum(np.array([0, 1]), codes) == mixed_sum(np.array([1, 0]), codes[::-1])
    True
    >>> mixed_sum(np.array([0, 1]), codes) == mixed_sum(np.array([1, 0]), codes)
    False
    """
    return int(layout.mix_codes(layout.mix(rows), codes).sum(dtype=np.uint64))
