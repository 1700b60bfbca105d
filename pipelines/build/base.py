"""The base of an incremental build: the served version, from which unchanged units and known images are taken over.

A unit is unchanged if the base has a part with the same name (a digest of what is read, and how) and the same content
(a digest of what is in it); the part's files are then copied. In other units, an image keeps its code if the base has
an image with the same digest from the same files. The result equals a full build's, because a base has the same model
and was made with the same libraries.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import threading
import uuid
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from pipelines import files
from pipelines.build.part_runs import Runs
from pipelines.encoding.encode import KnownImage
from pipelines.encoding.models import CODING_LIBRARIES
from pipelines.index import code_tables
from pipelines.index.manifest import DataFile, Manifest
from pipelines.index.versions import Version, rejects_path
from pipelines.inputs.formats import common, parquet
from pipelines.inputs.options import ReadOptions
from pipelines.inputs.shards import FILES, PARQUET, InputFile, WorkUnit
from pipelines.records import DUPLICATE_ID, TRANSIENT

READ_AT_ONCE = 1 << 20
# The rejects of a unit that must be read again though nothing in it changed: another unit's images decide about
# duplicates.
UNSETTLED = TRANSIENT | {DUPLICATE_ID}

_log = logging.getLogger(__name__)
_reading = threading.Lock()  # a runner may start several units at once in one process


@dataclasses.dataclass(frozen=True)
class Origin:
    """What an images part is made from: a row of `code_tables.UNITS` without the number of records."""

    name: str
    content: str
    first: bytes
    last: bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Base:
    """A finished version and what its parts were made from.

    Args:
        version: the handle, with its manifest.
        units: of its parts, in their order.
        records_read: of its parts.
    """

    version: Version
    units: tuple[Origin, ...]
    records_read: tuple[int, ...]

    @property
    def manifest(self) -> Manifest:
        """The version's manifest."""
        return self.version.manifest

    @functools.cached_property
    def runs(self) -> Runs:
        """How its images parts are grouped into runs."""
        return Runs.cut(enumerate(file.rows for file in self.manifest.images))

    @functools.cached_property
    def _rejects(self) -> Mapping[str, DataFile]:
        return {file.path: file for file in self.manifest.rejects}

    def rejects_of(self, part: int) -> DataFile | None:
        """The rejects file of a part, if it rejected something."""
        return self._rejects.get(rejects_path(part))

    def path(self, file: DataFile) -> str:
        """The full path of one of its files."""
        return self.version.path(file.path)


@functools.lru_cache(maxsize=1)
def open_base(index: str, version: str) -> Base:
    """A version of an index, read once per process.

    Raises:
        InputError: there is none that is readable and that tells what its parts were made from.
    """
    opened = Version.open(index, version)
    if opened.manifest.units is None:
        raise InputError(
            f'version {version} does not say what its parts were made from: it is from before that was kept'
        )
    table = opened.read_table(opened.manifest.units)
    rows = zip(*(table[name].to_pylist() for name in ('name', 'content', 'first', 'last')), strict=True)
    return Base(opened, tuple(Origin(*row) for row in rows), tuple(table['records_read'].to_pylist()))


def check_base(
    manifest: Manifest, spec: CodeSpec, model: Mapping[str, str] | None, libraries: Mapping[str, str]
) -> None:
    """Refuse a base whose codes may differ from those that would be made now.

    Raises:
        InputError: the model, the code spec or a library differs; the message says which.
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
    """What a unit reads, as it is now. Call it before reading, so that the next build sees what changes meanwhile.

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
                end = str(_hash_range(file, None, hashed))
        except OSError as e:
            if unit.format != FILES:
                raise
            end = repr(e)  # it will be one reject
        hashed.update(f'\n{end}\n'.encode())
    return hashed.hexdigest()


