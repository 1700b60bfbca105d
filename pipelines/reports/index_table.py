"""What an index holds, and its versions, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from pipelines.reports.console import output_console
from pipelines.reports.units import describe_size


def print_summary(summary: dict[str, Any]) -> None:
    """The summary for people, on standard output."""
    console = output_console(soft_wrap=True)
    model = summary['model']
    console.print(f'version   {summary["version"]}, made {summary["created"]}, format {summary["format_version"]}')
    console.print(f'model     {model["method"]} {model["fingerprint"][:12]}' if model else 'model     none, from codes')
    segments = ', '.join(f'{name} {bits}' for name, bits in summary['segments'].items())
    console.print(f'segments  {segments} bits')
    console.print(
        f'images    {summary["images"]:,} in {summary["image_parts"]:,} parts, from {summary["input_files"]:,} files; '
        f'the index has {describe_size(summary["bytes"])}'
    )
    records = ', '.join(f'{name.replace("_", " ")} {n:,}' for name, n in summary['counters'].items())
    console.print(f'records   {records}')
    if summary['rejects']:
        rejects = ', '.join(f'{reason} {n:,}' for reason, n in summary['rejects'].items())
        console.print(f'rejects   {rejects}')
    if summary['changes']:
        c = summary['changes']
        changes = ', '.join(f'{name} {c[name]:,}' for name in ('added', 'changed', 'unchanged', 'removed'))
        console.print(f'changes   {changes}, since version {c["base"]}')
    if summary['gate']:
        console.print(f'gate      {summary["gate"]}')
    table = Table(box=None, pad_edge=False)
    for name in ('table', 'segment', 'bits', 'partitions', 'files', 'rows', 'smallest', 'median', 'largest', 'size'):
        table.add_column(name, justify='left' if name == 'segment' else 'right')
    for t in summary['tables']:
        sizes = (f'{t[name]:,}' for name in ('smallest_partition', 'median_partition', 'largest_partition'))
        bits = f'{t["first_bit"]}-{t["first_bit"] + t["bits"] - 1}'
        counts = (f'{t[name]:,}' for name in ('partitions', 'files', 'rows'))
        table.add_row(str(t['table']), t['segment'], bits, *counts, *sizes, describe_size(t['bytes']))
    console.print(table)


def print_versions(rows: Sequence[dict[str, Any]]) -> None:
    """The versions for people, on standard output."""
    console = output_console(soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for name in ('version', 'created', 'rows', 'size', 'gate', 'state'):
        table.add_column(name, justify='right' if name in ('rows', 'size') else 'left')
    for row in rows:
        numbers = (f'{row["rows"]:,}', describe_size(row['bytes'])) if row['created'] else ('', '')
        table.add_row(row['version'], row['created'], *numbers, row['gate'], row['state'])
    console.print(table)
