"""Builds on real runners: what lies in the index afterwards, and what does not after a build that failed."""

import collections
import functools
import hashlib
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib

import apache_beam as beam
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hashing_model.codes.spec import CodeSpec
from hashing_model.images import decode
from pipelines import files, records
from pipelines.build import job, part_runs, partitions
from pipelines.build.config import BuildConfig
from pipelines.build.unit_list import write_inputs, write_unit_list
from pipelines.cli.main import main
from pipelines.encoding.code_files import list_code_units
from pipelines.index import code_tables, layout, versions
from pipelines.jobs import blocks
from pipelines.jobs.runner import pipeline_options, run_pipeline
from tests.helpers.make_index import (
    CATALOGUE,
    KINDS,
    PORTABLE,
    REPEATED,
    ROOT,
    TWO_PROCESSES,
    catalogue_pictures,
    data_bytes,
    error_line,
    hand_model,
    make_codes,
    read_partitions,
    read_rejects,
    read_served,
    served_folder,
    start,
    succeed,
    tar_members,
    write_code_files,
    write_codes,
    write_tar,
)

SPECS = ('coarse=32,fine=32,look=64', 'code=48', 'tiny=7', 'odd=20', 'long=256')
HIVE = ds.partitioning(pa.schema([('table', pa.int32()), ('prefix', pa.string())]), flavor='hive')


SEEN = []  # what pipelines in this process have shown to `see`


def see(element):
    SEEN.append(element)


def build(index, codes, *options):
    """Build an index of code files; returns its manifest."""
    succeed('build', '--codes', codes, '--index', index, *options)
    return read_served(index)


def read_rows(index, columns=None):
    """The image rows by part: a list of Arrow tables."""
    folder = served_folder(index)
    return [files.read_table(str(folder / f.path), columns) for f in read_served(index).images]


# Partitions


@pytest.mark.beam
@pytest.mark.parametrize('segments', SPECS)
@pytest.mark.parametrize('kind', KINDS)
def test_every_table_holds_every_row_once_under_the_prefix_of_its_key(tmp_path, kind, segments):
    spec, rows, most = CodeSpec.parse(segments), 3000, 250
    codes = make_codes(kind, rows, spec)
    pattern = write_code_files(tmp_path, codes, 3)
    options = ('--segments', segments, '--partition-rows', most, *(['--no-gate'] if kind == 'identical' else []))
    manifest = build(tmp_path / 'index', pattern, *options)
    stored = [code_tables.codes_from_arrow(t['code']) for t in read_rows(tmp_path / 'index', ['code'])]
    np.testing.assert_array_equal(np.concatenate(stored), codes)

    rows_of_table = collections.defaultdict(list)
    for number, prefix, table in read_partitions(tmp_path / 'index'):
        substring = manifest.tables[number].substring
        found = code_tables.CodeRows.from_table(table)
        assert 0 < len(found.rows) <= 2 * most
        np.testing.assert_array_equal(np.lexsort((found.rows, found.keys)), np.arange(len(found.rows)))
        np.testing.assert_array_equal(found.keys, layout.substring_keys(found.codes, substring))
        assert set((found.keys >> (substring.bits - len(prefix))).tolist()) == {int(prefix, 2)}
        parts, places = found.rows >> 32, found.rows & 0xFFFFFFFF
        for part in range(3):
            np.testing.assert_array_equal(found.codes[parts == part], stored[part][places[parts == part]])
        rows_of_table[number] += found.rows.tolist()
    everything = [(part << 32) + i for part in range(3) for i in range(1000)]
    assert sorted(rows_of_table) == list(range(len(manifest.tables)))
    assert all(sorted(held) == everything for held in rows_of_table.values())
    substrings = [m.substring for m in manifest.tables]
    assert [b for s in substrings for b in range(s.start, s.start + s.bits)] == list(range(spec.bits))
    for table in manifest.tables:  # the prefixes cover the key space, each key once
        prefixes = [p.prefix for p in table.partitions]
        assert sum(0.5 ** len(p) for p in prefixes) == 1
        assert not any(a != b and a.startswith(b) for a in prefixes for b in prefixes)
        assert len(prefixes) > 2


@pytest.mark.beam
def test_a_value_too_frequent_for_one_file_gets_several(tmp_path):
    codes = make_codes('identical', 3000, CodeSpec.parse('code=32'))
    options = ('--partition-rows', 200, '--no-gate')
    manifest = build(tmp_path / 'index', write_code_files(tmp_path, codes, 1), *options)
    most = max((p for t in manifest.tables for p in t.partitions), key=lambda p: len(p.files))
    assert len(most.files) == 8
    assert most.rows >= 1500
    assert len({f.path for f in most.files}) == 8


