"""Colour: how much of which colour there is (HSV histogram), and roughly where (moments over a grid)."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from hashing_model.features.canvas import SIDE, FloatArray, hellinger, per_image

HUES, SATURATIONS, VALUES, GRAYS = 12, 3, 3, 8
GRID = 3
HISTOGRAM_DIMS = HUES * SATURATIONS * VALUES + GRAYS
DIMS = HISTOGRAM_DIMS + GRID * GRID * 3 * 3

_DULL, _DARK = 48, 32  # of 255: below this saturation or value a pixel is gray, and its hue is noise


def color(images: npt.NDArray[np.uint8]) -> FloatArray:
    """HSV histogram of the whole image, then colour moments over a 3 x 3 grid.

    Histogram: Swain and Ballard, "Color Indexing", IJCV 1991; 12 hues (the first centred on red) x 3
    saturations x 3 values, and 8 grays for pixels without a clear hue, as one Hellinger vector. Moments:
    Stricker and Orengo, "Similarity of Color Images", SPIE 1995; mean, standard deviation and cube root of
    the third central moment, here in CIELAB, where distances follow the eye and no channel is an angle.

    Args:
        images: uint8 [N, H, W, 3], RGB, sides at least 32 px.

    Returns:
        float32 [N, 197]: 108 colours (hue, saturation, value), 8 grays, then means, deviations and
        skewnesses, each by cell and channel (L, a, b), as fractions of the channel's range.

    Raises:
        InputError: images of another kind.
    """
    return per_image(images, _color, DIMS)


def _color(canvas: npt.NDArray[np.uint8]) -> FloatArray:
    return np.concatenate([_histogram(canvas), _grid_moments(canvas)])


def _histogram(canvas: npt.NDArray[np.uint8]) -> FloatArray:
    hsv = cv2.cvtColor(canvas, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += 128 // HUES  # half a bin, modulo 256: red would lie on the edge of two bins otherwise
    vivid = ((hsv[..., 1] >= _DULL) & (hsv[..., 2] >= _DARK)).astype(np.uint8)
    ranges = [0, 256, _DULL, 256, _DARK, 256]
    colors = cv2.calcHist([hsv], [0, 1, 2], vivid, [HUES, SATURATIONS, VALUES], ranges)
    grays = cv2.calcHist([hsv], [2], 1 - vivid, [GRAYS], [0, 256])
    return hellinger(np.concatenate([colors.ravel(), grays.ravel()]))


def _grid_moments(canvas: npt.NDArray[np.uint8]) -> FloatArray:
    lab = cv2.cvtColor(canvas, cv2.COLOR_RGB2LAB).astype(np.float32) / 255
    mean = _cell_means(lab)
    centred = lab - cv2.resize(mean, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    squares = centred * centred
    deviation = np.sqrt(_cell_means(squares))
    skewness = np.cbrt(_cell_means(squares * centred))
    return np.concatenate([mean.ravel(), deviation.ravel(), skewness.ravel()])


def _cell_means(picture: FloatArray) -> FloatArray:
    """Means of float32 [120, 120, 3] over the grid's cells: [3, 3, 3]."""
    return cv2.resize(picture, (GRID, GRID), interpolation=cv2.INTER_AREA)
