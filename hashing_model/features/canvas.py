"""The canvas: the square picture that every hand-made feature looks at, and what they share on it.

A fixed size makes lengths in the features (cells, radii, wavelengths) fractions of the image, so that a copy
of an image at another resolution gets nearly the same values. Aspect ratio is not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from hashing_model.features import check_images

SIDE = 120  # px: divides into HOG's 5 cells, the colour grid's 3 and the shape pyramid's 4

FloatArray = npt.NDArray[np.float32]


def to_canvas(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Images uint8 [N, H, W, 3] resized to uint8 [N, 120, 120, 3]; raises InputError for anything else.

    Areas are averaged when an image shrinks and interpolated linearly when it grows. Canvases pass unchanged.
    """
    check_images(images)
    height, width = images.shape[1:3]
    if (height, width) == (SIDE, SIDE):
        return images
    how = cv2.INTER_AREA if height * width > SIDE * SIDE else cv2.INTER_LINEAR
    canvases = np.empty((len(images), SIDE, SIDE, 3), np.uint8)
    for image, canvas in zip(images, canvases, strict=True):
        canvas[:] = cv2.resize(np.ascontiguousarray(image), (SIDE, SIDE), interpolation=how)
    return canvases


def per_image(
    images: npt.NDArray[np.uint8], describe: Callable[[npt.NDArray[np.uint8]], FloatArray], dims: int
) -> FloatArray:
    """Apply `describe`, canvas uint8 [120, 120, 3] to [dims], to each image; returns float32 [N, dims].

    One image at a time, so that no image's values depend on its neighbours in the batch.
    """
    described = np.empty((len(images), dims), np.float32)
    for row, canvas in zip(described, to_canvas(images), strict=True):
        row[:] = describe(np.ascontiguousarray(canvas))
    return described


def to_gray(canvas: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Luminance uint8 [H, W] of an RGB canvas uint8 [H, W, 3] (ITU-R BT.601)."""
    return cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)


def gradients(gray: npt.NDArray[np.uint8]) -> tuple[FloatArray, FloatArray]:
    """Sobel gradient of a gray canvas: magnitude in gray levels per px, direction in degrees from 0 to 360.

    0 degrees points right and 90 down, towards the brighter side.
    """
    dx = cv2.Sobel(gray, cv2.CV_32F, 1, 0, scale=1 / 8)
    dy = cv2.Sobel(gray, cv2.CV_32F, 0, 1, scale=1 / 8)
    return cv2.cartToPolar(dx, dy, angleInDegrees=True)


def hellinger(counts: npt.NDArray[Any], floor: float = 1e-6) -> FloatArray:
    """Square root of the L1-normalised counts, so that Euclidean distance is Hellinger's; all 0 stays all 0.

    Args:
        counts: non-negative, any shape.
        floor: least total to divide by, so that a nearly empty histogram is not blown up.
    """
    return np.sqrt(counts / max(float(counts.sum()), floor)).astype(np.float32)