@pytest.mark.beam
def test_the_manifest_knows_every_file_and_its_rows_and_bytes(tmp_path):
    codes = make_codes('clustered', 2000, CodeSpec.parse('code=64'))
    manifest = build(tmp_path / 'index', write_code_files(tmp_path, codes, 2), '--partition-rows', 200)
    folder = served_folder(tmp_path / 'index')
    listed = manifest.data_files
    assert {f.path for f in listed} == {str(p.relative_to(folder)) for p in folder.rglob('*.parquet')}
    for file in listed:
        assert pq.read_metadata(folder / file.path).num_rows == file.rows
        assert (folder / file.path).stat().st_size == file.bytes
    assert sorted(p.name for p in folder.iterdir()) == [
        *('build.json', 'codes', 'images', 'inputs.parquet', 'manifest.json', 'quality.json', 'sample.parquet'),
        'units.parquet',
    ]


@pytest.mark.beam
def test_the_sample_is_a_uniform_choice_of_the_rows(tmp_path):
    rows = 80_000
    codes = make_codes('uniform', rows, CodeSpec.parse('code=32'))
    build(tmp_path / 'index', write_code_files(tmp_path, codes, 4), '--segments', 'code=32')
    sample = files.read_table(str(served_folder(tmp_path / 'index') / 'sample.parquet'))
    assert len(sample) == 65_536
    places = (sample['row'].to_numpy() >> 32) * (rows // 4) + (sample['row'].to_numpy() & 0xFFFFFFFF)
    assert len(set(places.tolist())) == 65_536
    np.testing.assert_array_equal(code_tables.codes_from_arrow(sample['code']), codes[places])
    for chosen in (places, places[:6554]):  # any beginning is a sample, too
        shares = np.bincount(chosen // 10_000, minlength=8) / len(chosen)
        assert abs(shares - 1 / 8).max() < 0.02
    small = build(tmp_path / 'small', write_codes(tmp_path / 'small.parquet', ['a', 'b'], codes[:2]))
    assert small.sample.rows == 2


# What other programs read


@pytest.fixture(scope='module')
def plain_index(tmp_path_factory):
    """An index with a prefix that starts in 0, rejects, and a table of more than one row group."""
    folder = tmp_path_factory.mktemp('plain')
    codes = make_codes('clustered', 70_000, CodeSpec.parse('code=16'))
    ids = [f'id-{i}' for i in range(len(codes))]
    ids[7], ids[9], ids[11] = '', None, 'id-0'
    write_codes(folder / 'codes.parquet', ids, codes)
    build(folder / 'index', folder / 'codes.parquet', '--partition-rows', '66000')
    return folder / 'index'


@pytest.mark.beam
def test_pyarrow_reads_the_tables_with_string_prefixes(plain_index):
    folder = served_folder(plain_index)
    table = ds.dataset(folder / 'codes', partitioning=HIVE).to_table()
    assert len(table) == read_served(plain_index).rows == 69_997
    assert set(table['prefix'].to_pylist()) == {'0', '1'}
    assert len(ds.dataset(folder / 'images').to_table()) == 69_997
    assert sorted(ds.dataset(folder / 'rejects').to_table()['reason'].to_pylist()) == [
        records.DUPLICATE_ID,
        records.MISSING_ID,
        records.MISSING_ID,
    ]


@pytest.mark.beam
def test_duckdb_joins_a_table_with_the_images(plain_index):
    folder = served_folder(plain_index)
    codes = (
        f"read_parquet('{folder}/codes/**/*.parquet', hive_partitioning = true, "
        "hive_types = {'table': INT, 'prefix': VARCHAR})"
    )
    images_ = f"read_parquet('{folder}/images/*.parquet', file_row_number = true)"
    ask = duckdb.connect().execute
    by_prefix = ask(f'SELECT prefix, count(*), min(key) FROM {codes} GROUP BY prefix ORDER BY prefix').fetchall()
    assert [p for p, _, _ in by_prefix] == ['0', '1']
    assert by_prefix[1][2] >= 1 << 15
    same = ask(
        f'SELECT count(*) FROM {codes} c JOIN {images_} i ON c.row & 4294967295 = i.file_row_number '
        'WHERE c.code = i.code'
    ).fetchone()
    assert same == (69_997,)
    rejects = ask(f"SELECT reason, source.member FROM '{folder}/rejects/*.parquet' ORDER BY ALL").fetchall()
    assert rejects == [(records.DUPLICATE_ID, '11'), (records.MISSING_ID, '7'), (records.MISSING_ID, '9')]


@pytest.mark.beam
def test_partitions_are_row_groups_of_16_384_with_statistics_on_key(tmp_path):
    codes = make_codes('uniform', 70_000, CodeSpec.parse('code=16'))
    codes[:, 0] &= 0x7F
    manifest = build(tmp_path / 'index', write_codes(tmp_path / 'c.parquet', [str(i) for i in range(70_000)], codes))
    folder = served_folder(tmp_path / 'index')
    (file,) = manifest.tables[0].partitions[0].files
    footer = pq.read_metadata(folder / file.path)
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [16_384] * 4 + [70_000 - 4 * 16_384]
    last = -1
    for i in range(2):
        key = footer.row_group(i).column(0)
        assert (key.path_in_schema, key.compression, key.has_dictionary_page) == ('key', 'UNCOMPRESSED', False)
        assert last <= key.statistics.min <= key.statistics.max
        last = key.statistics.max
    assert last < 1 << 15
    assert manifest.tables[0].partitions[1].files == ()


@pytest.mark.beam
def test_images_are_row_groups_of_16_384_that_are_read_alone(tmp_path):
    codes = make_codes('uniform', 40_000, CodeSpec.parse('code=16'))
    build(tmp_path / 'index', write_codes(tmp_path / 'c.parquet', [f'id-{i}' for i in range(40_000)], codes))
    file = pq.ParquetFile(served_folder(tmp_path / 'index') / 'images' / 'part-00000.parquet')
    groups = [file.metadata.row_group(i) for i in range(3)]
    assert [group.num_rows for group in groups] == [16_384, 16_384, 40_000 - 2 * 16_384]
    columns = {c.path_in_schema: c for c in (groups[1].column(i) for i in range(groups[1].num_columns))}
    assert [name for name, c in columns.items() if c.has_dictionary_page] == [
        *('source.shard', 'labels.key_value.key', 'labels.key_value.value.list.element', 'caption')
    ]
    assert (columns['code'].compression, columns['image_id'].compression) == ('UNCOMPRESSED', 'ZSTD')
    group = file.read_row_group(1)
    assert group['image_id'].to_pylist() == [f'id-{i}' for i in range(16_384, 32_768)]
    np.testing.assert_array_equal(code_tables.codes_from_arrow(group['code']), codes[16_384:32_768])


# Duplicates and other rejects


@pytest.mark.beam
def test_of_records_with_one_id_the_first_stays(tmp_path):
    codes = make_codes('uniform', 12, CodeSpec.parse('code=32'))
    write_codes(tmp_path / '1.parquet', ['a', 'b', 'a', 'c'], codes[:4])
    write_codes(tmp_path / '2.parquet', ['d', 'b', 'e', ''], codes[4:8])
    write_codes(tmp_path / '3.parquet', ['e', 'a', 'b', 'f'], codes[8:])
    manifest = build(tmp_path / 'index', tmp_path / '*.parquet', '--no-gate')
    kept = [
        dict(zip(t['image_id'].to_pylist(), t['code'].to_pylist(), strict=True)) for t in read_rows(tmp_path / 'index')
    ]
    kept_places = [{'a': 0, 'b': 1, 'c': 3}, {'d': 4, 'e': 6}, {'f': 11}]
    assert kept == [{i: bytes(codes[place]) for i, place in part.items()} for part in kept_places]
    duplicate = records.DUPLICATE_ID
    assert read_rejects(tmp_path / 'index') == [
        (duplicate, 'a', '2'),
        (records.MISSING_ID, None, '3'),
        (duplicate, 'b', '1'),
        (duplicate, 'e', '0'),
        (duplicate, 'a', '1'),
        (duplicate, 'b', '2'),
    ]
    counters = {'records_read': 12, 'indexed': 6, 'rejected': 1, 'duplicates': 5, 'reasons': {records.MISSING_ID: 1}}
    assert manifest.counters == counters
    for _, _, table in read_partitions(tmp_path / 'index'):  # row numbers count the rows that stayed
        for row, code in zip(table['row'].to_pylist(), table['code'].to_pylist(), strict=True):
            assert code in list(kept[row >> 32].values())[row & 0xFFFFFFFF :][:1]


@pytest.mark.beam
@pytest.mark.parametrize('inline_bytes', [0, 1 << 18])
@pytest.mark.parametrize('run_rows', [1, 2_000, 2_000_000])
def test_many_duplicates_are_all_found(tmp_path, monkeypatch, run_rows, inline_bytes):
    monkeypatch.setattr(part_runs, 'RUN_ROWS', run_rows)
    monkeypatch.setattr(blocks, 'INLINE_BYTES', inline_bytes)
    rng, rows = np.random.default_rng(0), 5000
    ids = [f'id-{i}' for i in rng.integers(0, 2000, rows)]
    codes = make_codes('uniform', rows, CodeSpec.parse('code=64'))
    for number in range(5):
        part = slice(number * 1000, number * 1000 + 1000)
        write_codes(tmp_path / f'{number}.parquet', ids[part], codes[part])
    build(tmp_path / 'index', tmp_path / '*.parquet')
    kept = [i for t in read_rows(tmp_path / 'index', ['image_id']) for i in t['image_id'].to_pylist()]
    assert kept == list(dict.fromkeys(ids))
    assert len(read_rejects(tmp_path / 'index')) == rows - len(kept)


@pytest.mark.beam
def test_codes_of_another_length_are_rejected(tmp_path):
    columns = {'image_id': ['a', 'b', 'c'], 'code': [b'12345678', b'123', None]}
    pq.write_table(pa.table(columns), tmp_path / 'codes.parquet')
    build(tmp_path / 'index', tmp_path / 'codes.parquet', '--no-gate')
    assert read_rejects(tmp_path / 'index') == [
        (records.WRONG_CODE_LENGTH, 'b', '1'),
        (records.WRONG_CODE_LENGTH, 'c', '2'),
    ]


# Images


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
        + chunk(b'IEND', b'')
    )


def cut_jpeg(data):
    """The first half of a picture as JPEG."""
    sink = io.BytesIO()
    Image.open(io.BytesIO(data)).convert('RGB').save(sink, 'JPEG')
    return sink.getvalue()[: len(sink.getvalue()) // 2]


def write_tfrecord(path, examples):
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for features in examples:
            values = {
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value])) for name, value in features.items()
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=values)).SerializeToString())


