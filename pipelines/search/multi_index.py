"""Multi-index search in memory, compiled: probe tables ring by ring until the answers are certain, or scan.

Every table holds all codes, ordered by the leading bits of its substring; `offsets` tell where the codes with each
value of these bits lie, side by side. A query looks under its own value first (ring 0), then under all values that
differ in one bit (ring 1), and so on. When every table t was searched to radius r_t, an image not seen has a distance
of at least sum_t w_t (r_t + 1), its level (Norouzi, Punjani and Fleet 2014, with weights): once that exceeds the k-th
distance found, the answers are exact.

What makes it fast: the offsets of a ring are read first and the codes that they point at are prefetched, so that cache
misses overlap. One word of a code, outside the table's substring, rejects most candidates. Whether another table has
shown a code already is computed from the code itself, without a mark per row.

What makes it safe: the candidates of a ring are counted before they are visited, and a query that would cost more than
a scan is scanned.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.cpython.unsafe.tuple import tuple_setitem
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from hashing_model.compiled import compiled, popcount
from pipelines.search.kernels import AHEAD, PROBES_AT_ONCE, _later, _next_ring_member, _prefetch, _sift

TILE = 2048  # words of codes that stay in the first-level cache while all queries pass over them
STRIP = 256  # codes compared before looking whether one of them is near
FEW = 32  # of these, before looking which
FIRST = 1024  # codes whose k-th distance bounds the answers before the first is ranked
EXPLORED = 0.05  # of a scan's cost may be spent before an estimate decides
AFFORDED = 0.8  # of a scan's cost may then be expected
LONG_BUCKET = 64  # from here on a bucket is visited strip by strip


@intrinsic
def _wide_vectors(typing_context: Any) -> Any:
    """Let the compiler use 512-bit vectors in the calling function, where the processor has them.

    LLVM prefers 256 bits on processors that lower their clock for wider ones; for popcounts 512 are 1.3 times faster.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        # llvmlite's `add` knows no attributes with values
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


def _word_distance(x: Any, w: Any, metric: Any) -> Any:
    """The distance that the differing bits x of word w make; metric is None, or (masks [G, W], weights [G])."""


@overload(_word_distance, strict=False)  # strict would compare annotations
def _choose_word_distance(x: Any, w: Any, metric: Any) -> Any:
    if isinstance(metric, types.NoneType):
        return lambda x, w, metric: np.int64(popcount(x))

    def weighted(x, w, metric):
        masks, weights = metric
        total = np.int64(0)
        for g in range(len(weights)):
            total += weights[g] * np.int64(popcount(x & masks[g, w]))
        return total

    return weighted


@compiled(inline='always')
def _masked_bits(query, codes, at, stride, mask):
    """How many bits of a mask [W] differ between query [W] and the code whose word w stands at `at` + w * `stride`."""
    bits = np.uint64(0)
    for w in range(len(query)):
        bits += popcount((query[w] ^ codes[at + w * stride]) & mask[w])
    return np.int64(bits)


@compiled()
def _any_within(query_word, words, w, metric, limit):
    """Whether one of some words w [N] makes a distance of at most `limit`."""
    _wide_vectors()
    near = np.int64(0)
    for i in range(len(words)):
        near += _word_distance(query_word ^ words[i], w, metric) <= limit
    return near > 0


@compiled()
def leading_values(words, start, bits):
    """Bits start .. start + bits - 1 of codes uint64 [W, N], bits at most 32, as int64 [N]."""
    result = np.empty(words.shape[1], np.int64)
    w, shift = start // 64, start % 64
    for i in range(len(result)):
        value = words[w, i] << np.uint64(shift)
        if shift + bits > 64:
            value |= words[w + 1, i] >> np.uint64(64 - shift)
        result[i] = np.int64(value >> np.uint64(64 - bits))
    return result


@compiled()
def count_values(values, counts):
    """Add to counts[v] how often each value stands in values; tells whether the values ascend."""
    ascending = True
    for i in range(len(values)):
        counts[values[i]] += 1
        ascending &= i == 0 or values[i - 1] <= values[i]
    return ascending


@compiled()
def number_rows(rows, part_starts, numbers):
    """Number rows (images part << 32 | row in it) over all parts, as part_starts[part] + row.

    Returns whether all exist.

    Args:
        rows, numbers: int64 [n], and where the results go.
        part_starts: int64 [parts + 1], the rows in all parts before each, and in all.
    """
    for i in range(len(rows)):
        part, place = rows[i] >> 32, rows[i] & 0xFFFFFFFF
        if not 0 <= part < len(part_starts) - 1 or part_starts[part] + place >= part_starts[part + 1]:
            return False
        numbers[i] = part_starts[part] + place
    return True


