"""The scale plan beside real builds, real blocks and real searches."""

import numpy as np
import pyarrow as pa
import pytest

from hashing_model.codes.bits import hamming, pack_bits
from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from pipelines.build import part_runs, scale
from pipelines.build.id_buckets import BUCKETS, id_buckets
from pipelines.build.scale import (
    CLUSTER_ROWS,
    FLIPPED,
    NEIGHBOURS,
    QUERIES,
    Scale,
    ScalePlan,
    code_blocks,
    even_histogram,
    expected_candidates,
    id_blocks,
    plan_tables,
)
from pipelines.cli.main import main
from pipelines.encoding.ids import list_ids, split_ids
from pipelines.index import layout, versions
from pipelines.jobs import blocks
from pipelines.search.search_plan import selectivity
from tests.helpers.make_index import config_for, cut_all, make_codes, make_version, write_codes, write_codes_part

DEFAULT = CodeSpec.default()
UNITS = 4


def near(value, share=0.2):
    return pytest.approx(value, rel=share)


def random_ids(first, count):
    return [f'{value:016x}' for value in layout.mix(np.arange(first, first + count)).tolist()]


def check_against(plan, index):
    """Files, rows and bytes of a plan within 20 % of an index."""
    manifest = versions.read_manifest(str(index))
    assert len(manifest.images) == plan.scale.units
    assert len(manifest.tables) == len(plan.tables)
    for table, planned in zip(manifest.tables, plan.tables, strict=True):
        found = [file for partition in table.partitions for file in partition.files]
        assert table.substring == planned.substring
        assert len(table.partitions) == near(planned.partitions)
        assert len(found) == near(planned.files)
        assert max(file.rows for file in found) == near(planned.file_rows)
        assert sum(file.rows for file in found) == plan.scale.rows
        assert sum(file.bytes for file in found) == near(planned.bytes)
    assert sum(file.bytes for file in manifest.images) == near(scale.images_bytes(plan.scale))
    manifest_bytes = len(manifest.dumps())
    assert manifest_bytes == near(plan.manifest_bytes)
    assert sum(f.bytes for f in manifest.data_files) + manifest_bytes == near(plan.stored_bytes)


