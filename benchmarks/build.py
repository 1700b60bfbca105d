"""Images per second of a whole build beside a bare loop over the same images with the same model on the same cores.

The bare loop reads the shards, decodes a batch and encodes it, nothing else: no ids, digests, tables, or Beam. The
build does all that and starts Beam and loads its model, but decodes the next batch while one is encoded. Runs are
paired, build then loop, because machines drift.

    python -m benchmarks.build --images examples/catalogue/index-*.tar.gz --input-size 96
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.figures import show_rounds
from hashing_model.images.decode import ImageError
from hashing_model.model import HashModel
from pipelines.cli.main import main as grainhash
from pipelines.encoding.encode import BATCH_SIZE
from pipelines.encoding.models import load_model
from pipelines.index import versions
from pipelines.inputs.options import ReadOptions
from pipelines.inputs.shards import list_units, read_unit
from pipelines.records import Record


def bare_loop(patterns: Sequence[str], model: HashModel) -> int:
    """Read, decode and encode every image, in batches; returns how many were encoded."""
    options = ReadOptions()
    encoded = 0
    batch = []
    for unit in list_units(patterns, options):
        for item in read_unit(unit, options):
            if not isinstance(item, Record):
                continue
            try:
                batch.append(model.decode(item.data).pixels)
            except ImageError:
                continue
            if len(batch) == BATCH_SIZE:
                encoded += len(model.encode(np.stack(batch)))
                batch = []
    return encoded + (len(model.encode(np.stack(batch))) if batch else 0)


def build(patterns: Sequence[str], model: Path, index: Path, beam_args: Sequence[str]) -> int:
    """One whole build; returns the images indexed."""
    shutil.rmtree(index, ignore_errors=True)
    code = grainhash(['build', '--images', *patterns, '--model', str(model), '--index', str(index), *beam_args])
    if code:
        raise SystemExit(code)
    return versions.read_manifest(str(index)).rows


def measure(patterns: Sequence[str], folder: Path, rounds: int, beam_args: Sequence[str]) -> list[dict[str, float]]:
    """Paired rounds of build and bare loop: images and seconds of each."""
    model = load_model(str(folder / 'model'))  # once per process, as in the build
    results = []
    for number in range(rounds + 1):
        started, used = time.perf_counter(), time.process_time()
        indexed = build(patterns, folder / 'model', folder / 'index', beam_args)
        between, used = time.perf_counter(), time.process_time() - used
        encoded = bare_loop(patterns, model)
        ended = time.perf_counter()
        if number:  # the first round warms up
            results.append(
                {
                    'build_images_per_s': indexed / (between - started),
                    'build_images_per_core_s': indexed / used,  # of this process alone
                    'loop_images_per_s': encoded / (ended - between),
                    'ratio': (indexed / (between - started)) / (encoded / (ended - between)),
                }
            )
    return results


def main() -> None:
    """Train a model, run the rounds, print and optionally write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', nargs='+', required=True, metavar='PATTERN')
    parser.add_argument('--input-size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--json', metavar='FILE')
    args, beam_args = parser.parse_known_args()
    patterns = [os.path.abspath(p) for p in args.images]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = str(args.input_size)
        if grainhash(['train', '--images', *patterns, '--model', str(folder / 'model'), '--input-size', size]):
            raise SystemExit(1)
        results = measure(patterns, folder, args.rounds, beam_args)
    show_rounds({'input_size': args.input_size, 'seed': 0}, results, args.json)


if __name__ == '__main__':
    main()
