"""Images to feature groups: four made by hand (OpenCV, scikit-image), four taken from a backbone.

This module names the groups and runs the hand-made ones. `backbone.py` makes the others, `fusion.py` joins
both. Importing it is cheap: OpenCV and scikit-image load at the first call, TensorFlow never.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from hashing_model.errors import InputError

HAND_FEATURES = ('edges', 'texture', 'shape', 'color')
BACKBONE_FEATURES = ('low', 'mid', 'high', 'top')
FEATURES = HAND_FEATURES + BACKBONE_FEATURES

MIN_SIDE = 32
_CHUNK = 16  # images per task of a thread: long enough to hide the hand-over, short enough to share evenly


def hand_features(
    images: npt.NDArray[np.uint8], names: Iterable[str] = HAND_FEATURES, threads: int = 1
) -> dict[str, npt.NDArray[np.float32]]:
    """The named hand-made feature groups of a batch of images.

    An image gets the same values alone, in a batch, and with any number of threads. OpenCV's own threads
    need no setting: a canvas is too small for OpenCV to split.

    Args:
        images: uint8 [N, H, W, 3], RGB, both sides at least 32 px; N may be 0.
        names: some of `HAND_FEATURES`.
        threads: threads that share the images, at least 1.

    Returns:
        Group name to float32 [N, d], in the order of `names`; d depends on the group only.

    Raises:
        InputError: an unknown name, images of another kind, or no thread.
    """
    names = tuple(names)
    check_names(names, HAND_FEATURES)
    check_images(images)
    if threads < 1:
        raise InputError(f'threads is {threads}; at least 1 is needed')
    chunks = [images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK)] or [images]
    if threads == 1 or len(chunks) == 1:
        parts = [_describe(chunk, names) for chunk in chunks]
    else:
        with ThreadPoolExecutor(min(threads, len(chunks))) as pool:
            parts = list(pool.map(lambda chunk: _describe(chunk, names), chunks))
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def check_names(names: tuple[str, ...], known: tuple[str, ...] = FEATURES) -> None:
    """Raise InputError for the first name that is not a known feature group."""
    for name in names:
        if name not in known:
            raise InputError(f'unknown feature group {name!r}; there are {", ".join(known)}')


def check_images(images: npt.NDArray[np.uint8]) -> None:
    """Raise InputError unless images are uint8 [N, H, W, 3] with sides of at least 32 px."""
    if not isinstance(images, np.ndarray):
        raise InputError(f'images are a {type(images).__name__}; a uint8 array [N, H, W, 3] is needed')
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise InputError(f'images are {images.dtype} {list(images.shape)}; uint8 [N, H, W, 3] is needed')
    if min(images.shape[1:3]) < MIN_SIDE:
        raise InputError(f'images are {images.shape[2]} x {images.shape[1]} px; {MIN_SIDE} px is the smallest side')


def _describe(images: npt.NDArray[np.uint8], names: tuple[str, ...]) -> dict[str, npt.NDArray[np.float32]]:
    from hashing_model.features.canvas import to_canvas
    from hashing_model.features.color import color
    from hashing_model.features.edges import edges
    from hashing_model.features.shape import shape
    from hashing_model.features.texture import texture

    makers = {'edges': edges, 'texture': texture, 'shape': shape, 'color': color}
    canvases = to_canvas(images)  # once for all groups; resizing a canvas again changes nothing
    return {name: makers[name](canvases) for name in names}