def example(picture):
    fields, data = picture
    labels = {f'label/{level}': value.encode() for level, value in fields['labels'].items()}
    return {'image/encoded': data, 'image/id': fields['id'].encode(), 'caption': fields['caption'].encode(), **labels}


def write_parquet(path, pictures):
    columns = {
        'id': [fields['id'] for fields, _ in pictures],
        'image': [data for _, data in pictures],
        'caption': [fields['caption'] for fields, _ in pictures],
        'labels': [fields['labels'] for fields, _ in pictures],
    }
    pq.write_table(pa.table(columns), path)


def write_mixed_folder(folder, pictures):
    """Shards of all formats with 62 pictures, 3 duplicates and 7 records that cannot be indexed."""
    (folder / 'plain').mkdir(parents=True)
    write_tar(folder / 'a.tar', tar_members([*pictures[:15], pictures[0]]))
    without_id = {k: v for k, v in example(pictures[0]).items() if k != 'image/id'}
    write_tfrecord(folder / 'b.tfrecord', [*map(example, pictures[15:30]), without_id, example(pictures[3])])
    nameless = ({**pictures[0][0], 'id': None}, pictures[0][1])
    write_parquet(folder / 'c.parquet', [*pictures[30:45], nameless, pictures[3]])
    for number, (_, data) in enumerate(pictures[45:60]):
        (folder / 'plain' / f'{number:02}.webp').write_bytes(data)
    broken = {'empty.png': b'', 'text.png': b'no picture\n' * 9, 'huge.png': png_header(20_000, 20_000)}
    for name, data in {**broken, 'cut.jpg': cut_jpeg(pictures[0][1])}.items():
        (folder / 'plain' / name).write_bytes(data)
    write_tar(folder / 'z.tar', tar_members(pictures[60:]))
    used = sum(512 + -(-len(data) // 512) * 512 for _, data in tar_members(pictures[60:62]))
    os.truncate(folder / 'z.tar', used + 700)  # within the third picture


@pytest.fixture(scope='module')
def pictures():
    return catalogue_pictures(64)


@pytest.fixture(scope='module')
def model(pictures):
    return hand_model(pictures)


@pytest.fixture(scope='module')
def mixed(tmp_path_factory, pictures, model):
    """A folder with `images`, `model`, and `index` built of them."""
    folder = tmp_path_factory.mktemp('mixed')
    write_mixed_folder(folder / 'images', pictures)
    model.save(folder / 'model')
    succeed('build', *of_mixed(folder, folder / 'index'))
    return folder


def of_mixed(folder, index):
    """Options of a build, the gate open for 7 rejects of 72."""
    return ('--images', folder / 'images', '--model', folder / 'model', '--index', index, '--max-reject-rate', '0.1')


@pytest.mark.beam
@pytest.mark.tf
def test_records_read_are_indexed_rejected_or_duplicates(mixed):
    manifest = read_served(mixed / 'index')
    reasons = {
        decode.EMPTY: 1,
        decode.NOT_AN_IMAGE: 1,
        decode.TOO_MANY_PIXELS: 1,
        decode.TRUNCATED: 1,
        records.BROKEN_SHARD: 1,
        records.MISSING_ID: 2,
    }
    assert manifest.counters == {
        'records_read': 72,
        'indexed': 62,
        'rejected': 7,
        'duplicates': 3,
        'reasons': dict(sorted(reasons.items())),
    }
    assert [f.rows for f in manifest.images] == [15, 15, 15, 15, 2]


@pytest.mark.beam
@pytest.mark.tf
def test_every_reject_tells_its_reason_and_source(mixed, pictures):
    folder = served_folder(mixed / 'index')
    tables = [files.read_table(str(folder / f.path)).to_pylist() for f in read_served(mixed / 'index').rejects]
    found = {(r['source']['shard'], r['source']['member']): (r['reason'], r['image_id']) for t in tables for r in t}
    shards = mixed / 'images'
    assert found == {
        (f'{shards}/a.tar', '000015.webp'): (records.DUPLICATE_ID, pictures[0][0]['id']),
        (f'{shards}/b.tfrecord', '15'): (records.MISSING_ID, None),
        (f'{shards}/b.tfrecord', '16'): (records.DUPLICATE_ID, pictures[3][0]['id']),
        (f'{shards}/c.parquet', '15'): (records.MISSING_ID, None),
        (f'{shards}/c.parquet', '16'): (records.DUPLICATE_ID, pictures[3][0]['id']),
        (f'{shards}', 'plain/cut.jpg'): (decode.TRUNCATED, 'plain/cut.jpg'),
        (f'{shards}', 'plain/empty.png'): (decode.EMPTY, 'plain/empty.png'),
        (f'{shards}', 'plain/huge.png'): (decode.TOO_MANY_PIXELS, 'plain/huge.png'),
        (f'{shards}', 'plain/text.png'): (decode.NOT_AN_IMAGE, 'plain/text.png'),
        (f'{shards}/z.tar', ''): (records.BROKEN_SHARD, None),
    }
    assert all(r['detail'] for t in tables for r in t)


@pytest.mark.beam
@pytest.mark.tf
def test_image_rows_tell_source_digest_size_labels_and_caption(mixed, pictures):
    rows = [row for table in read_rows(mixed / 'index') for row in table.to_pylist()]
    assert len(rows) == 62
    for number, (row, (fields, data)) in enumerate(zip(rows, pictures, strict=False)):
        is_plain = 45 <= number < 60
        assert row['image_id'] == (f'plain/{number - 45:02}.webp' if is_plain else fields['id'])
        assert row['digest'] == hashlib.blake2b(data, digest_size=16).digest()
        assert (row['width'], row['height']) == Image.open(io.BytesIO(data)).size
        assert dict(row['labels']) == ({} if is_plain else {level: [v] for level, v in fields['labels'].items()})
        assert row['caption'] == (None if is_plain else fields['caption'])
    sources = [(os.path.basename(r['source']['shard']), r['source']['member']) for r in rows]
    assert sources[0] == ('a.tar', '000000.webp')
    assert sources[15:45:15] == [('b.tfrecord', '0'), ('c.parquet', '0')]
    assert sources[45] == ('images', 'plain/00.webp')
    assert sources[61] == ('z.tar', '000001.webp')


@pytest.mark.beam
@pytest.mark.tf
def test_image_rows_hold_the_codes_of_the_model(mixed, pictures, model):
    assert read_served(mixed / 'index').model['fingerprint'] == model.fingerprint
    pixels = np.stack([model.decode(data).pixels for _, data in pictures[:62]])
    stored = [code_tables.codes_from_arrow(t['code']) for t in read_rows(mixed / 'index', ['code'])]
    np.testing.assert_array_equal(np.concatenate(stored), model.encode(pixels))


@pytest.mark.beam
@pytest.mark.tf
def test_a_build_of_images_is_the_same_again_and_with_repeated_bundles(mixed):
    succeed('build', *of_mixed(mixed, mixed / 'again'), REPEATED)
    assert data_bytes(mixed / 'again') == data_bytes(mixed / 'index')


@pytest.mark.beam
@pytest.mark.tf
@pytest.mark.process
@pytest.mark.parametrize('options', [TWO_PROCESSES, PORTABLE], ids=['two processes', 'portable runner'])
def test_a_build_of_images_is_the_same_on_other_runners(mixed, tmp_path, options):
    done = start('build', *of_mixed(mixed, tmp_path / 'index'), *options)
    assert done.returncode == 0, done.stderr
    assert '62 of 72 records indexed, 3 with a duplicate id, 7 rejected' in done.stderr
    assert data_bytes(tmp_path / 'index') == data_bytes(mixed / 'index')


@pytest.mark.beam
@pytest.mark.tf
def test_the_default_model_is_trained_and_indexes_the_mixed_folder(mixed, tmp_path):
    reading = ('--images', mixed / 'images', '--model', tmp_path / 'model')
    succeed('train', *reading, '--input-size', '96', '--segments', 'coarse=16,fine=16,look=32')
    succeed('build', *reading, '--index', tmp_path / 'index', '--max-reject-rate', '0.1')
    manifest, same = read_served(tmp_path / 'index'), read_served(mixed / 'index')
    assert manifest.counters == same.counters
    assert manifest.spec.bits == 64
    codes = np.concatenate([code_tables.codes_from_arrow(t['code']) for t in read_rows(tmp_path / 'index', ['code'])])
    assert len(np.unique(codes, axis=0)) > 50


# The same input gives the same files, however often a bundle runs and wherever


@pytest.fixture(scope='module')
def code_files(tmp_path_factory):
    """A folder with `codes-*.parquet`, among them duplicates, and `index` built of them."""
    folder = tmp_path_factory.mktemp('codes')
    codes = make_codes('clustered', 4000, CodeSpec.parse('code=64'))
    write_code_files(folder, codes, 3)
    write_codes(folder / 'codes-x.parquet', ['codes-5', 'new'], codes[:2])
    build(folder / 'index', folder / 'codes-*.parquet', '--partition-rows', 200)
    return folder


@pytest.mark.beam
def test_two_builds_of_one_input_write_the_same_bytes(code_files, tmp_path):
    build(tmp_path / 'index', code_files / 'codes-*.parquet', '--partition-rows', 200)
    assert data_bytes(tmp_path / 'index') == data_bytes(code_files / 'index')
    assert len(data_bytes(tmp_path / 'index')) > 100


@pytest.mark.beam
def test_repeated_bundles_do_run_twice():
    del SEEN[:]
    run_pipeline(lambda root: root | beam.Create([1]) | beam.Map(see), pipeline_options([REPEATED]))
    assert SEEN == [1, 1]


@pytest.mark.beam
def test_repeated_bundles_double_nothing(code_files, tmp_path, monkeypatch):
    written = collections.Counter()
    write = files.write_bytes

    def write_and_count(uri, content, **options):
        written[os.path.relpath(uri, tmp_path)] += 1
        return write(uri, content, **options)

    monkeypatch.setattr(files, 'write_bytes', write_and_count)
    monkeypatch.setattr(blocks, 'INLINE_BYTES', 10_000)
    manifest = build(tmp_path / 'index', code_files / 'codes-*.parquet', '--partition-rows', 200, REPEATED)
    assert data_bytes(tmp_path / 'index') == data_bytes(code_files / 'index')
    assert manifest.counters == read_served(code_files / 'index').counters
    once = ('inputs.parquet', '.probe', 'CURRENT', 'sample.parquet', 'units.parquet', '.json')
    # written before the pipeline runs, or left alone by its repetition
    assert {times for path, times in written.items() if not path.endswith(once)} == {2}
    staged = {os.path.basename(path).partition('-')[0] for path in written if 'staging' in path}
    assert staged == {'images', 'rejects', 'ids', 'codes', 'work'}
    assert len(written) > 100


@pytest.mark.beam
@pytest.mark.process
@pytest.mark.parametrize('options', [TWO_PROCESSES, PORTABLE], ids=['two processes', 'portable runner'])
def test_other_runners_write_the_same_bytes(code_files, tmp_path, options):
    codes = ('--codes', code_files / 'codes-*.parquet', '--partition-rows', 200)
    done = start('build', *codes, '--index', tmp_path / 'index', *options)
    assert done.returncode == 0, done.stderr
    assert data_bytes(tmp_path / 'index') == data_bytes(code_files / 'index')
    assert read_served(tmp_path / 'index').counters == read_served(code_files / 'index').counters


# Builds that fail


@pytest.fixture(scope='module')
def served_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp('served')
    write_code_files(folder, make_codes('uniform', 1000, CodeSpec.parse('code=64')), 2)
    build(folder / 'index', folder / 'codes-*.parquet')
    return folder


@pytest.fixture
def served(served_once, tmp_path):
    """An index in which one version is served, and good codes to build a second one from."""
    return shutil.copytree(served_once, tmp_path / 'served')


def state(index):
    """What a failed build must leave as it was."""
    return (index / 'CURRENT').read_text(), sorted(p.name for p in (index / 'versions').iterdir()), data_bytes(index)


def damage_pages(path):
    """Spoil the data pages of a Parquet file and keep its footer."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1000] = bytes(1000)
    path.write_bytes(data)


@pytest.mark.beam
def test_a_unit_that_cannot_be_read_fails_the_build_and_publishes_nothing(served, capsys):
    before = state(served / 'index')
    damage_pages(served / 'codes-1.parquet')
    assert main(['build', '--codes', f'{served}/codes-*.parquet', '--index', f'{served}/index']) == 1
    assert f'cannot read {served}/codes-1.parquet' in error_line(capsys)
    assert state(served / 'index') == before


@pytest.mark.beam
@pytest.mark.process
@pytest.mark.parametrize('options', [TWO_PROCESSES, PORTABLE], ids=['two processes', 'portable runner'])
def test_a_unit_that_cannot_be_read_fails_the_build_on_other_runners(served, options):
    before = state(served / 'index')
    damage_pages(served / 'codes-1.parquet')
    done = start('build', '--codes', served / 'codes-*.parquet', '--index', served / 'index', *options)
    assert done.returncode == 1
    assert f'grainhash: error: cannot read {served}/codes-1.parquet' in done.stderr.splitlines()[-1]
    assert state(served / 'index') == before


@pytest.mark.beam
def test_a_first_build_that_fails_leaves_no_index(served, capsys):
    damage_pages(served / 'codes-1.parquet')
    assert main(['build', '--codes', f'{served}/codes-*.parquet', '--index', f'{served}/new']) == 1
    assert not (served / 'new').exists()
    capsys.readouterr()


@pytest.mark.beam
def test_a_row_lost_before_encoding_fails_the_build(served, capsys, monkeypatch):
    def lose_one(items, spec):
        encoded = read_codes(items, spec)
        return type(encoded)(encoded.images.slice(1), encoded.rejects, encoded.records_read)

    read_codes = job.read_codes
    monkeypatch.setattr(job, 'read_codes', lose_one)
    before = state(served / 'index')
    assert main(['build', '--codes', f'{served}/codes-*.parquet', '--index', f'{served}/index']) == 1
    assert error_line(capsys) == (
        'grainhash: error: records are missing: read 1,000, used 998, rejected 0, duplicates 0'
    )
    assert state(served / 'index') == before


@pytest.mark.beam
def test_a_row_lost_on_the_way_to_its_partition_fails_the_build(served, capsys, monkeypatch):
    def lose_one(codes, rows, table, tables):
        for key, places in partition_places(codes, rows, table, tables):
            yield key, places if table else places[1:]

    partition_places = partitions.partition_places
    monkeypatch.setattr(partitions, 'partition_places', lose_one)
    before = state(served / 'index')
    assert main(['build', '--codes', f'{served}/codes-*.parquet', '--index', f'{served}/index']) == 1
    assert error_line(capsys) == 'grainhash: error: table 0 holds 998 rows; 1000 images were indexed'
    assert state(served / 'index') == before


@pytest.mark.beam
def test_a_build_of_nothing_but_rejects_fails_and_the_old_version_stays(served, capsys):
    before = state(served / 'index')
    write_codes(served / 'nameless.parquet', [None, ''], make_codes('uniform', 2, CodeSpec.parse('code=64')))
    assert main(['build', '--codes', f'{served}/nameless.parquet', '--index', f'{served}/index']) == 1
    assert error_line(capsys) == 'grainhash: error: none of 2 records could be used: 2 missing_id'
    assert state(served / 'index') == before


@pytest.mark.parametrize('row_groups', [0, 1])
def test_files_without_any_row_are_refused(tmp_path, capsys, row_groups):
    schema = pa.schema([('image_id', pa.string()), ('code', pa.binary())])
    with pq.ParquetWriter(tmp_path / 'empty.parquet', schema) as writer:
        for _ in range(row_groups):
            writer.write_table(schema.empty_table())
    assert main(['build', '--codes', f'{tmp_path}/empty.parquet', '--index', f'{tmp_path}/index']) == 2
    assert 'hold no codes' in error_line(capsys)
    assert not (tmp_path / 'index').exists()


@pytest.mark.beam
def test_an_empty_file_among_others_is_an_empty_part(tmp_path):
    write_codes(tmp_path / '1.parquet', [], [])
    write_codes(tmp_path / '2.parquet', ['a'], make_codes('uniform', 1, CodeSpec.parse('code=64')))
    manifest = build(tmp_path / 'index', tmp_path / '*.parquet')
    assert [f.rows for f in manifest.images] == [0, 1]
    rows = [table['row'].to_pylist() for _, _, table in read_partitions(tmp_path / 'index')]
    assert rows == [[1 << 32]] * len(manifest.tables)


@pytest.mark.beam
def test_a_place_that_takes_no_files_is_refused_before_any_work(served, capsys):
    (served / 'other').mkdir()
    (served / 'other' / 'versions').write_text('a file')
    assert main(['build', '--codes', f'{served}/codes-*.parquet', '--index', f'{served}/other']) == 2
    assert 'cannot write' in error_line(capsys)
    assert [p.name for p in (served / 'other').iterdir()] == ['versions']


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_read_only_index_is_refused_before_any_work(served, capsys):
    (served / 'index' / 'versions').chmod(0o500)
    try:
        assert main(['build', '--codes', f'{served}/codes-*.parquet', '--index', f'{served}/index']) == 2
        assert 'cannot write' in error_line(capsys)
    finally:
        (served / 'index' / 'versions').chmod(0o700)


@pytest.mark.beam
def test_a_disk_that_fails_during_the_build_leaves_the_served_version(served, capsys, monkeypatch):
    """A folder stands where the first partition of the new version must go."""
    before = state(served / 'index')
    monkeypatch.setattr('pipelines.build.build_index.versions.new_version_id', lambda: 'next')
    monkeypatch.setattr(partitions.versions, 'codes_path', lambda *_: 'images')
    assert main(['build', '--codes', f'{served}/codes-*.parquet', '--index', f'{served}/index']) == 1
    assert 'next/images' in error_line(capsys)
    assert state(served / 'index') == before


@pytest.mark.beam
def test_a_folder_of_other_things_is_refused(served, capsys):
    assert main(['build', '--codes', f'{served}/codes-*.parquet', '--index', str(served)]) == 2
    assert 'is not an index: it holds codes-0.parquet' in error_line(capsys)


# Versions


@pytest.mark.beam
def test_a_rebuild_moves_current_and_keeps_the_old_version(served):
    index = served / 'index'
    (first,) = (index / 'versions').iterdir()
    old = data_bytes(index)
    codes = make_codes('uniform', 10, CodeSpec.parse('code=64'), seed=1)
    few = write_codes(served / 'few.parquet', [str(i) for i in range(10)], codes)
    manifest = build(index, few, '--max-fewer-rows', '1')
    assert (index / 'CURRENT').read_text() == f'{manifest.version}\n'
    assert sorted(p.name for p in (index / 'versions').iterdir()) == sorted([first.name, manifest.version])
    assert manifest.rows == 10
    (index / 'CURRENT').write_text(f'{first.name}\n')
    assert data_bytes(index) == old


@pytest.mark.beam
def test_an_index_of_one_row(tmp_path):
    codes = make_codes('uniform', 1, CodeSpec.parse('code=24'))
    manifest = build(tmp_path / 'index', write_codes(tmp_path / 'one.parquet', ['only'], codes))
    assert (manifest.rows, manifest.sample.rows) == (1, 1)
    rows = [table['row'].to_pylist() for _, _, table in read_partitions(tmp_path / 'index')]
    assert rows == [[0]] * len(manifest.tables)


@pytest.mark.beam
def test_the_graph_runs_as_the_caller_wires_it(tmp_path):
    """`define_pipeline` in a caller's own pipeline, its result used further."""
    codes = make_codes('uniform', 300, CodeSpec.parse('code=64'))
    units, inputs = list_code_units([write_code_files(tmp_path, codes, 2)])
    index, spec = str(tmp_path / 'index'), CodeSpec.parse('code=64')
    version = versions.Version(index, 'v1')
    config = BuildConfig(index, 'v1', spec, write_unit_list(version, units), write_inputs(version, inputs))
    del SEEN[:]
    run_pipeline(lambda root: job.define_pipeline(root, config) | beam.Map(see), pipeline_options([]))
    assert SEEN == [300]
    assert read_served(tmp_path / 'index').version == 'v1'
    read = versions.open_version(str(index)).read_table(read_served(index).inputs)
    assert read['path'].to_pylist() == [i.path for i in inputs]
    assert json.loads((tmp_path / 'index/versions/v1/manifest.json').read_text())['counters']['indexed'] == 300


def test_a_late_attempt_of_a_unit_changes_nothing(tmp_path):
    """Two attempts with other results: the part is made of the one whose names arrived."""
    spec = CodeSpec.parse('code=64')
    codes = [make_codes('uniform', 50, spec, seed) for seed in (1, 2)]
    config = BuildConfig(str(tmp_path / 'index'), 'v', spec, 1, None)
    attempts = []
    for attempt in codes:
        write_codes(tmp_path / 'codes.parquet', [str(i) for i in range(50)], attempt)
        (unit,), _ = list_code_units([str(tmp_path / 'codes.parquet')])
        attempts.append(next(iter(job.EncodeUnit(config).process(unit))))
    assert attempts[0].images != attempts[1].images
    joined = {'staged': [attempts[0]], 'duplicates': []}
    (part,) = job.FinishPart(config).process((0, joined))
    made, _ = partitions.read_part(part, config)
    np.testing.assert_array_equal(made, codes[0])


@pytest.mark.process
@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGINT])
def test_a_build_that_is_stopped_leaves_nothing(sent, tmp_path):
    hand_model(catalogue_pictures(40)).save(tmp_path / 'model')
    options = ('--images', CATALOGUE / 'index-*.tar.gz', '--model', tmp_path / 'model', '--index', tmp_path / 'index')
    command = [sys.executable, '-m', 'grainhash', 'build', *map(str, options)]
    heeded = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heeded) as build_:
        deadline = time.monotonic() + 60
        while not list((tmp_path / 'index').rglob('staging/*.parquet')) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert build_.poll() is None, 'the build ended before it could be stopped'
        build_.send_signal(sent)
        messages = build_.communicate(timeout=60)[1]
    assert build_.returncode == 130
    assert messages.splitlines()[-1] == 'grainhash: error: interrupted'
    assert not (tmp_path / 'index').exists()
