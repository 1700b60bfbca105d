"""The search on demand against exhaustive search, reading no more than it needs."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from hashing_model.codes.spec import CodeSpec
from pipelines import files
from pipelines.search import on_demand
from pipelines.search.local_index import LocalIndex
from pipelines.search.on_demand import look, search_on_demand
from pipelines.search.search_plan import Matches, plan_search
from tests.helpers.make_index import (
    distances_to,
    flip_bits,
    make_codes,
    make_version,
    nearest,
    row_numbers,
    served_folder,
    served_version,
)

SPEC = CodeSpec.parse('coarse=20,look=44')
ROWS, FILES = 6000, 2
PROFILE = {'coarse': 2, 'look': 1}
LIMITS = [(1, None, None), (10, None, None), (10, 20, PROFILE), (None, 12, None), (ROWS + 5, None, None)]


class Made:
    """An index whose row groups are small, its codes, and queries."""

    def __init__(self, folder, kind):
        self.index, self.codes = folder, make_codes(kind, ROWS, SPEC)
        make_version(folder, SPEC, np.array_split(self.codes, FILES), partition_rows=900)
        self.version = served_version(folder)
        self.manifest = self.version.manifest
        near = flip_bits(self.codes[::997], SPEC, 0.04)
        self.queries = np.concatenate([near, self.codes[:2], make_codes('uniform', 2, SPEC, seed=4)])

    def plan(self, queries, k, radius, profile, sample=None):
        given = queries[:0] if sample is None else sample
        return plan_search(SPEC, self.manifest.tables, ROWS, given, queries, k, radius, profile)


@pytest.fixture(scope='module', params=['clustered', 'uniform', 'identical'])
def made(tmp_path_factory, request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, 'ROW_GROUP_ROWS', 64)
        return Made(tmp_path_factory.mktemp(request.param), request.param)


def answers_of(matches):
    """Answers as lists of (distance, row), by query."""
    found = {}
    for query, distance, row in zip(matches.queries, matches.distances, matches.rows, strict=True):
        found.setdefault(int(query), []).append((int(distance), int(row)))
    return found


@pytest.mark.parametrize(('k', 'radius', 'profile'), LIMITS)
@pytest.mark.parametrize('sampled', [False, True])
def test_a_search_equals_sorting_all_distances(made, k, radius, profile, sampled):
    rows = row_numbers(ROWS, FILES)
    plan = made.plan(made.queries, k, radius, profile, made.codes[::7] if sampled else None)
    found = answers_of(search_on_demand(made.version, plan)[0])
    expected = nearest(distances_to(made.codes, made.queries, SPEC, profile), k, radius)
    assert found == {q: [(d, rows[i]) for d, i in answers] for q, answers in enumerate(expected) if answers}


def test_queries_alone_are_answered_as_together(made):
    together = answers_of(search_on_demand(made.version, made.plan(made.queries, 7, None, None))[0])
    for q in range(len(made.queries)):
        alone, _ = search_on_demand(made.version, made.plan(made.queries[q : q + 1], 7, None, None))
        assert answers_of(alone)[0] == together[q]


def test_no_queries_read_nothing(made):
    plan = made.plan(made.queries[:0], 3, None, None)
    assert len(search_on_demand(made.version, plan)[0].rows) == 0
    assert look(made.version, plan)[1].bytes == 0


def test_a_first_look_finds_answers_once_and_none_too_near(made):
    """Its k-th distance is a bound only if it counts no row twice, though several tables may find it."""
    plan = made.plan(made.queries, 10, None, None)
    found, read = look(made.version, plan.at_home())
    assert (
        0 < read.row_groups < sum(-(-f.rows // 64) for t in made.manifest.tables for p in t.partitions for f in p.files)
    )
    pairs = list(zip(found.queries.tolist(), found.rows.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs) > 0
    best = np.sort(distances_to(made.codes, made.queries, SPEC), axis=1)
    last = found.kth(10)
    assert (last.distances >= best[last.queries, 9]).all()
    assert (plan.tightened(found).bounds >= best[:, 9]).all()


def test_a_handful_of_queries_reads_a_small_part(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'ROW_GROUP_ROWS', 64)
    made = Made(tmp_path, 'clustered')
    everything = len(made.manifest.tables) * ROWS
    for queries, k, share in ((made.queries[:2], 5, 0.5), (made.codes[:1], 1, 0.02)):
        plan = made.plan(queries, k, None, None)
        found, first = look(made.version, plan.at_home())
        second = look(made.version, plan.tightened(found))[1]
        assert 0 < first.rows < everything * 0.03
        assert 0 < second.rows < everything * share


def test_the_sample_is_read_only_where_that_pays(made, monkeypatch):
    """A radius of 0 needs no bound; a search without any near answer does."""
    monkeypatch.setattr(on_demand, 'read_all', None)
    plan = made.plan(made.queries, 10, 0, None)
    search_on_demand(made.version, plan)
    far = made.plan(make_codes('uniform', 2, SPEC, seed=8), 10, None, None)
    assert far.worth_sampling(100).tolist() == [0, 1]
    assert far.worth_sampling(9).tolist() == []  # fewer than k


def test_sampled_bounds_are_the_kth_distances_within_the_sample(made):
    sample = made.codes[::5]
    plan = made.plan(made.queries, 6, None, None).sampled(np.array([1, 3]), sample)
    kth = np.sort(distances_to(sample, made.queries, SPEC), axis=1)[:, 5]
    assert plan.bounds[[1, 3]].tolist() == kth[[1, 3]].tolist()
    assert (plan.bounds[[0, 2]] == SPEC.bits).all()


def test_a_lost_file_is_named(made, tmp_path):
    make_version(tmp_path, SPEC, [made.codes], partition_rows=900)
    version = served_version(tmp_path)
    lost = served_folder(tmp_path) / version.manifest.tables[0].partitions[0].files[0].path
    lost.unlink()
    with pytest.raises(OSError, match=f'cannot read {lost}'):
        search_on_demand(version, made.plan(made.codes[:50], None, 40, None))


def test_merged_matches_count_a_row_once():
    twice = Matches(np.array([0, 0, 1]), np.array([2, 1, 1]), np.array([5, 9, 9]))
    merged = Matches.merged([twice, twice.take(np.array([1]))], 2)
    assert (merged.queries.tolist(), merged.distances.tolist(), merged.rows.tolist()) == (
        [0, 0, 1],
        [1, 2, 1],
        [9, 5, 9],
    )


def test_the_groups_of_these_tests_are_small(made):
    file = made.manifest.tables[0].partitions[0].files[0]
    assert pq.ParquetFile(made.version.path(file.path)).num_row_groups > 4
    assert made.version.read_table(file).num_rows == file.rows


def test_a_local_index_that_is_not_in_memory_answers_the_same(made):
    opened = [LocalIndex.open(made.index, in_memory=False), LocalIndex.open(made.index)]
    for k, radius, profile in ((10, None, None), (None, 9, None), (4, 30, {SPEC.names[0]: 2})):
        one, other = (index.search(made.queries, k, radius, profile) for index in opened)
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.distances, other.distances)
        assert one.image_ids.tolist() == other.image_ids.tolist()
        assert one.exact.all()


@pytest.mark.parametrize('kept', [0.5, 0.01, 0.0])
def test_only_what_a_condition_allows_is_found_on_demand(made, kept):
    """The sample's rows count for a bound only as far as they are allowed."""
    allowed = np.random.default_rng(2).random(ROWS) < kept
    rows = np.array(row_numbers(ROWS, FILES))[allowed]
    where = pc.field('image_id').isin(pa.array(np.flatnonzero(allowed).astype(str).tolist(), pa.string()))
    index = LocalIndex.open(made.index, in_memory=False)
    for k, radius in ((10, None), (None, 14), (ROWS, 30)):
        result = index.search(made.queries, k, radius, where=where)
        assert result.exact.all()
        for q, answers in enumerate(nearest(distances_to(made.codes[allowed], made.queries, SPEC), k, radius)):
            found = result.rows[q] >= 0
            assert result.rows[q, found].tolist() == [int(rows[i]) for _, i in answers]
            assert result.distances[q, found].tolist() == [d for d, _ in answers]


