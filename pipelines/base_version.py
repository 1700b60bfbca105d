"""The base of an incremental build: the served version, of which unchanged units and known images are taken over.

A unit is unchanged if the base has a part of its name (what is read, and how) and its content (what is in it): then
the part's files are copied. In other units an image keeps its code if the base has one of its digest from the same
files. All this equals what would be made anew, because the base has the same model and is by the same libraries.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa

from hashing_model.code_spec import CodeSpec
from hashing_model.errors import InputError
from pipelines.encode import KnownImage
from pipelines.index import files, versions
from pipelines.index.manifest import DataFile, Manifest
from pipelines.records import BROKEN_SHARD, DUPLICATE_ID, UNREADABLE_FILE
from pipelines.runs import Runs
from pipelines.shard_formats import common, parquet
from pipelines.shards import FILES, PARQUET, InputFile, ReadOptions, WorkUnit

READ_AT_ONCE = 1 << 20
CHANGES = 'added', 'changed', 'unchanged', 'removed'
# What makes pixels, features and codes.
CODING_LIBRARIES = 'grainhash', 'numpy', 'tensorflow', 'keras', 'pillow', 'opencv-python-headless', 'scikit-image'
# The rejects of a unit that must be read again though nothing in it changed: another unit's images decide about
# duplicates, and what was unreadable or cut off may be whole next time.
UNSETTLED = frozenset([DUPLICATE_ID, UNREADABLE_FILE, BROKEN_SHARD])

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Origin:
    """What an images part is made from: a row of `code_tables.UNITS`, but for the number of records."""

    name: str
    content: str
    first: bytes
    last: bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Base:
    """A finished version and what its parts were made from.

    Args:
        folder: of the version.
        manifest: its manifest.
        units: of its parts, in their order.
        records_read: of its parts.
    """

    folder: str
    manifest: Manifest
    units: tuple[Origin, ...]
    records_read: tuple[int, ...]

    @functools.cached_property
    def runs(self) -> Runs:
        """How its parts are cut into runs."""
        return Runs.cut(enumerate(file.rows for file in self.manifest.images))

    @functools.cached_property
    def _rejects(self) -> Mapping[str, DataFile]:
        return {file.path: file for file in self.manifest.rejects}

    def rejects_of(self, part: int) -> DataFile | None:
        """The rejects file of a part, if it rejected something."""
        return self._rejects.get(versions.rejects_path(part))

    def path(self, file: DataFile) -> str:
        """The full path of one of its files."""
        return files.join(self.folder, file.path)


@functools.lru_cache(maxsize=1)
def open_base(index: str, version: str) -> Base:
    """A version of an index, read once per process.

    Raises:
        InputError: there is none that is readable and that tells what its parts were made from.
    """
    manifest, folder = versions.read_manifest(index, version), versions.version_folder(index, version)
    if manifest.units is None:
        raise InputError(
            f'version {version} does not say what its parts were made from: it is from before that was kept'
        )
    table = files.read_table(files.join(folder, manifest.units.path))
    rows = zip(*(table[name].to_pylist() for name in ('name', 'content', 'first', 'last')), strict=True)
    return Base(folder, manifest, tuple(Origin(*row) for row in rows), tuple(table['records_read'].to_pylist()))


def check_base(
    manifest: Manifest, spec: CodeSpec, model: Mapping[str, str] | None, libraries: Mapping[str, str]
) -> None:
    """Find out whether codes of a version equal those that would be made now.

    Raises:
        InputError: they may not; the message says what differs.
    """
    found, wanted = ((m or {}).get('fingerprint', 'none') for m in (manifest.model, model))
    if found != wanted:
        raise InputError(f'its model is {found[:12]}, and this build has {wanted[:12]}')
    if manifest.spec != spec:
        raise InputError('its codes have other segments')
    for name in CODING_LIBRARIES if model else CODING_LIBRARIES[:1]:
        if manifest.libraries.get(name) != libraries[name]:
            raise InputError(f'it was made with {name} {manifest.libraries.get(name)}, and this is {libraries[name]}')


def unit_name(unit: WorkUnit, options: ReadOptions) -> str:
    """A digest of which files a unit reads, and how."""
    paths = [path.encode(errors='surrogateescape').hex() for path in unit.paths]
    described = [unit.format, unit.root, unit.row_groups, paths, dataclasses.asdict(options)]
    return files.digest(json.dumps(described, sort_keys=True).encode())


def origin_of(unit: WorkUnit, options: ReadOptions) -> Origin:
    """What a unit reads, as it is now; call it before reading, so that what changes meanwhile is not missed later.

    Raises:
        OSError: a shard cannot be read.
    """
    first, last = (path.encode(errors='surrogateescape') for path in (unit.paths[0], unit.paths[-1]))
    return Origin(unit_name(unit, options), unit.state or _digest_files(unit), first, last)


def _digest_files(unit: WorkUnit) -> str:
    """The digest of all bytes of a unit on a disk."""
    hashed = hashlib.blake2b(digest_size=16)
    if unit.format == PARQUET and unit.row_groups:
        _hash_row_groups(unit.paths[0], unit.row_groups, hashed)
        return hashed.hexdigest()
    for path in unit.paths:
        try:
            with common.naming_failures(path), open(path, 'rb') as file:
                _hash_range(file, None, hashed)
        except OSError as e:
            if unit.format != FILES:
                raise
            hashed.update(repr(e).encode())  # it will be one reject
        hashed.update(b'\n')
    return hashed.hexdigest()


def _hash_row_groups(path: str, row_groups: tuple[int, int], hashed: Any) -> None:
    """Hash the pages of a run of row groups, what the footer says of them, and the columns' types."""
    with parquet.open_file(path) as opened, open(path, 'rb') as file:
        hashed.update(str(opened.schema_arrow).encode())
        for group in (opened.metadata.row_group(i) for i in range(*row_groups)):
            columns = [group.column(i) for i in range(group.num_columns)]
            hashed.update(repr(group.to_dict()).encode())
            starts = [c.dictionary_page_offset if c.has_dictionary_page else c.data_page_offset for c in columns]
            for start, column in zip(starts, columns, strict=True):
                file.seek(start)
                _hash_range(file, column.total_compressed_size, hashed)