@pytest.mark.beam
@pytest.mark.parametrize(
    ('segments', 'partition_rows'), [('code=64', 300_000), ('coarse=32,fine=32,look=64', 2_000_000)]
)
def test_a_real_build_of_2_million_codes_has_the_files_rows_and_bytes_of_its_plan(tmp_path, segments, partition_rows):
    spec, rows = CodeSpec.parse(segments), 2_000_000
    for unit in range(UNITS):
        codes = make_codes('clustered', rows // UNITS, spec, seed=unit)
        write_codes(tmp_path / f'{unit}.parquet', random_ids(unit * rows // UNITS, rows // UNITS), codes)
    index = tmp_path / 'index'
    options = ['--segments', segments, '--partition-rows', str(partition_rows)]
    assert main(['build', '--codes', f'{tmp_path}/*.parquet', '--index', str(index), *options]) == 0
    planned = ScalePlan.of(Scale(rows, spec, True, rows // UNITS, partition_rows))
    assert planned.table_files > len(planned.tables) * (4 if partition_rows < 500_000 else 1)
    check_against(planned, index)


@pytest.mark.parametrize('partition_rows', [700, 9_000])
def test_a_small_index_has_the_tables_of_its_plan(tmp_path, partition_rows):
    spec = CodeSpec.parse('coarse=20,look=40')
    make_version(tmp_path, spec, [make_codes('uniform', 10_000, spec, seed) for seed in range(3)], partition_rows)
    manifest = versions.read_manifest(str(tmp_path))
    for table, planned in zip(
        manifest.tables, plan_tables(Scale(30_000, spec, True, 10_000, partition_rows)), strict=True
    ):
        assert table.substring == planned.substring
        assert len(table.partitions) == planned.partitions == (64 if partition_rows == 700 else 4)
        assert sum(f.bytes for p in table.partitions for f in p.files) == near(planned.bytes, 0.05)


def test_the_histogram_is_of_all_rows_and_even():
    histogram = even_histogram(10**10 + 7, 32)
    assert (len(histogram), histogram.sum()) == (1 << layout.HISTOGRAM_BITS, 10**10 + 7)
    assert histogram.max() - histogram.min() == 1


def test_prefixes_that_cannot_grow_share_their_files():
    (table,) = plan_tables(Scale(3 << 20, CodeSpec.parse('code=16'), partition_rows=20))
    assert (table.partitions, table.files_per_prefix, table.files) == (1 << 16, 3, 3 << 16)


@pytest.mark.parametrize('inline', [0, 1 << 30])
def test_blocks_of_codes_are_those_that_a_build_cuts(tmp_path, monkeypatch, inline):
    monkeypatch.setattr(blocks, 'INLINE_BYTES', inline)
    monkeypatch.setattr(scale, 'INLINE_BYTES', inline)
    monkeypatch.setattr(part_runs, 'RUN_ROWS', 5_000)
    asked = Scale(12_000, DEFAULT, True, 2_000, 75)  # 47 rows, by chance up to 70
    config = config_for(tmp_path, asked.units, DEFAULT, asked.partition_rows)
    parts = [
        write_codes_part(n, make_codes('uniform', asked.rows_per_unit, DEFAULT, n), config) for n in range(asked.units)
    ]
    cut = cut_all(parts, config)[1]
    assert {run for found in cut.values() for run, _ in found} == {0, 1, 2}
    for number, planned in enumerate(code_blocks(asked, plan_tables(asked))):
        found = [block for (table, _, _), of_file in cut.items() if table == number for _, block in of_file]
        assert len(found) == near(planned.count, 0.1)
        assert asked.rows / len(found) == near(planned.rows, 0.1)
        if inline:
            assert (sum(map(len, found)), 0) == (near(planned.shuffled, 0.1), planned.staged)
        else:
            assert sum(length for _, _, length in found) == near(planned.staged, 0.1)
            assert planned.shuffled < planned.staged


def test_blocks_of_ids_are_those_that_a_build_sends(monkeypatch):
    monkeypatch.setattr(part_runs, 'RUN_ROWS', 2_000)
    asked = Scale(6_000, DEFAULT, unit_rows=500)
    tables = [
        pa.concat_tables(
            list_ids(pa.table({'image_id': random_ids(unit * 500, 500)}), unit) for unit in range(4 * run, 4 * run + 4)
        )
        for run in range(asked.runs)
    ]
    found = [batch for table in tables for _, batch in split_ids(table, id_buckets(asked.rows))]
    planned = id_blocks(asked)
    assert (asked.units, asked.runs) == (12, 3)
    assert len(found) == near(planned.count, 0.05)
    assert sum(batch.serialize().size for batch in found) == near(planned.shuffled, 0.1)
    assert (id_buckets(6_000), id_buckets(10_000_000), id_buckets(10**10)) == (BUCKETS[0], 80, BUCKETS[1])


@pytest.mark.parametrize('cluster_rows', [0, CLUSTER_ROWS])
def test_candidates_are_those_of_searches(cluster_rows):
    spec, rows, queries = CodeSpec.parse('code=48'), 40_000, 300
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2, (rows // (cluster_rows or 1), 48), np.uint8)

    def draw(count):
        if not cluster_rows:
            return pack_bits(rng.integers(0, 2, (count, 48), np.uint8))
        return pack_bits(centres[rng.integers(len(centres), size=count)] ^ (rng.random((count, 48)) < FLIPPED))

    codes, asking = draw(rows), draw(queries)
    substrings = layout.cut_substrings(spec, rows)
    assert len(substrings) > 1
    costs = [
        layout.probe_costs(selectivity(codes, s), s.bits, rows) + layout.reading_costs(s.bits, rows, 16_384, QUERIES)
        for s in substrings
    ]
    visited = 0
    for query in asking:
        bound = int(np.partition(hamming(codes, query[None]).reshape(-1), NEIGHBOURS - 1)[NEIGHBOURS - 1])
        radii = layout.choose_radii(costs, [1] * len(substrings), bound, float(costs[0][-1]))
        for substring, radius in zip(substrings, radii, strict=True):
            keys = layout.substring_keys(codes, substring) ^ layout.substring_keys(query[None], substring)
            visited += (np.bitwise_count(keys.astype(np.uint64)) <= radius).sum()
    expected = expected_candidates(Scale(rows, spec), cluster_rows)
    assert expected < rows / 2
    assert visited / queries == near(expected)


def test_hours_and_memory_grow_with_what_they_are_of():
    small, large = (ScalePlan.of(Scale(rows, DEFAULT, images_per_core_second=20)) for rows in (72_000, 7_200_000))
    assert (small.encoding_hours, large.encoding_hours) == (1, 100)
    assert large.indexing_hours / small.indexing_hours == near(100)
    codes = ScalePlan.of(Scale(7_200_000, DEFAULT, from_codes=True))
    assert codes.encoding_hours == 0
    wide = ScalePlan.of(Scale(7_200_000, DEFAULT, partition_rows=8_000_000))
    assert wide.worker_bytes > large.worker_bytes > small.worker_bytes


@pytest.mark.parametrize(
    'wrong', [{'rows': 0}, {'unit_rows': -1}, {'partition_rows': 0}, {'images_per_core_second': 0}]
)
def test_nothing_to_plan_is_refused(wrong):
    with pytest.raises(InputError, match='more than 0 are needed'):
        Scale(**{'rows': 10, 'spec': DEFAULT, **wrong})
