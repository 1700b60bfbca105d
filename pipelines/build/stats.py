"""What a build did and how long it took: `build.json` of a version, a log line per stage, a file of metrics.

Everything is counted from the results that arrive, so that a bundle which ran twice counts once. The steps also keep
Beam's counters and distributions, which may count it twice.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hashing_model.errors import InputError
from pipelines import files
from pipelines.index.manifest import DataFile
from pipelines.index.versions import BUILD_PATH, Version

FORMAT_VERSION = 1
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Work:
    """A piece of work: when it began and ended, in seconds since 1970."""

    started: float
    ended: float


@dataclasses.dataclass(frozen=True)
class BuildStage:
    """All work of one kind.

    Args:
        name: what was done.
        tasks: pieces of work.
        started: when the first began, in seconds since 1970.
        seconds: from then until the last ended.
        work_seconds: of all pieces together; more than `seconds` where they ran in parallel.
        counts: what they did.
    """

    name: str
    tasks: int
    started: float
    seconds: float
    work_seconds: float
    counts: Mapping[str, int | float]

    @classmethod
    def of(cls, name: str, works: Sequence[Work], **counts: float) -> BuildStage:
        """The stage of some pieces of work."""
        started, ended = min((w.started for w in works), default=0), max((w.ended for w in works), default=0)
        work_seconds = sum(w.ended - w.started for w in works)
        return cls(name, len(works), round(started, 3), round(ended - started, 3), round(work_seconds, 3), counts)

    def line(self) -> str:
        """One line for a log, as `name=value` words."""
        words = {'stage': self.name, 'tasks': self.tasks, 'seconds': self.seconds, 'work_seconds': self.work_seconds}
        return ' '.join(f'{name}={value}' for name, value in {**words, **self.counts}.items())


def write_build_stats(version: Version, stages: Sequence[BuildStage], started: float) -> DataFile:
    """Write a version's `build.json`, and log a line per stage.

    Args:
        version: with its manifest, as far as that is known.
        stages: in order.
        started: when the build began, in seconds since 1970.
    """
    manifest = version.manifest
    value = {
        'format_version': FORMAT_VERSION,
        'version': version.id,
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
    return version.write(BUILD_PATH, 0, content)


def read_build_stats(version: Version) -> dict[str, Any] | None:
    """The `build.json` of a version; None if there is none, or none that can be read."""
    try:
        return json.loads(files.read_bytes(version.path(BUILD_PATH)))
    except (InputError, OSError):
        return None
