"""The plan of a batch of queries: which distances, bounds and radii make their answers exact, and what it finds.

`LocalIndex` (`search.py`) and the query job (`pipelines/query_index.py`) run the same plans.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hashing_model.code_spec import CodeSpec
from hashing_model.codes import bit_mask, check_codes, to_words
from hashing_model.errors import InputError
from pipelines.index import kernels
from pipelines.index.code_tables import CodeRows
from pipelines.index.layout import (
    NOT_PROBED,
    Substring,
    choose_radii,
    prefix_distances,
    probe_costs,
    substring_keys,
    table_weights,
)
from pipelines.index.manifest import Table


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
        """Disjoint answers as one, ordered by (query, distance, row); the first k of each query, or all."""
        several = list(parts)
        queries, distances, rows = (
            np.concatenate([getattr(m, name) for m in several] or [np.zeros(0, np.int64)])
            for name in ('queries', 'distances', 'rows')
        )
        order = np.lexsort((rows, distances, queries))
        if k is not None:
            order = order[_ranks(queries[order]) < k]
        return cls(queries[order], distances[order], rows[order])

    @property
    def ranks(self) -> NDArray[np.int64]:
        """The place of each answer among its query's, from 0; the answers must be ordered by query."""
        return _ranks(self.queries)

    def take(self, which: NDArray) -> Matches:
        """A selection of the answers by index or mask."""
        return Matches(self.queries[which], self.distances[which], self.rows[which])


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
        radii: int64 [Q, T], how far each table is probed; negative where it is not.
        substrings: one per table.
        metric: the distance.
        k: answers per query, None for all within the bound.
        weights: of the tables.
        costs: per table, of probing it to radius 0, 1, ... (`layout.probe_costs`).
        rows: of the index.
    """

    codes: NDArray[np.uint8]
    bounds: NDArray[np.int64]
    radii: NDArray[np.int64]
    substrings: tuple[Substring, ...]
    metric: Metric
    k: int | None
    weights: tuple[int, ...]
    costs: tuple[NDArray[np.float64], ...]
    rows: int

    def within(self, bounds: NDArray[np.int64]) -> SearchPlan:
        """The same search with other bounds, int64 [Q], and the radii that they need."""
        distinct, inverse = np.unique(bounds, return_inverse=True)
        radii = [choose_radii(self.costs, self.weights, int(bound), self.rows) for bound in distinct]
        chosen = np.array(radii, np.int64).reshape(-1, len(self.substrings))[inverse]
        return dataclasses.replace(self, bounds=bounds, radii=chosen)

    def at_home(self) -> SearchPlan:
        """A first look: every weighted table at radius 0. It finds near answers, not all of them."""
        home = np.where(np.array(self.weights) > 0, 0, NOT_PROBED)
        return dataclasses.replace(self, radii=np.tile(home, (len(self.codes), 1)))

    def tightened(self, found: Matches) -> SearchPlan:
        """The same search, knowing some answers: none of the k nearest is farther than the k-th of those found.

        Args:
            found: ordered by (query, distance), at most k per query.
        """
        bounds = self.bounds.copy()
        last = found.take(found.ranks + 1 == self.k)
        bounds[last.queries] = np.minimum(bounds[last.queries], last.distances)
        return self.within(bounds)

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

    def search(self, table: int, prefix: str, rows: CodeRows) -> Matches:
        """All answers that rows of one partition give; the prefix may be empty for a whole table."""
        which = self.queries_for(table, prefix) if prefix else np.flatnonzero(self.radii[:, table] >= 0)
        queries, distances, found = kernels.search_partition(
            rows.keys,
            to_words(rows.codes),
            rows.rows,
            int(prefix or '0', 2),
            self.substrings[table].bits - len(prefix),
            table,
            self.words[which],
            self.keys(table)[which],
            self.radii[which],
            self.table_masks,
            self.metric.masks,
            self.metric.weights,
            self.bounds[which],
            self.k or 0,
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

    The bound of a query is its k-th distance within the sample (a part of the index, so no nearer than the k-th
    within all of it), or the radius if that is less.

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
    costs = tuple(probe_costs(t.selectivity, t.substring.bits, rows) for t in tables)
    unplanned = np.full((len(codes), len(tables)), NOT_PROBED)
    plan = SearchPlan(
        codes, bounds, unplanned, substrings, metric, k, table_weights(substrings, segment_weights), costs, rows
    )
    return plan.within(bounds)


def check_limits(
    spec: CodeSpec, k: int | None, radius: int | None, profile: Mapping[str, int] | None
) -> tuple[int, ...]:
    """The segment weights of a search, if its limits make sense.

    Raises:
        InputError: k < 1, a negative radius, neither of both, or a profile that `CodeSpec.weights` refuses.
    """
    if k is None and radius is None:
        raise InputError('give k, a radius, or both')
    if k is not None and k < 1:
        raise InputError(f'k is {k}; at least 1 is needed')
    if radius is not None and radius < 0:
        raise InputError(f'the radius is {radius}; it cannot be negative')
    return spec.weights(profile)


def selectivity(codes: NDArray[np.uint8], substring: Substring, queries: int = 256) -> tuple[float, ...]:
    """Share of pairs of codes whose substrings differ by at most 0, 1, ..., bits, from the first codes as queries.

    Args:
        codes: a uniform sample, uint8 [S, B]; none gives shares of 0.
        substring: the bits to compare.
        queries: how many of the codes are compared with all of them.
    """
    words = to_words(codes)
    mask = substring.mask(codes.shape[1])
    counts = kernels.distance_histogram(words[:queries], words, mask, substring.bits)
    return tuple((np.cumsum(counts) / max(counts.sum(), 1)).tolist())