@pytest.mark.parametrize(('k', 'radius', 'profile'), LIMITS)
def test_a_first_look_alone_tells_which_answers_are_exact(made, k, radius, profile):
    index = LocalIndex.open(made.index, in_memory=False)
    exact = index.search(made.queries, k, radius, profile)
    result = index.search(made.queries, k, radius, profile, exact=False)
    distances = distances_to(made.codes, made.queries, SPEC, profile)
    place = {row: i for i, row in enumerate(row_numbers(ROWS, FILES))}
    for q in range(len(made.queries)):
        found = result.rows[q][result.rows[q] >= 0].tolist()
        assert [distances[q, place[row]] for row in found] == result.distances[q, : len(found)].tolist()
        if result.exact[q]:
            assert found == exact.rows[q][exact.rows[q] >= 0].tolist()


def test_a_first_look_is_exact_below_one_bit_in_every_table(made):
    """Of the nearest image of an indexed code, at distance 0, a look at its own keys is certain."""
    index = LocalIndex.open(made.index, in_memory=False)
    assert index.search(made.codes[:20], k=1, exact=False).exact.all()
    tables = len(made.manifest.tables)
    for radius in (tables - 1, tables):
        sure = index.search(made.codes[:20], k=None, radius=radius, exact=False).exact
        assert sure.tolist() == [radius < tables] * 20
