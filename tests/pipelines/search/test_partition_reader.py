"""Reading some row groups of a file: the right ones, the right rows, and as many bytes as are told."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.index.code_tables import CodeRows
from pipelines.index.layout import Substring, substring_keys
from pipelines.index.manifest import DataFile
from pipelines.index.versions import Version
from pipelines.search import partition_reader
from pipelines.search.partition_reader import (
    Amount,
    chunk_bytes,
    find_texts,
    footer_bytes,
    opened,
    read_near,
    read_rows,
)

SUBSTRING = Substring(0, 3, 14)
ROWS, GROUP = 5000, 256


class Counting:
    """A file object that notes which bytes are read of it."""

    def __init__(self, path):
        self.file = open(path, 'rb')  # noqa: SIM115
        self.ranges = []
        self.closed = False

    def read(self, size=-1):
        start = self.file.tell()
        data = self.file.read(size)
        self.ranges.append((start, len(data)))
        return data

    def __getattr__(self, name):
        return getattr(self.file, name)


def new_version(index):
    version = Version(str(index), 'v')
    Path(version.folder).mkdir(parents=True)
    return version


@pytest.fixture
def version(tmp_path):
    return new_version(tmp_path)


def write(path, groups=GROUP, statistics=True, rows=ROWS):
    """A partition file with small row groups; returns its rows and what the manifest says of it."""
    codes = np.random.default_rng(0).integers(0, 256, (rows, 5), np.uint8)
    made = CodeRows.sorted(substring_keys(codes, SUBSTRING), codes, np.arange(rows) + (3 << 32))
    pq.write_table(made.to_table(), path, compression='zstd', row_group_size=groups, write_statistics=statistics)
    return made, DataFile(path.name, rows, path.stat().st_size)


@pytest.mark.parametrize('seed', range(8))
def test_every_row_within_its_radius_of_a_query_is_read_and_no_group_without_need(version, seed):
    made, file = write(Path(version.path('a.parquet')))
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 1 << SUBSTRING.bits, 3)
    radii = rng.integers(-1, 3, 3)
    rows, amount = read_near(version, file, SUBSTRING, keys, radii)
    near = (np.bitwise_count((keys[:, None] ^ made.keys).astype(np.uint64)) <= radii[:, None]).any(axis=0)
    assert set(made.rows[near].tolist()) <= set(rows.rows.tolist())
    starts = range(0, ROWS, GROUP)
    pieces = [made.keys[s : s + GROUP] for s in starts]
    needed = [
        s
        for s, piece in zip(starts, pieces, strict=True)
        if any(_within(piece, k, r) for k, r in zip(keys, radii, strict=True))
    ]
    assert amount.row_groups == len(needed) < len(pieces)
    expected = np.concatenate([np.arange(0), *(np.arange(s, min(s + GROUP, ROWS)) for s in needed)]).astype(int)
    for name in ('keys', 'codes', 'rows'):
        np.testing.assert_array_equal(getattr(rows, name), getattr(made, name)[expected])
    assert amount.rows == len(expected)
    assert amount.files == int(len(needed) > 0)


def _within(piece, key, radius):
    """Whether an integer between a group's first and last key is near enough, one by one."""
    return any(int(x ^ key).bit_count() <= radius for x in range(int(piece[0]), int(piece[-1]) + 1))


def test_without_statistics_all_groups_are_read(version):
    made, file = write(Path(version.path('a.parquet')), statistics=False)
    rows, amount = read_near(version, file, SUBSTRING, np.array([77]), np.array([0]))
    assert (amount.rows, len(rows.rows)) == (ROWS, ROWS)
    np.testing.assert_array_equal(rows.keys, made.keys)


def test_rows_come_in_the_order_asked_out_of_the_groups_that_hold_them(version):
    made, file = write(Path(version.path('a.parquet')))
    asked = np.array([4999, 0, 700, 4999, 701, 255, 256])
    table, amount = read_rows(version, file, asked, ['row', 'code'])
    assert table['row'].to_pylist() == made.rows[asked].tolist()
    assert table['code'].to_pylist() == [bytes(c) for c in made.codes[asked]]
    assert (amount.row_groups, amount.rows) == (4, 3 * GROUP + ROWS % GROUP)
    table, amount = read_rows(version, file, asked[:0], ['row'])
    assert (len(table), amount.row_groups, amount.files) == (0, 0, 0)


