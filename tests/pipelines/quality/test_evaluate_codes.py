"""`grainhash evaluate` from its inputs to its files, on real pictures and on indexes of made-up codes."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hashing_model.evaluation.evaluate import CodedImages, evaluate, label_levels
from hashing_model.images.decode import decode
from hashing_model.model import HashModel
from pipelines.cli.main import main
from pipelines.index.layout import cut_substrings
from pipelines.quality.coded_images import COLUMNS, IndexImages
from pipelines.quality.measure import Split, choose, measure
from pipelines.reports.plots import PLOTS
from tests.helpers.make_index import (
    CATALOGUE,
    SPEC,
    build_by_hand,
    catalogue_pictures,
    make_codes,
    make_version,
    read_served,
    served_version,
    skewed_codes,
    succeed,
    tar_members,
    write_codes,
    write_tar,
)
from tests.helpers.make_models import look_model

COUNT, ASKING = 60, 20
TWITTER = 'query-twitter-00000.tar.gz'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A folder with 60 labelled pictures in two shards, 20 others that ask, a model, and an index of the 60."""
    folder = tmp_path_factory.mktemp('made')
    pictures = catalogue_pictures(COUNT)
    write_tar(folder / 'a.tar', tar_members(pictures[:25]))
    write_tar(folder / 'b.tar', tar_members(pictures[25:]))
    write_tar(folder / 'asking.tar', tar_members(catalogue_pictures(ASKING, TWITTER)))
    look_model().save(folder / 'model')
    succeed('build', '--images', folder / '[ab].tar', '--model', folder / 'model', '--index', folder / 'index')
    return folder


def evaluated(out, *options):
    """What `evaluation.json` tells, read strictly."""
    succeed('evaluate', *options, '--output', out)
    return json.loads((out / 'evaluation.json').read_text(), parse_constant=pytest.fail)


def from_images(folder, pattern='[ab].tar'):
    return ['--images', folder / pattern, '--model', folder / 'model']


def measured(value):
    """What was measured, without where it came from."""
    return {k: v for k, v in value.items() if k not in ('index', 'version', 'images', 'queries_from', 'rejects')}


def coded(pictures, model):
    """Pictures as `evaluate` takes them, by id, and their labels."""
    pictures = sorted(pictures, key=lambda picture: picture[0]['id'])
    codes = model.encode(np.stack([decode(data, model.resizing).pixels for _, data in pictures]))
    digests = [hashlib.blake2b(data, digest_size=16).digest() for _, data in pictures]
    labels = [{level: [value] for level, value in f['labels'].items()} for f, _ in pictures]
    return codes, [f['id'] for f, _ in pictures], labels, digests


@pytest.mark.beam
def test_the_files_tell_what_the_pure_function_finds(made, tmp_path):
    value = evaluated(tmp_path / 'out', *from_images(made), '--queries', made / 'asking.tar', '--profile', 'look=3')
    model = HashModel.load(made / 'model')
    sides = coded(catalogue_pictures(ASKING, TWITTER), model), coded(catalogue_pictures(COUNT), model)
    levels = label_levels(*(labels for _, _, labels, _ in sides))
    images = [CodedImages(c, ids, found, ds) for (c, ids, _, ds), found in zip(sides, levels, strict=True)]
    cut = {n: [(s.start, s.bits) for s in cut_substrings(model.spec, n)] for n in (COUNT, 10**6, 10**8)}
    expected = evaluate(*images, model.spec, [{'look': 3}], cut).to_json()
    assert {name: value[name] for name in expected} == expected
    assert value['model'] == {'fingerprint': model.fingerprint, 'method': 'itq'}
    assert (value['levels'], value['rejects']) == (['coarse', 'fine', 'item'], {})
    assert [p['name'] for p in value['profiles']] == ['look', 'look=3']
    assert value['profiles'][0]['levels']['coarse']['queries'] > 10
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == sorted(['evaluation.json', 'split.json', *PLOTS])


