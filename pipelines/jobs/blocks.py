"""Blocks of rows on their way from one step of a job to the next: small ones inside the element, large ones in a file.

A local runner keeps what it shuffles in memory, at several times its size, so large blocks must not be shuffled. Small
blocks are, because reading many small pieces of files takes longer than a shuffle. Files are written once and read in
ranges.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa

from pipelines import files

INLINE_BYTES = 1 << 18  # together, of one step's blocks
THREADS = 2  # per step: one computes while the other waits for a file; see `threads.py`
READING_THREADS = 8  # a bucket answers late, not slowly

Key = TypeVar('Key')
Block = bytes | tuple[str, int, int]  # a serialised record batch, or uri, offset and length of one


def put_blocks(uri: str, batches: Iterable[tuple[Key, pa.RecordBatch]]) -> list[tuple[Key, Block]]:
    """Make blocks of record batches of one schema: inside elements if they are small together, else in a file at `uri`.

    Args:
        uri: of the file.
        batches: each with a key, which its block gets.
    """
    contents = [(key, batch.serialize()) for key, batch in batches]
    ends = np.cumsum([0, *(content.size for _, content in contents)]).tolist()
    if ends[-1] <= INLINE_BYTES:
        return [(key, content.to_pybytes()) for key, content in contents]
    files.write_bytes(uri, b''.join(content for _, content in contents))
    spans = itertools.pairwise(ends)
    return [(key, (uri, start, end - start)) for (key, _), (start, end) in zip(contents, spans, strict=True)]


def get_blocks(blocks: Iterable[Block], schema: pa.Schema) -> list[pa.RecordBatch]:
    """The record batches of a schema that `put_blocks` made blocks of.

    Raises:
        OSError: the file they were put into is gone or shorter; the message names it.
    """
    with ThreadPoolExecutor(READING_THREADS) as pool:
        contents = pool.map(lambda block: block if isinstance(block, bytes) else files.read_range(*block), blocks)
        return [pa.ipc.read_record_batch(pa.py_buffer(content), schema) for content in contents]