@compiled(inline='always')
def _offer(distance, row, bound, k, base, size, distances, rows):
    """Add an answer to those at distances[base:], a max-heap as soon as there are k; returns the new (size, bound).

    The caller has made sure that it is within the bound and, if k are there, ranks before the worst.
    """
    if size == k:
        _sift(distances, rows, base, k, 0, distance, row)
        return size, min(bound, distances[base])
    distances[base + size], rows[base + size] = distance, row
    if size + 1 < k:
        return size + 1, bound
    for at in range(k // 2 - 1, -1, -1):
        _sift(distances, rows, base, k, at, distances[base + at], rows[base + at])
    return k, min(bound, distances[base])


@compiled()
def _rank(distances, rows, base, size, k):
    """Sort the answers at distances[base : base + size], which are a max-heap if there are k."""
    if size < k:
        for at in range(size // 2 - 1, -1, -1):
            _sift(distances, rows, base, size, at, distances[base + at], rows[base + at])
    for last in range(size - 1, 0, -1):
        distance, row = distances[base + last], rows[base + last]
        distances[base + last], rows[base + last] = distances[base], rows[base]
        _sift(distances, rows, base, last, 0, distance, row)


class Tables(NamedTuple):
    """All tables of N codes in W words, each in the order of its substring's leading bits, T tables one after another.

    Args:
        codes: uint64 [T * W * N], the words of a table's codes one after the other.
        rows: unsigned [T * N], their row numbers.
        offsets: unsigned [sum of 2^bits + 1], where in each table the codes with each value begin.
        first_offsets: int64 [T], where each table's offsets begin.
        value_bits: int64 [T], how many leading bits order a table.
        value_masks: uint64 [T, W], which bits these are.
    """

    codes: NDArray
    rows: NDArray
    offsets: NDArray
    first_offsets: NDArray
    value_bits: NDArray
    value_masks: NDArray


class Course(NamedTuple):
    """In which order rings are searched, and what that is expected to cost, in scanned codes.

    Args:
        steps: int64 [S, 2], (table, radius) of each ring.
        levels: int64 [S + 1], before each step and after the last, the least distance of an image not seen.
        costs: float64 [S + 1], the expected cost of the steps before.
        test_words: int64 [T], the word of a code to compare first.
        probe_cost, visit_cost: of looking up one value, and of comparing one candidate.
        scan_cost: of scanning instead.
        give_up: whether a query that would cost more than a scan is left to it.
    """

    steps: NDArray
    levels: NDArray
    costs: NDArray
    test_words: NDArray
    probe_cost: float
    visit_cost: float
    scan_cost: float
    give_up: bool


class Asked(NamedTuple):
    """What is asked of the tables.

    Args:
        queries: uint64 [Q, W].
        metric: None for plain Hamming distance, or (masks, weights); see `_word_distance`.
        limits: int64 [Q], the largest distance of an answer.
        k: answers kept per query, 0 keeps all.
        allowed: bool [rows], which rows may be answers; empty if all may.
    """

    queries: NDArray
    metric: Any
    limits: NDArray
    k: int
    allowed: NDArray


class Room(NamedTuple):
    """Where the kernels write.

    Args:
        distances, rows, queries: int64 [at least Q * k, or any size without k], the answers; with k, those of query q
            stand at q * k, and `queries` is not used.
        bounds: int64 [Q], the largest distance that may still be an answer.
        sizes, visited: int64 [Q], the answers found, and the codes compared.
        status: int64 [Q]: 0 exact, 1 scan it, 2 out of steps.
    """

    distances: NDArray
    rows: NDArray
    queries: NDArray
    bounds: NDArray
    sizes: NDArray
    visited: NDArray
    status: NDArray


@compiled()
def probe(tables, course, asked, values, first_query, room):
    """Answer queries exactly by probing, except those for which a scan is cheaper.

    One long function on purpose: cut into functions for a step, a ring and its codes, it took a fifth longer.

    Args:
        tables, course, asked: `Tables`, `Course` and `Asked`.
        values: int64 [Q, T], by which each table orders the queries.
        first_query: the query to go on with.
        room: `Room`.

    Returns:
        The first query that did not find room (Q if all did) and how many places are filled.
    """
    codes, rows, offsets, first_offsets, value_bits, value_masks = tables
    steps, levels, costs, test_words, probe_cost, visit_cost, scan_cost, give_up = course
    queries, metric, limits, k, allowed = asked
    distances, answers, numbers, bounds, sizes, visited, status = room
    starts, stops = np.empty(PROBES_AT_ONCE, np.int64), np.empty(PROBES_AT_ONCE, np.int64)
    count, width = value_masks.shape
    total = len(rows) // count
    radii = np.empty(count, np.int64)
    filled = np.int64(0)
    filtered = len(allowed) > 0
    for t in range(count):
        if first_query < len(queries):
            _prefetch(offsets, first_offsets[t] + values[first_query, t])
    for q in range(first_query, len(queries)):
        query, bound, size = queries[q], limits[q], np.int64(0)
        base = q * k if k else filled
        radii[:] = -1
        spent, done, seen = 0.0, 2, np.int64(0)

        # Ring 0 of every table will be needed, and this query's successor's offsets soon
        for t in range(count):
            at = np.int64(offsets[first_offsets[t] + values[q, t]])
            _prefetch(codes, (t * width + test_words[t]) * total + at)
            if q + 1 < len(queries):
                _prefetch(offsets, first_offsets[t] + values[q + 1, t])

        for s in range(len(steps)):
            # Exact as soon as no image that was not seen can come within the bound
            if levels[s] > bound:
                done = 0
                break
            table, radius = steps[s, 0], steps[s, 1]

            # Would a scan be cheaper? Worse than expected so far means worse from here on, too
            if give_up and spent + costs[s + 1] - costs[s] > EXPLORED * scan_cost:
                worse = max(1.0, spent / costs[s]) if costs[s] > 0 else 1.0
                reach = levels[np.searchsorted(costs, costs[s] + AFFORDED * scan_cost / worse, side='right') - 1]
                near = np.int64(0)
                for i in range(base, base + size if k else base):
                    near += distances[i] < reach
                # a quarter of the answers within reach tell that the others will come nearer too
                if reach <= bound and (not k or 4 * near < k):
                    done = 1
                    break

            first = test_words[table]
            start_of_table = table * width * total
            words, test = start_of_table + first * total, query[first]
            zero, value, limit = first_offsets[table], values[q, table], np.int64(1) << value_bits[table]
            flips, more = (np.int64(1) << radius) - 1, True
            while more:
                # Look up some values of the ring: where are their codes, and how many are there?
                n, found = 0, np.int64(0)
                while n < PROBES_AT_ONCE and more:
                    at = zero + (value ^ flips)
                    start, stop = np.int64(offsets[np.uint64(at)]), np.int64(offsets[np.uint64(at + 1)])
                    starts[n], stops[n] = words + start, words + stop
                    n += int(stop > start)
                    found += stop - start
                    spent += probe_cost
                    flips = _next_ring_member(flips) if flips else limit
                    more = flips < limit
                spent += found * visit_cost
                if give_up and found * visit_cost > EXPLORED * scan_cost and spent > AFFORDED * scan_cost:
                    done = 1
                    break
                seen += found

                # Visit the codes; those of the next buckets are on their way meanwhile
                for i in range(min(AHEAD, n)):
                    _prefetch(codes, starts[i])
                for i in range(n):
                    if i + AHEAD < n:
                        _prefetch(codes, starts[i + AHEAD])
                    j, strip_end = starts[i], starts[i]
                    while j < stops[i]:
                        # in a long bucket, strips without a near word are passed over
                        if stops[i] - starts[i] >= LONG_BUCKET and j == strip_end:
                            strip_end = min(j + STRIP, stops[i])
                            if not _any_within(test, codes[j:strip_end], first, metric, bound):
                                j = strip_end
                                continue
                        # one word rejects most candidates, the other words most of the rest
                        d = _word_distance(test ^ codes[np.uint64(j)], first, metric)
                        if d <= bound:
                            at = start_of_table + j - words  # of the first word
                            for w in range(width):
                                if w != first:
                                    d += _word_distance(query[w] ^ codes[at + w * total], w, metric)
                            if d <= bound:
                                row = np.int64(rows[table * total + j - words])
                                fits = not (k and size == k) or _later(distances[base], answers[base], d, row)
                                if fits and filtered:
                                    fits = allowed[row]
                                # another table has shown it already if it lies within that table's radius
                                for t in range(count):
                                    if fits and t != table and radii[t] >= 0:
                                        fits = _masked_bits(query, codes, at, total, value_masks[t]) > radii[t]
                                if fits and k:
                                    size, bound = _offer(d, row, bound, k, base, size, distances, answers)
                                elif fits:
                                    if base + size == len(distances):
                                        return q, filled
                                    distances[base + size], answers[base + size] = d, row
                                    numbers[base + size] = q
                                    size += 1
                        j += 1
            if done == 1:
                break
            radii[table] = radius

        # The answers in order, and what is known of them
        if done == 2 and levels[len(steps)] > bound:
            done = 0
        if k:
            _rank(distances, answers, base, size, k)
        bounds[q], sizes[q], visited[q], status[q] = bound, size, seen, done
        if not k and (done == 0 or not give_up):
            filled += size
    return len(queries), filled


@compiled(inline='always')
def _load(queries, q, zeros):
    """Query q of uint64 [Q, W] as a tuple, whose length the compiler knows; zeros is a tuple of W zeros."""
    for w in range(len(zeros)):
        zeros = tuple_setitem(zeros, w, queries[q, w])
    return zeros


@compiled(inline='always')
def _distance(query, codes, i, metric):
    """Distance of codes[:, i] to a query, a tuple of words."""
    total = np.int64(0)
    for w in range(len(query)):
        total += _word_distance(query[w] ^ codes[w, i], w, metric)
    return total


@compiled()
def _count_within(query, codes, start, stop, metric, limit):
    """How many of codes[:, start:stop] are within a distance of a query, a tuple of words."""
    _wide_vectors()
    count = np.int64(0)
    for i in range(stop - start):  # unsigned, as an index that may be negative keeps the loop from being vectorised
        count += _distance(query, codes, np.uint64(start) + np.uint64(i), metric) <= limit
    return count


@compiled()
def _kth_within(query, codes, stop, metric, k, bound):
    """The k-th distance of codes[:, :stop] to a query, by bisection; the bound, if that is less."""
    least, kth = np.int64(-1), bound
    if _count_within(query, codes, 0, stop, metric, bound) < k:
        return bound
    while kth - least > 1:
        middle = (least + kth) // 2
        if _count_within(query, codes, 0, stop, metric, middle) < k:
            least = middle
        else:
            kth = middle
    return kth


@compiled()
def scan(zeros, codes, rows, which, asked, position, room):
    """Exact answers by comparing every code, strip by strip.

    Args:
        zeros: a tuple of W zeros.
        codes, rows: uint64 [W, N] and unsigned [N].
        which: int64 [M], the queries to answer.
        asked: `Asked`; all of the codes are allowed, and the limits are the bounds in `room`.
        position: where to go on: the number of a tile times M, plus the place of a query in `which`; 0 at first.
        room: `Room`. From position 0 the answers of these queries begin anew, within their bounds.

    Returns:
        The position that found no room (-1 if all did) and, without k, how many places are filled.
    """
    queries, metric, _, k, _ = asked
    distances, answers, numbers, bounds, sizes, visited, status = room
    tile = max(TILE // len(zeros) // STRIP, 1) * STRIP
    filled, total = np.int64(0), codes.shape[1]

    # At the beginning: the k-th distance of the first codes is a bound that spares ranking most of the others
    if position == 0:
        for q in which:
            sizes[q], status[q] = 0, 0
            visited[q] += total
            if metric is None and k > 1 and total >= 4 * FIRST:  # or it costs more than it spares
                bounds[q] = _kth_within(_load(queries, q, zeros), codes, min(FIRST, total), metric, k, bounds[q])

    # Tile by tile, all queries over one tile while it is in the cache
    while position < -(-total // tile) * len(which):
        q, first = which[position % len(which)], position // len(which) * tile
        query, base, bound, size = _load(queries, q, zeros), q * k, bounds[q], sizes[q]
        if not k and len(distances) - filled < tile:
            return position, filled
        for start in range(first, min(first + tile, total), STRIP):
            # narrow down where the near codes are: a strip, then a few, then one
            stop = min(start + STRIP, total)
            if not _count_within(query, codes, start, stop, metric, bound):
                continue
            for few in range(start, stop, FEW):
                last = min(few + FEW, stop)
                if not _count_within(query, codes, few, last, metric, bound):
                    continue
                for i in range(few, last):
                    d = _distance(query, codes, np.uint64(i), metric)
                    if d > bound:
                        continue
                    row = np.int64(rows[i])
                    if not k:
                        distances[filled], answers[filled], numbers[filled] = d, row, q
                        filled += 1
                        size += 1
                    elif size < k or _later(distances[base], answers[base], d, row):
                        size, bound = _offer(d, row, bound, k, base, size, distances, answers)
        bounds[q], sizes[q] = bound, size
        position += 1

    # The heaps in order
    if k:
        for q in which:
            _rank(distances, answers, q * k, sizes[q], k)
    return np.int64(-1), filled
