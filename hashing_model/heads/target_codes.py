"""Target codes for classes ("hash centres"): signs far apart, balanced, and nested where the classes are.

Few classes: the columns of signs are improved swap by swap, which comes within a bit or two of Plotkin's bound.
Many classes: words of a linear code (`linear_codes.py`), taken in complementary pairs so that every bit halves the
classes; no pairs are compared, and 40,000 classes take under a second. Rejection sampling leaves 100 codes of 64 bits
at distance 26, this at 32; rows of a Sylvester-Hadamard matrix repeat bits and substrings.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hashing_model.codes.bits import bit_mask, pack_bits, to_words
from hashing_model.errors import InputError
from hashing_model.heads.linear_codes import encode, linear_code

Signs = NDArray[np.int8]
Ints = NDArray[np.int64]

_FEW = 64  # up to so many classes, swaps are tried too
_STARTS, _SWEEPS = 6, 20
_STEEPNESS = 1.5  # of the potential exp(-steepness x distance); found by trying
_BLOCK, _TILE = 64, 4096  # rows and columns of pairs compared at a time


def make_centers(classes: int, bits: int, rng: np.random.Generator) -> Signs:
    """Target codes for unrelated classes, as far apart as the search found.

    Every bit splits the classes in halves (of an odd number, one half has a class more). Where the number of classes
    allows it, no two bits split them in the same way. As far as possible, each run of log2(classes) + 1 bits is
    different for every class.

    Args:
        classes: 2 to 2^bits.
        bits: of each code.
        rng: of every random choice.

    Returns:
        int8 [classes, bits] of -1 and +1, no two rows equal.

    Raises:
        InputError: one class only, or more classes than there are codes.
    """
    _check_count(classes, bits)
    words = _paired_words(classes, bits, rng)
    return words if classes > _FEW else max(words, _swapped_signs(classes, bits, rng), key=_quality)


def hierarchical_centers(
    parents: Sequence[NDArray[np.integer] | None], classes: Sequence[int], bits: Sequence[int], rng: np.random.Generator
) -> list[Signs]:
    """Target codes for levels of classes, coarse first, so that whole codes bring siblings nearer than cousins.

    All parents share one set of rows for their children, and each parent flips the signs of other columns in it.
    Siblings thus differ by words of a small subcode of the linear code, which are as far apart as orthogonal rows where
    there are enough bits. Cousins differ by words of the whole code, and in the coarser segments too. `hierarchy_order`
    measures whether the levels have enough bits for that.

    Args:
        parents: for each level, the class of the level before that each of its classes lies in, int [classes]; None
            for the first level and for a level that does not nest, whose codes are made by `make_centers`.
        classes: number of classes of each level.
        bits: of each level's segment.
        rng: of every random choice.

    Returns:
        For each level int8 [classes, bits] of -1 and +1, no two rows equal.

    Raises:
        InputError: a level of one class only, or of more classes than there are codes.
    """
    made: list[Signs] = []
    for above, before, count, width in zip(parents, [None, *parents[:-1]], classes, bits, strict=True):
        _check_count(count, width)
        if above is None:
            made.append(make_centers(count, width, rng))
            continue
        found = _family_words(np.asarray(above), before, width, rng)
        if count <= _FEW:
            quality = functools.partial(_nested_quality, coarse=made[-1], parents=above)
            found = max(found, _swapped_signs(count, width, rng), key=quality)
        made.append(found)
    return made


def minimum_distance(centers: Signs) -> int:
    """The least Hamming distance between two of the rows, exactly; a second for 40,000 rows of 64 bits.

    >>> minimum_distance(np.array([[1, 1, 1], [1, -1, 1], [-1, 1, -1]], np.int8))
    1

    Args:
        centers: int8 [C, bits] of -1 and +1.

    Raises:
        InputError: fewer than two rows.
    """
    count, least = centers.shape
    _check_count(count)
    words = to_words(pack_bits(centers > 0))
    for row in range(0, count, _BLOCK):
        for column in range(row, count, _TILE):
            distances = _distances(words[row : row + _BLOCK], words[column : column + _TILE])
            if column == row:  # each pair once, and none with itself
                distances[np.tri(*distances.shape) > 0] = least
            least = min(least, int(distances.min()))
    return least


def check_centers(centers: Signs, names: Sequence[str]) -> None:
    """Refuse target codes that one wrong bit turns into another class's: two classes at distance 0 or 1.

    At distance 2, a code with one wrong bit is still as near to its own class as to any other. Only a segment of one
    bit, whose two classes cannot be farther, may have less.

    Args:
        centers: int8 [C, bits] of -1 and +1.
        names: of the classes, for the message.

    Raises:
        InputError: one class only, or two classes too near; the message tells the bits that suffice.
    """
    count, bits = centers.shape
    _check_count(count, bits)
    words = to_words(pack_bits(centers > 0))
    for left_out in range(bits) if bits > 1 else [None]:
        rest = words if left_out is None else words & ~bit_mask(left_out, 1, -(-bits // 8))
        order = np.lexsort(rest.T)
        same = (rest[order[1:]] == rest[order[:-1]]).all(axis=1)
        if same.any():
            a, b = sorted(order[same.argmax() :][:2])
            raise InputError(
                f'more centres than the bits can hold apart: of {count} classes in {bits} bits, {names[a]!r} and '
                f'{names[b]!r} differ in {(centers[a] != centers[b]).sum()}; '
                f'give the segment {_enough_bits(count)} bits or more'
            )


def hierarchy_order(centers: Sequence[Signs], parents: Sequence[NDArray[np.integer] | None]) -> float:
    """How far the distances of whole codes (the levels' segments end to end) keep the order of kinship.

    Args:
        centers: for each level int8 [classes, bits], coarse first.
        parents: as in `hierarchical_centers`. A level that does not nest in the one before begins a new hierarchy; the
            worst hierarchy counts.

    Returns:
        The share of all triples (class, nearer kin, farther kin) whose nearer kin is strictly nearer; 1.0 if the
        order holds throughout. Below that, let the coarser segments weigh more.
    """
    starts = [i for i, above in enumerate(parents) if above is None]
    shares = []
    for first, end in itertools.pairwise([*starts, len(parents)]):
        ancestors = [np.arange(len(centers[end - 1]))]
        for above in parents[end - 1 : first : -1]:
            ancestors.append(np.asarray(above)[ancestors[-1]])
        rows = [c[a] for c, a in zip(centers[first:end], reversed(ancestors), strict=True)]
        shares.append(_ordered_share(np.concatenate(rows, axis=1), np.stack(ancestors)))
    return min(shares)


def _check_count(classes: int, bits: int | None = None) -> None:
    if classes < 2:
        raise InputError('one class only: nothing to tell apart; give images of two classes or more')
    if bits is not None and classes > 2**bits:
        raise InputError(
            f'more centres than the bits can hold apart: {classes} classes in {bits} bits; '
            f'give the segment {_enough_bits(classes)} bits or more'
        )


def _enough_bits(classes: int) -> int:
    """Bits in which centres at distance 2 or more are always found: a parity bit, and one more for odd numbers."""
    return (classes - 1).bit_length() + 2


def _distances(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray:
    """Hamming distances [A, B] of words [A, W] and [B, W]."""
    total = np.bitwise_count(a[:, :1] ^ b[:, 0])
    if a.shape[1] > 1:
        total = total.astype(np.uint16)
        for i in range(1, a.shape[1]):
            total += np.bitwise_count(a[:, i : i + 1] ^ b[:, i])
    return total


def _ordered_share(rows: Signs, ancestors: Ints) -> float:
    """The share of `hierarchy_order`: rows [C, bits], the ancestors of each class at each level [levels, C]."""
    count, bits = rows.shape
    depths = len(ancestors)  # a class shares with another from 0 to depths - 1 ancestors, with itself all
    words = to_words(pack_bits(rows > 0))
    kept = total = 0
    for i in range(0, count, _BLOCK):
        # How many ancestors each pair shares, and its distance: one number, counted
        shared = np.zeros((len(words[i : i + _BLOCK]), count), np.int64)
        for above in ancestors:
            shared += above[i : i + _BLOCK, None] == above
        shared += (depths + 1) * np.arange(len(shared))[:, None]
        shared *= bits + 1
        shared += _distances(words[i : i + _BLOCK], words)
        counts = np.bincount(shared.ravel(), minlength=len(shared) * (depths + 1) * (bits + 1))
        counts = counts.reshape(-1, depths + 1, bits + 1)[:, :depths]
        # Per distance of the nearer kin: how many of the farther kin lie beyond
        farther_kin = np.cumsum(counts, axis=1) - counts
        beyond = np.cumsum(farther_kin[..., ::-1], axis=2)[..., ::-1] - farther_kin
        kept += int((counts * beyond).sum())
        total += int((counts.sum(axis=2) * farther_kin.sum(axis=2)).sum())
    return kept / total if total else 1.0


# Few classes: columns improved by swaps


def _quality(centers: Signs) -> tuple[bool, bool, int, float]:
    """Rows all different, columns all different, least distance, evenness of the distances: in this order."""
    distance = minimum_distance(centers)
    products = centers.astype(np.float32) @ centers.T
    return distance > 0, _columns_differ(centers), distance, -float((products**2).sum())


def _nested_quality(centers: Signs, coarse: Signs, parents: NDArray) -> tuple[bool, bool, float, int]:
    distance = minimum_distance(centers)
    return distance > 0, _columns_differ(centers), hierarchy_order([coarse, centers], [None, parents]), distance


def _columns_differ(centers: Signs) -> bool:
    """Whether no two bits are equal or each other's complement."""
    return len(np.unique(centers * centers[0], axis=1).T) == centers.shape[1]


def _swapped_signs(classes: int, bits: int, rng: np.random.Generator) -> Signs:
    """The farthest apart of a few starts that `_descend` improves: int8 [classes, bits]."""
    half = classes // 2
    bound = 2 * bits * half * (classes - half) // (classes * (classes - 1))  # Plotkin 1960
    best, farthest = None, -1
    for _ in range(_STARTS):
        signs = _descend(*_random_columns(classes, bits, rng))
        distance = minimum_distance(signs)
        if distance > farthest:
            best, farthest = signs, distance
        if farthest >= bound:
            break
    assert best is not None
    return best * rng.choice(np.array([-1, 1], np.int8), bits)


def _random_columns(classes: int, bits: int, rng: np.random.Generator) -> tuple[Signs, int]:
    """Random balanced signs [classes, bits] with as few equal columns as possible, and how often a column may occur.

    There are 2^(C - 1) - 1 ways to split C classes in two. If these are fewer than the bits, balanced columns are
    repeated. Otherwise no column is repeated, and once the balanced ones are used up less balanced ones follow.
    """
    balanced = math.comb(classes, classes // 2) // (2 if classes % 2 == 0 else 1)
    limit = 1 if bits < 2 ** (classes - 1) else -(-bits // balanced)
    signs = np.empty((classes, bits), np.int8)
    used: Counter[bytes] = Counter()
    ones, room = classes // 2, limit * balanced
    for column in range(bits):
        if room == 0:
            ones -= 1
            room = math.comb(classes, ones)
        room -= 1
        drawn = np.repeat(np.array([1, -1], np.int8), [ones, classes - ones])
        rng.shuffle(drawn)
        while used[_key(drawn)] == limit:
            rng.shuffle(drawn)
        used[_key(drawn)] += 1
        signs[:, column] = drawn
    return signs, limit


def _key(column: Signs) -> bytes:
    """A key that a column and its complement share."""
    return (column * column[0]).tobytes()


def _descend(signs: Signs, limit: int) -> Signs:
    """Lower the sum over pairs of exp(-steepness x distance) by swaps within columns, until none helps.

    Given the other columns, the sum depends on one column s only by s^T W s, W = exp(-steepness x their distances).
    """
    signs = signs.astype(np.float64)
    used = Counter(_key(s.astype(np.int8)) for s in signs.T)
    products = signs @ signs.T
    for _ in range(_SWEEPS):
        improved = False
        for column in range(signs.shape[1]):
            # W, by the distances that the other columns make
            s = signs[:, column].copy()
            others = products - np.outer(s, s)
            apart = others.copy()
            np.fill_diagonal(apart, -np.inf)
            weights = np.exp(_STEEPNESS / 2 * (apart - apart.max()))
            # Swap while that lowers the sum
            while (swapped := _best_swap(s, weights, used, limit)) is not None:
                used[_key(s.astype(np.int8))] -= 1
                used[_key(swapped.astype(np.int8))] += 1
                s, improved = swapped, True
            signs[:, column] = s
            products = others + np.outer(s, s)
        if not improved:
            break
    return signs.astype(np.int8)


def _best_swap(s: NDArray, weights: NDArray, used: Counter[bytes], limit: int) -> NDArray | None:
    """The column after the swap of a +1 and a -1 that lowers s^T W s most and is not used up; None if none does."""
    pull = s * (weights @ s)
    plus, minus = np.flatnonzero(s > 0), np.flatnonzero(s < 0)
    change = -2 * pull[plus, None] - 2 * pull[minus] - 4 * weights[np.ix_(plus, minus)]
    for i in np.argsort(change, axis=None):
        a, b = plus[i // len(minus)], minus[i % len(minus)]
        if change.flat[i] > -1e-9:
            return None
        swapped = s.copy()
        swapped[[a, b]] = -1, 1
        if used[_key(swapped.astype(np.int8))] < limit:
            return swapped
    return None


# Many classes: words of a linear code


def _paired_words(classes: int, bits: int, rng: np.random.Generator) -> Signs:
    """Random words of a linear code and their complements, int8 [classes, bits], in random order."""
    pairs = -(-classes // 2)
    points, dims = linear_code(bits, (pairs - 1).bit_length(), rng)
    words = encode(points, rng.choice(2**dims, pairs, replace=False))
    return rng.permutation(np.concatenate([words, -words])[:classes])


def _family_words(parents: NDArray, grandparents: NDArray | None, bits: int, rng: np.random.Generator) -> Signs:
    """Words of a linear code, int8 [C, bits], in which the words of siblings are in one coset of a subcode.

    Families get aligned blocks of messages, each of a power of two, the largest family first. Two successive families
    share a block: the second has the complements of the words of the first. The grandparents take turns in that order.
    If the messages have bits to spare, the lowest are random, so that columns do not repeat.
    """
    families, family, sizes = np.unique(parents, return_inverse=True, return_counts=True)
    # The families in order: the largest first, of one size the grandparents in turn
    mixed = rng.permutation(len(sizes))
    turn = np.zeros(len(sizes), np.int64)
    if grandparents is not None:
        turn[mixed] = _occurrences(np.asarray(grandparents)[families[mixed]])
    order = np.lexsort((mixed, turn, -sizes))
    rank = np.argsort(order)[family]

    # A block of messages for two families each, so far as the code has messages
    blocks = np.array([1 << int(size - 1).bit_length() for size in sizes[order][::2]])
    total = int(blocks.sum())
    needed = (total - 1).bit_length()
    if needed >= bits:
        return _paired_words(len(parents), bits, rng)

    # The place of each class in its block
    within = _occurrences(family)
    picks = rng.permutation(blocks[0])  # the common set of rows; a smaller family has those that fit its block
    for block in np.unique(blocks):
        of_block = blocks[rank // 2] == block
        within[of_block] = picks[picks < block][within[of_block]]
    place = (np.cumsum(blocks) - blocks)[rank // 2] + within

    # A code with that many messages, and the words of the places
    spare = max(0, (bits - 1).bit_length() - needed)
    points = linear_code(bits, needed + spare, rng)[0]
    largest = int(blocks[0]) << spare
    free = np.setdiff1d(np.arange(largest), points % largest)
    if len(free):  # another form of the same code, in which no bit is constant over the largest family
        points = points ^ rng.choice(free)
    messages = (place << spare) + rng.integers(2**spare, size=total)[place]
    return encode(points, messages) * np.where(rank % 2 == 0, 1, -1).astype(np.int8)[:, None]


def _occurrences(values: NDArray) -> Ints:
    """How often each value occurred before it: int64 [N].

    >>> _occurrences(np.array([4, 4, 0, 4, 0])).tolist()
    [0, 1, 0, 2, 1]
    """
    _, counts = np.unique(values, return_counts=True)
    found = np.empty(len(values), np.int64)
    found[np.argsort(values, kind='stable')] = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
    return found
