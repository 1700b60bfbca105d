"""From patterns to work units, and from a work unit to its records. The readers are in `pipelines.inputs.formats`.

Of Beam it uses only the file systems (`opening.py`), which read `gs://`, `s3://` and local paths in the same way.
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import itertools
import logging
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from hashing_model.errors import InputError
from pipelines.inputs import opening
from pipelines.inputs.formats import common, folder, parquet, tar, tfrecord
from pipelines.inputs.options import ReadOptions
from pipelines.records import Record, Reject, Source

__all__ = ['InputFile', 'ReadOptions', 'WorkUnit', 'cut_units', 'list_inputs', 'list_units', 'read_member', 'read_unit']

FORMATS = TAR, TFRECORD, PARQUET, FILES = 'tar', 'tfrecord', 'parquet', 'files'
MAX_UNIT_BYTES = 256 << 20  # as stored; one Parquet row group or one file may be larger
MAX_UNIT_ROWS = 10_000
MAX_UNIT_FILES = 1_000

_TAR = re.compile(r'.*\.(tar|tar\.gz|tgz)')
_TFRECORD = re.compile(r'.*\.tfrecords?(\.gz)?(-\d+-of-\d+)?(\.gz)?|.*tfrecord.*-\d+-of-\d+(\.gz)?')
_SIDECARS = ('json', 'txt', 'cls', 'csv', 'md')  # passed over without a word
_SUFFIXES_SHOWN = 8
_FOOTER_THREADS = 16

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class InputFile:
    """One file that a build reads, and what tells it from a later file of the same name.

    Args:
        path: as the file systems know it.
        size: in bytes.
        mtime: last change, in seconds since 1970; 0 where the file system has none.
        root: the folder that relative names start from; no part of the identity.
        generation: of an object in Cloud Storage, different after every change; None elsewhere.
    """

    path: str
    size: int
    mtime: float
    root: str = dataclasses.field(default='', compare=False)
    generation: int | None = None


@dataclasses.dataclass(frozen=True)
class WorkUnit:
    """What one worker reads in one go: a shard, a run of row groups of a Parquet shard, or a run of image files.

    Args:
        number: 0 to n-1, in the order of the input.
        format: `tar`, `tfrecord`, `parquet` or `files`.
        paths: the shard, or the image files.
        row_groups: of a Parquet shard, first and one past the last; None for all of it.
        root: the folder that the ids of image files start from, and those of Parquet rows that have none.
        state: a digest of what the listing of a bucket tells of the content; empty if the content itself must be read.
        base_part: in an incremental build, the images part that the same unit has in the base, if it has one.
        base_parts: in an incremental build, all parts of the base that were made from any of these files.
    """

    number: int
    format: str
    paths: tuple[str, ...]
    row_groups: tuple[int, int] | None = None
    root: str = ''
    state: str = ''
    base_part: int | None = None
    base_parts: tuple[int, ...] = ()

    @property
    def shard(self) -> str:
        """The name for logs."""
        if self.format == FILES:
            more = f' and {len(self.paths) - 1} more' if len(self.paths) > 1 else ''
            return f'{self.paths[0]}{more}'
        rows = f' row groups {self.row_groups[0]}-{self.row_groups[1] - 1}' if self.row_groups else ''
        return f'{self.paths[0]}{rows}'


def list_units(patterns: Sequence[str], options: ReadOptions) -> list[WorkUnit]:
    """The work units of everything the patterns match, always in the same order; none for a Parquet shard of no rows.

    Raises:
        InputError: a pattern matches nothing readable, a Parquet shard lacks a column that is named, or none has rows.
        OSError: a Parquet shard cannot be opened.
    """
    return cut_units(list_inputs(patterns), options)


def list_inputs(patterns: Sequence[str], formats: Sequence[str] = FORMATS) -> list[InputFile]:
    """Every file of some formats that the patterns match, each once: by pattern in the order given, then by path.

    A pattern is a file, a folder (everything below it; hidden files are left out) or a glob of `*`, `**`, `?`, `[..]`.
    Files of unknown format are passed over, and one warning per pattern counts them.

    Raises:
        InputError: a pattern that matches nothing readable, or a file of unknown format that is named itself.
    """
    files: dict[str, InputFile] = {}
    for pattern in patterns:
        matched = [file for file in _match(pattern) if format_of(file.path) in formats]
        if not matched:
            wanted = 'images' if formats == FORMATS else f'{" or ".join(formats)} files'
            raise InputError(f'no {wanted} match {pattern}')
        for file in matched:
            files.setdefault(file.path if '://' in file.path else os.path.abspath(file.path), file)
    return list(files.values())


def cut_units(files: Sequence[InputFile], options: ReadOptions) -> list[WorkUnit]:
    """Work units of some size from listed files. Reads the footers of Parquet shards.

    Raises:
        InputError: a column or label level that the options name does not fit, or no file has rows.
        OSError: a Parquet shard cannot be opened.
    """
    shards = [file.path for file in files if format_of(file.path) == PARQUET]
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        row_group_runs = dict(zip(shards, pool.map(lambda path: _row_group_runs(path, options), shards), strict=True))
    units: list[WorkUnit] = []
    roots = {file.path: file.root for file in files}
    for (format_, place), group in itertools.groupby(files, key=_format_and_place):
        if format_ == FILES:
            for paths in _file_runs(list(group), options):
                units.append(WorkUnit(len(units), FILES, paths, root=place))
        else:
            for row_groups in row_group_runs.get(place, [None]):
                units.append(WorkUnit(len(units), format_, (place,), row_groups, roots[place]))
    if files and not units:
        more = f' and {len(files) - 1} more' if len(files) > 1 else ''
        raise InputError(f'no images in {files[0].path}{more}: there are no rows')
    return units


def read_unit(unit: WorkUnit, options: ReadOptions) -> Iterator[Record | Reject]:
    """The records of a unit, one at a time and in order; what cannot be read comes as a `Reject`.

    Raises:
        OSError: the shard cannot be opened or read, or an image file cannot be read now but perhaps later. Bad data
            never raise.
    """
    if unit.format == TAR:
        return tar.read(unit.paths[0], options)
    if unit.format == TFRECORD:
        return tfrecord.read(unit.paths[0], options)
    if unit.format == PARQUET:
        return parquet.read(unit.paths[0], unit.row_groups, options, unit.root)
    return folder.read(unit.root, unit.paths, options)


def read_member(source: Source, options: ReadOptions) -> bytes:
    """The image bytes of one record, as it was read.

    Raises:
        InputError: the shard is gone or damaged, or has no such member.
    """
    try:
        data = _read_member(source, options)
    except InputError:
        raise
    except Exception as e:
        raise InputError(f'cannot read {source.member} of {source.shard}: {common.failure_reason(e)}') from e
    if data is None:
        raise InputError(f'{source.shard} has no image {source.member}')
    return data


def _read_member(source: Source, options: ReadOptions) -> bytes | None:
    format_ = format_of(source.shard)
    if format_ == TAR:
        return tar.read_member(source.shard, source.member)
    if format_ == TFRECORD:
        return tfrecord.read_member(source.shard, source.member, options)
    if format_ == PARQUET:
        return parquet.read_member(source.shard, source.member, options)
    return folder.read_file(posixpath.join(source.shard, source.member))


def format_of(path: str) -> str | None:
    """The format that a file's name tells, or None.

    >>> [format_of(name) for name in ('a.TAR', 'b.tfrecord-00000-of-00010', 'c.parquet', 'd.JPEG', 'e.json')]
    ['tar', 'tfrecord', 'parquet', 'files', None]
    """
    name = posixpath.basename(path).lower()
    if _TAR.fullmatch(name):
        return TAR
    if _TFRECORD.fullmatch(name):
        return TFRECORD
    suffix = _suffix(path)
    return PARQUET if suffix == 'parquet' else FILES if suffix in common.IMAGE_SUFFIXES else None


def _suffix(path: str) -> str:
    name = posixpath.basename(path).lower()
    return name.rpartition('.')[2] if '.' in name else ''


def _match(pattern: str) -> list[InputFile]:
    """The readable files that match one pattern, by path."""
    is_local = '://' not in pattern
    if glob.has_magic(pattern) and not (is_local and os.path.exists(pattern)):
        fixed = re.split(r'[*?[]', pattern, maxsplit=1)[0]
        if is_local and '/' not in fixed:  # Beam finds nothing for a glob that does not start in a folder
            fixed, pattern = f'./{fixed}', f'./{pattern}'
        found = _list(pattern, posixpath.dirname(fixed))
        folders = filter(os.path.isdir, glob.glob(pattern)) if is_local and '**' not in pattern else ()
        for folder_path in folders:
            found += _list(f'{glob.escape(folder_path.rstrip("/"))}/**', posixpath.dirname(fixed))
        return _readable(sorted(found, key=lambda file: file.path), pattern)
    folder_path = pattern.rstrip('/')
    below = _list(f'{glob.escape(folder_path)}/**', folder_path)
    if below or os.path.isdir(pattern):
        return _readable(below, pattern)
    if not opening.exists(pattern):
        return []
    if format_of(pattern) is None:
        raise InputError(f'{pattern} is of no format that is read here: its name ends in no known suffix')
    return _list(glob.escape(pattern), posixpath.dirname(pattern))


def _list(pattern: str, root: str) -> list[InputFile]:
    generations = _generations(pattern) if pattern.startswith('gs://') else {}
    found = (
        InputFile(m.path, m.size_in_bytes, m.last_updated_in_seconds or 0.0, root, generations.get(m.path))
        for m in opening.match(pattern)
    )
    return sorted(found, key=lambda file: file.path)


def _generations(pattern: str) -> dict[str, int]:
    """The generations of the objects that match a pattern, perhaps with others; Beam's listing does not have them."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage

    bucket, _, name = pattern.removeprefix('gs://').partition('/')
    prefix = re.split(r'[*?[]', name, maxsplit=1)[0]
    try:
        client = storage.Client(project=None)
    except DefaultCredentialsError:
        client = storage.Client.create_anonymous_client()  # as Beam does: the bucket may be public
    try:
        blobs = client.list_blobs(bucket, prefix=prefix)
        return {f'gs://{bucket}/{blob.name}': blob.generation for blob in blobs if blob.generation}
    except GoogleAPIError as e:
        raise InputError(f'cannot list {pattern}: {common.one_line(e)}') from e


