"""The numpy side of a trained head, against loops over single numbers."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing_model.heads import head as hash_head
from hashing_model.heads.head import Anchors, HashHead


def head_of(dims, seed=0):
    """A head with random layers dims[0] -> dims[1] -> ... -> bits."""
    rng = np.random.default_rng(seed)
    layers = [
        (rng.standard_normal((a, b)).astype(np.float32), rng.standard_normal(b).astype(np.float32))
        for a, b in itertools.pairwise(dims)
    ]
    return HashHead(*layers[-1], tuple(layers[:-1]))


def vectors(count, dims, seed=1):
    return np.random.default_rng(seed).standard_normal((count, dims)).astype(np.float32)


def by_loops(head, x):
    """The activations of one vector, a multiplication at a time."""
    layers = [*head.hidden, (head.weights, head.offset)]
    h = [float(value) for value in x]
    for number, (weights, offset) in enumerate(layers):
        out = []
        for j in range(len(offset)):
            total = float(offset[j])
            for i in range(len(h)):
                total += h[i] * float(weights[i, j])
            out.append(max(total, 0.0) if number < len(layers) - 1 else total)
        h = out
    return h


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(0, 99))
def test_layers_are_affine_maps_with_zero_for_what_is_negative(dims, seed):
    head, x = head_of(dims, seed), vectors(4, dims[0], seed)
    activations = head.activations(x)
    expected = np.array([by_loops(head, row) for row in x])
    assert activations.shape == (4, dims[-1])
    assert activations.dtype == np.float32
    np.testing.assert_allclose(activations, expected, rtol=1e-4, atol=1e-4)
    clear = np.abs(expected) > 1e-3
    np.testing.assert_array_equal(head.bits(x)[clear], (expected >= 0)[clear])


def test_the_last_layer_may_be_negative_and_the_hidden_ones_may_not():
    identity = (np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    x = np.array([[-3, 5]], np.float32)
    assert HashHead(*identity).activations(x).tolist() == [[-3, 5]]
    assert HashHead(*identity, (identity,)).activations(x).tolist() == [[0, 5]]
    assert HashHead(*identity, (identity,)).bits(x).tolist() == [[True, True]]  # sign(0) = +1


def anchored(d=5, p=3, m=6, bits=16, seed=0):
    """A head that begins with a kernel."""
    rng = np.random.default_rng(seed)
    anchors = Anchors(vectors(d, p, seed), vectors(m, p, seed + 1))
    return HashHead(vectors(m, bits, seed + 2), rng.standard_normal(bits).astype(np.float32), anchors=anchors)


@pytest.mark.parametrize('block', [3, 4096])
def test_a_kernel_tells_how_near_the_anchors_are(monkeypatch, block):
    monkeypatch.setattr(hash_head, '_BLOCK', block)
    head, x = anchored(), vectors(8, 5, 9)
    found = head.activations(x)
    for row, values in zip(x, found, strict=True):
        near = [math.exp(-sum((row @ head.anchors.projection - point) ** 2)) for point in head.anchors.points]
        expected = [by_loops(HashHead(head.weights, head.offset), near)]
        np.testing.assert_allclose([values], expected, atol=1e-5)
    assert (found.dtype, found.shape) == (np.float32, (8, 16))
    assert head.activations(x[:0]).shape == (0, 16)


def test_the_kernel_of_an_anchor_with_itself_is_one_however_far_from_the_others():
    points = np.array([[1e4, 0], [-1e4, 1]], np.float32)
    np.testing.assert_allclose(Anchors(np.eye(2, dtype=np.float32), points).kernel(points), np.eye(2))


@pytest.mark.parametrize('dims', [(5, 16), (5, 7, 16)])
def test_shifting_by_the_mean_balances_bits_and_moves_nothing_else(dims):
    head, x = head_of(dims), vectors(2000, 5) + np.float32(2)
    before = head.activations(x)
    assert np.abs(head.bits(x).mean(axis=0) - 0.5).max() > 0.3  # not trivial
    shifted = head.shifted(before.mean(axis=0, dtype=np.float64))
    np.testing.assert_allclose(shifted.activations(x), before - before.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(shifted.activations(x).mean(axis=0), 0, atol=1e-4)
    np.testing.assert_array_equal(shifted.bits(x), shifted.activations(x) >= 0)
    assert shifted.offset.dtype == np.float32
    np.testing.assert_array_equal(shifted.weights, head.weights)
    median = head.shifted(np.median(before, axis=0))
    np.testing.assert_allclose(median.bits(x).mean(axis=0), 0.5, atol=0.002)


@pytest.mark.parametrize('dims', [(5, 16), (5, 7, 16)])
def test_a_new_order_only_moves_the_bits(dims):
    head, x = head_of(dims), vectors(50, 5)
    order = np.random.default_rng(2).permutation(16)
    bits, reordered = head.bits(x), head.reordered(order).bits(x)
    for j in range(16):
        np.testing.assert_array_equal(reordered[:, j], bits[:, order[j]])
    np.testing.assert_array_equal(head.reordered(order).reordered(np.argsort(order)).bits(x), bits)
