"""Exact search in memory beside faiss-cpu's binary indexes, on the same codes, one thread, in the same run.

    python -m benchmarks.search --rows 1e6 1e7 --bits 64 128 256 --work DIR
    python -m benchmarks.search --codes codes.npy --work DIR
    python -m benchmarks.search --costs

Codes are clustered (centres with 6 % flipped bits, 200 per centre), queries are more codes of the same clusters;
`--far` takes uniform codes and queries instead, where nothing is near and a scan is the best that can be done. All
distances are compared with FAISS's, so recall is 1.0 or the run fails. Rounds are paired: each method once per round,
medians over the rounds; FAISS's scan asks fewer queries, as it takes as long for each. What this machine's memory
cannot hold is left out, and so is `IndexBinaryMultiHash` over 10 million codes. Results go to DIR/search.json, with a
plot of time per query against the number of codes in DIR/search.png, each time that a case is done.

`--costs` measures what the cost model of `pipelines/search/memory.py` assumes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

os.environ.setdefault('OMP_NUM_THREADS', '1')
import faiss

from hashing_model.codes.bits import to_words
from hashing_model.codes.spec import CodeSpec, Segment
from pipelines.index.code_tables import codes_from_arrow
from pipelines.index.layout import cut_substrings
from pipelines.search import multi_index
from pipelines.search.memory import MemoryTables
from pipelines.search.multi_index import Asked, Room

K = 10
PER_CENTRE = 200
FLIPPED = 0.06
FEW = 50  # queries of a FAISS scan
RADII = (2, 5, 10)
MOST_FLIPS = 5  # of IndexBinaryMultiHash, before giving up on recall 1.0
MULTIHASH_ROWS = 10_000_000  # larger ones take it too long to fill
MEMORY_SHARE = 0.8  # of the machine's, for tables, codes, and FAISS's copy of them


def clustered(rows: int, bits: int, queries: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Codes uint8 [rows, bits / 8] around random centres, and queries of the same clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 256, (max(rows // PER_CENTRE, 1), bits // 8), dtype=np.uint8)

    def members(count: int) -> NDArray[np.uint8]:
        codes = np.empty((count, bits // 8), np.uint8)
        for first in range(0, count, 1 << 19):
            part = codes[first : first + (1 << 19)]
            flips = np.packbits(rng.random((len(part), bits), np.float32) < FLIPPED, axis=1)
            part[:] = centres[rng.integers(len(centres), size=len(part))] ^ flips
        return codes

    return members(rows), members(queries)


def uniform(rows: int, bits: int, queries: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Codes and queries drawn uniformly."""
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(0, 256, (n, bits // 8), dtype=np.uint8) for n in (rows, queries))  # type: ignore


def read_codes(path: str, queries: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Codes of a `.npy` (uint8 [N, B]) or of the column `code` of Parquet; random ones of them ask."""
    codes = np.load(path) if path.endswith('.npy') else codes_from_arrow(pq.read_table(path, columns=['code'])['code'])
    return codes, codes[np.random.default_rng(seed).permutation(len(codes))[:queries]]


def memory_needed(rows: int, bits: int) -> int:
    """Bytes of the tables, of the codes, of FAISS's copy of them, and of one table's on the way into its order."""
    tables = len(cut_substrings(CodeSpec((Segment('code', bits),)), rows))
    return rows * (tables * (-(-bits // 64) * 8 + 4) + 3 * bits // 8 + 16)


def affordable(cases: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The cases (rows, bits) that this machine's memory holds; tells of the others."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    for rows, bits in cases:
        if (needed := memory_needed(rows, bits)) <= MEMORY_SHARE * memory:
            yield rows, bits
        else:
            print(f'left out: {rows:,} codes of {bits} bits need {needed / 1e9:.0f} of {memory / 1e9:.0f} GB')


def seconds(function: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def medians(rounds: int, **methods: Callable[[], float]) -> dict[str, float]:
    """Each method's median over rounds in which all are timed one after the other, after one warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, method in methods.items():
            figure = method()
            if number:
                taken[name].append(figure)
    return {name: statistics.median(figures) for name, figures in taken.items()}


def check(found: Any, expected: NDArray, k: int) -> None:
    """The distances of the first queries must be FAISS's."""
    np.testing.assert_array_equal(found.distances.reshape(-1, k)[: len(expected)], expected)


def nearest(codes: NDArray, queries: NDArray, rounds: int, multihash: bool) -> dict[str, Any]:
    """k nearest: microseconds per query of each method, one thread."""
    bits = codes.shape[1] * 8
    flat = faiss.IndexBinaryFlat(bits)
    flat.add(codes)
    started = time.perf_counter()
    tables = MemoryTables.from_codes(codes, CodeSpec((Segment('code', bits),)))
    tables.search(queries[:2], K)
    filled = time.perf_counter() - started
    found = tables.search(queries, K)
    few = queries[:FEW]
    check(found, flat.search(few, K)[0], K)
    last = found.distances.reshape(-1, K)[:, -1]
    methods = {
        'flat': lambda: seconds(lambda: flat.search(few, K)) / len(few),
        'ours': lambda: seconds(lambda: tables.search(queries, K)) / len(queries),
        'one_by_one': lambda: seconds(lambda: [tables.search(q[None], K) for q in few]) / len(few),
        'threads_2': lambda: seconds(lambda: tables.search(queries, K, threads=2)) / len(queries),
        'scan': lambda: scan_seconds(tables, few, last[: len(few)]),
    }
    result: dict[str, Any] = {'rows': len(codes), 'bits': bits, 'filled_s': filled, 'table_bytes': tables.nbytes}
    if multihash:
        hashed, flips = multihash_at_full_recall(codes, queries, len(tables.substrings), last)
        result |= {'multihash_flips': flips, 'multihash_tables': len(tables.substrings)}
        if flips is not None:
            methods['multihash'] = lambda: seconds(lambda: hashed.search(queries, K)) / len(queries)
    result |= {f'{name}_us': 1e6 * figure for name, figure in medians(rounds, **methods).items()}
    result['visited'] = float(found.visited.mean())
    result['scanned'] = float((found.visited >= len(codes)).mean())
    return result


def scan_seconds(tables: MemoryTables, queries: NDArray, bounds: NDArray) -> float:
    """Seconds per query of our scan when every query's k-th distance is known: the least that a scan can cost."""
    codes, rows, words = tables.codes[0], tables.numbers[0], to_words(queries)
    n = len(words)
    asked = Asked(words, None, bounds.astype(np.int64), K, np.zeros(0, bool))
    flat = (np.empty(n * K, np.int64) for _ in range(3))
    room = Room(*flat, bounds.astype(np.int64), *(np.zeros(n, np.int64) for _ in range(3)))
    zeros = (np.uint64(0),) * words.shape[1]
    arguments = zeros, codes, rows, np.arange(n), tuple(asked), 0, tuple(room)
    return seconds(lambda: multi_index.scan(*arguments)) / n


def multihash_at_full_recall(codes: NDArray, queries: NDArray, tables: int, last: NDArray) -> tuple[Any, int | None]:
    """FAISS's multi-index hash with the fewest flips at which it finds all of the k nearest; None if none does."""
    bits = codes.shape[1] * 8
    index = faiss.IndexBinaryMultiHash(bits, tables, min(bits // tables, 32))
    index.add(codes)
    for flips in range(MOST_FLIPS):
        index.nflip = flips
        if (index.search(queries, K)[0][:, -1] == last).all():
            return index, flips
    return index, None


def within(codes: NDArray, queries: NDArray, rounds: int) -> Iterator[dict[str, Any]]:
    """All codes within a radius: microseconds per query."""
    bits = codes.shape[1] * 8
    flat = faiss.IndexBinaryFlat(bits)
    flat.add(codes)
    tables = MemoryTables.from_codes(codes, CodeSpec((Segment('code', bits),)))
    few = queries[:FEW]
    for radius in RADII:
        limits = flat.range_search(few, radius + 1)[0]  # FAISS leaves out the radius itself
        found = tables.search(few, None, radius)
        np.testing.assert_array_equal(np.bincount(found.queries, minlength=len(few)), np.diff(limits.astype(np.int64)))

        def ours(radius: int = radius) -> float:
            return seconds(lambda: tables.search(queries, None, radius)) / len(queries)

        def theirs(radius: int = radius) -> float:
            return seconds(lambda: flat.range_search(few, radius + 1)) / len(few)

        figures = medians(rounds, flat=theirs, ours=ours)
        yield {'rows': len(codes), 'bits': bits, 'radius': radius, 'answers': len(found.queries) / len(few)} | {
            f'{name}_us': 1e6 * figure for name, figure in figures.items()
        }


def probed(tables: MemoryTables, queries: NDArray, radius: int) -> tuple[float, int, float]:
    """Seconds, probes and visits per query of a search of all tables to one radius."""
    limit = len(tables.substrings) * (radius + 1) - 1
    taken = statistics.median(seconds(lambda: tables.search(queries, None, limit)) for _ in range(5))
    probes = sum(1 + radius * int(bits) for bits in tables.value_bits)
    return taken / len(queries), probes, float(tables.search(queries, None, limit).visited.mean())


def costs(rows: int = 4_000_000) -> Iterator[dict[str, Any]]:
    """Nanoseconds of a scanned code, a probe and a visited candidate, for codes of 1, 2 and 4 words."""
    for words in (1, 2, 4):
        codes, queries = uniform(rows, 64 * words, 500, 0)
        spec = CodeSpec((Segment('code', 64 * words),))
        tables = MemoryTables.from_codes(codes, spec)
        tables.costs = 1e-9, 1e-9  # never scan
        few = queries[:FEW]
        scanned = statistics.median(scan_seconds(tables, few, np.full(len(few), 2)) for _ in range(5)) / rows
        (t0, p0, v0), (t1, p1, v1) = (probed(tables, queries, radius) for radius in (0, 1))
        yield {
            'words': words,
            'scan_ns': scanned * 1e9,
            'probe_and_visits_ns': (t1 - t0) / (p1 - p0) * 1e9,
            'visits_per_probe': (v1 - v0) / (p1 - p0),
        }


def report(title: str, rows: list[dict[str, Any]], columns: dict[str, Callable[[dict[str, Any]], str]]) -> None:
    """A plain table on standard output."""
    lines = [list(columns), *([cell(row) for cell in columns.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f'\n{title}')
    for line in lines:
        print('  '.join(word.rjust(width) for word, width in zip(line, widths, strict=True)), flush=True)


def ratio(a: str, b: str = 'ours_us') -> Callable[[dict[str, Any]], str]:
    """A column: how many times longer a takes than b."""
    return lambda row: f'{row[a] / row[b]:.4g}' if row.get(a) else '-'


def number(name: str, digits: int = 1) -> Callable[[dict[str, Any]], str]:
    """A column of one figure."""
    return lambda row: f'{row[name]:,.{digits}f}' if row.get(name) is not None else '-'


NEAREST_COLUMNS = {
    'codes': number('rows', 0),
    'bits': number('bits', 0),
    'ours us': number('ours_us'),
    '2 threads': number('threads_2_us'),
    'one by one': number('one_by_one_us'),
    'our scan': number('scan_us'),
    'Flat us': number('flat_us'),
    'MultiHash us': number('multihash_us'),
    'Flat/ours': ratio('flat_us'),
    'MultiHash/ours': ratio('multihash_us'),
    'Flat/scan': ratio('flat_us', 'scan_us'),
    'ours/scan': ratio('ours_us', 'scan_us'),
    'visited': number('visited', 0),
    'scanned': number('scanned', 3),
}
WITHIN_COLUMNS = {
    'codes': number('rows', 0),
    'radius': number('radius', 0),
    'answers': number('answers'),
    'ours us': number('ours_us'),
    'Flat us': number('flat_us'),
    'Flat/ours': ratio('flat_us'),
}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Time per query against the number of codes, a line per length and method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout='constrained')
    axes = figure.subplots()
    for bits in sorted({row['bits'] for row in rows}):
        some = sorted((row for row in rows if row['bits'] == bits), key=lambda row: row['rows'])
        sizes = [row['rows'] for row in some]
        (line,) = axes.loglog(sizes, [row['ours_us'] for row in some], 'o-', label=f'grainhash, {bits} bits')
        axes.loglog(
            sizes,
            [row['flat_us'] for row in some],
            's--',
            color=line.get_color(),
            label=f'IndexBinaryFlat, {bits} bits',
        )
    axes.set(xlabel='codes', ylabel='microseconds per query, one thread', title=f'exact {K} nearest')
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', nargs='+', type=float, default=[1e6, 1e7], help='how many codes')
    parser.add_argument('--bits', nargs='+', type=int, default=[64, 128, 256], help='their length')
    parser.add_argument('--codes', help='take these codes instead: .npy, or Parquet with a column code')
    parser.add_argument('--far', action='store_true', help='uniform codes and queries: nothing is near')
    parser.add_argument('--queries', type=int, default=1000)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--no-multihash', action='store_true', help='leave out IndexBinaryMultiHash, slow to build')
    parser.add_argument('--costs', action='store_true', help="measure the cost model's constants, nothing else")
    parser.add_argument('--work', type=Path, help='folder for search.json and search.png')
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    names = ('numpy', 'numba', 'faiss-cpu')
    machine = {
        'machine': platform.processor() or platform.machine(),
        'cores': os.cpu_count(),
        'python': platform.python_version(),
        **{name: version(name) for name in names},
        'simd': faiss.get_compile_options().strip(),
        'seed': args.seed,
        'queries': args.queries,
        'rounds': args.rounds,
    }
    print(', '.join(f'{name} {value}' for name, value in machine.items()))
    if args.costs:
        print(json.dumps(list(costs()), indent=1))
        return
    make = uniform if args.far else clustered
    found, ranges = [], []
    cases = (
        [(0, 0)] if args.codes else list(affordable([(int(rows), bits) for rows in args.rows for bits in args.bits]))
    )
    for rows, bits in cases:
        codes, queries = (
            read_codes(args.codes, args.queries, args.seed) if args.codes else make(rows, bits, args.queries, args.seed)
        )
        multihash = codes.shape[1] == 8 and len(codes) <= MULTIHASH_ROWS and not args.no_multihash and not args.far
        found.append(nearest(codes, queries, args.rounds, multihash))
        report('exact 10 nearest; recall 1.0, as all distances equal FAISS', found[-1:], NEAREST_COLUMNS)
        if codes.shape[1] == 8 and not args.far:
            ranges += within(codes, queries, args.rounds)
        if args.work:
            args.work.mkdir(parents=True, exist_ok=True)
            content = {'machine': machine, 'nearest': found, 'within': ranges}
            (args.work / 'search.json').write_text(json.dumps(content, indent=1))
            plot(found, args.work / 'search.png')
    report('exact 10 nearest; recall 1.0, as all distances equal FAISS', found, NEAREST_COLUMNS)
    if ranges:
        report('all within a radius', ranges, WITHIN_COLUMNS)


if __name__ == '__main__':
    main()
