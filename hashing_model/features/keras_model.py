"""Any Keras model as a backbone: loading or downloading it, fixing its image size, choosing where to read it."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hashing_model.errors import InputError
from hashing_model.features import BACKBONE_FEATURES, efficientnet_lite
from hashing_model.keras_runtime import import_keras


def choose_taps(model: Any, name: str) -> dict[str, Any]:
    """Four activations of any convolutional Keras model, as its symbolic outputs.

    `top` is the last activation with height and width. `low`, `mid` and `high` are the last ones at the three finest
    of: 1/4, 1/8, 1/16 ... of the image's side, short of the size of `top`. A network with fewer sizes repeats one.

    Raises:
        InputError: the model has no activation with height and width.
    """
    maps = [layer.output for layer in model.layers if _is_map(layer)]
    if not maps:
        raise InputError(f'the backbone {name} has no convolutional activation to read features from')
    side = int(model.inputs[0].shape[1])
    by_stride = {_stride(x, side): x for x in maps}  # the last of a size wins
    wide = [x for x in maps if x.shape[1] > 1]  # not what a classifier makes of the image's average
    top = model.outputs[0] if len(model.outputs[0].shape) == 4 else (wide or maps)[-1]
    inner = [by_stride[s] for s in sorted(by_stride) if 4 <= s < _stride(top, side)][:3] or [top]
    inner = [inner[0]] * (3 - len(inner)) + inner
    return dict(zip(BACKBONE_FEATURES, [*inner, top], strict=True))


def _is_map(layer: Any) -> bool:
    """Whether a layer gives one activation [N, h, w, c] of the whole image.

    Layers that only add a border of zeros do not count.
    """
    shape = getattr(getattr(layer, 'output', None), 'shape', ())
    return len(shape) == 4 and type(layer).__name__ not in ('InputLayer', 'ZeroPadding2D')


def _stride(x: Any, side: int) -> int:
    """How many times smaller than the image an activation is, rounded to a power of 2.

    Networks that cut borders have odd sizes.
    """
    return int(2 ** round(math.log2(side / x.shape[1])))


def preprocessing(name: str) -> Callable[[Any], Any]:
    """The function that scales RGB from 0 to 255 to the input of a model of `keras.applications`.

    For a `.keras` file it is the identity.

    Raises:
        InputError: an unknown name.
    """
    if name.endswith('.keras'):
        return lambda x: x
    return sys.modules[_application(name).__module__].preprocess_input


def download(name: str, input_size: int) -> Any:
    """A model of `keras.applications` with ImageNet weights, without its classifier.

    Raises:
        InputError: an unknown name, a size that the model cannot take, or no weights to be had.
    """
    make = _application(name)
    try:
        return make(weights='imagenet', include_top=False, input_shape=(input_size, input_size, 3))
    except ValueError as e:
        raise InputError(f'the backbone {name} cannot be made for {input_size} px: {e}') from e
    except Exception as e:  # Keras raises a bare Exception when a download fails
        raise InputError(
            f'the weights of {name} could not be downloaded; efficientnet_lite0 needs no network: {e}'
        ) from e


def load_file(path: Path) -> Any:
    """A saved `.keras` model.

    Raises:
        InputError: no such file, a damaged one, an unknown layer, or code of its own that Keras refuses to run.
    """
    if not path.is_file():
        raise InputError(f'there is no backbone {path}')
    try:
        return import_keras().saving.load_model(path, compile=False)
    except Exception as e:  # a zip, JSON, HDF5 or Keras error
        raise InputError(f'{path} cannot be loaded as a Keras model: {e}') from e


def fix_size(model: Any, size: int, name: str) -> Any:
    """The model for images [size, size, 3]; one that takes any size is rebuilt, so that its shapes are known.

    Raises:
        InputError: a model with several inputs, of a class of its own, or for other images.
    """
    inputs = _inputs(model)
    keras = import_keras()
    if not inputs or len(inputs) != 1:
        raise InputError(f'the backbone {name} is no Functional or Sequential Keras model with one input')
    shape = tuple(inputs[0].shape[1:])
    if shape == (size, size, 3):
        return model
    if shape != (None, None, 3):
        raise InputError(f'the backbone {name} takes images {list(shape)}, not {[size, size, 3]}')
    fixed = keras.models.clone_model(model, input_tensors=keras.Input((size, size, 3), name='image'))
    fixed.set_weights(model.get_weights())
    return fixed


def _application(name: str) -> Callable[..., Any]:
    applications = import_keras().applications
    make = getattr(applications, name, None)
    if not inspect.isfunction(make):
        known = (*efficientnet_lite.VARIANTS, *(n for n in dir(applications) if n[:1].isupper()))
        raise InputError(f'unknown backbone {name!r}; there are {", ".join(known)}, and paths that end in .keras')
    return make


def _inputs(model: Any) -> Any:
    """A model's symbolic inputs, or None where it has none: not built yet, or a class of its own."""
    try:
        return model.inputs
    except (AttributeError, ValueError):
        return None
