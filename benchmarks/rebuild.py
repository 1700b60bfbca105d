"""Seconds of incremental builds beside a full build of the same catalogue, as ratios of one run.

The images are copied into tar shards of a thousand. After a full build it is built again with nothing changed, with 1 %
of the images changed (compressed once more) in neighbouring shards, and with 1 % changed that are spread over all
shards. That these versions equal full builds is for the tests (`tests/test_base_version.py`); here the counts of what
changed are checked.

    python -m benchmarks.rebuild --images 'cifar10/train-*.parquet' --input-size 96
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import tarfile
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from PIL import Image

from benchmarks.figures import show_rounds
from pipelines.cli.main import main as grainhash
from pipelines.index import versions
from pipelines.inputs.options import ReadOptions
from pipelines.inputs.shards import list_units, read_unit
from pipelines.records import Record

SHARD_IMAGES = 1000
CHANGED = 100  # one in so many


def read_images(patterns: Sequence[str], most: int) -> list[bytes]:
    """The encoded bytes of the first images."""
    found: list[bytes] = []
    for unit in list_units(patterns, ReadOptions()):
        found += [item.data for item in read_unit(unit, ReadOptions()) if isinstance(item, Record)]
        if len(found) >= most:
            break
    return found[:most]


def write_shards(images: Sequence[bytes], folder: Path, numbers: Collection[int]) -> None:
    """Write the shards that hold any image of these numbers."""
    for shard in sorted({number // SHARD_IMAGES for number in numbers}):
        with tarfile.open(folder / f'{shard:05}.tar', 'w') as tar:
            for number in range(shard * SHARD_IMAGES, min((shard + 1) * SHARD_IMAGES, len(images))):
                member = tarfile.TarInfo(f'{number:08}.jpg')
                member.size = len(images[number])
                tar.addfile(member, io.BytesIO(images[number]))


def as_jpeg(data: bytes, quality: int) -> bytes:
    """An image as a JPEG of a quality."""
    sink = io.BytesIO()
    Image.open(io.BytesIO(data)).convert('RGB').save(sink, 'JPEG', quality=quality)
    return sink.getvalue()


def timed_build(folder: Path, *options: str) -> float:
    """Seconds of one build."""
    started = time.perf_counter()
    command = ['build', '--images', str(folder / 'shards'), '--model', str(folder / 'model')]
    if grainhash([*command, '--index', str(folder / 'index'), *options]):
        raise SystemExit(1)
    return time.perf_counter() - started


def measure(images: list[bytes], folder: Path, rounds: int) -> list[dict[str, float]]:
    """Rounds of a full build and three incremental ones: seconds, and ratios to the full build's."""
    count = len(images) // CHANGED
    kinds = {
        'unchanged': range(0),
        'changed_together': range(count),
        'changed_everywhere': range(0, count * CHANGED, CHANGED),
    }
    results = []
    qualities = itertools.cycle(range(60, 90))
    for _ in range(rounds):
        seconds = {'full': timed_build(folder, '--full')}
        for (kind, changed), quality in zip(kinds.items(), qualities, strict=False):
            for i in changed:
                images[i] = as_jpeg(images[i], quality)
            write_shards(images, folder / 'shards', changed)
            seconds[kind] = timed_build(folder)
            found = versions.read_manifest(str(folder / 'index')).changes or {}
            if (found['changed'], found['unchanged']) != (len(changed), len(images) - len(changed)):
                raise SystemExit(f'{len(changed)} images were changed, and the build says {found}')
        results.append({**seconds, **{f'{kind}_ratio': seconds[kind] / seconds['full'] for kind in kinds}})
    return results


def main() -> None:
    """Train a model, run the rounds, print and optionally write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', nargs='+', required=True, metavar='PATTERN')
    parser.add_argument('--max-images', type=int, default=20_000)
    parser.add_argument('--input-size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=1)
    parser.add_argument('--json', metavar='FILE')
    args = parser.parse_args()
    images = read_images([os.path.abspath(p) for p in args.images], args.max_images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / 'shards').mkdir()
        write_shards(images, folder / 'shards', range(len(images)))
        train = ['train', '--images', str(folder / 'shards'), '--model', str(folder / 'model'), '--method', 'itq']
        if grainhash([*train, '--max-images', '2000', '--input-size', str(args.input_size)]):
            raise SystemExit(1)
        results = measure(images, folder, args.rounds)
    show_rounds({'images': len(images), 'input_size': args.input_size, 'seed': 0}, results, args.json)


if __name__ == '__main__':
    main()
