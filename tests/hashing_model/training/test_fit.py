"""Fitting hash models on pictures of the embedded catalogue."""

import io

import numpy as np
import pytest

from hashing_model.codes.bits import pack_bits, unpack_bits
from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.errors import InputError
from hashing_model.features import hand_features
from hashing_model.heads.head import HashHead
from hashing_model.heads.projections import METHODS as PROJECTIONS
from hashing_model.labels import LabelLevel
from hashing_model.networks import contrastive
from hashing_model.networks.loop import Training
from hashing_model.training.feature_set import FeatureSet, extract
from hashing_model.training.fit import (
    choose_method,
    fit,
    fit_features,
    make_extractor,
    method_of,
    view_groups,
    view_seeds,
)
from tests.helpers.make_models import LOOK, SIZE, catalogue_pixels, encoded_pictures, fit_look


@pytest.mark.parametrize('method', PROJECTIONS)
def test_a_code_is_the_sign_of_the_fused_features_projected(method):
    images = catalogue_pixels()
    model = fit_look(images, method)
    groups = hand_features(images, ('edges', 'color'))
    parts = []
    for name in ('edges', 'color'):
        x = groups[name].astype(np.float64)
        deviation = x.std(axis=0)
        floor = 0.01 * np.sqrt((deviation**2).mean())
        parts.append((x - x.mean(axis=0)) / np.maximum(deviation, floor) / np.sqrt(x.shape[1]))
    projected = np.hstack(parts) @ model.heads['look'].weights + model.heads['look'].offset
    clear = np.abs(projected) > 1e-4  # float32 may decide the others either way
    assert clear.mean() > 0.99
    bits = unpack_bits(model.encode(images), 32)
    np.testing.assert_array_equal(bits[clear], (projected >= 0)[clear])
    assert 0.3 < bits.mean() < 0.7  # centred
    assert len(np.unique(bits, axis=0)) > 35


def test_random_weights_come_from_the_seed_and_no_offset():
    images = catalogue_pixels(3)
    model = fit_look(images, 'random', seed=11)
    (seed,) = np.random.SeedSequence(11).spawn(1)
    normals = np.random.default_rng(seed).standard_normal(model.heads['look'].weights.shape)
    np.testing.assert_array_equal(model.heads['look'].weights, normals.astype(np.float32))
    assert not model.heads['look'].offset.any()


@pytest.mark.parametrize('method', PROJECTIONS)
def test_images_may_come_as_an_array_or_one_by_one(method):
    images = catalogue_pixels()
    whole = fit_look(images, method)
    listed = fit_look(list(images), method)
    assert listed.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(listed.encode(images), whole.encode(images))
    assert fit_look(images, method, seed=1).fingerprint != whole.fingerprint


def test_segments_are_laid_out_in_order_and_drawn_apart():
    images = catalogue_pixels(12)
    first, second = Segment('first', 5, ('color',)), Segment('second', 9, ('color',))
    model = fit_look(images, 'random', CodeSpec((first, second)))
    groups = model.extractor.features(images)
    bits = [model.heads[n].bits(model.fusion.fuse(groups, ('color',))) for n in ('first', 'second')]
    codes = model.encode(images)
    np.testing.assert_array_equal(codes, pack_bits(np.hstack(bits)))
    np.testing.assert_array_equal(codes, model.encode_features(groups))
    assert codes.shape == (12, 2)
    assert not np.array_equal(model.heads['first'].weights, model.heads['second'].weights[:, :5])


def test_only_the_features_that_segments_read_are_made():
    model = fit_look(catalogue_pixels(3), 'random')
    assert set(model.extractor.features(catalogue_pixels(2))) == {'edges', 'color'}
    assert model.backbone_digest == ''


def test_what_it_was_fitted_on_is_noted():
    model = fit_look(catalogue_pixels(9), 'random', seed=3)
    about = dict(model.training)
    shares = about.pop('shares')
    assert about == {'method': 'random', 'seed': 3, 'images': 9}
    assert list(shares['look']) == ['edges', 'color']
    assert sum(shares['look'].values()) == pytest.approx(1, abs=1e-3)


