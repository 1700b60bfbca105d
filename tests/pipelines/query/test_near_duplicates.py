"""Groups of near-duplicates: they equal the connected components of all pairs within the radius, on real runners."""

import dataclasses
import io
import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hashing_model.codes.bits import to_words
from hashing_model.codes.spec import CodeSpec
from pipelines.cli.main import main
from pipelines.index import versions
from pipelines.index.layout import Substring, cut_prefixes, near_prefixes, substring_keys
from pipelines.query import near_duplicates
from pipelines.query.find_near_duplicates import DuplicatesRequest, find_near_duplicates
from pipelines.search.kernels import KeyedCodes
from pipelines.search.near_pairs import distinct_codes, groups_linked, join_near, spanning
from tests.helpers.make_index import (
    KINDS,
    PORTABLE,
    REPEATED,
    TWO_PROCESSES,
    catalogue_pictures,
    distances_to,
    hand_model,
    make_codes,
    make_version,
    served_folder,
    start,
    succeed,
    tar_members,
    write_code_files,
    write_tar,
)

SEGMENTS = 'coarse=32,fine=32,look=64'
SPEC = CodeSpec.parse(SEGMENTS)
ROWS, FILES, PARTITION_ROWS = 3000, 3, 200
MASKS, WEIGHTS = np.full((1, 2), ~np.uint64(0)), np.array([1])  # plain Hamming distance of two words


def components(nodes, pairs):
    """Groups of at least two nodes that pairs join, largest first, of one size the one of the least node first."""
    a, b = np.array(pairs, np.int64).reshape(-1, 2).T
    _, of = connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(nodes, nodes)), directed=False)
    members = [np.flatnonzero(of == g).tolist() for g in np.unique(of)]
    return sorted((m for m in members if len(m) > 1), key=lambda m: (-len(m), m[0]))


def pairs_within(codes, radius, spec=SPEC, profile=None):
    return np.argwhere(np.triu(distances_to(codes, codes, spec, profile) <= radius, 1))


def listed(rows, groups):
    return [rows[groups == g].tolist() for g in range(groups.max(initial=-1) + 1)]


@given(st.integers(0, 2**32 - 1), st.integers(0, 13), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_a_pair_of_partitions_is_joined_as_all_its_near_pairs_are(seed, radius, bound):
    """Partitions `01` and `1` of a substring of 13 bits: with themselves and with each other."""
    rng = np.random.default_rng(seed)
    codes = make_codes('clustered', 150, CodeSpec.parse('a=128'), seed) & rng.integers(0, 256, (150, 16), np.uint8)
    keys = substring_keys(codes, Substring(0, 3, 13))
    order = np.argsort(keys, kind='stable')
    codes, keys = codes[order], keys[order]
    words, distances = to_words(codes), distances_to(codes, codes, CodeSpec.parse('a=128'))
    near = (np.bitwise_count(keys[:, None] ^ keys) <= radius) & (distances <= bound)
    inside = {'01': np.flatnonzero(keys >> 11 == 1), '1': np.flatnonzero(keys >> 12 == 1)}
    for first, second in (('01', '01'), ('1', '1'), ('01', '1')):
        a, b = inside[first], inside[second]
        one = KeyedCodes(keys[a], words[a], int(first, 2), 13 - len(first))
        other = KeyedCodes(keys[b], words[b], int(second, 2), 13 - len(second))
        pairs = join_near(one, other, first == second, radius, MASKS, WEIGHTS, bound)
        found = np.stack([a[pairs[:, 0]], b[pairs[:, 1]]], axis=1)
        expected = [(i, j) for i, j in itertools.product(a, b) if i != j and near[i, j]]
        assert (distances[found[:, 0], found[:, 1]] <= bound).all()
        assert components(150, found) == components(150, [*found, *expected])
        assert len(found) == sum(len(group) - 1 for group in components(150, found))


@given(st.lists(st.integers(0, 40), min_size=16, max_size=16), st.integers(0, 5))
def test_near_prefixes_are_those_that_agree_in_their_shared_bits(histogram, radius):
    prefixes = cut_prefixes(np.array(histogram), 30)
    apart = [[sum(a != b for a, b in zip(p, q, strict=False)) for q in prefixes] for p in prefixes]
    expected = [[j for j in range(i, len(prefixes)) if apart[i][j] <= radius] for i in range(len(prefixes))]
    assert list(near_prefixes(prefixes, radius)) == expected


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60))
def test_links_are_groups_and_a_spanning_forest_is_the_same_groups(pairs):
    numbers = np.sort(np.random.default_rng(0).permutation(5000)[:31])
    links = numbers[np.array(pairs, np.int64).reshape(-1, 2)]
    links = links[links[:, 0] != links[:, 1]]
    expected = [numbers[group].tolist() for group in components(31, pairs)]
    assert listed(*groups_linked(links, numbers[-1] + 1)) == expected
    forest = spanning(links, numbers[-1] + 1)
    assert listed(*groups_linked(forest, 5000)) == expected
    assert len(forest) == sum(len(group) - 1 for group in expected)


