"""A build from codes beside numpy sorting the same codes once per table: time, memory, and how even partitions are.

The codes lie in clusters, as trained models make them: 200 around each centre, from which 6 % of their bits differ.
The build is `grainhash build --codes` in a process of its own, its start included. numpy has the codes in memory, and
per table argsorts its keys (stable) and gathers codes and rows: what no build can do without.

    python -m benchmarks.build_codes --rows 10000000 --work DIR
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.index import layout, versions
from pipelines.index.code_tables import codes_from_arrow, codes_to_arrow
from pipelines.index.manifest import Manifest

SEED = 0
FILE_ROWS = 2_000_000
CLUSTER_ROWS = 200
FLIPPED = 0.06
DRAWN_AT_ONCE = 250_000
SAMPLING_SECONDS = 0.02


def clustered_codes(rows: int, first: int, centres: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows [first, first + rows) of the codes around the centres: uint8 [rows, B]."""
    rng = np.random.default_rng([SEED, first])
    codes = centres[rng.integers(len(centres), size=rows)]
    for start in range(0, rows, DRAWN_AT_ONCE):
        drawn = codes[start : start + DRAWN_AT_ONCE]
        drawn ^= np.packbits(rng.random((len(drawn), codes.shape[1] * 8), np.float32) < FLIPPED, axis=1)
    return codes


def write_input(folder: Path, rows: int, bits: int) -> None:
    """Files with `image_id`, 16 letters without order, and `code`."""
    folder.mkdir(parents=True)
    centres = np.random.default_rng(SEED).integers(0, 256, (max(rows // CLUSTER_ROWS, 1), bits // 8), np.uint8)
    for number, first in enumerate(range(0, rows, FILE_ROWS)):
        count = min(FILE_ROWS, rows - first)
        letters = layout.mix(np.arange(first, first + count)).tobytes().hex().encode()
        ends = pa.py_buffer(np.arange(0, 16 * count + 1, 16, dtype=np.int32))
        ids = pa.StringArray.from_buffers(count, ends, pa.py_buffer(letters))
        table = pa.table({'image_id': ids, 'code': codes_to_arrow(clustered_codes(count, first, centres))})
        pq.write_table(table, folder / f'codes-{number:05d}.parquet', use_dictionary=False)


def build(codes: Path, index: Path) -> tuple[float, float, float]:
    """One build in a process of its own: seconds, core-seconds, and the most GiB that it and its children held."""
    command = [sys.executable, '-m', 'grainhash', 'build', '--codes', f'{codes}/*.parquet', '--index', str(index)]
    started = time.perf_counter()
    peak = 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, sum(_resident_bytes(pid) for pid in _tree(process.pid)))
            time.sleep(SAMPLING_SECONDS)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(process.returncode)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the one child there was
    return seconds, used.ru_utime + used.ru_stime, peak / 2**30


def _tree(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for children in Path(f'/proc/{pid}/task').glob('*/children'):
        try:
            found = children.read_text().split()
        except OSError:  # ended meanwhile
            continue
        for child in found:
            yield from _tree(int(child))


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except (OSError, IndexError):
        return 0


def sort_by_numpy(codes: NDArray[np.uint8], substrings: tuple[layout.Substring, ...]) -> float:
    """Seconds to sort the codes and their row numbers once per table."""
    rows = np.arange(len(codes))
    started = time.perf_counter()
    for substring in substrings:
        order = np.argsort(layout.substring_keys(codes, substring), kind='stable')
        codes[order], rows[order]
    return time.perf_counter() - started


def leftovers(index: Path, manifest: Manifest) -> list[str]:
    """Files below the index that are no part of the version."""
    folder = Path(versions.Version(str(index), manifest.version).folder)
    known = {folder / file.path for file in manifest.all_files}
    known |= {folder / versions.MANIFEST_PATH, index / versions.CURRENT}
    return sorted(str(path) for path in index.rglob('*') if path.is_file() and path not in known)


def main() -> None:
    """Make the codes, build, sort, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rows', type=int, default=10_000_000)
    parser.add_argument('--bits', type=int, default=64, help='a multiple of 8')
    parser.add_argument('--work', type=Path, required=True, metavar='DIR', help='for the codes, kept, and the index')
    args = parser.parse_args()
    codes, index = args.work / f'codes-{args.rows}-{args.bits}', args.work / 'index'
    if not codes.exists():
        write_input(codes, args.rows, args.bits)
    shutil.rmtree(index, ignore_errors=True)
    seconds, core_seconds, peak = build(codes, index)
    manifest = versions.read_manifest(str(index))
    stored = np.concatenate([codes_from_arrow(pq.read_table(p, columns=['code'])['code']) for p in codes.iterdir()])
    sorting = sort_by_numpy(stored, tuple(table.substring for table in manifest.tables))
    per_file = [f.rows for table in manifest.tables for p in table.partitions for f in p.files]
    packages = ('apache-beam', 'numpy', 'pyarrow', 'numba')
    print(
        ', '.join([f'python {platform.python_version()}', *(f'{p} {importlib.metadata.version(p)}' for p in packages)])
    )
    print(
        f'{os.cpu_count()} cores, seed {SEED}, {args.rows:,} codes of {args.bits} bits, {len(manifest.tables)} tables'
    )
    size = sum(f.bytes for f in manifest.data_files) / 1e6
    print(f'build  {seconds:.1f} s, {core_seconds:.1f} core-seconds, peak {peak:.2f} GiB, {size:,.0f} MB')
    print(f'numpy  {sorting:.1f} s, the build takes {seconds / sorting:.2f} x as long')
    print(
        f'rows per file of a partition: {min(per_file):,} / {statistics.median(per_file):,.0f} / {max(per_file):,} '
        f'(least / median / most of {len(per_file)})'
    )
    left = leftovers(index, manifest)
    print(f'files left over: {len(left)}', *itertools.islice(left, 5))


if __name__ == '__main__':
    main()
