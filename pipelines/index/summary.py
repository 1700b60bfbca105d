"""What a version of an index holds, in numbers, and which versions there are: `grainhash inspect` and `versions`.

The manifest alone answers; no data file is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.index.manifest import Manifest
from pipelines.index.versions import ListedVersion


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


def summarize_versions(found: Sequence[ListedVersion], served: str | None) -> list[dict[str, Any]]:
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
