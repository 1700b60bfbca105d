"""Measuring codes: exact, tie-aware retrieval metrics from histograms of distances, and the health of codes.

Hamming distances are small integers, so many images tie. A metric here is the expectation over all orders of the tied
images, computed from how many images, and how many relevant ones, lie at each distance of a query: arrays `totals` and
`relevant`, int64 [Q, D + 1]. A query to which nothing is relevant has no value: NaN, never 0 and never left out unseen.
Which metric speaks for which segment is decided in `evaluate.py`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import ArrayLike, NDArray

from hashing_model.code_spec import CodeSpec
from hashing_model.codes import bit_mask, check_codes, to_words, unpack_bits
from hashing_model.errors import InputError
from hashing_model.labels import LabelLevel

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

RECALL_LEVELS = tuple(i / 20 for i in range(1, 21))
_MAX_HISTOGRAM_BYTES = 1 << 33
_CORRELATION_ROWS = 1 << 14  # below 2^24, so that float32 counts of a block are exact


def _compiled(function: Callable[..., Any]) -> Any:
    """`numba.njit` with a cache on disk, or without one where neither the package nor the home can be written."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no place for the cache
        return numba.njit(nogil=True)(function)


@intrinsic
def _popcount(typing_context: Any, x: Any) -> Any:
    """Set bits of a uint64, by the processor's own instruction."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), generate


def _in_threads(work: Callable[[int, int], None], count: int) -> None:
    """Call work(first, last) on ranges that cover 0 .. count - 1, on all cores."""
    cores = os.cpu_count() or 1
    edges = np.unique(np.linspace(0, count, 8 * cores + 1).astype(int)).tolist()
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(work, edges[:-1], edges[1:]))


# Histograms of distances


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
    counts = np.zeros(shape, np.int64)
    queries, columns = to_words(query_codes), np.ascontiguousarray(to_words(database_codes).T)
    offsets = np.cumsum([0, *(len(level.names) for level in query_labels)])
    wanted = _classes(query_labels, offsets)
    members = _members(database_labels, offsets)

    def work(first: int, last: int) -> None:
        _count(first, last, queries, columns, masks, weights, *wanted, *members, rows.astype(np.int64), counts)

    _in_threads(work, len(queries))
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
    """Masks [M, W] of the bits that weigh the same, those weights [M], and the largest distance."""
    masks: dict[int, NDArray[np.uint64]] = {}
    largest = 0
    for segment, weight in zip(spec.segments, spec.weights(profile), strict=True):
        largest += weight * segment.bits
        if weight:
            mask = bit_mask(spec.start(segment.name), segment.bits, spec.num_bytes)
            masks[weight] = masks.get(weight, np.zeros_like(mask)) | mask
    return np.stack(list(masks.values())), np.array(list(masks), np.int64), largest


def _classes(levels: Sequence[LabelLevel], offsets: Counts) -> tuple[Counts, Counts]:
    """Classes of all levels end to end, numbered through; level l of image i has starts[l, i] to starts[l, i + 1]."""
    before = np.cumsum([0, *(len(level.classes) for level in levels)])
    starts = np.stack([level.starts + b for level, b in zip(levels, before[:-1], strict=True)])
    classes = np.concatenate([level.classes + o for level, o in zip(levels, offsets[:-1], strict=True)])
    return starts.astype(np.int64), classes.astype(np.int64)


def _members(levels: Sequence[LabelLevel], offsets: Counts) -> tuple[Counts, Counts]:
    """Images of each class, the classes of all levels numbered through: starts [classes + 1] and rows."""
    _, classes = _classes(levels, offsets)
    images = np.concatenate([np.repeat(np.arange(len(level)), level.counts) for level in levels])
    sizes = np.bincount(classes, minlength=offsets[-1])
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return starts, images[np.argsort(classes, kind='stable')].astype(np.int64)


@_compiled
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
    """Count the database for queries first .. last - 1, into counts int64 [Q, levels + 1, D + 1], zero before.

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
        places[:] = 0
        for level in range(len(starts)):
            for i in range(starts[level, q], starts[level, q + 1]):
                for row in members[member_starts[classes[i]] : member_starts[classes[i] + 1]]:
                    if places[row] == np.uint32(level) * width:  # shared at all coarser levels, not yet at this one
                        places[row] += width
        for m in range(len(weights)):
            weight = np.uint32(weights[m])
            for w in range(len(columns)):
                mask, word, column = masks[m, w], queries[q, w], columns[w]
                if mask:
                    for row in range(len(column)):
                        places[row] += weight * np.uint32(_popcount((word ^ column[row]) & mask))
        histogram = counts[q].reshape(-1)
        for place in places:
            histogram[place] += 1
        if leave_out[q] >= 0:
            histogram[places[leave_out[q]]] -= 1


