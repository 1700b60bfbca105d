"""Heads trained on labels, on made-up features: what they learn from, that they learn it, and that a seed decides."""

import functools
import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing_model.codes.bits import hamming, pack_bits, unpack_bits
from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.errors import InputError
from hashing_model.heads.projections import itq, random_projection
from hashing_model.heads.supervision import Supervision, parents, supervise, together
from hashing_model.labels import LabelLevel
from hashing_model.networks import supervised
from hashing_model.networks.loop import Training
from hashing_model.networks.supervised import (
    BY_GRADIENTS,
    activations_of,
    fit_supervised,
    segment_losses,
    shuffled,
    trained_heads,
)
from tests.helpers.make_index import ROOT
from tests.helpers.make_labelled import LEARNED, dataset, mean_average_precision, values_of, vectors

FEW = Training('ortho', epochs=8)


@functools.cache
def trained(method='ortho', seed=0):
    fused, labels = dataset()
    supervision = supervise(LEARNED, labels, np.random.default_rng(seed))
    training = Training(method, epochs=25, seed=seed, learning_rate=0.01)
    network, history = fit_supervised(fused, supervision, training)
    heads, gates = trained_heads(network, supervision, fused)
    return supervision, network, history, heads, gates


# What is trained on


words = st.sampled_from('abc')
uppers = st.lists(st.lists(words, max_size=2, unique=True), min_size=1, max_size=8)


