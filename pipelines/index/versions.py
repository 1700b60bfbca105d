"""The versions of an index: `CURRENT` names the served one, `versions/<id>/` holds each.

`Version` is the handle of one: its folder, its manifest, reading and writing its files. The functions below it are
about all versions of an index. This module owns the paths of an index; nothing else spells them. `CURRENT` moves by
`publish` alone.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import logging
import re
import uuid
from collections.abc import Sequence
from typing import Literal

import pyarrow as pa

from hashing_model.errors import BuildError, InputError
from pipelines import files
from pipelines.index import current
from pipelines.index.current import Current
from pipelines.index.manifest import DataFile, Manifest

CURRENT = 'CURRENT'
REMOVED = 'the version was removed after it was opened; open the index again'

log = logging.getLogger(__name__)
_VERSION = re.compile(r'\w[\w.-]*', re.ASCII)
_VERSION_ID = re.compile(r'\d{8}T\d{6}Z-[0-9a-f]{6}', re.ASCII)


def images_path(part: int) -> str:
    """The images file of a work unit, below its version's folder."""
    return f'images/part-{part:05d}.parquet'


def rejects_path(part: int) -> str:
    """The rejects file of a work unit, below its version's folder."""
    return f'rejects/part-{part:05d}.parquet'


def codes_path(table: int, prefix: str, part: int) -> str:
    """A file of one partition, below its version's folder; Hive-style names."""
    return f'codes/table={table}/prefix={prefix}/part-{part}.parquet'


SAMPLE_PATH = 'sample.parquet'
INPUTS_PATH = 'inputs.parquet'
UNITS_PATH = 'units.parquet'
QUALITY_PATH = 'quality.json'
BUILD_PATH = 'build.json'
MANIFEST_PATH = 'manifest.json'
MODEL_FOLDER = 'model'
STAGING_FOLDER = 'staging'


@dataclasses.dataclass(frozen=True)
class Version:
    """The handle of one version of an index: where its files are, what its manifest says, reading and writing them.

    A handle may travel to other processes, with every step of a Beam job. It is pickled as its two texts; each process
    reads the manifest for itself, once.

    Args:
        index: absolute path or uri of the index.
        id: the version's id, its folder's name.
    """

    index: str
    id: str

    def __reduce__(self) -> tuple[type[Version], tuple[str, str]]:
        return Version, (self.index, self.id)  # without the manifest

    @classmethod
    def open(cls, index: str, version: str) -> Version:
        """The handle of a finished version, whose manifest is read now.

        Raises:
            InputError: no such version, or not readable by this library.
        """
        if not _VERSION.fullmatch(version):
            raise InputError(f'{index} has no version {version!r}')
        handle = cls(index, version)
        try:
            content = files.read_bytes(handle.manifest_path)
        except (FileNotFoundError, NotADirectoryError) as e:
            raise InputError(f'{index} has no version {version}: there is no {handle.manifest_path}') from e
        return handle.with_manifest(Manifest.loads(content, handle.manifest_path))

    @property
    def folder(self) -> str:
        """The folder that holds all its files."""
        return files.join(self.index, 'versions', self.id)

    def path(self, name: str) -> str:
        """The full path of one of its files or folders, given the path below its folder."""
        return files.join(self.folder, name)

    @property
    def manifest_path(self) -> str:
        """The full path of its manifest."""
        return self.path(MANIFEST_PATH)

    @property
    def model_path(self) -> str:
        """The full path of the folder of its model; versions of codes have none."""
        return self.path(MODEL_FOLDER)

    @functools.cached_property
    def manifest(self) -> Manifest:
        """The manifest of a version that was finished when the handle was made; read once per process.

        Raises:
            OSError: the version has been removed since.
            InputError: not readable by this library.
        """
        return _read_once(self.index, self.id)

    def with_manifest(self, manifest: Manifest) -> Version:
        """A handle of this version with a manifest in memory, such as one that is not written yet."""
        handle = Version(self.index, self.id)
        handle.__dict__['manifest'] = manifest  # where `cached_property` keeps it
        return handle

    @property
    def finished(self) -> bool:
        """Whether its manifest is there."""
        return files.exists(self.manifest_path)

    def read_table(self, file: DataFile, columns: Sequence[str] | None = None) -> pa.Table:
        """One of its Parquet files, or some columns of it.

        Raises:
            OSError: the file is missing, damaged, or has other rows than the manifest says; the message names it.
        """
        path = self.path(file.path)
        try:
            table = files.read_table(path, columns)
        except OSError as e:
            if self.was_removed(e.__cause__):
                raise OSError(f'cannot read {path}: {REMOVED}') from e
            raise
        if len(table) != file.rows:
            raise OSError(f'{path} has {len(table)} rows; the manifest says {file.rows}')
        return table

    def was_removed(self, error: BaseException | None) -> bool:
        """Whether a file cannot be read because the version has been pruned: its manifest goes first."""
        return isinstance(error, FileNotFoundError) and not self.finished

    def write(self, name: str, rows: int, content: bytes | pa.Buffer) -> DataFile:
        """Write one of its files; returns how the manifest lists it."""
        return DataFile(name, rows, files.write_bytes(self.path(name), content), files.digest(content))


@functools.lru_cache(maxsize=2)
def _read_once(index: str, version: str) -> Manifest:
    try:
        return Version.open(index, version).manifest
    except InputError as e:
        handle = Version(index, version)
        if not handle.finished:
            raise OSError(f'cannot read {handle.folder}: {REMOVED}') from e
        raise