def test_equal_codes_are_paired_with_one_of_them():
    codes = make_codes('identical', 40, CodeSpec.parse('a=128'))
    firsts, pairs = distinct_codes(to_words(codes))
    assert sorted(map(bytes, codes[firsts])) == sorted({bytes(c) for c in codes})
    assert (codes[pairs[:, 0]] == codes[pairs[:, 1]]).all()
    assert set(pairs[:, 0]) <= set(firsts)
    assert sorted([*firsts, *pairs[:, 1]]) == list(range(40))


# The job


@pytest.fixture(scope='module')
def cases(tmp_path_factory):
    """Kind -> codes, and an index of them in several files and many partitions."""
    made = {}
    for kind in KINDS:
        folder, codes = tmp_path_factory.mktemp(kind), make_codes(kind, ROWS, SPEC)
        pattern = write_code_files(folder, codes, FILES)
        succeed(
            'build', '--codes', pattern, '--segments', SEGMENTS, '--index', folder / 'index',
            '--partition-rows', PARTITION_ROWS, '--no-gate',
        )  # fmt: skip
        made[kind] = codes, folder / 'index'
    return made


def groups_in(path):
    """Image ids by group, in the order of the file."""
    rows = pq.read_table(path).to_pylist()
    return [[r['image_id'] for r in group] for _, group in itertools.groupby(rows, lambda r: r['group'])]


@pytest.mark.beam
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
    ('radius', 'profile'),
    [(0, None), (3, None), (12, None), (25, None), (0, {'look': 1}), (9, {'coarse': 1, 'look': 2}), (2, {'fine': 1})],
)
def test_groups_are_the_components_of_all_near_pairs(cases, tmp_path, kind, radius, profile, capsys):
    codes, index = cases[kind]
    options = ('--profile', ','.join(f'{n}={w}' for n, w in profile.items())) if profile else ()
    output = tmp_path / 'groups.parquet'
    succeed('duplicates', '--index', index, '--radius', radius, *options, '--output', output, '--explain')
    expected = components(ROWS, pairs_within(codes, radius, profile=profile))
    assert groups_in(output) == [[f'codes-{i}' for i in group] for group in expected]
    read, told = capsys.readouterr().err.splitlines()[-2:]
    assert read.startswith('read ')
    images, largest = sum(map(len, expected)), max(map(len, expected), default=0)
    groups = 'group' if len(expected) == 1 else 'groups'
    assert f': {len(expected):,} {groups} of {images:,} images, the largest of {largest:,}, in' in told
    assert f'; without {images - len(expected):,} of 3,000 images no two are within distance {radius}' in told
    table = pq.read_table(output)
    kept = np.flatnonzero(table['keep'].to_numpy())
    assert kept.tolist() == np.cumsum([0, *map(len, expected)])[:-1].tolist()
    places = np.array([int(i.split('-')[1]) for i in table['image_id'].to_pylist()], np.int64)
    distances = distances_to(codes, codes, SPEC, profile)
    assert table['distance'].to_pylist() == [
        distances[group[0], i] for group, i in zip((g for g in expected for _ in g), places, strict=True)
    ]


