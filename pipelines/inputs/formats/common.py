"""What the readers of all shard formats share: opening, reporting damage, and the rules for ids, labels and captions.

No reader lets bad data stop a build: a bad record becomes one `Reject`, and the unreadable rest of a shard becomes
one `Reject`. A shard that cannot be opened or read at all (gone, forbidden, a bad disk, a lost connection) is not bad
data: an `OSError` names it, so that the runner tries the unit again and an index never lacks a shard unnoticed.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from pipelines import records
from pipelines.inputs.opening import open_input
from pipelines.records import Labels, Record, Reject, Source

# Of the formats that `hashing_model.images.decode` decodes.
IMAGE_SUFFIXES = frozenset(
    [
        *('jpg', 'jpeg', 'jpe', 'jfif', 'png', 'apng', 'webp', 'gif', 'bmp', 'tif', 'tiff', 'avif'),
        *('ppm', 'pgm', 'pbm', 'pnm', 'jp2', 'j2k', 'jpx', 'ico'),
    ]
)
MAX_RECORD_BYTES = 256 << 20
MAX_METADATA_BYTES = 4 << 20  # of a json, text or header member of a tar: parsed, they take 20 times the memory

_GZIP_MAGIC = b'\x1f\x8b'
_BUFFER_BYTES = 1 << 18


class BrokenShardError(Exception):
    """The rest of a shard cannot be read."""


class MetadataError(ValueError):
    """The metadata of an image cannot be read, though the image can."""


# What bad data raise in the standard library's readers, as opposed to a disk or a network that fails.
DAMAGE = (BrokenShardError, EOFError, zlib.error, gzip.BadGzipFile)


@contextlib.contextmanager
def open_stream(path: str) -> Iterator[IO[bytes]]:
    """Open for reading from start to end; gzip is recognised by its first bytes, and its checksum is verified."""
    raw: Any = open_input(path)
    with io.BufferedReader(raw, _BUFFER_BYTES) as stream:
        if stream.peek(2)[:2] == _GZIP_MAGIC:
            with gzip.GzipFile(fileobj=stream) as unzipped:
                yield unzipped  # type: ignore[misc]
        else:
            yield stream


def rejecting_damage(
    found: Iterable[Record | Reject], shard: str, damage: tuple[type[Exception], ...]
) -> Iterator[Record | Reject]:
    """Pass everything on. If reading raises one of the exceptions in `damage`, end with one reject.

    Raises:
        OSError: the shard could not be opened or read.
    """
    count = 0
    try:
        with naming_failures(shard):
            for count, item in enumerate(found, 1):  # noqa: B007 - the count is what the message tells
                yield item
    except damage as e:
        yield Reject(Source(shard, ''), records.BROKEN_SHARD, f'after {count} records: {one_line(e)}')


@contextlib.contextmanager
def naming_failures(path: str) -> Iterator[None]:
    """Make any failure of a disk, a network or an object store an OSError that names the file; pass on other errors."""
    try:
        yield
    except Exception as e:
        is_http_error = isinstance(getattr(e, 'code', None), int)  # the clients of object stores
        if is_http_error or (isinstance(e, OSError) and not isinstance(e, gzip.BadGzipFile)):
            raise OSError(f'cannot read {path}: {failure_reason(e)}') from e
        raise


def failure_reason(error: Exception) -> str:
    """A short line, where possible without the path."""
    return (error.strerror if isinstance(error, OSError) else None) or one_line(error)


def one_line(error: Exception) -> str:
    """An exception as one short line."""
    return ' '.join(str(error).split())[:200] or type(error).__name__


def id_text(value: object) -> str:
    """An id as text, from a string, UTF-8 bytes or an integer; anything else, such as None, is no id and gives ''.

    Raises:
        MetadataError: bytes or a string that are no UTF-8.
    """
    if isinstance(value, (str, bytes)):
        return text(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ''


def text(value: str | bytes) -> str:
    """Text that can be stored as UTF-8.

    Raises:
        MetadataError: it cannot.
    """
    try:
        return value.decode('utf-8') if isinstance(value, bytes) else value.encode('utf-8').decode('utf-8')
    except UnicodeError as e:
        raise MetadataError(f'text is not UTF-8: {value[:40]!r}') from e


def caption_text(value: object) -> str | None:
    """A caption as text. Bytes that are not UTF-8 are replaced, so that a caption never causes a reject."""
    if isinstance(value, str):
        value = value.encode('utf-8', 'replace')
    return value.decode('utf-8', 'replace').strip() or None if isinstance(value, bytes) else None


def label_values(value: object) -> tuple[str, ...]:
    """The labels of one level: a string, number or boolean, or a list of them; None and '' are no label.

    >>> label_values(['shoe', None, 7])
    ('shoe', '7')

    Raises:
        MetadataError: something that is no label.
    """
    if value is None:
        return ()
    if isinstance(value, bool):
        return ('true' if value else 'false',)
    if isinstance(value, (int, float)):
        return (str(value),)
    if isinstance(value, (str, bytes)):
        label = text(value).strip()
        return (label,) if label else ()
    if isinstance(value, (list, tuple)):
        return tuple(label for item in value for label in label_values(item))
    raise MetadataError(f'a {type(value).__name__} is no label')


def labels_of(values: Mapping[str, object]) -> Labels:
    """Label values by level; levels without a label are left out.

    Raises:
        MetadataError: something that is no label.
    """
    levels = {text(level): label_values(value) for level, value in values.items()}
    return {level: labels for level, labels in levels.items() if labels}


def make_record(
    source: Source, image_id: object, data: bytes | None, labels: Mapping[str, object], caption: object
) -> Record | Reject:
    """The record of these parts as they were read, or the reject that says which of them is unusable."""
    known_id = None
    try:
        known_id = id_text(image_id) or None
        if known_id is None:
            return Reject(
                source, records.MISSING_ID, 'no id' if image_id in (None, '', b'') else f'id {image_id!r}'[:80]
            )
        if data is None:
            return Reject(source, records.MISSING_IMAGE, 'no image bytes', known_id)
        if len(data) > MAX_RECORD_BYTES:
            return too_large(source, len(data), known_id)
        return Record(known_id, data, source, labels_of(labels), caption_text(caption))
    except MetadataError as e:
        return Reject(source, records.BROKEN_METADATA, one_line(e), known_id)


def too_large(source: Source, size: int, image_id: str | None = None, limit: int | None = None) -> Reject:
    """The reject of a record with something of `size` bytes; by default that is the image."""
    limit = MAX_RECORD_BYTES if limit is None else limit
    return Reject(source, records.RECORD_TOO_LARGE, f'{size} bytes; the limit is {limit}', image_id)
