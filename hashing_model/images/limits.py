"""Limits of what a picture may cost to decode. Decoders do not keep them by themselves, so they are checked before.

A file of a few kilobytes can claim millions of pixels, or make a decoder go through them a thousand times. Within these
limits a picture takes less than 1.1 GB and 10 s on one core, as measured with Pillow 12. Nothing here decodes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from PIL import Image

MAX_PIXELS = 100_000_000
MAX_SIDE = 65_535  # pixels
MAX_PIXELS_OF = {'WEBP': 50_000_000, 'AVIF': 50_000_000, 'JPEG2000': 25_000_000}  # they need 10 to 24 bytes a pixel
MAX_ICON_PIXELS = 1 << 20
MAX_PIXELS_IN_PYTHON = 4_000_000  # Pillow decodes run-length BMP, and PPM as text or of odd depth, without C
MAX_TILE_PIXELS = 1 << 26  # of a TIFF
MAX_SCANS = 64  # of a JPEG; each passes over all pixels, and progressive ones have about 10
MAX_COMMENT_BYTES = 1 << 17  # of a GIF; Pillow joins them in quadratic time
MAX_TIFF_HEADERS = 64
MAX_EXTRA_TAG_BYTES = 64 << 20  # that tags of a TIFF or an EXIF block may hold beyond the bytes that are there

_TILE_TAGS = 322, 323  # width, length
_TIFF_HEADERS = b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'  # little- and big-endian; + is BigTIFF
_TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_JPEG_MARKER = re.compile(rb'\xff[^\0\1\xff\xd0-\xd8]', re.DOTALL)  # with a length, but the end
_SCAN, _END = 0xDA, 0xD9
_NEXT_EXIF = re.compile(rb'\xff\xe1..Exif\0\0', re.DOTALL)


def pixel_problem(image: Image.Image, max_pixels: int = MAX_PIXELS) -> str | None:
    """The reason why an opened picture is too large to be decoded; None if it is not."""
    width, height = image.size
    limit = min(max_pixels, MAX_PIXELS_OF.get(image.format or '', max_pixels))
    if any(tile[0] in Image.DECODERS for tile in getattr(image, 'tile', ())):
        limit = min(limit, MAX_PIXELS_IN_PYTHON)
    if width * height > limit:
        return f'{width} x {height} pixels; the limit is {limit}'
    if max(width, height) > MAX_SIDE:
        return f'{width} x {height} pixels; a side may have {MAX_SIDE}'
    if image.format == 'TIFF':
        tile_width, tile_length = (image.tag_v2.get(tag, 1) for tag in _TILE_TAGS)  # type: ignore[attr-defined]
        if tile_width * tile_length > MAX_TILE_PIXELS:
            return f'tiles of more than {MAX_TILE_PIXELS} pixels'
    return None


def cost_problem(data: bytes) -> str | None:
    """The reason why Pillow would spend too long on parts of a file other than its pixels; None if it would not."""
    if data.startswith(b'\xff\xd8'):
        if data.count(b'\xff\xda') > MAX_SCANS and (scans := jpeg_scans(data)) > MAX_SCANS:
            return f'{scans} scans; the limit is {MAX_SCANS}'
        data = data[: next((at for kind, at in jpeg_segments(data) if kind == _SCAN), None)]  # EXIF is in the header
        if data.count(b'Exif\0\0') > 1:  # Pillow joins them
            data = _NEXT_EXIF.sub(b'', data)
    elif data.startswith(b'GIF8'):
        comments = gif_comment_bytes(data)
        if comments > MAX_COMMENT_BYTES:
            return f'{comments} bytes of comments; the limit is {MAX_COMMENT_BYTES}'
    elif data.startswith(b'\0\0\1\0'):
        pixels = max(icon_sizes(data), default=0)
        if pixels > MAX_ICON_PIXELS:
            return f'an icon of {pixels} pixels; the limit is {MAX_ICON_PIXELS}'
    headers = tiff_headers(data)
    if len(headers) > MAX_TIFF_HEADERS:
        return f'more than {MAX_TIFF_HEADERS} blocks of EXIF'
    extra = max((tag_bytes(data, at) for at in headers), default=0) - len(data)
    return f'tags that claim {extra} more bytes than there are' if extra > MAX_EXTRA_TAG_BYTES else None


def jpeg_scans(data: bytes) -> int:
    """The number of scans of a JPEG, without those of its preview or of anything behind it, such as a video."""
    return sum(kind == _SCAN for kind, _ in jpeg_segments(data))


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Kind and place of the segments of a JPEG up to its end."""
    at = 2
    while (match := _JPEG_MARKER.search(data, at)) and match[0][1] != _END:
        yield match[0][1], match.start()
        at = match.end() + int.from_bytes(data[match.end() : match.end() + 2], 'big')


def icon_sizes(data: bytes) -> Iterator[int]:
    """The pixels of each picture in an ICO file, by its own header, which Pillow reads only to decode it."""
    (count,) = struct.unpack('<H', data[4:6].ljust(2, b'\0'))
    for entry in range(6, min(6 + 16 * count, len(data) - 15), 16):
        (at,) = struct.unpack_from('<I', data, entry + 12)
        head = data[at : at + 24].ljust(24, b'\0')
        if head.startswith(b'\x89PNG'):
            width, height = struct.unpack_from('>II', head, 16)
        else:  # a BMP without file header, of twice the height for its mask
            width, height = struct.unpack_from('<HH' if head[0] == 12 else '<ii', head, 4)
            height //= 2
        yield abs(width * height)


def gif_comment_bytes(data: bytes) -> int:
    """The bytes of all comments before the first frame, length bytes included."""
    at = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0)
    total = 0
    while at < len(data) and data[at] not in b',;':
        is_extension, is_comment, start = data[at] == 0x21, data[at : at + 2] == b'!\xfe', at
        at += 2 if is_extension else 1
        while is_extension and at < len(data) and data[at]:
            at += data[at] + 1
        at += is_extension
        total += at - start if is_comment else 0
    return total


def tag_bytes(data: bytes, at: int = 0) -> int:
    """The bytes that all tags of the TIFF or EXIF block at `at` claim together, each tag at most the whole file."""
    order, is_big = '<' if data[at : at + 1] == b'I' else '>', data[at : at + 4] in _TIFF_HEADERS[2:]
    entry = struct.Struct(f'{order}HH{"QQ" if is_big else "II"}')
    try:
        start = at + struct.unpack_from(f'{order}{"Q" if is_big else "I"}', data, at + (8 if is_big else 4))[0]
        (count,) = struct.unpack_from(f'{order}{"Q" if is_big else "H"}', data, start)
    except (struct.error, OverflowError):
        return 0
    first = start + (8 if is_big else 2)
    count = min(count, (len(data) - first) // entry.size)
    entries = entry.iter_unpack(data[first : first + count * entry.size])
    return sum(min(_TAG_BYTES.get(kind, 0) * values, len(data)) for _, kind, values, _ in entries)


def tiff_headers(data: bytes) -> list[int]:
    """Places where a TIFF, or an EXIF block in a picture of any format, may begin.

    Stops at one more than is allowed.
    """
    found: list[int] = []
    for header in _TIFF_HEADERS:
        at = data.find(header)
        while at >= 0 and len(found) <= MAX_TIFF_HEADERS:
            found.append(at)
            at = data.find(header, at + 1)
    return found
