"""The versions of an index: `CURRENT` names the served one, `versions/<id>/` holds each.

This module owns the paths of an index; nothing else spells them.
"""

from __future__ import annotations

import datetime
import re
import uuid

from hashing_model.errors import InputError
from pipelines.index import files
from pipelines.index.manifest import Manifest

CURRENT = 'CURRENT'
_VERSION = re.compile(r'[\w.-]+', re.ASCII)


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
MANIFEST_PATH = 'manifest.json'
MODEL_FOLDER = 'model'
STAGING_FOLDER = 'staging'


def check_index_folder(index: str) -> None:
    """Refuse to build into a folder that is not an index.

    Raises:
        InputError: the folder holds other things and no index, or is a file.
    """
    try:
        names = files.names_in(index)
    except NotADirectoryError as e:
        raise InputError(f'{index} is a file; give a folder for the index') from e
    if names and CURRENT not in names and 'versions' not in names:
        raise InputError(f'{index} is not an index: it holds {", ".join(names[:3])}; give a new or empty folder')


def discard(index: str, version: str) -> None:
    """Remove what a version has so far, and the index's folders if nothing else is in them."""
    folder = version_folder(index, version)
    files.delete_folder(folder)
    for parent in (files.join(index, 'versions'), index):
        if not files.names_in(parent):
            files.delete_folder(parent)


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


def publish(index: str, version: str) -> None:
    """Make a version the served one."""
    files.write_bytes(files.join(index, CURRENT), f'{version}\n'.encode())


def read_manifest(index: str, version: str | None = None) -> Manifest:
    """The manifest of a version; of the served one by default.

    Raises:
        InputError: no such version, or not readable by this library.
    """
    version = version or current_version(index)
    path = files.join(version_folder(index, version), MANIFEST_PATH)
    if not files.exists(path):
        raise InputError(f'{index} has no version {version}: there is no {path}')
    return Manifest.loads(files.read_bytes(path), path)
