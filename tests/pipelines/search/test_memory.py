"""Search in memory against exhaustive search: by probing, by scanning, by both, filtered, weighted, with ties."""

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing_model.codes.bits import pack_bits
from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from pipelines.index.layout import Substring, order_rings, substring_keys
from pipelines.search.local_index import LocalIndex
from pipelines.search.memory import MemoryTables
from tests.helpers.make_index import KINDS, distances_to, flip_bits, make_codes, make_version, nearest

SPECS = ('a=32', 'a=48', 'a=64', 'a=96', 'a=128', 'a=192', 'a=256', 'a=11,b=20,c=35', 'a=3,b=70', 'tiny=7')
PROBING, SCANNING, EITHER = (1e-9, 1e-9), (1e9, 1e9), (0.5, 0.05)


def answers_of(found):
    """Per query its answers, (distance, number) in order."""
    lists = [[] for _ in found.exact]
    for q, d, n in zip(found.queries.tolist(), found.distances.tolist(), found.numbers.tolist(), strict=True):
        lists[q].append((d, n))
    return lists


def make_tables(codes, spec, costs):
    tables = MemoryTables.from_codes(codes, spec)
    tables.costs = costs
    return tables


def queries_for(codes, spec, seed):
    near = flip_bits(codes[:: -(-len(codes) // 5)], spec, 0.05, seed)
    return np.concatenate([near, codes[:2], make_codes('uniform', 2, spec, seed + 1)])


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    kind=st.sampled_from(KINDS),
    text=st.sampled_from(SPECS),
    rows=st.integers(1, 700),
    costs=st.sampled_from([PROBING, PROBING, SCANNING, EITHER]),
    seed=st.integers(0, 2**32 - 2),
)
def test_every_way_equals_sorting_all_distances(data, kind, text, rows, costs, seed):
    spec = CodeSpec.parse(text)
    codes = make_codes(kind, rows, spec, seed)
    queries = queries_for(codes, spec, seed)
    k = data.draw(st.sampled_from([None, 1, 2, 10, rows, rows + 1]), 'k')
    radius = data.draw(st.integers(0, spec.bits) | (st.none() if k is not None else st.just(3)), 'radius')
    weights = st.dictionaries(st.sampled_from(spec.names), st.integers(0, 4)).filter(lambda w: any(w.values()))
    profile = data.draw(st.none() | weights, 'profile')
    share = data.draw(st.sampled_from([None, 0, 0.1, 0.9]), 'allowed')
    allowed = None if share is None else np.random.default_rng(seed).random(rows) < share
    threads = data.draw(st.sampled_from([1, 3]), 'threads')
    found = make_tables(codes, spec, costs).search(queries, k, radius, profile, allowed, threads=threads)
    distances = distances_to(codes, queries, spec, profile)
    numbers = np.arange(rows)
    if allowed is not None:
        distances, numbers = distances[:, allowed], numbers[allowed]
    expected = [[(d, numbers[i]) for d, i in answers] for answers in nearest(distances, k, radius)]
    assert answers_of(found) == expected
    assert found.exact.all()
    if costs == SCANNING and k is not None:
        assert (found.visited >= len(numbers)).all()


@pytest.mark.parametrize('bits', [32, 48, 64, 96, 128, 192, 256])
def test_ten_nearest_of_many_codes_by_probing(bits):
    spec = CodeSpec.parse(f'a={bits}')
    codes = make_codes('clustered', 30_000, spec)
    queries = flip_bits(codes[:40], spec, 0.03)
    found = make_tables(codes, spec, (5.0, 1.0)).search(queries)
    assert answers_of(found) == nearest(distances_to(codes, queries, spec), 10)
    assert np.median(found.visited) < 3000, 'these queries are near: a scan would be no test of probing'


def test_long_buckets_and_many_answers():
    """Half of the codes equal: buckets of thousands, ties at rank k, and more answers than there is room at once."""
    spec = CodeSpec.parse('a=64')
    codes = make_codes('identical', 140_000, spec)
    tables = make_tables(codes, spec, PROBING)
    queries = np.concatenate([codes[:3], flip_bits(codes[:2], spec, 0.05)])
    expected = nearest(distances_to(codes, queries, spec), 7)
    assert answers_of(tables.search(queries, 7)) == expected
    for costs in (PROBING, SCANNING):
        tables.costs = costs
        tables._rings.clear()
        every = tables.search(codes[:2], None, 2)
        assert answers_of(every) == nearest(distances_to(codes, codes[:2], spec), None, 2)
        assert len(every.queries) > 2 * 65_536 / 2


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), rows=st.integers(20, 500), k=st.sampled_from([1, 5]), seed=st.integers(0, 2**31))
def test_an_inexact_search_tells_which_answers_are_exact(kind, rows, k, seed):
    spec = CodeSpec.parse('a=48')
    codes = make_codes(kind, rows, spec, seed)
    queries = queries_for(codes, spec, seed)
    found = make_tables(codes, spec, PROBING).search(queries, k, exact=False)
    expected = nearest(distances_to(codes, queries, spec), k)
    for answers, truth, exact in zip(answers_of(found), expected, found.exact, strict=True):
        assert answers == truth or not exact
        assert all(d >= t for (d, _), (t, _) in zip(answers, truth, strict=False))
    itself = make_tables(codes, spec, PROBING).search(codes, 1, exact=False)
    assert itself.exact.all(), 'a code lies under its own values, at distance 0'


def test_one_code_and_none():
    spec = CodeSpec.parse('a=20')
    codes = make_codes('uniform', 1, spec)
    assert answers_of(MemoryTables.from_codes(codes, spec).search(codes ^ 0, 3)) == [[(0, 0)]]
    assert answers_of(MemoryTables.from_codes(codes, spec).search(codes[:0], 3)) == []
    assert answers_of(MemoryTables.from_codes(codes[:0], spec).search(codes, 3)) == [[]]


