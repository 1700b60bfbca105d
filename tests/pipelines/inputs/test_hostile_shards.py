"""Shards that are damaged, lie or unpack to gigabytes: read in a process of their own, then indexed by a real build."""

import gzip
import io
import itertools
import json
import struct
import sys
import tarfile

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hashing_model.images.decode import Resizing
from pipelines import records
from pipelines.encoding import encode
from pipelines.encoding.encode import decoded_batches
from pipelines.inputs.formats import common
from pipelines.inputs.options import ReadOptions
from pipelines.inputs.shards import list_units, read_unit
from pipelines.records import Record, Reject, Source
from tests.helpers.make_hostile import MUTATIONS
from tests.helpers.make_index import catalogue_pictures, hand_model, start, tar_members, write_tar
from tests.helpers.measure import (
    MOST_MEMORY,
    MOST_SECONDS,
    check_counts,
    listing,
    run_measured,
)

# Reads every unit of a folder; prints a line of JSON for each: shard, records, rejects as (reason, detail), and seconds
# of a processor.
READ = """
import json, sys, time
from pipelines.records import Record
from pipelines.inputs.shards import ReadOptions, list_units, read_unit
for unit in list_units([sys.argv[1]], ReadOptions()):
    started, count, rejects = time.thread_time(), 0, []
    for item in read_unit(unit, ReadOptions()):
        count += isinstance(item, Record)
        rejects += [] if isinstance(item, Record) else [(item.reason, item.detail)]
    print(json.dumps((unit.shard, count, rejects, time.thread_time() - started)), flush=True)
"""
PICTURES = catalogue_pictures(12)
DATA = PICTURES[0][1]


def tar_of(*members, end=True, **options):
    """A tar of (name or `TarInfo`, bytes)."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode='w', **options) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue() if end else sink.getvalue().rstrip(b'\0')


def member(name, kind, target=''):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b''


def with_size(data, size_field):
    """A tar whose first member says another size, its checksum right."""
    head = bytearray(data[:512])
    head[124:136] = size_field.ljust(12, b'\0')
    head[148:156] = b' ' * 8
    head[148:156] = b'%06o\0 ' % sum(head)
    return bytes(head) + data[512:]


def zeros(head, gigabytes, tail=b''):
    """Gzip of some bytes, gigabytes of zeros, and more; made of one piece that repeats, since gzip files may follow."""
    piece = gzip.compress(bytes(1 << 26), 6)
    return gzip.compress(head) + piece * int(gigabytes * 16) + gzip.compress(tail)


def huge_member(name, gigabytes, kind=tarfile.REGTYPE):
    """A gzipped tar with a member of gigabytes of zeros, and a good one after it."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, int(gigabytes * (1 << 30))
    return zeros(info.tobuf(tarfile.GNU_FORMAT), gigabytes, tar_of(('after.webp', DATA)))


