"""Fusion: groups on one scale, side by side."""

import numpy as np
import pytest

from hashing_model.errors import InputError
from hashing_model.features.fusion import LEAST_SPREAD, Fusion


def groups(count=50, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.normal(3, 0.001, (count, 2))
    large = rng.normal(-700, 500, (count, 40)) * np.linspace(0.2, 1, 40)
    return {'small': small.astype(np.float32), 'large': large.astype(np.float32)}


def test_every_group_weighs_the_same():
    data = groups()
    fused = Fusion.fit(data).fuse(data, ['small', 'large'])
    assert fused.shape == (50, 42)
    assert fused.dtype == np.float32
    np.testing.assert_allclose(fused.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(fused[:, :2].var(axis=0), 1 / 2, rtol=1e-3)
    np.testing.assert_allclose(fused[:, 2:].var(axis=0), 1 / 40, rtol=1e-3)


def test_groups_come_in_the_order_asked():
    data, fusion = groups(), Fusion.fit(groups())
    small, large = fusion.fuse(data, ['small']), fusion.fuse(data, ['large'])
    np.testing.assert_array_equal(fusion.fuse(data, ['large', 'small']), np.hstack([large, small]))
    np.testing.assert_array_equal(fusion.fuse(data, ['small', 'large']), np.hstack([small, large]))


def test_new_images_are_measured_by_the_training_images():
    fusion = Fusion.fit({'x': np.array([[1, 10], [3, 10], [5, 16]], np.float32)})
    root = 2**0.5  # of the 2 dimensions
    deviations = ((4 + 0 + 4) / 3) ** 0.5, ((4 + 4 + 16) / 3) ** 0.5
    fused = fusion.fuse({'x': np.array([[7, 6]], np.float32)}, ['x'])
    np.testing.assert_allclose(fused, [[4 / deviations[0] / root, -6 / deviations[1] / root]], rtol=1e-6)


@pytest.mark.parametrize('value', [0, 5, 1e6])
def test_a_constant_group_is_zero_and_finite(value):
    data = {'x': np.full((4, 3), value, np.float32)}
    fusion = Fusion.fit(data)
    np.testing.assert_array_equal(fusion.fuse(data, ['x']), np.zeros((4, 3)))
    np.testing.assert_allclose(fusion.fuse({'x': data['x'] + 1}, ['x']), np.full((4, 3), 3**-0.5), rtol=1e-6)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_features_that_are_no_numbers_are_told(value):
    data = groups(50)
    name = list(data)[1]
    data[name][[3, 7], 0] = value
    with pytest.raises(InputError, match=f'features {name} of 2 of 50 images are not numbers'):
        Fusion.fit(data)


def test_one_training_image_gives_finite_vectors():
    data = groups(1)
    assert not Fusion.fit(data).fuse(data, list(data)).any()


def test_a_dimension_that_hardly_varies_is_not_blown_up():
    x = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    x[:, 2] *= 1e-6
    x[:, 3] = 7
    fused = Fusion.fit({'x': x}).fuse({'x': x}, ['x'])
    typical = np.sqrt(np.mean(x.std(axis=0) ** 2))
    np.testing.assert_allclose(fused.var(axis=0)[:2], 1 / 4, rtol=1e-3)
    np.testing.assert_allclose(fused[:, 2], (x[:, 2] - x[:, 2].mean()) / (LEAST_SPREAD * typical * 2), rtol=1e-3)
    assert not fused[:, 3].any()
