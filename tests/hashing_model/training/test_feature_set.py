"""The features of a training set, of the pictures as they are and of views of them."""

import numpy as np
import pytest

from hashing_model.features.extractor import Extractor
from hashing_model.images.augment import LOOK, augment
from hashing_model.labels import LabelLevel
from hashing_model.training.feature_set import BATCH_SIZE, FeatureSet, extract
from tests.helpers.make_models import SIZE, catalogue_pixels

GROUPS = ('edges', 'color')


@pytest.fixture(scope='module')
def images():
    """One batch, and six pictures of the next."""
    return catalogue_pixels(BATCH_SIZE + 6)


@pytest.fixture(scope='module')
def extractor():
    return Extractor('efficientnet_lite0', SIZE.size, GROUPS)


def test_texts_are_captions_and_names_of_labels():
    levels = {'kind': LabelLevel.from_values([['b', 'a'], [], ['c']]), 'item': LabelLevel.from_values([[], [], ['1']])}
    groups = {'color': np.zeros((3, 2), np.float32)}
    captions = ['an a', None, '']
    assert FeatureSet(groups, (), levels, captions).texts() == [['an a', 'a', 'b'], [], ['c', '1']]
    assert FeatureSet(groups, (), levels).texts() == [['a', 'b'], [], ['c', '1']]
    assert FeatureSet(groups).texts() == [[], [], []]


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, values in a.items():
        np.testing.assert_array_equal(values, b[name], err_msg=name)


def test_pictures_as_they_are_have_the_features_of_the_extractor(images, extractor):
    made = extract(images, extractor, GROUPS)
    assert_same(made, extractor.features(images))
    assert_same(extract(images, extractor, ['color']), extractor.features(images, ['color']))
    assert all(x.dtype == np.float32 and len(x) == len(images) for x in made.values())
    assert len(FeatureSet(made)) == len(images)


def test_a_view_has_the_features_of_augmented_pictures(images, extractor):
    batch = augment(images[:BATCH_SIZE], np.random.default_rng([7, 0]), LOOK)
    rest = augment(images[BATCH_SIZE:], np.random.default_rng([7, BATCH_SIZE]), LOOK)
    view = extract(images, extractor, GROUPS, view=7)
    assert_same(view, extractor.features(np.concatenate([batch, rest])))
    clean = extract(images, extractor, GROUPS)
    assert (view['color'] != clean['color']).any(axis=1).mean() > 0.9


def test_a_view_depends_on_the_seed_and_the_place_only(images, extractor):
    view = extract(images, extractor, GROUPS, view=1)
    assert_same(extract(list(images), extractor, GROUPS, view=1), view)
    fewer = extract(images[: BATCH_SIZE + 2], extractor, GROUPS, view=1)
    assert_same(fewer, {name: x[: BATCH_SIZE + 2] for name, x in view.items()})
    alone = extract(images, extractor, ['edges'], view=1)
    assert_same(alone, {'edges': view['edges']})
    other = images.copy()
    other[3] = 255 - other[3]
    changed = extract(other, extractor, GROUPS, view=1)['color'] != view['color']
    np.testing.assert_array_equal(np.flatnonzero(changed.any(axis=1)), [3])


def test_views_and_places_differ(images, extractor):
    same = np.repeat(images[:1], BATCH_SIZE + 6, axis=0)
    views = [extract(same, extractor, ['color'], view=seed)['color'] for seed in (1, 2)]
    assert len(np.unique(np.concatenate(views), axis=0)) == 2 * len(same)


def test_every_batch_is_reported(images, extractor):
    for view, stage in ((None, 'features'), (0, 'features of views')):
        told = []
        extract(images, extractor, ['color'], told.append, view)
        assert [(p.stage, p.step, p.steps, p.loss) for p in told] == [
            (stage, BATCH_SIZE, BATCH_SIZE + 6, None),
            (stage, BATCH_SIZE + 6, BATCH_SIZE + 6, None),
        ]
