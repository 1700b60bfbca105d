"""Labels as compressed rows, against plain Python lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing_model.labels import LabelLevel

WORDS = ('ant', 'bee', 'cat', 'dog', 'ähre', '')
rows_of_words = st.lists(st.lists(st.sampled_from(WORDS), max_size=4), max_size=12)


def as_lists(level):
    """The class names of each image, in the order they are kept."""
    edges = zip(level.starts[:-1], level.starts[1:], strict=True)
    return [[level.names[c] for c in level.classes[a:b]] for a, b in edges]


@given(rows_of_words, st.none() | st.lists(st.sampled_from(WORDS), unique=True))
def test_values_become_the_known_classes_of_each_image(values, names):
    level = LabelLevel.from_values(values, names)
    known = sorted({v for vs in values for v in vs}) if names is None else names
    assert level.names == tuple(known)
    assert as_lists(level) == [sorted({v for v in vs if v in known}, key=known.index) for vs in values]
    assert (level.starts.dtype, level.classes.dtype) == (np.int64, np.int32)
    assert len(level) == len(values)
    assert level.counts.tolist() == [len({v for v in vs if v in known}) for vs in values]


@given(rows_of_words, st.data())
def test_taking_by_numbers_takes_these_images_in_this_order(values, data):
    level = LabelLevel.from_values(values, WORDS)
    rows = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=15)) if values else []
    taken = level.take(np.array(rows, np.int64))
    assert as_lists(taken) == [as_lists(level)[i] for i in rows]
    assert taken.names == level.names
    assert (taken.starts.dtype, taken.classes.dtype) == (np.int64, np.int32)


@given(rows_of_words, st.data())
def test_taking_by_a_mask_keeps_the_order(values, data):
    level = LabelLevel.from_values(values, WORDS)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))), bool)
    assert as_lists(level.take(mask)) == [row for row, kept in zip(as_lists(level), mask, strict=True) if kept]


def test_numbers_from_the_end_are_numbers_and_a_mask_has_the_right_length():
    level = LabelLevel.from_values([['a'], [], ['b', 'a']])
    assert as_lists(level.take(np.array([-1, 0]))) == [['a', 'b'], ['a']]
    with pytest.raises(IndexError):
        level.take(np.array([True, False]))
    with pytest.raises(IndexError):
        level.take(np.array([3]))


@given(rows_of_words)
def test_targets_share_one_among_the_classes_of_an_image(values):
    level = LabelLevel.from_values(values, WORDS)
    targets = level.targets()
    assert targets.shape == (len(values), len(WORDS))
    assert targets.dtype == np.float32
    for row, words in zip(targets, as_lists(level), strict=True):
        for word, share in zip(WORDS, row, strict=True):
            assert share == (np.float32(1 / len(words)) if word in words else 0)


def test_a_thousand_images_of_many_classes_take_little_time_and_memory():
    rng = np.random.default_rng(0)
    values = [[str(c)] for c in rng.integers(0, 40_000, 1000)]
    level = LabelLevel.from_values(values, [str(c) for c in range(40_000)])
    some = rng.permutation(1000)[:300]
    assert as_lists(level.take(some)) == [values[i] for i in some]
    assert level.take(some[:2]).targets().sum() == 2