def framed(data, length=None):
    """A record of a TFRecord, which may say another length, its checksum right."""

    def checksum(content):
        crc = google_crc32c.value(content)
        return struct.pack('<I', (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    head = struct.pack('<Q', len(data) if length is None else length)
    return head + checksum(head) + data + checksum(data)


def example(**features):
    """A serialized `tf.train.Example` of bytes features, in the wire format."""

    def field(number, content):
        size, encoded = len(content), bytearray([number << 3 | 2])
        while size > 127:
            encoded.append(size & 127 | 128)
            size >>= 7
        return bytes(encoded) + bytes([size]) + content

    entries = (
        field(1, field(1, name.replace('_', '/').encode()) + field(2, field(1, field(1, value))))
        for name, value in features.items()
    )
    return field(1, b''.join(entries))


def good_example(number):
    return framed(example(image_encoded=PICTURES[number][1], image_id=b'record %d' % number))


def parquet_of(columns, **options):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def good_columns(start=0):
    return {'id': [f'row {start + i}' for i in range(6)], 'image': [data for _, data in PICTURES[:6]]}


def hostile_tars():
    """(name, bytes, good records, reasons of rejects)."""
    good = [(f'{i:03}.webp', data) for i, (_, data) in enumerate(PICTURES)]
    up = [('../../evil.webp', DATA), ('/etc/evil.webp', DATA), ('a/../../b.webp', DATA), ('..', b'')]
    yield 'names.tar', tar_of(*up), 3, []
    links = [
        member('link.webp', tarfile.SYMTYPE, '/etc/passwd'),
        member('hard.webp', tarfile.LNKTYPE, '000.webp'),
        member('device.webp', tarfile.CHRTYPE),
        member('disk.webp', tarfile.BLKTYPE),
        member('pipe.webp', tarfile.FIFOTYPE),
        member('folder.webp', tarfile.DIRTYPE),
    ]
    yield 'links.tar', tar_of(*links, *good[:2]), 2, [records.MISSING_IMAGE] * 2
    yield 'same.tar', tar_of(*good[:2] * 3), 6, []
    yield 'cut.tar', tar_of(*good)[: 60 * 512], None, [records.BROKEN_SHARD]
    yield 'cut.tar.gz', gzip.compress(tar_of(*good))[:-4000], None, [records.BROKEN_SHARD]
    yield 'damaged.tar.gz', gzip.compress(tar_of(*good))[:-8] + bytes(8), 12, [records.BROKEN_SHARD]
    for name, size in {'octal': b'77777777777', 'binary': b'\x80' + b'\x7f' * 11, 'negative': b'\xff' * 12}.items():
        yield f'size-{name}.tar', with_size(tar_of(*good), size), 0, None
    yield 'size-text.tar', with_size(tar_of(*good), b'many'), 0, [records.BROKEN_SHARD]
    yield 'image.tar.gz', huge_member('huge.webp', 2), 1, [records.RECORD_TOO_LARGE]
    yield 'json.tar.gz', huge_member('huge.json', 0.25), 1, [records.RECORD_TOO_LARGE]
    for name, kind in {'long-name': tarfile.GNUTYPE_LONGNAME, 'pax': tarfile.XHDTYPE}.items():
        yield f'{name}.tar.gz', huge_member('huge', 3, kind), 0, [records.BROKEN_SHARD]
    yield 'name.tar', tar_of(('n' * 100_000 + '.webp', DATA), format=tarfile.GNU_FORMAT), 1, []
    deep = b'[' * 1_000_000
    numbers = b'{"id": ' + b'9' * 100_000 + b'}'
    yield 'deep.tar', tar_of(('a.webp', DATA), ('a.json', deep)), 0, [records.BROKEN_METADATA]
    yield 'number.tar', tar_of(('a.webp', DATA), ('a.json', numbers)), 0, [records.BROKEN_METADATA]
    yield 'empty.tar', b'', 0, None
    yield 'page.tar', b'<html>404</html>', 0, [records.BROKEN_SHARD]
    yield 'large.tar.gz', gzip.compress(tar_of(*[(f'{i}.webp', bytes(100 << 20)) for i in range(6)]), 1), 6, []


def hostile_tfrecords():
    """As `hostile_tars`."""
    good = b''.join(map(good_example, range(6)))
    one = good_example(0)
    flipped = bytearray(one + good)
    flipped[100] ^= 1
    yield 'data.tfrecord', bytes(flipped), 0, [records.BROKEN_SHARD]
    flipped = bytearray(good + one + good)
    flipped[len(good)] ^= 1
    yield 'length.tfrecord', bytes(flipped), 6, [records.BROKEN_SHARD]
    for name, length in {'absurd': 1 << 62, 'large': 1 << 40, 'beyond': 200 << 20}.items():
        yield f'{name}.tfrecord', good + framed(b'', length), 6, [records.BROKEN_SHARD]
    yield 'cut.tfrecord', good[:-50], 5, [records.BROKEN_SHARD]
    yield 'no-example.tfrecord', framed(b'\xff' * 50) + good, 6, [records.BROKEN_METADATA]
    yield 'nothing.tfrecord', framed(b'') + good, 6, [records.MISSING_ID]
    yield 'zeros.tfrecord.gz', zeros(good, 2), 6, [records.BROKEN_SHARD]


def hostile_parquets():
    """As `hostile_tars`."""
    stored = {'row_group_size': 2, 'use_dictionary': False, 'write_page_checksum': True}
    whole = parquet_of(good_columns(), **stored)
    damaged = bytearray(whole)
    start = pq.ParquetFile(io.BytesIO(whole)).metadata.row_group(1).column(1).data_page_offset
    damaged[start : start + 20] = bytes([255] * 20)  # a page's header
    yield 'group.parquet', bytes(damaged), 2, [records.BROKEN_SHARD]
    yield 'cut.parquet', whole[:-100], 0, [records.BROKEN_SHARD]
    yield 'empty.parquet', b'', 0, [records.BROKEN_SHARD]
    yield 'page.parquet', b'<html>404</html>', 0, [records.BROKEN_SHARD]
    null = {**good_columns(6), 'image': [None, DATA, b'', None, DATA, DATA]}
    yield 'null.parquet', parquet_of(null), 4, [records.MISSING_IMAGE] * 2
    nested = [{'bytes': DATA, 'path': None}, None, {'bytes': None, 'path': 'x'}] * 2
    nested_type = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
    ids = [f'nested {i}' for i in range(6)]
    columns = {'id': ids, 'image': pa.array(nested, nested_type), 'label': [[['deep']]] * 6}
    yield 'nested.parquet', parquet_of(columns), 2, [records.MISSING_IMAGE] * 4
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array([bytes(8 << 20)]))
    yield 'repeated.parquet', parquet_of({'id': range(100), 'image': repeated}), 100, []


def hostile_shards():
    yield from hostile_tars()
    yield from hostile_tfrecords()
    yield from hostile_parquets()


def mutated_shards(count, seed=6):
    """(name, bytes) of good shards that were mutated."""
    tar = tar_of(*[(f'{i:03}.webp', data) for i, (_, data) in enumerate(PICTURES[:4])])
    originals = [
        ('tar', tar),
        ('tar.gz', gzip.compress(tar)),
        ('tfrecord', b''.join(map(good_example, range(4)))),
        ('parquet', parquet_of(good_columns(), row_group_size=2)),
    ]
    rng = np.random.default_rng(seed)
    for number in range(count):
        suffix, data = originals[number % len(originals)]
        change = MUTATIONS[number // len(originals) % len(MUTATIONS)]
        if suffix == 'parquet' and number % 8 > 3:  # its header is at its end
            data = change(data[::-1], rng, originals[int(rng.integers(4))][1])[::-1]
        else:
            data = change(data, rng, originals[int(rng.integers(4))][1])
        yield f'{number:04}-{change.__name__}.{suffix}', data


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    """A folder of hostile shards, one of good ones, and a model."""
    folder = tmp_path_factory.mktemp('shards')
    for name in ('hostile', 'good'):
        (folder / name).mkdir()
    for name, data, _, _ in hostile_shards():
        (folder / 'hostile' / f'made-{name}').write_bytes(data)
    for name, data in mutated_shards(240):
        (folder / 'hostile' / name).write_bytes(data)
    write_tar(folder / 'good' / 'good.tar', tar_members(PICTURES))
    hand_model(catalogue_pictures(40)).save(folder / 'model')
    return folder


@pytest.mark.process
def test_all_are_read_or_refused_in_bounded_time_and_memory(shards, capsys):
    code, out, err, memory = run_measured([sys.executable, '-c', READ, shards / 'hostile'], shards)
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0, f'after {found[-1:]}: {err}'
    by_name = {shard.split()[0].rpartition('/')[2]: rest for shard, *rest in found}
    assert len(by_name) == len(list((shards / 'hostile').iterdir()))
    for name, _, good, reasons in hostile_shards():
        count, rejects, _ = by_name[f'made-{name}']
        assert count > 0 if good is None else count == good, name
        assert reasons in (None, [reason for reason, _ in rejects]), name
    assert all(detail and '\n' not in detail for _, rejects, _ in by_name.values() for _, detail in rejects)
    slowest = max(found, key=lambda row: row[3])
    with capsys.disabled():
        print(f'\nslowest: {slowest[0]} in {slowest[3]:.1f} s; most memory: {memory / 2**20:.0f} MiB')
    assert err == ''
    assert slowest[3] < MOST_SECONDS * max(slowest[1] + len(slowest[2]), 1)
    assert memory < MOST_MEMORY


@pytest.mark.process
def test_a_build_counts_all_of_them_and_writes_nothing_elsewhere(shards):
    before, index = listing(shards), shards / 'index'
    given = (
        '--images',
        shards / 'hostile',
        shards / 'good',
        '--model',
        shards / 'model',
        '--index',
        index,
        '--no-gate',
    )
    code, _, err, memory = run_measured([sys.executable, '-m', 'grainhash', 'build', *given], shards)
    assert code == 0, err
    options = ReadOptions()
    patterns = [str(shards / name) for name in ('hostile', 'good')]
    read = sum(1 for unit in list_units(patterns, options) for _ in read_unit(unit, options))
    counters = check_counts(index, read)
    assert counters['indexed'] >= len(PICTURES)
    assert counters['duplicates'] > 100
    assert memory < MOST_MEMORY
    assert len(err.splitlines()) < 20
    after = listing(shards)
    assert {path for path in after if not path.startswith('index')} == {*before, 'tmp', 'home'}
    assert all(after[path] == digest for path, digest in before.items())


@pytest.mark.process
def test_a_shard_without_a_column_of_images_is_refused_before_any_work(shards):
    columns = {'id': ['a'], 'picture': [DATA]}
    (shards / 'good' / 'other.parquet').write_bytes(parquet_of(columns))
    done = start('build', '--images', shards / 'good', '--model', shards / 'model', '--index', shards / 'none')
    (shards / 'good' / 'other.parquet').unlink()
    assert done.returncode == 2
    assert 'other.parquet has no column of image bytes; its columns are id, picture' in done.stderr.splitlines()[-1]
    assert not (shards / 'none').exists()


def test_metadata_and_member_headers_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(common, 'MAX_METADATA_BYTES', 1000)
    long_name = ('n' * 600 + '.webp', DATA)
    at_limit, beyond = (b'{"id": "' + b'x' * count + b'"}' for count in (990, 991))
    members = [
        ('a.webp', DATA),
        ('a.json', beyond),
        ('b.webp', DATA),
        ('b.json', at_limit),
        long_name,
        ('c.webp', DATA),
    ]
    path = tmp_path / 'a.tar'
    path.write_bytes(tar_of(*members, format=tarfile.GNU_FORMAT))
    (unit,) = list_units([str(path)], ReadOptions())
    reject, *found = read_unit(unit, ReadOptions())
    assert (reject.reason, reject.detail) == (records.RECORD_TOO_LARGE, '1001 bytes; the limit is 1000')
    assert [record.image_id for record in found] == ['x' * 990, 'n' * 600, 'c']
    monkeypatch.setattr(common, 'MAX_METADATA_BYTES', 600)
    reject = list(read_unit(unit, ReadOptions()))[-1]
    assert reject.reason == records.BROKEN_SHARD
    assert 'a member header of 606 bytes; the limit is 600' in reject.detail


def test_a_size_beyond_the_end_of_a_tar_is_not_skipped_block_by_block(tmp_path):
    path = tmp_path / 'a.tar'
    path.write_bytes(with_size(tar_of(('a.webp', DATA), ('b.webp', DATA)), b'\x80' + b'\x7f' * 11))
    (unit,) = list_units([str(path)], ReadOptions())
    (reject,) = read_unit(unit, ReadOptions())
    assert (reject.reason, reject.detail) == (
        records.BROKEN_SHARD,
        'after 0 records: the archive ends within a member',
    )


def test_large_records_go_in_small_batches(monkeypatch):
    monkeypatch.setattr(encode, 'BATCH_BYTES', 250)
    sizes = [100, 100, 100, 300, 10, *[1] * 12]
    items = [Record(str(i), bytes(size), Source('', '')) for i, size in enumerate(sizes)]
    items.insert(1, Reject(Source('', ''), records.MISSING_ID, 'no id'))
    batches = [[item for item, _ in batch] for batch in decoded_batches(items, Resizing(8), 8)]
    assert [len(batch) for batch in batches] == [4, 1, 8, 5]
    assert list(itertools.chain(*batches)) == items
