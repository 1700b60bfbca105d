"""Augmentation: random views of training pictures, so that a hash learns what does not matter.

There are two recipes. `LOOK` makes near-duplicates: what happens to pictures when they are posted again. `TRAIN` makes
other pictures of the same kind, for training with labels. Pixels only; OpenCV loads at the first call.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from hashing_model.errors import InputError
from hashing_model.features import check_images

BORDERS = ('reflect', 'plain')
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in `features.canvas.to_gray`
_CUTOUT_GRAY = 127  # the value that backbones read as 0
_LEAST_SIDE = 8  # px: below it a picture says nothing
_LEAST_SIGMA = 0.2  # px: below it a blur changes nothing
_BEST_QUALITY = 95
_CHUNK = 16  # images per task of a thread
_DRAWS = (
    *('area', 'stretch', 'left', 'top', 'flip', 'rotates', 'angle', 'border'),
    *('brightness', 'contrast', 'saturation', 'red', 'green', 'blue', 'blurs', 'blur'),
    *('shrinks', 'shrink', 'compresses', 'quality', 'cuts', 'cut', 'cut_left', 'cut_top'),
)

Image = npt.NDArray[np.uint8]  # [S, S, 3]
Draws = dict[str, float]  # each of _DRAWS, uniform from 0 to 1


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What may happen to a picture, and how far; with all defaults, nothing does.

    A pair is (chance, extreme): the operation befalls this share of the pictures, with a strength drawn between none
    and the extreme.

    Args:
        area: least share of the picture's area that a random crop keeps; 1 for no crop.
        stretch: the crop's aspect ratio is between 1 / stretch and stretch; at least 1.
        rotate: chance; degrees, in either direction.
        border: what shows beyond the picture: `reflect` (its mirror image) or `plain` (black, white or a gray).
        flip: chance of a mirror image.
        color: brightness, contrast and saturation are multiplied by 1 - color to 1 + color each.
        tint: red, green and blue are multiplied by 1 - tint to 1 + tint each.
        blur: chance; standard deviation of a Gaussian as a share of the side.
        shrink: chance; the least side as a share of the input's, to which the picture is scaled down, and up again.
        jpeg: chance; the lowest JPEG quality, 1 to 95. Compressed while shrunken, as a small file would be.
        cutout: chance; the side of a gray square as a share of the picture's, from half of it.

    Raises:
        InputError: a chance, share or strength that is not possible.
    """

    area: float = 1.0
    stretch: float = 1.0
    rotate: tuple[float, float] = (0.0, 0.0)
    border: str = 'reflect'
    flip: float = 0.0
    color: float = 0.0
    tint: float = 0.0
    blur: tuple[float, float] = (0.0, 0.0)
    shrink: tuple[float, float] = (0.0, 1.0)
    jpeg: tuple[float, int] = (0.0, 95)
    cutout: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        pairs = ('rotate', 'blur', 'shrink', 'jpeg', 'cutout')
        chances = {name: getattr(self, name)[0] for name in pairs} | {'flip': self.flip}
        shares = {'area': self.area, 'shrink': self.shrink[1]}
        strengths = {'color': self.color, 'tint': self.tint, 'blur': self.blur[1], 'cutout': self.cutout[1]}
        wrong = [f'the chance of {k} is {v}; 0 to 1 is possible' for k, v in chances.items() if not 0 <= v <= 1]
        wrong += [f'{k} keeps {v}; above 0 to 1 is possible' for k, v in shares.items() if not 0 < v <= 1]
        wrong += [f'{k} is {v}; 0 to below 1 is possible' for k, v in strengths.items() if not 0 <= v < 1]
        if self.stretch < 1:
            wrong.append(f'stretch is {self.stretch}; 1 is the least')
        if not 0 <= self.rotate[1] <= 180:
            wrong.append(f'rotate is up to {self.rotate[1]} degrees; 0 to 180 is possible')
        if not 1 <= self.jpeg[1] <= 95:
            wrong.append(f'the JPEG quality is {self.jpeg[1]}; 1 to 95 is possible')
        if self.border not in BORDERS:
            wrong.append(f'border {self.border!r} is unknown; there are {", ".join(BORDERS)}')
        if wrong:
            raise InputError(wrong[0])


LOOK = Recipe(
    area=0.42,
    stretch=1.1,
    rotate=(0.5, 15),
    border='plain',
    color=0.35,
    tint=0.05,
    blur=(0.15, 0.015),
    shrink=(0.7, 0.12),
    jpeg=(0.5, 20),
)
TRAIN = Recipe(area=0.6, stretch=1.25, flip=0.5, color=0.2, tint=0.1, cutout=(0.5, 0.5))