def _readable(files: Iterable[InputFile], pattern: str) -> list[InputFile]:
    """Without hidden files, files in hidden folders, and files of other formats, such as sidecars."""

    def is_hidden(file: InputFile) -> bool:
        return any(part.startswith('.') for part in folder.relative(file.root, file.path).split('/'))

    seen = [file for file in files if not is_hidden(file)]
    _warn_of_others([file.path for file in seen if format_of(file.path) is None], pattern)
    return [file for file in seen if format_of(file.path)]


def _warn_of_others(paths: Iterable[str], pattern: str) -> None:
    """One warning that counts files of unknown format by suffix, without the usual sidecars."""
    counts = collections.Counter(suffix for path in paths if (suffix := _suffix(path)) not in _SIDECARS)
    if not counts:
        return
    total = counts.total()
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kinds = [f'{count} .{suffix}' if suffix else f'{count} without suffix' for suffix, count in ranked]
    shown = ', '.join(kinds[:_SUFFIXES_SHOWN]) + (', ...' if len(kinds) > _SUFFIXES_SHOWN else '')
    _log.warning('%s: %d file%s passed over: %s', pattern, total, 's' if total > 1 else '', shown)


def _format_and_place(file: InputFile) -> tuple[str, str]:
    """What successive files must share to be read in one unit: image files their folder.

    A shard is always a unit by itself.
    """
    format_ = format_of(file.path)
    assert format_ is not None  # listing leaves others out
    return format_, file.root if format_ == FILES else file.path


