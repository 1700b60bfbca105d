"""Codes, code files, pictures and indexes for tests, and the exhaustive search that all answers must equal."""

import collections
import functools
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hashing_model.codes.bits import pack_bits
from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.images.decode import Decoded, Resizing, decode
from hashing_model.networks.loop import Training
from hashing_model.training.fit import fit
from pipelines import files
from pipelines.build.base import Origin
from pipelines.build.config import BuildConfig
from pipelines.build.part_runs import Runs
from pipelines.build.partitions import (
    Part,
    count_keys,
    cut_codes,
    in_order,
    keep_sample,
    lay_out,
    sample_part,
    write_partition,
)
from pipelines.build.publish import publish_version
from pipelines.build.unit_list import write_inputs
from pipelines.cli.main import main
from pipelines.encoding.encode import images_table, rejects_table
from pipelines.index import versions
from pipelines.index.code_tables import IMAGES_OPTIONS, codes_to_arrow, images_schema
from pipelines.inputs.shards import InputFile
from pipelines.records import MISSING_ID, Record, Reject, Source

ROOT = Path(__file__).resolve().parents[2]
CATALOGUE = ROOT / 'examples' / 'catalogue'
SPEC = CodeSpec.parse('coarse=11,fine=20,look=35')  # 66 bits: 6 spare
KINDS = ('uniform', 'clustered', 'identical')
FLIPPED = 0.06  # of a cluster's bits
CLUSTER_ROWS = 50
REPEATED = '--direct_runner_bundle_repeat=1'
TWO_PROCESSES = ('--direct_num_workers=2', '--direct_running_mode=multi_processing')
ORIGIN = Origin('name', 'content', b'first', b'last')
PORTABLE = ('--runner=PortableRunner', '--job_endpoint=embed', '--environment_type=LOOPBACK')


def make_codes(kind, rows, spec, seed=0):
    """Codes uint8 [rows, B]; of `identical` ones half are the same code, the worst case for tables."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (rows, spec.bits), np.uint8)
    if kind == 'clustered':
        centres = bits[: max(rows // CLUSTER_ROWS, 1)]
        bits = centres[rng.integers(len(centres), size=rows)] ^ (rng.random(bits.shape) < FLIPPED)
    if kind == 'identical':
        bits[rng.permutation(rows)[: rows // 2]] = bits[0]
    return pack_bits(bits)


def flip_bits(codes, spec, share, seed=0):
    """The codes with a share of their bits flipped."""
    bits = np.unpackbits(codes, axis=1, count=spec.bits)
    return pack_bits(bits ^ (np.random.default_rng(seed).random(bits.shape) < share))


def write_codes(path, ids, codes):
    """A file for `--codes`."""
    columns = {'image_id': pa.array(ids, pa.string()), 'code': pa.array([bytes(c) for c in codes], pa.binary())}
    pq.write_table(pa.table(columns), path)
    return str(path)


def write_code_files(folder, codes, files_, name='codes'):
    """The codes in several files, ids `name-0`, `name-1`, ... in the order of the codes; returns the pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, places in enumerate(np.array_split(np.arange(len(codes)), files_)):
        write_codes(folder / f'{name}-{number}.parquet', [f'{name}-{i}' for i in places], codes[places])
    return str(folder / f'{name}-*.parquet')


def row_numbers(rows, files_):
    """The row numbers of codes that `write_code_files` wrote: images part << 32 | row in it."""
    parts = np.array_split(np.arange(rows), files_)
    return np.concatenate([(np.int64(i) << 32) + np.arange(len(p)) for i, p in enumerate(parts)])


def succeed(*command):
    """Run a grainhash command in this process; it must end well."""
    assert main([str(word) for word in command]) == 0


