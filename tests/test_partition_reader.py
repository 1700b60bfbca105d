"""Reading parts of Parquet files: the row groups that can hold an answer and no others, exactly the rows asked."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_index import (
    KINDS,
    distances_to,
    flip_bits,
    make_codes,
    make_version,
    nearest,
    read_served,
    row_numbers,
    served_folder,
)

from hashing_model.code_spec import CodeSpec
from hashing_model.errors import InputError
from pipelines.index import LocalIndex, files
from pipelines.index.code_tables import CodeRows
from pipelines.index.layout import Substring, interval_distances, intervals_near, substring_keys
from pipelines.index.manifest import DataFile
from pipelines.index.on_demand import look
from pipelines.index.partition_reader import Amount, opened, read_near, read_rows
from pipelines.index.plan import plan_search

SPEC = CodeSpec.parse('a=40,b=24')
INTERVALS = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, 255)).map(sorted), min_size=1, max_size=6, unique_by=tuple
)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=6), INTERVALS, st.data())
def test_interval_distances_are_the_least_of_all_integers_inside(keys, intervals, data):
    lows, highs = np.array(intervals, np.int64).T
    expected = [[min((key ^ v).bit_count() for v in range(low, high + 1)) for low, high in intervals] for key in keys]
    assert interval_distances(np.array(keys, np.int64), lows, highs).tolist() == expected
    radii = data.draw(st.lists(st.integers(-1, 8), min_size=len(keys), max_size=len(keys)))
    near = (np.array(expected) <= np.array(radii)[:, None]).any(axis=0)
    assert intervals_near(np.array(keys), np.array(radii), lows, highs).tolist() == near.tolist()


def test_interval_distances_of_long_keys():
    rng = np.random.default_rng(0)
    lows = rng.integers(0, 2**32 - 3000, 40)
    highs = lows + rng.integers(0, 2000, 40)
    keys = rng.integers(0, 2**32, 15)
    expected = [
        [min((int(k) ^ v).bit_count() for v in range(a, b + 1)) for a, b in zip(lows, highs, strict=True)] for k in keys
    ]
    assert interval_distances(keys, lows, highs).tolist() == expected


@pytest.fixture
def table_file(tmp_path):
    """A file of a table in row groups of 50 rows: its folder, its `DataFile`, its substring and its rows."""
    substring = Substring(0, 5, 17)
    codes = make_codes('uniform', 1030, SPEC)
    rows = CodeRows.sorted(substring_keys(codes, substring), codes, np.arange(1030))
    pq.write_table(rows.to_table(), tmp_path / 'part.parquet', row_group_size=50)
    return str(tmp_path), DataFile('part.parquet', 1030, (tmp_path / 'part.parquet').stat().st_size), substring, rows


@pytest.mark.parametrize('radius', [0, 1, 3, 17])
def test_all_rows_within_the_radius_are_read_and_few_others(table_file, radius):
    folder, file, substring, rows = table_file
    keys = rows.keys[[3, 3, 700]] ^ np.array([0, 1 << 16, 1])
    found, amount = read_near(folder, file, substring, keys, np.array([radius, -1, radius]))
    near = np.bitwise_count(rows.keys[:, None] ^ keys[[0, 2]]).min(axis=1) <= radius
    assert set(rows.rows[near].tolist()) <= set(found.rows.tolist())
    places = found.rows.argsort()
    np.testing.assert_array_equal(found.codes[places], rows.codes[rows.rows.argsort()][np.sort(found.rows)])
    assert found.keys.tolist() == substring_keys(found.codes, substring).tolist()
    assert (np.diff(found.keys) >= 0).all()
    assert (amount.rows, amount.files) == (len(found.rows), 1)
    if radius == 0:
        assert amount.row_groups <= 2
    if radius == 17:
        assert amount.rows == 1030


def test_nothing_near_reads_nothing_but_the_footer(table_file):
    folder, file, substring, _ = table_file
    found, amount = read_near(folder, file, substring, np.array([5]), np.array([-1]))
    assert len(found.rows) == 0
    assert (amount.row_groups, amount.rows, amount.files) == (0, 0, 0)
    assert 0 < amount.bytes <= file.bytes


@given(st.lists(st.integers(0, 1029), max_size=30), st.data())
def test_rows_come_as_asked(tmp_path_factory, asked, data):
    folder = tmp_path_factory.mktemp('rows')
    table = pa.table({'n': np.arange(1030), 'text': [f't{i}' for i in range(1030)], 'other': np.zeros(1030)})
    size = data.draw(st.sampled_from([1, 7, 400, 5000]))
    pq.write_table(table, folder / 'x.parquet', row_group_size=size)
    file = DataFile('x.parquet', 1030, (folder / 'x.parquet').stat().st_size)
    found, amount = read_rows(str(folder), file, np.array(asked, np.int64), ['text', 'n'])
    assert sorted(found.column_names) == ['n', 'text']
    assert found['n'].to_pylist() == asked
    assert found['text'].to_pylist() == [f't{i}' for i in asked]
    assert amount.row_groups == len({i // size for i in asked})


def test_the_bytes_counted_are_those_asked_of_the_filesystem(table_file, monkeypatch):
    folder, file, substring, rows = table_file
    asked = []

    class Counting:
        """A file that notes what is read of it."""

        def __init__(self, path):
            self.file, self.closed, self.mode = open(path, 'rb'), False, 'rb'  # noqa: SIM115

        def __getattr__(self, name):
            return getattr(self.file, name)

        def read(self, size=-1):
            content = self.file.read(size)
            asked.append(len(content))
            return content

    class Folder:
        """A filesystem of such files."""

        def open_input_file(self, path):
            return pa.PythonFile(Counting(path), 'r')

    monkeypatch.setattr(files, 'filesystem', lambda uri: (Folder(), uri))
    _, amount = read_near(folder, file, substring, rows.keys[:1], np.array([1]))
    assert amount.bytes == pytest.approx(sum(asked), rel=0.2)  # ranges close together are read as one
    assert amount.bytes >= min(file.bytes, 65_536)


def test_a_file_that_is_not_what_the_manifest_says_is_named(table_file, tmp_path):
    folder, file, _, _ = table_file
    for content, said in ((DataFile(file.path, 1029, file.bytes), 'has 1030 rows; the manifest says 1029'),):
        with pytest.raises(OSError, match=f'part.parquet {said}'), opened(folder, content):
            pass
    (tmp_path / 'part.parquet').write_bytes(b'PAR1')
    with pytest.raises(OSError, match=r'cannot read .*part\.parquet'), opened(folder, file):
        pass
    (tmp_path / 'part.parquet').unlink()
    with pytest.raises(OSError, match=r'cannot read .*part\.parquet'), opened(folder, file):
        pass


def test_amounts_add_up():
    assert Amount(1, 2, 3, 4) + Amount(10, 20, 30, 40) == Amount(11, 22, 33, 44)


# Search without memory


@pytest.mark.parametrize('kind', KINDS)
def test_a_search_on_demand_equals_one_in_memory(tmp_path, kind):
    codes = make_codes(kind, 3000, SPEC)
    make_version(tmp_path, SPEC, np.array_split(codes, 3), partition_rows=200)
    rows = row_numbers(3000, 3)
    queries = np.concatenate([flip_bits(codes[:30:3], SPEC, 0.04), make_codes('uniform', 2, SPEC, 7)])
    index = LocalIndex.open(tmp_path, in_memory=False)
    for k, radius, profile in ((10, None, None), (3, None, {'a': 1, 'b': 3}), (None, 6, None), (400, 20, {'b': 1})):
        result = index.search(queries, k, radius, profile)
        same = LocalIndex.open(tmp_path).search(queries, k, radius, profile)
        np.testing.assert_array_equal(result.rows, same.rows)
        np.testing.assert_array_equal(result.distances, same.distances)
        for q, answers in enumerate(nearest(distances_to(codes, queries, SPEC, profile), k, radius)):
            assert result.rows[q, : len(answers)].tolist() == [int(rows[i]) for _, i in answers]
        assert result.exact.all()
    assert result.image_ids[0, 0] == same.image_ids[0, 0]


def test_a_search_on_demand_for_a_near_query_reads_a_small_part(tmp_path):
    codes = make_codes('clustered', 40_000, SPEC)
    make_version(tmp_path, SPEC, [codes], partition_rows=500)
    manifest, folder = read_served(tmp_path), str(served_folder(tmp_path))
    home = plan_search(SPEC, manifest.tables, 40_000, codes[:0], codes[:1], 5).at_home()
    found, read = look(folder, manifest, home)
    matches, more = look(folder, manifest, home.tightened(found))
    assert [(d, r) for d, r in zip(matches.distances.tolist(), matches.rows.tolist(), strict=True)] == nearest(
        distances_to(codes, codes[:1], SPEC), 5
    )[0]
    assert (read + more).rows < 40_000 / 4
    with pytest.raises(InputError, match='opened in memory'):
        LocalIndex.open(tmp_path, in_memory=False).search(codes[:1], exact=False)
