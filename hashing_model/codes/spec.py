"""The code spec: which named segments a code has, how many bits each, and which features each reads.

Nothing here computes codes; `bits.py` packs bits and `model.py` makes them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hashing_model.errors import InputError

MAX_BITS = 1024
_NAME = re.compile(r'[a-z][a-z0-9_]*')
_INTEGER = re.compile(r'[0-9]{1,1000}')

DEFAULT_FEATURES: dict[str, tuple[str, ...]] = {
    'coarse': ('top', 'high', 'mid'),
    'fine': ('top', 'high', 'mid'),
    'look': ('low', 'edges', 'texture', 'shape', 'color'),
}


@dataclasses.dataclass(frozen=True)
class Segment:
    """The bits of a code that speak for one granularity.

    Args:
        name: lower-case identifier, used in profiles and column names.
        bits: number of bits, at least 1.
        features: names of the feature groups whose fused vector the segment reads; empty for codes
            that were made elsewhere.
    """

    name: str
    bits: int
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(f'segment name {self.name!r} is not a lower-case identifier')
        if not 1 <= self.bits <= MAX_BITS:
            raise InputError(f'segment {self.name} has {self.bits} bits; 1 to {MAX_BITS} are possible')
        object.__setattr__(self, 'features', tuple(self.features))


@dataclasses.dataclass(frozen=True)
class CodeSpec:
    """The ordered segments of a code. Bit 0 is the first bit of the first byte (big-endian).

    >>> spec = CodeSpec.parse('coarse=32,fine=32,look=64')
    >>> spec.bits, spec.num_bytes, spec.start('look')
    (128, 16, 64)
    >>> spec.weights({'coarse': 1, 'fine': 2})
    (1, 2, 0)
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, 'segments', tuple(self.segments))
        names = self.names
        if not names:
            raise InputError('a code spec needs at least one segment')
        if len(set(names)) < len(names):
            raise InputError(f'segment names repeat: {", ".join(names)}')
        if self.bits > MAX_BITS:
            raise InputError(f'a code of {self.bits} bits is longer than {MAX_BITS}')

    @classmethod
    def default(cls) -> CodeSpec:
        """Coarse 32, fine 32, look 64 bits, each reading its default features."""
        return cls.parse('coarse=32,fine=32,look=64')

    @classmethod
    def parse(cls, text: str) -> CodeSpec:
        """Read `name=bits,...`; `coarse`, `fine` and `look` get their default features, others all of them.

        Raises:
            InputError: malformed text, or a spec that `CodeSpec` refuses.
        """
        everything = tuple(dict.fromkeys(f for fs in DEFAULT_FEATURES.values() for f in fs))
        return cls(
            tuple(
                Segment(name, bits, DEFAULT_FEATURES.get(name, everything))
                for name, bits in parse_pairs(text, 'segments').items()
            )
        )

    @classmethod
    def from_json(cls, value: Iterable[Mapping[str, Any]]) -> CodeSpec:
        """Inverse of `to_json`."""
        return cls(tuple(Segment(v['name'], int(v['bits']), tuple(v['features'])) for v in value))

    def to_json(self) -> list[dict[str, Any]]:
        """A list of plain dicts, in order."""
        return [{'name': s.name, 'bits': s.bits, 'features': list(s.features)} for s in self.segments]

    @property
    def names(self) -> tuple[str, ...]:
        """Segment names in order."""
        return tuple(s.name for s in self.segments)

    @property
    def bits(self) -> int:
        """Bits of a whole code."""
        return sum(s.bits for s in self.segments)

    @property
    def num_bytes(self) -> int:
        """Bytes of a packed code; spare bits of the last byte are zero."""
        return -(-self.bits // 8)

    def start(self, name: str) -> int:
        """The first bit of a segment."""
        i = self.names.index(name)
        return sum(s.bits for s in self.segments[:i])

    def weights(self, profile: Mapping[str, int] | None = None) -> tuple[int, ...]:
        """The weight of each segment, in order, under a profile; None weighs all segments 1.

        Raises:
            InputError: an unknown segment, a weight that is no non-negative integer, or all weights 0.
        """
        if profile is None:
            return (1,) * len(self.segments)
        unknown = sorted(set(profile) - set(self.names))
        if unknown:
            raise InputError(f'unknown segment {unknown[0]!r} in the profile; the index has {", ".join(self.names)}')
        weights = tuple(profile.get(name, 0) for name in self.names)
        for name, w in zip(self.names, weights, strict=True):
            if not isinstance(w, (int, np.integer)) or isinstance(w, bool) or w < 0:
                raise InputError(f'weight {w!r} of segment {name} is not a non-negative integer')
        if not any(weights):
            raise InputError('the profile weighs every segment 0')
        if sum(w * s.bits for w, s in zip(weights, self.segments, strict=True)) >= 2**31:
            raise InputError(f'the profile {dict(profile)} makes distances of 2^31 or more')
        return tuple(int(w) for w in weights)


def parse_pairs(text: str, what: str) -> dict[str, int]:
    """Read `name=integer,...`, as segments and profiles are written on the command line.

    >>> parse_pairs('coarse=1,fine=2', 'profile')
    {'coarse': 1, 'fine': 2}

    Raises:
        InputError: malformed or repeated entries; the message names `what`.
    """
    pairs: dict[str, int] = {}
    for item in text.split(','):
        name, equals, value = (part.strip() for part in item.partition('='))
        if not name or not equals or not _INTEGER.fullmatch(value):
            raise InputError(f'{what} {text!r}: {item.strip()!r} is not NAME=INTEGER')
        if name in pairs:
            raise InputError(f'{what} {text!r}: {name} is given twice')
        pairs[name] = int(value)
    return pairs
