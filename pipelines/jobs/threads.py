"""A step that works on several elements of a bundle at once."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows
from apache_beam.typehints.decorators import no_annotations

from pipelines.jobs.blocks import THREADS


class InThreads(beam.DoFn):
    """Calls a function of an element, and of side inputs, for THREADS elements of a bundle at once; emits its results.

    It is for functions that spend their time outside Python's lock. They must not call `count`, nor read the values of
    a GroupByKey without `list_values` before, because counters, and values that a runner sends on demand, belong to the
    step's thread. A bundle ends, successfully or not, only after all its calls have ended.
    """

    def __init__(self, function: Callable[..., Iterable[Any]]):
        self.function = function

    def start_bundle(self) -> None:
        """Start the threads."""
        self.pool = ThreadPoolExecutor(THREADS)
        self.running: collections.deque[Future] = collections.deque()

    @no_annotations  # Beam takes that of `*side_inputs` for the type of all together
    def process(self, element: Any, *side_inputs: Any) -> Iterator[Any]:
        """Start the call for an element; if all threads are busy, yield the results of an earlier one."""
        if len(self.running) == THREADS:
            yield from self._next()
        self.running.append(self.pool.submit(lambda: list(self.function(element, *side_inputs))))

    def finish_bundle(self) -> Iterator[Any]:
        """The results that are left."""
        while self.running:
            for result in self._next():
                if isinstance(result, beam.pvalue.TaggedOutput):
                    yield beam.pvalue.TaggedOutput(result.tag, GlobalWindows.windowed_value(result.value))
                else:
                    yield GlobalWindows.windowed_value(result)
        self.pool.shutdown()

    def _next(self) -> list[Any]:
        try:
            return self.running.popleft().result()
        except BaseException:
            self.pool.shutdown(cancel_futures=True)  # what fails may be deleted: nobody must write on
            raise
