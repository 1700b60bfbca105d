"""Linear codes, against the tables, all their words, and the transform's definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing_model.heads.linear_codes import _least_weight, bch, walsh_code, walsh_transform


def all_words(points, dims):
    """Every word of the code of these points, as 0 and 1, without complements: [2^dims, points]."""
    return np.array([[(m & int(x)).bit_count() % 2 for x in points] for m in range(2**dims)])


@pytest.mark.parametrize('bits', [4, 8, 16, 32, 64])
def test_bch_codes_have_the_distances_of_the_tables(bits):
    """MacWilliams and Sloane, ch. 9: extended primitive BCH codes [n, k, d]."""
    table = {
        4: {3: 2},
        8: {4: 4, 7: 2},
        16: {5: 8, 7: 6, 11: 4},
        32: {6: 16, 11: 12},
        64: {7: 32, 10: 28},
    }[bits]
    for k, distance in table.items():
        points, dims = bch(bits, k - 1)
        assert dims == k - 1
        assert len(set(points.tolist())) == bits
        weights = all_words(points, dims)[1:].sum(axis=1)
        assert min(weights.min(), bits - weights.max()) == distance
        assert _least_weight(points, dims) == distance


@pytest.mark.parametrize(('bits', 'dims', 'least'), [(12, 5, 4), (24, 6, 9), (24, 11, 7), (48, 6, 21), (48, 9, 17)])
def test_exchanged_points_have_the_distance_that_a_walsh_transform_tells(bits, dims, least):
    points = walsh_code(bits, dims)
    assert len(set(points.tolist())) == bits
    weights = all_words(points, dims)[1:].sum(axis=1)
    assert min(weights.min(), bits - weights.max()) == _least_weight(points, dims) >= least


@given(st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_the_walsh_transform_is_its_sum(dims, seed):
    values = np.random.default_rng(seed).standard_normal(2**dims)
    expected = [sum(v * (-1) ** (m & x).bit_count() for m, v in enumerate(values)) for x in range(2**dims)]
    np.testing.assert_allclose(walsh_transform(values), expected, atol=1e-9)
