"""How a build ended, for Prometheus: the file that node-exporter's textfile collector picks up."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hashing_model.errors import InputError
from pipelines.build.stats import read_build_stats
from pipelines.index import versions
from pipelines.index.manifest import CHANGES
from pipelines.index.versions import Version


def write_metrics(path: str, index: str, version: str, code: int, started: float) -> None:
    """Write how a build ended as a text file for Prometheus, for node-exporter's textfile collector to pick up.

    Args:
        path: of the file, on a disk; it is replaced at once.
        index: the index, absolute.
        version: the id of the version that was being built, finished or not.
        code: the exit code of the command.
        started: when it began, in seconds since 1970.
    """
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    registry = CollectorRegistry()
    gauges: dict[str, Gauge] = {}
    for metric in metrics(code, started, time.time(), read_build_stats(Version(index, version)), served_time(index)):
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
class Gauge:
    """One value of what HELP describes."""

    name: str
    value: float
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)


def metrics(
    code: int, started: float, ended: float, stats: Mapping[str, Any] | None, served: float | None
) -> Iterator[Gauge]:
    """The metrics of a build that ended, given what `read_build_stats` and `served_time` find."""
    yield Gauge('build_exit_code', code)
    yield Gauge('build_ended_timestamp_seconds', ended)
    yield Gauge('build_seconds', ended - started)
    if served is not None:
        yield Gauge('served_version_timestamp_seconds', served)
    if stats is None:
        return
    yield Gauge('build_bytes', stats['bytes'])
    for result in ('indexed', 'rejected', 'duplicates'):
        yield Gauge('build_records', stats['counters'][result], {'result': result})
    for reason, count in stats['counters']['reasons'].items():
        yield Gauge('build_rejects', count, {'reason': reason})
    for change in CHANGES if stats['changes'] else ():
        yield Gauge('build_images', stats['changes'][change], {'change': change})
    for stage in stats['stages']:
        yield Gauge('build_stage_seconds', stage['seconds'], {'stage': stage['name']})


def served_time(index: str) -> float | None:
    """When the served version was finished, in seconds since 1970; None if none is served."""
    try:
        return datetime.datetime.fromisoformat(versions.read_manifest(index).created).timestamp()
    except (InputError, OSError):
        return None
