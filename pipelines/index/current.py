"""The one file of an index that changes, `CURRENT`: reading it, and changing it if nobody else has meanwhile.

On a disk, a lock file lets one process change it at a time. Cloud Storage compares the object's generation itself. On
any other store only the content is compared, so that two changes at the same moment are not detected.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterator
from typing import Any

from pyarrow import fs as arrow_fs

from pipelines import files

LOCK_SUFFIX = '.lock'
MOST_BYTES = 1024  # of the file, which holds one id


@dataclasses.dataclass(frozen=True)
class Current:
    """What `CURRENT` was when someone looked.

    Args:
        text: the content, normally the id of a version; None if there is no file.
        generation: differs after every change, even if the content is changed and changed back: the object's generation
            in Cloud Storage, or the time of the file on a disk in nanoseconds. 0 if there is no file, None on other
            stores.
    """

    text: str | None
    generation: int | None = None


class MovedError(Exception):
    """`CURRENT` is not what the caller believed; `found` is what it is."""

    def __init__(self, found: Current):
        super().__init__(f'it names {found.text}')
        self.found = found


def read(uri: str) -> Current:
    """What the file is now; raises OSError if it cannot be read."""
    with _google_errors(uri):
        blob = _blob(uri)
        if blob is not None:
            return _read_blob(blob)
    try:
        return Current(_text(files.read_bytes(uri, MOST_BYTES)), _time(uri))
    except (FileNotFoundError, NotADirectoryError):
        return Current(None, 0 if _is_local(uri) else None)


def _is_local(uri: str) -> bool:
    return isinstance(files.filesystem(uri)[0], arrow_fs.LocalFileSystem)


def _time(uri: str) -> int | None:
    return os.stat(files.filesystem(uri)[1]).st_mtime_ns if _is_local(uri) else None


@contextlib.contextmanager
def locked(uri: str) -> Iterator[None]:
    """Keep other processes from changing the file; only on a disk, nothing is locked in a bucket."""
    if not _is_local(uri):
        yield
        return
    handle = _open_lock(f'{files.filesystem(uri)[1]}{LOCK_SUFFIX}')
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # the kernel unlocks it if this process dies
        yield
    finally:
        os.close(handle)


def _open_lock(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # another user made it: reading it is enough to lock it, but on NFS
        return os.open(path, os.O_RDONLY)


def move(uri: str, text: str, believed: Current) -> None:
    """Write a text to the file if the file is as believed, or has that text already; the file must be `locked`.

    Raises:
        MovedError: the file was changed.
        OSError: it cannot be written.
    """
    found = read(uri)
    if found.text == text:
        return  # by an earlier attempt
    if found != believed:
        raise MovedError(found)
    blob = _blob(uri)
    if blob is None:
        files.write_bytes(uri, f'{text}\n'.encode(), durable=True)
    else:
        with _google_errors(uri):
            _move_blob(blob, text, found)


def _text(content: bytes) -> str:
    return content.decode(errors='replace').strip()


@contextlib.contextmanager
def _google_errors(uri: str) -> Iterator[None]:
    """Turn errors of Google's client into OSErrors."""
    if '://' not in uri:
        yield
        return
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except (GoogleAPIError, GoogleAuthError) as e:
        raise OSError(f'{uri}: {type(e).__name__}: {e}') from e


def _blob(uri: str) -> Any | None:
    """The object in Google's own client, which has preconditions; None if the file is not in Cloud Storage."""
    filesys, path = files.filesystem(uri)
    if filesys.type_name != 'gcs':
        return None
    from google.cloud import storage

    bucket, _, name = path.partition('/')
    return storage.Client(project=None).bucket(bucket).blob(name)


def _read_blob(blob: Any) -> Current:
    from google.api_core import exceptions

    found = blob.bucket.get_blob(blob.name)
    if found is None:
        return Current(None, 0)
    generation = found.generation  # a download sets it to what the answer's headers say, perhaps nothing
    try:
        return Current(_text(found.download_as_bytes(if_generation_match=generation)), generation)
    except (exceptions.PreconditionFailed, exceptions.NotFound):  # moved between the two requests
        return _read_blob(blob)


def _move_blob(blob: Any, text: str, found: Current) -> None:
    from google.api_core import exceptions

    try:
        blob.upload_from_string(f'{text}\n', if_generation_match=found.generation)
    except exceptions.PreconditionFailed as e:
        now = _read_blob(blob)
        if now.text != text:  # else this very request got through, and was repeated after its answer was lost
            raise MovedError(now) from e
