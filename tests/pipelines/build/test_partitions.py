"""What follows encoding, step by step and without Beam."""

import collections

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from pipelines import files
from pipelines.build import job, part_runs, partitions
from pipelines.build.partitions import Part, gather_blocks, keep_sample, sample_part, write_partition
from pipelines.encoding.ids import id_hashes
from pipelines.index import code_tables, layout, versions
from pipelines.index.code_tables import codes_to_arrow
from pipelines.jobs import blocks
from pipelines.records import MISSING_ID
from pipelines.search.search_plan import selectivity
from tests.helpers.make_index import (
    KINDS,
    ORIGIN,
    SPEC,
    build_by_hand,
    config_for,
    cut_all,
    make_codes,
    skewed_codes,
    write_codes_part,
    write_part,
)


def test_every_row_is_in_every_table_once_under_its_prefix_and_in_order(tmp_path):
    codes = [skewed_codes(n, seed=n) for n in (300, 1, 0, 170)]
    config = build_by_hand(tmp_path, codes)
    manifest = versions.read_manifest(str(tmp_path))
    wanted = {(part << 32) + i: bytes(code) for part, of_part in enumerate(codes) for i, code in enumerate(of_part)}
    substrings = layout.cut_substrings(SPEC, 471)
    assert [t.substring for t in manifest.tables] == list(substrings)
    assert max(len(p.files) for t in manifest.tables for p in t.partitions) > 1  # a value too frequent for one file
    assert max(len(p.prefix) for t in manifest.tables for p in t.partitions) > 3
    for number, table in enumerate(manifest.tables):
        s = table.substring
        found = []
        for partition in table.partitions:
            for file in partition.files:
                rows = pq.read_table(config.index_version.path(file.path), partitioning=None).to_pylist()
                assert file.path.startswith(f'codes/table={number}/prefix={partition.prefix}/part-')
                assert len(rows) == file.rows <= 2 * config.partition_rows
                assert (tmp_path / 'versions' / config.version / file.path).stat().st_size == file.bytes
                assert rows == sorted(rows, key=lambda r: (r['key'], r['row']))
                for row in rows:
                    text = f'{int.from_bytes(row["code"], "big"):072b}'[s.start : s.start + s.bits]
                    assert row['key'] == int(text, 2)
                    assert text.startswith(partition.prefix)
                found += [(row['row'], row['code']) for row in rows]
        assert len(found) == len(wanted)
        assert dict(found) == wanted
        assert table.selectivity == selectivity(sample_codes(config, manifest), s)


def sample_codes(config, manifest):
    """Those of the sample, which is that of all parts, with their ids and labels."""
    parts = [sample_part(Part(i, file, None, 0, {}, ORIGIN), config) for i, file in enumerate(manifest.images)]
    wanted = keep_sample(pa.concat_tables(parts))
    assert config.index_version.read_table(manifest.sample).to_pylist() == wanted.to_pylist()
    for row in wanted.slice(0, 5).to_pylist():
        part, place = row['row'] >> 32, row['row'] & 0xFFFFFFFF
        assert (row['image_id'], row['labels']) == (f'image {part}-{place}', [('kind', [f'{place % 3}'])])
    return code_tables.codes_from_arrow(wanted['code'])


def test_other_tools_read_the_tables(tmp_path):
    codes = skewed_codes(400)
    config = build_by_hand(tmp_path, [codes])
    pattern = f'{config.index_version.path("codes")}/*/*/*.parquet'
    counted = duckdb.sql(
        f'SELECT "table", count(*), count(DISTINCT row), count(DISTINCT prefix) '
        f"FROM read_parquet('{pattern}', hive_partitioning = true, hive_types_autocast = false) GROUP BY 1 ORDER BY 1"
    ).fetchall()
    manifest = versions.read_manifest(str(tmp_path))
    filled = [len([p for p in t.partitions if p.files]) for t in manifest.tables]
    assert counted == [(str(i), 400, 400, n) for i, n in enumerate(filled)]


