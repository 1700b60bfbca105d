"""Ranking a database for queries: how many images, and how many relevant ones, lie at each distance of each query.

Hamming distances are small integers, so these histograms hold all that the metrics of `metrics.py` need.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashing_model.codes.bits import bit_mask, check_codes, to_words
from hashing_model.codes.spec import CodeSpec
from hashing_model.compiled import compiled, in_threads, popcount
from hashing_model.errors import InputError
from hashing_model.labels import LabelLevel

Counts = NDArray[np.int64]

_MAX_HISTOGRAM_BYTES = 1 << 33


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How many database images lie at each distance of each query.

    Args:
        totals: int64 [Q, D + 1], all images at distance 0, 1, ..., D.
        graded: int64 [Q, G, D + 1], those of relevance exactly 1, ..., G.
    """

    totals: Counts
    graded: Counts

    @property
    def relevant(self) -> Counts:
        """Images of any relevance: int64 [Q, D + 1]."""
        return self.at_least(1)

    @property
    def without_relevant(self) -> int:
        """How many queries have no relevant image in the database; their metrics are NaN."""
        return int((self.graded.sum(axis=(1, 2)) == 0).sum())

    def at_least(self, grade: int) -> Counts:
        """Images of relevance `grade` or more, int64 [Q, D + 1]; grade 1 is the coarsest level.

        Raises:
            InputError: no such grade.
        """
        grades = self.graded.shape[1]
        if not 1 <= grade <= grades:
            raise InputError(f'grade {grade} does not exist; the labels have grades 1 to {grades}')
        return self.graded[:, grade - 1 :].sum(axis=1)


def rank(
    query_codes: NDArray[np.uint8],
    query_labels: Sequence[LabelLevel],
    database_codes: NDArray[np.uint8],
    database_labels: Sequence[LabelLevel],
    spec: CodeSpec,
    profile: Mapping[str, int] | None = None,
    leave_out: ArrayLike | None = None,
) -> Ranking:
    """Rank the database for each query by the profile's distance, and grade it by shared labels.

    The relevance of an image is the depth of its common ancestor with the query: the number of leading levels at
    which they share a class. An image that shares a fine class but no coarse one has relevance 0.

    Args:
        query_codes, database_codes: uint8 [Q, B] and [N, B].
        query_labels, database_labels: the same levels, coarse first, with the same class names on both sides.
        spec: what the codes consist of.
        profile: weight per segment, see `CodeSpec.weights`; None weighs all segments 1.
        leave_out: int64 [Q], the database row that is the query itself and is not counted; -1 for none.

    Raises:
        InputError: codes, labels, profile or rows that do not fit each other, or distances too large to count.
    """
    # What does not fit is refused
    query_codes, database_codes = check_codes(query_codes, spec), check_codes(database_codes, spec)
    _check_labels(query_labels, database_labels, len(query_codes), len(database_codes))
    rows = np.full(len(query_codes), -1, np.int64) if leave_out is None else np.asarray(leave_out)
    _check_leave_out(rows, len(query_codes), len(database_codes))
    masks, weights, largest = _masks(spec, profile)
    shape = (len(query_codes), len(query_labels) + 1, largest + 1)
    if 8 * np.prod(shape, dtype=float) > _MAX_HISTOGRAM_BYTES:
        raise InputError(
            f'{shape[0]} queries with distances up to {largest} need too much memory; '
            'give smaller weights or fewer queries at a time'
        )

    # Arrays as the compiled loop wants them, and the loop over ranges of queries, on all cores
    counts = np.zeros(shape, np.int64)
    queries, columns = to_words(query_codes), np.ascontiguousarray(to_words(database_codes).T)
    offsets = np.cumsum([0, *(len(level.names) for level in query_labels)])
    wanted = _classes(query_labels, offsets)
    members = _members(database_labels, offsets)

    def work(first: int, last: int) -> None:
        _count(first, last, queries, columns, masks, weights, *wanted, *members, rows.astype(np.int64), counts)

    in_threads(work, len(queries))
    return Ranking(counts.sum(axis=1), counts[:, 1:])


def _check_labels(query: Sequence[LabelLevel], database: Sequence[LabelLevel], queries: int, images: int) -> None:
    if not query or len(query) != len(database):
        raise InputError(f'{len(query)} label levels of the queries and {len(database)} of the database; give the same')
    for i, (a, b) in enumerate(zip(query, database, strict=True)):
        if tuple(a.names) != tuple(b.names):
            raise InputError(f'label level {i} has other class names in the queries than in the database')
        if (len(a), len(b)) != (queries, images):
            raise InputError(
                f'label level {i} has {len(a)} and {len(b)} images; there are {queries} and {images} codes'
            )


