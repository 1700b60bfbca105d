"""The order of bits, against what must hold of any order and what a search visits."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing_model.codes.bit_order import order_bits
from hashing_model.codes.bits import pack_bits
from hashing_model.evaluation.code_health import substring_entropy


def inside(bits, order, run):
    """The squared correlation between bits of the same run."""
    correlation = np.corrcoef(bits[:, order].T) ** 2
    runs = np.arange(bits.shape[1]) // run
    return correlation[(runs[:, None] == runs) & ~np.eye(len(runs), dtype=bool)].sum()


def twins(count=2000, pairs=16, seed=0):
    """Pairs of nearly equal bits, side by side."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.random((count, pairs)) < 0.5, 2, axis=1) ^ (rng.random((count, 2 * pairs)) < 0.05)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(2, 40), st.integers(0, 99))
def test_it_is_a_permutation_even_of_constant_bits(width, count, seed):
    bits = np.random.default_rng(seed).random((count, width)) < 0.2
    assert sorted(order_bits(bits).tolist()) == list(range(width))


def test_twins_are_parted():
    bits = twins()
    order = order_bits(bits)
    halves = [set(order[:16] // 2), set(order[16:] // 2)]
    assert halves[0] == halves[1] == set(range(16))  # one of each pair in each half
    assert inside(bits, order, 16) < 0.1 * inside(bits, np.arange(32), 16)


def test_a_search_visits_fewer_images():
    bits = twins()
    order = order_bits(bits[:1000])
    substrings = [(0, 16), (16, 16)]
    before, after = (
        sum(2 ** -substring_entropy(pack_bits(b), *s) for s in substrings) for b in (bits[1000:], bits[1000:, order])
    )
    assert after < before / 10


def test_no_swap_of_two_bits_between_the_halves_makes_it_better():
    bits = np.random.default_rng(3).standard_normal((500, 8)) @ np.random.default_rng(4).standard_normal((8, 24)) > 0
    order = order_bits(bits)
    best = inside(bits, order, 12)
    for i in range(12):
        for j in range(12, 24):
            other = order.copy()
            other[[i, j]] = other[[j, i]]
            assert inside(bits, other, 12) >= best - 1e-9
