"""The Parquet tables of a version: their schemas, how they are written, and codes as Arrow columns and arrays.

Files are read and written by `versions.Version`; nothing here touches one.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashing_model.codes.bits import to_words

LABELS = pa.map_(pa.string(), pa.list_(pa.string()))
SOURCE = pa.struct([('shard', pa.string()), ('member', pa.string())])
INPUTS = pa.schema(
    [('path', pa.string()), ('size', pa.int64()), ('mtime', pa.float64()), ('generation', pa.int64())]
)  # `generation`: of an object in Cloud Storage
# What each images part was made from, a row per part: `name` says what was read and how, `content` what was in it
# (empty if a later build must look again); the first and last of its files.
UNITS = pa.schema(
    [
        ('name', pa.string()),
        ('content', pa.string()),
        ('first', pa.binary()),
        ('last', pa.binary()),
        ('records_read', pa.int64()),
    ]
)
REJECTS = pa.schema([('source', SOURCE), ('image_id', pa.string()), ('reason', pa.string()), ('detail', pa.string())])

# How the tables are written; the figures are of 2 million rows of 64-bit codes in clusters, on one core.
# Ids, members and codes differ from row to row: a dictionary of them doubled the time and made the file larger
# (0.50 s and 28.7 MB, 0.24 s and 18.5 MB without). Codes shrink little and are read most: they are not compressed.
REPEATING = ('source.shard', 'labels.key_value.key', 'labels.key_value.value.list.element', 'caption')
IMAGES_OPTIONS = {
    'use_dictionary': [*REPEATING],
    'compression': {
        **dict.fromkeys([*REPEATING, 'image_id', 'source.member', 'digest', 'width', 'height'], 'zstd'),
        'code': 'none',
    },
    'write_statistics': ['image_id'],
}
# 0.05 s, 26.0 MB, read in 0.012 s; with zstd 0.10 s, 21.7 MB, 0.035 s; all by default 0.36 s, 33.3 MB, 0.048 s.
PARTITION_OPTIONS = {
    'use_dictionary': False,
    'column_encoding': {'key': 'DELTA_BINARY_PACKED', 'row': 'DELTA_BINARY_PACKED'},
    'compression': 'none',
    'write_statistics': ['key'],
}


def images_schema(num_bytes: int) -> pa.Schema:
    """A row per indexed image; `digest` is the BLAKE2b-128 of its encoded bytes, null for indexes built from codes."""
    return pa.schema(
        [
            pa.field('image_id', pa.string(), nullable=False),
            ('source', SOURCE),
            ('digest', pa.binary(16)),
            ('width', pa.int32()),
            ('height', pa.int32()),
            ('labels', LABELS),
            ('caption', pa.string()),
            pa.field('code', pa.binary(num_bytes), nullable=False),
        ]
    )


def partition_schema(num_bytes: int) -> pa.Schema:
    """`key`: the substring's value, ascending; `row`: images part number << 32 | row in the part."""
    return pa.schema(
        [
            pa.field('key', pa.int64(), nullable=False),
            pa.field('code', pa.binary(num_bytes), nullable=False),
            pa.field('row', pa.int64(), nullable=False),
        ]
    )


def sample_schema(num_bytes: int) -> pa.Schema:
    """Code, row, id and labels of the images in a version's sample; samples of old versions have only code and row."""
    return pa.schema(
        [('code', pa.binary(num_bytes)), ('row', pa.int64()), ('image_id', pa.string()), ('labels', LABELS)]
    )


def codes_to_arrow(codes: NDArray[np.uint8]) -> pa.FixedSizeBinaryArray:
    """Codes uint8 [N, B] as an Arrow array of fixed-size binary, without copying."""
    codes = np.ascontiguousarray(codes)
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(codes.shape[1]), len(codes), [None, pa.py_buffer(codes.reshape(-1))]
    )


def codes_from_arrow(column: pa.ChunkedArray | pa.Array) -> NDArray[np.uint8]:
    """A column of fixed-size binary without nulls as codes uint8 [N, B]."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # combine_chunks of no chunk at all, in some Arrow releases
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    width = array.type.byte_width
    if not len(array):
        return np.zeros((0, width), np.uint8)
    data = np.frombuffer(array.buffers()[1], np.uint8)
    return data[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)


@dataclasses.dataclass(frozen=True)
class CodeRows:
    """Codes with their row numbers: keys int64 [N] ascending, codes uint8 [N, B], rows int64 [N]."""

    keys: NDArray[np.int64]
    codes: NDArray[np.uint8]
    rows: NDArray[np.int64]

    @functools.cached_property
    def words(self) -> NDArray[np.uint64]:
        """The codes as words for the kernels: uint64 [N, W]."""
        return to_words(self.codes)

    def take(self, which: NDArray) -> CodeRows:
        """A selection by mask or ascending places."""
        return CodeRows(self.keys[which], self.codes[which], self.rows[which])

    def to_table(self) -> pa.Table:
        """As a table of `partition_schema`."""
        arrays = [pa.array(self.keys), codes_to_arrow(self.codes), pa.array(self.rows)]
        return pa.Table.from_arrays(arrays, schema=partition_schema(self.codes.shape[1]))

    @classmethod
    def from_table(cls, table: pa.Table) -> CodeRows:
        """Inverse of `to_table`."""
        return cls(table['key'].to_numpy(), codes_from_arrow(table['code']), table['row'].to_numpy())

    @classmethod
    def sorted(cls, keys: NDArray, codes: NDArray, rows: NDArray) -> CodeRows:
        """Ordered by key, then by row."""
        order = np.lexsort((rows, keys))
        return cls(keys[order], codes[order], rows[order])
