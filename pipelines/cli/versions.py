"""`grainhash inspect`, `versions`, `promote`, `rollback`, `prune`, `verify`: they load neither Beam nor TensorFlow."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from hashing_model.errors import BuildError, InputError
from pipelines import files
from pipelines.cli.logs import tell, tell_report
from pipelines.index import maintenance
from pipelines.index import versions as index_versions
from pipelines.reports.units import describe_size


def inspect(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Print what a version holds."""
    from pipelines.index.summary import summarize
    from pipelines.reports.index_table import print_summary

    summary = summarize(index_versions.read_manifest(files.absolute(args.index), args.version))
    _print_json(summary) if args.json else print_summary(summary)


def versions(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Print the versions of an index."""
    from pipelines.index.summary import summarize_versions
    from pipelines.reports.index_table import print_versions

    index = files.absolute(args.index)
    rows = summarize_versions(index_versions.list_versions(index), _served(index))
    _print_json(rows) if args.json else print_versions(rows)


def promote(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Make a finished version the served one."""
    tell_report(maintenance.promote_version(args.index, args.version), args.json)


def rollback(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Serve the newest finished version that is older than the served one."""
    tell_report(maintenance.roll_back(args.index), args.json)


def prune(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Remove old versions and left-overs of dead builds."""
    report = maintenance.prune_index(args.index, args.keep, args.older_than)
    if args.json:
        tell_report(report, True)
        return
    for line in report.lines():
        print(line)
    tell(
        f'{args.index}: {len(report.finished):,} old versions, {len(report.dead):,} dead builds and '
        f'{len(report.left_over):,} other left-over files removed, {describe_size(report.bytes)}'
    )


def verify(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Compare a version with its manifest; a line on standard output for everything that is wrong.

    Raises:
        BuildError: something is wrong.
    """
    report = maintenance.verify_index(args.index, args.version, None if args.json else _print_at_once)
    if args.json:
        tell_report(report, True)
    if report.problems:
        many = f'{len(report.problems):,} problems'
        raise BuildError(f'{args.index}: version {report.version} is not as it was built: {many}')
    tell(
        f'{args.index}: version {report.version} is whole: {report.rows:,} images, {report.files:,} files, '
        f'{describe_size(report.bytes)}, {report.seconds:.0f} s'
    )
    if report.without_digest:
        tell(
            f'{report.without_digest:,} files have no digest in this older manifest: sizes and codes were checked, not '
            'every byte'
        )


def _served(index: str) -> str | None:
    """The served version, None if none is; as readers read it, who may not be allowed to write."""
    try:
        return index_versions.current_version(index)
    except InputError:
        return None


def _print_at_once(line: str) -> None:
    print(line, flush=True)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))
