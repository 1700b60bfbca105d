"""The health of codes: balance, correlation, collisions, and what they mean for a multi-index search."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashing_model.codes.bits import bit_mask, check_codes, to_words, unpack_bits
from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

_CORRELATION_ROWS = 1 << 14  # below 2^24, so that float32 counts of a block are exact


@dataclasses.dataclass(frozen=True)
class BitHealth:
    """How well the bits of a segment, or of the whole code, are used by N images.

    Args:
        images: N.
        ones: float64 [bits], the share of images in which a bit is 1; 1/2 is best.
        correlation: float64 [bits, bits], Pearson's; 0 for a bit that never changes, 1 on the diagonal.
        distinct: how many different values there are.
        largest_bucket: how many images have the most frequent value.
        collision_probability: the chance that two different images, drawn at random, have the same value; 0 for a
            single image.
    """

    images: int
    ones: Floats
    correlation: Floats
    distinct: int
    largest_bucket: int
    collision_probability: float

    @property
    def imbalance(self) -> Floats:
        """|p_b - 1/2| of each bit: float64 [bits], 0 best and 1/2 worst."""
        return np.abs(self.ones - 0.5)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the correlation matrix: its largest and mean absolute value off the diagonal."""
        bits = len(self.ones)
        pairs = np.abs(self.correlation[np.triu_indices(bits, 1)]) if bits > 1 else np.zeros(1)
        return {
            'images': self.images,
            'bits': bits,
            'ones': self.ones.tolist(),
            'max_imbalance': float(self.imbalance.max()),
            'mean_imbalance': float(self.imbalance.mean()),
            'max_correlation': float(pairs.max()),
            'mean_correlation': float(pairs.mean()),
            'distinct': self.distinct,
            'distinct_ratio': self.distinct / self.images,
            'collision_probability': self.collision_probability,
            'largest_bucket': self.largest_bucket,
        }


@dataclasses.dataclass(frozen=True)
class CodeHealth:
    """The health of whole codes and of each segment."""

    code: BitHealth
    segments: Mapping[str, BitHealth]

    def to_json(self) -> dict[str, Any]:
        """`{'code': ..., 'segments': {name: ...}}`, each as `BitHealth.to_json`."""
        return {'code': self.code.to_json(), 'segments': {name: s.to_json() for name, s in self.segments.items()}}


def health(codes: NDArray[np.uint8], spec: CodeSpec) -> CodeHealth:
    """Balance, correlation and collisions of codes uint8 [N, B], whole and by segment.

    Raises:
        InputError: codes that are not of the spec, or none at all.
    """
    codes = check_codes(codes, spec)
    if len(codes) == 0:
        raise InputError('there are no codes to measure')
    ones, correlation = _bit_statistics(codes, spec.bits)

    def part(start: int, bits: int) -> BitHealth:
        own, sizes = slice(start, start + bits), _bucket_sizes(codes, start, bits)
        chance = _colliding_pairs(sizes) / max(_pairs(len(codes)), 1)
        return BitHealth(len(codes), ones[own], correlation[own, own], len(sizes), int(sizes.max()), chance)

    return CodeHealth(part(0, spec.bits), {s.name: part(spec.start(s.name), s.bits) for s in spec.segments})


def substring_entropy(codes: NDArray[np.uint8], start: int, bits: int) -> float:
    """The collision entropy H2 = -log2 sum_v p_v^2, in bits, of the substring of `bits` bits from `start`.

    sum p^2 is estimated without bias, by the share of pairs of different images that agree. The result is at most
    `bits`. If no pair agrees, the result is that of a single agreeing pair: the sample cannot show more, and the true
    entropy may be higher. With fewer than two images it is 0.

    >>> substring_entropy(np.array([[0], [64], [128], [192], [0]], np.uint8), 0, 2)  # 1 pair of 10 agrees: at most 2
    2.0

    Raises:
        InputError: a substring that is not within the codes.
    """
    if bits < 1 or start < 0 or start + bits > 8 * codes.shape[1]:
        raise InputError(f'bits {start} to {start + bits - 1} are not within codes of {8 * codes.shape[1]} bits')
    pairs = _pairs(len(codes))
    if pairs == 0:
        return 0.0
    return float(min(np.log2(pairs / max(_colliding_pairs(_bucket_sizes(codes, start, bits)), 1)), bits))


def collisions(codes: NDArray[np.uint8], limit: int) -> list[Counts]:
    """Rows that share one code, the largest groups first, at most `limit` groups of two or more: int64 arrays.

    >>> collisions(np.array([[7], [1], [7], [2], [1], [7]], np.uint8), 10)
    [array([0, 2, 5]), array([1, 4])]
    """
    order, edges = _buckets(to_words(codes))
    sizes, firsts = np.diff(edges), order[edges[:-1]]
    largest = np.lexsort((firsts, -sizes))[: min(limit, (sizes > 1).sum())]
    return [order[edges[i] : edges[i + 1]] for i in largest]


def _buckets(words: NDArray[np.uint64]) -> tuple[Counts, Counts]:
    """Rows of words [N, W], equal ones together and ascending; bucket i is order[edges[i] : edges[i + 1]]."""
    order = np.lexsort(words.T)
    new = np.ones(len(words), bool)
    new[1:] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
    return order, np.append(np.flatnonzero(new), len(words))


def _bucket_sizes(codes: NDArray[np.uint8], start: int, bits: int) -> Counts:
    """How many codes have each value of some of their bits, for the values that occur."""
    mask = bit_mask(start, bits, codes.shape[1])
    _, edges = _buckets(to_words(codes)[:, mask != 0] & mask[mask != 0])
    return np.diff(edges)


def _pairs(count: int) -> int:
    return count * (count - 1) // 2


def _colliding_pairs(sizes: Counts) -> int:
    return int((sizes * (sizes - 1) // 2).sum())


def _bit_statistics(codes: NDArray[np.uint8], bits: int) -> tuple[Floats, Floats]:
    """The share of ones [bits] and Pearson's correlations [bits, bits], counted in blocks of rows."""
    both = np.zeros((bits, bits), np.float64)
    for start in range(0, len(codes), _CORRELATION_ROWS):
        block = unpack_bits(codes[start : start + _CORRELATION_ROWS], bits).astype(np.float32)
        both += block.T @ block
    n, ones = len(codes), np.diag(both)
    spread = ones * (n - ones)
    scale = np.sqrt(np.outer(spread, spread))
    correlation = np.divide(n * both - np.outer(ones, ones), scale, out=np.zeros_like(both), where=scale > 0)
    np.fill_diagonal(correlation, 1)
    return ones / n, correlation
