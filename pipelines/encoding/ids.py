"""Which records have an id that an earlier record has, and how the catalogue differs from that of another version.

Both compare the full ids within buckets.

Hashes only choose an id's bucket and the ids that it is compared with, so that a collision of hashes never drops a
record. The functions work on Arrow arrays; `build/id_buckets.py` has those that read and write files.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.index import layout
from pipelines.index.code_tables import REJECTS, codes_from_arrow
from pipelines.records import DUPLICATE_ID

# An image that was read or is of the base, by the row number that it has with all duplicates.
IDS = pa.schema([('row', pa.int64()), ('image_id', pa.string())])
# Where versions are compared; `taken_over`: the base has it, too.
IDS_WITH_CONTENT = pa.schema([*IDS, ('content', pa.uint64()), ('taken_over', pa.bool_())])

AT_ONCE = 16_384  # ids that are hashed at once, in the processor's cache
MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)  # of a word, its first bytes


def id_hashes(ids: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """A fixed hash of each text, uint64 [N]. Any bits of it may be used; different texts may have the same hash."""
    chunks = ids.chunks if isinstance(ids, pa.ChunkedArray) else [ids]
    pieces = [chunk.slice(at, AT_ONCE) for chunk in chunks for at in range(0, len(chunk), AT_ONCE)]
    found = [_piece_hashes(piece) for piece in pieces]
    return np.concatenate([np.zeros(0, np.uint64), *found])


def _piece_hashes(ids: pa.StringArray) -> NDArray[np.uint64]:
    """Hash texts by mixing in the length, then 8 bytes at a time.

    This is numpy, not numba: while numba compiles or loads a function, it swallows an interrupt that should stop a
    build.
    """
    _, offsets, data = ids.buffers()
    ends = np.frombuffer(offsets, np.int32)[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
    text = b''.join([memoryview(data or b'')[ends[0] : ends[-1]], bytes(8)])
    words = np.ndarray(len(text) - 7, '<u8', text, strides=(1,))  # those that start at every byte
    starts, lengths = ends[:-1] - ends[0], np.diff(ends)
    hashes = layout.mix(lengths)
    longer = np.arange(len(ids))
    for at in range(0, int(lengths.max()), 8):
        longer = longer[lengths[longer] > at]
        inside = MASKS[np.minimum(lengths[longer] - at, 8)]
        hashes[longer] = layout.mix(hashes[longer] ^ words[starts[longer] + at] & inside)
    return hashes


def contents(images: pa.Table) -> NDArray[np.uint64]:
    """A hash of the content of each of N images, uint64 [N]: of the `digest`, or of the `code` where there is none."""
    if images['digest'].null_count:
        codes = codes_from_arrow(images['code'])
        return layout.mix_codes(np.zeros(len(codes), np.uint64), codes)
    return codes_from_arrow(images['digest'])[:, :8].copy().view(np.uint64)[:, 0]


def list_ids(images: pa.Table, part: int, with_content: bool = False, taken_over: bool = False) -> pa.Table:
    """The images of one part as rows of `IDS`, or of `IDS_WITH_CONTENT`."""
    ids = pa.table([pa.array(layout.row_numbers(part, len(images))), images['image_id']], schema=IDS)
    if not with_content:
        return ids
    known = pa.repeat(pa.scalar(taken_over), len(images))
    return ids.append_column('content', pa.array(contents(images))).append_column('taken_over', known)


def split_ids(ids: pa.Table, buckets: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Rows of `IDS`, or of `IDS_WITH_CONTENT`, by bucket, in their order."""
    for bucket, places in layout.groups_of((id_hashes(ids['image_id']) % np.uint64(buckets)).astype(np.int64)):
        (batch,) = ids.take(pa.array(places)).combine_chunks().to_batches()
        yield bucket, batch


def find_duplicates(ids: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """Which of N ids occur at an earlier place, too: bool [N].

    >>> find_duplicates(pa.array(['b', 'a', 'b', 'c'])).tolist()
    [False, False, True, False]
    """
    mask = np.zeros(len(ids), bool)
    hashes = id_hashes(ids)
    ordered = np.sort(hashes)
    shared = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(shared):  # equal ids are among those that share a hash
        places = np.flatnonzero(np.isin(hashes, shared))
        mask[places] = _seen_before(ids.take(pa.array(places)))
    return mask


def _seen_before(ids: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """Which ids occur at an earlier place, too, by comparing the texts themselves."""
    text = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    numbers = text.dictionary_encode().indices.to_numpy()  # in the order of first appearance:
    return np.diff(np.maximum.accumulate(numbers), prepend=-1) == 0  # an id is new if and only if its number is


def places_of(rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Row numbers by part: (part, places in it)."""
    for part, found in layout.groups_of(rows >> 32):
        yield part, (rows[found] & 0xFFFFFFFF).astype(np.uint32)


def count_changes(now: pa.Table, before: pa.Table) -> NDArray[np.int64]:
    """How many images were added, changed, unchanged and removed: int64 [4], in the order of `CHANGES`.

    Args:
        now: `image_id`, each once, and `content`, of a version.
        before: the same of an earlier version.
    """
    place = pc.index_in(now['image_id'], value_set=before['image_id'])
    known = place.is_valid().to_numpy()
    same = before['content'].to_numpy()[place.drop_null().to_numpy()] == now['content'].to_numpy()[known]
    stayed = int(same.sum())
    found = int(known.sum())
    return np.array([len(now) - found, found - stayed, stayed, len(before) - found])


def without_duplicates(images: pa.Table, duplicates: NDArray[np.bool_]) -> tuple[pa.Table, pa.Table]:
    """The rows that are kept, and a row of `code_tables.REJECTS` for each that is not.

    Args:
        images: N rows of one unit.
        duplicates: bool [N], which to take out.
    """
    dropped = images.filter(pa.array(duplicates)).select(['source', 'image_id'])
    why = {'reason': DUPLICATE_ID, 'detail': 'an earlier record has this id'}
    columns = {
        **{name: dropped[name] for name in dropped.column_names},
        **{name: pa.repeat(pa.scalar(text), len(dropped)) for name, text in why.items()},
    }
    return images.filter(pa.array(~duplicates)), pa.table(columns).select(REJECTS.names).cast(REJECTS)
