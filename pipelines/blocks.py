"""Blocks of rows on their way from one step of a job to the next: few in the element itself, many through a file.

A local runner keeps what it shuffles in memory, at several times its size, so rows in bulk must not be shuffled; and
a request for each of many small pieces of files takes longer than a shuffle. Files are written once and read in ranges.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from pipelines.index import files

INLINE_BYTES = 1 << 18  # together, of one step's blocks
READING_THREADS = 8  # a bucket answers late, not slowly

Block = bytes | tuple[str, int, int]  # a serialised record batch, or uri, offset and length of one


def put_blocks(uri: str, batches: Iterable[pa.RecordBatch]) -> list[Block]:
    """Send record batches of one schema: in elements if they are small together, else in a file at `uri`."""
    contents = [batch.serialize() for batch in batches]
    ends = np.cumsum([0, *(content.size for content in contents)]).tolist()
    if ends[-1] <= INLINE_BYTES:
        return [content.to_pybytes() for content in contents]
    files.write_bytes(uri, b''.join(contents))
    return [(uri, start, end - start) for start, end in itertools.pairwise(ends)]


def get_blocks(blocks: Iterable[Block], schema: pa.Schema) -> list[pa.RecordBatch]:
    """The record batches of a schema that were put.

    Raises:
        OSError: the file they were put into is gone or shorter; the message names it.
    """
    with ThreadPoolExecutor(READING_THREADS) as pool:
        contents = pool.map(lambda block: block if isinstance(block, bytes) else files.read_range(*block), blocks)
        return [pa.ipc.read_record_batch(pa.py_buffer(content), schema) for content in contents]
