"""The order of a segment's bits: bits that go together are put in different substrings.

An index looks up substrings, runs of neighbouring bits, and visits few images where the bits of a run are independent
(Norouzi, Punjani and Fleet 2012, "Fast Search in Hamming Space with Multi-Index Hashing", section 5).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEAST_RUN = 8  # bits; no substring is shorter


def order_bits(bits: NDArray[np.bool_]) -> NDArray[np.int64]:
    """An order of the bits in which each half, and each half of a half and so on, holds bits that correlate little.

    The length of the substrings is known only when an index is built, as it depends on the number of rows; halves of
    halves suit most lengths. Bits are swapped between two halves while that lowers the sum of squared correlations
    within them (Kernighan and Lin 1970).

    Args:
        bits: bool [N, b], of training images.

    Returns:
        int64 [b], a permutation; place j gets bit order[j].
    """
    centred = bits - bits.mean(axis=0)
    deviation = np.sqrt((centred**2).mean(axis=0))
    centred /= np.where(deviation > 0, deviation, 1)
    squares = (centred.T @ centred / len(bits)) ** 2
    np.fill_diagonal(squares, 0)
    return np.array(_split(np.arange(bits.shape[1]), squares), np.int64)


def _split(ids: NDArray[np.int64], squares: NDArray) -> list[int]:
    if len(ids) <= LEAST_RUN:
        return ids.tolist()
    inside = squares[np.ix_(ids, ids)]
    first = np.arange(len(ids)) % 2 == 0
    while True:
        to_first, to_second = inside @ first, inside @ ~first
        gain = np.where(first, to_first - to_second, to_second - to_first)  # of moving one bit
        a, b = np.flatnonzero(first), np.flatnonzero(~first)
        swaps = gain[a][:, None] + gain[b][None, :] + 2 * inside[np.ix_(a, b)]
        i, j = np.unravel_index(swaps.argmax(), swaps.shape)
        if swaps[i, j] <= 1e-9:
            return _split(ids[first], squares) + _split(ids[~first], squares)
        first[a[i]], first[b[j]] = False, True
