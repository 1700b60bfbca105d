"""All code tables of an index in memory, and exact search in them by `multi_index.py`: no files, no ids, no Beam.

`LocalIndex` (`local_index.py`) fills them from a version's files; `MemoryTables.from_codes` takes bare codes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from hashing_model.codes.bits import bit_mask, check_codes, to_words
from hashing_model.codes.spec import CodeSpec
from pipelines.index.layout import Substring, cut_substrings, order_rings
from pipelines.search import kernels, multi_index
from pipelines.search.multi_index import Asked, Course, Room, Tables
from pipelines.search.search_plan import Metric, check_limits

# Nanoseconds, after `python -m benchmarks.search --costs`. Their ratios decide, so they travel between machines.
SCAN_NS, SCAN_WORD_NS = 0.05, 0.08  # of comparing one code in a batch, and of each of its words
PROBE_NS, PROBE_WORD_NS = 8.0, 8.0  # of looking up one value, fetching its codes and the words of those not far
VISIT_NS = 1.3  # of comparing one candidate
ROWS_PER_VALUE = 1  # on average under one value of a table's leading bits

ANSWERS = ('distances', 'rows', 'queries')  # of `Room`, those that hold answers
ROOM = 1 << 16  # answers of a search without k that are taken away at once
SELECTIVITY_QUERIES = 64  # of the sample, each compared with
SELECTIVITY_ROWS = 16_384  # others

Rings = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]  # see `layout.order_rings`


@dataclasses.dataclass(frozen=True)
class MemoryMatches:
    """Answers of some queries, and what they cost.

    Args:
        queries, distances, numbers: int64 [M], ordered by (query, distance, number); `numbers` are row numbers from 0
            to N - 1.
        exact: bool [Q], whether the answers are certain.
        visited: int64 [Q], how many codes were compared with each query.
    """

    queries: NDArray[np.int64]
    distances: NDArray[np.int64]
    numbers: NDArray[np.int64]
    exact: NDArray[np.bool_]
    visited: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence[MemoryMatches]) -> MemoryMatches:
        """Answers of successive runs of queries as one."""
        firsts = np.cumsum([0, *(len(p.exact) for p in parts)])
        return cls(
            np.concatenate([p.queries + first for p, first in zip(parts, firsts, strict=False)]),
            np.concatenate([p.distances for p in parts]),
            np.concatenate([p.numbers for p in parts]),
            np.concatenate([p.exact for p in parts]),
            np.concatenate([p.visited for p in parts]),
        )


class MemoryTables:
    """The tables of N codes, each ordered by the leading bits of its substring; filled when a search first needs one.

    Args:
        spec: the code spec.
        substrings: one per table.
        rows: N.
        sample: codes drawn uniformly, uint8 [S, B], to estimate how many codes a ring holds.
        read: table number -> its runs of (first place, codes uint8 [n, B], row numbers [n] from 0 to N - 1), ordered
            by the substrings' values, together covering all places once.
    """

    def __init__(
        self,
        spec: CodeSpec,
        substrings: Sequence[Substring],
        rows: int,
        sample: NDArray[np.uint8],
        read: Callable[[int], Iterator[tuple[int, NDArray[np.uint8], NDArray]]],
    ):
        self.spec, self.substrings, self.rows, self.sample, self._read = spec, tuple(substrings), rows, sample, read
        words, tables = -(-spec.num_bytes // 8), len(self.substrings)
        longest = max(1, math.ceil(math.log2(max(rows, 2) / ROWS_PER_VALUE)))
        self.value_bits = np.array([min(s.bits, longest) for s in self.substrings], np.int64)
        self.value_masks = np.stack(
            [bit_mask(s.start, int(b), spec.num_bytes) for s, b in zip(self.substrings, self.value_bits, strict=True)]
        )
        # one array each: untouched memory costs nothing, and the kernels take no lists
        number_type = np.uint32 if rows < 2**32 else np.int64
        self.codes = np.empty((tables, words, rows), np.uint64)
        self.numbers = np.empty((tables, rows), number_type)
        self.first_offsets = np.concatenate([[0], np.cumsum((1 << self.value_bits) + 1)[:-1]])
        self.offsets = np.zeros(int(((1 << self.value_bits) + 1).sum()), number_type)
        of_tables = self.codes.reshape(-1), self.numbers.reshape(-1), self.offsets, self.first_offsets
        self.flat = Tables(*of_tables, self.value_bits, self.value_masks)
        scan = SCAN_NS + SCAN_WORD_NS * words
        # of a probe and a visit, in scanned codes
        self.costs = (PROBE_NS + PROBE_WORD_NS * words) / scan, VISIT_NS / scan
        self._filled: set[int] = set()
        self._rings: dict[tuple[int, ...], Rings] = {}

    @classmethod
    def from_codes(cls, codes: NDArray[np.uint8], spec: CodeSpec) -> MemoryTables:
        """Tables of bare codes uint8 [N, B]; the row numbers are their places."""
        substrings = cut_substrings(spec, len(codes))
        sample = codes[np.random.default_rng(0).permutation(len(codes))[:65_536]]

        def read(table: int) -> Iterator[tuple[int, NDArray[np.uint8], NDArray]]:
            order = np.argsort(tables.leading_values(table, codes), kind='stable')
            yield 0, codes[order], order

        tables = cls(spec, substrings, len(codes), sample, read)
        return tables

    @property
    def nbytes(self) -> int:
        """Bytes of the tables that are filled."""
        per_table = (self.codes.nbytes + self.numbers.nbytes) // len(self.substrings)
        values = sum(1 << int(self.value_bits[t]) for t in self._filled)
        return per_table * len(self._filled) + values * self.offsets.itemsize

    def leading_values(self, table: int, codes: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The value by which a table orders codes uint8 [n, B]: int64 [n]."""
        words = np.ascontiguousarray(to_words(codes).T)
        return multi_index.leading_values(words, self.substrings[table].start, int(self.value_bits[table]))

    def fill(self, table: int) -> None:
        """Read a table, if that has not been done.

        Raises:
            OSError: a file cannot be read, or the codes are not N in the order of the substring's values.
        """
        if table in self._filled:
            return
        first, bits = int(self.first_offsets[table]), int(self.value_bits[table])
        counts = np.zeros((1 << bits) + 1, np.int64)
        highest = -1
        for start, codes, numbers in self._read(table):
            if not len(codes):
                continue
            stop = start + len(codes)
            if stop > self.rows:
                raise OSError(f'table {table} has more than {self.rows} codes')
            self.codes[table, :, start:stop] = to_words(codes).T
            self.numbers[table, start:stop] = numbers
            words = self.codes[table, :, start:stop]
            values = multi_index.leading_values(words, self.substrings[table].start, bits)
            if not multi_index.count_values(values, counts[1:]) or values[0] < highest:
                raise OSError(f'the codes of table {table} are not in order')
            highest = values[-1]
        if counts.sum() != self.rows:
            raise OSError(f'table {table} has {counts.sum()} codes instead of {self.rows}')
        self.offsets[first : first + len(counts)] = np.cumsum(counts)
        self._filled.add(table)

    @functools.cached_property
    def selectivities(self) -> tuple[NDArray[np.float64], ...]:
        """Per table, the share of codes that differ from a code of the sample in 0, 1, ... of the leading bits."""
        words = to_words(self.sample[:SELECTIVITY_ROWS])
        counts = [
            kernels.distance_histogram(words[:SELECTIVITY_QUERIES], words, mask, int(bits))
            for mask, bits in zip(self.value_masks, self.value_bits, strict=True)
        ]
        return tuple(c / max(c.sum(), 1) for c in counts)

    def rings(self, weights: Sequence[int]) -> Rings:
        """In which order the rings of the tables are searched under table weights; see `layout.order_rings`."""
        key = tuple(weights)
        if key not in self._rings:
            self._rings[key] = self._order_rings(weights)
        return self._rings[key]

    def _order_rings(self, weights: Sequence[int]) -> Rings:
        probe, visit = self.costs
        expected = [
            np.array([math.comb(int(bits), r) for r in range(int(bits) + 1)]) * probe + share * self.rows * visit
            for bits, share in zip(self.value_bits, self.selectivities, strict=True)
        ]
        return order_rings(expected, weights, self.rows)

    def search(
        self,
        codes: NDArray[np.uint8],
        k: int | None = 10,
        radius: int | None = None,
        profile: Mapping[str, int] | None = None,
        allowed: NDArray[np.bool_] | None = None,
        exact: bool = True,
        threads: int = 1,
    ) -> MemoryMatches:
        """The k nearest codes of each query, ranked by (weighted distance, row number).

        Args:
            codes, k, radius, profile: see `LocalIndex.search`.
            allowed: bool [N], the rows that may be answers; None allows all.
            exact: False looks only under the queries' own values, which finds most near answers fast.
            threads: how many threads share the queries.
        """
        segment_weights = check_limits(self.spec, k, radius, profile)
        codes = check_codes(codes, self.spec)
        metric = Metric.of(self.spec, segment_weights)
        weights = np.array([segment_weights[s.segment] for s in self.substrings], np.int64)
        job = _Job(self, metric, weights, segment_weights, k, radius, allowed, exact)
        for table in job.searched:
            self.fill(table)
        runs = np.array_split(codes, max(min(threads, len(codes)), 1))
        if len(runs) == 1:
            return job.search(runs[0])
        with ThreadPoolExecutor(len(runs)) as pool:
            return MemoryMatches.joined(list(pool.map(job.search, runs)))


