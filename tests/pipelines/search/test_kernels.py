import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing_model.codes.bits import bit_mask, hamming, to_words
from pipelines.index.layout import Substring, substring_keys
from pipelines.search import kernels


@given(st.integers(1, 9), st.integers(1, 9))
def test_a_ring_goes_through_every_mask_of_its_size_once(free_bits, radius):
    found, flips = [], (1 << radius) - 1
    while flips < 1 << free_bits:
        found.append(flips)
        flips = int(kernels._next_ring_member(np.int64(flips)))
    assert found == [m for m in range(1 << free_bits) if m.bit_count() == radius]


def test_kth_distances_equal_a_full_sort():
    rng = np.random.default_rng(0)
    queries, codes = rng.integers(0, 256, (7, 12), np.uint8), rng.integers(0, 256, (500, 12), np.uint8)
    masks = np.stack([bit_mask(0, 40, 12), bit_mask(40, 56, 12)])
    weights = np.array([3, 1])
    exact = 3 * hamming(queries[:, None, :5], codes[None, :, :5]) + hamming(queries[:, None, 5:], codes[None, :, 5:])
    got = kernels.kth_distances(to_words(queries), to_words(codes), masks, weights, 11)
    np.testing.assert_array_equal(got, np.sort(exact, axis=1)[:, 10])


def test_distance_histogram_counts_pairs():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 256, (9, 8), np.uint8), rng.integers(0, 256, (31, 8), np.uint8)
    got = kernels.distance_histogram(to_words(a), to_words(b), bit_mask(16, 16, 8), 16)
    expected = np.bincount(hamming(a[:, None, 2:4], b[None, :, 2:4]).ravel(), minlength=17)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize('num_bytes', [4, 6, 8, 12, 16, 24, 32])
@pytest.mark.parametrize('k', [0, 1, 10, 1000])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), radius=st.integers(0, 12), bound=st.integers(0, 200), rows=st.integers(0, 300))
def test_a_partition_answers_what_it_owns(num_bytes, k, seed, radius, bound, rows):
    """Against plain numpy: one partition of table 1, with table 0 probed to radius 2."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (rows, num_bytes), np.uint8) & rng.integers(0, 256, (rows, num_bytes), np.uint8)
    queries = rng.integers(0, 256, (5, num_bytes), np.uint8) & rng.integers(0, 256, (5, num_bytes), np.uint8)
    first, second = Substring(0, 0, 11), Substring(0, 11, 13)
    keys = substring_keys(codes, second)
    inside = keys >> 10 == 0b001
    order = np.flatnonzero(inside)[np.argsort(keys[inside], kind='stable')]
    radii = np.tile(np.array([2, radius]), (5, 1))
    radii[4] = -1
    held = kernels.KeyedCodes(keys[order], to_words(codes[order]), 0b001, 10)
    table_masks = np.stack([first.mask(num_bytes), second.mask(num_bytes)])
    metric = bit_mask(0, num_bytes * 8, num_bytes)[None], np.ones(1, np.int64)
    asked = kernels.Lookups(to_words(queries), radii, table_masks, *metric, np.full(5, bound), k)
    got = kernels.search_partition(held, order, 1, asked, substring_keys(queries, second))
    for q in range(5):
        mine = sorted(zip(*(a[got[0] == q].tolist() for a in got[1:]), strict=True))
        d = hamming(queries[q], codes) if rows else np.zeros(0, int)
        d0 = np.bitwise_count(substring_keys(codes, first) ^ substring_keys(queries, first)[q])
        d1 = np.bitwise_count(keys ^ substring_keys(queries, second)[q])
        wanted = inside & (d0 > 2) & (d1 <= radius) & (d <= bound) & (q != 4)
        expected = sorted(zip(d[wanted].tolist(), np.flatnonzero(wanted).tolist(), strict=True))
        assert mine == (expected[:k] if k else expected)


@pytest.mark.process
def test_kernels_need_no_folder_for_their_cache(tmp_path):
    """As in a read-only install of a user without a home."""
    shutil.copy(kernels.__file__, tmp_path / 'copied.py')
    (tmp_path / '__pycache__').write_bytes(b'')  # a file: nobody, not even root, can write below it
    code = (
        'import numpy as np, copied\n'
        'from numba.core.caching import NullCache\n'
        'assert isinstance(copied.kth_distances._cache, NullCache)\n'
        'one, codes = np.ones(1, np.int64), np.array([[0], [1], [7]], np.uint64)\n'
        'print(copied.kth_distances(codes[:1], codes, np.full((1, 1), 255, np.uint64), one, 3))\n'
    )
    unset = ('NUMBA_CACHE_DIR', 'NUMBA_CACHE_LOCATOR_CLASSES', 'XDG_CACHE_HOME')
    env = {name: value for name, value in os.environ.items() if name not in unset}
    env |= {'HOME': str(tmp_path / '__pycache__'), 'PYTHONPATH': str(tmp_path)}
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ('[3]\n', '')
