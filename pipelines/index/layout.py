"""How codes are cut into substrings, tables and prefixes, and which radii make a search exact. Numbers only, no files.

Exactness (after Norouzi, Punjani and Fleet 2014, multi-index hashing, with weights): if every substring k of a code
is farther than r_k from the query's, its weighted distance is at least sum_k w_k (r_k + 1). Radii for which this sum
exceeds u therefore miss nothing within distance u.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hashing_model.codes.bits import bit_mask
from hashing_model.codes.spec import CodeSpec

MAX_SUBSTRING_BITS = 32
MIN_SUBSTRING_BITS = 16  # below 2^16 rows a scan is cheap, and more tables would only cost space
ROWS_PER_KEY = 3  # of uniform codes; more tables of shorter substrings would be larger, fewer slower
HISTOGRAM_BITS = 16  # prefixes are cut no deeper than this
NOT_PROBED = -1
INTERVAL_QUERIES = 1024  # compared with all intervals at once
PROBE_COST = 10.0  # of looking where the rows under some value are, in row visits
HOME_SHARE = 1 / 1024  # of a scan's row visits, that a first look may cost in each table
READ_COST = 15.0  # reading a row from Parquet, in row visits of a search


@dataclasses.dataclass(frozen=True)
class Substring:
    """A run of bits inside one segment; each has a table of all codes sorted by it."""

    segment: int
    start: int
    bits: int

    def mask(self, num_bytes: int) -> NDArray[np.uint64]:
        """Words with the substring's bits set; see `hashing_model.codes.bits.bit_mask`."""
        return bit_mask(self.start, self.bits, num_bytes)


def cut_substrings(spec: CodeSpec, rows: int) -> tuple[Substring, ...]:
    """The substrings of an index of `rows` codes: each segment in about bits / log2(rows / 3) nearly equal pieces.

    >>> [s.bits for s in cut_substrings(CodeSpec.parse('coarse=32,fine=32,look=64'), 1_000_000)]
    [16, 16, 16, 16, 22, 21, 21]
    """
    wanted = min(max(math.log2(max(rows, 1) / ROWS_PER_KEY), MIN_SUBSTRING_BITS), MAX_SUBSTRING_BITS)
    found = []
    for i, segment in enumerate(spec.segments):
        pieces = max(round(segment.bits / wanted), math.ceil(segment.bits / MAX_SUBSTRING_BITS), 1)
        start = spec.start(segment.name)
        for piece in range(pieces):
            bits = segment.bits // pieces + (piece < segment.bits % pieces)
            found.append(Substring(i, start, bits))
            start += bits
    return tuple(found)


def substring_keys(codes: NDArray[np.uint8], substring: Substring) -> NDArray[np.int64]:
    """The substring's value in each code: uint8 [N, B] -> int64 [N], its first bit the most significant.

    >>> substring_keys(np.array([[0b10110000, 0b01000000]], np.uint8), Substring(0, 2, 8)).tolist()
    [193]
    """
    first, last = substring.start // 8, (substring.start + substring.bits - 1) // 8
    value = np.zeros(len(codes), np.uint64)
    for byte in range(first, last + 1):  # at most 5 bytes: 32 bits that start anywhere
        value <<= np.uint64(8)
        value |= codes[:, byte]
    value >>= np.uint64((last + 1) * 8 - (substring.start + substring.bits))
    value &= np.uint64((1 << substring.bits) - 1)
    return value.view(np.int64)


