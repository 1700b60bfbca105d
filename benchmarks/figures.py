"""What benchmarks print and write at their end: the machine and versions, each round, and the medians."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGES = ('apache-beam', 'tensorflow', 'numpy', 'pyarrow')


def show_rounds(about: Mapping[str, Any], results: Sequence[Mapping[str, float]], json_file: str | None) -> None:
    """Print what was measured, every round and the medians; write all of it as JSON too, if a file is given."""
    about = {
        **about,
        'rounds': len(results),
        'cores': os.cpu_count(),
        'python': platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }
    medians = {key: statistics.median(r[key] for r in results) for key in results[0]}
    print(', '.join(f'{name} {value}' for name, value in about.items()))
    for figures in results:
        print(_line(figures))
    print(f'median:  {_line(medians)}')
    if json_file:
        Path(json_file).write_text(json.dumps({**about, 'results': results, 'medians': medians}, indent=1))


def _line(figures: Mapping[str, float]) -> str:
    return '  '.join(f'{name} {value:.3g}' for name, value in figures.items())
