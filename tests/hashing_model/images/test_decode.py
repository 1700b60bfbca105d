"""The decoder, over every mode and format that Pillow can write, and over damaged bytes of each."""

import io
import struct
import threading
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, features

from hashing_model.errors import InputError
from hashing_model.images import decode as images
from hashing_model.images.decode import ImageError, Resizing, decode

SAME = Resizing(32)


def encode(image, format_='PNG', **options):
    out = io.BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def quarters(width=32, height=32, mode='RGB'):
    """Red, green over blue, white: any rotation or mirroring shows."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = 255, 0, 0
    pixels[: height // 2, width // 2 :] = 0, 255, 0
    pixels[height // 2 :, : width // 2] = 0, 0, 255
    pixels[height // 2 :, width // 2 :] = 255, 255, 255
    return Image.fromarray(pixels).convert(mode)


def corners(pixels):
    n = len(pixels) // 4
    return [tuple(int(v) for v in pixels[y, x]) for y in (n, -n) for x in (n, -n)]


def reason_of(data, **options):
    with pytest.raises(ImageError) as e:
        decode(data, SAME, **options)
    assert '\n' not in e.value.detail
    assert '0x' not in e.value.detail
    return e.value.reason


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
QUARTERS = [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize('format_', ['PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000', 'ICO', 'AVIF'])
def test_formats(format_):
    feature = {'WEBP': 'webp', 'AVIF': 'avif', 'JPEG2000': 'jpg_2000'}.get(format_)
    if feature and not features.check(feature):
        pytest.skip(f'this Pillow has no {feature}')
    decoded = decode(encode(quarters(), format_), SAME)
    assert (decoded.width, decoded.height) == (32, 32)
    assert decoded.pixels.shape == (32, 32, 3)
    assert decoded.pixels.dtype == np.uint8
    np.testing.assert_allclose(corners(decoded.pixels), QUARTERS, atol=25)


@pytest.mark.parametrize(
    ('mode', 'format_'),
    [
        ('CMYK', 'TIFF'),
        ('CMYK', 'JPEG'),
        ('P', 'PNG'),
        ('P', 'GIF'),
        ('P', 'TIFF'),
        ('P', 'BMP'),
        ('RGBA', 'PNG'),
        ('RGBA', 'WEBP'),
        ('RGBA', 'TIFF'),
        ('RGBX', 'TIFF'),
        ('YCbCr', 'JPEG'),
        ('YCbCr', None),
        ('HSV', None),
    ],
)
def test_colour_modes(mode, format_):
    if format_ is None:  # no file format of these modes: the conversion alone
        np.testing.assert_allclose(corners(np.asarray(images._to_rgb(quarters(mode=mode)))), QUARTERS, atol=3)
    else:
        np.testing.assert_allclose(
            corners(decode(encode(quarters(mode=mode), format_), SAME).pixels), QUARTERS, atol=30
        )


@pytest.mark.parametrize(
    ('mode', 'format_'), [('1', 'PNG'), ('1', 'TIFF'), ('L', 'PNG'), ('L', 'JPEG'), ('LA', 'PNG'), ('L', 'WEBP')]
)
def test_grey_modes(mode, format_):
    grey = Image.new('L', (32, 32), 0)
    grey.paste(255, (16, 0, 32, 32))
    pixels = decode(encode(grey.convert(mode), format_), SAME).pixels
    np.testing.assert_allclose(corners(pixels), [(0,) * 3, WHITE] * 2, atol=3)


@pytest.mark.parametrize('format_', ['PNG', 'TIFF', 'PPM'])
def test_16_bit_grey_is_scaled_not_clipped(format_):
    values = np.repeat(np.array([[0, 257 * 10, 257 * 128, 65535]], np.uint16), 4, axis=0)
    pixels = decode(encode(Image.fromarray(values), format_), Resizing(4)).pixels
    assert pixels[0, :, 0].tolist() == [0, 10, 128, 255]


def test_big_endian_and_32_bit_grey():
    big = Image.frombytes('I;16B', (2, 1), struct.pack('>2H', 257 * 7, 65535))
    assert decode(encode(big, 'TIFF'), Resizing(2)).pixels[0, :, 0].tolist() == [7, 255]
    wide = Image.fromarray(np.array([[0, 2**31 - 1], [-5, 100 << 23]], np.int32))
    assert decode(encode(wide, 'TIFF'), Resizing(2)).pixels[..., 0].tolist() == [[0, 255], [0, 100]]


def test_float_pixels_are_refused():
    assert reason_of(encode(Image.new('F', (8, 8), 0.5), 'TIFF')) == images.UNSUPPORTED_MODE


def test_lab():
    srgb, lab = ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB')
    data = encode(ImageCms.applyTransform(quarters(), ImageCms.buildTransform(srgb, lab, 'RGB', 'LAB')), 'TIFF')
    np.testing.assert_allclose(corners(decode(data, SAME).pixels), QUARTERS, atol=25)


def test_adobe_inverted_cmyk_jpeg():
    """Pillow writes CMYK JPEGs inverted, as Adobe does, with Adobe's marker; without it they are as they are."""
    data = encode(Image.new('CMYK', (32, 32), (0, 255, 255, 0)), 'JPEG', quality=95)
    assert b'Adobe' in data
    np.testing.assert_allclose(decode(data, SAME).pixels[9, 9], RED, atol=8)


