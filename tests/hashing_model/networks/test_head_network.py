"""The Keras network of the supervised heads, and the numpy heads that are taken out of it."""

import numpy as np
import pytest

from hashing_model.codes.spec import Segment
from hashing_model.features.fusion import Fusion
from hashing_model.keras_runtime import import_keras
from hashing_model.networks.head_network import head_outputs, standardised, trained_head

pytestmark = pytest.mark.tf

DIMS = {'low': 5, 'top': 9, 'color': 3}
WIDE = Segment('fine', 12, ('top', 'low', 'color'))  # not in the order of the inputs
ALONE = Segment('coarse', 6, ('top',))


def groups_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((count, d)).astype(np.float32) for name, d in DIMS.items()}


def network_of(segments, gated=True, seed=0):
    keras = import_keras()
    read = {name for segment in segments for name in segment.features}
    inputs = {name: keras.Input((d,), name=name) for name, d in DIMS.items() if name in read}
    network = keras.Model(inputs, head_outputs(inputs, segments, gated, seed))
    network.compile(keras.optimizers.AdamW(0.05), dict.fromkeys((s.name for s in segments), 'mse'))
    return network


def train(network, segments, steps=25):
    """A few steps towards signs that only the group `color` tells."""
    for step in range(steps):
        groups = groups_of(64, seed=step)
        signs = {s.name: np.where(groups['color'][:, :1] > 0, 1, -1) * np.ones(s.bits) for s in segments}
        network.train_on_batch({x.name: groups[x.name] for x in network.inputs}, signs)


def by_numpy(head, segment, groups):
    return head.activations(np.concatenate([groups[name] for name in segment.features], axis=1))


@pytest.mark.parametrize('gated', [True, False])
def test_a_trained_head_has_the_signs_of_the_network(gated):
    network = network_of([ALONE, WIDE], gated)
    train(network, [ALONE, WIDE])
    groups = groups_of(300, seed=99)
    outputs = network.predict_on_batch(groups)
    for segment in (ALONE, WIDE):
        head, gates = trained_head(network, segment)
        norm = network.get_layer(f'{segment.name}_bn')
        mean, variance = (np.asarray(v) for v in (norm.moving_mean, norm.moving_variance))
        activations = by_numpy(head, segment, groups)
        np.testing.assert_allclose(
            (activations - mean) / np.sqrt(variance + norm.epsilon), outputs[segment.name], atol=1e-4
        )
        clear = np.abs(outputs[segment.name]) > 1e-3
        bits = by_numpy(head.shifted(mean), segment, groups) >= 0
        np.testing.assert_array_equal(bits[clear], (outputs[segment.name] >= 0)[clear])
        assert 0.2 < bits.mean() < 0.8
        assert tuple(gates) == segment.features
        assert not head.offset.any()
        assert head.hidden == ()
    if not gated:
        assert gates == {'top': 1, 'low': 1, 'color': 1}


def test_gates_are_positive_have_a_mean_of_one_and_follow_what_tells():
    network = network_of([WIDE])
    assert trained_head(network, WIDE)[1] == {'top': 1, 'low': 1, 'color': 1}
    for steps in (5, 100):
        train(network, [WIDE], steps)
        _, gates = trained_head(network, WIDE)
        assert min(gates.values()) > 0
        assert np.mean(list(gates.values())) == pytest.approx(1, abs=1e-4)
        assert max(gates, key=gates.get) == 'color'
    assert gates['color'] > 1.2


def test_gates_that_are_not_trained_stay():
    network = network_of([WIDE], gated=False)
    assert [v.name for v in network.trainable_variables] == ['kernel']
    train(network, [WIDE])
    assert trained_head(network, WIDE)[1] == {'top': 1, 'low': 1, 'color': 1}


def test_one_group_alone_has_a_gate_of_one():
    network = network_of([ALONE])
    before = np.asarray(network.get_layer('coarse_projection').kernel)
    train(network, [ALONE])
    head, gates = trained_head(network, ALONE)
    assert gates == {'top': 1}
    np.testing.assert_array_equal(head.weights, network.get_layer('coarse_projection').get_weights()[0])
    assert not np.array_equal(head.weights, before)


def test_segments_start_apart_and_a_seed_gives_one_start():
    twin = Segment('other', 12, WIDE.features)
    a, b, c = (network_of([WIDE, twin], seed=seed) for seed in (4, 4, 5))
    kernels = [np.asarray(n.get_layer(f'{s}_projection').kernel) for n in (a, b, c) for s in ('fine', 'other')]
    np.testing.assert_array_equal(kernels[0], kernels[2])
    np.testing.assert_array_equal(kernels[1], kernels[3])
    assert not np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[4])


def test_symbolic_groups_are_standardised_as_the_fusion_does():
    keras = import_keras()
    x = groups_of(50)['top'] * 3 + 7
    fusion = Fusion.fit({'top': x})
    symbol = keras.Input((9,))
    made = keras.Model(symbol, standardised(symbol, fusion.mean['top'], fusion.scale['top'])).predict_on_batch(x)
    np.testing.assert_allclose(made, fusion.fuse({'top': x}, ['top']), rtol=1e-5, atol=1e-6)
