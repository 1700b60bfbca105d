"""What the commands about versions do: list, promote, roll back. No job runs, so neither Beam nor TensorFlow loads.

As in `commands.py`, each function takes the parsed arguments, and nothing here computes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from hashing_model.errors import InputError
from pipelines.commands import tell
from pipelines.index import files
from pipelines.index import versions as index_versions


def versions(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Print the versions of an index, as a table or as JSON."""
    from pipelines.inspect_index import print_versions, summarize_versions

    index = files.absolute(args.index)
    found = index_versions.list_versions(index)
    rows = summarize_versions(found, index_versions.look(index).text)
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


def _serve(name: str, index: str, version: str, believed: index_versions.Current) -> None:
    index_versions.publish(index, version, believed)
    if believed.text == version:
        tell(f'{name}: serves {version} already')
    else:
        tell(f'{name}: serves {version} now; it was {believed.text or "none"}')
