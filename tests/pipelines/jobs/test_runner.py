"""Running a pipeline: what becomes of a job whose workers never come."""

import logging
import threading
import time

import apache_beam as beam
import pytest

from hashing_model.errors import BuildError
from pipelines.jobs import runner
from pipelines.jobs.runner import pipeline_options, run_pipeline

pytestmark = pytest.mark.beam

LINE = (
    'INFO ...ExternalEnvironmentFactory - Still waiting for startup of environment from localhost:1 for worker id 1-1'
)


def wait(_):
    for _ in range(300):
        time.sleep(0.1)


def say(times):
    """What Beam's thread does that reads a job server's output, once the job runs and somebody listens."""
    logger = logging.getLogger(runner.JOB_SERVER_LOGS[0])
    while not logger.filters:
        time.sleep(0.1)
    time.sleep(1)
    for _ in range(times):
        logger.info('%s', LINE)


@pytest.fixture(params=[logging.WARNING, logging.INFO], ids=['quiet', 'verbose'])
def logger(request, monkeypatch):
    """That of the job server's lines, as the command line sets it."""
    monkeypatch.setattr(logging.getLogger(), 'level', request.param)
    return logging.getLogger(runner.JOB_SERVER_LOGS[0])


@pytest.mark.beam
def test_workers_that_do_not_come_end_the_job(logger, caplog):
    started, level = time.monotonic(), logger.level
    threading.Thread(target=say, args=[runner.PATIENCE]).start()
    with pytest.raises(BuildError, match='workers were asked for and have not connected for minutes'):
        run_pipeline(lambda root: root | beam.Create([1]) | beam.Map(wait), pipeline_options([]))
    assert time.monotonic() - started < 25
    assert (logger.level, logger.filters) == (level, [])
    assert (LINE in caplog.text) == (logger.getEffectiveLevel() <= logging.INFO)


def test_workers_that_come_late_do_not(logger):
    run_pipeline(lambda root: root | beam.Create([runner.PATIENCE - 1]) | beam.Map(say), pipeline_options([]))
    assert logger.filters == []
