"""A built index asked: how long it takes to open in memory, and the query job beside FAISS reading and scanning.

    python -m benchmarks.build_codes --rows 10000000 --work DIR
    python -m benchmarks.query_job --index DIR/index --codes 'DIR/codes-10000000-64/*.parquet' --work DIR

Queries are codes of the index with 3 % of their bits flipped. The job is `grainhash query` in this process, with Beam's
in-process runner, after a first job that starts everything up; it reads the tables from Parquet and writes answers with
ids. FAISS reads bare codes from one `.npy` and scans them with one thread for 1,000 queries; ten times as many are$
taken to need ten times as long. Files are warm in both. Medians of paired rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import io
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

os.environ.setdefault('OMP_NUM_THREADS', '1')
import faiss

from pipelines.cli.main import main as grainhash
from pipelines.index.code_tables import codes_from_arrow, codes_to_arrow

K = 10
FLIPPED = 0.03
SCANNED = 1000  # queries that FAISS is timed on
OPEN = """
import json, resource, sys, time
import numpy as np
from pipelines.search.local_index import LocalIndex
queries = np.load(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
index = LocalIndex.open(sys.argv[1])
for table in range(len(index.manifest.tables)):
    index.tables.fill(table)
opened = time.perf_counter()
index.search(queries[:1])
first = time.perf_counter()
print(json.dumps({
    'open_s': opened - start,
    'first_search_s': first - opened,
    'table_bytes': index.tables.nbytes,
    'code_bytes': index.spec.num_bytes * len(index) * len(index.manifest.tables),
    'row_bytes': index.tables.numbers.nbytes,
    'peak_bytes': (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024,
}))
"""


def write_queries(path: Path, codes: NDArray[np.uint8], count: int) -> Path:
    """A file for `--codes` with codes near to random ones of the index."""
    rng = np.random.default_rng(count)
    flips = np.packbits(rng.random((count, codes.shape[1] * 8)) < FLIPPED, axis=1)
    queries = codes[rng.integers(len(codes), size=count)] ^ flips
    pq.write_table(pa.table({'image_id': [f'query-{i}' for i in range(count)], 'code': codes_to_arrow(queries)}), path)
    return path


def ask(index: str, queries: Path, output: Path) -> tuple[float, str]:
    """One query job: seconds, and what it says it read."""
    said = io.StringIO()
    started = time.perf_counter()
    with contextlib.redirect_stderr(said):
        code = grainhash(['query', '--index', index, '--codes', str(queries), '--k', str(K), '--output', str(output)])
    taken = time.perf_counter() - started
    if code:
        raise SystemExit(said.getvalue())
    return taken, re.search(r'read .*', said.getvalue()).group()  # type: ignore[union-attr]


def scan(path: Path, queries: NDArray[np.uint8]) -> float:
    """Seconds that FAISS takes to read the codes and scan them."""
    started = time.perf_counter()
    codes = np.load(path)
    index = faiss.IndexBinaryFlat(codes.shape[1] * 8)
    index.add(codes)
    index.search(queries, K)
    return time.perf_counter() - started


def main() -> None:
    """Open, ask and scan; print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--index', required=True)
    parser.add_argument('--codes', required=True, help='pattern of the files that the index was built from')
    parser.add_argument('--queries', nargs='+', type=int, default=[1, 1000, 10_000])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--work', type=Path, required=True)
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    names = ('apache-beam', 'numpy', 'pyarrow', 'numba', 'faiss-cpu')
    print(', '.join([f'python {platform.python_version()}', *(f'{name} {version(name)}' for name in names)]))
    parts = [codes_from_arrow(pq.read_table(p, columns=['code'])['code']) for p in sorted(glob.glob(args.codes))]
    codes = np.concatenate(parts)
    np.save(args.work / 'codes.npy', codes)
    few = codes_from_arrow(pq.read_table(write_queries(args.work / 'few.parquet', codes, SCANNED))['code'])
    np.save(args.work / 'few.npy', few)
    for _ in range(args.rounds):
        done = subprocess.run(
            [sys.executable, '-c', OPEN, args.index, str(args.work / 'few.npy')], capture_output=True, check=True
        )
        print('open', json.loads(done.stdout))
    files = {count: write_queries(args.work / f'queries-{count}.parquet', codes, count) for count in args.queries}
    output = args.work / 'answers.parquet'
    print(f'first job, with starting up: {ask(args.index, files[args.queries[0]], output)[0]:.1f} s')
    scans: list[float] = []
    jobs: dict[int, list[float]] = {count: [] for count in args.queries}
    for _ in range(args.rounds):
        scans.append(scan(args.work / 'codes.npy', few))
        for count, file in files.items():
            taken, _ = ask(args.index, file, output)
            jobs[count].append(taken)
    scanned = statistics.median(scans)
    print(f'FAISS reads and scans for {SCANNED:,} queries: {scanned:.1f} s')
    for count, taken in jobs.items():
        job = statistics.median(taken)
        faiss_s = scanned * count / SCANNED
        print(f'{count:,} queries: job {job:.2f} s, FAISS {faiss_s:.2f} s, job / FAISS {job / faiss_s:.3f}')
        print(f'  {ask(args.index, files[count], output)[1]}')


if __name__ == '__main__':
    main()
