"""Image files, each one a record: the id is its path below the folder, and folder names may be its labels."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

from hashing_model.errors import InputError
from pipelines import records
from pipelines.inputs.formats import common
from pipelines.inputs.opening import open_input
from pipelines.inputs.options import ReadOptions
from pipelines.records import Record, Reject, Source

LEVELS = ('coarse', 'fine')

_UNREADABLE = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
)


def read(root: str, paths: Sequence[str], options: ReadOptions) -> Iterator[Record | Reject]:
    """The records of image files below one folder; a source's shard is the folder, its member the path below it.

    A file that is missing, forbidden or on a bad disk costs one image, so it is a reject and not an error.
    """
    for path in paths:
        member = relative(root, path)
        try:
            member.encode('utf-8')
        except UnicodeEncodeError:
            printable = member.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')
            yield Reject(Source(root, printable), records.UNREADABLE_FILE, 'the file name is not UTF-8')
            continue
        yield _read_file(Source(root, member), path, options)


def read_file(path: str) -> bytes:
    """The bytes of a file; at most one byte more than a record may have, so that larger files are noticed."""
    with open_input(path) as file:
        return file.read(common.MAX_RECORD_BYTES + 1)


def relative(root: str, path: str) -> str:
    """The path below a folder, with `/` between its parts.

    >>> relative('photos', 'photos/cats/1.jpg'), relative('', '1.jpg')
    ('cats/1.jpg', '1.jpg')
    """
    return path[len(root) :].lstrip('/') if root else path


def folder_labels(member: str, options: ReadOptions) -> dict[str, object]:
    """The names of the folders that a file lies in, by label level; fewer folders give fewer labels.

    >>> folder_labels('clothing/shoes/1.jpg', ReadOptions(labels_from='folders'))
    {'coarse': 'clothing', 'fine': 'shoes'}

    Raises:
        InputError: the file lies deeper than there are levels.
    """
    if options.labels_from != 'folders':
        return {}
    folders, levels = member.split('/')[:-1], options.labels or LEVELS
    if len(folders) > len(levels):
        raise InputError(
            f'{member} lies {len(folders)} folders deep, but there are {len(levels)} label levels: {", ".join(levels)}'
        )
    return dict(zip(levels, folders, strict=False))


def _read_file(source: Source, path: str, options: ReadOptions) -> Record | Reject:
    try:
        data = read_file(path)
    except Exception as e:
        if not _is_unreadable(e):
            raise
        return Reject(source, records.UNREADABLE_FILE, common.failure_reason(e), source.member)
    return common.make_record(source, source.member, data, folder_labels(source.member, options), None)


def _is_unreadable(error: Exception) -> bool:
    """Whether a file that could not be read will not be readable at the next attempt either."""
    if isinstance(error, OSError) and error.errno in _UNREADABLE:
        return True
    return getattr(error, 'code', None) in (403, 404)  # the clients of object stores
