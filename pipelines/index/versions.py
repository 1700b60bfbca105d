"""The versions of an index: `CURRENT` names the served one, `versions/<id>/` holds each.

This module owns the paths of an index; nothing else spells them. `CURRENT` moves by `publish` alone.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import re
import uuid
from typing import Literal

import pyarrow as pa

from hashing_model.errors import BuildError, InputError
from pipelines import files
from pipelines.index import current
from pipelines.index.current import Current
from pipelines.index.manifest import DataFile, Manifest

CURRENT = 'CURRENT'
log = logging.getLogger(__name__)
_VERSION = re.compile(r'\w[\w.-]*', re.ASCII)


def new_version_id() -> str:
    """A new id; ids sort by the time they were made, to the second."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return f'{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}'


def version_folder(index: str, version: str) -> str:
    """Where a version lives."""
    return files.join(index, 'versions', version)


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


def write_data_file(folder: str, name: str, rows: int, content: bytes | pa.Buffer) -> DataFile:
    """Write a file of a version; returns how the manifest lists it."""
    return DataFile(name, rows, files.write_bytes(files.join(folder, name), content), files.digest(content))


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
    folder = version_folder(index, version)
    files.delete_folder(folder)
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
    version = files.read_bytes(path).decode(errors='replace').strip()
    if not _VERSION.fullmatch(version):
        raise InputError(f'{path} is damaged: it names no version but {version[:40]!r}')
    return version


def look(index: str) -> Current:
    """What `CURRENT` is now, or that there is none; `publish` compares with it."""
    return current.read(files.join(index, CURRENT))


def publish(index: str, version: str, believed: Current | None = None) -> None:
    """Make a finished version the served one, unless another was made so meanwhile; nothing happens if it is already.

    Args:
        index: the index.
        version: the finished version.
        believed: what `CURRENT` was when the work on the version began; None for whatever it is.

    Raises:
        BuildError: `CURRENT` moved meanwhile and stays as it is; or the version is not there (any more).
    """
    path = files.join(index, CURRENT)
    with current.locked(path):
        if not files.exists(files.join(version_folder(index, version), MANIFEST_PATH)):
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
    """Take a version out of use before its files are removed: it loses its manifest, so that nobody reads or serves it.

    Returns:
        False, and nothing happened, if it is served, or was finished though it should not have been.
    """
    with current.locked(files.join(index, CURRENT)):
        path = files.join(version_folder(index, version), MANIFEST_PATH)
        if look(index).text == version or (not finished and files.exists(path)):
            return False
        files.delete_file(path)
        return True


def read_manifest(index: str, version: str | None = None) -> Manifest:
    """The manifest of a version; of the served one by default.

    Raises:
        InputError: no such version, or not readable by this library.
    """
    wanted = current_version(index) if version is None else version
    if not _VERSION.fullmatch(wanted):
        raise InputError(f'{index} has no version {wanted!r}')
    path = files.join(version_folder(index, wanted), MANIFEST_PATH)
    try:
        content = files.read_bytes(path)
    except (FileNotFoundError, NotADirectoryError) as e:
        if version is None and current_version(index) != wanted:  # moved on, and the old one pruned, between two reads
            return read_manifest(index)
        raise InputError(f'{index} has no version {wanted}: there is no {path}') from e
    return Manifest.loads(content, path)


@dataclasses.dataclass(frozen=True)
class ListedVersion:
    """A version's folder, finished (with its `manifest`), without a manifest, or with one that cannot be read."""

    version: str
    state: Literal['finished', 'unfinished', 'unreadable']
    manifest: Manifest | None = None


def list_versions(index: str) -> list[ListedVersion]:
    """Every version of an index: those not finished by id, then the finished ones, the oldest first.

    Raises:
        InputError: no index there.
    """
    names = files.names_in(files.join(index, 'versions'))
    if not names and not files.exists(files.join(index, 'versions')):
        raise InputError(f'{index} is not an index: there is no {files.join(index, "versions")}')
    return sorted((_find(index, name) for name in names), key=_age)


def _find(index: str, version: str) -> ListedVersion:
    if not files.exists(files.join(version_folder(index, version), MANIFEST_PATH)):
        return ListedVersion(version, 'unfinished')
    try:
        return ListedVersion(version, 'finished', read_manifest(index, version))
    except (InputError, OSError):
        exists = files.exists(files.join(version_folder(index, version), MANIFEST_PATH))
        return ListedVersion(version, 'unreadable' if exists else 'unfinished')


def _age(found: ListedVersion) -> tuple[str, str]:
    return found.manifest.created if found.manifest else '', found.version


def version_before(found: list[ListedVersion], served: str) -> str | None:
    """The newest finished version that is older than the served one, of `list_versions`; None if there is none.

    One that failed its gate is passed over: it was not served before.
    """
    finished = [f.version for f in found if f.manifest and (f.manifest.gate != 'failed' or f.version == served)]
    place = finished.index(served) if served in finished else 0
    return finished[place - 1] if place else None
