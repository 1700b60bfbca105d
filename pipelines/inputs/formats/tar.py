"""WebDataset tar shards: `dir/000017.jpg`, `dir/000017.json`, ... are one record, read as a stream.

Nothing is extracted to disk; devices are skipped. An image that is a link is rejected: it has no bytes of its own (GNU
tar writes the second name of a file as a link), and a stream cannot go back to its target.
"""

from __future__ import annotations

import dataclasses
import json
import re
import struct
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines import records
from pipelines.inputs.formats import common
from pipelines.inputs.formats.common import MetadataError
from pipelines.inputs.options import ReadOptions
from pipelines.records import Record, Reject, Source

# The key ends at the first dot of the file name, as WebDataset has it. `._x.jpg` (left by macOS) has no key.
_MEMBER = re.compile(r'(?:\./)*((?:.*/)?[^./]+)\.([^/]+)', re.DOTALL)
_METADATA = ('json', 'txt', 'cls')
_HEADER_TYPES = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_MAX_ENDS = 16  # how often a reader may find nothing more to read
_DAMAGE = (*common.DAMAGE, tarfile.TarError, ValueError, ArithmeticError, LookupError, struct.error)


class _StrictTarInfo(tarfile.TarInfo):
    """Raises for a damaged or missing header after the first one, which `tarfile` takes for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictTarInfo:
        assert isinstance(tarfile_, _StrictTar)
        try:
            info = super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tarfile_.ended = True
            raise
        except tarfile.EmptyHeaderError as e:  # type: ignore[attr-defined]
            if tarfile_.ended:
                raise
            raise tarfile.ReadError('the archive ends without an end mark') from e
        except tarfile.HeaderError as e:
            raise tarfile.ReadError(f'damaged member header: {e}') from e
        tarfile_.ended = False
        return info

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictTarInfo:
        """Raises for a header that continues in an oversized member, which `tarfile` would read into memory."""
        info = super().frombuf(buf, encoding, errors)
        if info.type in _HEADER_TYPES and info.size > common.MAX_METADATA_BYTES:
            raise tarfile.ReadError(f'a member header of {info.size} bytes; the limit is {common.MAX_METADATA_BYTES}')
        return info


class _StrictTar(tarfile.TarFile):
    tarinfo = _StrictTarInfo
    ended = False  # whether the last block read was an end mark; archives may follow each other


@dataclasses.dataclass
class _Sample:
    """The members of one record, as far as they were read."""

    key: str
    suffixes: set[str] = dataclasses.field(default_factory=set)
    parts: dict[str, bytes] = dataclasses.field(default_factory=dict)
    links: dict[str, str] = dataclasses.field(default_factory=dict)  # suffix -> target, of members that are links
    image: str | None = None  # suffix of the image member
    image_name: str = ''
    image_link: str = ''  # target of the image member, if that is a link
    too_large: tuple[int, int] | None = None  # size and limit of a member that goes beyond


def read(shard: str, options: ReadOptions) -> Iterator[Record | Reject]:
    """The records of a tar shard, in its order."""
    return common.rejecting_damage(_records(shard, options), shard, _DAMAGE)


def read_member(shard: str, member: str) -> bytes | None:
    """The bytes of the first member of that name; None if there is none."""
    with common.open_stream(shard) as stream, _open(stream) as tar:
        for info in _members(tar):
            if info.name == member and info.isreg():
                return _bytes(tar, info)
    return None


class _Pieces:
    """The stream that `tarfile` reads from.

    It stops `tarfile` from asking on and on after the end, when a member's size is false.
    """

    def __init__(self, stream: Any):
        self.stream = stream
        self.ends = 0

    def read(self, size: int) -> bytes:
        # `read1` gives what was read before a damaged spot, where `read` gives nothing but the error.
        piece = self.stream.read1(size)
        self.ends += not piece
        if self.ends > _MAX_ENDS:
            raise EOFError('the archive ends within a member')
        return piece


def _open(stream: Any) -> tarfile.TarFile:
    # `ignore_zeros` reads on after an end mark: `cat a.tar b.tar` is a shard too, and a gzip's checksum comes last.
    pieces: Any = _Pieces(stream)
    return _StrictTar.open(
        fileobj=pieces, mode='r|', bufsize=1 << 16, ignore_zeros=True, encoding='utf-8', errors='backslashreplace'
    )


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Files and links."""
    while (info := tar.next()) is not None:
        if info.isreg() or info.islnk() or info.issym():
            yield info
        tar.members.clear()  # type: ignore[attr-defined] # else it keeps every member: a leak in long shards


