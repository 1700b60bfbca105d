"""Texture: small patterns around each pixel (LBP), and energy by width and direction of stripes (Gabor)."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import numpy.typing as npt
from skimage.feature import local_binary_pattern

from hashing_model.features.canvas import FloatArray, hellinger, per_image, to_gray

CIRCLES = ((8, 1), (8, 3))  # points and radius in px
SCALES, ORIENTATIONS = 4, 6
WAVELENGTH = 4.0  # px at the finest scale, doubled from scale to scale
LBP_DIMS = sum(points + 2 for points, _ in CIRCLES)
DIMS = LBP_DIMS + SCALES * ORIENTATIONS * 2


def texture(images: npt.NDArray[np.uint8]) -> FloatArray:
    """Local binary pattern histograms at two radii, then Gabor energies.

    LBP: Ojala, Pietikainen and Maenpaa, "Multiresolution Gray-Scale and Rotation Invariant Texture
    Classification with Local Binary Patterns", TPAMI 2002; uniform patterns of 8 points at 1 px and at 3 px,
    each a Hellinger vector. Gabor: Manjunath and Ma, "Texture Features for Browsing and Retrieval of Image
    Data", TPAMI 1996; mean and standard deviation of the response magnitude for 4 wavelengths (4, 8, 16 and
    32 px of the 120 px canvas) x 6 orientations, as log(1 + gray levels).

    Args:
        images: uint8 [N, H, W, 3], RGB, sides at least 32 px.

    Returns:
        float32 [N, 68]: 10 + 10 LBP values, then (mean, deviation) by scale and orientation.

    Raises:
        InputError: images of another kind.
    """
    return per_image(images, _texture, DIMS)


def _texture(canvas: npt.NDArray[np.uint8]) -> FloatArray:
    gray = to_gray(canvas)
    return np.concatenate([*(_patterns(gray, points, radius) for points, radius in CIRCLES), _energies(gray)])


def _patterns(gray: npt.NDArray[np.uint8], points: int, radius: int) -> FloatArray:
    labels = local_binary_pattern(gray, points, radius, method='uniform')
    inside = labels[radius:-radius, radius:-radius]  # nearer the border some points lie outside the image
    return hellinger(np.bincount(inside.astype(np.int64).ravel(), minlength=points + 2))


def _energies(gray: npt.NDArray[np.uint8]) -> FloatArray:
    picture = gray.astype(np.float32)
    energies: list[float] = []
    for scale in range(SCALES):
        if scale:
            picture = cv2.pyrDown(picture)  # half the size is twice the wavelength for the same small kernels
        for even, odd in _kernels():
            real, imaginary = (cv2.filter2D(picture, cv2.CV_32F, kernel) for kernel in (even, odd))
            response = np.sqrt(real * real + imaginary * imaginary)  # cv2.magnitude's last bit depends on the address
            energies.extend(np.ravel(cv2.meanStdDev(response)))
    return np.log1p(np.array(energies, np.float32))


@functools.cache
def _kernels() -> tuple[tuple[FloatArray, FloatArray], ...]:
    """Even and odd Gabor kernels [11, 11] by orientation: a flat area gives 0, a unit wave about 1."""
    pairs = []
    for theta in np.arange(ORIENTATIONS) * np.pi / ORIENTATIONS:
        even, odd, bell = (
            cv2.getGaborKernel((11, 11), 0.56 * WAVELENGTH, theta, wavelength, 1.0, phase, cv2.CV_32F)
            for wavelength, phase in ((WAVELENGTH, 0), (WAVELENGTH, -np.pi / 2), (1e6, 0))
        )
        even = even - bell * (even.sum() / bell.sum())
        pairs.append((even * (2 / bell.sum()), odd * (2 / bell.sum())))
    return tuple(pairs)
