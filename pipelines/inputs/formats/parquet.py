"""Parquet shards with an image column: bytes, or the `{bytes, path}` struct of Hugging Face data sets.

Only the columns that are needed are read, a few rows at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import posixpath
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from hashing_model.errors import InputError
from pipelines import records
from pipelines.inputs.formats import common, folder
from pipelines.inputs.formats.common import BrokenShardError, MetadataError
from pipelines.inputs.opening import open_input
from pipelines.inputs.options import ReadOptions
from pipelines.records import Record, Reject, Source

_IMAGE = ('image', 'jpg', 'png', 'webp', 'img', 'bytes', 'content')
_ID = ('image_id', 'id', '__key__', 'key', 'uid', 'filename', 'file_name', 'path')
_CAPTION = ('caption', 'text', 'title')
_LABELS = ('coarse', 'fine', 'label', 'labels')

_BATCH_ROWS = 32
DAMAGE = (*common.DAMAGE, pa.ArrowException)


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of one file that hold a record's parts."""

    image: str
    image_id: str | None
    caption: str | None
    labels: tuple[str, ...]

    @classmethod
    def of(cls, schema: pa.Schema, options: ReadOptions, shard: str) -> Columns:
        """The columns that the options name, or the usual ones.

        Raises:
            InputError: a named column that is missing or of an unusable type, or no image column.
        """
        pick = _Picker(schema, shard)
        image = pick(options.image, _IMAGE, _is_image, 'the image bytes')
        if image is None:
            raise InputError(f'{shard} has no column of image bytes; its columns are {pick.names}')
        return cls(
            image,
            pick(options.image_id, _ID, _is_id, 'the id'),
            pick(options.caption, _CAPTION, _is_text, 'the caption'),
            tuple(pick.label(name) for name in options.labels)
            or tuple(name for name in _LABELS if pick.has(name, _is_labels)),
        )

    @property
    def names(self) -> list[str]:
        """Every column to read."""
        nested = {name.partition('/')[0] for name in self.labels}
        return list(dict.fromkeys([*filter(None, (self.image, self.image_id, self.caption)), *sorted(nested)]))


@dataclasses.dataclass
class _Picker:
    schema: pa.Schema
    shard: str

    def __call__(
        self, named: str | None, usual: tuple[str, ...], fits: Callable[[pa.DataType], bool], what: str
    ) -> str | None:
        if named is None:
            return next((name for name in usual if self.has(name, fits)), None)
        self._require(named, named in self.schema.names)
        if not self.has(named, fits):
            raise InputError(f'{self.shard}: column {named} is {self.schema.field(named).type}; it cannot hold {what}')
        return named

    def label(self, name: str) -> str:
        """The name of a label column, or of a field of the `labels` column, written `labels/NAME`."""
        if name in self.schema.names:
            self(name, (), _is_labels, 'labels')
            return name
        self._require(name, self.has('labels', lambda t: types.is_map(t) or name in _struct_fields(t)))
        return f'labels/{name}'

    def has(self, name: str, fits: Callable[[pa.DataType], bool]) -> bool:
        return self.schema.names.count(name) == 1 and fits(_plain(self.schema.field(name).type))

    @property
    def names(self) -> str:
        return ', '.join(self.schema.names)

    def _require(self, name: str, there: bool) -> None:
        if not there:
            raise InputError(f'{self.shard} has no column {name}; its columns are {self.names}')


@contextlib.contextmanager
def open_file(path: str) -> Iterator[pq.ParquetFile]:
    """Open one Parquet file.

    Raises:
        BrokenShardError: it has no readable footer, as when it was cut short.
    """
    raw: Any = open_input(path)
    with contextlib.closing(raw):
        with _arrow_damage():
            # Streamed through a buffer: a row group of images may be larger than the memory.
            file = pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
        yield file


def stored_bytes(group: pq.RowGroupMetaData) -> int:
    """The compressed bytes of a row group."""
    return sum(group.column(i).total_compressed_size for i in range(group.num_columns))


def read(
    shard: str, row_groups: tuple[int, int] | None, options: ReadOptions, root: str = ''
) -> Iterator[Record | Reject]:
    """The records of a run of row groups, None for all; a source's member is the row's number in the file, from 0.

    The id of a row without one is the shard's path below `root` (or its name without a root) and the row's number.
    """
    return common.rejecting_damage(_records(shard, row_groups, options, root), shard, DAMAGE)