def augment(
    images: npt.NDArray[np.uint8], rng: np.random.Generator, recipe: Recipe = LOOK, threads: int = 1
) -> npt.NDArray[np.uint8]:
    """One random view of each image.

    The i-th view depends on the i-th image, i and the state of `rng` only: not on the other images, nor on the number
    of threads.

    Args:
        images: uint8 [N, S, S, 3], RGB, as `hashing_model.images.decode.decode` makes them; left as they are.
        rng: source of all chances; moves on by the same number of draws whatever the recipe.
        recipe: what may happen.
        threads: threads that share the images, at least 1.

    Returns:
        uint8 [N, S, S, 3], a new array.

    Raises:
        InputError: images of another kind, or no thread.
    """
    check_images(images)
    if images.shape[1] != images.shape[2] or threads < 1:
        height, width = images.shape[1:3]
        raise InputError(f'images are {width} x {height} px, threads {threads}; squares and at least 1 are needed')
    draws = rng.random((len(images), len(_DRAWS)))
    views = np.empty(images.shape, np.uint8)

    def make(start: int) -> None:
        for i in range(start, min(start + _CHUNK, len(images))):
            views[i] = _view(np.ascontiguousarray(images[i]), dict(zip(_DRAWS, draws[i], strict=True)), recipe)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(make, range(0, len(images), _CHUNK)))
    return views


def _view(image: Image, draws: Draws, recipe: Recipe) -> Image:
    for step in (_warp, _recolor, _blur, _repost, _cut):
        image = step(image, draws, recipe)
    return image


def _warp(image: Image, draws: Draws, recipe: Recipe) -> Image:
    """Crop, rotate and flip in one interpolation."""
    import cv2

    side = len(image)
    area, ratio = _between(recipe.area, 1, draws['area']), recipe.stretch ** (2 * draws['stretch'] - 1)
    kept = np.minimum(1, np.sqrt([area * ratio, area / ratio]))  # of the width and of the height
    angle = np.radians((2 * draws['angle'] - 1) * recipe.rotate[1]) if draws['rotates'] < recipe.rotate[0] else 0.0
    mirror = -1 if draws['flip'] < recipe.flip else 1
    if kept.min() == 1 and angle == 0 and mirror == 1:
        return image
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * kept * [mirror, 1]
    centre = (kept / 2 + (1 - kept) * [draws['left'], draws['top']]) * side - 0.5
    matrix = np.column_stack(
        [turn, centre - turn @ np.full(2, side / 2 - 0.5)]
    )  # from the view's pixels to the picture's
    plain = recipe.border == 'plain'
    # A third of the plain borders is black, a third white, a third gray.
    gray = float(np.clip(_between(-255, 510, draws['border']), 0, 255))
    mode = cv2.BORDER_CONSTANT if plain else cv2.BORDER_REFLECT
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (side, side), flags=flags, borderMode=mode, borderValue=(gray, gray, gray))


def _recolor(image: Image, draws: Draws, recipe: Recipe) -> Image:
    """Saturation, brightness, contrast around the mean gray, then tint: one affine map of RGB."""
    import cv2

    if recipe.color == recipe.tint == 0:
        return image
    low, high = 1 - recipe.color, 1 + recipe.color
    saturation, brightness, contrast = (
        _between(low, high, draws[name]) for name in ('saturation', 'brightness', 'contrast')
    )
    tint = np.array([_between(1 - recipe.tint, 1 + recipe.tint, draws[name]) for name in ('red', 'green', 'blue')])
    matrix = saturation * np.eye(3) + (1 - saturation) * _LUMA
    mean = float(_LUMA @ cv2.mean(image)[:3])
    offset = np.full(3, (1 - contrast) * mean)
    affine = brightness * tint[:, None] * np.column_stack([contrast * matrix, offset])
    return cv2.transform(image, affine)


def _blur(image: Image, draws: Draws, recipe: Recipe) -> Image:
    import cv2

    sigma = draws['blur'] * recipe.blur[1] * len(image)
    if draws['blurs'] >= recipe.blur[0] or sigma < _LEAST_SIGMA:
        return image
    return cv2.GaussianBlur(image, (0, 0), sigma)


def _repost(image: Image, draws: Draws, recipe: Recipe) -> Image:
    """Scale down, compress, scale up."""
    import cv2

    side = len(image)
    shrinks = draws['shrinks'] < recipe.shrink[0]
    small = max(_LEAST_SIDE, round(side * recipe.shrink[1] ** draws['shrink'])) if shrinks else side
    if small < side:
        image = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
    if draws['compresses'] < recipe.jpeg[0]:
        quality = round(_between(recipe.jpeg[1], _BEST_QUALITY, draws['quality']))
        _, data = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None  # it was encoded a line above
        image = np.ascontiguousarray(decoded[..., ::-1])
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC) if small < side else image


def _cut(image: Image, draws: Draws, recipe: Recipe) -> Image:
    side = len(image)
    cut = round(side * recipe.cutout[1] * _between(0.5, 1, draws['cut']))
    if draws['cuts'] >= recipe.cutout[0] or cut == 0:
        return image
    left, top = (int(draws[name] * (side - cut + 1)) for name in ('cut_left', 'cut_top'))
    image = image.copy()
    image[top : top + cut, left : left + cut] = _CUTOUT_GRAY
    return image


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share
