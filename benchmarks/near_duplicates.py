"""All near-duplicates of an index, beside FAISS asked for those of some images.

    python -m benchmarks.build_codes --rows 10000000 --work DIR
    python -m benchmarks.near_duplicates --index DIR/index --codes 'DIR/codes-10000000-64/*.parquet' --work DIR

The job is `grainhash duplicates` in this process, with Beam's in-process runner on all cores, after a first job that
starts everything up. FAISS asks `IndexBinaryFlat.range_search` for the neighbours of 1,000 random images, on all cores;
for all images it is taken to need as many times as long. Each neighbour that it finds must be in its image's group, and
an image without neighbours in none, or the run fails. Medians of rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import io
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq

from pipelines.cli.main import main as grainhash
from pipelines.index.code_tables import codes_from_arrow

ASKED = 1000


def group(index: str, radius: int, output: Path) -> tuple[float, str]:
    """One job: seconds, and what it says."""
    said = io.StringIO()
    started = time.perf_counter()
    with contextlib.redirect_stderr(said):
        code = grainhash(['duplicates', '--index', index, '--radius', str(radius), '--output', str(output)])
    if code:
        raise SystemExit(said.getvalue())
    return time.perf_counter() - started, said.getvalue().strip()


def main() -> None:
    """Group and scan; print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--index', required=True)
    parser.add_argument('--codes', required=True, help='pattern of the files that the index was built from')
    parser.add_argument('--radius', nargs='+', type=int, default=[0, 2, 5])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--work', type=Path, required=True)
    args = parser.parse_args()
    names = ('apache-beam', 'numpy', 'pyarrow', 'numba', 'faiss-cpu')
    print(', '.join([f'python {platform.python_version()}', *(f'{name} {version(name)}' for name in names)]))
    tables = [pq.read_table(path, columns=['image_id', 'code']) for path in sorted(glob.glob(args.codes))]
    ids = np.concatenate([t['image_id'].to_numpy() for t in tables])
    codes = np.concatenate([codes_from_arrow(t['code']) for t in tables])
    flat = faiss.IndexBinaryFlat(codes.shape[1] * 8)
    flat.add(codes)
    asked = np.random.default_rng(args.seed).permutation(len(codes))[:ASKED]
    output = args.work / 'groups.parquet'
    print(f'first job, with starting up: {group(args.index, args.radius[0], output)[0]:.1f} s')
    for radius in args.radius:
        taken, scanned = [], []
        for _ in range(args.rounds):
            seconds, said = group(args.index, radius, output)
            taken.append(seconds)
            started = time.perf_counter()
            limits, _, found = flat.range_search(codes[asked], radius + 1)  # it takes the radius as exclusive
            scanned.append(time.perf_counter() - started)
        groups = pq.read_table(output, columns=['image_id', 'group'])
        group_of = dict(zip(groups['image_id'].to_pylist(), groups['group'].to_pylist(), strict=True))
        neighbours = 0
        for i, image in enumerate(asked.tolist()):
            others = [other for other in found[limits[i] : limits[i + 1]].tolist() if other != image]
            neighbours += len(others)
            group_of_it = group_of.get(ids[image], -1)
            if (group_of_it < 0) != (not others) or any(group_of.get(ids[o], -2) != group_of_it for o in others):
                raise SystemExit(f'{ids[image]} is in the wrong group within radius {radius}')
        ours, faiss_s = statistics.median(taken), statistics.median(scanned) * len(codes) / len(asked)
        print(f'radius {radius}: {said}')
        print(
            f'  {ours:.1f} s, FAISS {faiss_s:,.0f} s for all, as {ASKED:,} took {statistics.median(scanned):.2f} s: '
            f'{faiss_s / ours:,.0f} times as long; {neighbours:,} neighbours of these, all in the group of their image'
        )


if __name__ == '__main__':
    main()