def _check_leave_out(rows: NDArray, queries: int, images: int) -> None:
    if rows.shape != (queries,) or not np.issubdtype(rows.dtype, np.integer):
        raise InputError(f'leave_out is {rows.dtype} {list(rows.shape)}; one integer per query, [{queries}], is needed')
    if queries and (rows.min() < -1 or rows.max() >= images):
        raise InputError(f'leave_out has rows {rows.min()} to {rows.max()}; the database has {images} (-1: none)')


def _masks(spec: CodeSpec, profile: Mapping[str, int] | None) -> tuple[NDArray[np.uint64], Counts, int]:
    """A mask of the bits of each weight, uint64 [M, W], the weights int64 [M], and the largest possible distance."""
    masks: dict[int, NDArray[np.uint64]] = {}
    largest = 0
    for segment, weight in zip(spec.segments, spec.weights(profile), strict=True):
        largest += weight * segment.bits
        if weight:
            mask = bit_mask(spec.start(segment.name), segment.bits, spec.num_bytes)
            masks[weight] = masks.get(weight, np.zeros_like(mask)) | mask
    return np.stack(list(masks.values())), np.array(list(masks), np.int64), largest


def _classes(levels: Sequence[LabelLevel], offsets: Counts) -> tuple[Counts, Counts]:
    """Classes of all levels end to end, numbered consecutively over the levels.

    Those of image i at level l are classes[starts[l, i] : starts[l, i + 1]].
    """
    before = np.cumsum([0, *(len(level.classes) for level in levels)])
    starts = np.stack([level.starts + b for level, b in zip(levels, before[:-1], strict=True)])
    classes = np.concatenate([level.classes + o for level, o in zip(levels, offsets[:-1], strict=True)])
    return starts.astype(np.int64), classes.astype(np.int64)


def _members(levels: Sequence[LabelLevel], offsets: Counts) -> tuple[Counts, Counts]:
    """The images of each class, as starts int64 [classes + 1] and rows.

    Classes are numbered consecutively over the levels.
    """
    _, classes = _classes(levels, offsets)
    images = np.concatenate([np.repeat(np.arange(len(level)), level.counts) for level in levels])
    sizes = np.bincount(classes, minlength=offsets[-1])
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return starts, images[np.argsort(classes, kind='stable')].astype(np.int64)


@compiled()
def _count(
    first: int,
    last: int,
    queries: NDArray,
    columns: NDArray,
    masks: NDArray,
    weights: NDArray,
    starts: NDArray,
    classes: NDArray,
    member_starts: NDArray,
    members: NDArray,
    leave_out: NDArray,
    counts: NDArray,
) -> None:
    """Fill counts int64 [Q, levels + 1, D + 1], zero before, with the database's images by grade and distance.

    Args:
        first, last: the queries of this call; the other arrays are of all queries.
        queries, columns: words uint64 [Q, W] and, of the database, [W, N]: loops along N become vector instructions.
        masks, weights: see `_masks`.
        starts, classes: of the queries, see `_classes`.
        member_starts, members: of the database, see `_members`.
        leave_out: int64 [Q].
    """
    width = np.uint32(counts.shape[2])
    places = np.empty(columns.shape[1], np.uint32)  # grade * (D + 1) + distance, the place in a query's histogram
    for q in range(first, last):
        # The grade of every image, level by level
        places[:] = 0
        for level in range(len(starts)):
            for i in range(starts[level, q], starts[level, q + 1]):
                for row in members[member_starts[classes[i]] : member_starts[classes[i] + 1]]:
                    if places[row] == np.uint32(level) * width:  # shared at all coarser levels, not yet at this one
                        places[row] += width

        # Its distance
        for m in range(len(weights)):
            weight = np.uint32(weights[m])
            for w in range(len(columns)):
                mask, word, column = masks[m, w], queries[q, w], columns[w]
                if mask:
                    for row in range(len(column)):
                        places[row] += weight * np.uint32(popcount((word ^ column[row]) & mask))

        # Both counted; the query itself is no answer
        histogram = counts[q].reshape(-1)
        for place in places:
            histogram[place] += 1
        if leave_out[q] >= 0:
            histogram[places[leave_out[q]]] -= 1
