"""The inner loops of exact search, compiled by numba: popcount, key probes, scans and bounded top-k.

All codes are uint64 words (`hashing_model.codes.bits.to_words`); masks say which bits count and how much. The loops
release the GIL, and are cached on disk where that can be written. They know neither files nor profiles:
`search_plan.py` prepares their arguments.

numba decides whether a cached function is up to date by the file of that function alone. After a change in this file,
remove `__pycache__`; otherwise callers in `multi_index.py` and `near_pairs.py` keep the old code.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from hashing_model.compiled import compiled, popcount
from pipelines.index.layout import PROBE_COST

PROBES_AT_ONCE = 256  # read before the first of their codes is visited
AHEAD = 8  # buckets that are prefetched before they are visited


@intrinsic
def _prefetch(typing_context: Any, array: Any, at: Any) -> Any:
    """Ask for the cache line where array[at] begins, without waiting for it."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, args[0])
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        start = builder.ptrtoint(view.data, ir.IntType(64))
        offset = builder.mul(args[1], builder.extract_value(view.strides, 0))
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        name = 'llvm.prefetch.p0'
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        # arguments: for reading, to be kept in all caches, data
        builder.call(function, [builder.inttoptr(builder.add(start, offset), byte), word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@compiled(inline='always')
def _masked_distance(a, b, masks, weights):
    """Sum over g of weights[g] * popcount((a ^ b) & masks[g]), for words a, b [W] and masks [G, W]."""
    total = np.int64(0)
    for g in range(len(weights)):
        bits = np.uint64(0)
        for w in range(len(a)):
            bits += popcount((a[w] ^ b[w]) & masks[g, w])
        total += weights[g] * np.int64(bits)
    return total


@compiled(inline='always')
def _within(a, b, mask, radius):
    """Whether a and b differ in at most `radius` bits of a mask [W]."""
    bits = np.uint64(0)
    for w in range(len(a)):
        bits += popcount((a[w] ^ b[w]) & mask[w])
    return np.int64(bits) <= radius


@compiled(inline='always')
def _later(d1, r1, d2, r2):
    """Whether answer 1 ranks after answer 2: by distance, then by row."""
    return d1 > d2 or (d1 == d2 and r1 > r2)


@compiled()
def _sift(distances, rows, base, size, at, distance, row):
    """Put an answer at place `at` of the max-heap distances[base : base + size] or below, where it belongs."""
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        i = base + child
        if child + 1 < size and _later(distances[i + 1], rows[i + 1], distances[i], rows[i]):
            child, i = child + 1, i + 1
        if not _later(distances[i], rows[i], distance, row):
            break
        distances[base + at], rows[base + at] = distances[i], rows[i]
        at = child
    distances[base + at], rows[base + at] = distance, row


@compiled()
def _grown(array):
    """A copy of an array with twice the room."""
    larger = np.empty(2 * len(array), array.dtype)
    larger[: len(array)] = array
    return larger


@compiled()
def _probes(free_bits, radius, limit):
    """How many keys differ from a key in at most `radius` of `free_bits` bits; counting stops above `limit`."""
    total, combinations = 1.0, 1.0
    for r in range(1, min(radius, free_bits) + 1):
        combinations = combinations * (free_bits - r + 1) / r
        total += combinations
        if total > limit:
            break
    return total


@compiled()
def kth_distances(queries, codes, masks, weights, k):
    """The k-th smallest weighted distance of each query to the codes: int64 [Q]; k must not exceed the codes.

    Args:
        queries, codes: uint64 [Q, W] and [N, W].
        masks, weights: uint64 [G, W] and int64 [G]; see `_masked_distance`.
    """
    result = np.empty(len(queries), np.int64)
    distances, rows = np.empty(k, np.int64), np.zeros(k, np.int64)
    for q in range(len(queries)):
        distances[:] = np.iinfo(np.int64).max
        for i in range(len(codes)):
            d = _masked_distance(queries[q], codes[i], masks, weights)
            if d < distances[0]:
                _sift(distances, rows, 0, k, 0, d, 0)
        result[q] = distances[0]
    return result


@compiled()
def distance_histogram(a, b, mask, bits):
    """How many pairs (a_i, b_j) differ in 0, 1, ..., bits bits of a mask: int64 [bits + 1]."""
    counts = np.zeros(bits + 1, np.int64)
    for i in range(len(a)):
        for j in range(len(b)):
            different = np.uint64(0)
            for w in range(a.shape[1]):
                different += popcount((a[i, w] ^ b[j, w]) & mask[w])
            counts[np.int64(different)] += 1
    return counts


@compiled(inline='always')
def _next_ring_member(flips):
    """The next larger integer with as many set bits (Gosper's hack)."""
    lowest = flips & -flips
    ripple = flips + lowest
    return (((ripple ^ flips) >> 2) >> np.int64(popcount(np.uint64(lowest - 1)))) | ripple


@compiled(inline='always')
def _owned(query, code, table, radii, table_masks):
    """Whether `table` is the first in which the code lies within the query's radius: radii [T], masks [T, W]."""
    for t in range(table):
        if radii[t] >= 0 and _within(query, code, table_masks[t], radii[t]):
            return False
    return _within(query, code, table_masks[table], radii[table])


@compiled()
def _offsets_of(keys, shift, bits):
    """Where the keys with each value of the `bits` bits above the lowest `shift` begin: int64 [2^bits + 1].

    The keys, int64 [N], must ascend.
    """
    offsets = np.zeros((1 << bits) + 1, np.int64)
    for i in range(len(keys)):
        offsets[((keys[i] >> shift) & ((1 << bits) - 1)) + 1] += 1
    for value in range(1 << bits):
        offsets[value + 1] += offsets[value]
    return offsets


class KeyedCodes(NamedTuple):
    """Codes of one partition.

    Args:
        keys: int64 [N] ascending, the substring's value of each code.
        codes: uint64 [N, W].
        prefix: the value of the leading bits that all keys share.
        free_bits: how many bits of a key follow the prefix.
    """

    keys: NDArray
    codes: NDArray
    prefix: int
    free_bits: int


class Lookups(NamedTuple):
    """What some queries look for in all tables.

    Args:
        queries: uint64 [Q, W].
        radii: int64 [Q, T]; negative where a table is not probed.
        table_masks: uint64 [T, W], the bits of each table's substring.
        masks, weights: uint64 [G, W] and int64 [G]; see `_masked_distance`.
        bounds: int64 [Q], the largest distance that may be an answer.
        k: answers kept per query; 0 keeps all within the bound.
    """

    queries: NDArray
    radii: NDArray
    table_masks: NDArray
    masks: NDArray
    weights: NDArray
    bounds: NDArray
    k: int


@compiled()
def _visit(starts, stops, runs, codes, rows, table, asked, q, found):
    """Offer the rows of some runs [start, stop) to the answers `found` = (distances, rows, size) of query q."""
    queries, radii, table_masks, masks, weights, bounds, k = asked
    query, bound, own_radii = queries[q], bounds[q], radii[q]
    distances, answers, size = found
    keep = k if k > 0 else -1
    for run in range(min(AHEAD, runs)):
        _prefetch(codes, starts[run])
    for run in range(runs):
        if run + AHEAD < runs:
            _prefetch(codes, starts[run + AHEAD])
        for i in range(starts[run], stops[run]):
            d = _masked_distance(query, codes[i], masks, weights)
            full = size == keep
            if d > bound or (full and not _later(distances[0], answers[0], d, rows[i])):
                continue
            if not _owned(query, codes[i], table, own_radii, table_masks):
                continue
            if full:
                _sift(distances, answers, 0, size, 0, d, rows[i])
                continue
            # the k-th answer makes a heap of them
            if size == len(distances):
                distances, answers = _grown(distances), _grown(answers)
            distances[size], answers[size] = d, rows[i]
            size += 1
            if size == keep:
                for at in range(keep // 2 - 1, -1, -1):
                    _sift(distances, answers, 0, size, at, distances[at], answers[at])
    return distances, answers, size


@compiled()
def search_partition(held, rows, table, asked, query_keys):
    """Exact answers of one partition: rows within each query's bound that this table owns.

    A row is owned by the first table in which its substring lies within the query's radius, so that the tables'
    answers are disjoint. The rows are looked up by the leading bits of what the prefix leaves free, one value after the
    other, where that visits less than a scan of the partition.

    Args:
        held: `KeyedCodes`, the partition.
        rows: int64 [N], their row numbers.
        table: which table this is, an index into `radii` and `table_masks`.
        asked: `Lookups`.
        query_keys: int64 [Q], the queries' values of this table's substring.

    Returns:
        Query numbers, distances and rows, int64 [M] each, ordered by query; unordered within one.
    """
    keys, codes, prefix, free_bits = held
    # Where the rows with each value of the leading free bits begin, as many bits as there are rows for
    n = len(keys)
    bits = min(free_bits, np.int64(np.log2(max(n, 1))))
    shift = free_bits - bits
    offsets = _offsets_of(keys, shift, bits)
    starts, stops = np.zeros(PROBES_AT_ONCE, np.int64), np.full(PROBES_AT_ONCE, n, np.int64)

    total = np.int64(0)
    out_query, out_distance, out_row = np.empty(64, np.int64), np.empty(64, np.int64), np.empty(64, np.int64)
    none, one = np.int64(0), np.int64(1)  # bare numbers would be types of their own, and `_visit` compiled three times
    found = np.empty(64, np.int64), np.empty(64, np.int64), none
    for q in range(len(query_keys)):
        # What the prefix leaves of the radius
        radius = asked.radii[q, table] - np.int64(popcount(np.uint64((query_keys[q] >> free_bits) ^ prefix)))
        if radius < 0 or n == 0:
            continue
        found = found[0], found[1], none
        if _probes(bits, radius, n) * PROBE_COST > n:
            # Scan: one run of all rows
            starts[0], stops[0] = 0, n
            found = _visit(starts, stops, one, codes, rows, table, asked, q, found)
        else:
            # Probe: the values that differ in 0 bits, in 1, ..., and their runs some at a time
            value = (query_keys[q] >> shift) & ((np.int64(1) << bits) - 1)
            flips, ring, runs = np.int64(0), 0, 0
            while ring <= min(radius, bits):
                at = value ^ flips
                starts[runs], stops[runs] = offsets[at], offsets[at + 1]
                runs += int(starts[runs] < stops[runs])
                flips = _next_ring_member(flips) if flips else np.int64(1) << bits
                if flips >> bits:
                    ring += 1
                    flips = (np.int64(1) << ring) - 1
                if runs == PROBES_AT_ONCE or ring > min(radius, bits):
                    found = _visit(starts, stops, runs, codes, rows, table, asked, q, found)
                    runs = 0

        # The query's answers behind those of the queries before
        distances, answers, size = found
        while total + size > len(out_query):
            out_query, out_distance, out_row = _grown(out_query), _grown(out_distance), _grown(out_row)
        out_query[total : total + size] = q
        out_distance[total : total + size] = distances[:size]
        out_row[total : total + size] = answers[:size]
        total += size
    return out_query[:total], out_distance[:total], out_row[:total]
