"""Bytes and Parquet tables in files, on a local disk or in a bucket, through Arrow's filesystems.

Every write is atomic: a reader sees the old file, the new file or none, never half of one. Contents are made in
memory first, because an object store shows whatever a closed stream has received, even after an error.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import datetime
import errno
import functools
import hashlib
import math
import os
import posixpath
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as arrow_fs

from hashing_model.errors import InputError

ROW_GROUP_ROWS = 16_384  # what a query reads at least
COPIED_AT_ONCE = 1 << 24
GOOGLE_RETRIES = datetime.timedelta(minutes=2)  # of a request that fails in a way that may pass


def absolute(uri: str | os.PathLike) -> str:
    """A uri with a scheme (`gs://...`) unchanged, or the absolute path of a local one."""
    text = os.fspath(uri)
    return text.rstrip('/') if '://' in text else os.path.abspath(text)


def join(folder: str, *names: str) -> str:
    """A path or uri below a folder."""
    return posixpath.join(folder, *names)


def filesystem(uri: str) -> tuple[arrow_fs.FileSystem, str]:
    """The filesystem of a path or uri, and the path in it.

    Raises:
        InputError: a scheme that Arrow does not know, or no credentials for Cloud Storage.
    """
    if '://' not in uri:
        return arrow_fs.LocalFileSystem(), os.path.abspath(uri)
    if uri.startswith('gs://'):
        check_google_credentials()
        return arrow_fs.GcsFileSystem(retry_time_limit=GOOGLE_RETRIES), uri.removeprefix('gs://')
    try:
        return arrow_fs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid as e:
        raise InputError(f'{uri}: {e}') from e


@functools.cache  # of errors nothing is kept
def check_google_credentials() -> None:
    """Check that there are credentials, as Arrow would search for them for many minutes.

    Raises:
        InputError: there are none.
    """
    if {'STORAGE_EMULATOR_HOST', 'CLOUD_STORAGE_EMULATOR_ENDPOINT'} & os.environ.keys():
        return
    from google.auth import default, exceptions

    try:
        default()
    except exceptions.GoogleAuthError as e:
        raise InputError(
            'there are no credentials for Google Cloud Storage: run gcloud auth application-default login, or let '
            f'GOOGLE_APPLICATION_CREDENTIALS name a key file ({str(e).partition(". ")[0]})'
        ) from e


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    filesys, path = filesystem(uri)
    return filesys.get_file_info(path).type != arrow_fs.FileType.NotFound


def names_in(uri: str) -> list[str]:
    """Names of the files and folders directly in a folder, sorted; none if there is no such folder."""
    filesys, path = filesystem(uri)
    # In a bucket a folder is there through what is below it, and Arrow does not list it by itself.
    infos = _infos(filesys, path, recursive=not isinstance(filesys, arrow_fs.LocalFileSystem))
    return sorted({info.path[len(path) :].strip('/').partition('/')[0] for info in infos} - {''})


def read_bytes(uri: str, most: int | None = None) -> bytes:
    """The content of a file.

    Args:
        uri: path or uri.
        most: bytes that it may have; None for any number.

    Raises:
        OSError: it cannot be read, has more bytes, or is a pipe or a device, which may never end; names the file.
    """
    filesys, path = filesystem(uri)
    if isinstance(filesys, arrow_fs.LocalFileSystem):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(f'{path} is no regular file')
    if most is not None and (size := filesys.get_file_info(path).size or 0) > most:
        raise OSError(f'{path} has {size:,} bytes; at most {most:,} are expected')
    with filesys.open_input_stream(path) as stream:
        return stream.read()


def read_range(uri: str, offset: int, length: int) -> bytes:
    """Some bytes of a file.

    Raises:
        OSError: the file is missing or ends before; the message names it.
    """
    filesys, path = filesystem(uri)
    with filesys.open_input_file(path) as file:
        content = file.read_at(length, offset)
    if len(content) != length:
        raise OSError(f'{uri} ends before byte {offset + length}')
    return content


def write_bytes(uri: str, content: bytes | pa.Buffer, durable: bool = False) -> int:
    """Write a whole file at once, making its folders; returns its size in bytes.

    Args:
        uri: where.
        content: all of it.
        durable: on a disk, return only when the file and its name would outlive a loss of power; a bucket always does.
    """
    filesys, path = filesystem(uri)
    if isinstance(filesys, arrow_fs.LocalFileSystem):
        _write_local(path, content, durable)
    else:
        with filesys.open_output_stream(path) as stream:
            stream.write(content)
    return len(content)


def _write_local(path: str, content: bytes | pa.Buffer, durable: bool) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    target = f'{path}.{uuid.uuid4().hex}.tmp'
    try:
        with open(target, 'wb') as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(target, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(target)
        raise
    if durable:
        _sync(folder, os.fsync)


def flush(uri: str) -> None:
    """Make everything written so far to the file system of a local folder safe against a loss of power, names included.

    It is one call for many files; an `fsync` of each file would wait for the disk each time.
    """
    filesys, path = filesystem(uri)
    if isinstance(filesys, arrow_fs.LocalFileSystem):
        _sync(path, _syncfs)


def _sync(folder: str, function: Callable[[int], None]) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        function(handle)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # a file system that does not do this
            raise
    finally:
        os.close(handle)


def _syncfs(handle: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(handle):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def digest(content: bytes | pa.Buffer) -> str:
    """BLAKE2b-128 of some bytes, in hex."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """Size of a file in bytes, and when it was written, in seconds since 1970; infinity if the store does not tell."""

    size: int
    time: float


def infos_below(uri: str, recursive: bool = True) -> dict[str, FileInfo]:
    """Path below a folder -> size and time, of all files at any depth, or of those directly in it.

    On a disk, links are passed over and not followed: what they lead to does not belong to the folder.
    """
    filesys, path = filesystem(uri)
    if isinstance(filesys, arrow_fs.LocalFileSystem):
        return dict(_local_infos(path, recursive))
    infos = (i for i in _infos(filesys, path, recursive) if i.type == arrow_fs.FileType.File)
    return {i.path[len(path) + 1 :]: FileInfo(i.size, _seconds(i, math.inf)) for i in infos}


def _local_infos(path: str, recursive: bool) -> Iterator[tuple[str, FileInfo]]:
    for folder, _, names in os.walk(path, onerror=_raise_unless_gone):  # which follows no links to folders
        for name in names:
            file = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                found = os.lstat(file)
                if stat.S_ISREG(found.st_mode):
                    yield os.path.relpath(file, path), FileInfo(found.st_size, found.st_mtime_ns / 1e9)
        if not recursive:
            return


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def is_link(uri: str) -> bool:
    """Whether a path on a disk is a symbolic link itself; in a bucket there are none."""
    filesys, path = filesystem(uri)
    return isinstance(filesys, arrow_fs.LocalFileSystem) and os.path.islink(path)


@contextlib.contextmanager
def written_in_pieces(uri: str) -> Iterator[IO[bytes]]:
    """A new file to write piece by piece. It appears when the block ends without an error; otherwise nothing is left.

    A file for a bucket is first written to a temporary file of its full size.
    """
    filesys, path = filesystem(uri)
    if isinstance(filesys, arrow_fs.LocalFileSystem):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        target = f'{path}.{uuid.uuid4().hex}.tmp'
        try:
            with open(target, 'wb') as file:
                yield file
            os.replace(target, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(target)
        return
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        unfinished = f'{path}.{uuid.uuid4().hex}.tmp'  # Arrow keeps what was written of a stream that is broken off
        try:
            with filesys.open_output_stream(unfinished) as stream:
                shutil.copyfileobj(file, stream, COPIED_AT_ONCE)
            filesys.move(unfinished, path)
        except BaseException:
            with contextlib.suppress(OSError):
                filesys.delete_file(unfinished)
            raise


def sizes_below(uri: str) -> dict[str, int]:
    """Path below a folder -> size in bytes, of all files at any depth."""
    return {path: info.size for path, info in infos_below(uri).items()}


def time_of(uri: str) -> float:
    """When a file or folder was changed, in seconds since 1970; 0 if it is unknown, as for folders in a bucket."""
    filesys, path = filesystem(uri)
    return _seconds(filesys.get_file_info(path), 0)


def _seconds(info: arrow_fs.FileInfo, unknown: float) -> float:
    return unknown if info.mtime_ns is None else info.mtime_ns / 1e9


def _infos(filesys: arrow_fs.FileSystem, path: str, recursive: bool) -> list[arrow_fs.FileInfo]:
    return filesys.get_file_info(arrow_fs.FileSelector(path, allow_not_found=True, recursive=recursive))


def delete_file(uri: str) -> None:
    """Remove a file; nothing happens if it is not there."""
    filesys, path = filesystem(uri)
    if filesys.get_file_info(path).type == arrow_fs.FileType.File:
        filesys.delete_file(path)


def delete_folder(uri: str) -> None:
    """Remove a folder and all in it; nothing happens if it is not there. Of links, only the links themselves go.

    Raises:
        OSError: the folder is a link itself, or cannot be removed.
    """
    filesys, path = filesystem(uri)
    if isinstance(filesys, arrow_fs.LocalFileSystem):
        if os.path.islink(path):  # rmtree refuses it, too, but Python 3.13.0 does not say why
            raise OSError(errno.ENOTDIR, 'it is a symbolic link, which is not removed', path)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)  # which follows no link
        return
    if filesys.get_file_info(path).type == arrow_fs.FileType.NotFound:
        return
    with contextlib.suppress(FileNotFoundError):  # in a bucket also after the files are gone: a prefix is no object
        filesys.delete_dir(path)


def delete_empty_folder(uri: str) -> None:
    """Remove a local folder if nothing is in it, not even an empty folder; in a bucket there are no folders."""
    filesys, path = filesystem(uri)
    if isinstance(filesys, arrow_fs.LocalFileSystem):
        with contextlib.suppress(OSError):  # not empty, or not there
            os.rmdir(path)


def table_bytes(table: pa.Table, **options: Any) -> pa.Buffer:
    """A table as Parquet; equal tables give equal bytes.

    Args:
        table: what to write.
        options: of `pyarrow.parquet.write_table`, in place of the default zstd and row groups of 16,384 rows.
    """
    sink = pa.BufferOutputStream()
    defaults = {'compression': 'zstd', 'row_group_size': ROW_GROUP_ROWS, 'store_schema': False}
    pq.write_table(table.combine_chunks(), sink, **{**defaults, **options})  # pages are cut where chunks are
    return sink.getvalue()


def write_table(uri: str, table: pa.Table, **options: Any) -> int:
    """Write a table as Parquet (options as in `table_bytes`); returns the file's size in bytes."""
    return write_bytes(uri, table_bytes(table, **options))


