"""Pictures of the embedded catalogue as bytes and as pixels, and small models fitted to them."""

import functools
import tarfile

import numpy as np

from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.images.decode import Resizing, decode
from hashing_model.keras_runtime import import_keras
from hashing_model.networks.loop import Training
from hashing_model.training.fit import fit
from tests.helpers.make_index import ROOT

SHARD = ROOT / 'examples' / 'catalogue' / 'index-fluent-00000.tar.gz'
LOOK = CodeSpec((Segment('look', 32, ('edges', 'color')),))
SIZE = Resizing(64)


def encoded_pictures(count):
    """The bytes of the first pictures of the catalogue."""
    with tarfile.open(SHARD) as tar:
        members = (m for m in tar if m.name.endswith('.webp'))
        return [tar.extractfile(member).read() for member, _ in zip(members, range(count), strict=False)]


def catalogue_pixels(count=40, resizing=SIZE):
    """The first pictures of the catalogue, uint8 [count, size, size, 3]."""
    return np.stack([decode(data, resizing).pixels for data in encoded_pictures(count)])


def fit_look(images, method='itq', spec=LOOK, seed=0):
    return fit(images, training=Training(method=method, seed=seed), spec=spec, resizing=SIZE)[0]


@functools.cache
def look_model(method='itq', seed=0):
    """The model of `LOOK` that the first forty pictures give, fitted once in a process."""
    return fit_look(catalogue_pixels(), method, seed=seed)


def small_network(path, seed=0):
    """A .keras file of four convolutions with random weights."""
    keras = import_keras()
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Conv2D(4 + i, 3, 2, 'same', activation='relu', name=f'conv{i}') for i in range(4)]
    path.parent.mkdir(parents=True, exist_ok=True)
    keras.Sequential([keras.Input((64, 64, 3)), keras.layers.Rescaling(1 / 255), *layers]).save(path)
    return path
