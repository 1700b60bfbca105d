"""Opening and listing files as Beam's file systems do: on a disk, `gs://`, `s3://`. Beam loads when one is opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hashing_model.errors import InputError


def open_input(path: str) -> Any:
    """A file, open for reading its bytes as they are: nothing is decompressed.

    Raises:
        OSError: it cannot be opened.
    """
    from apache_beam.io.filesystem import CompressionTypes
    from apache_beam.io.filesystems import FileSystems

    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def match(pattern: str) -> Sequence[Any]:
    """What Beam knows of the files that match a pattern: path, size, time of the last change.

    Raises:
        InputError: the place cannot be listed.
    """
    from apache_beam.io.filesystem import BeamIOError
    from apache_beam.io.filesystems import FileSystems

    try:
        return FileSystems.match([pattern])[0].metadata_list
    except (BeamIOError, ValueError) as e:
        details = getattr(e, 'exception_details', None) or {}
        raise InputError(f'cannot list {pattern}: {"; ".join(map(str, details.values())) or e}') from e


def exists(path: str) -> bool:
    """Whether there is a file."""
    from apache_beam.io.filesystems import FileSystems

    try:
        return FileSystems.exists(path)
    except ValueError:  # the root of a bucket
        return False