def read_table(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns.

    Raises:
        OSError: the file is missing or is not readable Parquet; the message names it.
    """
    filesys, path = filesystem(uri)
    try:
        with filesys.open_input_file(path) as file:
            return pq.ParquetFile(file).read(columns=None if columns is None else list(columns))
    except (pa.ArrowInvalid, OSError) as e:
        raise OSError(f'cannot read {uri}: {e}') from e


def parse_table(content: bytes | pa.Buffer, columns: Sequence[str]) -> pa.Table:
    """Some columns of a Parquet file that was read."""
    return pq.ParquetFile(pa.BufferReader(content)).read(columns=list(columns))


def check_writable(uri: str) -> None:
    """Check before long work that a local file can be written there, and leave no trace. Buckets are not checked.

    Raises:
        InputError: a folder of this name, or a place that takes no file; the message says why.
    """
    filesys, path = filesystem(uri)
    if not isinstance(filesys, arrow_fs.LocalFileSystem):
        return
    if os.path.isdir(path):
        raise InputError(f'{uri} is a folder; give a file')
    probe = f'{path}.{uuid.uuid4().hex}.probe'
    missing = [str(folder) for folder in Path(path).parents if not folder.exists()]
    try:
        write_bytes(probe, b'')
        os.unlink(probe)
    except OSError as e:
        number = errno.ENOTDIR if e.errno == errno.EEXIST else e.errno  # a file where a folder should be
        raise InputError(f'cannot write {uri}: {os.strerror(number) if number else e}') from e
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