def _bytes(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    assert file is not None  # it is a regular file
    return file.read()


def _records(shard: str, options: ReadOptions) -> Iterator[Record | Reject]:
    for sample in _samples(shard, options):
        record = _record(sample, shard, options)
        if record is not None:
            yield record


def _samples(shard: str, options: ReadOptions) -> Iterator[_Sample]:
    """Adjacent members with one key.

    In a shard that was cut short, the last sample may lack members, so it counts only if it has all the suffixes of the
    sample before it.
    """
    sample = before = None
    with common.open_stream(shard) as stream:
        try:
            with _open(stream) as tar:
                for info in _members(tar):
                    match = _MEMBER.fullmatch(info.name)
                    if match is None:
                        continue
                    key, suffix = match[1], match[2].lower()
                    if sample is None or key != sample.key or suffix in sample.suffixes:
                        if sample is not None:
                            yield sample
                        sample, before = _Sample(key), sample
                    _add(sample, suffix, tar, info, options)
        except _DAMAGE:
            if sample is not None and before is not None and sample.suffixes >= before.suffixes:
                yield sample
            raise
    if sample is not None:
        yield sample


def _add(sample: _Sample, suffix: str, tar: tarfile.TarFile, info: tarfile.TarInfo, options: ReadOptions) -> None:
    wanted = {options.image.lower().lstrip('.')} if options.image else common.IMAGE_SUFFIXES
    is_image = sample.image is None and suffix in wanted
    if not info.isreg():
        sample.links[suffix] = info.linkname
        if is_image and not sample.image_link:
            sample.image_name, sample.image_link = info.name, info.linkname
    elif is_image or suffix in _METADATA or suffix == options.caption:
        if is_image:
            sample.image, sample.image_name = suffix, info.name
        limit = common.MAX_RECORD_BYTES if is_image else common.MAX_METADATA_BYTES
        if info.size > limit:
            sample.too_large = info.size, limit
        else:
            sample.parts[suffix] = _bytes(tar, info)
    sample.suffixes.add(suffix)  # last: a member that could not be read is not there


def _record(sample: _Sample, shard: str, options: ReadOptions) -> Record | Reject | None:
    """None for members that are no record: neither an image nor what goes with one."""
    source = Source(shard, sample.image_name or sample.key)
    if sample.too_large:
        size, limit = sample.too_large
        return common.too_large(source, size, limit=limit)
    if sample.image is None and sample.image_link:
        return Reject(source, records.MISSING_IMAGE, f'a link to {sample.image_link}'[:200])
    if sample.image is None and not any(_is_record_member(suffix) for suffix in sample.suffixes):
        return None
    try:
        for suffix in ('json', 'cls'):
            if suffix in sample.links:
                raise MetadataError(f'the {suffix} member is a link to {sample.links[suffix]}')
        info = _json(sample.parts.get('json'))
        labels = _labels(info, sample.parts.get('cls'), options.labels)
    except MetadataError as e:
        return Reject(source, records.BROKEN_METADATA, common.one_line(e))
    image_id = info.get(options.image_id or 'id', None if options.image_id else sample.key)
    if options.image_id == '__key__':
        image_id = sample.key
    caption = info.get(options.caption or 'caption', sample.parts.get(options.caption or 'txt'))
    data = None if sample.image is None else sample.parts[sample.image]
    return common.make_record(source, image_id, data, labels, caption)


def _is_record_member(suffix: str) -> bool:
    """Whether a member tells of a record: `json`, `cls`, or an image with a longer suffix, as in `photo.v2.jpg`."""
    return suffix in ('json', 'cls') or suffix.rpartition('.')[2] in common.IMAGE_SUFFIXES


def _json(data: bytes | None) -> Mapping[str, object]:
    if data is None:
        return {}
    try:
        info = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise MetadataError(f'the json member cannot be read: {common.one_line(e)}') from e
    if not isinstance(info, dict):
        raise MetadataError(f'the json member holds a {type(info).__name__}, not an object')
    return info


def _labels(info: Mapping[str, object], cls: bytes | None, levels: tuple[str, ...]) -> Mapping[str, object]:
    known = info.get('labels')
    if not isinstance(known, dict):
        known = {} if known is None else {'labels': known}
    if cls is not None:
        known = {**known, 'class': known.get('class', cls)}
    return {level: known.get(level, info.get(level)) for level in levels} if levels else known