@pytest.mark.beam
def test_an_index_tells_the_same_as_its_images(made, tmp_path):
    """The same codes and labels, once encoded and once read; queries are encoded by the model inside."""
    queries = ['--queries', made / 'asking.tar']
    for options in ([], queries, ['--max-images', '30', '--seed', '5']):
        of_index = evaluated(tmp_path / 'index', '--index', made / 'index', *options)
        of_images = evaluated(tmp_path / 'images', *from_images(made), *options)
        if '--seed' in options:
            assert of_index['split']['database'] == of_images['split']['database'] == 30
        else:
            assert measured(of_index) == measured(of_images)
    assert of_index['version'] == read_served(made / 'index').version


@pytest.mark.beam
def test_every_image_asks_the_others_once(made, tmp_path):
    value = evaluated(tmp_path / 'out', '--index', made / 'index')
    assert value['queries'] == value['database'] == value['left_out'] == COUNT
    fewer = evaluated(tmp_path / 'out', '--index', made / 'index', '--max-queries', '7')
    assert (fewer['queries'], fewer['database'], fewer['left_out']) == (7, COUNT, 7)
    assert fewer['health'] == value['health']


@pytest.mark.beam
def test_queries_in_the_database_are_left_out_and_told(made, tmp_path, capsys):
    value = evaluated(tmp_path / 'out', *from_images(made), '--queries', made / 'asking.tar', made / 'a.tar')
    assert (value['queries'], value['left_out']) == (ASKING + 25, 25)
    assert 'warning     25 of 45 queries are in the database under the same id' in capsys.readouterr().out


# The split


@pytest.mark.beam
def test_a_split_gives_the_same_figures_again(made, tmp_path):
    drawn = ['--max-images', '40', '--max-queries', '9', '--seed', '3']
    first = evaluated(tmp_path / 'first', *from_images(made), *drawn)
    again = evaluated(tmp_path / 'again', *from_images(made), '--split', tmp_path / 'first' / 'split.json')
    of_index = evaluated(tmp_path / 'index', '--index', made / 'index', '--split', tmp_path / 'first' / 'split.json')
    assert again == first
    assert {k: v for k, v in measured(of_index).items() if k != 'catalogues'} == {
        k: v for k, v in measured(first).items() if k != 'catalogues'
    }
    for name in ('split.json', *PLOTS):
        assert (tmp_path / 'first' / name).read_bytes() == (tmp_path / 'again' / name).read_bytes()
    other = evaluated(tmp_path / 'other', *from_images(made), *drawn[:-1], '4')
    assert other['split']['sha256'] != first['split']['sha256']
    assert other['split']['queries'] == first['split']['queries'] == 9


@pytest.mark.beam
def test_the_hash_of_a_split_is_that_of_its_sorted_ids(made, tmp_path):
    value = evaluated(tmp_path / 'out', *from_images(made), '--queries', made / 'asking.tar')
    split = json.loads((tmp_path / 'out' / 'split.json').read_text())
    for side, pictures in (('queries', catalogue_pictures(ASKING, TWITTER)), ('database', catalogue_pictures(COUNT))):
        ids = sorted(f['id'] for f, _ in pictures)
        assert split[side] == ids
        digest = hashlib.sha256(''.join(f'{i}\0' for i in ids).encode()).hexdigest()
        assert value['split']['sha256'][side] == digest
        assert value['split'][side] == len(ids)


@pytest.mark.beam
def test_a_split_may_part_one_set_of_images(made, tmp_path):
    """As published protocols do: some pictures ask, others are asked, out of one index."""
    ids = sorted(f['id'] for f, _ in catalogue_pictures(COUNT))
    (tmp_path / 'split.json').write_text(json.dumps({'queries': ids[:10][::-1], 'database': ids[10:50]}))
    value = evaluated(tmp_path / 'out', '--index', made / 'index', '--split', tmp_path / 'split.json')
    assert (value['queries'], value['database'], value['left_out']) == (10, 40, 0)
    of_images = evaluated(tmp_path / 'out', *from_images(made), '--split', tmp_path / 'split.json')
    assert of_images['profiles'] == value['profiles']


