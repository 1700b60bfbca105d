"""What a version of an index holds, in numbers, and which versions there are: `grainhash inspect` and `versions`.

The manifest alone answers; no data file is opened.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pipelines.index.manifest import Manifest
from pipelines.index.versions import Found


def summarize(manifest: Manifest) -> dict[str, Any]:
    """Version, counts, tables with their partition sizes, and rejects by reason, as plain JSON values."""
    return {
        'version': manifest.version,
        'created': manifest.created,
        'format_version': manifest.format_version,
        'model': manifest.model,
        'segments': {s.name: s.bits for s in manifest.spec.segments},
        'images': manifest.rows,
        'counters': {k: v for k, v in manifest.counters.items() if k != 'reasons'},
        'rejects': manifest.counters['reasons'],
        'changes': dict(manifest.changes) if manifest.changes else None,
        'gate': manifest.gate,
        'input_files': manifest.inputs.rows,
        'image_parts': len(manifest.images),
        'tables': [_summarize_table(manifest, number) for number in range(len(manifest.tables))],
        'bytes': sum(f.bytes for f in manifest.all_files),
        'libraries': dict(manifest.libraries),
    }


def _summarize_table(manifest: Manifest, number: int) -> dict[str, Any]:
    table = manifest.tables[number]
    rows = [p.rows for p in table.partitions]
    files = [f for p in table.partitions for f in p.files]
    substring = table.substring
    return {
        'table': number,
        'segment': manifest.spec.segments[substring.segment].name,
        'first_bit': substring.start,
        'bits': substring.bits,
        'partitions': len(rows),
        'files': len(files),
        'rows': sum(rows),
        'smallest_partition': min(rows),
        'median_partition': int(np.median(rows)),
        'largest_partition': max(rows),
        'bytes': sum(f.bytes for f in files),
    }


def print_summary(summary: dict[str, Any]) -> None:
    """The summary for people, on standard output."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120, soft_wrap=True)
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


def summarize_versions(found: Sequence[Found], served: str | None) -> list[dict[str, Any]]:
    """Id, time, rows, bytes, gate and state of each version, as plain JSON values; null where no manifest tells."""
    return [
        {
            'version': f.version,
            'created': f.manifest.created if f.manifest else None,
            'rows': f.manifest.rows if f.manifest else None,
            'bytes': sum(file.bytes for file in f.manifest.all_files) if f.manifest else None,
            'gate': f.manifest.gate if f.manifest else None,
            'state': 'served' if f.version == served and f.manifest else f.state,
        }
        for f in found
    ]


def print_versions(rows: Sequence[dict[str, Any]]) -> None:
    """The versions for people, on standard output."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for name in ('version', 'created', 'rows', 'size', 'gate', 'state'):
        table.add_column(name, justify='right' if name in ('rows', 'size') else 'left')
    for row in rows:
        numbers = (f'{row["rows"]:,}', describe_size(row['bytes'])) if row['created'] else ('', '')
        table.add_row(row['version'], row['created'], *numbers, row['gate'], row['state'])
    console.print(table)


def describe_size(count: float) -> str:
    """Bytes with a unit.

    >>> describe_size(2_500_000)
    '2.5 MB'
    """
    for unit in ('B', 'kB', 'MB', 'GB'):
        if count < 1000:
            return f'{count:.0f} {unit}' if unit == 'B' else f'{count:.1f} {unit}'
        count /= 1000
    return f'{count:.1f} TB'
