"""Codes and rows as Arrow tables and back."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipelines import files
from pipelines.index import code_tables
from pipelines.index.code_tables import CodeRows, codes_from_arrow, codes_to_arrow


def some_codes(count, width=5, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, width), np.uint8)


@given(st.integers(0, 9), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_codes_are_fixed_size_binary_and_come_back(count, width, seed):
    codes = some_codes(count, width, seed)
    column = codes_to_arrow(codes)
    assert column.type == pa.binary(width)
    assert column.to_pylist() == [bytes(code) for code in codes]
    np.testing.assert_array_equal(codes_from_arrow(column), codes)
    np.testing.assert_array_equal(codes_from_arrow(pa.chunked_array([column[:2], column[2:]])), codes)


def test_slices_of_columns_and_of_arrays_keep_their_place():
    codes = some_codes(20, 8)
    column = codes_to_arrow(codes[::3, 1:6])
    np.testing.assert_array_equal(codes_from_arrow(column), codes[::3, 1:6])
    np.testing.assert_array_equal(codes_from_arrow(column[2:5]), codes[6:15:3, 1:6])
    np.testing.assert_array_equal(
        codes_from_arrow(pa.chunked_array([column[3:], column[:1]])), codes[[9, 12, 15, 18, 0], 1:6]
    )


def test_no_chunks_are_no_codes():
    assert codes_from_arrow(pa.chunked_array([], pa.binary(7))).shape == (0, 7)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12))
def test_rows_are_sorted_by_key_then_row(pairs):
    keys, rows = np.array(pairs, np.int64).reshape(-1, 2).T
    codes = some_codes(len(pairs))
    ordered = CodeRows.sorted(keys, codes, rows)
    assert list(zip(ordered.keys, ordered.rows, strict=True)) == sorted(pairs)
    before = sorted(zip(pairs, map(bytes, codes), strict=True))
    after = sorted(zip(zip(ordered.keys, ordered.rows, strict=True), map(bytes, ordered.codes), strict=True))
    assert after == before


def test_rows_survive_parquet(tmp_path):
    path = str(tmp_path / 'part-0.parquet')
    for count in (0, 70_000):
        whole = CodeRows(np.arange(count) * 3, some_codes(count), np.arange(count)[::-1] + (5 << 32))
        files.write_table(path, whole.to_table(), **code_tables.PARTITION_OPTIONS)
        table = files.read_table(path)
        assert table.schema.equals(code_tables.partition_schema(5))
        back = CodeRows.from_table(table)
        for name in ('keys', 'codes', 'rows'):
            np.testing.assert_array_equal(getattr(back, name), getattr(whole, name))


def test_every_image_has_an_id_and_a_code():
    schema = code_tables.images_schema(9)
    assert [f.name for f in schema if not f.nullable] == ['image_id', 'code']
    assert schema.field('code').type == pa.binary(9)
