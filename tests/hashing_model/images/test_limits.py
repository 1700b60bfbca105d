"""Pictures made to exhaust a decoder are refused before it starts, and honest ones are not."""

import struct

import numpy as np
import pytest
from PIL import Image

from hashing_model.images import decode as images
from hashing_model.images import limits
from hashing_model.images.decode import ImageError, Resizing, decode
from hashing_model.images.limits import (
    MAX_COMMENT_BYTES,
    MAX_SCANS,
    cost_problem,
    gif_comment_bytes,
    jpeg_scans,
    tag_bytes,
)
from tests.helpers.make_hostile import (
    apng,
    blank_png,
    bmp,
    commented_gif,
    encode,
    ico,
    jpeg_with,
    many_frames,
    many_scans,
    overlapping_tags,
    tiff,
    tiff_image,
)

SMALL = encode(Image.new('RGB', (32, 32), 'red'), 'JPEG')
JUMPS = b'\0\2\xff\xff' * 9


def outcome(data):
    try:
        return decode(data, Resizing(8)).pixels.shape
    except ImageError as e:
        return e.reason


@pytest.mark.parametrize(
    ('data', 'detail'),
    [
        (blank_png(70_000, 2), '70000 x 2 pixels; a side may have 65535'),
        (bmp(60_000, 100, JUMPS), '60000 x 100 pixels; the limit is 4000000'),
        (b'P3 3000 2000 255\n' + b'1 ' * 100, '3000 x 2000 pixels; the limit is 4000000'),
        (b'P6 3000 2000 254\n', '3000 x 2000 pixels; the limit is 4000000'),
        (tiff_image(more=[(322, 4, 1, 1 << 14), (323, 4, 1, 1 << 14), (324, 4, 1, 8)]), 'tiles of more than 67108864'),
    ],
)
def test_too_many_pixels_for_the_decoder_that_a_picture_needs(data, detail):
    with pytest.raises(ImageError) as e:
        decode(data, Resizing(8))
    assert e.value.reason == images.TOO_MANY_PIXELS
    assert e.value.detail.startswith(detail)


@pytest.mark.parametrize(('format_', 'limit'), limits.MAX_PIXELS_OF.items())
def test_formats_that_need_much_memory_have_limits_of_their_own(format_, limit, monkeypatch):
    data = encode(Image.new('RGB', (100, 90)), format_)
    monkeypatch.setitem(limits.MAX_PIXELS_OF, format_, 8_999)
    assert outcome(data) == images.TOO_MANY_PIXELS
    monkeypatch.setitem(limits.MAX_PIXELS_OF, format_, 9_000)
    assert outcome(data) == (8, 8, 3)
    assert limit < limits.MAX_PIXELS


def test_limits_are_those_of_the_pixels_that_are_decoded_without_c():
    assert outcome(b'P6 3000 2000 255\n' + bytes(18_000_000)) == (8, 8, 3)
    assert outcome(bmp(3_000, 2_000, bytes(6_000_000), compression=0)) == (8, 8, 3)
    assert outcome(bmp(100, 100, JUMPS)) == (8, 8, 3)


def test_scans():
    assert cost_problem(many_scans(MAX_SCANS + 1, (32, 32))).endswith(f'scans; the limit is {MAX_SCANS}')
    honest = many_scans(MAX_SCANS - 6, (32, 32))
    assert jpeg_scans(honest) == MAX_SCANS
    followed = honest + b'\xff\xda' * 1_000  # by a video, in which these bytes are chance
    preview = jpeg_with(b'preview' + many_scans(100, (8, 8)), honest)
    for data in (honest, followed, preview):
        assert outcome(data) == (8, 8, 3)
    assert [jpeg_scans(honest[:n]) for n in (0, 2, 3, 40)] == [0] * 4