def read_member(shard: str, member: str, options: ReadOptions) -> bytes | None:
    """The image of row `member`; None if there is none."""
    if not member.isdecimal():
        return None
    with open_file(shard) as file:
        columns = Columns.of(file.schema_arrow, dataclasses.replace(options, labels=()), shard)
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first <= int(member) < first + rows:
                for number, row in _rows(file, (group, group + 1), [columns.image]):
                    if number == int(member):
                        return _image(row(columns.image))
            first += rows
    return None


def _records(
    shard: str, row_groups: tuple[int, int] | None, options: ReadOptions, root: str
) -> Iterator[Record | Reject]:
    name = folder.relative(root, shard) if root else posixpath.basename(shard)
    with open_file(shard) as file:
        columns = Columns.of(file.schema_arrow, options, shard)
        for number, row in _rows(file, row_groups or (0, file.num_row_groups), columns.names):
            source = Source(shard, str(number))
            try:
                yield _record(source, columns, row, name)
            except MetadataError as e:
                yield Reject(source, records.BROKEN_METADATA, common.one_line(e))


def _rows(
    file: pq.ParquetFile, row_groups: tuple[int, int], names: list[str]
) -> Iterator[tuple[int, Callable[[str], Any]]]:
    """Row numbers, and for each a function from a column's name to the row's value."""
    number = sum(file.metadata.row_group(group).num_rows for group in range(row_groups[0]))
    for group in range(*row_groups):  # one by one: else rows before a damaged group would share its first batch
        batches = file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=names, use_threads=False)
        while True:
            with _arrow_damage():
                batch = next(batches, None)
            if batch is None:
                break
            for i in range(batch.num_rows):
                yield number, functools.partial(_value, batch, i)
                number += 1


def _value(batch: pa.RecordBatch, i: int, name: str) -> Any:
    return batch.column(name)[i].as_py()


@contextlib.contextmanager
def _arrow_damage() -> Iterator[None]:
    """Turn what Arrow raises for damaged pages, an OSError without a number, into BrokenShardError.

    One with a number comes from the disk.
    """
    try:
        yield
    except OSError as e:
        if type(e) is OSError and e.errno is None:
            raise BrokenShardError(common.one_line(e)) from e
        raise


def _record(source: Source, columns: Columns, row: Callable[[str], Any], shard: str) -> Record | Reject:
    try:
        image = row(columns.image)
        if columns.image_id is not None:
            image_id = row(columns.image_id)
        else:
            path = image.get('path') if isinstance(image, dict) else None
            image_id = path or f'{shard}:{source.member}'
        caption = row(columns.caption) if columns.caption else None
        labels = _labels(columns, row)
    except UnicodeDecodeError as e:
        raise MetadataError(common.one_line(e)) from e
    return common.make_record(source, image_id, _image(image), labels, caption)


def _image(value: Any) -> bytes | None:
    return value.get('bytes') if isinstance(value, dict) else value


def _labels(columns: Columns, row: Callable[[str], Any]) -> Mapping[str, object]:
    labels: dict[str, object] = {}
    for name in columns.labels:
        column, _, level = name.partition('/')
        value = row(column)
        nested = dict(value) if isinstance(value, dict) or _is_pairs(value) else None
        if level:
            labels[level] = (nested or {}).get(level)
        elif nested is not None:
            labels.update(nested)
        else:
            labels[name] = value
    return labels


def _is_pairs(value: Any) -> bool:
    """A map column's value: Arrow gives a list of key and value tuples."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, tuple) for item in value)


def _plain(type_: pa.DataType) -> pa.DataType:
    if isinstance(type_, pa.BaseExtensionType):
        return _plain(type_.storage_type)
    return _plain(type_.value_type) if types.is_dictionary(type_) else type_


def _is_bytes(type_: pa.DataType) -> bool:
    return types.is_binary(type_) or types.is_large_binary(type_) or types.is_binary_view(type_)


def _is_text(type_: pa.DataType) -> bool:
    return types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_)


def _struct_fields(type_: pa.DataType) -> dict[str, pa.DataType]:
    return {field.name: _plain(field.type) for field in type_} if types.is_struct(type_) else {}


def _is_image(type_: pa.DataType) -> bool:
    return _is_bytes(_struct_fields(type_).get('bytes', type_))


def _is_id(type_: pa.DataType) -> bool:
    return _is_text(type_) or _is_bytes(type_) or types.is_integer(type_)


def _is_label(type_: pa.DataType) -> bool:
    return _is_text(type_) or types.is_integer(type_) or types.is_boolean(type_)


def _is_labels(type_: pa.DataType) -> bool:
    if types.is_list(type_) or types.is_large_list(type_):
        return _is_label(_plain(type_.value_type))
    if types.is_map(type_):
        return _is_text(type_.key_type)
    return _is_label(type_) or types.is_struct(type_)
