"""One work unit of a build: records in, a table of image rows with their codes out, rejects beside it.

Pure functions; `build/job.py` and `query/job.py` wrap them in Beam. Image bytes never leave a unit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashing_model.images.decode import Decoded, ImageError, Resizing, decode
from hashing_model.model import HashModel
from pipelines.encoding.models import check_backbone
from pipelines.index.code_tables import REJECTS, codes_to_arrow, images_schema
from pipelines.records import Record, Reject

BATCH_SIZE = 32
BATCH_BYTES = 64 << 20  # of encoded images; the last of a batch may go beyond
DECODING_THREADS = 2
KNOWN_AT_ONCE = 512  # images that are not encoded, in one batch with some that are


Measures = dict[str, list[int]]  # one number for each time that something was done


@contextlib.contextmanager
def timed(measures: Measures, name: str) -> Iterator[None]:
    """Add the microseconds that a block takes; several threads may do so at once."""
    started = time.perf_counter_ns()
    try:
        yield
    finally:
        measures.setdefault(name, []).append((time.perf_counter_ns() - started) // 1000)


@dataclasses.dataclass(frozen=True)
class EncodedUnit:
    """What became of the records of one work unit.

    Args:
        images: a table of `code_tables.images_schema`, in the order read.
        rejects: what could not be indexed.
        records_read: how many records and rejects the unit's files gave.
        reused: how many images were known, and not encoded.
        measures: of each image its `image_bytes` and, if it was decoded, `decode_us`; of each batch that was encoded
            `features_us` and `hash_us`, the microseconds until there were features, and from these to codes.
    """

    images: pa.Table
    rejects: tuple[Reject, ...]
    records_read: int
    reused: int = 0
    measures: Measures = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class KnownImage:
    """An image that was encoded before: digest of its bytes, upright size in pixels, and code."""

    digest: bytes
    width: int
    height: int
    code: bytes


class Known(Protocol):
    """Finds images by the digest of their bytes; a mapping will do."""

    def __len__(self) -> int: ...

    def get(self, digest: bytes, /) -> KnownImage | None:
        """The image with a digest; None if it is not known."""


def encode_unit(
    items: Iterable[Record | Reject],
    model: HashModel,
    known: Known | None = None,
    batch_size: int = BATCH_SIZE,
) -> EncodedUnit:
    """Decode and encode the records of one unit; the next batch is decoded while one is encoded.

    Args:
        items: what the unit's reader gives.
        model: encodes what is not known.
        known: images that are neither decoded nor encoded again, by the digest of their bytes.
        batch_size: images to encode at once.
    """
    tables, rejects, records_read, reused = [], [], 0, 0
    measures: Measures = {}
    for batch in decoded_batches(items, model.resizing, batch_size, known, measures):
        records_read += len(batch)
        rejects += [found for _, found in batch if isinstance(found, Reject)]
        good = [(item, found) for item, found in batch if isinstance(item, Record) and not isinstance(found, Reject)]
        if good:
            records, images = zip(*good, strict=True)
            tables.append(images_table(records, image_codes(images, model, measures), images))
            reused += sum(isinstance(image, KnownImage) for image in images)
    empty = images_schema(model.spec.num_bytes).empty_table()
    return EncodedUnit(pa.concat_tables(tables) if tables else empty, tuple(rejects), records_read, reused, measures)


def image_codes(images: Sequence[Decoded | KnownImage], model: HashModel, measures: Measures) -> NDArray[np.uint8]:
    """Codes uint8 [N, B]; those of known images are copied, the others computed."""
    codes = np.zeros((len(images), model.spec.num_bytes), np.uint8)
    fresh = [(i, image.pixels) for i, image in enumerate(images) if isinstance(image, Decoded)]
    if fresh:
        check_backbone(model)
        with timed(measures, 'features_us'):
            groups = model.extractor.features(np.stack([pixels for _, pixels in fresh]))
        with timed(measures, 'hash_us'):
            codes[[i for i, _ in fresh]] = model.encode_features(groups)
    for i, image in enumerate(images):
        if isinstance(image, KnownImage):
            codes[i] = np.frombuffer(image.code, np.uint8)
    return codes


def decoded_batches(
    items: Iterable[Record | Reject],
    resizing: Resizing,
    batch_size: int,
    known: Known | None = None,
    measures: Measures | None = None,
) -> Iterator[list[tuple[Record | Reject, Decoded | KnownImage | Reject]]]:
    """Batches of (item, its pixels or reject, or what is known of it by its digest), in the order of the items.

    A batch has `batch_size` items that are not known (fewer if they are large) and at most KNOWN_AT_ONCE known ones.
    The next batch is decoded while the caller works on one.
    """

    def try_decode(item: Record | Reject) -> tuple[Record | Reject, Decoded | Reject]:
        if isinstance(item, Reject):
            return item, item
        try:
            with timed(kept, 'decode_us'):
                return item, decode(item.data, resizing)
        except ImageError as e:
            return item, Reject(item.source, e.reason, e.detail, item.image_id)

    def start(pool: ThreadPoolExecutor) -> list[Any]:
        batch: list[Any] = []
        fresh = held = 0
        while fresh < batch_size and held <= BATCH_BYTES and len(batch) < KNOWN_AT_ONCE + fresh:
            item = next(source, None)
            if item is None:
                break
            size = len(item.data) if isinstance(item, Record) else 0
            if isinstance(item, Record):
                kept.setdefault('image_bytes', []).append(size)
            if known and isinstance(item, Record) and (found := known.get(digest_of(item))):
                batch.append((dataclasses.replace(item, data=b''), found))
            else:
                batch.append(pool.submit(try_decode, item))
                fresh, held = fresh + 1, held + size
        return batch

    kept: Measures = {} if measures is None else measures
    source = iter(items)
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        waiting = start(pool)
        while waiting:
            batch = [item.result() if isinstance(item, Future) else item for item in waiting]
            waiting = start(pool)
            yield batch


def sort_batch(
    batch: Iterable[tuple[Record | Reject, Decoded | KnownImage | Reject]],
) -> tuple[list[Record], list[Decoded], list[Reject]]:
    """Split a batch of `decoded_batches`: the records that could be decoded, their pixels, and the rejects."""
    good = [(item, result) for item, result in batch if isinstance(item, Record) and isinstance(result, Decoded)]
    bad = [result for _, result in batch if isinstance(result, Reject)]
    return [record for record, _ in good], [decoded for _, decoded in good], bad


def digest_of(record: Record) -> bytes:
    """The BLAKE2b-128 of a record's image bytes."""
    return hashlib.blake2b(record.data, digest_size=16).digest()


def images_table(
    records: Sequence[Record], codes: NDArray[np.uint8], images: Sequence[Decoded | KnownImage]
) -> pa.Table:
    """Rows of `code_tables.images_schema` for N records, their codes uint8 [N, B] and sizes."""
    schema = images_schema(codes.shape[1])
    columns = [
        [r.image_id for r in records],
        [dataclasses.asdict(r.source) for r in records],
        [i.digest if isinstance(i, KnownImage) else digest_of(r) for r, i in zip(records, images, strict=True)],
        [i.width for i in images],
        [i.height for i in images],
        [[(level, list(values)) for level, values in r.labels.items()] for r in records],
        [r.caption for r in records],
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=False)]
    return pa.Table.from_arrays([*arrays, codes_to_arrow(codes)], schema=schema)


def rejects_table(rejects: Iterable[Reject]) -> pa.Table:
    """Rejects as rows of `code_tables.REJECTS`."""
    return pa.Table.from_pylist([dataclasses.asdict(r) for r in rejects], schema=REJECTS)