def test_the_manifest_tells_what_was_built(tmp_path):
    config = build_by_hand(tmp_path, [skewed_codes(30), skewed_codes(50)], rejected=2)
    manifest = versions.read_manifest(str(tmp_path))
    assert versions.current_version(str(tmp_path)) == manifest.version == config.version
    assert manifest.rows == 80
    assert manifest.counters == {
        'records_read': 84, 'indexed': 80, 'rejected': 4, 'duplicates': 0, 'reasons': {MISSING_ID: 4}
    }  # fmt: skip
    assert [f.path for f in manifest.images] == ['images/part-00000.parquet', 'images/part-00001.parquet']
    assert [f.rows for f in manifest.rejects] == [2, 2]
    inputs = config.index_version.read_table(manifest.inputs).to_pylist()
    assert inputs[1] == {'path': 'shard-1.tar', 'size': 1001, 'mtime': 1.5e9, 'generation': None}
    assert {'python', 'numpy', 'pyarrow'} <= set(manifest.libraries)


def test_a_repeated_bundle_writes_the_same_bytes(tmp_path):
    config = config_for(tmp_path, 1)
    parts = [write_part(0, skewed_codes(300), config)]
    made, cut = cut_all(parts, config)
    for group, found in cut.items():
        first, again = ([w[:3] for w in write_partition((group, b), config, made)] for b in (found, found[::-1]))
        assert first == again
    again = cut_all(parts, config)[1]
    assert again == cut


def test_a_frequent_value_is_spread_evenly_over_its_files(tmp_path):
    codes = np.tile(skewed_codes(1), (1000, 1))
    config = config_for(tmp_path, 1, partition_rows=100)
    made, cut = cut_all([write_part(0, codes, config)], config)
    sizes = {group: len(gather_blocks(found, SPEC)[1]) for group, found in cut.items()}
    for table in range(len(made)):
        assert made[table].part_counts.max() == 10
        of_table = [n for group, n in sizes.items() if group[0] == table]
        assert (len(of_table), sum(of_table)) == (10, 1000)
        assert max(of_table) <= 200


@pytest.mark.parametrize('kind', KINDS)
def test_partitions_are_near_the_target(tmp_path, kind):
    """200,000 codes, 5,000 wanted in a file; of `identical` ones half have one value, the worst case."""
    spec, rows, target = CodeSpec.parse('code=64'), 200_000, 5000
    config = config_for(tmp_path, 2, spec, target)
    parts = [write_codes_part(i, half, config) for i, half in enumerate(np.split(make_codes(kind, rows, spec), 2))]
    made, cut = cut_all(parts, config)
    assert len(made) == 4
    for table in range(4):
        sizes = {key: len(gather_blocks(found, spec)[1]) for key, found in cut.items() if key[0] == table}
        files_of_leaf = collections.Counter(leaf for _, leaf, _ in sizes)
        several = [leaf for leaf, files_ in files_of_leaf.items() if files_ > 1]
        assert sum(sizes.values()) == rows
        assert max(sizes.values()) <= (1.1 if several else 1) * target  # far from twice
        # Small are only those beside a value that no cut makes smaller: one at each of 16 cuts.
        small = [key for key, size in sizes.items() if size < target / 4]
        assert len(small) <= layout.HISTOGRAM_BITS * len(several)
        assert len(several) == (kind == 'identical')
        assert target / 2 <= np.median(list(sizes.values())) <= target
        assert len(sizes) - len(small) <= 3 * rows / target