@given(bits=st.integers(1, 32), start=st.integers(0, 60), seed=st.integers(0, 99))
def test_leading_values_are_the_substrings_first_bits(bits, start, seed):
    spec = CodeSpec.parse('a=100')
    codes = make_codes('uniform', 9, spec, seed)
    tables = MemoryTables(spec, [Substring(0, start, bits)], 2**30, codes[:0], iter)
    kept = int(tables.value_bits[0])
    expected = substring_keys(codes, Substring(0, start, bits)) >> (bits - kept)
    assert tables.leading_values(0, codes).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ('rows', 'in_order', 'message'),
    [
        (5000, False, 'table 0 are not in order'),
        (5001, True, 'has 5000 codes instead of 5001'),
        (9, True, 'more than 9'),
    ],
)
def test_tables_that_are_not_what_they_should_be_are_refused(rows, in_order, message):
    spec = CodeSpec.parse('a=16')
    codes = pack_bits(np.random.default_rng(0).integers(0, 2, (5000, 16)))
    if in_order:
        codes = codes[np.argsort(substring_keys(codes, Substring(0, 0, 16)), kind='stable')]
    tables = MemoryTables(spec, [Substring(0, 0, 16)], rows, codes, lambda _: iter([(0, codes, np.arange(5000))]))
    with pytest.raises(OSError, match=message):
        tables.search(codes[:1])


@given(
    costs=st.lists(st.lists(st.floats(0.1, 9), min_size=1, max_size=5), min_size=1, max_size=4),
    data=st.data(),
)
def test_rings_come_cheapest_first_and_levels_count_what_is_sure(costs, data):
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(costs), max_size=len(costs)).filter(any))
    rings, levels, totals = order_rings([np.array(c) for c in costs], weights, 1e9)
    done = dict.fromkeys(range(len(costs)), -1)
    for (table, radius), level, total, before in zip(rings.tolist(), levels[1:], totals[1:], totals[:-1], strict=True):
        assert radius == done[table] + 1
        others = [costs[t][r + 1] / weights[t] for t, r in done.items() if weights[t] and r + 1 < len(costs[t])]
        assert costs[table][radius] / weights[table] <= min(others)
        assert total - before == pytest.approx(costs[table][radius])
        done[table] = radius
        assert level == sum(weights[t] * (r + 1) for t, r in done.items())
    assert len(rings) == sum(len(c) for c, w in zip(costs, weights, strict=True) if w)


# Conditions


@pytest.fixture(scope='module')
def labelled(tmp_path_factory):
    from tests.helpers.make_index import build_by_hand, skewed_codes

    folder = tmp_path_factory.mktemp('labelled')
    codes = skewed_codes(90)
    build_by_hand(folder, [codes[:50], codes[50:]])
    return [LocalIndex.open(folder, in_memory=in_memory) for in_memory in (True, False)], codes


@pytest.mark.parametrize('opened', [0, 1], ids=['in memory', 'on demand'])
@pytest.mark.parametrize(
    ('where', 'keeps'),
    [
        ({'kind': '1'}, lambda part, i: i % 3 == 1),
        ({'kind': ['0', '2']}, lambda part, i: i % 3 != 1),
        ({'kind': 'none'}, lambda part, i: False),
        ({}, lambda part, i: True),
        (pc.field('width') >= 30, lambda part, i: 10 + i >= 30),
        (
            (pc.field('width') < 20) | (pc.field('image_id') == 'image 1-39'),
            lambda part, i: i < 10 or (part, i) == (1, 39),
        ),
        (pc.field('caption') == 'x', lambda part, i: False),
    ],
    ids=lambda value: '' if callable(value) else str(value),
)
def test_a_condition_keeps_the_images_that_fulfil_it(labelled, where, keeps, opened):
    index, codes = labelled[0][opened], labelled[1]
    places = [(part, i) for part, size in ((0, 50), (1, 40)) for i in range(size)]
    kept = np.array([keeps(*place) for place in places])
    distances = distances_to(codes[kept], codes[:20], index.spec)
    rows = np.array([(part << 32) + i for part, i in places])[kept]
    result = index.search(codes[:20], k=10, where=where)
    for q, answers in enumerate(nearest(distances, 10)):
        assert result.rows[q, : len(answers)].tolist() == [int(rows[i]) for _, i in answers]
        assert (result.rows[q, len(answers) :] == -1).all()


def test_conditions_on_nothing_are_refused(labelled):
    (index, _), codes = labelled
    for where in (
        pc.field('colour') == 1,
        pc.field('width') == 'wide',
        pc.field('image_id').isin([]),
        pc.field('caption'),
    ):
        with pytest.raises(InputError, match=r'where: .* is no condition on the images'):
            index.search(codes[:1], where=where)


def test_an_index_of_many_parts_and_files_numbers_rows_right(tmp_path):
    spec = CodeSpec.parse('a=40')
    codes = make_codes('identical', 3000, spec)
    make_version(tmp_path, spec, [codes[:1000], codes[:0], codes[1000:1500], codes[1500:]], partition_rows=100)
    index = LocalIndex.open(tmp_path)
    rows = np.concatenate([np.arange(1000), (2 << 32) + np.arange(500), (3 << 32) + np.arange(1500)])
    index.tables.costs = PROBING
    result = index.search(codes[:50], k=9)
    for q, answers in enumerate(nearest(distances_to(codes, codes[:50], spec), 9)):
        assert result.rows[q].tolist() == [int(rows[i]) for _, i in answers]
