"""Running a pipeline: default runner, Beam's options checked, errors of workers as one line.

Jobs wire themselves in their own `define_pipeline`; nothing here knows what they do.
"""

from __future__ import annotations

import _thread
import argparse
import builtins
import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, GoogleCloudOptions, PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineResult, PipelineState

from hashing_model.errors import BuildError, GateError, InputError
from pipelines.requests import UnknownOptionError

LOCAL_RUNNER = 'FnApiRunner'  # DirectRunner would first look for a binary to download
JOB_SERVER_LOGS = 'FlinkJarJobServer', 'SparkJarJobServer'  # loggers of the lines of those that Beam starts
WAITING = 'Still waiting for startup of environment'  # it says so every two minutes
PATIENCE = 2
_OS_ERRORS = [name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, OSError)]
_KNOWN_ERROR = re.compile(
    rf'^(?:RuntimeError: )?(?:\S+\.)?(InputError|BuildError|GateError|BeamIOError|{"|".join(_OS_ERRORS)}): (.*)$',
    re.MULTILINE,
)
_WHERE = re.compile(r' \[while running .*')


class JobLostError(RuntimeError):
    """The launcher lost the job, which may still be running."""


class FlinkServerOptions(PipelineOptions):
    """An option of Flink's job server that Beam's Python side does not know."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument('--flink_conf_dir', help='Folder with a flink-conf.yaml, for an embedded Flink')


def pipeline_options(beam_args: Sequence[str]) -> PipelineOptions:
    """Beam's options, run locally unless a runner is named.

    Raises:
        InputError: an option that neither grainhash nor Beam knows.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for group in PipelineOptions.__subclasses__():
        group._add_argparse_args(parser)
    known, unknown = parser.parse_known_args(list(beam_args))
    if unknown:
        raise UnknownOptionError(unknown[0], 'neither grainhash nor Beam has it')
    return PipelineOptions([*beam_args, *([] if known.runner else [f'--runner={LOCAL_RUNNER}'])])


def threads_per_worker(options: PipelineOptions) -> int | None:
    """Threads of one worker process, so that processes x threads = cores; None takes all cores.

    Other runners than the local one start a process per core.
    """
    if options.view_as(StandardOptions).runner != LOCAL_RUNNER:
        return 1
    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode != 'multi_processing':
        return None
    workers = direct.direct_num_workers or os.cpu_count() or 1
    return max((os.cpu_count() or 1) // workers, 1)


def run_pipeline(define: Callable[[beam.Pipeline], Any], options: PipelineOptions) -> PipelineResult | None:
    """Run a pipeline to its end.

    Returns:
        The result; None if the job was only staged for Dataflow to start later, as with `--template_location`.

    Raises:
        InputError, BuildError, GateError, OSError: raised by a worker; the message is the worker's.
        InputError: no such runner.
        BuildError: a job server on this machine has waited minutes for workers to connect.
        JobLostError: the job may still be running; what it works on must not be touched.
        BaseException: whatever else the runner raises, and interrupts; the job has ended.
    """
    try:
        pipeline = beam.Pipeline(options=options)
    except ValueError as e:
        raise InputError(str(e)) from e
    define(pipeline)
    result = None
    try:
        with _job_server_watched() as watch:
            result = pipeline.run()
            if options.view_as(GoogleCloudOptions).template_location:
                return None
            result.wait_until_finish()
    except BaseException as e:
        _stop(result, e)
        if watch.gave_up:
            raise BuildError(
                'workers were asked for and have not connected for minutes: look at what the worker pool prints; its '
                'python must have grainhash'
            ) from e
        if not isinstance(e, Exception):
            raise
        found = _KNOWN_ERROR.findall(f'{type(e).__name__}: {e}')  # a remote worker's error comes as its traceback
        if not found:
            raise
        name, message = found[-1]
        kind = {'InputError': InputError, 'BuildError': BuildError, 'GateError': GateError}.get(name, OSError)
        raise kind(_WHERE.sub('', message)) from e
    return result


class _JobServerWatch(logging.Filter):
    """Reads what a job server prints, and interrupts the command when it waits for workers that do not come.

    Beam waits forever for a worker that died before it connected or that never started, and logs this every two
    minutes.

    Args:
        level: from which the records are logged.
    """

    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level
        self.said = 0

    @property
    def gave_up(self) -> bool:
        """Whether the command was interrupted."""
        return self.said >= PATIENCE

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record."""
        if WAITING in record.getMessage():
            self.said += 1
            if self.said == PATIENCE:
                _thread.interrupt_main()
        return record.levelno >= self.level


@contextlib.contextmanager
def _job_server_watched() -> Iterator[_JobServerWatch]:
    loggers = [logging.getLogger(name) for name in JOB_SERVER_LOGS]
    levels, watch = [logger.level for logger in loggers], _JobServerWatch(loggers[0].getEffectiveLevel())
    for logger in loggers:
        logger.addFilter(watch)
        logger.setLevel(min(watch.level, logging.INFO))  # or what is printed would not come to the filter
    try:
        yield watch
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeFilter(watch)
            logger.setLevel(level)


def _stop(result: PipelineResult | None, cause: BaseException) -> None:
    """Cancel a job that is still running when its launcher ends, for example because it was interrupted."""
    try:
        if result is None or PipelineState.is_terminal(result.state):
            return
    except ValueError:  # the channel is closed: Beam stops a job server that it has started, when it is interrupted
        return
    try:
        result.cancel()
        if PipelineState.is_terminal(result.state):
            return
        problem = f'its state is {result.state}'
    except Exception as e:
        problem = f'{type(e).__name__}: {e}'
    raise JobLostError(f'the job could not be stopped ({problem}) and may be running on: {cause}') from cause


def list_values(element: tuple[Any, Iterable[Any]]) -> tuple[Any, list[Any]]:
    """A group with its values as a list, so that they may be read in any thread."""
    return element[0], list(element[1])
