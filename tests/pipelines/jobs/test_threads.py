"""Functions called for several elements at once give what `FlatMap` gives, and never outlive their bundle."""

import threading
import time

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from hashing_model.errors import BuildError
from pipelines.jobs.blocks import THREADS
from pipelines.jobs.runner import pipeline_options, run_pipeline
from pipelines.jobs.threads import InThreads
from tests.helpers.make_index import REPEATED

pytestmark = pytest.mark.beam


def multiples(number, factors):
    time.sleep(0.01 * (number % 3))  # those begun later may end earlier
    for factor in factors:
        yield number * factor


@pytest.mark.beam
@pytest.mark.parametrize('options', [[], [REPEATED]])
@pytest.mark.parametrize('count', [0, 1, 2, 3, 20])
def test_results_are_those_of_flat_map(options, count):
    def define(root):
        numbers = root | 'Numbers' >> beam.Create(range(count))
        factors = beam.pvalue.AsList(root | 'Factors' >> beam.Create([1, 1000, 1_000_000]))
        found = numbers | beam.ParDo(InThreads(multiples), factors)
        keyed = found | beam.Map(lambda n: (n, None)) | beam.GroupByKey()  # late results must have a window, too
        assert_that(found, equal_to([n * f for n in range(count) for f in (1, 1000, 1_000_000)]))
        assert_that(keyed | beam.Keys(), equal_to({n * f for n in range(count) for f in (1, 1000, 1_000_000)}), 'keys')

    run_pipeline(define, pipeline_options(options))


def meet(element):
    """Returns only if several threads are in here at once."""
    MEETING.wait(timeout=30)
    yield element


MEETING = threading.Barrier(THREADS)


def test_elements_are_worked_on_at_once():
    def define(root):
        met = root | beam.Create(range(2 * THREADS)) | beam.Reshuffle() | beam.ParDo(InThreads(meet))
        assert_that(met, equal_to(range(2 * THREADS)))

    run_pipeline(define, pipeline_options([]))


ENDED = []


def fail_or_take_long(element):
    if element == 0:
        raise BuildError('no such luck')
    time.sleep(0.5)
    ENDED.append(element)
    return [element]


def test_an_error_ends_the_bundle_when_nothing_is_at_work_any_more():
    del ENDED[:]

    def define(root):
        return root | beam.Create(range(6)) | beam.ParDo(InThreads(fail_or_take_long))

    with pytest.raises(BuildError, match='no such luck'):
        run_pipeline(define, pipeline_options([]))
    ended = list(ENDED)
    time.sleep(1)
    assert ended == ENDED
    assert len(ended) < 5