# Transparency


@pytest.mark.parametrize('mode', ['RGBA', 'LA'])
@pytest.mark.parametrize('format_', ['PNG', 'WEBP', 'TIFF'])
def test_alpha_is_laid_over_white(mode, format_):
    image = Image.new(mode, (32, 32), (0, 0) if mode == 'LA' else (0, 0, 0, 0))
    image.paste((0, 255) if mode == 'LA' else (0, 0, 0, 255), (0, 0, 16, 32))
    options = {'lossless': True} if format_ == 'WEBP' else {}
    assert corners(decode(encode(image, format_, **options), SAME).pixels) == [(0, 0, 0), WHITE] * 2


def test_half_transparency_and_no_bleeding():
    half = Image.new('RGBA', (32, 32), (0, 0, 0, 128))
    assert decode(encode(half), SAME).pixels[3, 3].tolist() == [127] * 3
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 4), np.uint8)
    noise[..., 3] = 0
    assert (decode(encode(Image.fromarray(noise)), SAME).pixels == 255).all()


def test_transparent_palettes():
    image = Image.new('P', (32, 32), 0)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    image.paste(1, (16, 0, 32, 16))
    for transparency in (0, bytes([0, 255, 255])):
        for format_ in ('PNG', 'GIF') if transparency == 0 else ('PNG',):
            pixels = decode(encode(image, format_, transparency=transparency), SAME).pixels
            assert corners(pixels) == [WHITE, RED, WHITE, WHITE]


def test_pa_and_premultiplied_modes():
    rgba = Image.new('RGBA', (8, 8), (255, 0, 0, 128))
    for image in (rgba.convert('RGBa'), rgba.convert('PA'), Image.new('La', (8, 8), (0, 128))):
        pixel = np.asarray(images._to_rgb(image))[0, 0]
        assert pixel[1] in (127, 128), image.mode


@pytest.mark.parametrize(('mode', 'colour'), [('RGB', RED), ('L', 7)])
def test_transparent_colour_without_alpha_channel(mode, colour):
    image = Image.new(mode, (32, 32), colour)
    image.paste(0, (0, 0, 16, 32))
    assert corners(decode(encode(image, transparency=colour), SAME).pixels) == [(0, 0, 0), WHITE] * 2


def test_transparent_colour_of_16_bits():
    grey = Image.fromarray(np.array([[1000, 0]], np.uint16))
    assert decode(encode(grey, transparency=1000), Resizing(2)).pixels[0, :, 0].tolist() == [255, 0]


# Animations, orientation


@pytest.mark.parametrize('format_', ['GIF', 'PNG', 'WEBP', 'TIFF'])
def test_the_first_frame_counts(format_):
    frames = [Image.new('RGB', (32, 32), c) for c in (RED, GREEN, BLUE)]
    data = encode(frames[0], format_, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(decode(data, SAME).pixels[5, 5], RED, atol=3)


UPRIGHT = {  # numpy's words for what a viewer does, as the EXIF standard has it
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize('orientation', [0, *range(1, 9), 9])
@pytest.mark.parametrize('format_', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('rule', images.RULES)
def test_orientation(orientation, format_, rule):
    image = quarters(640, 400)  # large enough for a JPEG to be drafted
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encode(image, format_, exif=exif), Resizing(32, rule))
    upright = UPRIGHT.get(orientation, UPRIGHT[1])(np.asarray(image))
    reference = decode(encode(Image.fromarray(upright)), Resizing(32, rule)).pixels.astype(int)
    assert (decoded.height, decoded.width) == upright.shape[:2]
    assert np.abs(decoded.pixels - reference).mean() < 4


def test_damaged_exif_does_not_cost_the_picture():
    data = encode(quarters(), 'JPEG', exif=b'Exif\0\0II*\0\xff\xff\xff\xff')
    np.testing.assert_allclose(corners(decode(data, SAME).pixels), QUARTERS, atol=25)


# Sizes


def test_rules():
    image = Image.new('RGB', (400, 200), RED)
    image.paste(BLUE, (100, 0, 300, 200))
    squash, crop, pad = (decode(encode(image), Resizing(40, rule)).pixels for rule in images.RULES)
    assert [tuple(squash[20, x]) for x in (2, 20, 37)] == [RED, BLUE, RED]
    assert (crop[:, 4:-4] == BLUE).all()
    assert [tuple(pad[y, 20]) for y in (5, 20, 35)] == [WHITE, BLUE, WHITE]
    assert tuple(pad[20, 2]) == RED


@pytest.mark.parametrize('rule', images.RULES)
@pytest.mark.parametrize('size', [(1, 1), (1, 3000), (3000, 2), (33, 31)])
def test_odd_shapes(rule, size):
    decoded = decode(encode(Image.new('RGB', size, BLUE)), Resizing(32, rule))
    assert (decoded.width, decoded.height) == size
    assert (decoded.pixels == BLUE).all(axis=-1).any()


def test_drafting_keeps_the_picture():
    noise = np.random.default_rng(1).integers(0, 256, (32, 48, 3), np.uint8)
    photo = Image.fromarray(noise).resize((1500, 1000), Image.Resampling.BICUBIC)
    jpeg = encode(photo, 'JPEG', quality=95)
    for rule in images.RULES:
        drafted = decode(jpeg, Resizing(64, rule))
        whole = decode(encode(Image.open(io.BytesIO(jpeg)), 'BMP'), Resizing(64, rule))
        assert (drafted.width, drafted.height) == (1500, 1000)
        assert np.abs(drafted.pixels.astype(int) - whole.pixels).mean() < 2


def test_resizing_is_checked_and_stored():
    assert Resizing.from_json(Resizing(160, 'pad').to_json()) == Resizing(160, 'pad')
    for size, rule in [(0, 'squash'), (True, 'squash'), (224.0, 'squash'), (224, 'stretch')]:
        with pytest.raises(InputError):
            Resizing(size, rule)


# Refusals


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (b'', images.EMPTY),
        (b'\0', images.NOT_AN_IMAGE),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', images.NOT_AN_IMAGE),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', images.NOT_AN_IMAGE),
        (b'BMW makes cars', images.NOT_AN_IMAGE),
        (b'<html>404</html>', images.NOT_AN_IMAGE),
        (b'\xff\xd8\xff\xe0', images.TRUNCATED),
        (b'\x89PNG\r\n\x1a\n', images.TRUNCATED),
    ],
)
def test_reasons(data, reason):
    assert reason_of(data) == reason