@pytest.mark.beam
@pytest.mark.process
def test_other_runners_find_the_same(cases, tmp_path):
    _, index = cases['clustered']
    command = ('duplicates', '--index', index, '--radius', 12, '--output')
    succeed(*command, tmp_path / 'here.parquet')
    succeed(*command, tmp_path / 'twice.parquet', REPEATED)
    for name, options in (('processes', TWO_PROCESSES), ('portable', PORTABLE)):
        done = start(*command, tmp_path / f'{name}.parquet', *options)
        assert done.returncode == 0, done.stderr
    expected = pq.read_table(tmp_path / 'here.parquet')
    stats = json.loads((tmp_path / 'here.parquet.stats.json').read_text())
    for name in ('twice', 'processes', 'portable'):
        assert pq.read_table(tmp_path / f'{name}.parquet') == expected
        assert json.loads((tmp_path / f'{name}.parquet.stats.json').read_text()) == stats
    assert stats['counters']['images'] == len(expected) > 0


@pytest.mark.beam
def test_blocks_of_groups_are_written_in_order(cases, tmp_path, monkeypatch):
    _, index = cases['clustered']
    command = ('duplicates', '--index', index, '--radius', 12, '--output')
    succeed(*command, tmp_path / 'expected.parquet')
    monkeypatch.setattr(near_duplicates, 'ANSWERS_PER_BLOCK', 30)
    succeed(*command, tmp_path / 'groups.parquet')
    assert pq.ParquetFile(tmp_path / 'groups.parquet').num_row_groups > 10
    assert pq.read_table(tmp_path / 'groups.parquet') == pq.read_table(tmp_path / 'expected.parquet')


@pytest.mark.beam
@pytest.mark.parametrize('rows', [1, 2])
def test_an_index_without_near_duplicates_gives_an_empty_file(tmp_path, capsys, rows):
    make_version(tmp_path / 'index', SPEC, [make_codes('uniform', rows, SPEC)])
    for output in (tmp_path / 'groups.parquet', tmp_path / 'groups.jsonl'):
        succeed('duplicates', '--index', tmp_path / 'index', '--radius', '5', '--output', output)
    assert len(pq.read_table(tmp_path / 'groups.parquet')) == 0
    assert (tmp_path / 'groups.jsonl').read_bytes() == b''
    assert '0 groups of 0 images' in capsys.readouterr().err


@pytest.mark.beam
@pytest.mark.parametrize('radius', [128, 129, 10**30])
def test_a_radius_that_all_are_within_makes_one_group_and_is_told(cases, tmp_path, radius):
    _, index = cases['uniform']
    told = []
    find_near_duplicates(DuplicatesRequest(str(index), radius, str(tmp_path / 'groups.parquet')), tell=told.append)
    assert groups_in(tmp_path / 'groups.parquet') == [[f'codes-{i}' for i in range(ROWS)]]
    assert f'radius {radius} is too large for the tables to help' in told[0]


@pytest.mark.beam
@pytest.mark.parametrize('segments', ['a=2', 'a=32', 'a=5,b=29'])
@pytest.mark.parametrize('radius', [0, 1, 4])
def test_few_bits_empty_parts_and_codes_without_pictures(tmp_path, segments, radius):
    spec = CodeSpec.parse(segments)
    codes = make_codes('clustered', 200, spec)
    make_version(tmp_path / 'index', spec, [codes[:0], codes[:120], codes[:0], codes[120:], codes[:0]], 30)
    output = tmp_path / 'groups.jsonl'
    succeed('duplicates', '--index', tmp_path / 'index', '--radius', radius, '--output', output)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    found = [[int(r['image_id']) for r in group] for _, group in itertools.groupby(rows, lambda r: r['group'])]
    assert found == components(200, pairs_within(codes, radius, spec))
    assert {(r['width'], r['height'], r['same_bytes'], r['labels'], r['caption']) for r in rows} <= {(None,) * 5}


@pytest.mark.beam
def test_equal_codes_do_not_make_the_plan_avoid_tables(cases):
    """Half of all pairs that agree somewhere are equal codes, which are joined before any are compared."""
    radii = {}
    for kind in ('uniform', 'identical'):
        index = str(cases[kind][1])
        config = near_duplicates.DuplicatesConfig(index, versions.current_version(index), 'groups.jsonl', 5)
        radii[kind] = near_duplicates.plan_radii(config)
    assert sorted(radii['identical']) == sorted(radii['uniform'])
    assert max(radii['identical']) <= 1