def _file_runs(files: Sequence[InputFile], options: ReadOptions) -> Iterator[tuple[str, ...]]:
    for file in files:
        folder.folder_labels(folder.relative(file.root, file.path), options)  # fails now rather than on a worker
    for first, last in _cut([(file.size, 1) for file in files], (MAX_UNIT_BYTES, MAX_UNIT_FILES)):
        yield tuple(file.path for file in files[first:last])


def _row_group_runs(path: str, options: ReadOptions) -> Sequence[tuple[int, int] | None]:
    """Runs of row groups, after a look at the columns; none if there are no rows.

    For a damaged file it is [None]; its reader will report the damage.
    """
    try:
        with common.naming_failures(path), parquet.open_file(path) as file:
            parquet.Columns.of(file.schema_arrow, options, path)
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    except parquet.DAMAGE:
        return [None]
    weights = [(parquet.stored_bytes(group), group.num_rows) for group in groups]
    return _cut(weights, (MAX_UNIT_BYTES, MAX_UNIT_ROWS)) if any(group.num_rows for group in groups) else []


def _cut(weights: Sequence[tuple[int, int]], limits: tuple[int, int]) -> list[tuple[int, int]]:
    """Runs [first, last) of items whose summed weights keep within both limits; an item beyond them is alone.

    >>> _cut([(3, 1), (3, 1), (9, 1), (1, 1), (1, 1), (1, 1)], limits=(8, 2))
    [(0, 2), (2, 3), (3, 5), (5, 6)]
    """
    runs: list[tuple[int, int]] = []
    first, a, b = 0, 0, 0
    for i, (more_a, more_b) in enumerate(weights):
        if i > first and (a + more_a > limits[0] or b + more_b > limits[1]):
            runs.append((first, i))
            first, a, b = i, 0, 0
        a, b = a + more_a, b + more_b
    return [*runs, (first, len(weights))] if weights else []