@given(uppers, st.data())
def test_levels_nest_when_each_class_has_one_class_above(upper, data):
    below = st.lists(st.sampled_from('uvwxyz'), max_size=2, unique=True)
    lower = data.draw(st.lists(below, min_size=len(upper), max_size=len(upper)))
    above, under = LabelLevel.from_values(upper), LabelLevel.from_values(lower)
    seen = {name: set() for name in under.names}
    for top, bottom in zip(upper, lower, strict=True):
        for name in bottom:
            seen[name].update(top)
    nests = all(len(s) == 1 for s in seen.values()) and all(len(top) < 2 for top in upper)
    found = parents(above, under)
    if not nests or len(above.names) == len(under.names):
        assert found is None
    else:
        assert [above.names[i] for i in found] == [seen[name].copy().pop() for name in under.names]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_levels_made_from_a_tree_nest(fine):
    lower = LabelLevel.from_values(values_of(fine), list('012345'))
    upper = LabelLevel.from_values(values_of(c // 2 for c in fine), list('012'))
    found = parents(upper, lower)
    assert (found is None) == (len(set(fine)) < 6)
    if found is not None:
        assert found.tolist() == [0, 0, 1, 1, 2, 2]


def test_images_without_a_label_are_neither_trained_on_nor_held_out():
    _, labels = dataset()
    hidden = np.random.default_rng(1).random(540) < 0.2
    partly = {
        n: [[] if h else [level.names[level.classes[i]]] for i, h in enumerate(hidden)] for n, level in labels.items()
    }
    partly['coarse'][int(np.flatnonzero(hidden)[0])] = ['1']  # one level is enough
    hidden[np.flatnonzero(hidden)[0]] = False
    levels = {name: LabelLevel.from_values(v, labels[name].names) for name, v in partly.items()}
    supervision = supervise(LEARNED, levels, np.random.default_rng(0))
    assert not set(supervision.train) & set(supervision.held_out)
    used = np.concatenate([supervision.train, supervision.held_out])
    assert sorted(used) == np.flatnonzero(~hidden).tolist()
    assert len(supervision.held_out) == int(0.05 * (~hidden).sum()) >= 20
    other = supervise(LEARNED, levels, np.random.default_rng(1))
    assert set(other.held_out) != set(supervision.held_out)
    assert [s.name for s in supervision.segments] == ['coarse', 'fine']
    assert supervision.groups == ('top', 'color')
    targets = supervision.targets(used[:50])
    np.testing.assert_array_equal(targets['fine'], levels['fine'].targets()[used[:50]])


def test_of_few_images_none_is_held_out():
    level = LabelLevel.from_values(values_of([0, 1] * 190))
    supervision = supervise(LEARNED, {'fine': level}, np.random.default_rng(0))
    assert len(supervision.held_out) == 0
    assert len(supervision.train) == 380
    assert 'validation_map' not in supervision.about({}, {})


@pytest.mark.parametrize('unlabelled', [False, True])
def test_pictures_of_one_item_are_held_out_together(unlabelled):
    _, labels = dataset()
    items = np.random.default_rng(2).integers(0, 200, 540)
    values = [[] if unlabelled and i % 3 else [f'{item}'] for i, item in enumerate(items)]
    levels = {**labels, 'item': LabelLevel.from_values(values)}
    supervision = supervise(LEARNED, levels, np.random.default_rng(0))
    named = np.array([bool(v) for v in values])
    sides = [set(items[rows[named[rows]]]) for rows in (supervision.train, supervision.held_out)]
    assert sides[1]
    assert not sides[0] & sides[1]
    assert 27 <= len(supervision.held_out) < 27 + 12
    assert sorted(np.concatenate([supervision.train, supervision.held_out])) == list(range(540))


def test_a_level_of_few_names_does_not_tell_items():
    _, labels = dataset()
    levels = {**labels, 'style': LabelLevel.from_values(values_of(np.arange(540) % 50))}
    found, plain = (supervise(LEARNED, x, np.random.default_rng(0)) for x in (levels, labels))
    assert found.held_out.tolist() == plain.held_out.tolist()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.randoms())
def test_items_come_together_where_their_first_was(items, random):
    items = np.array(items)
    order = np.array(random.sample(range(len(items)), len(items)))
    found, ends = together(order, items)
    expected = [[row for row in order if items[row] == item] for item in dict.fromkeys(items[order])]
    assert found.tolist() == [row for rows in expected for row in rows]
    assert ends.tolist() == [0, *np.cumsum([len(rows) for rows in expected]).tolist()]


def test_classes_too_small_to_have_a_like_held_out_are_not_validated_on():
    """Or a score of 0 in every epoch would end the training early."""
    level = LabelLevel.from_values(values_of(range(500)))
    spec = CodeSpec((Segment('item', 64, ('top',)),))
    supervision = supervise(spec, {'item': level}, np.random.default_rng(0))
    assert len(supervision.held_out) == 0
    assert len(supervision.train) == 500


@pytest.mark.tf
def test_segments_of_nested_levels_have_nested_targets():
    supervision = trained()[0]
    assert {n: c.shape for n, c in supervision.centers.items()} == {'coarse': (3, 16), 'fine': (9, 16)}
    whole = np.hstack([supervision.centers['coarse'][np.arange(9) // 3], supervision.centers['fine']])
    distances = (whole[:, None] != whole[None]).sum(axis=2)
    same = np.arange(9)[:, None] // 3 == np.arange(9) // 3
    assert distances[same].max() < distances[~same].min()
    assert supervision.order == 1


def test_labels_that_cannot_be_learned_are_refused():
    _, labels = dataset()
    rng = np.random.default_rng(0)
    message = r'the labels have the levels kind, colour and the code has the segments coarse, fine, look: name segments'
    with pytest.raises(InputError, match=message):
        supervise(LEARNED, {'kind': labels['fine'], 'colour': labels['fine']}, rng)
    with pytest.raises(InputError, match=r'the labels have the levels \(none\) and'):
        supervise(LEARNED, {}, rng)
    for values, names, count in (
        ([['a'], [], ['a']], None, 1),
        ([['a']] * 3, ['a', 'b'], 1),
        ([[]] * 3, ['a', 'b'], 0),
    ):
        with pytest.raises(InputError, match=f'fine: {count} class is nothing to tell apart'):
            supervise(LEARNED, {'fine': LabelLevel.from_values(values, names)}, rng)
    many = LabelLevel.from_values(values_of(range(200)))
    small = CodeSpec((Segment('fine', 7, ('top',)),))
    with pytest.raises(InputError, match='200 classes in 7 bits; give the segment 10 bits or more'):
        supervise(small, {'fine': many}, rng)


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 3))
def test_an_epoch_takes_every_row_at_most_once(count, size, epoch):
    rows = np.arange(100, 100 + count)
    batches = list(shuffled(rows, size, 5, epoch))
    size = min(size, count)
    assert [len(b) for b in batches] == [size] * (count // size)
    taken = np.concatenate(batches).tolist()
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(rows.tolist())


def test_epochs_and_seeds_have_their_own_order():
    orders = [
        np.concatenate(list(shuffled(np.arange(64), 8, *key))).tolist() for key in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert orders[0] == orders[3]
    assert len({tuple(o) for o in orders}) == 3


@pytest.mark.tf
@pytest.mark.parametrize('method', BY_GRADIENTS)
def test_losses_that_even_out_bits_are_added_with_their_weights(method):
    supervision = trained()[0]
    rows = supervision.train[:30]
    targets = supervision.targets(rows)['fine']
    output = (
        np.random.default_rng(0).standard_normal((30, 16 + (9 if method == 'greedy' else 0))).astype(np.float32) + 0.3
    )
    u = np.tanh(output[:, :16])
    products = u.T @ u / 30
    balance = (u.mean(axis=0) ** 2).mean()
    decorrelation = (products[~np.eye(16, dtype=bool)] ** 2).mean()

    def loss(**weights):
        return float(segment_losses(supervision, Training(method, **weights))['fine'](targets, output))

    assert loss(balance=0.5) - loss() == pytest.approx(0.5 * balance, rel=1e-3)
    assert loss(decorrelation=2) - loss() == pytest.approx(2 * decorrelation, rel=1e-3)
    unlabelled = np.zeros_like(targets)
    assert float(segment_losses(supervision, Training(method))['fine'](unlabelled, output)) == 0


# What is learned


@pytest.mark.tf
@pytest.mark.parametrize('method', BY_GRADIENTS)
def test_what_is_learned_holds_for_new_images(method):
    _, _, history, heads, _ = trained(method)
    fused, labels = dataset(seed=5)
    assert history[-1]['loss'] < history[0]['loss']
    for segment in LEARNED.segments[:2]:
        level, x = labels[segment.name], vectors(segment, fused)
        found = mean_average_precision(heads[segment.name], segment, fused, level)
        rng = np.random.default_rng(0)
        others = [fit(x - x.mean(axis=0), segment.bits, rng) for fit in (itq, random_projection)]
        moved = {name: values - values.mean(axis=0) for name, values in fused.items()}
        rivals = [mean_average_precision(head, segment, moved, level) for head in others]
        assert found > 0.8
        assert found > max(rivals) + 0.2


@pytest.mark.tf
@pytest.mark.parametrize('method', BY_GRADIENTS)
def test_the_validation_is_of_images_held_out(method):
    supervision, network, history, heads, _ = trained(method)
    fused, labels = dataset()
    scores = supervision.about(heads, fused)['validation_map']
    rows = supervision.held_out
    part = {name: x[rows] for name, x in fused.items()}
    for segment in supervision.segments:
        expected = mean_average_precision(heads[segment.name], segment, part, labels[segment.name].take(rows))
        assert scores[segment.name] == pytest.approx(expected, abs=1e-4)
        assert scores[segment.name] > 0.7
    found = supervision.scores(activations_of(network, part, supervision), rows)
    assert np.mean(list(found.values())) == pytest.approx(max(h['score'] for h in history), abs=1e-6)  # the best stayed


@pytest.mark.tf
@pytest.mark.parametrize('method', BY_GRADIENTS)
def test_heads_are_the_networks_with_thresholds_at_the_mean(method):
    supervision, network, _, heads, gates = trained(method)
    fused, _ = dataset()
    outputs = activations_of(network, fused, supervision)
    for segment in supervision.segments:
        activations = heads[segment.name].activations(vectors(segment, fused))
        np.testing.assert_allclose(activations.mean(axis=0), 0, atol=1e-4)
        centred = outputs[segment.name] - outputs[segment.name].mean(axis=0)
        clear = np.abs(centred) > 1e-2
        np.testing.assert_array_equal((activations >= 0)[clear], (centred >= 0)[clear])
        assert clear.mean() > 0.95
    assert gates['coarse'] == {'top': 1}
    assert set(gates['fine']) == {'top', 'color'}


@pytest.mark.tf
def test_nested_segments_keep_the_order_of_the_hierarchy():
    heads = trained()[3]
    fused, labels = dataset(seed=6)
    codes = pack_bits(np.hstack([heads[s.name].bits(vectors(s, fused)) for s in LEARNED.segments[:2]]))
    fine, coarse = labels['fine'].classes, labels['coarse'].classes
    centers = np.stack([unpack_bits(codes[fine == c], 32).mean(axis=0) > 0.5 for c in range(9)])
    distances = hamming(pack_bits(centers)[:, None], pack_bits(centers)[None])
    same = np.arange(9)[:, None] // 3 == np.arange(9) // 3
    assert distances[same].max() < distances[~same].min()
    first = hamming(codes[:, None, :2], codes[None, :, :2])  # the coarse segment
    alike = coarse[:, None] == coarse[None]
    assert first[alike].mean() < 0.4 * first[~alike].mean()


@pytest.mark.tf
@pytest.mark.parametrize('method', BY_GRADIENTS)
def test_images_may_have_several_labels(method):
    rng = np.random.default_rng(3)
    present = rng.random((400, 4)) < 0.4
    present[~present.any(axis=1), 0] = True
    x = present @ rng.standard_normal((4, 12)) + 0.3 * rng.standard_normal((400, 12))
    level = LabelLevel.from_values([[f'tag {j}' for j in np.flatnonzero(row)] for row in present])
    segment = Segment('tags', 16, ('top',))
    supervision = supervise(CodeSpec((segment,)), {'tags': level}, np.random.default_rng(0))
    fused = {'top': (x - x.mean(axis=0)).astype(np.float32)}
    network, _ = fit_supervised(fused, supervision, Training(method, epochs=15))
    heads, _ = trained_heads(network, supervision, fused)
    overlap = (present[:, None] & present[None]).sum(axis=2) / (present[:, None] | present[None]).sum(axis=2)
    codes = pack_bits(heads['tags'].bits(fused['top']))
    distances = hamming(codes[:, None], codes[None])
    assert distances[overlap == 1].mean() < 0.5 * distances[overlap == 0].mean()
    assert distances[overlap == 1].mean() < 0.8 * distances[(overlap > 0.3) & (overlap < 0.6)].mean()


# Determinism


def fingerprint(seed, method='ortho'):
    """A digest of the heads of a short training."""
    fused, labels = dataset()
    supervision = supervise(LEARNED, labels, np.random.default_rng(seed))
    network, _ = fit_supervised(fused, supervision, Training(method, epochs=2, seed=seed))
    heads, _ = trained_heads(network, supervision, fused)
    return hashlib.sha256(b''.join(h.weights.tobytes() + h.offset.tobytes() for h in heads.values())).hexdigest()


@pytest.mark.tf
@pytest.mark.parametrize('method', BY_GRADIENTS)
def test_a_seed_gives_one_model(method):
    assert fingerprint(0, method) == fingerprint(0, method) != fingerprint(1, method)


@pytest.mark.tf
@pytest.mark.process
def test_a_seed_gives_one_model_in_another_process():
    code = f'from {__name__} import fingerprint; print(fingerprint(3), fingerprint(3, "greedy"))'
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == [fingerprint(3), fingerprint(3, 'greedy')]


@pytest.mark.tf
def test_training_stops_when_it_gets_no_better(monkeypatch):
    monkeypatch.setattr(supervised, 'PATIENCE', 2)
    monkeypatch.setattr(Supervision, 'scores', lambda *_: {'fine': 0.5})
    fused, labels = dataset()
    supervision = supervise(LEARNED, labels, np.random.default_rng(0))
    _, history = fit_supervised(fused, supervision, Training('ortho'))
    assert len(history) == 3


@pytest.mark.tf
def test_fewer_images_than_a_batch_are_enough():
    fused, labels = dataset(members=2)
    supervision = supervise(LEARNED, labels, np.random.default_rng(0))
    assert len(supervision.train) == 18
    network, history = fit_supervised(fused, supervision, FEW)
    assert len(history) == 8
    assert trained_heads(network, supervision, fused)[0]['fine'].bits(vectors(LEARNED.segments[1], fused)).shape == (
        18,
        16,
    )


@pytest.mark.tf
def test_a_learning_rate_that_is_too_high_is_told():
    fused, labels = dataset()
    supervision = supervise(LEARNED, labels, np.random.default_rng(0))
    with pytest.raises(InputError, match=r'heads: the loss is .* give a lower --learning-rate'):
        fit_supervised(fused, supervision, Training('csq', learning_rate=1e38))