# Metrics of one grade of relevance


def average_precision(totals: Counts, relevant: Counts, k: int | None = None) -> Floats:
    """Expected AP@k under random order of ties, divided by min(R, k): float64 [Q], NaN where R = 0.

    For distance d with n images, m of them relevant, N images and P relevant ones before it, AP is
    1/min(R, k) sum_d m/n sum_{t=1..n, N+t<=k} [P + 1 + (t-1)(m-1)/(n-1)] / (N + t).

    Reference: McSherry and Najork 2008, Computing information retrieval performance measures efficiently in the
    presence of tied scores; He, Cakir, Bargal and Sclaroff 2018, Hashing as tie-aware learning to rank.

    >>> average_precision(np.array([[2, 1]]), np.array([[1, 0]]))  # first or second, by chance
    array([0.75])

    Args:
        totals, relevant: int64 [Q, D + 1], images and relevant images by distance.
        k: how many of the first images count; None for all.

    Raises:
        InputError: shapes that differ, or k below 1; so do all metrics.
    """
    totals, relevant, before, taken = _cut(totals, relevant, k)
    step = (relevant - 1) / np.maximum(totals - 1, 1)
    sums = _tie_sum(_before(relevant) + 1, step, before, taken, _harmonic(totals))
    return _per_query((relevant / np.maximum(totals, 1) * sums).sum(axis=1) / _most_hits(relevant, k), relevant)


def average_precision_bounds(totals: Counts, relevant: Counts, k: int | None = None) -> tuple[Floats, Floats]:
    """AP@k if ties fall worst, and if they fall best: float64 [Q] each, NaN where R = 0.

    >>> average_precision_bounds(np.array([[2, 1]]), np.array([[1, 0]]))
    (array([0.5]), array([1.]))
    """
    totals, relevant, before, _ = _cut(totals, relevant, k)
    harmonic, hits = _harmonic(totals), _before(relevant)

    def value(before: Counts) -> Floats:
        """AP if the relevant images of each tie follow directly on `before` others."""
        taken = relevant if k is None else np.clip(k - before, 0, relevant)
        sums = _tie_sum(hits + 1, 1, before, taken, harmonic).sum(axis=1)
        return _per_query(sums / _most_hits(relevant, k), relevant)

    return value(before + totals - relevant), value(before)


def precision_at(totals: Counts, relevant: Counts, k: int) -> Floats:
    """Expected share of relevant images among the first k, float64 [Q]; places beyond the database are misses."""
    return _per_query(_expected_hits(totals, relevant, k) / k, relevant)


def recall_at(totals: Counts, relevant: Counts, k: int) -> Floats:
    """Expected share of the relevant images that are among the first k: float64 [Q]."""
    return _per_query(_expected_hits(totals, relevant, k) / _most_hits(relevant), relevant)


def hit_at(totals: Counts, relevant: Counts, k: int) -> Floats:
    """Probability that at least one relevant image is among the first k: float64 [Q].

    The recall of near-duplicate search and of metric learning (R@k), when ties fall at random: the images drawn from
    the tie at the cut-off miss all relevant ones with a hypergeometric probability.

    >>> hit_at(np.array([[4]]), np.array([[2]]), k=2).round(4)  # 1 - 2/4 * 1/3
    array([0.8333])
    """
    totals, relevant, _, taken = _cut(totals, relevant, k)
    return _per_query(1 - _miss_probability(totals, relevant, taken), relevant)


def precision_within(totals: Counts, relevant: Counts, radius: int) -> Floats:
    """Share of relevant images among those within a radius, 0 for an empty ball: float64 [Q], NaN where R = 0."""
    totals, relevant, _, _ = _cut(totals, relevant, None)
    inside = slice(0, _radius(radius) + 1)
    images = totals[:, inside].sum(axis=1)
    return _per_query(relevant[:, inside].sum(axis=1) / np.maximum(images, 1), relevant)