@pytest.mark.beam
@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{', 'is no split: JSONDecodeError'),
        ('{"queries": ["a"]}', "is no split: KeyError('database')"),
        ('[1]', 'is no split: TypeError'),
        ('{"queries": ["a"], "database": []}', 'queries and database must be lists of image ids'),
        ('{"queries": "a", "database": ["b"]}', 'queries and database must be lists of image ids'),
        ('{"queries": [1], "database": ["b"]}', 'queries and database must be lists of image ids'),
        ('{"queries": ["x", "y"], "database": ["z"]}', '2 of the 2 queries of the split are not there, such as x'),
    ],
)
def test_what_is_no_split_or_of_other_images_is_refused(made, tmp_path, capsys, content, message):
    (tmp_path / 'split.json').write_text(content)
    command = ['evaluate', '--index', made / 'index', '--split', tmp_path / 'split.json', '--output', tmp_path / 'out']
    assert main([str(word) for word in command]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r'grainhash: error: .*\n', err)
    assert message in err
    assert not (tmp_path / 'out').exists()


# Samples


def test_every_row_of_an_index_is_as_likely_as_any_other(tmp_path):
    make_version(tmp_path / 'index', SPEC, [skewed_codes(n, seed=n) for n in (5, 14, 1)])
    images = IndexImages(served_version(tmp_path / 'index'))
    codes = np.concatenate([skewed_codes(n, seed=n) for n in (5, 14, 1)])
    times = np.zeros(20)
    for seed in range(400):
        table = images.draw(4, seed)
        rows = np.array(table['image_id'].to_pylist(), int)
        assert len(set(rows)) == 4
        assert table['code'].to_pylist() == [bytes(codes[row]) for row in rows]
        times[rows] += 1
    assert ((times - 80) ** 2 / 80).sum() / (1 - 4 / 20) < 50  # 19 degrees of freedom: once in 7000 sets of seeds
    assert images.draw(None, 0)['image_id'].to_pylist() == [str(i) for i in range(20)]
    assert images.draw(999, 0).num_rows == 20


def test_an_index_without_labels_or_digests_tells_of_its_codes(tmp_path, capsys):
    make_version(tmp_path / 'index', SPEC, [make_codes('identical', 500, SPEC)])
    value = evaluated(tmp_path / 'out', '--index', tmp_path / 'index')
    assert (value['levels'], value['profiles'], value['model']) == ([], [], None)
    assert value['health']['code']['images'] == 500
    assert value['collisions']['worst'][0]['pictures'] == value['collisions']['images'] == 250
    assert '250 different pictures (50.0% of all images) have one and the same code' in value['warnings']
    assert [c['images'] for c in value['catalogues']] == [500, 10**6, 10**8]
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == [
        *('bit-balance.png', 'bit-correlation.png', 'evaluation.json', 'split.json')
    ]
    out, err = capsys.readouterr()
    assert 'what is found' not in out
    assert 'model     none, from codes' in out
    assert err.startswith(f'{tmp_path / "out"}: bit-balance.png, ')


def test_the_catalogue_of_an_index_is_all_of_it(tmp_path):
    build_by_hand(tmp_path / 'index', [skewed_codes(70)])
    value = evaluated(tmp_path / 'out', '--index', tmp_path / 'index', '--max-images', '50')
    assert value['database'] == 50
    assert value['catalogues'][0]['images'] == 70


def test_drawn_queries_are_of_the_database():
    ids = pa.table({'image_id': [str(i) for i in range(50)]})

    class Fixed:
        def draw(self, size, seed):
            return ids

    queries, database = choose(Fixed(), None, max_queries=8, seed=1)
    assert database is ids
    assert len(set(queries['image_id'].to_pylist())) == 8
    assert choose(Fixed(), None, max_queries=8, seed=2)[0] != queries
    assert len(choose(Fixed(), None)[0]) == 50


