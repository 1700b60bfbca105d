"""What the commands about versions do: list, promote, roll back, prune, verify. They load neither Beam nor TensorFlow.

As in `commands.py`, each function takes the parsed arguments, and nothing here computes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

from hashing_model.errors import BuildError, InputError
from pipelines import files
from pipelines.cli.query import tell
from pipelines.index import versions as index_versions


def versions(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Print the versions of an index, as a table or as JSON."""
    from pipelines.index.summary import summarize_versions
    from pipelines.reports.index_table import print_versions

    index = files.absolute(args.index)
    found = index_versions.list_versions(index)
    rows = summarize_versions(found, _served(index))
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        print_versions(rows)


def promote(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Make a finished version the served one."""
    index = files.absolute(args.index)
    believed = index_versions.look(index)
    index_versions.read_manifest(index, args.version)
    _serve(args.index, index, args.version, believed)


def rollback(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Serve the newest finished version that is older than the served one."""
    index = files.absolute(args.index)
    believed = index_versions.look(index)
    served = index_versions.current_version(index)
    version = index_versions.version_before(index_versions.list_versions(index), served)
    if version is None:
        raise InputError(f'{args.index} has no finished version older than {served}, which is served')
    _serve(args.index, index, version, believed)


def prune(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Remove old versions and left-overs of dead builds."""
    from pipelines.index.prune import prune
    from pipelines.reports.units import describe_size

    if args.older_than < 0:
        raise InputError(f'--older-than is {args.older_than:g}; 0 or more hours are possible')
    removed = prune(files.absolute(args.index), args.keep, time.time() - args.older_than * 3600)
    for kind, names in (('version', removed.finished), ('dead build', removed.dead), ('left-over', removed.files)):
        for name in names:
            print(f'removed {kind} {name}')
    tell(
        f'{args.index}: {len(removed.finished)} old versions, {len(removed.dead)} dead builds and '
        f'{len(removed.files)} other left-over files removed, {describe_size(removed.bytes)}'
    )


def verify(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Compare a version with its manifest; a line on standard output for everything that is wrong."""
    from pipelines.index.verify import verify
    from pipelines.reports.units import describe_size

    started, index = time.monotonic(), files.absolute(args.index)
    version = index_versions.current_version(index) if args.version is None else args.version
    folder = index_versions.version_folder(index, version)
    try:
        manifest = index_versions.read_manifest(index, version)
        lines = verify(folder, manifest)
    except InputError as e:
        if not files.exists(files.join(folder, index_versions.MANIFEST_PATH)):
            raise
        lines = iter([str(e)])
    problems = 0
    for line in lines:
        print(line, flush=True)
        problems += 1
    if problems:
        raise BuildError(f'{args.index}: version {version} is not as it was built: {problems} problems')
    listed = manifest.all_files
    tell(
        f'{args.index}: version {version} is whole: {manifest.rows:,} images, {len(listed):,} files, '
        f'{describe_size(sum(file.bytes for file in listed))}, {time.monotonic() - started:.0f} s'
    )
    unsigned = sum(file.digest is None for file in listed)
    if unsigned:
        tell(f'{unsigned:,} files have no digest in this older manifest: sizes and codes were checked, not every byte')


def _served(index: str) -> str | None:
    """The served version, None if none is; as readers read it, who may not be allowed to write."""
    try:
        return index_versions.current_version(index)
    except InputError:
        return None


def _serve(name: str, index: str, version: str, believed: index_versions.Current) -> None:
    index_versions.publish(index, version, believed)
    if believed.text == version:
        tell(f'{name}: serves {version} already')
    else:
        tell(f'{name}: serves {version} now; it was {believed.text or "none"}')
