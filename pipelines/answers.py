"""The file of answers: its columns, its formats, and the file of rejects beside it.

What stands in it is found by `query_index.py`.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hashing_model.code_spec import CodeSpec
from hashing_model.errors import InputError
from pipelines.index import code_tables, files

SUFFIXES = ('.parquet', '.jsonl')


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
    if not output.endswith(SUFFIXES):
        raise InputError(f'{output} ends neither in .parquet nor in .jsonl')
    files.check_writable(output)


def rejects_path(output: str) -> str:
    """Where queries that could not be read are listed: `answers.jsonl` -> `answers.rejects.jsonl`."""
    stem, dot, suffix = output.rpartition('.')
    return f'{stem}.rejects{dot}{suffix}'


def write_rows(path: str, table: pa.Table) -> None:
    """Write answers or rejects, as Parquet or as JSON lines by the path's suffix."""
    if path.endswith('.parquet'):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression='zstd')
        files.write_bytes(path, sink.getvalue())
        return
    lines = (json.dumps({**row, **_plain(row)}, ensure_ascii=False) for row in table.to_pylist())
    files.write_bytes(path, ''.join(f'{line}\n' for line in lines).encode())


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Arrow gives maps as lists of pairs; JSON has objects."""
    return {'labels': dict(row['labels'])} if row.get('labels') is not None else {}