def _hash_range(file: IO[bytes], length: int | None, hashed: Any) -> None:
    """Hash some bytes from here on, all if no length is given."""
    left = length
    while left != 0 and (piece := file.read(READ_AT_ONCE if left is None else min(left, READ_AT_ONCE))):
        hashed.update(piece)
        left = None if left is None else left - len(piece)


def with_states(units: Sequence[WorkUnit], inputs: Sequence[InputFile]) -> list[WorkUnit]:
    """Units with what the listing tells of files in buckets: size and generation, else the time of the last change.

    Where it tells neither, the state is like no other, so that the files are read again.
    """
    listed = {file.path: file for file in inputs if '://' in file.path}

    def state(unit: WorkUnit) -> str:
        found = [listed[path] for path in unit.paths if path in listed]
        described = [(file.size, file.generation or file.mtime or uuid.uuid4().hex) for file in found]
        return files.digest(json.dumps(described).encode()) if found else ''

    return [dataclasses.replace(unit, state=state(unit)) for unit in units] if listed else list(units)


def with_base_parts(units: Sequence[WorkUnit], base: Base, options: ReadOptions) -> list[WorkUnit]:
    """Units with the parts of the base that they may take over, or that were made from some of the same files."""
    by_name = {origin.name: part for part, origin in enumerate(base.units)}
    order = sorted(range(len(base.units)), key=lambda part: base.units[part].first)
    firsts = np.array([base.units[part].first for part in order], object)
    reached: list[bytes] = []  # by this one and all before it
    for part in order:
        reached.append(max(base.units[part].last, reached[-1] if reached else b''))
    lasts = np.array(reached, object)

    def overlapping(unit: WorkUnit) -> tuple[int, ...]:
        first, last = (path.encode(errors='surrogateescape') for path in (unit.paths[0], unit.paths[-1]))
        near = order[np.searchsorted(lasts, first) : np.searchsorted(firsts, last, side='right')]
        return tuple(sorted(part for part in near if base.units[part].last >= first))

    return [
        dataclasses.replace(unit, base_part=by_name.get(unit_name(unit, options)), base_parts=overlapping(unit))
        for unit in units
    ]


def read_images(base: Base, part: int, columns: Sequence[str]) -> pa.Table | None:
    """Some columns of an images part; None, after a warning, if its file or its rejects' is damaged or gone."""
    images, rejects = base.manifest.images[part], base.rejects_of(part)
    try:
        contents = {file: files.read_bytes(base.path(file)) for file in (images, rejects) if file}
    except FileNotFoundError as e:
        _log.warning('an images part is made anew: %s', e)
        return None
    for file, content in contents.items():
        if files.digest(content) != file.digest:
            _log.warning('%s is damaged: its images are made anew', base.path(file))
            return None
    return files.parse_table(contents[images], columns)


@functools.lru_cache(maxsize=2)
def known_images(base: Base, parts: tuple[int, ...]) -> Mapping[bytes, KnownImage]:
    """The images of some parts of the base by digest; those of a damaged part are left out."""
    known: dict[bytes, KnownImage] = {}
    for part in parts:
        rows = read_images(base, part, ['digest', 'width', 'height', 'code'])
        for row in zip(*(column.to_pylist() for column in rows.columns), strict=True) if rows else ():
            known[row[0]] = KnownImage(*row)
    return known
