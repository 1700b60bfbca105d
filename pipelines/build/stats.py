"""What a build did and how long it took: `build.json` of a version, a log line per stage, a file of metrics.

Everything is counted from the results that arrive, so that a bundle which ran twice counts once; Beam's own counters
and distributions, which the steps keep beside, may count it twice.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hashing_model.errors import InputError
from pipelines import files
from pipelines.build.base import CHANGES
from pipelines.index import versions
from pipelines.index.manifest import DataFile, Manifest

FORMAT_VERSION = 1
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Work:
    """A piece of work: when it began and ended, in seconds since 1970."""

    started: float
    ended: float


@dataclasses.dataclass(frozen=True)
class Stage:
    """All work of one kind.

    Args:
        name: what was done.
        tasks: pieces of work.
        started: when the first began, in seconds since 1970.
        seconds: from then until the last ended.
        work_seconds: of all pieces together; more than `seconds` where they run beside each other.
        counts: what they did.
    """

    name: str
    tasks: int
    started: float
    seconds: float
    work_seconds: float
    counts: Mapping[str, int | float]

    @classmethod
    def of(cls, name: str, works: Sequence[Work], **counts: float) -> Stage:
        """The stage of some pieces of work."""
        started, ended = min((w.started for w in works), default=0), max((w.ended for w in works), default=0)
        work_seconds = sum(w.ended - w.started for w in works)
        return cls(name, len(works), round(started, 3), round(ended - started, 3), round(work_seconds, 3), counts)

    def line(self) -> str:
        """One line for a log, as `name=value` words."""
        words = {'stage': self.name, 'tasks': self.tasks, 'seconds': self.seconds, 'work_seconds': self.work_seconds}
        return ' '.join(f'{name}={value}' for name, value in {**words, **self.counts}.items())


def write_stats(folder: str, manifest: Manifest, stages: Sequence[Stage], started: float) -> DataFile:
    """Write a version's `build.json`, and log a line per stage.

    Args:
        folder: the version's.
        manifest: as far as it is known.
        stages: in order.
        started: when the build began, in seconds since 1970.
    """
    value = {
        'format_version': FORMAT_VERSION,
        'version': manifest.version,
        'started': round(started, 3),
        'seconds': round(time.time() - started, 3),
        'model': manifest.model,
        'gate': manifest.gate,
        'rows': manifest.rows,
        'bytes': sum(file.bytes for file in manifest.all_files),
        'counters': manifest.counters,
        'changes': manifest.changes,
        'stages': [dataclasses.asdict(stage) for stage in stages],
        'libraries': manifest.libraries,
    }
    for stage in stages:
        log.info(stage.line())
    content = (json.dumps(value, indent=1) + '\n').encode()
    return versions.write_data_file(folder, versions.BUILD_PATH, 0, content)


def write_metrics(path: str, index: str, version: str, code: int, started: float) -> None:
    """Write how a build ended as a text file for Prometheus, for node-exporter's textfile collector to pick up.

    Args:
        path: of the file, on a disk; it is replaced at once.
        index: the index, absolute.
        version: that was being built, however far that came.
        code: the exit code of the command.
        started: when it began, in seconds since 1970.
    """
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    registry = CollectorRegistry()
    gauges: dict[str, Gauge] = {}
    for metric in metrics(code, started, time.time(), read_stats(index, version), served_time(index)):
        if metric.name not in gauges:
            labels = ['index', *metric.labels]
            gauges[metric.name] = Gauge(f'grainhash_{metric.name}', HELP[metric.name], labels, registry=registry)
        gauges[metric.name].labels(index=index, **metric.labels).set(metric.value)
    Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
    write_to_textfile(path, registry)


HELP = {
    'build_exit_code': 'Exit code of the last build: 0 served, 1 failed, 2 bad input, 3 failed its gate.',
    'build_ended_timestamp_seconds': 'When the last build ended.',
    'build_seconds': 'How long the last build took.',
    'served_version_timestamp_seconds': 'When the version that is served was finished.',
    'build_records': 'Records that the last build read, by what became of them.',
    'build_rejects': 'Records that the last build rejected, by reason.',
    'build_images': 'Images of the last build and of the version before, by what changed.',
    'build_stage_seconds': 'How long each stage of the last build took.',
    'build_bytes': 'Size of the version that the last build wrote.',
}


@dataclasses.dataclass(frozen=True)
class Metric:
    """One value of what HELP describes."""

    name: str
    value: float
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)


def metrics(
    code: int, started: float, ended: float, stats: Mapping[str, Any] | None, served: float | None
) -> Iterator[Metric]:
    """The metrics of a build that ended, given what `read_stats` and `served_time` find."""
    yield Metric('build_exit_code', code)
    yield Metric('build_ended_timestamp_seconds', ended)
    yield Metric('build_seconds', ended - started)
    if served is not None:
        yield Metric('served_version_timestamp_seconds', served)
    if stats is None:
        return
    yield Metric('build_bytes', stats['bytes'])
    for result in ('indexed', 'rejected', 'duplicates'):
        yield Metric('build_records', stats['counters'][result], {'result': result})
    for reason, count in stats['counters']['reasons'].items():
        yield Metric('build_rejects', count, {'reason': reason})
    for change in CHANGES if stats['changes'] else ():
        yield Metric('build_images', stats['changes'][change], {'change': change})
    for stage in stats['stages']:
        yield Metric('build_stage_seconds', stage['seconds'], {'stage': stage['name']})


def read_stats(index: str, version: str) -> dict[str, Any] | None:
    """The `build.json` of a version; None if there is none, or none that can be read."""
    try:
        return json.loads(files.read_bytes(files.join(versions.version_folder(index, version), versions.BUILD_PATH)))
    except (InputError, OSError):
        return None


def served_time(index: str) -> float | None:
    """When the served version was finished, in seconds since 1970; None if none is served."""
    try:
        return datetime.datetime.fromisoformat(versions.read_manifest(index).created).timestamp()
    except (InputError, OSError):
        return None