@pytest.mark.parametrize('inline', [0, 1 << 18])
@pytest.mark.parametrize(('run_rows', 'count'), [(1, 3), (250, 2), (10_000, 1)])
def test_cut_codes_are_those_of_the_parts_by_file_or_not(tmp_path, monkeypatch, inline, run_rows, count):
    monkeypatch.setattr(blocks, 'INLINE_BYTES', inline)
    monkeypatch.setattr(part_runs, 'RUN_ROWS', run_rows)
    codes = [skewed_codes(n, seed=n) for n in (90, 1, 210)]
    config = config_for(tmp_path, 3)
    made, cut = cut_all([write_part(i, c, config) for i, c in enumerate(codes)], config)
    assert {isinstance(block, bytes) for found in cut.values() for _, block in found} == {inline > 0}
    staged = files.sizes_below(config.index_version.path(versions.STAGING_FOLDER))
    assert len(staged) == (0 if inline else count * len(made))
    for table in range(len(made)):
        gathered = [gather_blocks(found, SPEC) for key, found in cut.items() if key[0] == table]
        assert all(rows.tolist() == sorted(rows.tolist()) for _, rows in gathered)
        rows = np.concatenate([rows for _, rows in gathered])
        assert sorted(rows.tolist()) == [(part << 32) + i for part, c in enumerate(codes) for i in range(len(c))]
        for part, of_part in enumerate(codes):
            found = np.concatenate([c for c, _ in gathered])[rows >> 32 == part]
            np.testing.assert_array_equal(found, of_part[rows[rows >> 32 == part] & 0xFFFFFFFF])


def sampled(codes, rows, ids):
    columns = [codes_to_arrow(codes), rows, ids, [[('kind', [i])] for i in ids]]
    schema = code_tables.sample_schema(codes.shape[1])
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def test_a_sample_of_samples_is_the_sample_of_all_by_the_hashes_of_the_ids(monkeypatch):
    monkeypatch.setattr(partitions, 'SAMPLE_ROWS', 40)
    images = sampled(skewed_codes(500), np.arange(500) * 7, [f'image {i}' for i in range(500)])
    kept = keep_sample(images)
    hashes = [int(h) for h in id_hashes(images['image_id'])]
    order = sorted(range(500), key=hashes.__getitem__)[:40]
    assert kept.to_pylist() == images.take(order).to_pylist()
    halves = [keep_sample(images.take(list(range(i, 500, 2)))) for i in (1, 0)]
    assert keep_sample(pa.concat_tables(halves)).to_pylist() == kept.to_pylist()
    assert sorted(keep_sample(images[:7])['row'].to_pylist()) == images['row'][:7].to_pylist()
    assert len(keep_sample(images[:0])) == 0


@pytest.mark.parametrize('most', [3, 5, 8, 9])
def test_of_ids_that_share_a_hash_the_sample_keeps_the_first_rows(monkeypatch, most):
    monkeypatch.setattr(partitions, 'SAMPLE_ROWS', most)
    monkeypatch.setattr(partitions, 'id_hashes', lambda ids: np.array([5, 2, 5, 5, 9, 5, 5, 1], np.uint64)[: len(ids)])
    images = sampled(skewed_codes(8), np.array([7, 6, 5, 4, 3, 2, 1, 0]), list('abcdefgh'))
    assert keep_sample(images)['row'].to_pylist() == [0, 6, 1, 2, 4, 5, 7, 3][:most]


def test_the_combiner_keeps_the_sample_of_all_parts_in_any_order(monkeypatch):
    for module in (partitions, job):
        monkeypatch.setattr(module, 'SAMPLE_ROWS', 10)
    images = sampled(skewed_codes(300), np.arange(300), [f'image {i}' for i in range(300)])
    pieces = [images[start : start + 7] for start in range(0, 300, 7)]
    wanted = keep_sample(images).to_pylist()
    combine = job.MergeSamples()
    for order in (range(len(pieces)), range(len(pieces))[::-1]):
        kept = [combine.create_accumulator() for _ in range(3)]
        for number in order:
            kept[number % 3] = combine.add_input(kept[number % 3], pieces[number])
            assert sum(map(len, kept[number % 3])) <= 40
        kept[0] = combine.compact(kept[0])
        merged = combine.merge_accumulators([*kept, combine.create_accumulator()])
        assert combine.extract_output(merged).to_pylist() == wanted


def test_partitions_hold_at_least_a_row(tmp_path):
    with pytest.raises(InputError, match='partition rows are 0; at least 1 is needed'):
        config_for(tmp_path, 1, partition_rows=0)