def test_a_groups_share_is_how_much_bits_move_without_it():
    """In a linear head that is the mean square of what it adds."""
    rng = np.random.default_rng(0)
    groups = {name: rng.standard_normal((500, d)).astype(np.float32) for name, d in (('a', 3), ('b', 5))}
    weights = np.concatenate([np.eye(3, 4), np.zeros((5, 4))]).astype(np.float32)
    linear = HashHead(weights, np.zeros(4, np.float32))
    assert linear.shares(groups) == {'a': 1, 'b': 0}
    weights = np.concatenate([np.eye(3, 4), np.eye(5, 4, -1)]).astype(np.float32)  # of 4 bits, 3 from a and 1 from b
    weights[:3, 1], weights[3:, 0] = 0, 0
    for scale in (np.ones(4), np.array([1, 9, 0.1, 5])):
        mixed = HashHead(weights, np.zeros(4, np.float32)).scaled(scale)
        sums = [((x @ w) ** 2).mean(axis=0) for x, w in zip(groups.values(), np.split(weights, [3]), strict=True)]
        assert mixed.shares(groups)['a'] == pytest.approx((sums[0] / (sums[0] + sums[1])).mean(), abs=1e-3)
    hidden = ((rng.standard_normal((8, 6)).astype(np.float32), np.ones(6, np.float32)),)
    deep = HashHead(rng.standard_normal((6, 1)).astype(np.float32), np.zeros(1, np.float32), hidden)
    x, first = np.hstack(list(groups.values())), (np.arange(8) < 3).astype(np.float32)
    moved = [((deep.activations(x) - deep.activations(x * kept)) ** 2).mean() for kept in (first, 1 - first)]
    assert deep.shares(groups)['b'] == pytest.approx(moved[0] / sum(moved), abs=1e-3)


def test_unfit_input_is_refused():
    known = 'ridge, ortho, csq, greedy, contrastive, lda, random, pca-rr, itq'
    with pytest.raises(InputError, match=f"unknown method 'lsh'; there are {known}"):
        fit_look(catalogue_pixels(3), 'lsh')
    with pytest.raises(InputError, match='no training image could be read'):
        fit_look([])
    with pytest.raises(InputError, match='more than 32 training images; there are 32'):
        fit_look(catalogue_pixels(32))
    with pytest.raises(InputError, match="unknown feature group 'smell'"):
        fit_look(catalogue_pixels(3), 'random', CodeSpec((Segment('look', 4, ('smell',)),)))


@pytest.mark.tf
def test_a_backbone_that_needs_no_download_gives_coarse_codes():
    images = catalogue_pixels(24)
    spec = CodeSpec((Segment('coarse', 16, ('top', 'low')), Segment('look', 8, ('color',))))
    model = fit_look(images, spec=spec)
    codes = model.encode(images)
    assert codes.shape == (24, 3)
    assert len(np.unique(codes[:, :2], axis=0)) > 20
    for i in (0, 23):
        np.testing.assert_array_equal(model.encode(images[i : i + 1])[0], codes[i])
    assert model.backbone_digest == model.extractor.backbone.digest
    again = encoded_pictures(2)[1]
    np.testing.assert_array_equal(model.encode(model.decode(again).pixels[None])[0], codes[1])
    assert model.decode(again).pixels.shape == (64, 64, 3)
    assert io.BytesIO(again).read(4) == b'RIFF'


# With labels, and from views

MIXED = CodeSpec(
    (Segment('kind', 8, ('color', 'edges')), Segment('other', 8, ('edges',)), Segment('look', 8, ('color',)))
)
LABELS = {'kind': LabelLevel.from_values([[str(i % 3)] if i % 5 else [] for i in range(40)])}


@pytest.mark.parametrize(
    ('method', 'segment', 'labelled', 'expected'),
    [
        (None, 'look', False, 'lda'),
        (None, 'fine', False, 'contrastive'),
        ('ortho', 'fine', True, 'ortho'),
        ('ridge', 'fine', True, 'ridge'),
        ('ridge', 'look', False, 'lda'),
        ('csq', 'look', True, 'csq'),
        ('greedy', 'look', False, 'lda'),
        ('greedy', 'fine', False, 'contrastive'),
        ('contrastive', 'look', True, 'contrastive'),
        ('lda', 'fine', True, 'lda'),
        ('itq', 'look', True, 'itq'),
    ],
)
def test_each_segment_has_a_method_that_fits_its_labels(method, segment, labelled, expected):
    assert method_of(segment, Training(method), {segment: None} if labelled else {'x': None}) == expected