def key_histogram(keys: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """How many keys have each value of their leading min(bits, HISTOGRAM_BITS) bits."""
    depth = min(bits, HISTOGRAM_BITS)
    return np.bincount(keys >> (bits - depth), minlength=1 << depth)


def cut_prefixes(histogram: NDArray[np.int64], target: int) -> tuple[str, ...]:
    """The leaves of the binary tree that halves any prefix with more than `target` rows; at least `0` and `1`.

    Args:
        histogram: int64 [2^depth], rows per value of the leading `depth` bits.
        target: rows that a leaf should not exceed; a single value of the histogram may.

    Returns:
        Prefixes in ascending order, together covering every key once.

    >>> cut_prefixes(np.array([1, 1, 50, 60]), 55)
    ('0', '10', '11')
    """
    depth = len(histogram).bit_length() - 1
    total = np.concatenate([[0], np.cumsum(histogram)])
    leaves: list[str] = []
    waiting = ['1', '0']
    while waiting:
        prefix = waiting.pop()
        low = int(prefix, 2) << (depth - len(prefix))
        high = low + (1 << (depth - len(prefix)))
        if total[high] - total[low] > target and len(prefix) < depth:
            waiting += [prefix + '1', prefix + '0']
        else:
            leaves.append(prefix)
    return tuple(leaves)


def prefix_starts(prefixes: Sequence[str], bits: int) -> NDArray[np.int64]:
    """The smallest key of each prefix, for keys of `bits` bits: int64 [P], ascending."""
    return np.array([int(p, 2) << (bits - len(p)) for p in prefixes], np.int64)


def prefix_numbers(keys: NDArray[np.int64], bits: int, prefixes: Sequence[str]) -> NDArray[np.int64]:
    """The place in `prefixes` of each key's own: int64 [N], for keys of `bits` bits.

    >>> prefix_numbers(np.array([0b0111, 0b1000, 0b1100]), 4, ('0', '10', '11')).tolist()
    [0, 1, 2]
    """
    depth = min(bits, HISTOGRAM_BITS)
    ends = np.append(prefix_starts(prefixes, depth), 1 << depth)
    return np.repeat(np.arange(len(prefixes)), np.diff(ends))[keys >> (bits - depth)]


def key_order(keys: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Indices that sort keys of `bits` bits, equal keys in the order they stand: int64 [N].

    It sorts by 16 bits at a time, the lowest first, because numpy sorts 16-bit numbers by counting; this takes a fifth
    of the time.
    """
    order = np.argsort(keys.astype(np.uint16), kind='stable')  # the cast keeps the last 16 bits
    for shift in range(16, bits, 16):
        order = order[np.argsort((keys >> shift).astype(np.uint16)[order], kind='stable')]
    return order


def prefix_rows(histogram: NDArray[np.int64], prefixes: Sequence[str]) -> NDArray[np.int64]:
    """Rows under each prefix: int64 [P]."""
    depth = len(histogram).bit_length() - 1
    return np.add.reduceat(histogram, prefix_starts(prefixes, depth))


def part_counts(histogram: NDArray[np.int64], prefixes: Sequence[str], target: int) -> NDArray[np.int64]:
    """Part files per prefix: 1, or more where a single value was too frequent for one leaf: int64 [P]."""
    return np.maximum(-(-prefix_rows(histogram, prefixes) // target), 1)


def prefix_distances(query_keys: NDArray[np.int64], bits: int, prefix: str) -> NDArray[np.int64]:
    """Least Hamming distance between each query's substring and any key under a prefix: int64 [Q].

    >>> prefix_distances(np.array([0b1100]), 4, '01').tolist()
    [1]
    """
    leading = (query_keys >> (bits - len(prefix))).astype(np.uint64)
    return np.bitwise_count(leading ^ np.uint64(int(prefix, 2))).astype(np.int64)


def near_prefixes(prefixes: Sequence[str], radius: int) -> Iterator[list[int]]:
    """For each prefix of a table, the places of the prefixes (it and later ones) with keys within a radius of its own.

    >>> list(near_prefixes(('00', '01', '1'), 0)), list(near_prefixes(('00', '01', '1'), 1))
    ([[0], [1], [2]], [[0, 1, 2], [1, 2], [2]])
    """
    lengths = np.array([len(p) for p in prefixes])
    starts = prefix_starts(prefixes, HISTOGRAM_BITS)
    for place, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        ignored = HISTOGRAM_BITS - np.minimum(lengths[place:], length)
        apart = np.bitwise_count((starts[place:] ^ start) >> ignored)
        yield (place + np.flatnonzero(apart <= radius)).tolist()


def interval_distances(
    query_keys: NDArray[np.int64], lows: NDArray[np.int64], highs: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Least Hamming distance between each query's key and any integer of each interval: int64 [Q, G].

    All integers in [low, high] share some leading bits. The next bit is the first in which low and high differ. Where
    it is 0, the bits below it must be at least those of low; where it is 1, at most those of high.

    Args:
        query_keys: [Q], not negative.
        lows, highs: [G], the intervals' ends, both inside; 0 <= low <= high < 2^52.

    >>> interval_distances(np.array([0b0000]), np.array([0b0110]), np.array([0b1011])).tolist()
    [[1]]
    """
    keys = query_keys.astype(np.uint64)[:, None]
    low, high = lows.astype(np.uint64), highs.astype(np.uint64)
    free = _bit_length(low ^ high)
    shared = np.bitwise_count((keys ^ low) >> free).astype(np.int64)
    below = free - (free > 0).astype(np.uint64)
    rest = (np.uint64(1) << below) - np.uint64(1)
    is_one = (keys >> below & np.uint64(1)).astype(np.int64)
    if_zero = is_one + _least_flips(keys & rest, low & rest, below)
    if_one = 1 - is_one + _least_flips(~keys & rest, ~high & rest, below)  # all bits turned, at most is at least
    return shared + np.where(free > 0, np.minimum(if_zero, if_one), 0)


def _least_flips(keys: NDArray[np.uint64], floor: NDArray[np.uint64], bits: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many of a key's lowest `bits` bits must be flipped so that it is at least `floor`.

    The key must have all leading ones of the floor. If it is still smaller than the floor, it gets a one at the floor's
    first zero.
    """
    everything = (np.uint64(1) << bits) - np.uint64(1)
    free = _bit_length(~floor & everything)
    rest = (np.uint64(1) << free) - np.uint64(1)
    missing_ones = np.bitwise_count((~keys & everything) >> free).astype(np.int64)
    return missing_ones + ((keys & rest) < (floor & rest))


def _bit_length(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Bits of each value up to its highest one; exact below 2^52."""
    return np.frexp(values.astype(np.float64))[1].astype(np.uint64)


def intervals_near(
    query_keys: NDArray[np.int64], radii: NDArray[np.int64], lows: NDArray[np.int64], highs: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which intervals hold an integer that is within its radius of some query's key: bool [G].

    The queries are compared in blocks, each block only with the intervals that no earlier block is near to.

    Args:
        query_keys, radii: int64 [Q]; a negative radius reaches nothing.
        lows, highs: int64 [G]; see `interval_distances`.
    """
    needed = np.zeros(len(lows), bool)
    for start in range(0, len(query_keys), INTERVAL_QUERIES):
        left = np.flatnonzero(~needed)
        if not len(left):
            break
        block = slice(start, start + INTERVAL_QUERIES)
        distances = interval_distances(query_keys[block], lows[left], highs[left])
        needed[left] = (distances <= radii[block, None]).any(axis=0)
    return needed


def row_numbers(part: int, count: int) -> NDArray[np.int64]:
    """The numbers of the first `count` rows of a part: part << 32 | row in it."""
    return (np.int64(part) << 32) + np.arange(count)


def groups_of(values: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each distinct value (all are at least 0) with the indices where it occurs, ascending."""
    small = values.astype(np.min_scalar_type(values.max(initial=0)))  # 16 bits sort by counting
    order = np.argsort(small, kind='stable')
    ordered = small[order]
    starts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    for places in np.split(order, starts) if len(order) else ():
        yield int(values[places[0]]), places


def mix(values: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A fixed pseudo-random uint64 for each integer (SplitMix64, Steele et al. 2014), for samples and part numbers."""
    z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def mix_codes(start: NDArray[np.uint64], codes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A fixed pseudo-random uint64 for each of N starting values and codes uint8 [N, B]."""
    padded = np.zeros((len(codes), -(-codes.shape[1] // 8) * 8), np.uint8)
    padded[:, : codes.shape[1]] = codes
    mixed = start
    for word in padded.view(np.uint64).T:
        mixed = mix((mixed ^ word).view(np.int64))
    return mixed


def table_weights(substrings: Sequence[Substring], weights: Sequence[int]) -> tuple[int, ...]:
    """The weight of each table: that of its substring's segment."""
    return tuple(weights[s.segment] for s in substrings)


def probe_costs(selectivity: Sequence[float], bits: int, rows: int) -> NDArray[np.float64]:
    """Cost of searching one table to radius 0, 1, ..., in row visits: probes and expected candidates.

    The kernels scan a partition where probing it would cost more.

    Args:
        selectivity: share of code pairs whose substrings differ by at most 0, 1, ..., bits.
        bits: bits of the substring.
        rows: rows of the table.
    """
    probes = np.cumsum([math.comb(bits, r) for r in range(bits + 1)], dtype=np.float64)
    search = np.minimum(probes * PROBE_COST, rows)
    return search + np.asarray(selectivity) * rows


def reading_costs(bits: int, rows: int, group_rows: float, queries: int) -> NDArray[np.float64]:
    """Each query's share of the cost of reading one table for radius 0, 1, ..., in row visits.

    A row group holds the keys that share about log2(rows / group_rows) leading bits. For a few queries, reading is the
    main cost, and a scan of one table may read less than probes of several. With many queries, their own keys alone
    need most row groups. These are then left out of the cost, because no query's plan can avoid what another query
    reads.

    Args:
        bits: bits of the substring.
        rows: rows of the table.
        group_rows: rows of a row group.
        queries: how many ask at once.

    >>> (reading_costs(8, 400, 100, 1) / READ_COST).tolist()
    [100.0, 300.0, 400.0, 400.0, 400.0, 400.0, 400.0, 400.0, 400.0]
    """
    depth = min(math.ceil(math.log2(max(rows / group_rows, 1))), bits)
    groups = np.cumsum([math.comb(depth, radius) for radius in range(bits + 1)], dtype=np.float64)
    by_any = 1 - (1 - groups / 2**depth) ** max(queries, 1)
    anyway = by_any[0] if by_any[0] > 0.5 else 0.0
    return READ_COST * rows * (by_any - anyway) / max(queries, 1)


def home_reach(bits: int, rows: int) -> int:
    """The radius to which a first look probes the rows that it has read; this costs a small part of a scan.

    >>> home_reach(22, 10_000_000)
    2
    """
    limit = rows * HOME_SHARE / PROBE_COST
    probes = np.cumsum([math.comb(bits, r) for r in range(bits + 1)], dtype=np.float64)
    return max(int(np.searchsorted(probes, limit, side='right')) - 1, 0)


def choose_radii(costs: Sequence[NDArray[np.float64]], weights: Sequence[int], bound: int, scan: float) -> list[int]:
    """Radii for which sum_k w_k (r_k + 1) > bound, at a low total cost; NOT_PROBED where a table is not needed.

    Repeatedly raises the radius that costs least per unit of weight, until the sum suffices. If that would cost more
    than a scan, the first weighted table is searched to its full length instead, which is exact, too.

    Args:
        costs: per table, the cost at radius 0, 1, ..., bits (`probe_costs`, `reading_costs`).
        weights: per table; tables of weight 0 are never probed.
        bound: the largest weighted distance that must not be missed.
        scan: what a scan of that table costs.
    """
    radii = [NOT_PROBED] * len(costs)
    missing, spent = bound + 1, 0.0
    steps = [(float(costs[t][0]) / w, t) for t, w in enumerate(weights) if w]
    heapq.heapify(steps)
    while missing > 0 and steps:
        price, table = heapq.heappop(steps)
        radii[table] += 1
        spent += price * weights[table]
        missing -= weights[table]
        following = radii[table] + 1
        if following < len(costs[table]):
            rise = float(costs[table][following] - costs[table][following - 1])
            heapq.heappush(steps, (rise / weights[table], table))
    if missing > 0 or spent >= scan:
        radii = [NOT_PROBED] * len(costs)
        first = scanned_table(weights)
        radii[first] = len(costs[first]) - 1
    return radii


def order_rings(
    costs: Sequence[NDArray[np.float64]], weights: Sequence[int], budget: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The order in which rings are searched: the cheapest per unit of weight first, until the budget is spent.

    Args:
        costs: per table, the cost of the ring of radius 0, 1, ...
        weights: per table; those of weight 0 are never searched.
        budget: the total cost at which the order ends; the ring that exceeds it is the last.

    Returns:
        Rings as (table, radius), int64 [S, 2]. For the time before each ring and after the last, [S + 1]: the least
        weighted distance of a code that no ring has shown yet, int64, and the total cost so far, float64.

    >>> rings, levels, _ = order_rings([np.array([1.0, 5.0]), np.array([2.0, 9.0])], [1, 1], 100)
    >>> rings.tolist(), levels.tolist()
    ([[0, 0], [1, 0], [0, 1], [1, 1]], [0, 1, 2, 3, 4])
    """
    waiting = [(float(costs[t][0]) / w, t, 0) for t, w in enumerate(weights) if w]
    heapq.heapify(waiting)
    rings, levels, totals = [], [0], [0.0]
    while waiting and totals[-1] <= budget:
        price, table, radius = heapq.heappop(waiting)
        rings.append((table, radius))
        levels.append(levels[-1] + weights[table])
        totals.append(totals[-1] + price * weights[table])
        if radius + 1 < len(costs[table]):
            heapq.heappush(waiting, (float(costs[table][radius + 1]) / weights[table], table, radius + 1))
    return np.array(rings, np.int64).reshape(-1, 2), np.array(levels, np.int64), np.array(totals)


def scanned_table(weights: Sequence[int]) -> int:
    """The table that is read completely when a search is a scan: the first with a weight above 0."""
    return next(t for t, w in enumerate(weights) if w)


def radii_cost(costs: Sequence[NDArray[np.float64]], radii: Sequence[int]) -> float:
    """The total cost of searching each table to its radius."""
    return float(sum(c[r] for c, r in zip(costs, radii, strict=True) if r != NOT_PROBED))
