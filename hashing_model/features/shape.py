"""Shape: the outline of what stands out from the border (moments) and the layout of contours (PHOG)."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from hashing_model.features.canvas import SIDE, FloatArray, gradients, hellinger, per_image, to_gray

CENTRAL = ('nu20', 'nu11', 'nu02', 'nu30', 'nu21', 'nu12', 'nu03')
GRID, BINS = 4, 8  # finest level of the pyramid, orientations over 180 degrees
MOMENT_DIMS = 7 + len(CENTRAL)
DIMS = MOMENT_DIMS + BINS * (1 + 2 * 2 + GRID * GRID)

_SMALLEST = 1e-10  # Hu moments below it count as 0: far below a visible asymmetry
_LARGEST = 99.0  # central moment: a line of one pixel across has 10, faint specks far apart have thousands
_FAINT = 8.0  # gray levels: what stands out less is not stretched to full weight
_CANNY = (60, 150)  # gray levels of the 3 x 3 Sobel sums


def shape(images: npt.NDArray[np.uint8]) -> FloatArray:
    """Hu moments, normalised central moments, and a pyramid of edge orientation histograms.

    Moments: Hu, "Visual Pattern Recognition by Moment Invariants", IRE Trans. Information Theory 1962, of the
    luminance difference from the border's median; the seven invariants as sign(h) log10(1 + |h| / 1e-10),
    then the seven normalised central moments of order 2 and 3, at most 99. Pyramid (PHOG): Bosch, Zisserman and Munoz,
    "Representing Shape with a Spatial Pyramid Kernel", CIVR 2007; 8 unsigned orientations at Canny edges,
    weighted by gradient magnitude, in 1 x 1, 2 x 2 and 4 x 4 cells, as one Hellinger vector.

    Args:
        images: uint8 [N, H, W, 3], RGB, sides at least 32 px.

    Returns:
        float32 [N, 182]: 7 + 7 moments, then 168 pyramid values, coarse cells first; all 0 for a flat image.

    Raises:
        InputError: images of another kind.
    """
    return per_image(images, _shape, DIMS)


def _shape(canvas: npt.NDArray[np.uint8]) -> FloatArray:
    gray = to_gray(canvas)
    return np.concatenate([_moments(_foreground(gray)), _pyramid(gray)])


def _foreground(gray: npt.NDArray[np.uint8]) -> FloatArray:
    """How much each pixel stands out from the border, 0 to 1; float32 [120, 120]."""
    smooth = cv2.GaussianBlur(gray, (5, 5), 0).astype(np.float32)
    border = np.concatenate([smooth[0], smooth[-1], smooth[1:-1, 0], smooth[1:-1, -1]])
    difference = np.abs(smooth - np.median(border))
    return difference / max(float(difference.max()), _FAINT)


def _moments(weights: FloatArray) -> FloatArray:
    moments = cv2.moments(weights)
    if moments['m00'] < 1:  # less than one pixel stands out
        return np.zeros(MOMENT_DIMS, np.float32)
    hu = cv2.HuMoments(moments).ravel()
    hu = np.sign(hu) * np.log10(1 + np.abs(hu) / _SMALLEST)
    central = np.clip([moments[name] for name in CENTRAL], -_LARGEST, _LARGEST)
    return np.array([*hu, *central], np.float32)


def _pyramid(gray: npt.NDArray[np.uint8]) -> FloatArray:
    magnitude, degrees = gradients(gray)
    row, column = np.nonzero(cv2.Canny(gray, *_CANNY))
    bins = np.rint(degrees[row, column] * (BINS / 180)).astype(np.int64) % BINS
    cell = row * GRID // SIDE * GRID + column * GRID // SIDE
    counts = np.bincount(cell * BINS + bins, magnitude[row, column], GRID * GRID * BINS)
    fine = counts.reshape(2, 2, 2, 2, BINS)  # outer row, inner row, outer column, inner column
    middle = fine.sum(axis=(1, 3))
    return hellinger(np.concatenate([middle.sum(axis=(0, 1)), middle.ravel(), counts]))