@pytest.mark.beam
def test_links_of_a_partition_are_no_more_than_its_images(cases):
    codes, index = cases['clustered']
    config = near_duplicates.DuplicatesConfig(str(index), versions.current_version(str(index)), 'groups.jsonl', 25)
    config = dataclasses.replace(config, table_radii=near_duplicates.plan_radii(config))
    elements = list(near_duplicates.list_near_partitions(None, config))
    for element in elements:
        links, _ = near_duplicates.link_partition(element, config)
        assert len(links) < len(codes)
    assert any(len(others) > 5 for _, _, others in elements)


@pytest.mark.beam
def test_the_picture_of_most_pixels_is_kept_and_copies_of_a_file_are_told(tmp_path):
    pictures = catalogue_pictures(40)
    small = []
    for fields, data in pictures[:5]:
        sink = io.BytesIO()
        picture = Image.open(io.BytesIO(data))
        picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS).save(sink, 'PNG')
        small.append(({**fields, 'id': f'small/{fields["id"]}'}, sink.getvalue()))
    copies = [({**fields, 'id': f'copy/{fields["id"]}'}, data) for fields, data in pictures[3:8]]
    tar = write_tar(tmp_path / 'pictures.tar', tar_members([*small, *copies, *pictures]))
    hand_model(pictures).save(tmp_path / 'model')
    index = tmp_path / 'index'
    succeed('build', '--images', tar, '--model', tmp_path / 'model', '--index', index, '--no-gate')
    succeed('duplicates', '--index', index, '--radius', '0', '--output', tmp_path / 'exact.jsonl')
    rows = [json.loads(line) for line in (tmp_path / 'exact.jsonl').read_text().splitlines()]
    by_id = {row['image_id']: row for row in rows}
    for fields, _ in pictures[3:8]:
        copy, image = by_id[f'copy/{fields["id"]}'], by_id[fields['id']]
        assert copy['group'] == image['group']
        assert copy['same_bytes'] is image['same_bytes'] is True
        assert copy['labels']['item'] == image['labels']['item'] == [fields['labels']['item']]
        assert (copy['keep'], image['keep']) == (True, False)  # of equally large ones the first of the index
    succeed('duplicates', '--index', index, '--radius', '4', '--output', tmp_path / 'near.jsonl')
    rows = [json.loads(line) for line in (tmp_path / 'near.jsonl').read_text().splitlines()]
    halves = [row for row in rows if row['image_id'].startswith('small/')]
    assert len(halves) >= 4  # this model's codes of the fifth may differ in more bits
    for row in halves:
        assert (row['keep'], row['same_bytes']) == (False, False)
        kept = next(r for r in rows if r['group'] == row['group'] and r['keep'])
        assert kept['width'] * kept['height'] == max(
            r['width'] * r['height'] for r in rows if r['group'] == row['group']
        )
        assert kept['width'] == 2 * row['width']
        assert row['source'] == {'shard': tar, 'member': row['source']['member']}


@pytest.mark.beam
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('--radius', '-1'), 'the radius is -1'),
        (('--radius', '3', '--profile', 'shape=1'), 'shape'),
        (('--radius', '3', '--output', 'groups.csv'), 'ends neither in .parquet nor in .jsonl'),
        (('--radius', '3', '--k', '3'), 'unknown option --k'),
    ],
)
def test_bad_options_are_told_in_one_line(cases, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(['duplicates', '--index', str(cases['uniform'][1]), '--output', 'groups.jsonl', *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.beam
def test_a_damaged_partition_is_named_and_nothing_is_written(tmp_path, capsys):
    make_version(tmp_path / 'index', SPEC, [make_codes('clustered', 300, SPEC)], partition_rows=100)
    path = sorted(served_folder(tmp_path / 'index').glob('codes/table=0/*/*'))[0]
    path.write_bytes(path.read_bytes()[:-20])
    output = tmp_path / 'groups.parquet'
    assert main(['duplicates', '--index', str(tmp_path / 'index'), '--radius', '2', '--output', str(output)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
    assert not output.exists()