class _Job:
    """What the queries of one search have in common."""

    def __init__(
        self,
        tables: MemoryTables,
        metric: Metric,
        weights: NDArray[np.int64],
        segment_weights: Sequence[int],
        k: int | None,
        radius: int | None,
        allowed: NDArray[np.bool_] | None,
        exact: bool,
    ):
        self.tables, self.weights, self.exact = tables, weights, exact
        self.metric = None if set(segment_weights) == {1} else (metric.masks, metric.weights)
        self.k = 0 if k is None else min(k, max(tables.rows, 1))
        self.limit = metric.max_distance if radius is None else min(radius, metric.max_distance)
        steps, levels, costs = tables.rings(weights.tolist())
        if not exact:
            steps = steps[steps[:, 1] == 0]
            levels = np.concatenate([[0], np.cumsum(weights[steps[:, 0]])])
            costs = np.zeros(len(steps) + 1)
        self.searched, self.scanned = sorted(set(steps[:, 0].tolist())), int(steps[0, 0])
        self.allowed = np.zeros(0, bool) if allowed is None else allowed
        self.subset: NDArray[np.int64] | None = None
        if allowed is not None:
            tables.fill(self.scanned)
            self.subset = np.flatnonzero(allowed[tables.numbers[self.scanned]])
        scan_cost = float(tables.rows if self.subset is None else len(self.subset))
        self.course = Course(steps, levels, costs, self._test_words(metric), *tables.costs, scan_cost, exact)

    def _test_words(self, metric: Metric) -> NDArray[np.int64]:
        """For each table, the word in which candidates that agree in the table's bits can differ most, by weight."""
        free = ~self.tables.value_masks  # [T, W]
        reach = np.bitwise_count(metric.masks[:, None] & free[None]) * metric.weights[:, None, None].astype(np.float64)
        return reach.sum(axis=0).argmax(axis=1)

    @functools.cached_property
    def scan_codes(self) -> tuple[NDArray[np.uint64], NDArray]:
        """Codes [W, M] and row numbers [M] that a scan passes over."""
        codes, numbers = self.tables.codes[self.scanned], self.tables.numbers[self.scanned]
        if self.subset is None:
            return codes, numbers
        return np.ascontiguousarray(codes[:, self.subset]), numbers[self.subset]

    def search(self, codes: NDArray[np.uint8]) -> MemoryMatches:
        """The answers of some queries, uint8 [Q, B]."""
        words = to_words(codes)
        queries = len(words)
        asked = Asked(words, self.metric, np.full(queries, self.limit), self.k, self.allowed)
        places = queries * self.k if self.k else ROOM
        flat = (np.empty(places, np.int64) for _ in range(3))
        room = Room(*flat, *(np.zeros(queries, np.int64) for _ in range(4)))

        # Probe; what would cost more than a scan is scanned
        room, probed = self._in_rounds(functools.partial(self._probe, codes, asked), room)
        left = np.flatnonzero(room.status) if self.exact else np.zeros(0, np.int64)
        if len(left):
            if not self.k:
                room.bounds[left] = self.limit
            room, scanned = self._in_rounds(functools.partial(self._scan, asked, left), room)
            probed = [np.concatenate(arrays) for arrays in zip(probed, scanned, strict=True)]

        # Per query in order
        exact = room.status == 0
        if self.k:  # already in order
            at = np.flatnonzero(np.arange(self.k) < room.sizes[:, None])
            return MemoryMatches(at // self.k, room.distances[at], room.rows[at], exact, room.visited)
        order = np.lexsort((probed[2], probed[1], probed[0]))
        return MemoryMatches(probed[0][order], probed[1][order], probed[2][order], exact, room.visited)

    def _in_rounds(self, kernel: Callable[[int, Room], tuple[int, int]], room: Room) -> tuple[Room, list[NDArray]]:
        """Run a kernel until it is done.

        Without k, it stops each time that the room is full, and its answers are copied out.

        Args:
            kernel: (where to go on, room) to (where it stopped, -1 at the end; places filled).

        Returns:
            The room, which is larger if one step did not fit; and the queries, distances and row numbers copied out.
        """
        at, kept = 0, []
        while at >= 0:
            before = at
            at, filled = kernel(at, room)
            kept.append([a[:filled].copy() for a in (room.queries, room.distances, room.rows)])
            if at == before and not filled:
                larger = {name: np.empty(2 * len(a), np.int64) for name, a in room._asdict().items() if name in ANSWERS}
                room = room._replace(**larger)
        return room, [np.concatenate(arrays) for arrays in zip(*kept, strict=True)]

    def _probe(self, codes: NDArray, asked: Asked, first: int, room: Room) -> tuple[int, int]:
        values = np.stack([self.tables.leading_values(t, codes) for t in range(len(self.weights))], axis=1)
        # plain tuples, because numba takes microseconds to find out the type of a named one
        tables, course = tuple(self.tables.flat), tuple(self.course)
        first, filled = multi_index.probe(tables, course, tuple(asked), values, first, tuple(room))
        return (first if first < len(values) else -1), filled

    def _scan(self, asked: Asked, which: NDArray, position: int, room: Room) -> tuple[int, int]:
        zeros = (np.uint64(0),) * asked.queries.shape[1]
        return multi_index.scan(zeros, *self.scan_codes, which, tuple(asked), position, tuple(room))