def empty_rate(totals: Counts, radius: int) -> float:
    """Share of the queries with no image at all within a radius; NaN without queries."""
    if len(totals) == 0:
        return float('nan')
    return float((totals[:, : _radius(radius) + 1].sum(axis=1) == 0).mean())


def precision_recall_curve(totals: Counts, relevant: Counts, points: Iterable[float] = RECALL_LEVELS) -> Floats:
    """Mean precision at levels of recall, without interpolation: float64 [points], NaN if no query has R > 0.

    At recall p a query has found j = max(1, ceil(p R)) relevant images, and its precision is the expectation, over
    all orders of the ties, of j over the rank of the j-th one. Each query with R > 0 weighs the same. So the mean over
    p = 1/R, ..., R/R is the query's average precision.

    Raises:
        InputError: a point outside 0 to 1, or shapes that differ.
    """
    levels = np.array(list(points), np.float64)
    if not ((levels >= 0) & (levels <= 1)).all():
        raise InputError(f'recall levels {levels.tolist()} are not all between 0 and 1')
    totals, relevant, before, _ = _cut(totals, relevant, None)
    kept = relevant.sum(axis=1) > 0
    if not kept.any():
        return np.full(len(levels), np.nan)
    totals, relevant, before = totals[kept], relevant[kept], before[kept]
    # 0.15 * 20 is 3 and not 4, whatever the rounding
    wanted = np.ceil(relevant.sum(axis=1)[:, None] * levels - 1e-9).clip(1).astype(np.int64)
    out = np.empty(wanted.shape, np.float64)
    found = _before(relevant)

    def work(first: int, last: int) -> None:
        chunk = slice(first, last)
        _precision_of_hits(totals[chunk], relevant[chunk], before[chunk], found[chunk], wanted[chunk], out[chunk])

    _in_threads(work, len(totals))
    return out.mean(axis=0)


# Metrics of graded relevance


def ndcg(totals: Counts, graded: Counts, k: int | None = None) -> Floats:
    """Expected nDCG@k with gain 2^grade - 1 and discount log2(1 + rank): float64 [Q], NaN where R = 0.

    Ties share their mean gain (McSherry and Najork 2008); the ideal order is by descending grade.

    Args:
        totals, graded: int64 [Q, D + 1] and [Q, G, D + 1], see `Ranking`.
        k: how many of the first images count; None for all.
    """
    totals, relevant, before, taken = _cut(totals, _any_grade(graded), k)
    gains = 2.0 ** np.arange(1, graded.shape[1] + 1) - 1
    discounts = _running(1 / np.log2(np.arange(2, _most(totals) + 2)))
    mean_gain = np.einsum('qgd,g->qd', graded, gains) / np.maximum(totals, 1)
    reached = (mean_gain * (discounts[before + taken] - discounts[before])).sum(axis=1)
    ideal_sizes = graded.sum(axis=2)[:, ::-1]
    _, _, ideal_before, ideal_taken = _cut(ideal_sizes, ideal_sizes, k)
    ideal = (gains[::-1] * (discounts[ideal_before + ideal_taken] - discounts[ideal_before])).sum(axis=1)
    return _per_query(reached / np.where(ideal > 0, ideal, 1), relevant)


def hierarchical_average_precision(totals: Counts, graded: Counts) -> Floats:
    """Expected H-AP under random order of ties: float64 [Q], NaN where R = 0. With one grade it is AP.

    For relevances r: H-AP = 1 / sum_k r_k x sum_k 1/rank_k x sum_{j not after k} min(r_j, r_k), over images k and j
    of relevance above 0. The relevance is the grade, the depth of the common ancestor, without the class sizes that
    the paper's own figures divide by.

    In a tie of n images after N others, an image k of grade g takes each place t = 1, ..., n with probability 1/n, and
    each other one precedes it with probability (t-1)/(n-1). With the sums of min(r_j, g), B over the images before and
    S over the tied ones, its term is 1/n sum_t [g + B + (t-1) (S-g)/(n-1)] / (N+t).

    Reference: Ramzi, Audebert, Thome, Rambour and Bitot 2022, Hierarchical average precision training for pertinent
    image retrieval.
    """
    totals, relevant, before, _ = _cut(totals, _any_grade(graded), None)
    grades = np.arange(1, graded.shape[1] + 1)[:, None]
    at_least = graded[:, ::-1].cumsum(axis=1)[:, ::-1]
    shared = at_least.cumsum(axis=1)  # sum over j of min(r_j, g) = sum over h <= g of how many have r_j >= h
    size, place = totals[:, None], before[:, None]
    step = (shared - grades) / np.maximum(size - 1, 1)
    sums = _tie_sum(grades + _before(shared), step, place, size, _harmonic(totals))
    reached = (graded / np.maximum(size, 1) * sums).sum(axis=(1, 2))
    return _per_query(reached / np.maximum((graded * grades).sum(axis=(1, 2)), 1), relevant)


