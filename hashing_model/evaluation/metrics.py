"""Exact, tie-aware retrieval metrics, from histograms of distances.

Hamming distances are small integers, so many images tie. A metric here is the expectation over all orders of the tied
images, computed from how many images, and how many relevant ones, lie at each distance of a query: arrays `totals` and
`relevant`, int64 [Q, D + 1] (`ranking.py` makes them). A query to which nothing is relevant has the value NaN, so that
it is neither counted as 0 nor left out silently. `evaluate.py` decides which metric is used for which segment.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hashing_model.compiled import compiled, in_threads
from hashing_model.errors import InputError
from hashing_model.evaluation.ranking import Counts

Floats = NDArray[np.float64]

RECALL_LEVELS = tuple(i / 20 for i in range(1, 21))


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
        InputError: shapes that differ, or k below 1. All metrics raise it for these reasons.
    """
    totals, relevant, before, taken = _cut(totals, relevant, k)
    step = (relevant - 1) / np.maximum(totals - 1, 1)
    sums = _tie_sum(_before(relevant) + 1, step, before, taken, _harmonic(totals))
    return _per_query((relevant / np.maximum(totals, 1) * sums).sum(axis=1) / _most_hits(relevant, k), relevant)


def average_precision_bounds(totals: Counts, relevant: Counts, k: int | None = None) -> tuple[Floats, Floats]:
    """AP@k if all ties fall worst, and if they all fall best: float64 [Q] each, NaN where R = 0.

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

    in_threads(work, len(totals))
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


@compiled()
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


@compiled()
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


@compiled()
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
