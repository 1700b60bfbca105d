"""The manifest of a version: what it holds, file by file. It is the only thing a reader trusts.

A version without a manifest does not exist; readers never list a folder to find out what does. Its last field is a
digest of everything before it, so that a manifest that was changed is detected.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from pipelines.files import digest
from pipelines.index.layout import Substring

FORMAT_VERSION = 1
Gate = Literal['passed', 'failed', 'skipped']  # of a version, before it was served
CHANGES = 'added', 'changed', 'unchanged', 'removed'
_END = b'\n}'


@dataclasses.dataclass(frozen=True)
class DataFile:
    """One file of a version: its path below the version's folder, rows of its table, size, and digest.

    `digest` is the BLAKE2b-128 of its bytes in hex (`files.digest`); None in manifests from before there was one.
    """

    path: str
    rows: int
    bytes: int
    digest: str | None = None


@dataclasses.dataclass(frozen=True)
class Partition:
    """The rows of one table under one prefix, in one or more files."""

    table: int
    prefix: str
    files: tuple[DataFile, ...]

    @property
    def rows(self) -> int:
        """Rows of all its files."""
        return sum(f.rows for f in self.files)


@dataclasses.dataclass(frozen=True)
class Table:
    """All codes sorted by one substring.

    Args:
        substring: the bits it is sorted by.
        selectivity: share of pairs of codes whose substrings differ by at most 0, 1, ..., bits; from the sample.
        partitions: in ascending order of their prefixes; prefixes without rows have no files.
    """

    substring: Substring
    selectivity: tuple[float, ...]
    partitions: tuple[Partition, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything a version consists of; see the module.

    Args:
        version: the version's id.
        created: UTC time, ISO 8601.
        spec: the code spec of its codes.
        model: fingerprint and method of the model inside; None for an index built from codes.
        tables: one per substring.
        images: one file per work unit, in order of part number.
        rejects: one file per work unit that rejected something.
        inputs: what was read, a row per file: path, size in bytes, modification time, generation.
        counters: records_read, indexed, rejected, duplicates, and rejects by reason.
        libraries: versions of what wrote it.
        sample: ids, labels and codes of the images whose ids have the smallest hashes.
        model_files: the files of the model's folder, which have no rows; older versions list none.
        units: what each images part was made from; None in older versions.
        changes: for an incremental build: the version it started from (`base`); how many images were `added`,
            `changed`, `unchanged` and `removed`; and what was taken over without encoding, whole `units`, and `images`
            of other units. None for a full build.
        gate: whether it passed the checks before it was served, or was not checked; None in older versions.
        quality: what the checks found, as JSON; None in older versions.
        build: what the build did and how long it took, as JSON; None in older versions.
    """

    version: str
    created: str
    spec: CodeSpec
    model: Mapping[str, str] | None
    tables: tuple[Table, ...]
    images: tuple[DataFile, ...]
    rejects: tuple[DataFile, ...]
    inputs: DataFile
    counters: Mapping[str, Any]
    libraries: Mapping[str, str]
    sample: DataFile
    format_version: int = FORMAT_VERSION
    model_files: tuple[DataFile, ...] = ()
    units: DataFile | None = None
    changes: Mapping[str, Any] | None = None
    gate: Gate | None = None
    quality: DataFile | None = None
    build: DataFile | None = None

    @property
    def rows(self) -> int:
        """Indexed images."""
        return sum(f.rows for f in self.images)

    @property
    def data_files(self) -> tuple[DataFile, ...]:
        """Every Parquet file of the version."""
        codes = (f for t in self.tables for p in t.partitions for f in p.files)
        units = (self.units,) if self.units else ()
        return (*self.images, *codes, *self.rejects, self.inputs, *units, self.sample)

    @property
    def other_files(self) -> tuple[DataFile, ...]:
        """The files that are not Parquet: the model, `quality.json` and `build.json`."""
        return (*self.model_files, *(file for file in (self.quality, self.build) if file))

    @property
    def all_files(self) -> tuple[DataFile, ...]:
        """Every file of the version but the manifest."""
        return (*self.data_files, *self.other_files)

    def dumps(self) -> bytes:
        """JSON in ASCII, as paths need not be valid UTF-8, with the digest."""
        value = dataclasses.asdict(self)
        value['spec'] = self.spec.to_json()
        return _seal(json.dumps(value, indent=1).encode())

    @classmethod
    def loads(cls, content: bytes, path: str = 'manifest') -> Manifest:
        """Inverse of `dumps`.

        Raises:
            InputError: not a manifest, one that was changed, or of a format that this library does not read.
        """
        try:
            value = json.loads(content)
            found = value['format_version']
        except (KeyError, TypeError, ValueError, RecursionError) as e:  # the last of thousands of brackets
            raise InputError(f'{path} is not a manifest of grainhash: {e!r}') from e
        if found != FORMAT_VERSION:
            raise InputError(f'{path} has index format {found}; this grainhash reads format {FORMAT_VERSION}')
        if 'digest' in value and content != _seal(_unseal(content)):  # manifests from before have none
            raise InputError(f'{path} is not a manifest of grainhash: it is damaged, its digest is that of another')
        value.pop('digest', None)
        try:
            value['spec'] = CodeSpec.from_json(value['spec'])
            value['tables'] = tuple(_table(t) for t in value['tables'])
            value['images'] = tuple(DataFile(**f) for f in value['images'])
            value['rejects'] = tuple(DataFile(**f) for f in value['rejects'])
            value['inputs'] = DataFile(**value['inputs'])
            value['sample'] = DataFile(**value['sample'])
            value['model_files'] = tuple(DataFile(**f) for f in value.get('model_files', ()))
            for name in ('units', 'quality', 'build'):
                value[name] = DataFile(**value[name]) if value.get(name) else None
            return cls(**value)
        except (KeyError, TypeError, ValueError) as e:
            raise InputError(f'{path} is not a manifest of grainhash: {e!r}') from e


def _seal(content: bytes) -> bytes:
    """A JSON object with its own digest as the last field."""
    return content[: -len(_END)] + b',\n "digest": "%b"' % digest(content).encode() + _END


def _unseal(content: bytes) -> bytes:
    """Inverse of `_seal`."""
    return content.rpartition(b',\n "digest": "')[0] + _END


def _table(value: Mapping[str, Any]) -> Table:
    partitions = tuple(
        Partition(p['table'], p['prefix'], tuple(DataFile(**f) for f in p['files'])) for p in value['partitions']
    )
    return Table(Substring(**value['substring']), tuple(value['selectivity']), partitions)