# What the metrics share


def _cut(totals: Counts, relevant: Counts, k: int | None) -> tuple[Counts, Counts, Counts, Counts]:
    """Both histograms, the images before each distance, and how many images of each distance the first k take."""
    totals, relevant = np.asarray(totals), np.asarray(relevant)
    if totals.ndim != 2 or totals.shape != relevant.shape:
        raise InputError(f'histograms are {list(totals.shape)} and {list(relevant.shape)}; both must be [Q, D + 1]')
    if k is not None and k < 1:
        raise InputError(f'k is {k}; the first 1 or more images can be measured')
    before = _before(totals)
    taken = totals if k is None else np.clip(k - before, 0, totals)
    return totals, relevant, before, taken


def _any_grade(graded: Counts) -> Counts:
    if graded.ndim != 3:
        raise InputError(f'graded histograms are {list(graded.shape)}; [Q, G, D + 1] is needed')
    return graded.sum(axis=1)


def _radius(radius: int) -> int:
    if radius < 0:
        raise InputError(f'the radius is {radius}; it is a distance, 0 or more')
    return radius


def _before(counts: Counts) -> Counts:
    """The sum of all earlier entries along the last axis."""
    return counts.cumsum(axis=-1) - counts


def _per_query(values: Floats, relevant: Counts) -> Floats:
    """Values [Q], NaN where R = 0."""
    return np.where(relevant.any(axis=1), values, np.nan)


def _most_hits(relevant: Counts, k: int | None = None) -> Floats:
    """The relevant images that the first k can hold, min(R, k): [Q]; 1 where R = 0, to divide by."""
    return np.minimum(relevant.sum(axis=1), np.inf if k is None else k).clip(1)


def _most(totals: Counts) -> int:
    return int(totals.sum(axis=1).max(initial=0))


def _running(terms: Floats) -> Floats:
    """Sums of the first 0, 1, ..., n terms."""
    return np.concatenate([[0.0], np.cumsum(terms)])


def _harmonic(totals: Counts) -> Floats:
    """Harmonic numbers 0 .. the number of images ranked."""
    return _running(1 / np.arange(1, _most(totals) + 1))


def _tie_sum(first: NDArray, step: NDArray | int, before: Counts, taken: Counts, harmonic: Floats) -> Floats:
    """The sum over t = 1 .. taken of (first + (t-1) step) / (before + t), without a loop over t.

    Each term is step + (first - step (before + 1)) / (before + t), and the fractions add up to harmonic numbers.
    """
    return step * taken + (first - step * (before + 1)) * (harmonic[before + taken] - harmonic[before])


def _expected_hits(totals: Counts, relevant: Counts, k: int) -> Floats:
    totals, relevant, _, taken = _cut(totals, relevant, k)
    return (relevant / np.maximum(totals, 1) * taken).sum(axis=1)


@_compiled
def _miss_probability(totals: NDArray, relevant: NDArray, taken: NDArray) -> NDArray:
    """Probability that no relevant image is among `taken` drawn at each distance: [Q, D + 1] each, float64 [Q].

    For n images with m relevant, C(n - m, t) / C(n, t) as a product of min(m, t) factors; it ends at a factor of 0.
    """
    out = np.ones(len(totals))
    for q in range(len(totals)):
        for d in range(totals.shape[1]):
            few, many = min(relevant[q, d], taken[q, d]), max(relevant[q, d], taken[q, d])
            for i in range(few):
                out[q] *= (totals[q, d] - many - i) / (totals[q, d] - i)
                if out[q] < 1e-20:
                    break
    return out


