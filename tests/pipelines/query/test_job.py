"""The query job on real runners: its answers equal an exhaustive search's, distance by distance and row by row."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hashing_model.codes.bits import hamming
from hashing_model.codes.spec import CodeSpec
from hashing_model.images import decode
from hashing_model.images.decode import Resizing
from pipelines import records
from pipelines.cli.main import main
from pipelines.query import job
from pipelines.query.answers import answers_schema
from pipelines.query.query_index import QueryRequest, query_index
from pipelines.search import on_demand
from pipelines.search.local_index import LocalIndex
from pipelines.search.on_demand import bounded, look
from pipelines.search.partition_reader import Amount
from pipelines.search.search_plan import plan_search
from tests.helpers.make_index import (
    KINDS,
    PORTABLE,
    REPEATED,
    TWO_PROCESSES,
    catalogue_pictures,
    distances_to,
    error_line,
    flip_bits,
    hand_model,
    make_codes,
    make_version,
    nearest,
    read_partitions,
    read_served,
    row_numbers,
    served_folder,
    served_version,
    start,
    succeed,
    tar_members,
    write_code_files,
    write_codes,
    write_tar,
)

SEGMENTS = 'coarse=32,fine=32,look=64'
SPEC = CodeSpec.parse(SEGMENTS)
ROWS, FILES, PARTITION_ROWS = 4500, 3, 300
PROFILES = (
    None,
    {'coarse': 1},
    {'coarse': 1, 'fine': 2},
    {'look': 3, 'coarse': 1},
    {'coarse': 1, 'fine': 0, 'look': 2},
)
LIMITS = (  # k, radius, profile
    (1, None, None),
    (10, None, None),
    (ROWS + 1, None, None),
    (10, 0, None),
    (10, 12, None),
    (10, 70, None),
    (None, 0, None),
    (None, 14, PROFILES[2]),
    (None, 45, None),
    (10, None, PROFILES[1]),
    (1, None, PROFILES[2]),
    (10, None, PROFILES[3]),
    (5, 9, PROFILES[3]),
    (10, 30, PROFILES[4]),
)


class Case:
    """An index of codes in several files, queries near to and far from them, and all their distances."""

    def __init__(self, folder, kind):
        self.folder, self.kind = folder, kind
        self.codes = make_codes(kind, ROWS, SPEC)
        near = flip_bits(self.codes[[0, 1, 2, 777, 2000, 4001, 4499]], SPEC, 0.02)
        self.queries = np.concatenate([near, self.codes[[0, 5, 3000]], make_codes('uniform', 2, SPEC, seed=9)])
        self.index = folder / 'index'
        self.build = ('--codes', write_code_files(folder, self.codes, FILES), '--segments', SEGMENTS)
        self.build += ('--partition-rows', PARTITION_ROWS)
        self.ask = ('--codes', write_code_files(folder, self.queries, 2, 'query'))

    def plan(self, k, radius, profile):
        """The search plan that the query job makes."""
        manifest = read_served(self.index)
        sample = LocalIndex.open(self.index).sample
        return plan_search(SPEC, manifest.tables, ROWS, sample, self.queries, k, radius, profile)

    def expected(self, k, radius, profile):
        """Query id -> (distance, image id) by rank, for the queries that have an answer."""
        found = nearest(distances_to(self.codes, self.queries, SPEC, profile), k, radius)
        return {f'query-{q}': [(d, f'codes-{i}') for d, i in answers] for q, answers in enumerate(found) if answers}


@pytest.mark.beam
@pytest.mark.parametrize('ids', [None, 'ids.txt'])
def test_the_graph_of_a_job_does_not_grow_with_the_index(ids, tmp_path):
    sizes = []
    for parts in (2, 300):
        index = str(tmp_path / f'{parts:03}')
        make_version(index, SPEC, np.array_split(make_codes('uniform', 300, SPEC), parts))
        config = job.QueryConfig(index, 'made', 'answers.parquet', ids)
        root = beam.Pipeline()
        job.define_pipeline(root, config)
        sizes.append(len(root.to_runner_api().SerializeToString()))
        assert len(config.manifest.images) == parts
    assert abs(sizes[1] - sizes[0]) < 298  # not a byte for each part: paths are compressed


@pytest.fixture(scope='module')
def cases(tmp_path_factory):
    made = {kind: Case(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}
    for case in made.values():
        succeed('build', '--index', case.index, *case.build)
    return made


@pytest.fixture(params=KINDS)
def case(cases, request):
    return cases[request.param]


def options_of(k, radius, profile):
    """Limits as options of the command line."""
    words = ['--k', 'all' if k is None else k]
    words += [] if radius is None else ['--radius', radius]
    return [*words, *([] if profile is None else ['--profile', ','.join(f'{n}={w}' for n, w in profile.items())])]


def read_answers(path):
    """The answers in a file, as dicts in the order of the file."""
    if str(path).endswith('.parquet'):
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in Path(path).read_text().split('\n') if line]


def ranked(rows):
    """Answers as query id -> (distance, image id) by rank; asserts that ranks are 1, 2, ... and queries in order."""
    found = {}
    for row in rows:
        answers = found.setdefault(row['query_id'], [])
        answers.append((row['distance'], row['image_id']))
        assert row['rank'] == len(answers)
        assert row['query_id'] == next(reversed(found)), 'the answers to one query must not be torn apart'
    return found


# Exactness


@pytest.mark.beam
def test_the_cases_are_not_trivial(case):
    """Tables are probed or scanned, partitions left out, ties cut at rank k, and codes repeat."""
    tables = read_served(case.index).tables
    lengths = np.array([t.substring.bits for t in tables])
    files = [(number, p.prefix) for number, t in enumerate(tables) for p in t.partitions if p.files]
    assert len(files) > 16 * len(tables) / 2
    probed, scanned, pruned = [], [], []
    for limits in LIMITS:
        plan = case.plan(*limits)
        scans = (plan.radii >= lengths).any(axis=1)
        probed.append(not scans.all())
        scanned.append(scans.any())
        pruned.append(sum(not len(plan.queries_for(*file)) for file in files))
    assert sum(probed) >= 5
    assert sum(scanned) >= 3
    assert max(pruned) > len(files) / 2
    several = [LIMITS[i] for i in range(len(LIMITS)) if probed[i] and (case.plan(*LIMITS[i]).radii > 0).any()]
    assert several, 'some radius must be larger than 0'
    ties = [d[9] == d[10] for d in np.sort(distances_to(case.codes, case.queries, SPEC), axis=1)]
    assert any(ties)
    assert len(read_served(case.index).images) == FILES
    assert (len(np.unique(case.codes, axis=0)) < ROWS) == (case.kind == 'identical')


@pytest.mark.beam
@pytest.mark.parametrize('limits', LIMITS, ids=str)
@pytest.mark.parametrize('kind', KINDS)
def test_answers_equal_exhaustive_search(cases, kind, limits, tmp_path):
    case, output = cases[kind], tmp_path / 'answers.parquet'
    succeed('query', '--index', case.index, '--output', output, *case.ask, *options_of(*limits))
    found, expected = ranked(read_answers(output)), case.expected(*limits)
    assert list(found) == list(expected)
    assert found == expected


@pytest.mark.beam
@pytest.mark.parametrize('profile', PROFILES, ids=str)
def test_local_index_answers_the_same(case, profile):
    index = LocalIndex.open(case.index)
    distances, rows = distances_to(case.codes, case.queries, SPEC, profile), row_numbers(ROWS, FILES)
    for k in (1, 10, ROWS + 1, None):
        for radius in (None, 0, 8, 45):
            if k is None and radius is None:
                continue
            result = index.search(case.queries, k, radius, profile)
            for q, expected in enumerate(nearest(distances, k, radius)):
                assert result.distances[q, : len(expected)].tolist() == [d for d, _ in expected]
                assert result.rows[q, : len(expected)].tolist() == rows[[i for _, i in expected]].tolist()
                assert (result.rows[q, len(expected) :] == -1).all()


@pytest.mark.beam
def test_repeated_bundles_double_no_answer(cases, tmp_path, capsys):
    case, output = cases['clustered'], tmp_path / 'answers.parquet'
    succeed('query', '--index', case.index, '--output', output, *case.ask, REPEATED)
    assert ranked(read_answers(output)) == case.expected(10, None, None)
    assert f'{len(case.queries) * 10} answers to {len(case.queries)} queries' in capsys.readouterr().err


@pytest.mark.beam
@pytest.mark.process
@pytest.mark.parametrize('options', [TWO_PROCESSES, PORTABLE], ids=['two processes', 'portable runner'])
def test_other_runners_build_and_answer_the_same(cases, options, tmp_path):
    case, output = cases['clustered'], tmp_path / 'answers.jsonl'
    done = start('build', '--index', tmp_path / 'index', *case.build, *options)
    assert done.returncode == 0, done.stderr
    limits = (10, 60, PROFILES[2])
    done = start('query', '--index', tmp_path / 'index', '--output', output, *case.ask, *options_of(*limits), *options)
    assert done.returncode == 0, done.stderr
    expected = case.expected(*limits)
    assert ranked(read_answers(output)) == expected
    total = sum(map(len, expected.values()))
    assert f'{total} answers to {len(case.queries)} queries' in done.stderr


@pytest.mark.beam
def test_only_partitions_that_can_hold_an_answer_are_opened(cases, tmp_path):
    """All others are spoiled first."""
    case, limits = cases['clustered'], (10, None, None)
    shutil.copytree(case.index, tmp_path / 'index')
    version, spoiled = served_version(case.index), 0
    manifest = version.manifest
    home = plan_search(SPEC, manifest.tables, ROWS, case.queries[:0], case.queries, *limits).at_home()
    looks = home, bounded(version, home.tightened(look(version, home)[0]))[0]
    for number, table in enumerate(read_served(case.index).tables):
        for partition in table.partitions:
            if not any(len(look.queries_for(number, partition.prefix)) for look in looks):
                for file in partition.files:
                    (served_folder(tmp_path / 'index') / file.path).write_bytes(b'spoiled')
                    spoiled += 1
    assert spoiled > 10
    few = write_codes(tmp_path / 'few.parquet', [f'query-{i}' for i in range(len(case.queries))], case.queries)
    succeed('query', '--index', tmp_path / 'index', '--output', tmp_path / 'answers.parquet', '--codes', few)
    assert ranked(read_answers(tmp_path / 'answers.parquet')) == case.expected(*limits)


@pytest.mark.beam
@pytest.mark.parametrize('suffix', ['parquet', 'jsonl'])
@pytest.mark.parametrize('limits', [(10, None, None), (None, 45, None)], ids=str)
def test_blocks_of_queries_come_together_in_one_file(cases, tmp_path, monkeypatch, suffix, limits):
    case, output = cases['clustered'], tmp_path / f'answers.{suffix}'
    monkeypatch.setattr(job, 'ANSWERS_PER_BLOCK', 30)
    monkeypatch.setattr(job, 'ALL_WITHIN_RADIUS', 10)
    succeed('query', '--index', case.index, '--output', output, *case.ask, *options_of(*limits))
    expected = case.expected(*limits)
    assert len(expected) > 9
    assert list(ranked(read_answers(output)).items()) == list(expected.items())
    assert {p.name for p in tmp_path.iterdir()} == {output.name, f'{output.name}.stats.json'}


@pytest.mark.beam
@pytest.mark.parametrize('limits', [(10, None, None), (None, 12, PROFILES[2])], ids=str)
def test_explain_tells_the_plan_and_what_was_read(cases, tmp_path, capsys, limits):
    case = cases['clustered']
    ask = ('query', '--index', case.index, *case.ask, *options_of(*limits), '--output')
    succeed(*ask, tmp_path / 'plain.jsonl')
    plain = capsys.readouterr().err
    succeed(*ask, tmp_path / 'explained.jsonl', '--explain')
    assert (tmp_path / 'plain.jsonl').read_text() == (tmp_path / 'explained.jsonl').read_text()
    lines = capsys.readouterr().err.splitlines()
    said = re.compile(r'\S+: [\d,]+ answers to 12 queries in \d+\.\d s, exact')
    assert said.fullmatch(plain.strip())  # nothing else, where nothing is to be explained
    assert said.fullmatch(lines[-1])
    read_line = lines[-2]

    version, k, *others = served_version(case.index), *limits
    manifest = version.manifest
    plan = plan_search(SPEC, manifest.tables, ROWS, case.queries[:0], case.queries, k, *others)
    looks = [plan.at_home(), plan] if k else [plan]
    if k:
        found, _ = on_demand.look(version, looks[0])
        looks[1] = on_demand.bounded(version, plan.tightened(found))[0]
    read = sum((on_demand.look(version, look)[1] for look in looks), Amount())
    files = [f for t in manifest.tables for p in t.partitions for f in p.files]
    assert (
        f'{read.rows:,} of {ROWS * len(manifest.tables):,} rows, {read.row_groups:,} row groups, '
        f'in {read.files:,} openings of {len(files)} files'
    ) in read_line

    header, *rows = lines[: 2 * len(manifest.tables) + 1]
    assert header.split()[:4] == ['table', 'bits', 'weight', 'probed']
    for number, (line, table) in enumerate(zip(rows[::2], manifest.tables, strict=True)):
        radii = looks[-1].radii[:, number]
        probed = int(((radii >= 0) & (radii < table.substring.bits)).sum())
        assert line.split()[0] == str(number)
        assert line.split()[3:5] == [str(probed), str(int((radii == table.substring.bits).sum()))]
    stats = json.loads((tmp_path / 'explained.jsonl.stats.json').read_text())
    assert stats == {**json.loads((tmp_path / 'plain.jsonl.stats.json').read_text()), 'counters': stats['counters']}
    counters = stats.pop('counters')
    given = dict(zip(('k', 'radius', 'profile'), limits, strict=True))
    assert stats == {'index': str(case.index), 'version': manifest.version, **given}
    answers = len(read_answers(tmp_path / 'explained.jsonl'))
    assert [counters[name] for name in ('queries', 'answers', 'rejected')] == [len(case.queries), answers, 0]
    assert [counters[f'{name}_read'] for name in ('rows', 'row_groups', 'partitions')] == [
        read.rows, read.row_groups, read.files
    ]  # fmt: skip
    assert sum(n for name, n in counters.items() if name.startswith('look/') and name.endswith('/rows')) == read.rows
    after = np.sort(looks[-1].bounds)
    if k:
        assert f'{after[0]} {after[(len(after) - 1) // 2]} {after[-1]} after the first look' in lines[-3]


@pytest.mark.beam
@pytest.mark.process
@pytest.mark.parametrize('asking', ['codes', 'ids'])
def test_what_runs_twice_or_elsewhere_counts_once(cases, tmp_path, asking):
    case = cases['clustered']
    (tmp_path / 'ids.txt').write_text('codes-7\ncodes-19\nnobody\n')
    ask = case.ask if asking == 'codes' else ('--ids', tmp_path / 'ids.txt')
    command = ('query', '--index', case.index, *ask, '--output')
    succeed(*command, tmp_path / 'here.jsonl')
    succeed(*command, tmp_path / 'twice.jsonl', REPEATED)
    for name, options in (('processes', TWO_PROCESSES), ('portable', PORTABLE)):
        done = start(*command, tmp_path / f'{name}.jsonl', *options)
        assert done.returncode == 0, done.stderr
    places = ('here', 'twice', 'processes', 'portable')
    found, *others = (json.loads((tmp_path / f'{name}.jsonl.stats.json').read_text()) for name in places)
    assert others == [found] * 3
    assert found['counters']['rejected'] == (asking == 'ids')
    assert min(found['counters'][name] for name in ('queries', 'answers', 'bytes_read', 'rows_read')) > 0


@pytest.mark.beam
def test_an_index_of_one_row_answers(tmp_path):
    code = make_codes('uniform', 1, SPEC)
    make_version(tmp_path / 'index', SPEC, [code])
    codes = write_codes(tmp_path / 'one.parquet', ['only'], code)
    succeed('query', '--codes', codes, '--index', tmp_path / 'index', '--output', tmp_path / 'answers.jsonl')
    assert ranked(read_answers(tmp_path / 'answers.jsonl')) == {'only': [(0, '0')]}


@pytest.mark.beam
@pytest.mark.parametrize('segments', ['odd=20', 'long=256', 'tiny=7', 'code=48'])
def test_codes_of_any_length_are_answered_exactly(segments, tmp_path):
    spec = CodeSpec.parse(segments)
    codes = make_codes('clustered', 1500, spec)
    queries = flip_bits(codes[:5], spec, 0.05)
    make_version(tmp_path / 'index', spec, np.array_split(codes, 2), partition_rows=100)
    output = tmp_path / 'answers.parquet'
    asked = write_code_files(tmp_path, queries, 1, 'query')
    succeed('query', '--index', tmp_path / 'index', '--codes', asked, '--output', output, '--k', 20)
    expected = nearest(distances_to(codes, queries, spec), 20)
    assert list(ranked(read_answers(output)).values()) == [[(d, str(i)) for d, i in e] for e in expected]


# Queries by id


@pytest.mark.beam
def test_ids_are_answered_in_the_order_asked(cases, tmp_path, capsys):
    case = cases['clustered']
    asked = ['codes-4499', 'codes-3', 'nobody', 'codes-2500', 'codes-3', 'codes-0']
    (tmp_path / 'ids.txt').write_text('\n'.join(asked) + '\n\n')
    output = tmp_path / 'answers.jsonl'
    succeed('query', '--index', case.index, '--ids', tmp_path / 'ids.txt', '--k', 3, '--output', output)
    rows = read_answers(output)
    known = [4499, 3, 2500, 3, 0]
    assert [row['query_id'] for row in rows] == [f'codes-{i}' for i in known for _ in range(3)]
    assert [row['rank'] for row in rows] == [1, 2, 3] * 5
    expected = nearest(distances_to(case.codes, case.codes[known], SPEC), 3)
    found = [(row['distance'], row['image_id']) for row in rows]
    assert found == [(d, f'codes-{i}') for answers in expected for d, i in answers]
    (reject,) = read_answers(tmp_path / 'answers.rejects.jsonl')
    assert (reject['reason'], reject['image_id']) == (records.UNKNOWN_ID, 'nobody')
    assert reject['source'] == {'shard': str(tmp_path / 'ids.txt'), 'member': '3'}
    messages = capsys.readouterr().err
    assert '15 answers to 5 queries' in messages
    assert '1 query could not be asked' in messages


@pytest.mark.beam
def test_a_file_of_ids_that_is_missing_is_refused(cases, tmp_path, capsys):
    command = ['query', '--index', str(cases['uniform'].index), '--output', f'{tmp_path}/a.jsonl']
    assert main([*command, '--ids', f'{tmp_path}/none.txt']) == 2
    assert 'none.txt' in error_line(capsys)


# Queries by image


@pytest.fixture(scope='module')
def pictures():
    return catalogue_pictures(60)


@pytest.fixture(scope='module')
def model(pictures):
    return hand_model(pictures)


@pytest.fixture(scope='module')
def picture_index(tmp_path_factory, pictures, model):
    folder = tmp_path_factory.mktemp('pictures')
    for number in range(3):
        write_tar(folder / f'{number}.tar', tar_members(pictures[number * 20 : number * 20 + 20]))
    model.save(folder / 'model')
    built = ('--images', folder / '*.tar', '--model', folder / 'model', '--partition-rows', 10)
    succeed('build', '--index', folder / 'index', *built)
    return folder


@pytest.mark.beam
def test_an_indexed_picture_finds_itself(picture_index, pictures, tmp_path):
    asked = [3, 25, 59, 40]
    write_tar(tmp_path / 'asked.tar', tar_members([pictures[i] for i in asked]))
    ask = ('query', '--index', picture_index / 'index', '--images', tmp_path / 'asked.tar')
    succeed(*ask, '--output', tmp_path / 'answers.jsonl', '--k', 4)
    rows = read_answers(tmp_path / 'answers.jsonl')
    assert len(rows) == 16
    for row, i in zip(rows[::4], asked, strict=True):
        fields = pictures[i][0]
        assert (row['query_id'], row['image_id']) == (fields['id'], fields['id'])
        assert (row['rank'], row['distance'], row['distance_look']) == (1, 0, 0)
        assert row['caption'] == fields['caption']
        assert row['labels'] == {level: [value] for level, value in fields['labels'].items()}
        source = {'shard': str(picture_index / f'{i // 20}.tar'), 'member': f'{i % 20:06}.webp'}
        assert row['source'] == source


@pytest.mark.beam
def test_labels_caption_and_source_are_those_of_the_answer(picture_index, pictures, model, tmp_path):
    codes = model.encode(np.stack([model.decode(data).pixels for _, data in pictures]))
    write_tar(tmp_path / 'asked.tar', tar_members(pictures[7:8]))
    ask = ('query', '--index', picture_index / 'index', '--images', tmp_path / 'asked.tar')
    succeed(*ask, '--output', tmp_path / 'answers.parquet', '--k', 60)
    ((*expected,),) = nearest(hamming(codes[7], codes)[None].astype(np.int64))
    rows = read_answers(tmp_path / 'answers.parquet')
    assert len(rows) == 60
    for row, (distance, i) in zip(rows, expected, strict=True):
        fields = pictures[i][0]
        assert (row['image_id'], row['distance'], row['caption']) == (fields['id'], distance, fields['caption'])
        assert dict(row['labels']) == {level: [value] for level, value in fields['labels'].items()}
        assert row['source']['member'] == f'{i % 20:06}.webp'


@pytest.mark.beam
def test_query_images_that_cannot_be_read_are_listed(picture_index, pictures, tmp_path, capsys):
    members = [*tar_members(pictures[:2]), ('bad.webp', b'nothing'), ('none.webp', b''), ('last.webp', pictures[5][1])]
    write_tar(tmp_path / 'asked.tar', members)
    ask = ('query', '--index', picture_index / 'index', '--images', tmp_path / 'asked.tar', '--k', 1)
    succeed(*ask, '--output', tmp_path / 'answers.parquet')
    rows = read_answers(tmp_path / 'answers.parquet')
    assert [row['query_id'] for row in rows] == [pictures[0][0]['id'], pictures[1][0]['id'], 'last']
    assert rows[2]['image_id'] == pictures[5][0]['id']
    rejects = {r['source']['member']: r['reason'] for r in read_answers(tmp_path / 'answers.rejects.parquet')}
    assert rejects == {'bad.webp': decode.NOT_AN_IMAGE, 'none.webp': decode.EMPTY}
    assert '3 answers to 3 queries' in (messages := capsys.readouterr().err)
    assert '2 queries could not be asked' in messages


@pytest.mark.beam
def test_another_model_is_refused_with_both_fingerprints(picture_index, pictures, model, tmp_path, capsys):
    other = dataclasses.replace(model, resizing=Resizing(64, 'pad'))
    other.save(tmp_path / 'other')
    write_tar(tmp_path / 'asked.tar', tar_members(pictures[:1]))
    ask = ['query', '--index', str(picture_index / 'index'), '--images', str(tmp_path / 'asked.tar')]
    ask += ['--output', str(tmp_path / 'answers.jsonl')]
    assert main([*ask, '--model', str(tmp_path / 'other')]) == 2
    line = error_line(capsys)
    assert model.fingerprint[:12] in line
    assert other.fingerprint[:12] in line
    assert not (tmp_path / 'answers.jsonl').exists()
    assert main([*ask, '--model', str(picture_index / 'model')]) == 0


@pytest.mark.beam
def test_an_index_of_codes_refuses_images(cases, pictures, tmp_path, capsys):
    write_tar(tmp_path / 'asked.tar', tar_members(pictures[:1]))
    ask = ['query', '--index', str(cases['uniform'].index), '--images', str(tmp_path / 'asked.tar')]
    assert main([*ask, '--output', str(tmp_path / 'answers.jsonl')]) == 2
    assert 'was built from codes and has no model' in error_line(capsys)


@pytest.mark.beam
@pytest.mark.process
@pytest.mark.parametrize('options', [TWO_PROCESSES, PORTABLE], ids=['two processes', 'portable runner'])
def test_images_and_texts_are_answered_the_same_on_other_runners(picture_index, pictures, tmp_path, options):
    write_tar(tmp_path / 'asked.tar', [*tar_members(pictures[10:14]), ('bad.webp', b'nothing')])
    for asking in (('--images', tmp_path / 'asked.tar'), ('--text', 'grinning face', 'a hand', '¿?')):
        ask = ('query', '--index', picture_index / 'index', *asking, '--output')
        succeed(*ask, tmp_path / 'here.jsonl')
        done = start(*ask, tmp_path / 'there.jsonl', *options)
        assert done.returncode == 0, done.stderr
        for name in ('{}.jsonl', '{}.rejects.jsonl'):
            here, there = (tmp_path / name.format(place) for place in ('here', 'there'))
            assert here.read_text() == there.read_text()
            assert here.read_text()


# Queries in words


@pytest.mark.beam
def test_texts_are_answered_as_their_codes_are(picture_index, pictures, model, tmp_path, capsys):
    asked = [pictures[3][0]['caption'], 'Face, grinning!', 'hand']
    lines = ['\N{BYTE ORDER MARK}' + asked[0], '', '  ', f'{asked[1]}\r', '¿?', asked[2]]
    (tmp_path / 'texts.txt').write_text('\n'.join(lines), encoding='utf-8', newline='')
    codes = model.encode(np.stack([model.decode(data).pixels for _, data in pictures]))
    queries, known = model.encode_text(asked)
    assert known.all()
    expected = nearest(distances_to(codes, queries, model.spec, None), 7)
    for number, ask in enumerate((['--text', *asked, '¿?'], ['--texts', tmp_path / 'texts.txt'])):
        output = tmp_path / f'{number}.jsonl'
        succeed('query', '--index', picture_index / 'index', *ask, '--k', 7, '--output', output)
        rows = read_answers(output)
        assert [row['query_id'] for row in rows] == [text for text in asked for _ in range(7)]
        found = [(row['distance'], row['image_id']) for row in rows]
        assert found == [(d, pictures[i][0]['id']) for answers in expected for d, i in answers]
        (reject,) = read_answers(tmp_path / f'{number}.rejects.jsonl')
        assert (reject['reason'], reject['image_id']) == (records.UNKNOWN_TEXT, '¿?')
        assert reject['source']['member'] == ('4', '5')[number]
        assert reject['source']['shard'] == ('--text', str(tmp_path / 'texts.txt'))[number]
        assert '1 query could not be asked' in capsys.readouterr().err


@pytest.mark.beam
def test_a_picture_is_found_by_its_caption(picture_index, pictures, tmp_path):
    captions = [fields['caption'] for fields, _ in pictures]
    (tmp_path / 'texts.txt').write_text('\n'.join(captions))
    ask = ('query', '--index', picture_index / 'index', '--texts', tmp_path / 'texts.txt', '--k', 3)
    succeed(*ask, '--output', tmp_path / 'answers.jsonl')
    found = {}
    for row in read_answers(tmp_path / 'answers.jsonl'):
        found.setdefault(row['query_id'], []).append(row['caption'])
    assert sum(caption in found[caption] for caption in captions) > 50  # of 60; by chance 3


@pytest.mark.beam
def test_texts_go_in_blocks(picture_index, pictures, tmp_path, monkeypatch):
    captions = [fields['caption'] for fields, _ in pictures[:9]]
    ask = ('query', '--index', picture_index / 'index', '--text', *captions, '--output')
    succeed(*ask, tmp_path / 'whole.jsonl')
    monkeypatch.setattr(job, 'TEXTS_PER_BLOCK', 4)
    succeed(*ask, tmp_path / 'blocks.jsonl')
    assert (tmp_path / 'whole.jsonl').read_text() == (tmp_path / 'blocks.jsonl').read_text()


@pytest.mark.beam
def test_rejected_texts_are_listed_by_line(picture_index, tmp_path):
    (tmp_path / 'texts.txt').write_text('\n'.join(['¿?'] * 11 + ['face']))
    ask = ('query', '--index', picture_index / 'index', '--texts', tmp_path / 'texts.txt')
    succeed(*ask, '--output', tmp_path / 'answers.jsonl')
    lines = [reject['source']['member'] for reject in read_answers(tmp_path / 'answers.rejects.jsonl')]
    assert lines == [str(number) for number in range(1, 12)]


@pytest.mark.beam
def test_texts_that_are_none_are_refused(picture_index, tmp_path, capsys):
    ask = ['query', '--index', str(picture_index / 'index'), '--output', str(tmp_path / 'a.jsonl')]
    assert main([*ask, '--text', 'face', 'a \udce9']) == 2
    assert 'is not UTF-8' in error_line(capsys)
    assert main([*ask, '--texts', '']) == 2
    assert 'there is no file' in error_line(capsys)
    (tmp_path / 'a.jsonl').write_text('face')
    assert main([*ask, '--texts', str(tmp_path / 'a.jsonl')]) == 2
    assert 'give another file for the answers' in error_line(capsys)
    assert main([*ask, '--text', 'face', '--text', 'hand']) == 0
    assert '20 answers to 2 queries' in capsys.readouterr().err


@pytest.mark.beam
@pytest.mark.parametrize('text', ['¿?', ''])
def test_where_no_word_is_known_the_command_fails(picture_index, text, tmp_path, capsys):
    ask = ['query', '--index', str(picture_index / 'index'), '--text', text, '--output', str(tmp_path / 'a.jsonl')]
    assert main(ask) == (2 if text else 0)
    assert ('no query could be asked' if text else '0 answers to 0 queries') in capsys.readouterr().err


@pytest.mark.beam
def test_texts_need_a_model_that_knows_words(cases, pictures, tmp_path, capsys):
    write_tar(tmp_path / 'a.tar', tar_members([({'id': str(i)}, data) for i, (_, data) in enumerate(pictures[:40])]))
    hand_model([({}, data) for _, data in pictures]).save(tmp_path / 'model')
    succeed('build', '--index', tmp_path / 'index', '--images', tmp_path / 'a.tar', '--model', tmp_path / 'model')
    (tmp_path / 'texts.txt').write_text('a cat')
    for index, why in (
        (tmp_path / 'index', 'the model has learned no words: its training images had neither captions nor labels'),
        (cases['uniform'].index, 'the index was built from codes and has no model'),
    ):
        for ask in (['--text', 'a cat'], ['--texts', str(tmp_path / 'texts.txt')]):
            capsys.readouterr()
            assert main(['query', '--index', str(index), *ask, '--output', str(tmp_path / 'a.jsonl')]) == 2
            assert why in error_line(capsys)
    assert not (tmp_path / 'a.jsonl').exists()
    assert main(['query', '--index', str(index), '--texts', 'none.txt', '--output', str(tmp_path / 'a.jsonl')]) == 2
    assert 'there is no file none.txt' in error_line(capsys)


# The output


@pytest.mark.beam
def test_parquet_and_jsonl_hold_the_same_rows(picture_index, pictures, tmp_path):
    (tmp_path / 'ids.txt').write_text('\n'.join(fields['id'] for fields, _ in pictures[:9]) + '\nnobody\n')
    ask = ('query', '--index', picture_index / 'index', '--ids', tmp_path / 'ids.txt', '--output')
    for suffix in ('parquet', 'jsonl'):
        succeed(*ask, tmp_path / f'answers.{suffix}')
    table = pq.read_table(tmp_path / 'answers.parquet')
    assert table.schema.equals(answers_schema(read_served(picture_index / 'index').spec))
    as_rows = [{**row, 'labels': dict(row['labels'])} for row in table.to_pylist()]
    assert as_rows == read_answers(tmp_path / 'answers.jsonl')
    assert len(as_rows) == 90
    assert read_answers(tmp_path / 'answers.rejects.parquet') == read_answers(tmp_path / 'answers.rejects.jsonl')


@pytest.mark.beam
def test_the_schema_has_the_distance_of_every_segment(cases, tmp_path):
    case, output, profile = cases['clustered'], tmp_path / 'answers.parquet', {'coarse': 1, 'fine': 2}
    succeed('query', '--index', case.index, *case.ask, '--output', output, *options_of(10, None, profile))
    rows = read_answers(output)
    assert list(rows[0])[:7] == [
        *('query_id', 'rank', 'image_id', 'distance'),
        *('distance_coarse', 'distance_fine', 'distance_look'),
    ]
    assert list(rows[0])[7:] == ['labels', 'caption', 'source']
    for row in rows:
        q, i = (int(row[name].partition('-')[2]) for name in ('query_id', 'image_id'))
        parts = [row[f'distance_{name}'] for name in SPEC.names]
        by_segment = [hamming(case.queries[q, b], case.codes[i, b]) for b in (np.s_[:4], np.s_[4:8], np.s_[8:])]
        assert parts == by_segment
        assert row['distance'] == parts[0] + 2 * parts[1]


@pytest.mark.beam
@pytest.mark.parametrize('suffix', ['parquet', 'jsonl'])
def test_queries_without_answers_give_a_valid_file_without_rows(cases, tmp_path, suffix):
    case, output = cases['uniform'], tmp_path / f'answers.{suffix}'
    asked = write_codes(tmp_path / 'far.parquet', ['far'], make_codes('uniform', 1, SPEC, seed=77))
    succeed('query', '--index', case.index, '--codes', asked, '--radius', 0, '--output', output)
    assert output.is_file()
    assert read_answers(output) == []
    if suffix == 'parquet':
        assert pq.read_schema(output).equals(answers_schema(SPEC))


@pytest.mark.beam
def test_a_rerun_replaces_the_output(cases, tmp_path):
    case, output = cases['uniform'], tmp_path / 'answers.jsonl'
    for k in (5, 2):
        succeed('query', '--index', case.index, *case.ask, '--k', k, '--output', output)
        assert len(read_answers(output)) == k * len(case.queries)
    assert {p.name for p in tmp_path.iterdir()} == {'answers.jsonl', 'answers.jsonl.stats.json'}
    stats = json.loads((tmp_path / 'answers.jsonl.stats.json').read_text())
    assert (stats['k'], stats['counters']['answers']) == (2, 2 * len(case.queries))


# Indexes and queries that are damaged


@pytest.fixture
def damaged(cases, tmp_path):
    """A copy of an index that a test may damage, and a partition that `k=10` reads."""
    shutil.copytree(cases['uniform'].index, tmp_path / 'index')
    partition = read_served(tmp_path / 'index').tables[0].partitions[3]
    return tmp_path / 'index', served_folder(tmp_path / 'index') / partition.files[0].path


@pytest.mark.beam
@pytest.mark.parametrize('damage', ['missing', 'cut', 'empty', 'pages'])
def test_a_damaged_partition_is_named_and_nothing_is_written(cases, damaged, tmp_path, capsys, damage):
    index, file = damaged
    data = file.read_bytes()
    if damage == 'missing':
        file.unlink()
    else:
        spoiled = data[:40] + bytes(2000) + data[2040:]
        file.write_bytes({'cut': data[: len(data) // 2], 'empty': b'', 'pages': spoiled}[damage])
    ask = ['query', '--index', str(index), *cases['uniform'].ask, '--output', str(tmp_path / 'answers.jsonl')]
    assert main(ask) == 1
    assert f'cannot read {file}' in error_line(capsys)
    assert not list(tmp_path.glob('answers*'))


@pytest.mark.beam
@pytest.mark.process
@pytest.mark.parametrize('options', [TWO_PROCESSES, PORTABLE], ids=['two processes', 'portable runner'])
def test_a_damaged_partition_is_named_by_other_runners(cases, damaged, tmp_path, options):
    index, file = damaged
    file.unlink()
    done = start('query', '--index', index, *cases['uniform'].ask, '--output', tmp_path / 'answers.jsonl', *options)
    assert done.returncode == 1
    assert f'grainhash: error: cannot read {file}' in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob('answers*'))


@pytest.mark.beam
def test_a_failed_query_leaves_the_older_answers(cases, damaged, tmp_path):
    index, file = damaged
    ask = ['query', '--index', str(index), *cases['uniform'].ask, '--output', str(tmp_path / 'answers.jsonl')]
    assert main(ask) == 0
    before = (tmp_path / 'answers.jsonl').read_text()
    file.unlink()
    assert main(ask) == 1
    assert (tmp_path / 'answers.jsonl').read_text() == before


@pytest.mark.beam
def test_query_codes_of_another_length_are_refused(cases, tmp_path, capsys):
    short = write_codes(tmp_path / 'short.parquet', ['a'], make_codes('uniform', 1, CodeSpec.parse('code=64')))
    ask = ['query', '--index', str(cases['uniform'].index), '--output', str(tmp_path / 'answers.jsonl')]
    assert main([*ask, '--codes', short]) == 2
    assert 'have 8 bytes; the index has codes of 16 bytes' in error_line(capsys)
    mixed = pa.table({'image_id': ['a', 'b'], 'code': [bytes(16), bytes(15)]})
    pq.write_table(mixed, tmp_path / 'mixed.parquet')
    assert main([*ask, '--codes', str(tmp_path / 'mixed.parquet')]) == 2
    assert 'mixed.parquet: row 1: code has 15 bytes' in error_line(capsys)
    assert not (tmp_path / 'answers.jsonl').exists()


@pytest.mark.beam
def test_partitions_hold_all_rows_of_the_cases(case):
    """The index of each case is whole before it is asked."""
    rows = {}
    for number, _, table in read_partitions(case.index):
        rows.setdefault(number, []).extend(table['row'].to_pylist())
    assert all(sorted(r) == row_numbers(ROWS, FILES).tolist() for r in rows.values())


@pytest.mark.beam
def test_a_partition_with_other_rows_is_refused(cases, tmp_path, capsys):
    """A sound file, but not the one of the manifest."""
    shutil.copytree(cases['uniform'].index, tmp_path / 'index')
    files_ = read_served(tmp_path / 'index').data_files
    file = max((f for f in files_ if f.path.startswith('codes/table=0/')), key=lambda f: f.rows)
    path = served_folder(tmp_path / 'index') / file.path
    pq.write_table(pq.read_table(path, partitioning=None).slice(0, file.rows - 1), path)
    queries = write_codes(tmp_path / 'all.parquet', ['a', 'b'], cases['uniform'].queries[:2])
    command = ['query', '--index', f'{tmp_path}/index', '--codes', queries, '--output', f'{tmp_path}/new.jsonl']
    assert main([*command, '--radius', '200', '--k', 'all']) == 1
    assert f'{file.path} has {file.rows - 1} rows; the manifest says {file.rows}' in capsys.readouterr().err
    assert not (tmp_path / 'new.jsonl').exists()


@pytest.mark.beam
def test_a_model_put_into_a_version_is_refused(picture_index, pictures, tmp_path, capsys):
    shutil.copytree(picture_index / 'index', tmp_path / 'index')
    model = served_folder(tmp_path / 'index') / 'model'
    shutil.rmtree(model)
    hand_model(pictures, seed=7).save(model)
    asked = write_tar(tmp_path / 'asked.tar', tar_members(pictures[:2]))
    assert main(['query', '--index', f'{tmp_path}/index', '--images', asked, '--output', f'{tmp_path}/a.jsonl']) == 2
    assert 'the index wants' in capsys.readouterr().err
    assert not (tmp_path / 'a.jsonl').exists()


@pytest.mark.beam
def test_rejects_of_an_earlier_run_go(cases, tmp_path):
    output, asked = tmp_path / 'answers.jsonl', tmp_path / 'ids.txt'
    for ids, left in (('codes-1\nnobody\n', True), ('codes-1\n', False)):
        asked.write_text(ids)
        succeed('query', '--index', cases['uniform'].index, '--ids', asked, '--output', output)
        assert (tmp_path / 'answers.rejects.jsonl').exists() == left


@pytest.mark.beam
@pytest.mark.parametrize('odd', ['a\u2028b', ' c', 'd ', '\u0085'])
def test_odd_ids_are_asked_as_they_are(odd, tmp_path):
    codes = make_codes('uniform', 3, SPEC)
    write_codes(tmp_path / 'codes.parquet', ['a', odd, 'z'], codes)
    succeed('build', '--codes', tmp_path / 'codes.parquet', '--index', tmp_path / 'index', '--segments', SEGMENTS)
    (tmp_path / 'ids.txt').write_bytes(f'z\r\n{odd}\r\n'.encode())
    output = tmp_path / 'answers.jsonl'
    succeed('query', '--index', tmp_path / 'index', '--ids', tmp_path / 'ids.txt', '--k', 1, '--output', output)
    assert [(row['query_id'], row['image_id']) for row in read_answers(output)] == [('z', 'z'), (odd, odd)]
    assert not (tmp_path / 'answers.rejects.jsonl').exists()


@pytest.mark.beam
def test_a_file_that_asks_is_not_overwritten(cases, tmp_path, capsys):
    index = str(cases['uniform'].index)
    asked = write_codes(tmp_path / 'one.parquet', ['a'], cases['uniform'].queries[:1])
    (tmp_path / 'ids.jsonl').write_text('codes-1')
    for option, path in (('--codes', asked), ('--ids', f'{tmp_path}/ids.jsonl')):
        before = Path(path).read_bytes()
        assert main(['query', '--index', index, option, str(path), '--output', str(path)]) == 2
        assert 'asks; give another file for the answers' in capsys.readouterr().err
        assert Path(path).read_bytes() == before


@pytest.mark.beam
def test_where_nobody_could_ask_the_command_fails(cases, tmp_path, capsys):
    (tmp_path / 'ids.txt').write_text('nobody\n')
    command = ['query', '--index', str(cases['uniform'].index), '--ids', f'{tmp_path}/ids.txt']
    assert main([*command, '--output', f'{tmp_path}/a.jsonl']) == 2
    assert 'no query could be asked: see ' in error_line(capsys)
    (reject,) = read_answers(tmp_path / 'a.rejects.jsonl')
    assert reject['image_id'] == 'nobody'
    (tmp_path / 'ids.txt').write_bytes(b'\xef\xbb\xbfcodes-1\n')  # as editors on Windows write
    succeed(*command, '--output', tmp_path / 'a.jsonl')


@pytest.mark.beam
def test_a_model_beside_codes_is_refused(cases, tmp_path, capsys):
    asked = str(write_codes(tmp_path / 'one.parquet', ['a'], cases['uniform'].queries[:1]))
    command = ['query', '--index', str(cases['uniform'].index), '--codes', asked, '--model', 'm']
    assert main([*command, '--output', f'{tmp_path}/a.jsonl']) == 2
    assert '--model goes with --images' in error_line(capsys)


@pytest.mark.beam
def test_a_k_beyond_all_integers_gives_all_rows(cases, tmp_path):
    asked = write_codes(tmp_path / 'one.parquet', ['a'], cases['uniform'].queries[:1])
    output = tmp_path / 'answers.jsonl'
    query_index(QueryRequest(str(cases['uniform'].index), str(output), codes=asked, k=10**20))
    assert len(read_answers(output)) == ROWS


@pytest.mark.beam
def test_an_unknown_runner_is_one_line(cases, tmp_path, capsys):
    asked = write_codes(tmp_path / 'one.parquet', ['a'], cases['uniform'].queries[:1])
    command = ['query', '--index', str(cases['uniform'].index), '--codes', asked, '--output', f'{tmp_path}/a.jsonl']
    assert main([*command, '--runner=NoSuchRunner']) == 2
    assert capsys.readouterr().err.startswith('grainhash: error: ')
