"""Edges: where in the image which edge directions lie (HOG), and which directions there are at all."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from skimage.feature import hog

from hashing_model.features.canvas import SIDE, FloatArray, gradients, hellinger, per_image, to_gray

HOG_BINS, CELLS, BLOCK = 9, 5, 2
DIRECTIONS = 24  # bins of 15 degrees, centred on 0, 15, 30 ...: the diagonals, frequent in pixels, lie inside a bin
HOG_DIMS = (CELLS - BLOCK + 1) ** 2 * BLOCK**2 * HOG_BINS
DIMS = HOG_DIMS + DIRECTIONS


def edges(images: npt.NDArray[np.uint8]) -> FloatArray:
    """Histograms of oriented gradients over 5 x 5 cells, then one histogram of gradient directions.

    HOG: Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection", CVPR 2005; 9 unsigned
    orientations, overlapping blocks of 2 x 2 cells, L2-Hys. The direction histogram counts 24 signed
    directions (0 = brighter to the right, 90 degrees = brighter downwards) weighted by gradient magnitude, as
    a Hellinger vector.

    Args:
        images: uint8 [N, H, W, 3], RGB, sides at least 32 px.

    Returns:
        float32 [N, 600], values 0 to 1; all 0 for a flat image.

    Raises:
        InputError: images of another kind.
    """
    return per_image(images, _edges, DIMS)


def _edges(canvas: npt.NDArray[np.uint8]) -> FloatArray:
    gray = to_gray(canvas)
    cell = SIDE // CELLS
    cells = hog(gray, HOG_BINS, (cell, cell), (BLOCK, BLOCK), block_norm='L2-Hys')
    return np.concatenate([cells.astype(np.float32), _directions(gray)])


def _directions(gray: npt.NDArray[np.uint8]) -> FloatArray:
    magnitude, degrees = gradients(gray)
    bins = np.rint(degrees * (DIRECTIONS / 360)).astype(np.int32) % DIRECTIONS
    counts = np.bincount(bins.ravel(), magnitude.ravel(), DIRECTIONS)
    return hellinger(counts, floor=gray.size)  # less than one gray level per px is noise: keep it small
