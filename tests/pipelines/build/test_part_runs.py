"""How parts are cut into runs."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.build import part_runs
from pipelines.build.part_runs import Runs, count_runs

LIMIT = 100


@pytest.fixture(autouse=True, scope='module')
def small_runs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part_runs, 'RUN_ROWS', LIMIT)
        yield


@given(st.lists(st.integers(0, 130)), st.randoms(use_true_random=False))
def test_runs_are_successive_parts_as_many_as_fit(sizes, order):
    elements = list(enumerate(sizes))
    cut = Runs.cut(order.sample(elements, len(elements)))
    assert cut.rows == sum(sizes)
    numbers = [cut.of(part) for part in range(len(sizes))]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(len(cut.firsts)))
    of_run = [[sizes[part] for part in range(len(sizes)) if numbers[part] == run] for run in range(len(cut.firsts))]
    assert all(sum(found) <= LIMIT or len(found) == 1 for found in of_run)
    assert all(sum(a) + b[0] > LIMIT for a, b in itertools.pairwise(of_run))


@given(st.integers(1, 50), st.integers(1, 130))
def test_runs_of_equal_parts_are_counted(parts, rows):
    assert count_runs(parts, rows) == len(Runs.cut((part, rows) for part in range(parts)).firsts)
