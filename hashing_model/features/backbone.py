"""The backbone: a frozen network whose activations at four depths are feature groups `low`, `mid`, `high`, `top`.

`efficientnet_lite0` needs no network connection; any model of `keras.applications`, or a `.keras` file, can take its
place. TensorFlow loads with the first backbone, not with this module.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hashing_model.errors import InputError
from hashing_model.features import BACKBONE_FEATURES, MIN_SIDE, check_images, efficientnet_lite
from hashing_model.features.keras_model import choose_taps, download, fix_size, load_file, preprocessing
from hashing_model.features.torch_file import tensors_digest
from hashing_model.keras_runtime import import_keras, set_threads

SAVED = 'backbone.keras'

# Where Lite's groups are read, by stride 4, 16 and 32. On CIFAR-10 (Lite0, 96 px, 2,000 images, cosine) the statistics
# of stages 0 to 6 reach mAP .167 .196 .190 .197 .229 .288 .274: depth pays at the end of 4 and 5.
_LEAST_VARIANCE = 1e-12  # where a channel is constant the square root has no slope
_LITE_TAPS = {'low': 'stage1', 'mid': 'stage4', 'high': 'stage5', 'top': 'head_relu6'}


class Backbone:
    """A network with its taps, ready to run. Made by `load_backbone`.

    `top` is the last activation averaged over the image. `low`, `mid` and `high` are channel statistics, the mean and
    standard deviation of each channel over the image, as in style transfer: Gatys, Ecker and Bethge, "Image Style
    Transfer Using Convolutional Neural Networks", CVPR 2016; Huang and Belongie (AdaIN), ICCV 2017.

    Attributes:
        name: what `load_backbone` was asked for; of a `.keras` file the file's name without folders.
        input_size: side S of the images in px.
        dims: values per feature group.
        digest: SHA-256 (hex) of the weights, equal on every machine.
        model: the Keras network without taps.
        tapped: the same layers as a Keras model from what `to_input` makes to the feature groups, by name.
        to_input: RGB from 0 to 255, float32 [N, S, S, 3], to the network's input.
    """

    def __init__(
        self, name: str, model: Any, taps: dict[str, Any], digest: str, to_input: Callable[[Any], Any]
    ) -> None:
        self.name = name
        self.input_size = int(model.inputs[0].shape[1])
        self.digest = digest
        self.dims = {tap: int(taps[tap].shape[-1]) * (1 if tap == 'top' else 2) for tap in BACKBONE_FEATURES}
        self.model = model
        self.tapped = import_keras().Model(model.inputs[0], {tap: _pool(tap, x) for tap, x in taps.items()})
        self.to_input = to_input
        self._packaged = name in efficientnet_lite.VARIANTS  # the weights come with a Python package
        self._run, self._batch = _compile(self.tapped, to_input, self.input_size)

    def taps(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """The four feature groups of a batch of images.

        An image's values do not depend on the others in the batch: bit for bit on every CPU tried.

        Args:
            images: uint8 [N, S, S, 3], RGB; S is `input_size`, N may be 0.

        Returns:
            `low`, `mid`, `high` and `top` to float32 [N, dims].

        Raises:
            InputError: images of another kind or size.
        """
        check_images(images)
        size = self.input_size
        if images.shape[1:3] != (size, size):
            height, width = images.shape[1:3]
            raise InputError(f'images are {width} x {height} px; the backbone {self.name} reads {size} x {size} px')
        starts = range(0, len(images), self._batch)
        parts = [self._taps(images[i : i + self._batch]) for i in starts]
        empty = {tap: np.empty((0, dims), np.float32) for tap, dims in self.dims.items()}
        return {tap: np.concatenate([empty[tap], *(part[tap] for part in parts)]) for tap in BACKBONE_FEATURES}

    def weights_changed(self) -> None:
        """Call it after training `model`.

        The digest is computed anew, and the weights no longer count as those of a package.
        """
        self.digest = _weights_digest(self.model)
        self._packaged = False

    def save(self, folder: Path) -> None:
        """Write the network to `folder`/backbone.keras, unless its weights come with a Python package."""
        if self._packaged:
            return
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f'.{os.getpid()}-{SAVED}'
        self.model.save(unfinished)
        unfinished.replace(folder / SAVED)

    def _taps(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Run one batch, filled up to 2, 4, 8 ... images.

        oneDNN keeps a plan per batch size, so there are only a few sizes. A single image is run as two: on some CPUs a
        matrix product of one row is computed in another way, and the last bit of a value would differ from that of the
        same image in a batch.
        """
        count = len(images)
        padded = np.zeros((max(2, 1 << (count - 1).bit_length()), *images.shape[1:]), np.uint8)
        padded[:count] = images
        return {tap: values.numpy()[:count] for tap, values in self._run(padded).items()}


