"""Listing and reading of image shards, over files made here by other writers than ours."""

import errno
import gzip
import io
import json
import os
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystems import FileSystems
from PIL import Image

from hashing_model.errors import InputError
from hashing_model.images.decode import Resizing, decode
from pipelines import records
from pipelines.inputs import shards
from pipelines.inputs.formats import common
from pipelines.inputs.options import ReadOptions
from pipelines.inputs.shards import list_inputs, list_units, read_member, read_unit
from pipelines.records import Record, Reject, Source


def read_all(patterns, options=None):
    options = options or ReadOptions()
    patterns = [str(p) for p in (patterns if isinstance(patterns, list) else [patterns])]
    return [item for unit in list_units(patterns, options) for item in read_unit(unit, options)]


def ids(items):
    return [item.image_id for item in items if isinstance(item, Record)]


def reasons(items):
    return [item.reason for item in items if isinstance(item, Reject)]


def image_bytes(i):
    return b'image %04d ' % i + bytes(range(256)) * 4


# Tar


def write_tar(path, members, mode='w', **options):
    with tarfile.open(path, mode, **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


SAMPLE_BYTES = 6 * 512  # a header and 3 blocks, a header and 1 block


def json_of(i):
    return json.dumps({'id': f'sku-{i}', 'labels': {'coarse': 'shoe'}, 'caption': f'no {i}'}).encode()


def samples(n, start=0):
    for i in range(start, start + n):
        yield f'{i:06}.jpg', image_bytes(i)
        yield f'{i:06}.json', json_of(i)


@pytest.mark.parametrize(('name', 'mode'), [('a.tar', 'w'), ('a.tar.gz', 'w:gz'), ('a.tgz', 'w:gz'), ('A.TAR', 'w')])
@pytest.mark.parametrize('format_', [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tar(tmp_path, name, mode, format_):
    path = str(write_tar(tmp_path / name, samples(5), mode, format=format_))
    found = read_all(path)
    assert found[3] == Record('sku-3', image_bytes(3), Source(path, '000003.jpg'), {'coarse': ('shoe',)}, 'no 3')
    assert ids(found) == [f'sku-{i}' for i in range(5)]
    assert read_member(found[3].source, ReadOptions()) == image_bytes(3)
    with pytest.raises(InputError, match='has no image x'):
        read_member(Source(path, 'x'), ReadOptions())


def test_tar_naming(tmp_path):
    members = [
        ('README.md', b'about'),
        ('train/v1.0/7.jpg', b'a'),
        ('train/v1.0/7.txt', b' blue shoe\n'),
        ('train/v1.0/7.cls', b'12\n'),
        ('train/v1.0/7.seg.png', b'ignored'),
        ('./train/8.PNG', b'b'),
        ('./train/._8.png', b'left by a Mac'),
        ('train/8.json', b'{"id": 8, "labels": {"fine": ["x", 1], "coarse": null}}'),
        ('é/9.webp', b'c'),
        ('ten.npy', b'only'),
    ]
    found = read_all(write_tar(tmp_path / 'a.tar', members))
    assert [(r.image_id, r.data, r.labels, r.caption) for r in found] == [
        ('train/v1.0/7', b'a', {'class': ('12',)}, 'blue shoe'),
        ('8', b'b', {'fine': ('x', '1')}, None),
        ('é/9', b'c', {}, None),
    ]
    assert found[1].source.member == './train/8.PNG'
    assert read_member(found[1].source, ReadOptions()) == b'b'


def test_tar_options(tmp_path):
    info = {'sku': 5, 'labels': {'fine': 'boot'}, 'brand': ['a', 'b'], 'title': 'Boots', 'size': None}
    members = [('1.jpg', b'x'), ('1.thumb.png', b'y'), ('1.json', json.dumps(info).encode())]
    path = write_tar(tmp_path / 'a.tar', members)
    options = ReadOptions('thumb.png', 'sku', 'title', ('brand', 'fine', 'size'))
    (record,) = read_all(path, options)
    assert (record.data, record.image_id, record.caption) == (b'y', '5', 'Boots')
    assert list(record.labels.items()) == [('brand', ('a', 'b')), ('fine', ('boot',))]
    assert reasons(read_all(path, ReadOptions(image_id='uid'))) == [records.MISSING_ID]
    assert ids(read_all(path, ReadOptions(image_id='__key__'))) == ['1']


def test_tar_rejects(tmp_path, monkeypatch):
    monkeypatch.setattr(common, 'MAX_RECORD_BYTES', 100)
    members = [
        *[('a.jpg', b'x'), ('a.json', b'{"id": "a"')],
        *[('b.jpg', b'x'), ('b.json', b'[1]')],
        *[('c.jpg', b'x'), ('c.json', b'{"labels": {"fine": {"deep": 1}}}')],
        *[('d.jpg', b'x'), ('d.json', b'{"id": "\\ud800"}')],
        *[('e.jpg', b'x'), ('e.json', b'{"id": ""}')],
        *[('f.jpg', b'x'), ('f.cls', b'\xff')],
        ('g.json', b'{}'),
        ('h.v2.jpg', b'x'),
        ('i.jpg', b'x' * 101),
        ('j.jpg', b'last'),
    ]
    found = read_all(write_tar(tmp_path / 'a.tar', members))
    broken, no_id, no_image = records.BROKEN_METADATA, records.MISSING_ID, records.MISSING_IMAGE
    assert reasons(found) == [broken] * 4 + [no_id, broken, no_image, no_image, records.RECORD_TOO_LARGE]
    assert ids(found) == ['j']
    assert all('\n' not in r.detail for r in found if isinstance(r, Reject))


def add_link(tar, name, target, kind=tarfile.LNKTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    tar.addfile(info)


def test_tar_is_safe(tmp_path):
    """No target of a link is read, no device opened."""
    path = tmp_path / 'a.tar'
    with tarfile.open(path, 'w') as tar:
        for name, kind in [('1.jpg', tarfile.SYMTYPE), ('2.jpg', tarfile.LNKTYPE), ('3.jpg', tarfile.FIFOTYPE)]:
            add_link(tar, name, '/etc/hostname', kind)
        add_link(tar, '4.jpg', '', tarfile.DIRTYPE)
    assert read_all(path) == [
        Reject(Source(str(path), name), records.MISSING_IMAGE, 'a link to /etc/hostname') for name in ('1.jpg', '2.jpg')
    ]
    with pytest.raises(InputError, match=r'has no image 2\.jpg'):
        read_member(Source(str(path), '2.jpg'), ReadOptions())


def test_second_names_of_a_file_in_a_tar_are_rejects(tmp_path):
    (tmp_path / '1.jpg').write_bytes(b'x')
    os.link(tmp_path / '1.jpg', tmp_path / '2.JPG')
    (tmp_path / '2.json').write_bytes(b'{"id": "two"}')
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        for name in ('1.jpg', '2.JPG', '2.json'):
            tar.add(tmp_path / name, f'train/{name}')
    found = read_all(tmp_path / 'a.tar')
    assert ids(found) == ['train/1']
    assert [(r.source.member, r.reason, r.detail) for r in found[1:]] == [
        ('train/2.JPG', records.MISSING_IMAGE, 'a link to train/1.jpg')
    ]


def test_links_beside_images_in_a_tar(tmp_path):
    path = tmp_path / 'a.tar'
    with tarfile.open(path, 'w') as tar:
        for key in '123':
            add_link(tar, f'{key}.gif', '0.gif')  # the image comes after it
            info = tarfile.TarInfo(f'{key}.jpg')
            info.size = 1
            tar.addfile(info, io.BytesIO(key.encode()))
        add_link(tar, '3.json', '0.json')  # its id may be another
        add_link(tar, 'latest.txt', '0.txt')  # no record
        add_link(tar, 'all', 'train', tarfile.SYMTYPE)
    found = read_all(path)
    assert [(r.image_id, r.data) for r in found[:2]] == [('1', b'1'), ('2', b'2')]
    assert found[2:] == [
        Reject(Source(str(path), '3.jpg'), records.BROKEN_METADATA, 'the json member is a link to 0.json')
    ]
    thumbs = tmp_path / 'b.tar'
    with tarfile.open(thumbs, 'w') as tar:
        add_link(tar, '1.thumb.png', '0.thumb.png')
    assert read_all(thumbs, ReadOptions('thumb.png'))[0].detail == 'a link to 0.thumb.png'


def test_members_of_one_name_are_two_records(tmp_path):
    found = read_all(write_tar(tmp_path / 'a.tar', [('1.jpg', b'x'), ('1.jpg', b'y')]))
    assert [(r.image_id, r.data) for r in found] == [('1', b'x'), ('1', b'y')]


@pytest.mark.parametrize('gzipped', [False, True])
def test_tars_may_follow_each_other(tmp_path, gzipped):
    one, two = (write_tar(tmp_path / f'{i}.tar', samples(2, 2 * i)).read_bytes() for i in range(2))
    path = tmp_path / ('a.tar.gz' if gzipped else 'a.tar')
    path.write_bytes(gzip.compress(one) + gzip.compress(two) if gzipped else one + two)
    found = read_all(path)
    assert ids(found) == ['sku-0', 'sku-1', 'sku-2', 'sku-3']
    assert not reasons(found)


def test_member_names_that_are_no_utf_8(tmp_path):
    path = tmp_path / 'a.tar'
    write_tar(path, [('\xe9.jpg', b'x')], format=tarfile.GNU_FORMAT, encoding='latin-1')
    (record,) = read_all(path)
    assert record.image_id == '\\xe9'
    assert read_member(record.source, ReadOptions()) == b'x'


@pytest.mark.parametrize('suffix', ['tar', 'tar.gz'])
def test_cut_tar(tmp_path, suffix):
    """Records until the cut are kept, one reject stands for the rest, at whatever byte the cut is."""
    tar = write_tar(tmp_path / 'whole.tar', samples(6)).read_bytes()
    data = tar if suffix == 'tar' else gzip.compress(tar)
    path, padding = tmp_path / f'cut.{suffix}', 512 - len(json_of(0))
    for length in range(0, len(tar.rstrip(b'\0')) if suffix == 'tar' else len(data), 97):
        path.write_bytes(data[:length])
        found = read_all(path)
        assert reasons(found) == [records.BROKEN_SHARD], length
        assert ids(found) == [f'sku-{i}' for i in range(len(found) - 1)]
        if suffix == 'tar':
            whole = (length + padding) // SAMPLE_BYTES
            assert len(found) - 1 == (whole if whole != 1 or length > SAMPLE_BYTES + 512 else 0), length


def test_tar_without_end_mark_is_broken(tmp_path):
    path = write_tar(tmp_path / 'a.tar', samples(3))
    data = path.read_bytes()
    path.write_bytes(data[: 3 * SAMPLE_BYTES])
    found = read_all(path)
    assert ids(found) == ['sku-0', 'sku-1', 'sku-2']
    assert reasons(found) == [records.BROKEN_SHARD]
    path.write_bytes(data[: 3 * SAMPLE_BYTES - 2 * 512])  # between the last image and its json
    assert ids(read_all(path)) == ['sku-0', 'sku-1']


def test_damaged_tars(tmp_path):
    data = bytearray(write_tar(tmp_path / 'a.tar', samples(4)).read_bytes())
    data[2 * SAMPLE_BYTES + 20] ^= 1  # in the third sample's first header
    (tmp_path / 'a.tar').write_bytes(data)
    found = read_all(tmp_path / 'a.tar')
    assert (ids(found), reasons(found)) == (['sku-0', 'sku-1'], [records.BROKEN_SHARD])
    zipped = bytearray(gzip.compress(write_tar(tmp_path / 'b.tar', samples(4)).read_bytes()))
    zipped[-5] ^= 1  # the checksum alone: all members are read before it is
    (tmp_path / 'b.tar.gz').write_bytes(zipped)
    found = read_all(tmp_path / 'b.tar.gz')
    assert (len(ids(found)), reasons(found)) == (4, [records.BROKEN_SHARD])
    (tmp_path / 'c.tar').write_bytes(b'no tar at all' * 100)
    assert reasons(read_all(tmp_path / 'c.tar')) == [records.BROKEN_SHARD]


def test_empty_tar_is_whole(tmp_path):
    assert read_all(write_tar(tmp_path / 'a.tar', [])) == []


# TFRecord


def example(**features):
    import tensorflow as tf

    def feature(values):
        values = values if isinstance(values, list) else [values]
        values = [v.encode() if isinstance(v, str) else v for v in values]
        if any(isinstance(v, float) for v in values):
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        if any(isinstance(v, int) for v in values):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    named = {name.replace('__', '/'): feature(values) for name, values in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=named)).SerializeToString()


def write_tfrecord(path, examples, compression=''):
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for data in examples:
            writer.write(data)
    return path


def plain_examples(n):
    return [example(image__encoded=image_bytes(i), image__id=f'id-{i}') for i in range(n)]


@pytest.mark.tf
@pytest.mark.parametrize(
    ('name', 'compression'),
    [('a.tfrecord', ''), ('a.tfrecords', ''), ('a.tfrecord.gz', 'GZIP'), ('train.tfrecord-00000-of-00010', '')],
)
def test_tfrecord(tmp_path, name, compression):
    path = write_tfrecord(tmp_path / name, plain_examples(4), compression)
    found = read_all(path)
    assert found[2] == Record('id-2', image_bytes(2), Source(str(path), '2'))
    assert ids(found) == [f'id-{i}' for i in range(4)]
    assert read_member(found[2].source, ReadOptions()) == image_bytes(2)


@pytest.mark.tf
def test_tfrecord_features(tmp_path):
    path = write_tfrecord(
        tmp_path / 'a.tfrecord',
        [
            example(image=b'x', id=7, caption='c', label__coarse='shoe', label__fine=['a', 'b'], label__score=0.5),
            example(image__encoded=b'y', image__filename='f.jpg', image__caption='d', image__class__label=3),
            example(image__encoded=b'z'),
            example(image__id='no image'),
            example(image__encoded=b'z', image__id=b'\xff'),
            b'\xff no example',
            example(image__encoded=b'', image__id='empty'),
        ],
    )
    found = read_all(path)
    assert [(r.image_id, r.data, r.labels, r.caption) for r in found if isinstance(r, Record)] == [
        ('7', b'x', {'coarse': ('shoe',), 'fine': ('a', 'b')}, 'c'),
        ('f.jpg', b'y', {'class': ('3',)}, 'd'),
        ('empty', b'', {}, None),
    ]
    broken = records.BROKEN_METADATA
    assert reasons(found) == [records.MISSING_ID, records.MISSING_IMAGE, broken, broken]


@pytest.mark.tf
def test_tfrecord_options(tmp_path):
    data = example(jpeg=b'x', image=b'other', sku='s', text='t', label__fine='f', brand='b', none=[])
    path = write_tfrecord(tmp_path / 'a.tfrecord', [data])
    options = ReadOptions('jpeg', 'sku', 'text', ('brand', 'fine', 'none'))
    (record,) = read_all(path, options)
    assert (record.image_id, record.data, record.caption) == ('s', b'x', 't')
    assert record.labels == {'brand': ('b',), 'fine': ('f',)}
    assert read_member(record.source, options) == b'x'


@pytest.mark.tf
@pytest.mark.parametrize('compression', ['', 'GZIP'])
def test_cut_and_damaged_tfrecords(tmp_path, compression):
    path = write_tfrecord(tmp_path / 'a.tfrecord', plain_examples(5), compression)
    data, size = path.read_bytes(), path.stat().st_size // 5
    for length in range(1, len(data), 61):
        path.write_bytes(data[:length])
        found = read_all(path)
        if not compression:
            assert len(ids(found)) == length // size
        assert ids(found) == [f'id-{i}' for i in range(len(ids(found)))]
        assert reasons(found) == [records.BROKEN_SHARD] * bool(compression or length % size)
    if not compression:
        for offset in (0, 9, 200):  # the length, its checksum, the bytes
            damaged = bytearray(data)
            damaged[2 * size + offset] ^= 1
            path.write_bytes(damaged)
            found = read_all(path)
            assert (ids(found), reasons(found)) == (['id-0', 'id-1'], [records.BROKEN_SHARD])


# Parquet


def write_parquet(path, columns, **options):
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
    return path


def test_parquet(tmp_path):
    columns = {
        'id': ['a', None, '', 'd'],
        'image': [b'1', b'2', b'3', None],
        'caption': ['x', None, 'z', ''],
        'coarse': ['shoe', 'shoe', 'shoe', 'bag'],
        'label': pa.array([[1, 2], [], None, [3]], pa.list_(pa.int64())),
        'price': [1.0, 2.0, 3.0, 4.0],
    }
    path = str(write_parquet(tmp_path / 'a.parquet', columns))
    found = read_all(path)
    assert found[0] == Record('a', b'1', Source(path, '0'), {'coarse': ('shoe',), 'label': ('1', '2')}, 'x')
    assert reasons(found) == [records.MISSING_ID, records.MISSING_ID, records.MISSING_IMAGE]
    assert found[3].image_id == 'd'
    assert read_member(Source(path, '2'), ReadOptions()) == b'3'
    for member in ('3', '4', 'x'):
        with pytest.raises(InputError, match='has no image'):
            read_member(Source(path, member), ReadOptions())


def test_parquet_of_hugging_face(tmp_path):
    image = pa.array(
        [{'bytes': b'1', 'path': 'one.png'}, {'bytes': b'2', 'path': None}, {'bytes': None, 'path': 'far.png'}, None],
        pa.struct({'bytes': pa.binary(), 'path': pa.string()}),
    )
    path = write_parquet(tmp_path / 'train.parquet', {'image': image, 'label': [4, 5, 6, None]})
    found = read_all(path)
    assert [(r.image_id, r.data) for r in found[:2]] == [('one.png', b'1'), ('train.parquet:1', b'2')]
    assert found[0].labels == {'label': ('4',)}
    assert reasons(found) == [records.MISSING_IMAGE] * 2


@pytest.mark.parametrize(
    'labels',
    [
        pa.array(
            [{'coarse': 'shoe', 'fine': ['a', 'b']}], pa.struct({'coarse': pa.string(), 'fine': pa.list_(pa.string())})
        ),
        pa.array([[('coarse', ['shoe']), ('fine', ['a', 'b'])]], pa.map_(pa.string(), pa.list_(pa.string()))),
    ],
    ids=['struct', 'map'],
)
def test_parquet_nested_labels(tmp_path, labels):
    path = write_parquet(tmp_path / 'a.parquet', {'key': [9], 'jpg': [b'x'], 'labels': labels})
    (record,) = read_all(path)
    assert (record.image_id, record.labels) == ('9', {'coarse': ('shoe',), 'fine': ('a', 'b')})
    (record,) = read_all(path, ReadOptions(labels=('fine',)))
    assert record.labels == {'fine': ('a', 'b')}


@pytest.mark.parametrize('type_', [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_types_of_ids(tmp_path, type_):
    columns = {'sku': pa.array(['a', 'b'], type_), 'photo': pa.array([b'1', b'2'], pa.large_binary())}
    path = write_parquet(tmp_path / 'a.parquet', columns)
    assert ids(read_all(path, ReadOptions(image='photo', image_id='sku'))) == ['a', 'b']


def test_parquet_options_fail_at_listing(tmp_path):
    path = str(write_parquet(tmp_path / 'a.parquet', {'image': ['url'], 'data': [b'x'], 'score': [0.5]}))
    for options, message in [
        (ReadOptions(), 'no column of image bytes; its columns are image, data, score'),
        (ReadOptions(image='jpeg'), 'no column jpeg; its columns are image, data, score'),
        (ReadOptions(image='image'), 'column image is string'),
        (ReadOptions(image='data', image_id='score'), 'column score is double'),
        (ReadOptions(image='data', labels=('brand',)), 'no column brand'),
        (ReadOptions(image='data', labels=('score',)), 'column score is double'),
    ]:
        with pytest.raises(InputError, match=message):
            list_units([path], options)


def test_parquet_units(tmp_path, monkeypatch):
    columns = {'id': [f'{i}' for i in range(100)], 'image': [image_bytes(i) for i in range(100)]}
    path = str(write_parquet(tmp_path / 'a.parquet', columns, row_group_size=10))
    whole = read_all(path)
    assert len(list_units([path], ReadOptions())) == 1
    monkeypatch.setattr(shards, 'MAX_UNIT_ROWS', 35)
    units = list_units([path], ReadOptions())
    assert [u.row_groups for u in units] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert units[1].shard == f'{path} row groups 3-5'
    assert read_all(path) == whole
    assert [r.source.member for r in whole] == [str(i) for i in range(100)]
    assert read_member(whole[77].source, ReadOptions()) == image_bytes(77)
    monkeypatch.setattr(shards, 'MAX_UNIT_BYTES', 1)
    assert len(list_units([path], ReadOptions())) == 10


def test_damaged_parquet(tmp_path):
    columns = {'id': [f'{i}' for i in range(400)], 'image': [os.urandom(500) for i in range(400)]}
    path = write_parquet(
        tmp_path / 'a.parquet', columns, row_group_size=100, use_dictionary=False, write_page_checksum=True
    )
    data = path.read_bytes()
    damaged = bytearray(data)
    start = pq.ParquetFile(path).metadata.row_group(2).column(1).data_page_offset
    damaged[start + 5000 : start + 5100] = b'?' * 100
    path.write_bytes(damaged)
    found = read_all(path)
    assert ids(found) == [f'{i}' for i in range(200)]
    assert reasons(found) == [records.BROKEN_SHARD]
    for length in (0, 3, 1000, len(data) - 1):  # the footer is lost, and with it everything
        path.write_bytes(data[:length])
        assert reasons(read_all(path)) == [records.BROKEN_SHARD]
    with pytest.raises(InputError, match='cannot read 7 of'):
        read_member(Source(str(path), '7'), ReadOptions())


def test_parquet_texts_that_are_no_texts_are_rejects(tmp_path):
    texts = pa.array([b'a', b'\xff', b'c']).view(pa.string())
    path = write_parquet(tmp_path / 'a.parquet', {'id': texts, 'image': [b'1', b'2', b'3']})
    found = read_all(path)
    assert ids(found) == ['a', 'c']
    assert reasons(found) == [records.BROKEN_METADATA]
    images = pa.StructArray.from_arrays([pa.array([b'1', b'2', b'3']), texts], ['bytes', 'path'])
    found = read_all(write_parquet(tmp_path / 'a.parquet', {'image': images}))
    assert ids(found) == ['a', 'c']
    assert reasons(found) == [records.BROKEN_METADATA]


def test_parquet_without_rows(tmp_path):
    none = {'id': pa.array([], pa.string()), 'image': pa.array([], pa.binary())}
    path = write_parquet(tmp_path / 'a.parquet', none)  # one row group of no rows
    with pytest.raises(InputError, match=r'no images in \S+/a\.parquet: there are no rows'):
        read_all(path)
    pq.ParquetWriter(tmp_path / 'b.parquet', pa.table(none).schema).close()  # no row group
    with pytest.raises(InputError, match=r'no images in \S+/a\.parquet and 1 more: there are no rows'):
        read_all(tmp_path)
    write_parquet(tmp_path / 'c.parquet', {'id': ['x'], 'image': [b'x']})
    (unit,) = list_units([str(tmp_path)], ReadOptions())
    assert unit.shard.endswith('c.parquet row groups 0-0')


# Folders, patterns


@pytest.fixture
def catalogue(tmp_path):
    for name in [
        'a/x/1.jpg',
        'a/x/2.PNG',
        'a/3.jpeg',
        '4.webp',
        '.hidden/5.jpg',
        'a/.6.jpg',
        'notes.txt',
        'a/x/1.json',
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    write_tar(tmp_path / 'shard.tar', samples(2))
    return tmp_path


def test_folder(catalogue):
    for pattern in (str(catalogue), f'{catalogue}/'):
        found = read_all(pattern)
        assert ids(found) == ['4.webp', 'a/3.jpeg', 'a/x/1.jpg', 'a/x/2.PNG', 'sku-0', 'sku-1']
    assert found[2] == Record('a/x/1.jpg', b'a/x/1.jpg', Source(str(catalogue), 'a/x/1.jpg'))
    assert read_member(found[2].source, ReadOptions()) == b'a/x/1.jpg'


@pytest.mark.parametrize(
    ('pattern', 'expected'),
    [
        ('a/x/1.jpg', ['1.jpg']),
        ('a/*.jpeg', ['3.jpeg']),
        ('a/**', ['3.jpeg', 'x/1.jpg', 'x/2.PNG']),
        ('a/x/?.jpg', ['1.jpg']),
        ('a/x/[12].*', ['1.jpg', '2.PNG']),
        ('a*/x/*', ['a/x/1.jpg', 'a/x/2.PNG']),
        ('*.tar', ['sku-0', 'sku-1']),
    ],
)
def test_globs(catalogue, monkeypatch, pattern, expected):
    assert ids(read_all(f'{catalogue}/{pattern}')) == expected
    monkeypatch.chdir(catalogue)
    assert ids(read_all(pattern)) == expected
    assert ids(read_all('.')) == ids(read_all(str(catalogue)))


def test_rows_without_an_id_are_told_apart_by_the_path_below_the_pattern(tmp_path):
    for name in ('train', 'test'):
        (tmp_path / name).mkdir()
        write_parquet(tmp_path / name / '0.parquet', {'image': [b'1', b'2']})
    expected = ['test/0.parquet:0', 'test/0.parquet:1', 'train/0.parquet:0', 'train/0.parquet:1']
    assert ids(read_all(tmp_path)) == ids(read_all(f'{tmp_path}/*/*.parquet')) == expected
    assert ids(read_all(tmp_path / 'test' / '0.parquet')) == ['0.parquet:0', '0.parquet:1']


def test_a_glob_takes_the_folders_that_it_matches(tmp_path, monkeypatch):
    for name in ('fa/x/1.jpg', 'fb/1.jpg', 'g/1.jpg', 'f.jpg', 'fa/.hidden/2.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    for pattern in ('f*', './f*', f'{tmp_path}/f*'):
        assert ids(read_all(pattern)) == ['f.jpg', 'fa/x/1.jpg', 'fb/1.jpg']
    assert ids(read_all('f?')) == ids(read_all('f?/')) == ['fa/x/1.jpg', 'fb/1.jpg']


def test_several_patterns(catalogue):
    patterns = [f'{catalogue}/shard.tar', f'{catalogue}/a/x/2.PNG', f'{catalogue}/a/x/*', str(catalogue)]
    found = read_all(patterns)
    assert ids(found) == ['sku-0', 'sku-1', '2.PNG', '1.jpg', '4.webp', 'a/3.jpeg']
    units = list_units(patterns, ReadOptions())
    assert [u.number for u in units] == [0, 1, 2]
    assert [u.format for u in units] == ['tar', 'files', 'files']
    assert units[1].shard.endswith('a/x/2.PNG and 1 more')
    assert pickle.loads(pickle.dumps(units)) == units == list_units(patterns, ReadOptions())
    inputs = list_inputs(patterns)
    assert len(inputs) == 5
    assert inputs[1].size == len('a/x/2.PNG')
    assert inputs[1].mtime == os.path.getmtime(inputs[1].path)


def test_names_with_glob_characters(tmp_path):
    folder = tmp_path / 'summer [2020]*'
    folder.mkdir()
    (folder / 'a?.jpg').write_bytes(b'x')
    assert ids(read_all(folder)) == ids(read_all(folder / 'a?.jpg')) == ['a?.jpg']


def test_patterns_that_match_nothing(catalogue):
    (catalogue / 'empty').mkdir()
    for pattern in ('none', 'none.jpg', 'none/*.jpg', '*.txt', 'empty', '.hidden/*.png'):
        with pytest.raises(InputError, match='no images match '):
            list_units([f'{catalogue}/{pattern}'], ReadOptions())
    with pytest.raises(InputError, match='no known suffix'):
        list_units([f'{catalogue}/notes.txt'], ReadOptions())
    with pytest.raises(InputError, match='nosuch'):
        list_units(['nosuch://bucket/*.tar'], ReadOptions())


def passed_over(caplog, *patterns):
    caplog.clear()
    list_inputs([str(pattern) for pattern in patterns])
    return [record.getMessage() for record in caplog.records]


def test_files_passed_over_are_counted(catalogue, caplog):
    assert passed_over(caplog, catalogue) == []  # sidecars and hidden files
    for name in ('a/1.heic', 'a/2.HEIC', 'a/x/3.heic', 'a/_SUCCESS', 'b.svg', '.c.svg', '.hidden/d.svg', 'e.md'):
        (catalogue / name).write_bytes(b'x')
    assert passed_over(caplog, catalogue, f'{catalogue}/a', f'{catalogue}/[4b]*', f'{catalogue}/4.webp') == [
        f'{catalogue}: 5 files passed over: 3 .heic, 1 without suffix, 1 .svg',
        f'{catalogue}/a: 4 files passed over: 3 .heic, 1 without suffix',
        f'{catalogue}/[4b]*: 1 file passed over: 1 .svg',
    ]
    for i in range(12):
        (catalogue / f'f.{i:02}').write_bytes(b'x')
    shown = '3 .heic, 1 without suffix, 1 .00, 1 .01, 1 .02, 1 .03, 1 .04, 1 .05, ...'
    assert passed_over(caplog, catalogue) == [f'{catalogue}: 17 files passed over: {shown}']


@pytest.mark.parametrize('suffix', sorted({'jpe', 'jfif', 'pgm', 'pnm', 'jpx'} | common.IMAGE_SUFFIXES))
def test_every_suffix_is_of_a_format_that_is_decoded(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    picture = Image.fromarray(pixels).convert({'pgm': 'L', 'pbm': '1'}.get(suffix, 'RGB'))
    picture.save(tmp_path / f'1.{suffix}')  # Pillow takes the format from the name
    write_tar(tmp_path / '2.tar', [(f'2.{suffix.upper()}', (tmp_path / f'1.{suffix}').read_bytes())])
    found = read_all(tmp_path)
    assert ids(found) == [f'1.{suffix}', '2']
    for record in found:
        assert decode(record.data, Resizing(8)).pixels.shape == (8, 8, 3)


def test_labels_from_folders(catalogue):
    options = ReadOptions(labels_from='folders')
    labels = {r.image_id: r.labels for r in read_all(f'{catalogue}/**.*g', options)}
    assert labels['a/x/1.jpg'] == {'coarse': ('a',), 'fine': ('x',)}
    assert labels['a/3.jpeg'] == {'coarse': ('a',)}
    (first, *_) = read_all(f'{catalogue}/a/x', options)
    assert first.labels == {}
    named = ReadOptions(labels_from='folders', labels=('department',))
    with pytest.raises(InputError, match='2 folders deep, but there are 1 label levels: department'):
        list_units([str(catalogue)], named)
    assert read_all(f'{catalogue}/a', named)[1].labels == {'department': ('x',)}


def test_options_are_checked():
    for options in ({'labels_from': 'csv'}, {'labels': ('a', 'a')}):
        with pytest.raises(InputError):
            ReadOptions(**options)
    assert ReadOptions(labels=['a', 'b']).labels == ('a', 'b')


def test_units_of_files(tmp_path, monkeypatch):
    for i in range(25):
        (tmp_path / f'{i:02}.jpg').write_bytes(bytes(10))
    monkeypatch.setattr(shards, 'MAX_UNIT_FILES', 10)
    assert [len(u.paths) for u in list_units([str(tmp_path)], ReadOptions())] == [10, 10, 5]
    monkeypatch.setattr(shards, 'MAX_UNIT_BYTES', 39)
    units = list_units([str(tmp_path)], ReadOptions())
    assert [len(u.paths) for u in units] == [3] * 8 + [1]
    paths = sorted(str(p) for p in tmp_path.iterdir())  # as a shell hands them over
    assert [u.paths for u in list_units(paths, ReadOptions())] == [u.paths for u in units]


def test_files_that_vanish(catalogue, monkeypatch):
    """An image file costs one reject; a shard stops the build, which would publish without thousands of images."""
    units = list_units([f'{catalogue}/a'], ReadOptions())
    (catalogue / 'a/3.jpeg').unlink()
    found = [item for unit in units for item in read_unit(unit, ReadOptions())]
    assert ids(found) == ['x/1.jpg', 'x/2.PNG']
    assert reasons(found) == [records.UNREADABLE_FILE]
    assert found[0].detail == 'No such file or directory'
    with pytest.raises(InputError, match='No such file or directory'):
        read_member(found[0].source, ReadOptions())


SHARDS = ['a.tar', 'a.tar.gz', 'a.tfrecord', 'a.parquet']


def write_shard(path, n=4):
    if path.suffix == '.tfrecord':
        return write_tfrecord(path, plain_examples(n))
    if path.suffix == '.parquet':
        columns = {'id': [f'{i}' for i in range(n)], 'image': [os.urandom(1000) for i in range(n)]}
        return write_parquet(path, columns, row_group_size=max(1, n // 4))
    return write_tar(path, [(f'{i}.jpg', os.urandom(1000)) for i in range(n)], 'w:gz' if path.suffix == '.gz' else 'w')


class StoreError(Exception):
    """As the clients of object stores have it."""

    def __init__(self, code):
        super().__init__(f'{code} no object for you')
        self.code = code


FAILURES = [
    (FileNotFoundError(errno.ENOENT, 'No such file'), True),
    (PermissionError(errno.EACCES, 'Permission denied'), True),
    (PermissionError(errno.EPERM, 'Not permitted'), True),
    (OSError(errno.EIO, 'Input/output error'), True),
    (StoreError(403), True),
    (StoreError(404), True),
    (StoreError(503), False),
    (ConnectionResetError('reset by peer'), False),
]


@pytest.mark.tf
@pytest.mark.parametrize(('error', 'lasts'), FAILURES, ids=str)
def test_files_that_cannot_be_opened(tmp_path, monkeypatch, error, lasts):
    for name in [*SHARDS, '1.jpg']:
        write_shard(tmp_path / name) if name in SHARDS else (tmp_path / name).write_bytes(b'x')
    units = list_units([str(tmp_path)], ReadOptions())
    assert [unit.format for unit in units] == ['files', 'parquet', 'tar', 'tar', 'tfrecord']

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(FileSystems, 'open', fail)
    for unit in units[1:]:
        with pytest.raises(OSError, match=rf'^cannot read {unit.paths[0]}: .') as raised:
            list(read_unit(unit, ReadOptions()))
        assert common.failure_reason(error) in str(raised.value)
        assert raised.value.__cause__ is error
    with pytest.raises(OSError, match=r'^cannot read \S+/a\.parquet: '):
        list_units([str(tmp_path)], ReadOptions())
    if lasts:
        assert reasons(read_unit(units[0], ReadOptions())) == [records.UNREADABLE_FILE]
    else:
        with pytest.raises(type(error)):
            list(read_unit(units[0], ReadOptions()))


class BadDisk(io.FileIO):
    """Fails after some bytes."""

    left, error = 0, None

    def readinto(self, buffer):
        return self._spend(super().readinto(buffer))

    def read(self, size=-1):
        data = super().read(size)
        self._spend(len(data))
        return data

    def _spend(self, count):
        self.left -= count
        if self.left < 0:
            raise self.error
        return count


@pytest.mark.tf
@pytest.mark.parametrize('name', SHARDS)
@pytest.mark.parametrize('error', [OSError(errno.EIO, 'Input/output error'), StoreError(404)], ids=str)
def test_shards_that_fail_while_they_are_read(tmp_path, monkeypatch, name, error):
    """No reject says that the records after the bad spot are damaged: nobody has seen them."""
    path = write_shard(tmp_path / name, 2000)
    (unit,) = list_units([str(path)], ReadOptions())
    monkeypatch.setattr(BadDisk, 'left', path.stat().st_size // 2)
    monkeypatch.setattr(BadDisk, 'error', error)
    monkeypatch.setattr(FileSystems, 'open', lambda path, **kwargs: BadDisk(path))
    found = []
    with pytest.raises(OSError, match=f'^cannot read {path}: {common.failure_reason(error)}'):
        found.extend(read_unit(unit, ReadOptions()))
    assert 0 < len(ids(found)) == len(found) < 2000


def test_large_files_are_rejected(catalogue, monkeypatch):
    monkeypatch.setattr(common, 'MAX_RECORD_BYTES', 5)
    assert reasons(read_all(f'{catalogue}/a')) == [records.RECORD_TOO_LARGE] * 3


def test_reading_holds_one_record(tmp_path):
    """A generator: the first record comes before the rest is looked at."""
    path = write_tar(tmp_path / 'a.tar', samples(200))
    path.write_bytes(path.read_bytes()[:200_000])
    first = next(iter(read_unit(list_units([str(path)], ReadOptions())[0], ReadOptions())))
    assert first.image_id == 'sku-0'
