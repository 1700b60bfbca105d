"""Exact search in memory, against exhaustive numpy; the job in Beam runs the same functions."""

import dataclasses
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing_model.codes.bits import pack_bits, segment_distances
from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from pipelines.index.code_tables import CodeRows
from pipelines.index.layout import Substring, cut_prefixes, key_histogram, substring_keys
from pipelines.index.manifest import Table
from pipelines.search.local_index import LocalIndex
from pipelines.search.search_plan import Matches, plan_search
from tests.helpers.make_index import SPEC, build_by_hand, skewed_codes

PARTS = (500, 0, 260, 41)
PROFILES = [None, {'coarse': 1}, {'fine': 3, 'look': 1}, {'look': 2, 'coarse': 2, 'fine': 7}]


@pytest.fixture(scope='module')
def catalogue(tmp_path_factory):
    """An index of 801 codes in four parts: its folder, codes and rows."""
    folder = tmp_path_factory.mktemp('index')
    codes = [skewed_codes(n, seed=i) for i, n in enumerate(PARTS)]
    build_by_hand(folder, codes)
    rows = np.concatenate([(i << 32) + np.arange(n) for i, n in enumerate(PARTS)])
    return folder, np.concatenate(codes), rows


def queries_of(codes, seed=5):
    """Some codes of the index, some near them, one at random."""
    near = codes[::97] ^ pack_bits(np.random.default_rng(seed).random((len(codes[::97]), SPEC.bits)) < 0.1)
    return np.concatenate([codes[::200], near, skewed_codes(1, seed=99)])


def all_distances(queries, codes, profile, spec=SPEC):
    return segment_distances(queries[:, None], codes[None], spec) @ np.array(spec.weights(profile))


def exhaustive(queries, codes, rows, profile, k, radius):
    """Per query the (distance, row) of its answers, by sorting everything."""
    answers = []
    for distances in all_distances(queries, codes, profile):
        ranked = sorted(zip(distances.tolist(), rows.tolist(), strict=True))
        answers.append([a for a in ranked if radius is None or a[0] <= radius][:k])
    return answers


def answers_of(result):
    pairs = zip(result.distances.tolist(), result.rows.tolist(), strict=True)
    return [[(d, r) for d, r in zip(*pair, strict=True) if r >= 0] for pair in pairs]


# Whole searches


@pytest.mark.parametrize('profile', PROFILES)
@pytest.mark.parametrize(('k', 'radius'), [(1, None), (10, None), (10, 6), (None, 9), (900, None), (3, 0)])
def test_a_search_equals_sorting_everything(catalogue, profile, k, radius):
    folder, codes, rows = catalogue
    queries = queries_of(codes)
    index = LocalIndex.open(folder)
    assert len(index) == 801
    result = index.search(queries, k, radius, profile)
    expected = exhaustive(queries, codes, rows, profile, k, radius)
    assert answers_of(result) == expected
    assert any(expected)
    assert result.distances.shape == (len(queries), k or max(map(len, expected)))
    for distances, ids, answers in zip(result.distances, result.image_ids, expected, strict=True):
        assert ids.tolist()[: len(answers)] == [f'image {row >> 32}-{row & 0xFFFFFFFF}' for _, row in answers]
        assert (distances[len(answers) :] == -1).all()
        assert set(ids[len(answers) :]) <= {None}