@pytest.mark.beam
def test_the_order_of_the_images_does_not_matter(made):
    images = IndexImages(served_version(made / 'index'))
    table = images.draw(None, 0)
    shuffled = table.take(np.random.default_rng(0).permutation(COUNT))
    spec = images.manifest.spec
    first, again = (measure(t, t, spec, [], COUNT) for t in (table, shuffled))
    assert (first[0].to_json(), first[1]) == (again[0].to_json(), again[1])
    assert first[1] == Split(*[tuple(sorted(table['image_id'].to_pylist()))] * 2)
    assert table.column_names == COLUMNS


# The folder, and what people read


@pytest.mark.beam
def test_a_later_evaluation_replaces_an_earlier_one(made, tmp_path):
    evaluated(tmp_path / 'out', '--index', made / 'index')
    make_version(tmp_path / 'bare', SPEC, [skewed_codes(30)])
    evaluated(tmp_path / 'out', '--index', tmp_path / 'bare')
    assert not (tmp_path / 'out' / 'map.png').exists()


@pytest.mark.beam
def test_a_folder_with_other_things_is_left_alone(made, tmp_path, capsys):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'thesis.txt').write_text('all of it')
    assert main(['evaluate', '--index', str(made / 'index'), '--output', str(tmp_path / 'out')]) == 2
    assert 'holds thesis.txt, which no evaluation wrote; give a new or empty folder' in capsys.readouterr().err
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['thesis.txt']


@pytest.mark.beam
def test_people_read_the_figures(made, tmp_path, capsys):
    value = evaluated(tmp_path / 'out', *from_images(made), '--queries', made / 'asking.tar')
    out = capsys.readouterr().out
    assert out.startswith(f'asked     {ASKING} queries in a database of {COUNT} images')
    for level in ('coarse', 'fine'):
        f = value['profiles'][0]['levels'][level]
        row = [f['map'], f['map_1000'], *(f['precision'][k] for k in ('1', '10', '100')), f['recall_100']]
        (line,) = (x for x in out.splitlines() if x.startswith(f'{level} '))
        found = line.split()[2:3] + line.split()[4:9]
        assert [float(x) for x in found] == pytest.approx(row, abs=0.0006)
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.beam
def test_pictures_that_cannot_be_read_are_counted(made, tmp_path, capsys):
    folder = tmp_path / 'photos'
    for kind in ('cats', 'dogs'):
        (folder / kind).mkdir(parents=True)
    for i, (_, data) in enumerate(catalogue_pictures(12)):
        (folder / ('cats' if i % 2 else 'dogs') / f'{i}.webp').write_bytes(data)
    (folder / 'cats' / 'broken.jpg').write_text('no picture')
    options = ['--images', folder, '--model', made / 'model', '--labels-from', 'folders']
    value = evaluated(tmp_path / 'out', *options)
    assert value['rejects'] == {'not_an_image': 1}
    assert (value['database'], value['levels']) == (12, ['coarse'])
    assert '1 records could not be used: 1 not_an_image\n' in capsys.readouterr().err


@pytest.mark.beam
def test_queries_for_an_index_of_codes_are_refused(tmp_path, capsys):
    codes = write_codes(tmp_path / 'codes.parquet', ['a', 'b'], make_codes('uniform', 2, SPEC))
    succeed('build', '--codes', codes, '--index', tmp_path / 'index')
    capsys.readouterr()
    query = str(CATALOGUE / TWITTER)
    command = ['evaluate', '--index', str(tmp_path / 'index'), '--queries', query, '--output', str(tmp_path / 'out')]
    assert main(command) == 2
    assert 'has no model to encode --queries with: it was built from codes' in capsys.readouterr().err
    assert not Path(tmp_path / 'out').exists()
