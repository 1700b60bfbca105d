"""The plan of a batch of queries: the distance, and the bounds and radii that make their answers exact.

`LocalIndex` (`local_index.py`) and the query job (`pipelines/query/job.py`) run the same plans.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hashing_model.codes.bits import bit_mask, check_codes, to_words
from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from pipelines import files
from pipelines.index.code_tables import CodeRows
from pipelines.index.layout import (
    NOT_PROBED,
    Substring,
    choose_radii,
    home_reach,
    prefix_distances,
    probe_costs,
    radii_cost,
    reading_costs,
    scanned_table,
    substring_keys,
    table_weights,
)
from pipelines.index.manifest import Table
from pipelines.search import kernels
from pipelines.search.kernels import KeyedCodes, Lookups

MERGED_AT_ONCE = 65_536  # matches that wait to be merged, at least


@dataclasses.dataclass(frozen=True)
class Metric:
    """A weighted Hamming distance as the kernels want it: one mask per distinct positive weight.

    Args:
        masks: uint64 [G, W], the bits of each weight.
        weights: int64 [G].
        max_distance: the largest distance two codes can have.
    """

    masks: NDArray[np.uint64]
    weights: NDArray[np.int64]
    max_distance: int

    @classmethod
    def of(cls, spec: CodeSpec, segment_weights: Sequence[int]) -> Metric:
        """The metric of a profile's segment weights (`CodeSpec.weights`)."""
        distinct = sorted({w for w in segment_weights if w})
        masks = np.zeros((len(distinct), -(-spec.num_bytes // 8)), np.uint64)
        for segment, w in zip(spec.segments, segment_weights, strict=True):
            if w:
                masks[distinct.index(w)] |= bit_mask(spec.start(segment.name), segment.bits, spec.num_bytes)
        reach = sum(w * s.bits for w, s in zip(segment_weights, spec.segments, strict=True))
        return cls(masks, np.array(distinct, np.int64), reach)


@dataclasses.dataclass(frozen=True)
class Matches:
    """Answers of some queries: query numbers, distances and rows, int64 [M] each."""

    queries: NDArray[np.int64]
    distances: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def merged(cls, parts: Iterable[Matches], k: int | None) -> Matches:
        """All answers without repetitions, ordered by (query, distance, row).

        Only the first k of each query, unless k is None.
        """
        several = list(parts)
        queries, distances, rows = (
            np.concatenate([getattr(m, name) for m in several] or [np.zeros(0, np.int64)])
            for name in ('queries', 'distances', 'rows')
        )
        order = np.lexsort((rows, distances, queries))
        order = order[_differs(queries[order], rows[order])]
        if k is not None:
            order = order[_ranks(queries[order]) < k]
        return cls(queries[order], distances[order], rows[order])

    def kth(self, k: int | None) -> Matches:
        """The k-th answer of each query that has so many; the answers must be ordered by (query, distance)."""
        return self.take(self.ranks + 1 == k)

    @property
    def ranks(self) -> NDArray[np.int64]:
        """The place of each answer among its query's, from 0; the answers must be ordered by query."""
        return _ranks(self.queries)

    def take(self, which: NDArray) -> Matches:
        """A selection of the answers by index or mask."""
        return Matches(self.queries[which], self.distances[which], self.rows[which])


def add_matches(kept: list[Matches], more: Matches, k: int | None) -> list[Matches]:
    """Add matches to a list of matches, which is merged when it has as many new ones as the last merge kept.

    Merging each time would take time quadratic in their number.
    """
    kept.append(more)
    new = sum(len(m.rows) for m in kept[1:])
    return [Matches.merged(kept, k)] if new > max(len(kept[0].rows), MERGED_AT_ONCE) else kept


def _differs(*columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which places differ from the place before in some column."""
    different = np.ones(len(columns[0]), bool)
    different[1:] = np.any([c[1:] != c[:-1] for c in columns], axis=0)
    return different


def _ranks(queries: NDArray[np.int64]) -> NDArray[np.int64]:
    starts = np.flatnonzero(np.r_[True, queries[1:] != queries[:-1]]) if len(queries) else np.zeros(0, np.int64)
    lengths = np.diff(np.r_[starts, len(queries)])
    return np.arange(len(queries)) - np.repeat(starts, lengths)


@dataclasses.dataclass(frozen=True)
class SearchPlan:
    """What every partition needs to know to answer a batch of queries exactly.

    Args:
        codes: uint8 [Q, B].
        bounds: int64 [Q], distances that no answer exceeds.
        radii: int8 [Q, T], how far each table is probed; negative where it is not.
        substrings: one per table.
        metric: the distance.
        k: answers per query, None for all within the bound.
        weights: of the tables.
        costs: per table, the cost of reading it and probing it to radius 0, 1, ... (`layout.probe_costs`,
            `reading_costs`).
        rows: of the index.
        selectivity: per table, the expected share of rows within radius 0, 1, ... of a query.
        reach: per table, the radius to which a first look probes the rows that it has read; None for a plan in which
            `radii` tell that.
    """

    codes: NDArray[np.uint8]
    bounds: NDArray[np.int64]
    radii: NDArray[np.int8]
    substrings: tuple[Substring, ...]
    metric: Metric
    k: int | None
    weights: tuple[int, ...]
    costs: tuple[NDArray[np.float64], ...]
    rows: int
    selectivity: tuple[tuple[float, ...], ...]
    reach: tuple[int, ...] | None = None

    def within(self, bounds: NDArray[np.int64]) -> SearchPlan:
        """The same search with other bounds, int64 [Q], and the radii that they need."""
        distinct, inverse = np.unique(bounds, return_inverse=True)
        radii = [self._radii_within(int(bound)) for bound in distinct]
        chosen = np.array(radii, np.int8).reshape(-1, len(self.substrings))[inverse]
        return dataclasses.replace(self, bounds=bounds, radii=chosen)

    def _radii_within(self, bound: int) -> list[int]:
        return choose_radii(self.costs, self.weights, bound, float(self.costs[scanned_table(self.weights)][-1]))

    def at_home(self) -> SearchPlan:
        """The plan of a first look.

        It reads only the rows near the queries' own keys in every weighted table, and probes farther in these rows.

        It finds near answers, but not all of them, and some of them in several tables.
        """
        home = np.where(np.array(self.weights) > 0, 0, NOT_PROBED).astype(np.int8)
        reach = tuple(home_reach(s.bits, self.rows) for s in self.substrings)
        return dataclasses.replace(self, radii=np.tile(home, (len(self.codes), 1)), reach=reach)

    def complete_at_home(self, found: Matches) -> NDArray[np.bool_]:
        """For which queries the answers of a first look are exact: bool [Q].

        An image that it has not seen differs from the query in at least one bit of every weighted table, so its
        distance is at least the sum of the tables' weights.

        Args:
            found: the matches of the look `at_home`, ordered by (query, distance), at most k per query.
        """
        bounds = self.bounds if self.k is None else self.tightened(found).bounds
        return bounds < sum(self.weights)

    def tightened(self, found: Matches) -> SearchPlan:
        """The same search with tighter bounds: the k nearest are not farther than the k-th of some answers.

        Args:
            found: ordered by (query, distance), at most k per query.
        """
        last = found.kth(self.k)
        return self.nearer(last.queries, last.distances)

    def nearer(self, queries: NDArray[np.int64], distances: NDArray[np.int64]) -> SearchPlan:
        """The same search, with bounds that no longer exceed these distances of these queries, int64 [M] each."""
        bounds = self.bounds.copy()
        bounds[queries] = np.minimum(bounds[queries], distances)
        return self.within(bounds)

    @property
    def search_costs(self) -> NDArray[np.float64]:
        """What the search of each query costs, in row visits: float64 [Q]."""
        chosen = (np.where(r >= 0, c[r], 0) for c, r in zip(self.costs, self.radii.T, strict=True))
        return np.sum(list(chosen), axis=0, dtype=np.float64)

    def worth_sampling(self, rows: int) -> NDArray[np.int64]:
        """The numbers of the queries for which a lower bound could save more than comparing `rows` codes costs."""
        least = radii_cost(self.costs, self._radii_within(0))
        found = np.flatnonzero((self.search_costs - least > rows) & (self.bounds > 0))
        return found if self.k is not None and self.k <= rows else found[:0]

    def sampled(self, queries: NDArray[np.int64], sample: NDArray[np.uint8]) -> SearchPlan:
        """The same search, with some queries' k-th distances within a sample of the index as bounds.

        Args:
            queries: their numbers.
            sample: uint8 [S, B]; fewer than k codes tell nothing.
        """
        words, metric = to_words(sample), self.metric
        assert self.k is not None
        if len(sample) < self.k:
            return self
        kth = kernels.kth_distances(self.words[queries], words, metric.masks, metric.weights, self.k)
        return self.nearer(queries, kth)

    @functools.cached_property
    def words(self) -> NDArray[np.uint64]:
        """The codes as words for the kernels: uint64 [Q, W]."""
        return to_words(self.codes)

    @functools.cached_property
    def table_masks(self) -> NDArray[np.uint64]:
        """The bits of each table's substring: uint64 [T, W]."""
        return np.stack([s.mask(self.codes.shape[1]) for s in self.substrings])

    def keys(self, table: int) -> NDArray[np.int64]:
        """The queries' values of a table's substring: int64 [Q]."""
        return substring_keys(self.codes, self.substrings[table])

    def queries_for(self, table: int, prefix: str) -> NDArray[np.int64]:
        """The queries that may have an answer under a prefix of a table: their numbers, ascending."""
        radii = self.radii[:, table]
        near = prefix_distances(self.keys(table), self.substrings[table].bits, prefix) <= radii
        return np.flatnonzero(near & (radii >= 0))

    def search(self, table: int, prefix: str, rows: CodeRows, which: NDArray[np.int64] | None = None) -> Matches:
        """All answers that rows of one partition give.

        Args:
            table, prefix: of the partition; the prefix may be empty for a whole table.
            rows: all its rows that may be answers.
            which: numbers of the queries to answer, ascending; None for all that may have an answer there.
        """
        if which is None:
            which = self.queries_for(table, prefix) if prefix else np.flatnonzero(self.radii[:, table] >= 0)
        codes, radii = self.codes[which], self.radii[which].astype(np.int64)
        if self.reach is not None:  # tables do not own answers, as none is read in full within its reach
            radii[:] = NOT_PROBED
            radii[:, table] = self.reach[table]
        metric, substring = self.metric, self.substrings[table]
        held = KeyedCodes(rows.keys, rows.words, int(prefix or '0', 2), substring.bits - len(prefix))
        bounds, k = self.bounds[which], self.k or 0
        asked = Lookups(to_words(codes), radii, self.table_masks, metric.masks, metric.weights, bounds, k)
        queries, distances, found = kernels.search_partition(
            held, rows.rows, table, asked, substring_keys(codes, substring)
        )
        return Matches(which[queries], distances, found)


def plan_search(
    spec: CodeSpec,
    tables: Sequence[Table],
    rows: int,
    sample: NDArray[np.uint8],
    codes: NDArray[np.uint8],
    k: int | None = 10,
    radius: int | None = None,
    profile: Mapping[str, int] | None = None,
) -> SearchPlan:
    """Bounds and radii that make the answers of a batch of queries exact.

    The bound of a query is the smaller of the radius and its k-th distance within the sample. The sample is a part of
    the index, so the k-th distance within the whole index cannot be larger. A caller that takes a first look can pass
    an empty sample, and later give the sample to the queries for which that pays, by `sampled`.

    Args:
        spec, tables, rows, sample: of the index; the sample's codes are uint8 [S, B].
        codes: the queries' codes, uint8 [Q, B].
        k: answers per query; None for all within `radius`.
        radius: largest weighted distance of an answer; None for no limit.
        profile: weight per segment; None weighs every bit 1.

    Raises:
        InputError: see `check_limits`; or codes of another length.
    """
    segment_weights = check_limits(spec, k, radius, profile)
    k = None if k is None else min(k, max(rows, 1))
    metric = Metric.of(spec, segment_weights)
    codes = check_codes(codes, spec)
    bounds = np.full(len(codes), metric.max_distance if radius is None else min(radius, metric.max_distance))
    if k is not None and k <= len(sample):
        kth = kernels.kth_distances(to_words(codes), to_words(sample), metric.masks, metric.weights, k)
        bounds = np.minimum(bounds, kth)
    substrings = tuple(t.substring for t in tables)
    unplanned = np.full((len(codes), len(tables)), NOT_PROBED, np.int8)
    weights = table_weights(substrings, segment_weights)
    costs, shares = _costs(tables, rows, len(codes)), tuple(t.selectivity for t in tables)
    plan = SearchPlan(codes, bounds, unplanned, substrings, metric, k, weights, costs, rows, shares)
    return plan.within(bounds)


def _costs(tables: Sequence[Table], rows: int, queries: int) -> tuple[NDArray[np.float64], ...]:
    files_ = sum(len(p.files) for t in tables for p in t.partitions)
    group_rows = min(rows * len(tables) / max(files_, 1), files.ROW_GROUP_ROWS)
    return tuple(
        probe_costs(t.selectivity, t.substring.bits, rows) + reading_costs(t.substring.bits, rows, group_rows, queries)
        for t in tables
    )


def check_limits(
    spec: CodeSpec, k: int | None, radius: int | None, profile: Mapping[str, int] | None
) -> tuple[int, ...]:
    """The weight of each segment in a search; refuses limits that are not possible.

    Raises:
        InputError: see `check_k_and_radius`; or a profile that `CodeSpec.weights` refuses.
    """
    check_k_and_radius(k, radius)
    return spec.weights(profile)


def check_k_and_radius(k: int | None, radius: int | None) -> None:
    """Refuse limits of a search that are not possible in any index.

    Raises:
        InputError: limits that are not whole numbers, k < 1, a negative radius, or neither k nor a radius.
    """
    if k is None and radius is None:
        raise InputError('give k, a radius, or both')
    for name, limit in (('k', k), ('radius', radius)):
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, np.integer))):
            raise InputError(f'{name} is {limit!r}; a whole number is needed, or None')
    if k is not None and k < 1:
        raise InputError(f'k is {k}; at least 1 is needed')
    if radius is not None and radius < 0:
        raise InputError(f'the radius is {radius}; it cannot be negative')


def selectivity(codes: NDArray[np.uint8], substring: Substring, queries: int = 256) -> tuple[float, ...]:
    """The share of pairs of codes whose substrings differ in at most 0, 1, ..., bits bits; the first codes are the
    queries.

    Args:
        codes: a uniform sample, uint8 [S, B]; none gives shares of 0.
        substring: the bits to compare.
        queries: how many of the codes are compared with all of them.
    """
    words = to_words(codes)
    mask = substring.mask(codes.shape[1])
    counts = kernels.distance_histogram(words[:queries], words, mask, substring.bits)
    return tuple((np.cumsum(counts) / max(counts.sum(), 1)).tolist())