def start(*command, timeout=150):
    """Run a grainhash command in a process of its own, as a shell would, but with a time limit."""
    return subprocess.run(
        [sys.executable, '-m', 'grainhash', *map(str, command)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env={**os.environ, 'NO_COLOR': '1', 'COLUMNS': '100'},
        check=False,
    )


def error_line(capsys):
    """The one line on standard error that names the error."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('grainhash: error: ')]
    return line


def served_folder(index):
    """The folder of the served version."""
    return Path(versions.Version(str(index), versions.current_version(str(index))).folder)


def served_version(index):
    """The handle of the served version."""
    return versions.open_version(str(index))


def read_served(index):
    """The manifest of the served version."""
    return versions.read_manifest(str(index))


def data_bytes(index):
    """Path -> digest of every Parquet file of the served version."""
    folder = served_folder(index)
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*.parquet'))
    }


def skewed_codes(count, spec=SPEC, seed=0):
    """Codes in clusters, some of them often, as trained models make them: uint8 [count, B]."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2, (12, spec.bits))
    which = np.minimum(rng.geometric(0.3, count) - 1, 11)
    flips = rng.random((count, spec.bits)) < 0.08 * (which > 1)[:, None]
    return pack_bits(centres[which] ^ flips)


def config_for(index, parts, spec=SPEC, partition_rows=50):
    inputs = [InputFile(f'shard-{i}.tar', 1000 + i, 1.5e9) for i in range(parts)]
    model = {'fingerprint': 'f' * 64, 'method': 'itq'}
    version = versions.new_version_id()
    listed = write_inputs(versions.Version(str(index), version), inputs)
    return BuildConfig(str(index), version, spec, parts, listed, 'model', model, (), partition_rows)


def write_part(number, codes, config, rejected=0):
    """The files of a finished unit, as the build writes them."""
    records = [
        Record(f'image {number}-{i}', b'%d' % i, Source(f'shard-{number}.tar', f'{i}.jpg'), {'kind': (f'{i % 3}',)})
        for i in range(len(codes))
    ]
    sizes = [Decoded(None, 10 + i, 20) for i in range(len(codes))]
    name, rejects_name = versions.images_path(number), versions.rejects_path(number)
    images = images_table(records, codes, sizes)
    rejects = [Reject(Source(f'shard-{number}.tar', f'x{i}'), MISSING_ID, 'none') for i in range(rejected)]
    content = files.table_bytes(images, **IMAGES_OPTIONS)
    written = config.index_version.write(name, len(images), content)
    rejects_file = None
    if rejected:
        content = files.table_bytes(rejects_table(rejects))
        rejects_file = config.index_version.write(rejects_name, rejected, content)
    reasons = {MISSING_ID: rejected} if rejected else {}
    return Part(number, written, rejects_file, len(codes) + rejected, reasons, ORIGIN)


def cut_all(parts, config):
    """The layout, and the blocks of every partition file."""
    rows = sum(part.images.rows for part in parts)
    cut = Runs.cut((part.number, part.images.rows) for part in parts)
    runs, blocks = collections.defaultdict(list), collections.defaultdict(list)
    for part in reversed(parts):
        runs[cut.of(part.number)].append(part)
    histograms = collections.Counter()
    for run in runs.items():
        for table, histogram in count_keys(run, config, rows):
            histograms[table] += histogram
    made = in_order(lay_out(found, config, rows) for found in histograms.items())
    for run in runs.items():
        for group, block in cut_codes(run, config, made):
            blocks[group].append(block)
    return made, blocks


def build_by_hand(index, codes_of_parts, spec=SPEC, partition_rows=50, rejected=0):
    """An index of made-up images without Beam, published; returns its config."""
    config = config_for(index, len(codes_of_parts), spec, partition_rows)
    parts = [write_part(i, codes, config, rejected) for i, codes in enumerate(codes_of_parts)]
    assemble(config, parts)
    return config


def assemble(config, parts):
    """Tables, sample and manifest of finished parts: what `pipelines.build.partitions` does, in its order."""
    made, blocks = cut_all(parts, config)
    partitions = [found for element in blocks.items() for found in write_partition(element, config, made)]
    samples = [sample_part(part, config) for part in parts]
    sample = keep_sample(pa.concat_tables(samples))
    publish_version(None, config, made, parts[::-1], partitions[::-1], sample)


def make_version(index, spec, parts, partition_rows=2_000_000, version='made'):
    """An index of bare codes, whatever they are like, as `build --codes --no-gate` makes it.

    Args:
        index: a folder.
        spec: the code spec.
        parts: codes uint8 [N, B] per images part; ids are `0`, `1`, ... over all parts.
        partition_rows: see `BuildConfig`.
        version: the version's id.
    """
    listed = write_inputs(versions.Version(str(index), version), [])
    config = BuildConfig(str(index), version, spec, len(parts), listed, partition_rows=partition_rows, gate=None)
    firsts = np.cumsum([0, *map(len, parts)]).tolist()
    assemble(config, [write_codes_part(i, codes, config, firsts[i]) for i, codes in enumerate(parts)])


def write_codes_part(number, codes, config, first=0):
    """The images part of bare codes with the ids `first`, `first + 1`, ..."""
    schema = images_schema(config.spec.num_bytes)
    known = {'image_id': [str(first + i) for i in range(len(codes))], 'code': codes_to_arrow(codes)}
    columns = [known.get(field.name, pa.nulls(len(codes), field.type)) for field in schema]
    path = versions.images_path(number)
    content = files.table_bytes(pa.table(columns, schema=schema), **IMAGES_OPTIONS)
    written = config.index_version.write(path, len(codes), content)
    return Part(number, written, None, len(codes), {}, ORIGIN)


def read_partitions(index):
    """Every partition file of the served version, in the manifest's order: (table number, prefix, Arrow table)."""
    folder, manifest = served_folder(index), read_served(index)
    for number, table in enumerate(manifest.tables):
        for partition in table.partitions:
            for file in partition.files:
                yield number, partition.prefix, pq.ParquetFile(folder / file.path).read()


def read_rejects(index):
    """All rejects as (reason, image id, member), in order of their parts."""
    folder = served_folder(index)
    tables = [files.read_table(str(folder / f.path)) for f in read_served(index).rejects]
    return [(r['reason'], r['image_id'], r['source']['member']) for t in tables for r in t.to_pylist()]


def distances_to(codes, queries, spec, profile=None):
    """Weighted Hamming distances int64 [Q, N], in plain numpy, from the definition."""
    weight_of = dict.fromkeys(spec.names, 1) if profile is None else profile
    weights = np.repeat([weight_of.get(s.name, 0) for s in spec.segments], [s.bits for s in spec.segments])
    a, b = (np.unpackbits(c, axis=1, count=spec.bits).astype(np.float64) for c in (queries, codes))
    return np.rint((a * weights) @ (1 - b).T + ((1 - a) * weights) @ b.T).astype(np.int64)


def nearest(distances, k=None, radius=None):
    """Per query its answers as a list of (distance, place), ranked by (distance, place): a stable sort of all."""
    order = np.argsort(distances, axis=1, kind='stable')
    ranked = np.take_along_axis(distances, order, axis=1)
    counts = (ranked <= (ranked.max(initial=0) if radius is None else radius)).sum(axis=1)
    counts = np.minimum(counts, distances.shape[1] if k is None else k)
    return [
        list(zip(d[:n].tolist(), o[:n].tolist(), strict=True)) for d, o, n in zip(ranked, order, counts, strict=True)
    ]


# Pictures


def catalogue_pictures(count, shard='index-fluent-00000.tar.gz'):
    """The first pictures of a catalogue shard: (fields of the sidecar, WebP bytes)."""
    found = []
    with tarfile.open(CATALOGUE / shard) as tar:
        while len(found) < count:
            data = tar.extractfile(tar.next()).read()
            found.append((json.loads(tar.extractfile(tar.next()).read()), data))
    return found


def write_tar(path, members):
    """A tar of (name, bytes)."""
    with tarfile.open(path, 'w') as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def tar_members(pictures):
    """Pictures as the members of a WebDataset shard."""
    for number, (fields, data) in enumerate(pictures):
        yield f'{number:06}.webp', data
        yield f'{number:06}.json', json.dumps(fields).encode()


def hand_model(pictures, seed=0):
    """A tiny model of hand-made features, which knows the captions' words: no backbone to load.

    Fitted once in a process for the same pictures.
    """
    return _fitted(tuple(data for _, data in pictures), tuple(fields.get('caption') for fields, _ in pictures), seed)


@functools.cache
def _fitted(encoded, captions, seed):
    resizing = Resizing(64)
    pixels = np.stack([decode(data, resizing).pixels for data in encoded])
    spec = CodeSpec((Segment('look', 32, ('edges', 'color')),))
    return fit(pixels, training=Training('itq', seed), spec=spec, resizing=resizing, captions=list(captions))[0]
