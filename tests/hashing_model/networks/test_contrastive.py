"""The unsupervised head on made-up features: it learns what views share."""

import numpy as np
import pytest

from hashing_model.codes.bits import pack_bits
from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.errors import InputError
from hashing_model.evaluation.metrics import average_precision
from hashing_model.evaluation.ranking import rank
from hashing_model.heads.projections import random_projection
from hashing_model.labels import LabelLevel
from hashing_model.networks import contrastive
from hashing_model.networks.contrastive import fit_contrastive
from hashing_model.networks.loop import Training

pytestmark = pytest.mark.tf

SEGMENT = Segment('coarse', 16, ('top',))


@pytest.fixture(scope='module', autouse=True)
def few_steps():
    """Enough for features as simple as these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrastive, 'STEPS', 60)
        patch.setattr(contrastive, 'BATCH_SIZE', 128)
        yield


def clusters(seed=0, members=32, dims=24, views=2):
    """Twelve clusters in a few directions, and strong noise in the others that each view draws anew."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(12), members)
    axes = np.linalg.qr(rng.standard_normal((dims, dims)))[0]
    inner = 2 * rng.standard_normal((12, 6))[labels] + 0.5 * rng.standard_normal((len(labels), 6))

    def view():
        return (np.hstack([inner, 3 * rng.standard_normal((len(labels), dims - 6))]) @ axes + 5).astype(np.float32)

    return view(), [view() for _ in range(views)], labels


def quality(head, x, labels):
    """The mAP of images among themselves."""
    level = LabelLevel.from_values([[str(label)] for label in labels])
    codes = pack_bits(head.bits(x))
    ranking = rank(codes, [level], codes, [level], CodeSpec((SEGMENT,)), leave_out=np.arange(len(x)))
    return average_precision(ranking.totals, ranking.relevant).mean()


@pytest.fixture(scope='module')
def fitted():
    x, views, labels = clusters()
    told = []
    head, history = fit_contrastive(x, views, SEGMENT, Training(), told.append)
    return x, views, labels, head, history, told


def test_it_finds_the_clusters_that_views_share(fitted):
    x, _, labels, head, history, _ = fitted
    random = random_projection(x, 16, np.random.default_rng(0))
    random = random.shifted(random.activations(x).mean(axis=0))
    assert quality(head, x, labels) > quality(random, x, labels) + 0.1
    assert history[-1]['loss'] < history[0]['loss'] - 0.3


def test_the_head_is_a_hidden_layer_and_bits_that_are_centred(fitted):
    x, _, _, head, _, _ = fitted
    (hidden,) = head.hidden
    assert hidden[0].shape == (24, contrastive.HIDDEN)
    assert head.weights.shape == (contrastive.HIDDEN, 16)
    assert {a.dtype for a in (*hidden, head.weights, head.offset)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(head.activations(x).mean(axis=0), 0, atol=1e-4)
    assert 0.35 < head.bits(x).mean() < 0.65


def test_steps_are_told(fitted):
    _, _, _, _, history, told = fitted
    steps = 12 * 32 // 128
    assert len(history) == -(-60 // steps)
    assert [p.step for p in told] == list(range(1, len(history) * steps + 1))
    assert {p.stage for p in told} == {'coarse'}


def test_a_seed_gives_one_head(fitted):
    x, views, _, head, _, _ = fitted
    again, _ = fit_contrastive(x, views, SEGMENT, Training())
    other, _ = fit_contrastive(x, views, SEGMENT, Training(seed=1))
    np.testing.assert_array_equal(again.weights, head.weights)
    np.testing.assert_array_equal(again.offset, head.offset)
    np.testing.assert_array_equal(again.hidden[0][0], head.hidden[0][0])
    assert not np.array_equal(other.weights, head.weights)


def test_where_the_features_lie_and_how_large_they_are_does_not_matter(fitted):
    x, views, _, head, _, _ = fitted
    moved, _ = fit_contrastive(x * 64 + 640, [v * 64 + 640 for v in views], SEGMENT, Training())
    assert (moved.bits(x * 64 + 640) == head.bits(x)).mean() > 0.95


def test_small_and_flat_features():
    x, views, _ = clusters(members=1)
    assert fit_contrastive(x[:2], [v[:2] for v in views], SEGMENT, Training())[0].bits(x).shape == (12, 16)
    flat = np.ones((8, 5), np.float32)
    assert np.isfinite(fit_contrastive(flat, [flat], SEGMENT, Training())[0].activations(flat)).all()


def test_without_views_or_images_nothing_can_be_learned():
    x, views, _ = clusters(members=1)
    with pytest.raises(
        InputError, match=r'coarse: contrastive needs augmented views .* there are 0 views of 12 images'
    ):
        fit_contrastive(x, [], SEGMENT, Training())
    with pytest.raises(InputError, match='there are 2 views of 1 images'):
        fit_contrastive(x[:1], [v[:1] for v in views], SEGMENT, Training())
    with pytest.raises(InputError, match=r'coarse: the loss is .*lower --learning-rate'):
        fit_contrastive(x, views, SEGMENT, Training(learning_rate=1e30))