def test_pixel_limit_comes_from_the_header():
    data = encode(Image.new('1', (20_000, 20_000)), 'PNG')
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert reason_of(data) == images.TOO_MANY_PIXELS
        assert reason_of(encode(Image.new('1', (10_000, 9_500))), max_pixels=94_999_999) == images.TOO_MANY_PIXELS
        assert reason_of(encode(quarters()), max_pixels=1023) == images.TOO_MANY_PIXELS
        decode(encode(quarters()), SAME, max_pixels=1024)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_large_limit_passes_pillows_own():
    data = encode(Image.new('1', (200, 100)), 'PNG')
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 100
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert decode(data, SAME).width == 200
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def samples():
    """One small file of every format, and of the odd modes."""
    photo = Image.fromarray(np.random.default_rng(2).integers(0, 256, (24, 24, 3), np.uint8))
    frames = {'save_all': True, 'append_images': [quarters(24, 24)]}
    yield from (encode(photo, f) for f in ('PNG', 'JPEG', 'GIF', 'BMP', 'TIFF', 'PPM', 'ICO'))
    yield from (encode(photo, f, **frames) for f in ('PNG', 'GIF', 'TIFF'))
    yield encode(photo, 'JPEG', progressive=True)
    yield encode(photo.convert('CMYK'), 'JPEG')
    yield encode(photo, 'TIFF', compression='tiff_lzw')
    yield encode(photo.convert('P'), 'PNG', transparency=b'\0\1\2')
    for format_, feature in (('WEBP', 'webp'), ('JPEG2000', 'jpg_2000'), ('AVIF', 'avif')):
        if features.check(feature):
            yield encode(photo, format_)


SAMPLES = list(samples())


@pytest.mark.parametrize('number', range(len(SAMPLES)))
def test_cut_files_never_raise_anything_else(number):
    data, reasons = SAMPLES[number], set()
    whole = decode(data, Resizing(8)).pixels
    for length in range(0, len(data), max(1, len(data) // 60)):
        try:
            assert decode(data[:length], Resizing(8)).pixels.shape == whole.shape
        except ImageError as e:
            reasons.add(e.reason)
    assert images.TRUNCATED in reasons
    assert reasons <= {images.EMPTY, images.NOT_AN_IMAGE, images.TRUNCATED}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SAMPLES), st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=8))
def test_mutated_files_never_raise_anything_else(data, changes):
    mutated = bytearray(data)
    for position, value in changes:
        mutated[position % len(mutated)] = value
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        outcomes = {outcome_of(bytes(mutated)) for _ in range(2)}
    assert len(outcomes) == 1


def outcome_of(data):
    try:
        return decode(data, Resizing(8), max_pixels=1 << 20).pixels.tobytes()
    except ImageError as e:
        return str(e)


def test_a_half_jpeg_is_not_half_grey():
    data = encode(Image.effect_noise((200, 200), 90), 'JPEG')
    assert reason_of(data[: len(data) // 2]) == images.TRUNCATED


def test_threads_agree():
    expected = [decode(data, Resizing(8)).pixels for data in SAMPLES]
    wrong = []

    def work():
        for data, pixels in zip(SAMPLES * 3, expected * 3, strict=True):
            if not np.array_equal(decode(data, Resizing(8)).pixels, pixels):
                wrong.append(data)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