def test_comments():
    assert outcome(commented_gif(MAX_COMMENT_BYTES // 2)) == images.TOO_COSTLY
    assert outcome(commented_gif(MAX_COMMENT_BYTES // 2 - 10)) == (8, 8, 3)
    data = commented_gif(10)
    assert gif_comment_bytes(data) == 2 + 20 + 1
    assert gif_comment_bytes(data[:-1] + many_frames(3)) == 23, 'those of later frames are not read'
    assert [gif_comment_bytes(data[:n]) for n in (5, 13, data.index(b'!') + 2)] == [0, 0, 3]


def test_tags_that_overlap():
    block = overlapping_tags(100, 1_000_000)
    assert tag_bytes(block) == 100_000_000
    assert tag_bytes(b'before' + block, 6) == 100_000_000
    small = tiff([(tag, 7, 60_000, 0) for tag in range(300, 5_000)])
    exif = b'Exif\0\0' + small
    for data in (
        block,
        tiff_image(more=[(tag, 7, 1 << 20, 0) for tag in range(700, 900)]) + bytes(1 << 20),
        blank_png(8, 8, (b'eXIf', block)),
        jpeg_with(exif, SMALL),
        jpeg_with(exif[:20], jpeg_with(b'Exif\0\0' + exif[20:], SMALL)),  # which Pillow joins
        tiff_image() + b'II*\0' * 100,
    ):
        assert outcome(data) == images.TOO_COSTLY


def test_bytes_of_tags():
    assert tag_bytes(tiff([(273, 4, 7, 0), (700, 1, 5, 0), (9, 99, 5, 0)], endian='>') + bytes(99)) == 33
    big = struct.pack('<4sHHQQHHQQ', b'II+\0', 8, 0, 16, 1, 273, 16, 3, 0)
    assert tag_bytes(big) == 24
    assert [tag_bytes(big[:n]) for n in (0, 3, 12, 20, 30)] == [0] * 5
    assert tag_bytes(tiff([(700, 7, 1 << 30, 0)])) == 26, 'no tag has more bytes than there are'


def test_icons_are_measured_by_the_pictures_in_them():
    large = blank_png(1_100, 1_000)
    bitmap = struct.pack('<IiiI', 40, 5_000, -5_000, 0) + bytes(50)
    old_bitmap = struct.pack('<IHHHH', 12, 2_000, 2_000, 1, 8) + bytes(50)
    for data, pixels in ((large, 1_100_000), (bitmap, 12_500_000), (old_bitmap, 2_000_000)):
        assert cost_problem(ico([(16, 16, data)])) == f'an icon of {pixels} pixels; the limit is 1048576'
        assert outcome(ico([(9, 9, blank_png(9, 9)), (16, 16, data)])) == images.TOO_COSTLY
    real = encode(Image.new('RGB', (256, 256), 'red'), 'ICO', bitmap_format='bmp')
    assert max(limits.icon_sizes(real)) == 256 * 256
    assert [list(limits.icon_sizes(real[:n])) for n in (4, 6, 20)] == [[]] * 3
    assert outcome(real) == (8, 8, 3)


def test_an_icon_within_an_icon_is_none():
    assert outcome(ico([(16, 16, ico([(16, 16, blank_png(16, 16))]))])) in (images.TOO_COSTLY, images.TRUNCATED)
    assert outcome(ico([(16, 16, blank_png(16, 16))] * 300)) == (8, 8, 3)


def test_frames_beyond_the_first_cost_nothing():
    for data in (encode(Image.new('P', (8, 8)), 'GIF')[:-1] + many_frames(20_000), apng(2_000)):
        assert outcome(data) == (8, 8, 3)


def test_a_text_of_exif_in_a_png_that_is_long_is_not_read():
    def rotated(length):
        block = tiff([(0x0112, 3, 1, 6)]) + bytes(length)
        text = b'Raw profile type exif\0\nexif\n%8d\n' % len(block) + block.hex().encode()
        return decode(blank_png(20, 10, (b'tEXt', text)), Resizing(8))

    assert (rotated(100).width, rotated(100).height) == (10, 20)
    assert (rotated(70_000).width, rotated(70_000).height) == (20, 10)


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P', '1', 'CMYK', 'I;16', 'I'])
def test_tiles_are_converted_as_the_whole(mode, monkeypatch):
    """Pictures larger than a tile, in modes that take several steps to RGB."""
    noise = np.random.default_rng(3).integers(0, 256, (90, 130, 4), np.uint8)
    if mode.startswith('I'):
        values = noise[..., 0].astype(np.uint16 if mode == 'I;16' else np.int32) * 257
        if mode == 'I':
            values[80, 120] = 1 << 30  # in the last tile: 32 bits are told by the whole picture
        image = Image.fromarray(values)
    else:
        image = Image.fromarray(noise).convert(mode)
    data = encode(image, 'TIFF' if mode in ('CMYK', 'I') else 'PNG')
    whole = decode(data, Resizing(64)).pixels
    monkeypatch.setattr(images, '_TILE', 32)
    np.testing.assert_array_equal(decode(data, Resizing(64)).pixels, whole)
