"""What the steps of a job count: as elements, which is exact on any runner, and as counters, to watch the job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.runners.runner import PipelineResult

COUNTS = 'counts'  # the output of a step that has its counts


def counted(**numbers: int) -> beam.pvalue.TaggedOutput:
    """What a step counted, by name, as an element of its output COUNTS."""
    return beam.pvalue.TaggedOutput(COUNTS, numbers)


def with_counts(step: beam.ParDo) -> beam.PTransform:
    """A step with two outputs: its results, and COUNTS."""
    return step.with_outputs(COUNTS, main='results')


def add_counts(several: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum by name.

    >>> add_counts([{'rows_read': 2, 'answers': 1}, {'rows_read': 3}])
    {'rows_read': 5, 'answers': 1}
    """
    totals: dict[str, int] = {}
    for numbers in several:
        for name, n in numbers.items():
            totals[name] = totals.get(name, 0) + n
    return totals


NAMESPACE = 'grainhash'  # of the counters


def count(**numbers: int) -> None:
    """Add to the job's counters of these names, from a step."""
    for name, n in numbers.items():
        Metrics.counter(NAMESPACE, name).inc(n)


def distribute(**numbers: Iterable[int]) -> None:
    """Add to the job's distributions of these names, from a step."""
    for name, values in numbers.items():
        distribution = Metrics.distribution(NAMESPACE, name)
        for value in values:
            distribution.update(value)


def counters(result: PipelineResult) -> dict[str, int]:
    """Totals of the counters that the job's steps kept."""
    totals: dict[str, int] = {}
    for counter in result.metrics().query()['counters']:
        if counter.key.metric.namespace == NAMESPACE:
            name = counter.key.metric.name
            totals[name] = totals.get(name, 0) + (counter.result or 0)  # portable runners give None for 0
    return totals
