"""Removing what an index does not need any more: old versions, and what builds that died have left.

Pure functions decide what is removed, given what was found. The manifest of a version is removed first, under the lock
that `CURRENT` is changed under, so that a half-removed version is never served.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Mapping, Sequence

from hashing_model.errors import InputError
from pipelines import files
from pipelines.files import FileInfo
from pipelines.index import versions
from pipelines.index.versions import ListedVersion, Version

DEAD_AFTER = 24 * 3600  # seconds without a new file

_log = logging.getLogger(__name__)
_LEFT_OVER = re.compile(rf'{versions.STAGING_FOLDER}/.*|.*\.[0-9a-f]{{32}}\.(tmp|probe)')  # staging; half-written


@dataclasses.dataclass(frozen=True)
class Removed:
    """What `prune_versions` removed.

    Args:
        finished: ids of the finished versions.
        dead: ids of the builds that died.
        files: uris of files that builds had left in versions that stay, or in the index's own folder.
        bytes: the size of it all.
        left_alone: names in `versions/` that no build has made: links, and folders of other names without a manifest.
    """

    finished: tuple[str, ...]
    dead: tuple[str, ...]
    files: tuple[str, ...]
    bytes: int
    left_alone: tuple[str, ...] = ()


def prune_versions(index: str, keep: int, before: float) -> Removed:
    """Remove all finished versions but the newest and the served one, and left-overs of builds that died.

    Args:
        index: absolute path or uri.
        keep: how many of the newest finished versions stay, and of those that failed their gate; the served one does.
        before: a build whose newest file is older than this, in seconds since 1970, counts as dead.

    Raises:
        InputError: not an index, `keep` is below 1, or the folder of the versions is a link.
    """
    if keep < 1:
        raise InputError(f'--keep is {keep}; at least 1 is needed')
    if files.is_link(files.join(index, 'versions')):
        raise InputError(f'{files.join(index, "versions")} is a link; nothing is removed behind links')
    listed, served = versions.list_versions(index), versions.look(index).text
    found = [f for f in listed if made_by_a_build(index, f)]
    held = {f.version: files.infos_below(Version(index, f.version).folder) for f in found}
    touched = {name: _last_touched(index, name, infos) for name, infos in held.items()}
    finished = [version for version in superseded(found, served, keep) if versions.retire(index, version)]
    dead = [
        version
        for version in dead_builds(found, served, touched, before)
        if versions.retire(index, version, finished=False)
    ]
    for version in (*finished, *dead):
        files.delete_folder(Version(index, version).folder)
    staying = [f.version for f in found if f.state == 'finished' and f.version not in finished]
    left = _remove_left_overs(index, before)
    for version in staying:
        left += _remove_left_overs(Version(index, version).folder, before, held[version])
        files.delete_empty_folder(Version(index, version).path(versions.STAGING_FOLDER))
    freed = sum(info.size for version in (*finished, *dead) for info in held[version].values())
    uris, infos = zip(*left, strict=True) if left else ((), ())
    left_alone = tuple(f.version for f in listed if f not in found)
    return Removed(tuple(finished), tuple(dead), uris, freed + sum(info.size for info in infos), left_alone)


def prune_behind(index: str, keep: int) -> None:
    """Prune after a build. A problem is only logged as a warning, because the new version is already served."""
    try:
        removed = prune_versions(index, keep, time.time() - DEAD_AFTER)
    except (InputError, OSError) as e:
        _log.warning('%s: not all that is old could be removed; grainhash prune does it: %s', index, e)
        return
    for name in (*removed.finished, *removed.dead):
        _log.info('%s: version %s is removed', index, name)


def made_by_a_build(index: str, found: ListedVersion) -> bool:
    """Whether what lies in `versions/` is a version or the beginning of one: nothing else is removed, whatever its age.

    It is a folder, no link; it has a manifest of its own name, or a name that builds give.
    """
    if files.is_link(Version(index, found.version).folder):
        return False
    named = found.manifest is not None and found.manifest.version == found.version
    return named or versions.is_version_id(found.version)


def superseded(found: Sequence[ListedVersion], served: str | None, keep: int) -> list[str]:
    """The finished versions, given the oldest first, that are neither served nor among the newest `keep`.

    Versions that failed their gate are counted separately, so that however many nights fail, one that passed is left to
    roll back to.
    """
    finished = [f for f in found if f.state == 'finished']
    failed = [f.version for f in finished if f.manifest and f.manifest.gate == 'failed']
    others = [f.version for f in finished if f.version not in failed]
    old = {*failed[:-keep], *others[:-keep]} - {served}
    return [f.version for f in finished if f.version in old]


def dead_builds(
    found: Sequence[ListedVersion], served: str | None, touched: Mapping[str, float], before: float
) -> list[str]:
    """Versions without a manifest that nobody has written to since a time.

    A version whose manifest cannot be read does not count: another release of grainhash may have written it.
    """
    unfinished = [f.version for f in found if f.state == 'unfinished']
    return [version for version in unfinished if version != served and touched[version] < before]


def left_overs(infos: Mapping[str, FileInfo], before: float) -> list[str]:
    """Paths of files in staging, and of half-written ones, that are from before a time."""
    return [path for path, info in infos.items() if _LEFT_OVER.fullmatch(path) and info.time < before]


def _remove_left_overs(
    folder: str, before: float, infos: Mapping[str, FileInfo] | None = None
) -> list[tuple[str, FileInfo]]:
    """Remove the left-overs in a folder (in sub-folders only if `infos` lists their files).

    Returns what was removed.
    """
    infos = files.infos_below(folder, recursive=False) if infos is None else infos
    gone = [(files.join(folder, path), infos[path]) for path in left_overs(infos, before)]
    for uri, _ in gone:
        files.delete_file(uri)
    return gone


def _last_touched(index: str, version: str, infos: Mapping[str, FileInfo]) -> float:
    """Time of the newest file of a version; without any, of its folder."""
    if infos:
        return max(info.time for info in infos.values())
    return files.time_of(Version(index, version).folder)
