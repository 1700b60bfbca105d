"""The file of answers: its columns, its formats, and the file with rejected queries beside it.

`job.py` finds the answers. `near_duplicates.py` writes its groups with the same functions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from pipelines import files
from pipelines.index import code_tables

SUFFIXES = ('.parquet', '.jsonl')
ANSWERS_PER_BLOCK = 65_536  # that travel and are rendered together
ROWS_AS_LINES = 8192  # at once, as Python's objects take ten times the room of Arrow's


def answers_schema(spec: CodeSpec) -> pa.Schema:
    """A row per answer: rank from 1, the weighted distance, the Hamming distance of each segment, and the image."""
    return pa.schema(
        [
            ('query_id', pa.string()),
            ('rank', pa.int32()),
            ('image_id', pa.string()),
            ('distance', pa.int32()),
            *((f'distance_{name}', pa.int32()) for name in spec.names),
            ('labels', code_tables.LABELS),
            ('caption', pa.string()),
            ('source', code_tables.SOURCE),
        ]
    )


def check_output(output: str) -> None:
    """Refuse an output path that cannot be written, before anything is computed.

    Raises:
        InputError: another suffix than SUFFIXES, or a place that does not take a file.
    """
    check_suffix(output)
    files.check_writable(output)


def check_suffix(output: str) -> None:
    """Refuse an output path whose format nobody knows.

    Raises:
        InputError: another suffix than SUFFIXES.
    """
    if not output.endswith(SUFFIXES):
        raise InputError(f'{output} ends neither in .parquet nor in .jsonl')


def query_rejects_path(output: str) -> str:
    """Where queries that could not be read are listed: `answers.jsonl` -> `answers.rejects.jsonl`."""
    stem, dot, suffix = output.rpartition('.')
    return f'{stem}.rejects{dot}{suffix}'


def to_stream(table: pa.Table) -> bytes:
    """A table as a compressed Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression='zstd')) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def from_stream(stream: bytes) -> pa.Table:
    """Inverse of `to_stream`."""
    return pa.ipc.open_stream(stream).read_all()


def write_rows(path: str, table: pa.Table) -> None:
    """Write answers or rejects at once, as Parquet or as JSON lines by the path's suffix."""
    write_blocks(path, [render_block(path, table)], table.schema)


def render_block(path: str, table: pa.Table) -> bytes:
    """Some rows of the file in the form in which they are sent to its writer: compressed, as Parquet or JSON lines."""
    sink = pa.BufferOutputStream()
    if path.endswith('.parquet'):
        pq.write_table(table, sink, compression='zstd')
    else:
        with pa.CompressedOutputStream(sink, 'zstd') as stream:
            for some in table.to_batches(ROWS_AS_LINES):
                lines = (json.dumps({**row, **_plain(row)}, ensure_ascii=False) for row in some.to_pylist())
                stream.write(''.join(f'{line}\n' for line in lines).encode())
    return sink.getvalue().to_pybytes()


def write_blocks(path: str, blocks: Iterable[bytes], schema: pa.Schema) -> None:
    """Write the file out of what `render_block` made, in the order given; one block is unpacked at a time."""
    with files.written_in_pieces(path) as file:
        if not path.endswith('.parquet'):
            for block in blocks:
                with pa.CompressedInputStream(pa.BufferReader(block), 'zstd') as stream:
                    shutil.copyfileobj(stream, file)
            return
        with pq.ParquetWriter(file, schema, compression='zstd') as writer:
            for block in blocks:
                writer.write_table(pq.read_table(pa.BufferReader(block)).cast(schema))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row for JSON: maps, which Arrow gives as lists of pairs, become objects."""
    return {'labels': dict(row['labels'])} if row.get('labels') is not None else {}
