"""Image bytes to a small RGB array: the one decoder for training, building and querying.

A model's codes are comparable only when every picture went through the same steps, so `Resizing` is stored with
the model and nothing else in the project opens a picture. Nothing here touches a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from hashing_model.errors import InputError
from hashing_model.images.limits import MAX_PIXELS, cost_problem, pixel_problem

# Why bytes could not be decoded. Short constants: they are counted, stored in Parquet and grouped by.
EMPTY = 'empty'
NOT_AN_IMAGE = 'not_an_image'
TRUNCATED = 'truncated'  # cut short or damaged: the format is known, the pixels cannot be had
TOO_MANY_PIXELS = 'too_many_pixels'
TOO_COSTLY = 'too_costly'  # made to exhaust a decoder, see `limits.py`
UNSUPPORTED_MODE = 'unsupported_mode'

RULES = ('squash', 'crop', 'pad')

# The formats tried, in this order. Pillow knows more, some of which start other programs (EPS) or are rarely pictures.
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF', 'PPM', 'JPEG2000', 'ICO')
# Bytes that cannot be chance: what starts so and does not open is a damaged picture, anything else is none.
_SIGNATURE = re.compile(
    rb'\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP|II\*\0|MM\0\*|.{4}ftypavi[fs]|\0\0\0\x0cjP  |\0\0\x01\0',
    re.DOTALL,
)
_ORIENTATION_TAG = 0x0112
_EXIF_AS_TEXT, _MAX_EXIF_AS_TEXT = 'Raw profile type exif', 1 << 17  # in old PNGs, compressed
_JPEG = 'JPEG', 'MPO'
_LARGE_BYTES = 320_000_000  # pictures that may need more are decoded one at a time, or threads would add their memory
_TILE = 2048  # pixels on each side
_PIECE_BYTES = 64 << 20  # glibc maps what is above 32 MiB
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_pillow_globals = threading.Lock()


def _set_up_pillow() -> None:
    """Keep Pillow quiet, and let it give memory back.

    A damaged picture is reported by its `ImageError`; Pillow would also warn and log it, and libtiff print it. Blocks
    of this size go back to the system when they are freed, while each thread would keep smaller ones.
    """
    Image.core.set_block_size(_PIECE_BYTES)
    warnings.filterwarnings('ignore', category=UserWarning, module=r'PIL\.')
    logging.getLogger('PIL').setLevel(logging.CRITICAL)
    with contextlib.suppress(OSError, AttributeError):  # a Pillow without libtiff, or with one inside
        pillow = ctypes.CDLL(Image.core.__file__)
        for kind in ('Error', 'Warning'):
            getattr(pillow, f'TIFFSet{kind}Handler')(None)


_set_up_pillow()


class ImageError(Exception):
    """Bytes that are no usable picture.

    Attributes:
        reason: a constant of this module.
        detail: one short line for people; the same bytes always give the same line.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f'{self.reason}: {self.detail}'


@dataclasses.dataclass(frozen=True)
class Resizing:
    """How a picture of any shape becomes a square; part of the model.

    Args:
        size: side of the square in pixels, 1 to 4096.
        rule: `squash` (the whole picture, its shape not kept), `crop` (the shorter side fills the square, the middle
            is kept) or `pad` (the longer side fills the square, white borders).

    Raises:
        InputError: a size or rule that is not possible.
    """

    size: int
    rule: str = 'squash'

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 1 <= self.size <= 4096:
            raise InputError(f'image size {self.size!r} is not an integer from 1 to 4096')
        if self.rule not in RULES:
            raise InputError(f'resizing rule {self.rule!r} is unknown; there are {", ".join(RULES)}')

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Resizing:
        """Inverse of `to_json`."""
        return cls(value['size'], value['rule'])

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {'size': self.size, 'rule': self.rule}

    def scaled(self, width: float, height: float) -> tuple[int, int]:
        """Width and height in pixels to which the rule scales a whole picture.

        >>> [Resizing(100, rule).scaled(400, 200) for rule in RULES]
        [(100, 100), (200, 100), (100, 50)]
        """
        if self.rule == 'squash':
            return self.size, self.size
        side = min(width, height) if self.rule == 'crop' else max(width, height)
        return max(1, round(width * self.size / side)), max(1, round(height * self.size / side))