def test_only_segments_fitted_from_views_need_views():
    assert view_groups(MIXED, Training('itq'), LABELS) == []
    assert view_groups(MIXED, Training('ortho'), LABELS) == ['edges', 'color']
    assert view_groups(MIXED, Training('lda'), {}) == ['edges', 'color']
    look = CodeSpec(MIXED.segments[::2])
    assert view_groups(look, Training('ortho'), LABELS) == ['color']


@pytest.mark.tf
def test_a_model_says_how_its_segments_were_fitted(monkeypatch):
    monkeypatch.setattr(contrastive, 'STEPS', 2)
    one, _ = fit(catalogue_pixels(40), {}, Training(views=1), LOOK, SIZE)
    assert one.training['method'] == 'lda'
    two, _ = fit(catalogue_pixels(40), {}, Training(views=1), CodeSpec(MIXED.segments[1:]), SIZE)
    assert two.training['method'] == 'contrastive+lda'


@pytest.mark.tf
def test_segments_that_read_the_same_get_bits_of_their_own(monkeypatch):
    monkeypatch.setattr(contrastive, 'STEPS', 3)
    spec = CodeSpec((Segment('a', 8, ('color',)), Segment('b', 8, ('color',))))
    model, _ = fit(catalogue_pixels(40), {}, Training('contrastive', views=1), spec, SIZE)
    assert not np.array_equal(model.heads['a'].weights, model.heads['b'].weights)


def test_labels_must_be_those_of_the_pictures():
    for training in (Training(), Training(finetune_blocks=1)):
        with pytest.raises(InputError, match='kind has labels of 40 images; there are 39'):
            fit(catalogue_pixels(39), LABELS, training, MIXED, SIZE)


def test_views_have_seeds_of_their_own():
    seeds = view_seeds(Training(views=4))
    assert len(set(seeds)) == 4
    assert view_seeds(Training(views=2)) == seeds[:2]
    assert not set(view_seeds(Training(views=4, seed=1))) & set(seeds)


@pytest.mark.tf
def test_segments_are_trained_each_by_its_method(monkeypatch):
    monkeypatch.setattr(contrastive, 'STEPS', 5)
    images, training = catalogue_pixels(40), Training('ortho', epochs=4, views=2)
    model, history = fit(images, LABELS, training, MIXED, SIZE)
    assert set(history) == {'heads', 'other'}
    assert (len(history['heads']), len(history['other'])) == (4, 5)
    assert [len(model.heads[name].hidden) for name in ('kind', 'other', 'look')] == [0, 1, 0]
    assert model.training['labelled'] == {'kind': 32}
    assert set(model.training['gates']['kind']) == {'color', 'edges'}
    assert set(model.training['shares']) == {'kind', 'other', 'look'}
    bits = unpack_bits(model.encode(images), 24)
    assert 0.3 < bits[:, :8].mean() < 0.7
    assert len(np.unique(bits, axis=0)) > 30

    extractor = make_extractor(MIXED, SIZE, 'efficientnet_lite0')
    views = tuple(extract(images, extractor, ['edges', 'color'], view=seed) for seed in view_seeds(training))
    features = FeatureSet(extract(images, extractor, extractor.groups), views, LABELS)
    again, _ = fit_features(features, extractor, SIZE, MIXED, training)
    assert again.fingerprint == model.fingerprint
    other, _ = fit(images, LABELS, Training('ortho', seed=1, epochs=4, views=2), MIXED, SIZE)
    for name in MIXED.names:
        assert not np.array_equal(other.heads[name].weights, model.heads[name].weights)


@pytest.mark.parametrize(
    ('given', 'chosen'),
    [
        (Training(), 'ridge'),
        (Training(finetune_blocks=2), 'ortho'),
        (Training('csq'), 'csq'),
    ],
)
def test_labels_choose_a_method(given, chosen):
    assert choose_method(given, MIXED, LABELS).method == chosen
    assert choose_method(given, MIXED, {'x': LABELS['kind']}).method == given.method


@pytest.mark.tf
def test_ungated_segments_read_their_groups_as_they_are():
    spec = CodeSpec(MIXED.segments[:1])
    model, _ = fit(catalogue_pixels(40), LABELS, Training('csq', epochs=2, gated=False), spec, SIZE)
    assert model.training['gates'] == {'kind': {'color': 1, 'edges': 1}}
