"""Packing bits into codes, and Hamming distances between codes, in plain numpy.

The first bit of the first byte is bit 0. Fast search lives in `pipelines.search.kernels`; what is here is the
definition that it is tested against.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError


def pack_bits(bits: NDArray) -> NDArray[np.uint8]:
    """Bits [N, b] (bool or 0/1) to codes uint8 [N, ceil(b / 8)], big-endian, spare bits zero.

    >>> pack_bits(np.array([[1, 0, 0, 0, 0, 0, 0, 0, 1]]))
    array([[128, 128]], dtype=uint8)
    """
    return np.packbits(np.asarray(bits, bool), axis=1)


def unpack_bits(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes uint8 [N, B] to their first `bits` bits, uint8 0/1 [N, bits].

    >>> unpack_bits(np.array([[160]], np.uint8), 4)
    array([[1, 0, 1, 0]], dtype=uint8)
    """
    return np.unpackbits(codes, axis=1, count=bits)


def to_words(codes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Codes uint8 [N, B] to uint64 words [N, ceil(B / 8)], zero-padded; bit 0 is the most significant of word 0.

    >>> [hex(w) for w in to_words(np.array([[0x80, 1, 2]], np.uint8))[0]]
    ['0x8001020000000000']
    """
    n, width = codes.shape
    padded = np.zeros((n, -(-width // 8) * 8), np.uint8)
    padded[:, :width] = codes
    return padded.view('>u8').astype(np.uint64)


def bit_mask(start: int, bits: int, num_bytes: int) -> NDArray[np.uint64]:
    """Words [ceil(num_bytes / 8)] in which exactly the bits start .. start + bits - 1 of a code are set."""
    mask = np.zeros((1, num_bytes * 8), bool)
    mask[:, start : start + bits] = True
    return to_words(pack_bits(mask))[0]


def hamming(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Hamming distance along the last axis of broadcastable uint8 codes [..., B], int32 [...].

    >>> hamming(np.array([[255, 0]], np.uint8), np.array([[0, 1]], np.uint8))
    array([9], dtype=int32)
    """
    return np.bitwise_count(a ^ b).sum(axis=-1, dtype=np.int32)


def segment_distances(a: NDArray[np.uint8], b: NDArray[np.uint8], spec: CodeSpec) -> NDArray[np.int32]:
    """Hamming distance per segment between broadcastable codes [..., B], int32 [..., segments]."""
    different = np.unpackbits(a ^ b, axis=-1, count=spec.bits)
    starts = [spec.start(name) for name in spec.names]
    return np.add.reduceat(different, starts, axis=-1, dtype=np.int32)


def check_codes(codes: NDArray, spec: CodeSpec) -> NDArray[np.uint8]:
    """The codes as they came, if they are uint8 [N, spec.num_bytes] with zero spare bits.

    Raises:
        InputError: another dtype, shape or length, or spare bits set.
    """
    codes = np.asarray(codes)
    if codes.dtype != np.uint8 or codes.ndim != 2:
        raise InputError(f'codes are {codes.dtype} {list(codes.shape)}; uint8 [N, {spec.num_bytes}] is needed')
    if codes.shape[1] != spec.num_bytes:
        raise InputError(f'a code has {codes.shape[1]} bytes; the index has codes of {spec.num_bytes} bytes')
    spare = spec.num_bytes * 8 - spec.bits
    if spare and (codes[:, -1] & ((1 << spare) - 1)).any():
        raise InputError(f'a code has bits set beyond the {spec.bits} bits of the code spec')
    return codes
