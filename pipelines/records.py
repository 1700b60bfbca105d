"""A record: one image with its id, bytes and what is known about it; or the reason why it could not be read.

What reads records from files is `inputs/shards.py`; nothing here touches a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

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
