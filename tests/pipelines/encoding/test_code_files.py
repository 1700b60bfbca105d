"""Codes out of Parquet files that others wrote."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from pipelines.encoding import code_files
from pipelines.encoding.code_files import code_bytes, list_code_units, read_codes, read_query_codes
from pipelines.index.code_tables import codes_from_arrow, images_schema
from pipelines.records import MISSING_ID, SPARE_BITS_SET, WRONG_CODE_LENGTH, Source

SPEC = CodeSpec.parse('code=24')


def some_codes(count):
    return [bytes([i, 2 * i, 255 - i]) for i in range(count)]


def write(path, ids, codes, code_type=None, id_type=None, **options):
    """A file of codes with a column nobody asked for."""
    code_column = pa.array(codes, code_type or pa.binary())
    table = pa.table({'extra': [0.5] * len(ids), 'code': code_column, 'image_id': pa.array(ids, id_type)})
    pq.write_table(table, path, **options)
    return str(path)


def read_all(pattern, spec=SPEC):
    return [read_codes(unit, spec) for unit in list_code_units([str(pattern)])[0]]


@pytest.mark.parametrize('code_type', [pa.binary(), pa.binary(3), pa.large_binary()])
@pytest.mark.parametrize('row_group_size', [3, 100])
def test_binary_of_every_kind_is_read(tmp_path, code_type, row_group_size):
    ids = [f'é{i}' for i in range(7)]
    path = write(tmp_path / 'a.parquet', ids, some_codes(7), code_type, row_group_size=row_group_size)
    (unit,) = list_code_units([path])[0]
    assert code_bytes([unit]) == 3
    encoded = read_codes(unit, SPEC)
    assert (encoded.records_read, encoded.rejects) == (7, ())
    assert encoded.images.schema.equals(images_schema(3))
    assert encoded.images.select(['image_id', 'code', 'source', 'digest', 'caption']).to_pylist() == [
        {'image_id': i, 'code': code, 'source': {'shard': path, 'member': str(row)}, 'digest': None, 'caption': None}
        for row, (i, code) in enumerate(zip(ids, some_codes(7), strict=True))
    ]
    found_ids, codes = read_query_codes(unit, SPEC)
    assert found_ids == ids
    np.testing.assert_array_equal(codes, [list(code) for code in some_codes(7)])


@pytest.mark.parametrize(
    'id_type', [pa.int64(), pa.uint8(), pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_ids_may_be_text_or_integers(tmp_path, id_type):
    ids = [3, 1, 20]
    written = ids if pa.types.is_integer(id_type) else [str(i) for i in ids]
    (encoded,) = read_all(write(tmp_path / 'a.parquet', written, some_codes(3), id_type=id_type))
    assert encoded.images['image_id'].to_pylist() == ['3', '1', '20']
    assert encoded.images['image_id'].type == pa.string()


@pytest.mark.parametrize('id_type', [pa.float64(), pa.list_(pa.string()), pa.binary()])
def test_other_ids_are_refused(tmp_path, id_type):
    ids = {pa.float64(): [1.5], pa.binary(): [b'\xff']}.get(id_type, [['a']])
    path = write(tmp_path / 'a.parquet', ids, some_codes(1), id_type=id_type)
    with pytest.raises(InputError, match=r'column image_id of .*a\.parquet is .*; text or integers are needed'):
        list_code_units([path])


def test_rows_without_id_or_with_another_length_are_rejected_with_their_row(tmp_path):
    ids = ['a', None, 'c', '', 'e', 'f', None]
    codes = [b'123', b'456', b'12', b'789', None, b'1234', b'1']
    path = write(tmp_path / 'a.parquet', ids, codes, row_group_size=2)
    (encoded,) = read_all(path)
    assert encoded.images.select(['image_id', 'code']).to_pylist() == [{'image_id': 'a', 'code': b'123'}]
    assert encoded.records_read == 7 == len(encoded.images) + len(encoded.rejects)
    found = {r.source: (r.reason, r.image_id) for r in encoded.rejects}
    assert found == {
        Source(path, '1'): (MISSING_ID, None),
        Source(path, '3'): (MISSING_ID, None),
        Source(path, '6'): (MISSING_ID, None),
        Source(path, '2'): (WRONG_CODE_LENGTH, 'c'),
        Source(path, '4'): (WRONG_CODE_LENGTH, 'e'),
        Source(path, '5'): (WRONG_CODE_LENGTH, 'f'),
    }
    details = {r.image_id: r.detail for r in encoded.rejects if r.image_id}
    assert details['f'] == 'code has 4 bytes; the index has codes of 3 bytes'


def test_fixed_size_codes_of_another_size_are_all_rejected(tmp_path):
    path = write(tmp_path / 'a.parquet', ['a', 'b'], [b'12', None], pa.binary(2))
    (encoded,) = read_all(path)
    assert [r.reason for r in encoded.rejects] == [WRONG_CODE_LENGTH] * 2
    assert (len(encoded.images), codes_from_arrow(encoded.images['code']).shape) == (0, (0, 3))


def test_codes_with_more_bits_than_the_spec_are_rejected(tmp_path):
    codes = [b'\x01\x10', b'\x01\x08', b'\xff\xf0', b'\x00\x01', b'\x00']
    path = write(tmp_path / 'a.parquet', ['a', 'b', 'c', 'd', 'e'], codes)
    (encoded,) = read_all(path, CodeSpec.parse('code=12'))
    assert encoded.images['image_id'].to_pylist() == ['a', 'c']
    found = sorted((r.image_id, r.reason, r.source.member) for r in encoded.rejects)
    assert found == [('b', SPARE_BITS_SET, '1'), ('d', SPARE_BITS_SET, '3'), ('e', WRONG_CODE_LENGTH, '4')]


def test_a_query_that_cannot_be_asked_is_no_silence(tmp_path):
    path = write(tmp_path / 'a.parquet', ['a', 'b'], [b'123', b'12'])
    (unit,) = list_code_units([path])[0]
    with pytest.raises(InputError, match=r'a\.parquet: row 1: code has 2 bytes'):
        read_query_codes(unit, SPEC)


def test_ids_that_are_no_texts_are_told_with_their_file(tmp_path):
    path = tmp_path / 'a.parquet'
    texts = pa.array([b'fine', b'\xff']).view(pa.string())
    pq.write_table(pa.table({'image_id': texts, 'code': pa.array([b'123'] * 2, pa.binary(3))}), path)
    (unit,) = list_code_units([str(path)])[0]
    with pytest.raises(OSError, match=r'cannot read \S+a\.parquet.*UTF'):
        read_codes(unit, SPEC)


def test_large_files_are_cut_into_units_of_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(code_files, 'UNIT_ROWS', 25)
    for name, count in (('b', 87), ('a', 10)):
        write(tmp_path / f'{name}.parquet', [f'{name}{i}' for i in range(count)], some_codes(count), row_group_size=10)
    units, inputs = list_code_units([f'{tmp_path}/b.parquet', f'{tmp_path}/*.parquet'])
    assert [i.path for i in inputs] == [f'{tmp_path}/b.parquet', f'{tmp_path}/a.parquet']
    assert [i.size for i in inputs] == [(tmp_path / f'{name}.parquet').stat().st_size for name in 'ba']
    assert [u.number for u in units] == list(range(len(units)))
    assert [u.row_groups for u in units] == [(0, 3), (3, 6), (6, 9), (0, 1)]
    read = [read_codes(unit, SPEC).images for unit in units]
    assert [i for images in read for i in images['image_id'].to_pylist()] == [
        *(f'b{i}' for i in range(87)),
        *(f'a{i}' for i in range(10)),
    ]
    assert [s['member'] for s in read[1]['source'].to_pylist()] == [str(i) for i in range(30, 60)]


def test_codes_are_as_long_as_the_first_that_is_there(tmp_path):
    write(tmp_path / 'a.parquet', ['x', 'y'], [None, None])
    write(tmp_path / 'b.parquet', ['x', 'y'], [None, b'12345'])
    assert code_bytes(list_code_units([f'{tmp_path}/*.parquet'])[0]) == 5
    with pytest.raises(InputError, match='hold no codes'):
        code_bytes(list_code_units([f'{tmp_path}/a.parquet'])[0])


def test_files_of_another_kind_are_refused(tmp_path):
    write(tmp_path / 'text.parquet', ['a'], ['abc'], pa.string())
    write(tmp_path / 'none.parquet', [], [], id_type=pa.string())
    pq.write_table(pa.table({'image_id': ['a'], 'hash': [b'x']}), tmp_path / 'columns.parquet')
    (tmp_path / 'broken.parquet').write_bytes(b'PAR1 and no more')
    for name, message in [
        ('text', r'column code of .*text\.parquet is string; binary is needed'),
        ('none', 'hold no codes'),
        ('columns', r'columns\.parquet has no column code; it has image_id, hash'),
        ('broken', r'broken\.parquet is not a Parquet file'),
        ('nothing', r'match .*nothing\.parquet'),
    ]:
        with pytest.raises(InputError, match=message):
            code_bytes(list_code_units([f'{tmp_path}/{name}.parquet'])[0])