def _hash_row_groups(path: str, row_groups: tuple[int, int], hashed: Any) -> None:
    """Hash the pages of a run of row groups, what the footer says of them, and the columns' types."""
    with parquet.open_file(path) as opened, open(path, 'rb') as file:
        hashed.update(str(opened.schema_arrow).encode())
        for group in (opened.metadata.row_group(i) for i in range(*row_groups)):
            columns = [group.column(i) for i in range(group.num_columns)]
            # without the statistics: they decode texts, which may not be UTF-8
            about = [(c.path_in_schema, c.compression, c.encodings, c.num_values) for c in columns]
            hashed.update(repr((group.num_rows, about)).encode())
            starts = [c.dictionary_page_offset if c.has_dictionary_page else c.data_page_offset for c in columns]
            for start, column in zip(starts, columns, strict=True):
                file.seek(start)
                _hash_range(file, column.total_compressed_size, hashed)


def _hash_range(file: IO[bytes], length: int | None, hashed: Any) -> int:
    """Hash some bytes from here on, all if no length is given; returns how many they were."""
    done = 0
    while done != length and (piece := file.read(READ_AT_ONCE if length is None else min(READ_AT_ONCE, length - done))):
        hashed.update(piece)
        done += len(piece)
    return done


def with_states(units: Sequence[WorkUnit], inputs: Sequence[InputFile]) -> list[WorkUnit]:
    """Add the state of files in buckets to their units: size, and generation or else time of change, from the listing.

    If it has neither, the state is unique, so that the files are read again.
    """
    listed = {file.path: file for file in inputs if '://' in file.path}

    def state(unit: WorkUnit) -> str:
        found = [listed[path] for path in unit.paths if path in listed]
        described = [(file.size, file.generation or file.mtime or uuid.uuid4().hex) for file in found]
        return files.digest(json.dumps(described).encode()) if found else ''

    return [dataclasses.replace(unit, state=state(unit)) for unit in units] if listed else list(units)


def with_base_parts(units: Sequence[WorkUnit], base: Base, options: ReadOptions) -> list[WorkUnit]:
    """Add to units the part of the base that they may take over, and the parts made from some of their files."""
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
    """Some columns of an images part; None, after a warning, if its file or its rejects file is damaged or missing."""
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


class KnownImages:
    """The images of some parts of a base, found by the digest of their bytes; each takes about 40 bytes of memory."""

    def __init__(self, rows: pa.Table) -> None:
        """Take columns `digest`, `width`, `height` and `code` of images."""
        digests = code_tables.codes_from_arrow(rows['digest'])
        order = np.argsort(digests.view('S16')[:, 0], kind='stable')
        self._digests = digests[order]
        self._codes = code_tables.codes_from_arrow(rows['code'])[order]
        self._sizes = np.stack([rows['width'].to_numpy(), rows['height'].to_numpy()], axis=1)[order]

    def __len__(self) -> int:
        return len(self._digests)

    def get(self, digest: bytes) -> KnownImage | None:
        """The image of a digest, if it is known."""
        place = int(np.searchsorted(self._digests.view('S16')[:, 0], np.bytes_(digest)))
        if place == len(self) or self._digests[place].tobytes() != digest:
            return None
        width, height = self._sizes[place].tolist()
        return KnownImage(digest, width, height, self._codes[place].tobytes())


def known_images(base: Base, parts: tuple[int, ...]) -> KnownImages:
    """The images of some parts of the base; those of a damaged part are left out."""
    with _reading:
        return _known_images(base, parts)


@functools.lru_cache(maxsize=2)
def _known_images(base: Base, parts: tuple[int, ...]) -> KnownImages:
    columns = ['digest', 'width', 'height', 'code']
    read = [read_images(base, part, columns) for part in parts]
    empty = code_tables.images_schema(base.manifest.spec.num_bytes).empty_table().select(columns)
    return KnownImages(pa.concat_tables([empty, *(rows for rows in read if rows is not None)]))
