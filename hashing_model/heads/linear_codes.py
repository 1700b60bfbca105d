"""Binary linear codes whose words and their complements are all far apart. Target codes of many classes are such words.

A code is represented by one point x per bit: at that bit, the word of message m is <m, x> over F_2. One Walsh transform
of the points gives all distances, so that no pairs need to be compared.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_SWEEPS, _ORDERS = 20, 10
# Primitive polynomials over F_2 of degree 2 to 10, as binary numbers.
_PRIMITIVE = {2: 7, 3: 11, 4: 19, 5: 37, 6: 67, 7: 131, 8: 285, 9: 529, 10: 1033}


def encode(points: Ints, messages: Ints) -> NDArray[np.int8]:
    """The word of each message m: sign (-1)^<m, x> at point x; int8 [messages, points]."""
    return (1 - 2 * (np.bitwise_count(messages[:, None] & points) & 1).astype(np.int8)).astype(np.int8)


def linear_code(bits: int, dims: int, rng: np.random.Generator) -> tuple[Ints, int]:
    """A linear code whose words are far from each other and from each other's complements.

    The points are distinct. They are ordered so that, as far as a few tries find, every run of dims + 1 successive bits
    tells all words apart.

    Args:
        bits: length of the words.
        dims: least number of message bits, below `bits`.
        rng: of the order.
    """
    dims = max(dims, (bits - 1).bit_length())
    if dims == bits - 1:  # all words
        return _mixed(np.array([0, *(1 << i for i in range(dims))]), dims, rng), dims
    found = []
    if bits == 1 << (bits - 1).bit_length():
        found.append(bch(bits, dims))
    if not found or dims <= 12:
        found.append((walsh_code(bits, dims), dims))
    points, dims = max(found, key=lambda f: _least_weight(*f)) if len(found) > 1 else found[0]
    return _mixed(points, dims, rng), dims


def bch(bits: int, dims: int) -> tuple[Ints, int]:
    """The extended primitive narrow-sense BCH code of length 2^m, of `dims` message bits or a few more.

    Row j of the generator belongs to a power s of the field's primitive element a: the lowest bit of a^(s (i + j)) at
    position i. Taking the cyclotomic cosets from the largest leader down leaves a, a^2, ..., a^t as the code's zeros
    (MacWilliams and Sloane 1977, ch. 7 and 9); the first m rows with their complements are the Reed-Muller code.
    """
    degree, period = bits.bit_length() - 1, bits - 1
    powers = [1]
    while len(powers) < period:
        shifted = powers[-1] << 1
        powers.append(shifted ^ _PRIMITIVE[degree] if shifted >= bits else shifted)
    lowest = np.array(powers) & 1
    points, made = np.zeros(bits, np.int64), 0
    for leader in range(period - 1, 0, -1):
        coset = {leader * 2**j % period for j in range(degree)}
        if leader == min(coset) and made < dims:
            for j in range(len(coset)):
                points[:-1] |= lowest[leader * (np.arange(period) + j) % period] << made
                made += 1
    return points, made


@functools.lru_cache(maxsize=16)
def walsh_code(bits: int, dims: int) -> Ints:
    """Distinct points, int64 [bits], such that no word is near all zeros or all ones.

    They are chosen greedily and then exchanged one by one.

    With t(m) = sum over points of (-1)^<m, x>, word m has weight (bits - t(m)) / 2 and its complement the rest. The
    point x that lowers the sum over m of cosh t(m) most is the least of the Walsh transform of sinh t at x.
    """
    messages = np.arange(2**dims)
    sums, free = np.zeros(2**dims), np.ones(2**dims, bool)
    points: list[int] = []

    def add() -> None:
        top = np.abs(sums[1:]).max()
        size = np.minimum(np.abs(sums), top)  # only word 0, which does not count, is beyond the top
        steep = np.sign(sums) * (np.exp(size - top) - np.exp(-size - top))  # sinh t, scaled
        steep[0] = 0
        points.append(int(np.where(free, walsh_transform(steep), np.inf).argmin()))
        change(points[-1], 1)

    def change(point: int, by: int) -> None:
        nonlocal sums
        sums += by * (1 - 2.0 * (np.bitwise_count(messages & point) & 1))
        free[point] = by < 0

    # Greedily all points, then each taken away and chosen anew, as long as that changes any
    for _ in range(bits):
        add()
    best, least = list(points), np.abs(sums[1:]).max()
    for _ in range(min(_SWEEPS, 2**18 >> dims)):
        before = list(points)
        for _ in range(bits):
            change(points.pop(0), -1)
            add()
            if (now := np.abs(sums[1:]).max()) < least:
                best, least = list(points), now
        if points == before:
            break
    return np.array(best)


def walsh_transform(values: NDArray) -> NDArray[np.float64]:
    """Sum over m of (-1)^<m, x> values[m], for every x: float64 [2^dims]."""
    values = values.astype(np.float64)
    step = 1
    while step < len(values):
        halves = values.reshape(-1, 2, step)
        values = np.stack([halves[:, 0] + halves[:, 1], halves[:, 0] - halves[:, 1]], axis=1).ravel()
        step *= 2
    return values


def _least_weight(points: Ints, dims: int) -> int:
    """The least distance between any two words of the code, the complements included."""
    sums = walsh_transform(np.bincount(points, minlength=2**dims))
    return int(len(points) - np.abs(sums[1:]).max()) // 2


def _mixed(points: Ints, dims: int, rng: np.random.Generator) -> Ints:
    """The points in random order, each linearly independent of the `dims` before it as far as a few tries find.

    In dims + 1 independent bits in a row, all words and complements differ.
    """
    for _ in range(_ORDERS):
        left = [int(p) << 1 | 1 for p in rng.permutation(points)]
        order: list[int] = []
        failed = False
        while left:
            basis: list[int] = []
            for vector in order[-dims:] if dims else []:
                basis = _with(basis, vector)
            place = next((i for i, v in enumerate(left) if len(_with(basis, v)) > len(basis)), -1)
            failed |= place < 0
            order.append(left.pop(place))
        if not failed:
            break
    return np.array(order) >> 1


def _with(basis: list[int], vector: int) -> list[int]:
    """The basis over F_2, highest bits first and all different, with a vector added if it is independent."""
    for b in basis:
        vector = min(vector, vector ^ b)
    return sorted([*basis, vector], reverse=True) if vector else basis