def open_version(index: str, version: str | None = None) -> Version:
    """The handle of a version, of the served one by default; its manifest is read now.

    Raises:
        InputError: no index there, no such version, or not readable by this library.
    """
    if version is not None:
        return Version.open(index, version)
    wanted = current_version(index)
    try:
        return Version.open(index, wanted)
    except InputError:
        if current_version(index) != wanted:  # moved on, and the old one pruned, between two reads
            return open_version(index)
        raise


def read_manifest(index: str, version: str | None = None) -> Manifest:
    """The manifest of a version; see `open_version`."""
    return open_version(index, version).manifest


def new_version_id() -> str:
    """A new id; ids sort by the time they were made, to the second."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return f'{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}'


def is_version_id(name: str) -> bool:
    """Whether a name is one that `new_version_id` makes."""
    return _VERSION_ID.fullmatch(name) is not None


def check_index_folder(index: str) -> None:
    """Refuse to build into a folder that is not an index.

    Raises:
        InputError: the folder holds other things and no index, or is a file.
    """
    try:
        names = files.names_in(index)
    except NotADirectoryError as e:
        raise InputError(f'{index} is a file; give a folder for the index') from e
    names = [name for name in names if name != f'{CURRENT}{current.LOCK_SUFFIX}']  # outlives what it locked
    if names and CURRENT not in names and 'versions' not in names:
        raise InputError(f'{index} is not an index: it holds {", ".join(names[:3])}; give a new or empty folder')


def discard(index: str, version: str) -> None:
    """Remove what a version has so far, and the index's folders if nothing else is in them."""
    files.delete_folder(Version(index, version).folder)
    for parent in (files.join(index, 'versions'), index):
        files.delete_empty_folder(parent)


def current_version(index: str) -> str:
    """The id of the served version.

    Raises:
        InputError: no index there, one of which no version was ever finished, or a damaged `CURRENT`.
    """
    path = files.join(index, CURRENT)
    if not files.exists(path):
        what = 'has no finished version' if files.exists(files.join(index, 'versions')) else 'is not an index'
        raise InputError(f'{index} {what}: there is no {path}')
    version = files.read_bytes(path, current.MOST_BYTES).decode(errors='replace').strip()
    if not _VERSION.fullmatch(version):
        raise InputError(f'{path} is damaged: it names no version but {version[:40]!r}')
    return version


def look(index: str) -> Current:
    """What `CURRENT` is now, or that there is none; `publish` compares with it."""
    return current.read(files.join(index, CURRENT))


def publish(index: str, version: str, believed: Current | None = None) -> None:
    """Make a finished version the served one, unless `CURRENT` was changed meanwhile.

    Nothing happens if it is served already.

    Args:
        index: the index.
        version: the finished version.
        believed: what `CURRENT` was when the work on the version began; None for whatever it is.

    Raises:
        BuildError: `CURRENT` moved meanwhile and stays as it is; or the version is not there (any more).
    """
    path = files.join(index, CURRENT)
    with current.locked(path):
        if not Version(index, version).finished:
            raise BuildError(f'{index} has no finished version {version}; it was removed meanwhile')
        try:
            current.move(path, version, believed or look(index))
        except current.MovedError as e:
            now, was = e.found.text or 'none', believed.text if believed and believed.text else 'none'
            raise BuildError(
                f'version {version} is finished but not served: {path} names {now} now, not {was} as when the work '
                f'began; grainhash promote {index} {version} serves it'
            ) from e
    log.info('%s: version %s is served', index, version)  # deploy/dataflow/terraform/alerts.tf waits for this


def retire(index: str, version: str, finished: bool = True) -> bool:
    """Take a version out of use before its files are removed: without its manifest, nobody reads or serves it.

    Returns:
        Whether it was taken out of use. A version that is served stays, and so does a finished one if `finished` is
        False.
    """
    with current.locked(files.join(index, CURRENT)):
        retired = Version(index, version)
        if look(index).text == version or (not finished and retired.finished):
            return False
        files.delete_file(retired.manifest_path)
        return True


@dataclasses.dataclass(frozen=True)
class ListedVersion:
    """A version in `versions/`: finished (with its `manifest`), unfinished, or with a manifest that cannot be read."""

    version: str
    state: Literal['finished', 'unfinished', 'unreadable']
    manifest: Manifest | None = None


def list_versions(index: str) -> list[ListedVersion]:
    """Every version of an index: first the others by id, then the finished ones, the oldest first.

    Raises:
        InputError: no index there.
    """
    names = files.names_in(files.join(index, 'versions'))
    if not names and not files.exists(files.join(index, 'versions')):
        raise InputError(f'{index} is not an index: there is no {files.join(index, "versions")}')
    return sorted((_find(index, name) for name in names), key=_age)


def _find(index: str, version: str) -> ListedVersion:
    handle = Version(index, version)
    if not handle.finished:
        return ListedVersion(version, 'unfinished')
    try:
        return ListedVersion(version, 'finished', Version.open(index, version).manifest)
    except (InputError, OSError):
        return ListedVersion(version, 'unreadable' if handle.finished else 'unfinished')


def _age(found: ListedVersion) -> tuple[str, str]:
    return found.manifest.created if found.manifest else '', found.version


def version_before(found: list[ListedVersion], served: str) -> str | None:
    """The newest finished version that is older than the served one, of those found; None if there is none.

    Versions that failed their gate are passed over, as they were never served.
    """
    finished = [f.version for f in found if f.manifest and (f.manifest.gate != 'failed' or f.version == served)]
    place = finished.index(served) if served in finished else 0
    return finished[place - 1] if place else None