@_compiled
def _mean_inverse_rank(before: int, size: int, members: int, i: int) -> float:
    """Expectation of 1 / (before + t), t the place of the i-th of `members` among `size` images in random order.

    The place has probability C(t-1, i-1) C(size-t, members-i) / C(size, members). The sum runs from its mode up and
    down, until the rest no longer counts.
    """
    mode = i if members == 1 else (i - 1) * size // (members - 1) + 1
    mode = min(max(mode, i), size - members + i)
    weights, total = 1.0, 1.0 / (before + mode)
    weight = 1.0
    for t in range(mode, size - members + i):  # from t to t + 1
        weight *= (t / (t - i + 1)) * ((size - t - members + i) / (size - t))
        weights += weight
        total += weight / (before + t + 1)
        if weight < 1e-18:
            break
    weight = 1.0
    for t in range(mode - 1, i - 1, -1):  # from t + 1 to t
        weight *= ((t - i + 1) / t) * ((size - t) / (size - t - members + i))
        weights += weight
        total += weight / (before + t)
        if weight < 1e-18:
            break
    return total / weights


@_compiled
def _precision_of_hits(
    totals: NDArray, relevant: NDArray, before: NDArray, found: NDArray, wanted: NDArray, out: NDArray
) -> None:
    """Fill out [Q, P] with the expected precision at the wanted[q, p]-th relevant image, from 1 to R."""
    for q in range(len(wanted)):
        for p in range(wanted.shape[1]):
            j = wanted[q, p]
            if p and j == wanted[q, p - 1]:
                out[q, p] = out[q, p - 1]
                continue
            d = 0
            while found[q, d] + relevant[q, d] < j:
                d += 1
            out[q, p] = j * _mean_inverse_rank(before[q, d], totals[q, d], relevant[q, d], j - found[q, d])


# Code health