def load_backbone(name: str, input_size: int, folder: Path | None = None, threads: int | None = None) -> Backbone:
    """Load a backbone for images of one size.

    Args:
        name: `efficientnet_lite0` (or 1, 2), a model of `keras.applications` such as `MobileNetV3Small`, or the path of
            a `.keras` file that takes RGB from 0 to 255.
        input_size: side of the images in px, at least 32.
        folder: where `Backbone.save` may have written; what lies there is loaded rather than downloaded.
        threads: threads for one TensorFlow operation; None leaves it to TensorFlow, which takes all cores. It counts
            only in a process that has not used TensorFlow yet.

    Raises:
        InputError: an unknown name, a size the network cannot take, or weights missing, damaged or not downloadable.
    """
    if input_size < MIN_SIDE:
        raise InputError(f'the input size is {input_size} px; {MIN_SIDE} px is the smallest')
    set_threads(threads)
    saved = folder / SAVED if folder else None
    if name in efficientnet_lite.VARIANTS:
        return _load_lite(name, input_size, saved if saved and saved.exists() else None)
    to_input = preprocessing(name)
    if saved and saved.exists():
        model = load_file(saved)
    elif name.endswith('.keras'):
        model = load_file(Path(name))
    else:
        model = download(name, input_size)
    model = fix_size(model, input_size, name)
    return Backbone(Path(name).name, model, choose_taps(model, name), _weights_digest(model), to_input)


def _compile(tapped: Any, to_input: Callable[[Any], Any], size: int) -> tuple[Any, int]:
    """A graph from uint8 images to feature groups, and the batch size at which it is fastest."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8)])
    def run(images: Any) -> dict[str, Any]:
        return tapped(to_input(tf.cast(images, tf.float32)), training=False)

    if tf.config.list_physical_devices('GPU'):
        return run, 64
    return run, 32 if size <= 128 else 8  # larger batches leave the CPU's cache


def _pool(tap: str, x: Any) -> Any:
    """An activation [N, h, w, c] as a feature group: float32 [N, c] for `top`, [N, 2 c] for the others."""
    ops = import_keras().ops
    x = ops.cast(x, 'float32')  # a model may compute in float16
    if tap == 'top':
        return ops.mean(x, [1, 2])
    mean, variance = ops.moments(x, [1, 2])
    return ops.concatenate([mean, ops.sqrt(variance + _LEAST_VARIANCE)], -1)


def _weights_digest(model: Any) -> str:
    return tensors_digest({f'{i:05d}': np.asarray(w) for i, w in enumerate(model.weights)})


def _load_lite(name: str, input_size: int, saved: Path | None) -> Backbone:
    """A Lite network with the package's weights, or as it was saved after training."""
    if saved:
        model = fix_size(load_file(saved), input_size, name)
        tensors = {}
    else:
        tensors = efficientnet_lite.load_tensors(name)
        model = efficientnet_lite.efficientnet_lite(name, tensors, include_top=False, input_size=input_size)
    taps = {tap: model.get_layer(layer).output for tap, layer in _LITE_TAPS.items()}
    backbone = Backbone(name, model, taps, tensors_digest(tensors), lambda x: x)
    if saved:
        backbone.weights_changed()
    return backbone