def test_the_bytes_told_are_those_that_arrow_asks_for(version, monkeypatch):
    """Beside gaps of a few KiB that Arrow reads rather than skips: here there are none, as groups are large."""
    _, file = write(Path(version.path('a.parquet')), groups=40_000, rows=200_000)
    counting = Counting(Path(version.path('a.parquet')))

    class Stub:
        def open_input_file(self, _):
            return pa.PythonFile(counting, 'r')

    monkeypatch.setattr(partition_reader.files, 'filesystem', lambda uri: (Stub(), uri))
    rows, amount = read_near(version, file, SUBSTRING, np.array([5, 9000]), np.array([0, 0]))
    assert 0 < amount.row_groups < 5
    assert amount.rows == len(rows.rows) == 40_000 * amount.row_groups
    assert sum(size for _, size in counting.ranges) == amount.bytes < file.bytes / 2


def test_a_footer_that_is_long_is_read_again():
    assert footer_bytes(1000, 500_000) == 65_536
    assert footer_bytes(65_528, 500_000) == 65_536
    assert footer_bytes(65_529, 500_000) == 65_536 + 65_529
    assert footer_bytes(1000, 3000) == 3000


def test_the_fields_of_a_column_are_counted_with_it(tmp_path):
    table = pa.table({'a': [{'x': 1, 'y': 'b'}], 'ab': [1], 'c': [2]})
    pq.write_table(table, tmp_path / 'nested.parquet')
    metadata = pq.ParquetFile(tmp_path / 'nested.parquet').metadata
    sizes = [metadata.row_group(0).column(i).total_compressed_size for i in range(4)]
    assert chunk_bytes(metadata, [0], ['a']) == sizes[0] + sizes[1]
    assert chunk_bytes(metadata, [0], ['ab', 'c']) == sizes[2] + sizes[3]
    assert chunk_bytes(metadata, [], ['c']) == 0


def test_amounts_add_up():
    assert Amount(1, 2, 3, 1) + Amount(10, 20, 30, 0) == Amount(11, 22, 33, 1)


def test_a_file_that_is_not_the_manifests_is_named(version):
    _, file = write(Path(version.path('a.parquet')))
    with pytest.raises(OSError, match=r'a\.parquet has 5000 rows; the manifest says 5001'):
        read_near(version, DataFile('a.parquet', ROWS + 1, file.bytes), SUBSTRING, np.array([0]), np.array([0]))
    (Path(version.path('a.parquet'))).write_bytes(b'PAR1')
    with (
        pytest.raises(OSError, match=r'cannot read .*a\.parquet'),
        opened(version, file),
    ):
        pass
    with pytest.raises(OSError, match=r'cannot read .*none\.parquet'):
        read_rows(version, DataFile('none.parquet', 5, 100), np.array([0]), ['row'])


@given(
    st.lists(st.text(max_size=3), max_size=60),
    st.lists(st.text(max_size=3), max_size=20),
    st.booleans(),
    st.sampled_from([True, False]),
)
def test_texts_are_found_where_they_are(tmp_path_factory, held, asked, in_order, statistics):
    held = sorted(held) if in_order else held
    asked += held[::7]
    version = new_version(tmp_path_factory.mktemp('index'))
    path = Path(version.path('a.parquet'))
    pq.write_table(pa.table({'x': range(len(held)), 'id': pa.array(held, pa.string())}), path, row_group_size=4,
                   write_statistics=statistics)  # fmt: skip
    file = DataFile(path.name, len(held), path.stat().st_size)
    rows, amount = find_texts(version, file, 'id', pa.array(asked, pa.string()), sorted(asked))
    assert rows.tolist() == [held.index(text) if text in held else -1 for text in asked]
    if statistics and held:
        groups = [held[i : i + 4] for i in range(0, len(held), 4)]
        assert amount.row_groups == sum(any(min(g) <= text <= max(g) for text in asked) for g in groups)