def test_partitions_give_disjoint_answers_that_make_up_the_whole(catalogue):
    folder, codes, rows = catalogue
    queries = queries_of(codes)
    index = LocalIndex.open(folder)
    opened = 0
    for profile in PROFILES:
        plan = plan_search(SPEC, index.manifest.tables, 801, index.sample, queries, None, 7, profile)
        found = []
        for number, table in enumerate(index.manifest.tables):
            for partition in table.partitions:
                which = plan.queries_for(number, partition.prefix)
                opened += len(which)
                for file in partition.files:
                    held = CodeRows.from_table(index.version.read_table(file))
                    some = plan.search(number, partition.prefix, held)
                    assert set(some.queries.tolist()) <= set(which.tolist())
                    found += zip(some.queries.tolist(), some.distances.tolist(), some.rows.tolist(), strict=True)
        expected = exhaustive(queries, codes, rows, profile, None, 7)
        assert sorted(found) == [(q, *answer) for q, answers in enumerate(expected) for answer in answers]
        assert len(found) > len(queries)
    assert opened > 0


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    seed=st.integers(0, 2**32 - 1),
    k=st.sampled_from([None, 1, 3, 50]),
    bound=st.integers(0, 25),
    target=st.sampled_from([4, 30]),
    data=st.data(),
)
def test_any_cut_into_tables_and_prefixes_is_exact(sizes, seed, k, bound, target, data):
    spec = CodeSpec.parse(','.join(f's{i}={bits}' for i, bits in enumerate(sizes)))
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)).filter(any))
    profile = dict(zip(spec.names, weights, strict=True))
    rng = np.random.default_rng(seed)
    codes, queries = (pack_bits(rng.integers(0, 2, (n, spec.bits))) for n in (60, 4))
    tables = []
    for number, bits in enumerate(sizes):
        cut = int(rng.integers(0, bits))
        start = spec.start(f's{number}')
        tables += [Substring(number, start + a, b - a) for a, b in ((0, cut), (cut, bits)) if b > a]
    described = [Table(s, tuple((rng.random() * np.linspace(0, 1, s.bits + 1)).tolist()), ()) for s in tables]
    plan = plan_search(spec, described, 10**6, codes[::3], queries, k, bound, profile)
    parts = []
    for number, s in enumerate(tables):
        keys = substring_keys(codes, s)
        for prefix in cut_prefixes(key_histogram(keys, s.bits), target):
            inside = np.array([f'{key:0{s.bits}b}'.startswith(prefix) for key in keys.tolist()])
            held = CodeRows.sorted(keys[inside], codes[inside], np.flatnonzero(inside))
            parts.append(plan.search(number, prefix, held))
    merged = Matches.merged(parts, k)
    expected = []
    for q, distances in enumerate(all_distances(queries, codes, profile, spec)):
        expected += [(q, d, r) for d, r in sorted(zip(distances.tolist(), range(60), strict=True)) if d <= bound][:k]
    assert list(zip(merged.queries, merged.distances, merged.rows, strict=True)) == expected


def test_equal_codes_rank_by_row(tmp_path):
    code = skewed_codes(1)
    build_by_hand(tmp_path, [np.tile(code, (70, 1)), np.tile(code, (5, 1))])
    result = LocalIndex.open(tmp_path).search(code, k=73)
    assert result.rows[0].tolist() == [*range(70), 1 << 32, (1 << 32) + 1, (1 << 32) + 2]
    assert not result.distances.any()


def test_no_queries_and_no_answers(catalogue):
    folder, codes, _ = catalogue
    index = LocalIndex.open(folder)
    none = index.search(codes[:0], k=4)
    assert (none.rows.shape, none.image_ids.shape) == ((0, 4), (0, 4))
    far = index.search(~codes[:1] & pack_bits(np.ones((1, 66))), k=None, radius=0)
    assert far.rows.shape == (1, 0)


def test_images_come_in_the_order_asked(catalogue):
    folder, codes, rows = catalogue
    asked = np.random.default_rng(0).integers(0, len(rows), 300)
    table = LocalIndex.open(str(folder)).images(rows[asked])
    assert table['image_id'].to_pylist() == [f'image {r >> 32}-{r & 0xFFFFFFFF}' for r in rows[asked].tolist()]
    assert table['code'].to_pylist() == [bytes(code) for code in codes[asked]]
    assert table['width'].to_pylist() == [10 + (r & 0xFFFFFFFF) for r in rows[asked].tolist()]
    assert len(LocalIndex.open(folder).images(rows[:0], ['caption'])) == 0


