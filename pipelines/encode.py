"""One work unit of a build: records in, a table of image rows with their codes out, rejects beside it.

Pure functions; `build_index.py` and `query_index.py` wrap them in Beam. Image bytes never leave a unit.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import hashlib
import itertools
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs as arrow_fs

from hashing_model.errors import InputError
from hashing_model.images import Decoded, ImageError, Resizing, decode
from hashing_model.model import HashModel
from pipelines.index import files
from pipelines.index.code_tables import REJECTS, codes_to_arrow, images_schema
from pipelines.records import Record, Reject

BATCH_SIZE = 32
BATCH_BYTES = 64 << 20  # of encoded images; the last of a batch may go beyond
DECODING_THREADS = 2

_loading = threading.Lock()  # a runner may start several units at once in one process


def load_model(uri: str, threads: int | None = None, fingerprint: str | None = None) -> HashModel:
    """The model in a local folder or a bucket, with its backbone; loaded once per process.

    Args:
        uri: the model's folder.
        threads: see `HashModel.load`.
        fingerprint: the model that is expected there, if any.

    Raises:
        InputError: no readable model there, another than expected, or a backbone with other weights than the model's.
    """
    with _loading:
        model = _load_model(uri, threads)
    if fingerprint not in (None, model.fingerprint):
        raise InputError(f'{uri} has the fingerprint {model.fingerprint[:12]}; the index wants {fingerprint[:12]}')
    return model


@functools.lru_cache(maxsize=1)
def _load_model(uri: str, threads: int | None) -> HashModel:
    model = HashModel.load(local_model(uri), threads)
    model.check_backbone()
    return model


def local_model(uri: str) -> str:
    """The path of a local model folder; of a copy, removed when the process ends, if the model is in a bucket."""
    filesys, path = files.filesystem(uri)
    if isinstance(filesys, arrow_fs.LocalFileSystem):
        return path
    copy = tempfile.mkdtemp(prefix='grainhash-model-')
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    arrow_fs.copy_files(path, copy, source_filesystem=filesys)
    return copy


@dataclasses.dataclass(frozen=True)
class EncodedUnit:
    """What became of the records of one work unit.

    Args:
        images: a table of `code_tables.images_schema`, in the order read.
        rejects: what could not be indexed.
        records_read: how many records and rejects the unit's files gave.
    """

    images: pa.Table
    rejects: tuple[Reject, ...]
    records_read: int


def encode_unit(items: Iterable[Record | Reject], model: HashModel, batch_size: int = BATCH_SIZE) -> EncodedUnit:
    """Decode and encode the records of one unit; the next batch is decoded while one is encoded."""
    tables, rejects, records_read = [], [], 0
    for batch in decoded_batches(items, model.resizing, batch_size):
        records_read += len(batch)
        records, decoded, bad = sort_batch(batch)
        rejects += bad
        if records:
            codes = model.encode(np.stack([d.pixels for d in decoded]))
            tables.append(images_table(records, codes, decoded))
    empty = images_schema(model.spec.num_bytes).empty_table()
    return EncodedUnit(pa.concat_tables(tables) if tables else empty, tuple(rejects), records_read)


def decoded_batches(
    items: Iterable[Record | Reject], resizing: Resizing, batch_size: int
) -> Iterator[list[tuple[Record | Reject, Decoded | Reject]]]:
    """Batches of (item, its pixels or reject); one batch is being decoded while the caller has the one before."""

    def try_decode(item: Record | Reject) -> tuple[Record | Reject, Decoded | Reject]:
        if isinstance(item, Reject):
            return item, item
        try:
            return item, decode(item.data, resizing)
        except ImageError as e:
            return item, Reject(item.source, e.reason, e.detail, item.image_id)

    source = iter(items)
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        waiting = pool.map(try_decode, next_items(source, batch_size))
        while batch := list(waiting):
            waiting = pool.map(try_decode, next_items(source, batch_size))
            yield batch


def next_items(source: Iterator[Record | Reject], batch_size: int) -> Iterator[Record | Reject]:
    """The next records, so many, or fewer if they are large."""
    held = 0
    for item in itertools.islice(source, batch_size):
        yield item
        held += len(item.data) if isinstance(item, Record) else 0
        if held > BATCH_BYTES:
            break


def sort_batch(
    batch: Iterable[tuple[Record | Reject, Decoded | Reject]],
) -> tuple[list[Record], list[Decoded], list[Reject]]:
    """Of a batch of `decoded_batches` the records that could be decoded, their pixels, and the rejects."""
    good = [(item, result) for item, result in batch if isinstance(item, Record) and isinstance(result, Decoded)]
    bad = [result for _, result in batch if isinstance(result, Reject)]
    return [record for record, _ in good], [decoded for _, decoded in good], bad


def images_table(records: Sequence[Record], codes: NDArray[np.uint8], decoded: Sequence[Decoded]) -> pa.Table:
    """Rows of `code_tables.images_schema` for N records and their codes uint8 [N, B]."""
    digests = [hashlib.blake2b(r.data, digest_size=16).digest() for r in records]
    schema = images_schema(codes.shape[1])
    columns = [
        [r.image_id for r in records],
        [dataclasses.asdict(r.source) for r in records],
        digests,
        [d.width for d in decoded],
        [d.height for d in decoded],
        [[(level, list(values)) for level, values in r.labels.items()] for r in records],
        [r.caption for r in records],
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=False)]
    return pa.Table.from_arrays([*arrays, codes_to_arrow(codes)], schema=schema)


def rejects_table(rejects: Iterable[Reject]) -> pa.Table:
    """Rejects as rows of `code_tables.REJECTS`."""
    return pa.Table.from_pylist([dataclasses.asdict(r) for r in rejects], schema=REJECTS)
