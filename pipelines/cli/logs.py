"""What the person who runs a command hears: lines of progress, results on standard error, data on standard output."""

from __future__ import annotations

import json
import logging
import sys
import time

from pipelines.requests import Report

PROGRESS_SECONDS = 15
STAGES = 'pipelines.build.stats'  # logs a line per stage


def tell(message: str) -> None:
    """A result for the person who ran the command; standard output is for data."""
    sys.stderr.write(f'{message}\n')  # at once: `print` lets a line that an engine logs come before the end


def tell_report(report: Report, as_json: bool) -> None:
    """What a command found or did: its lines, or all of it as JSON on standard output."""
    if as_json:
        print(json.dumps(report.to_json(), indent=1, ensure_ascii=False, allow_nan=False))
        return
    for line in report.lines():
        tell(line)


def set_up_logging(verbose: bool) -> None:
    """Warnings and a line of progress now and then, or every step.

    A worker's traceback reaches us with its exception, so Beam need not log it too.
    """
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter('%(name)s: %(message)s' if verbose else '%(message)s'))
        root.addHandler(handler)
        handler.filters = [] if verbose else [_NowAndThen(PROGRESS_SECONDS)]
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    logging.getLogger('pipelines').setLevel(logging.INFO)
    logging.getLogger('apache_beam').setLevel(logging.INFO if verbose else logging.CRITICAL)
    logging.getLogger('apache_beam.typehints').setLevel(logging.WARNING)


class _NowAndThen(logging.Filter):
    """Lets one INFO record pass in so many seconds, everything more serious, and what stages have done."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds
        self.last = time.monotonic()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record."""
        if record.levelno > logging.INFO:
            return True
        if record.name == STAGES:
            return True
        due = time.monotonic() - self.last >= self.seconds
        self.last = time.monotonic() if due else self.last
        return due