@dataclasses.dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded picture.

    Attributes:
        pixels: RGB, uint8, shape [size, size, 3].
        width: of the whole picture as it is meant to be seen, in pixels.
        height: likewise.
    """

    pixels: np.ndarray
    width: int
    height: int


def decode(data: bytes, resizing: Resizing, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode one picture: upright, transparency over white, first frame, 8-bit RGB, resized.

    Safe to call from several threads.

    Args:
        data: the bytes of an image file.
        resizing: the shape wanted.
        max_pixels: pictures with more pixels are refused by their header, before memory is spent on them.

    Raises:
        ImageError: and nothing else, whatever the bytes.
    """
    if not data:
        raise ImageError(EMPTY, 'zero bytes')
    image = _open(data, max_pixels)
    try:
        with _without_bomb_check() if _is_large(image) else contextlib.nullcontext():
            (width, height), extent = _load(image, resizing, max_pixels)
            orientation = _orientation(image)
            small = _scale(_to_rgb(image), extent, resizing)
        if orientation in _UPRIGHT:
            small = small.transpose(_UPRIGHT[orientation])
        pixels = np.array(_pad(small, resizing.size))
    except ImageError:
        raise
    except MemoryError as e:
        raise ImageError(TOO_MANY_PIXELS, f'no memory for {image.width} x {image.height} pixels') from e
    except Exception as e:  # Pillow's decoders raise nearly every built-in exception on damaged bytes.
        raise ImageError(TRUNCATED, f'{image.format}: {_one_line(e)}') from e
    if orientation >= 5:
        width, height = height, width
    return Decoded(pixels, width, height)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header; no pixel is decoded yet."""
    problem = cost_problem(data)
    if problem:
        raise ImageError(TOO_COSTLY, problem)
    try:
        with _without_bomb_check():
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Exception as e:
        if not _SIGNATURE.match(data):
            raise ImageError(NOT_AN_IMAGE, f'no known image format; the first bytes are {data[:8]!r}') from e
        unknown = isinstance(e, UnidentifiedImageError)  # its message holds the address of an object
        raise ImageError(TRUNCATED, 'the header is damaged or cut short' if unknown else _one_line(e)) from e
    _check_pixels(image, max_pixels)
    return image


@contextlib.contextmanager
def _without_bomb_check() -> Iterator[None]:
    """Switch off Pillow's own limit, a global of its module, as `max_pixels` is the limit here.

    Only one thread may do so at a time.
    """
    with _pillow_globals:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _is_large(image: Image.Image) -> bool:
    bytes_per_pixel = 6 if image.format in _JPEG else 20  # at most; a progressive JPEG, a WebP
    return image.width * image.height * bytes_per_pixel > _LARGE_BYTES


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    if image.width < 1 or image.height < 1:
        raise ImageError(NOT_AN_IMAGE, f'{image.width} x {image.height} pixels')
    problem = pixel_problem(image, max_pixels)
    if problem:
        raise ImageError(TOO_MANY_PIXELS, problem)


def _load(image: Image.Image, resizing: Resizing, max_pixels: int) -> tuple[tuple[int, int], tuple[float, float]]:
    """Decode the pixels.

    Returns:
        Width and height that the file has before orientation, and how far the picture reaches in `image`.
    """
    if image.format in _JPEG:
        size = image.size
        # libjpeg scales by 1/2, 1/4, 1/8 while decoding, at a fraction of the cost. Twice the wanted size is left
        # for the good filter. 1500 / 8 gives 188 pixels, of which the picture fills 187.5.
        width, height = resizing.scaled(*size)
        drafted = image.draft(None, (2 * width, 2 * height))
        image.load()
        return size, drafted[1][2:] if drafted else size
    image.load()
    _check_pixels(image, max_pixels)
    return image.size, image.size


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8; 1 where the EXIF block is damaged, since the pixels are not.

    Pillow has already turned TIFF and AVIF upright and says 1.
    """
    if len(image.info.get(_EXIF_AS_TEXT, '')) > _MAX_EXIF_AS_TEXT:
        del image.info[_EXIF_AS_TEXT]
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB. A large picture is converted tile by tile, because the conversion makes several copies."""
    if image.mode == 'F':
        raise ImageError(
            UNSUPPORTED_MODE, f'{image.format} of floating-point pixels: nothing says which value is white'
        )
    is_wide = image.mode == 'I' and image.getextrema()[1] > 65535  # type: ignore[operator]
    if max(image.size) <= _TILE:
        return _tile_to_rgb(image, is_wide)
    flat = Image.new('RGB', image.size)
    for top in range(0, image.height, _TILE):
        for left in range(0, image.width, _TILE):
            tile = image.crop((left, top, min(left + _TILE, image.width), min(top + _TILE, image.height)))
            flat.paste(_tile_to_rgb(tile, is_wide), (left, top))
    return flat


def _tile_to_rgb(image: Image.Image, is_wide: bool) -> Image.Image:
    """The pixels in RGB; `is_wide` tells integers of 32 bits from those of 16."""
    mode = image.mode
    if mode.startswith('I'):
        return _grey_to_8_bits(image, is_wide).convert('RGB')
    if mode == 'LAB':
        return _lab_to_rgb(image)
    try:
        return _over_white(image) if image.has_transparency_data else image.convert('RGB')
    except ValueError as e:
        raise ImageError(UNSUPPORTED_MODE, f'mode {mode}: {_one_line(e)}') from e


def _grey_to_8_bits(image: Image.Image, is_wide: bool) -> Image.Image:
    """16-bit grey to 8 bits, 65535 being white; Pillow's own conversion would turn everything above 255 to white.

    Mode I holds 16-bit values (PNG, PGM) or 32-bit ones (TIFF); the latter keep their top 8 bits below the sign.
    """
    values = np.asarray(image).astype(np.int64)
    transparent = image.info.get('transparency')
    if isinstance(transparent, int):
        values[values == transparent] = 65535
    grey = values >> 23 if is_wide else (np.maximum(values, 0) + 128) // 257
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile('LAB'), ImageCms.createProfile('sRGB')
    rgb = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, 'LAB', 'RGB'))
    assert rgb is not None  # None is for in-place transforms only
    return rgb


def _over_white(image: Image.Image) -> Image.Image:
    """Put a transparent picture over white.

    This comes before resizing, which would mix the meaningless colours of transparent pixels into their neighbours.
    """
    transparent = image.info.get('transparency')
    if image.mode == 'RGB' and isinstance(transparent, tuple) and max(transparent) > 255:
        # A 16-bit PNG: Pillow keeps the top 8 bits of the pixels, but all 16 of the transparent colour.
        image.info['transparency'] = tuple(value >> 8 for value in transparent)
    rgba = image.convert('RGBA') if image.mode != 'La' else image.convert('LA').convert('RGBA')
    flat = Image.new('RGB', rgba.size, 'white')
    flat.paste(rgba, mask=rgba.getchannel('A'))
    return flat


def _scale(image: Image.Image, extent: tuple[float, float], resizing: Resizing) -> Image.Image:
    """Scale the first `extent` pixels (width, height), of which the rule `crop` keeps the middle square."""
    width, height = extent
    box, size = (0.0, 0.0, width, height), resizing.scaled(width, height)
    if resizing.rule == 'crop':
        side = min(extent)
        left, top = (width - side) / 2, (height - side) / 2
        box, size = (left, top, left + side, top + side), (resizing.size, resizing.size)
    # `reducing_gap` first averages whole blocks of pixels where a picture is much too large: faster, hardly visible.
    return image.resize(size, Image.Resampling.LANCZOS, box, reducing_gap=3.0)


def _pad(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    square = Image.new('RGB', (size, size), 'white')
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square


def _one_line(error: Exception) -> str:
    text = ' '.join(re.sub(r'<[^<>]* at 0x[0-9a-f]+>', 'the data', str(error)).split())
    return text[:200] or type(error).__name__
