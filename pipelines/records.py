"""A record: one image with its id, bytes and what is known about it; or the reason why it could not be read.

`Tally` counts what became of many. What reads records from files is `inputs/shards.py`; nothing here touches a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from hashing_model.errors import BuildError

Labels = Mapping[str, tuple[str, ...]]  # label level, coarse first -> the values at that level

# Why a record is not in the index. Short constants: they are counted, stored in Parquet and grouped by.
MISSING_ID = 'missing_id'
MISSING_IMAGE = 'missing_image'
DUPLICATE_ID = 'duplicate_id'
BROKEN_SHARD = 'broken_shard'
WRONG_CODE_LENGTH = 'wrong_code_length'
SPARE_BITS_SET = 'spare_bits_set'
UNKNOWN_ID = 'unknown_id'
UNKNOWN_TEXT = 'unknown_text'
BROKEN_METADATA = 'broken_metadata'
UNREADABLE_FILE = 'unreadable_file'  # a single image file; an unreadable shard raises
RECORD_TOO_LARGE = 'record_too_large'
TRANSIENT = frozenset([UNREADABLE_FILE, BROKEN_SHARD])  # may be gone when the same files are read again


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a record came from: the shard's path, and the member, file or row inside it."""

    shard: str
    member: str


@dataclasses.dataclass(frozen=True)
class Record:
    """One image, not decoded yet."""

    image_id: str
    data: bytes
    source: Source
    labels: Labels = dataclasses.field(default_factory=dict)
    caption: str | None = None


@dataclasses.dataclass(frozen=True)
class Reject:
    """A record that could not be indexed; `reason` is a constant of this module or of `hashing_model.images.decode`."""

    source: Source
    reason: str
    detail: str
    image_id: str | None = None


@dataclasses.dataclass(frozen=True)
class Tally:
    """What became of the records that a job read: every one is used, a duplicate, or rejected with a reason.

    Args:
        read: records read.
        used: of them, those that were indexed, or whose features were made.
        duplicates: of them, those with an id that an earlier record has.
        reasons: how many of the others were rejected, by reason.
    """

    read: int
    used: int
    duplicates: int = 0
    reasons: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, read: int, used: int, reasons: Mapping[str, int]) -> Tally:
        """A tally in which duplicates are counted as a reason, `duplicate_id`, like the others."""
        rest = {reason: n for reason, n in sorted(reasons.items()) if reason != DUPLICATE_ID}
        return cls(read, used, reasons.get(DUPLICATE_ID, 0), rest)

    @property
    def rejected(self) -> int:
        """Records that were rejected for any reason."""
        return sum(self.reasons.values())

    def check(self) -> Tally:
        """This tally.

        Raises:
            BuildError: records are missing, or none was used.
        """
        if self.read != self.used + self.duplicates + self.rejected:
            raise BuildError(
                f'records are missing: read {self.read:,}, used {self.used:,}, rejected {self.rejected:,}, '
                f'duplicates {self.duplicates:,}'
            )
        if not self.used:
            why = describe_reasons(self.reasons) or ('all are duplicates' if self.duplicates else 'there was none')
            raise BuildError(f'none of {self.read:,} records could be used: {why}')
        return self

    def describe(self, used: str) -> str:
        """In words, of which one says what became of the records that were used.

        >>> Tally(3200, 3195, 1, {'empty': 1, 'truncated': 3}).describe('indexed')
        '3,195 of 3,200 records indexed, 1 with a duplicate id, 4 rejected (3 truncated, 1 empty)'
        """
        text = f'{self.used:,} of {self.read:,} records {used}'
        if self.duplicates:
            text += f', {self.duplicates:,} with a duplicate id'
        if self.reasons:
            text += f', {self.rejected:,} rejected ({describe_reasons(self.reasons)})'
        return text


def describe_reasons(reasons: Mapping[str, int]) -> str:
    """Rejects by reason in words, the most frequent first.

    >>> describe_reasons({'empty': 1, 'truncated': 3})
    '3 truncated, 1 empty'
    """
    return ', '.join(f'{n:,} {reason}' for reason, n in sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