@dataclasses.dataclass(frozen=True)
class BitHealth:
    """How well the bits of a segment, or of the whole code, are used by N images.

    Args:
        images: N.
        ones: float64 [bits], the share of images in which a bit is 1; 1/2 is best.
        correlation: float64 [bits, bits], Pearson's; 0 for a bit that never changes, 1 on the diagonal.
        distinct: how many different values there are.
        largest_bucket: how many images have the most frequent value.
        collision_probability: that two different images, drawn at random, have one value; 0 for a single image.
    """

    images: int
    ones: Floats
    correlation: Floats
    distinct: int
    largest_bucket: int
    collision_probability: float

    @property
    def imbalance(self) -> Floats:
        """|p_b - 1/2| of each bit: float64 [bits], 0 best and 1/2 worst."""
        return np.abs(self.ones - 0.5)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the correlation matrix: its largest and mean absolute value off the diagonal."""
        bits = len(self.ones)
        pairs = np.abs(self.correlation[np.triu_indices(bits, 1)]) if bits > 1 else np.zeros(1)
        return {
            'images': self.images,
            'bits': bits,
            'ones': self.ones.tolist(),
            'max_imbalance': float(self.imbalance.max()),
            'mean_imbalance': float(self.imbalance.mean()),
            'max_correlation': float(pairs.max()),
            'mean_correlation': float(pairs.mean()),
            'distinct': self.distinct,
            'distinct_ratio': self.distinct / self.images,
            'collision_probability': self.collision_probability,
            'largest_bucket': self.largest_bucket,
        }


@dataclasses.dataclass(frozen=True)
class CodeHealth:
    """The health of whole codes and of each segment."""

    code: BitHealth
    segments: Mapping[str, BitHealth]

    def to_json(self) -> dict[str, Any]:
        """`{'code': ..., 'segments': {name: ...}}`, each as `BitHealth.to_json`."""
        return {'code': self.code.to_json(), 'segments': {name: s.to_json() for name, s in self.segments.items()}}


def health(codes: NDArray[np.uint8], spec: CodeSpec) -> CodeHealth:
    """Balance, correlation and collisions of codes uint8 [N, B], whole and by segment.

    Raises:
        InputError: codes that are not of the spec, or none at all.
    """
    codes = check_codes(codes, spec)
    if len(codes) == 0:
        raise InputError('there are no codes to measure')
    ones, correlation = _bit_statistics(codes, spec.bits)

    def part(start: int, bits: int) -> BitHealth:
        own, sizes = slice(start, start + bits), _bucket_sizes(codes, start, bits)
        chance = _colliding_pairs(sizes) / max(_pairs(len(codes)), 1)
        return BitHealth(len(codes), ones[own], correlation[own, own], len(sizes), int(sizes.max()), chance)

    return CodeHealth(part(0, spec.bits), {s.name: part(spec.start(s.name), s.bits) for s in spec.segments})


def substring_entropy(codes: NDArray[np.uint8], start: int, bits: int) -> float:
    """The collision entropy H2 = -log2 sum_v p_v^2, in bits, of the substring of `bits` bits from `start`.

    sum p^2 is estimated without bias, by the share of pairs of different images that agree. At most `bits`. If no pair
    agrees, it is what one agreeing pair would give: the sample shows no more, and the true entropy may be higher.
    0 for fewer than two images.

    >>> substring_entropy(np.array([[0], [64], [128], [192], [0]], np.uint8), 0, 2)  # 1 pair of 10 agrees: at most 2
    2.0

    Raises:
        InputError: a substring that is not within the codes.
    """
    if bits < 1 or start < 0 or start + bits > 8 * codes.shape[1]:
        raise InputError(f'bits {start} to {start + bits - 1} are not within codes of {8 * codes.shape[1]} bits')
    pairs = _pairs(len(codes))
    if pairs == 0:
        return 0.0
    return float(min(np.log2(pairs / max(_colliding_pairs(_bucket_sizes(codes, start, bits)), 1)), bits))


def expected_candidates(codes: NDArray[np.uint8], substrings: Iterable[tuple[int, int]], catalogue_size: int) -> float:
    """Expected rows that a multi-index search at radius 0 visits per query: catalogue_size x sum of 2^-H2.

    Args:
        codes: uint8 [N, B], a sample of the catalogue.
        substrings: (start, bits) of each table.
        catalogue_size: how many images the index holds.
    """
    return catalogue_size * sum(2 ** -substring_entropy(codes, start, bits) for start, bits in substrings)


def collisions(codes: NDArray[np.uint8], limit: int) -> list[Counts]:
    """Rows that share one code, the largest groups first, at most `limit` groups of two or more: int64 arrays.

    >>> collisions(np.array([[7], [1], [7], [2], [1], [7]], np.uint8), 10)
    [array([0, 2, 5]), array([1, 4])]
    """
    order, edges = _buckets(to_words(codes))
    sizes, firsts = np.diff(edges), order[edges[:-1]]
    largest = np.lexsort((firsts, -sizes))[: min(limit, (sizes > 1).sum())]
    return [order[edges[i] : edges[i + 1]] for i in largest]


def _buckets(words: NDArray[np.uint64]) -> tuple[Counts, Counts]:
    """Rows of words [N, W], equal ones together and ascending; bucket i is order[edges[i] : edges[i + 1]]."""
    order = np.lexsort(words.T)
    new = np.ones(len(words), bool)
    new[1:] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
    return order, np.append(np.flatnonzero(new), len(words))


def _bucket_sizes(codes: NDArray[np.uint8], start: int, bits: int) -> Counts:
    """How many codes have each value of some of their bits, for the values that occur."""
    mask = bit_mask(start, bits, codes.shape[1])
    _, edges = _buckets(to_words(codes)[:, mask != 0] & mask[mask != 0])
    return np.diff(edges)


def _pairs(count: int) -> int:
    return count * (count - 1) // 2


def _colliding_pairs(sizes: Counts) -> int:
    return int((sizes * (sizes - 1) // 2).sum())


def _bit_statistics(codes: NDArray[np.uint8], bits: int) -> tuple[Floats, Floats]:
    """The share of ones [bits] and Pearson's correlations [bits, bits], counted in blocks of rows."""
    both = np.zeros((bits, bits), np.float64)
    for start in range(0, len(codes), _CORRELATION_ROWS):
        block = unpack_bits(codes[start : start + _CORRELATION_ROWS], bits).astype(np.float32)
        both += block.T @ block
    n, ones = len(codes), np.diag(both)
    spread = ones * (n - ones)
    scale = np.sqrt(np.outer(spread, spread))
    correlation = np.divide(n * both - np.outer(ones, ones), scale, out=np.zeros_like(both), where=scale > 0)
    np.fill_diagonal(correlation, 1)
    return ones / n, correlation
