"""What keeps an index in order: serving another version, pruning old ones, verifying one. Neither Beam nor TensorFlow.

grainhash promote my-index VERSION
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from hashing_model.errors import InputError
from pipelines import files
from pipelines.index import versions
from pipelines.index.manifest import DataFile
from pipelines.index.prune import prune_versions
from pipelines.index.verify import verify_version
from pipelines.index.versions import Version
from pipelines.requests import Report


@dataclasses.dataclass(frozen=True)
class ServedReport(Report):
    """Which version an index serves now, and which it served before; None if it served none."""

    index: str
    version: str
    was: str | None

    def lines(self) -> list[str]:
        """One line."""
        if self.was == self.version:
            return [f'{self.index}: serves {self.version} already']
        return [f'{self.index}: serves {self.version} now; it was {self.was or "none"}']


def promote_version(index: str, version: str) -> ServedReport:
    """Make a finished version of an index the served one.

    Raises:
        InputError: there is no such version.
        BuildError: another version was served meanwhile.
    """
    folder = files.absolute(index)
    believed = versions.look(folder)
    versions.read_manifest(folder, version)
    versions.publish(folder, version, believed)
    return ServedReport(index, version, believed.text)


def roll_back(index: str) -> ServedReport:
    """Serve the newest finished version of an index that is older than the served one and did not fail its gate.

    Raises:
        InputError: there is none, or no index.
        BuildError: another version was served meanwhile.
    """
    folder = files.absolute(index)
    believed = versions.look(folder)
    served = versions.current_version(folder)
    version = versions.version_before(versions.list_versions(folder), served)
    if version is None:
        raise InputError(f'{index} has no finished version older than {served}, which is served')
    versions.publish(folder, version, believed)
    return ServedReport(index, version, believed.text)


@dataclasses.dataclass(frozen=True)
class PruneReport(Report):
    """What was removed from an index: finished versions, dead builds, left-over files, and their bytes in all.

    `left_alone` are names in `versions/` that no build has made.
    """

    index: str
    finished: tuple[str, ...]
    dead: tuple[str, ...]
    left_over: tuple[str, ...]
    bytes: int
    left_alone: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """A line for everything that was removed."""
        kinds = (('version', self.finished), ('dead build', self.dead), ('left-over', self.left_over))
        removed = [f'removed {kind} {name}' for kind, names in kinds for name in names]
        return [*removed, *(f'left alone {name}, which no build has made' for name in self.left_alone)]


def prune_index(index: str, keep: int, older_than: float = 24) -> PruneReport:
    """Remove old versions of an index, and what builds that died have left.

    Args:
        index: its folder.
        keep: finished versions that stay, apart from as many that failed their gate, and the served one.
        older_than: hours after which a build that has written nothing is dead.

    Raises:
        InputError: a number that is not possible, or no index.
    """
    if older_than < 0:
        raise InputError(f'--older-than is {older_than:g}; 0 or more hours are possible')
    removed = prune_versions(files.absolute(index), keep, time.time() - older_than * 3600)
    return PruneReport(index, removed.finished, removed.dead, removed.files, removed.bytes, removed.left_alone)


@dataclasses.dataclass(frozen=True)
class VerifyReport(Report):
    """Whether a version is as it was built.

    Args:
        index, version: what was read.
        seconds: that it took.
        problems: a line for everything that is wrong.
        rows, files, bytes: of the version.
        without_digest: files whose digest an older manifest does not know: every byte could not be checked.
    """

    index: str
    version: str
    seconds: float
    problems: tuple[str, ...]
    rows: int = 0
    files: int = 0
    bytes: int = 0
    without_digest: int = 0

    def lines(self) -> list[str]:
        """The problems."""
        return list(self.problems)


def verify_index(index: str, version: str | None = None, found: Callable[[str], None] | None = None) -> VerifyReport:
    """Compare every file of a version with its manifest.

    Args:
        index: its folder.
        version: None for the served one.
        found: hears of each problem at once.

    Raises:
        InputError: no such version.
    """
    started, folder = time.monotonic(), files.absolute(index)
    version = versions.current_version(folder) if version is None else version
    problems: list[str] = []
    listed: tuple[DataFile, ...] = ()
    rows = 0
    try:
        opened = Version.open(folder, version)
        listed, rows = opened.manifest.all_files, opened.manifest.rows
        for line in verify_version(opened):
            problems.append(line)
            if found:
                found(line)
    except InputError as e:
        if not Version(folder, version).finished:
            raise
        problems.append(str(e))
        if found:
            found(str(e))
    size, unsigned = sum(file.bytes for file in listed), sum(file.digest is None for file in listed)
    seconds = time.monotonic() - started
    return VerifyReport(index, version, seconds, tuple(problems), rows, len(listed), size, unsigned)
