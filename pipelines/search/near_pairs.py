"""Groups of codes that are connected by chains of near pairs, compiled: a forest whose trees are the groups.

Equal codes are one node, so that many equal codes cost no more than one. Near pairs are found as in a search, in tables
ordered by key. Each pair is joined at once (union-find), so that memory does not grow with the number of pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashing_model.compiled import compiled
from pipelines.index.layout import PROBE_COST
from pipelines.search.kernels import _grown, _masked_distance, _next_ring_member, _offsets_of, _probes, popcount


@compiled(inline='always')
def _root(parents, node):
    """The root of a node's tree; halves the way there."""
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


@compiled(inline='always')
def _joined(parents, a, b):
    """Join the trees of two nodes under the smaller root; returns whether they were in two trees."""
    a, b = _root(parents, a), _root(parents, b)
    parents[max(a, b)] = min(a, b)
    return a != b


@compiled()
def join_near(held, others, same, radius, masks, weights, bound):
    """Near pairs as places in (held, others), only as many as are needed to join all near codes: int64 [L, 2].

    Args:
        held, others: `kernels.KeyedCodes` of a partition, and of one that follows or of the same.
        same: whether the others are those held.
        radius: in how many bits the keys of a pair may differ; pairs that differ in more need not be found.
        masks, weights: see `kernels._masked_distance`.
        bound: the largest distance of a near pair.
    """
    keys, codes, _, _ = held
    other_keys, other_codes, prefix, free_bits = others
    n, m = len(keys), len(other_keys)
    first_other = 0 if same else n
    parents = np.arange(n + (0 if same else m))
    # Where the others with each value of the leading free bits begin, as many bits as there are others for
    bits = min(free_bits, np.int64(np.log2(max(m, 1))))
    shift = free_bits - bits
    offsets = _offsets_of(other_keys, shift, bits)

    a, b, size = np.empty(64, np.int64), np.empty(64, np.int64), 0
    for i in range(n):
        # What the prefix leaves of the radius, and whether that is worth probing
        left = radius - np.int64(popcount(np.uint64((keys[i] >> free_bits) ^ prefix)))
        if left < 0:
            continue
        whole = _probes(bits, left, m) * PROBE_COST > m
        value, flips, ring = (keys[i] >> shift) & ((np.int64(1) << bits) - 1), np.int64(0), 0
        while ring <= min(left, bits):
            start, stop = (np.int64(0), m) if whole else (offsets[value ^ flips], offsets[(value ^ flips) + 1])
            # Near ones are joined at once; only those that were in two trees make a pair
            for j in range(max(start, i + 1) if same else start, stop):
                if _masked_distance(codes[i], other_codes[j], masks, weights) > bound:
                    continue
                if _joined(parents, i, first_other + j):
                    if size == len(a):
                        a, b = _grown(a), _grown(b)
                    a[size], b[size] = i, j
                    size += 1
            if whole:
                break
            # The next value that differs in as many bits, or else the first that differs in one more
            flips = _next_ring_member(flips) if flips else np.int64(1) << bits
            if flips >> bits:
                ring += 1
                flips = (np.int64(1) << ring) - 1
    pairs = np.empty((size, 2), np.int64)
    pairs[:, 0], pairs[:, 1] = a[:size], b[:size]
    return pairs


@compiled()
def _forest(links, total):
    """All numbers in some links, ascending.

    For each, the place of the smallest number of its tree; and which links are needed.

    The place of a number is the count of bits below its own in a bitmap of `total` bits, which needs no sorting or
    hashing.

    Returns:
        Numbers and places, int64 [M] each, and bool [L].
    """
    marks, below = np.zeros((total >> 6) + 1, np.uint64), np.zeros((total >> 6) + 2, np.int64)
    for i in range(len(links)):
        for number in links[i]:
            marks[number >> 6] |= np.uint64(1) << np.uint64(number & 63)
    for word in range(len(marks)):
        below[word + 1] = below[word] + np.int64(popcount(marks[word]))
    numbers, parents = np.empty(below[-1], np.int64), np.arange(below[-1])
    for word in range(len(marks)):
        left = marks[word]
        for place in range(below[word], below[word + 1]):
            numbers[place] = (word << 6) + np.int64(popcount((left & -left) - np.uint64(1)))
            left &= left - np.uint64(1)
    needed = np.zeros(len(links), np.bool_)
    for i in range(len(links)):
        a, b = links[i]
        a = below[a >> 6] + np.int64(popcount(marks[a >> 6] & ((np.uint64(1) << np.uint64(a & 63)) - np.uint64(1))))
        b = below[b >> 6] + np.int64(popcount(marks[b >> 6] & ((np.uint64(1) << np.uint64(b & 63)) - np.uint64(1))))
        needed[i] = _joined(parents, a, b)
    for place in range(len(parents)):
        parents[place] = _root(parents, place)
    return numbers, parents, needed


def spanning(links: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """As few of some links as are needed to join the same numbers.

    Args:
        links: int64 [L, 2], pairs of numbers below `total`.
        total: the numbers are below it; each takes 2 bits of memory.
    """
    return links[_forest(links, total)[2]]


def groups_linked(links: NDArray[np.int64], total: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers that some links join, int64 [M], ordered by group and number, and each one's group, int64 [M].

    The largest group is number 0; of groups of one size, that of the least number comes first.

    Args:
        links, total: see `spanning`.

    >>> groups_linked(np.array([[9, 4], [7, 3], [4, 8]]), 10)
    (array([4, 8, 9, 3, 7]), array([0, 0, 0, 1, 1]))
    """
    numbers, roots, _ = _forest(links, total)
    sizes = np.bincount(roots, minlength=len(roots))
    trees = np.flatnonzero(sizes)
    trees = trees[np.argsort(-sizes[trees], kind='stable')]
    groups = np.empty(len(roots), np.int64)
    groups[trees] = np.arange(len(trees))
    groups = groups[roots]
    order = np.argsort(groups, kind='stable')
    return numbers[order], groups[order]


def distinct_codes(codes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first place of each distinct code uint64 [N, W], ascending int64 [D]; and its pairs with the others.

    Returns:
        Places, and pairs of places, int64 [N - D, 2].
    """
    order = np.lexsort(codes.T)  # stable
    ordered = codes[order]
    new = np.ones(len(codes), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    firsts = order[new]
    return np.sort(firsts), np.stack([firsts[np.cumsum(new) - 1][~new], order[~new]], axis=1)