def test_a_lost_or_damaged_file_is_named(catalogue, tmp_path):
    _, codes, _ = catalogue
    config = build_by_hand(tmp_path, [codes[:60]])
    for table in LocalIndex.open(tmp_path).manifest.tables:
        os.truncate(config.index_version.path(table.partitions[0].files[0].path), 100)
    with pytest.raises(OSError, match=r'cannot read .*codes/table=\d/prefix=0/part-0\.parquet'):
        LocalIndex.open(tmp_path).search(codes[:5], k=60)
    os.unlink(config.index_version.path('sample.parquet'))
    with pytest.raises(OSError, match=r'cannot read .*sample\.parquet'):
        LocalIndex.open(tmp_path).search(codes[:5])


# Plans


def test_limits_that_make_no_sense_are_refused(catalogue):
    folder, codes, _ = catalogue
    index = LocalIndex.open(folder)
    for limits, message in [
        ({'k': 0}, 'k is 0; at least 1'),
        ({'k': -1}, 'k is -1'),
        ({'k': 3, 'radius': -1}, 'the radius is -1'),
        ({'k': None}, 'give k, a radius, or both'),
        ({'profile': {'colour': 1}}, "unknown segment 'colour'"),
        ({'profile': {'look': 0}}, 'weighs every segment 0'),
    ]:
        with pytest.raises(InputError, match=message):
            index.search(codes[:1], **limits)
    with pytest.raises(InputError, match='a code has 8 bytes; the index has codes of 9 bytes'):
        index.search(codes[:1, :8])
    with pytest.raises(InputError, match='bits set beyond the 66 bits'):
        index.search(codes[:1] | np.uint8(1))


def test_bounds_are_the_least_of_sample_radius_and_reach(catalogue):
    folder, codes, _ = catalogue
    tables = LocalIndex.open(folder).manifest.tables
    queries, sample = queries_of(codes), codes[::9]
    distances = np.sort(all_distances(queries, sample, {'fine': 2, 'look': 1}), axis=1)
    for k, radius in [
        (5, None),
        (5, 3),
        (len(sample), None),
        (len(sample) + 1, 20),
        (len(sample) + 1, None),
        (None, 8),
    ]:
        plan = plan_search(SPEC, tables, 801, sample, queries, k, radius, {'fine': 2, 'look': 1})
        limit = 75 if radius is None else radius  # 2 * 20 + 35
        kth = distances[:, k - 1] if k and k <= len(sample) else limit
        np.testing.assert_array_equal(plan.bounds, np.minimum(kth, limit))
        assert (plan.radii[:, 0] == -1).all()  # coarse weighs nothing
        assert plan.radii.shape == (len(queries), len(tables))
    assert plan_search(SPEC, tables, 801, sample, queries, None, 10**9).bounds.max() == 66


def test_only_prefixes_within_the_radius_are_looked_under(catalogue):
    folder, codes, _ = catalogue
    tables = LocalIndex.open(folder).manifest.tables
    plan = plan_search(SPEC, tables, 801, codes, codes[:50], None, 3)
    radii = np.tile([[1, -1, 2], [-1, 0, 0]], (25, 1))
    plan = dataclasses.replace(plan, radii=np.hstack([radii, np.zeros((50, len(tables) - 3), int)]))
    for table, s in enumerate(plan.substrings[:3]):
        texts = [f'{key:0{s.bits}b}' for key in plan.keys(table).tolist()]
        for prefix in ('0', '10', '1101'):
            differ = [sum(a != b for a, b in zip(text, prefix, strict=False)) for text in texts]
            expected = [q for q in range(50) if radii[q, table] >= 0 and differ[q] <= radii[q, table]]
            assert plan.queries_for(table, prefix).tolist() == expected


# Pieces
