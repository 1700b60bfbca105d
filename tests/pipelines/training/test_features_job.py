"""Feature caches: what is in them, what is not made twice, and that a training on one is the training on the images."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.errors import BuildError, InputError
from hashing_model.features import hand_features
from hashing_model.images.augment import LOOK, augment
from hashing_model.images.decode import Resizing, decode
from hashing_model.model import HashModel
from hashing_model.networks.loop import Training
from hashing_model.training.feature_key import FeatureKey, views_for
from hashing_model.training.fit import view_seeds
from pipelines.cli.main import main
from pipelines.inputs.options import ReadOptions
from pipelines.inputs.sampling import sample_records
from pipelines.inputs.shards import cut_units, list_inputs
from pipelines.jobs.counts import counters
from pipelines.jobs.runner import pipeline_options, run_pipeline
from pipelines.records import BROKEN_SHARD, Record, Source
from pipelines.training import feature_cache, features_job
from pipelines.training.feature_cache import draw_rows, load_features, part_name, read_cache, view_path
from pipelines.training.features_job import FeaturesConfig, NamedUnit, define_pipeline
from tests.helpers.make_index import (
    PORTABLE,
    REPEATED,
    ROOT,
    TWO_PROCESSES,
    catalogue_pictures,
    start,
    succeed,
    tar_members,
    write_tar,
)

SIZE = Resizing(64)
SEEDS = (11, 12)
KEY = FeatureKey(SIZE, 'efficientnet_lite0', '', ('edges', 'color'), ('color',), SEEDS)
OPTIONS = ReadOptions()


@pytest.fixture(scope='module')
def pictures():
    return catalogue_pictures(30)


@pytest.fixture
def shards(tmp_path, pictures):
    """A folder of three shards of ten pictures each."""
    (tmp_path / 'shards').mkdir()
    for i in range(3):
        write_tar(tmp_path / 'shards' / f'{i}.tar', tar_members(pictures[10 * i : 10 * i + 10]))
    return tmp_path / 'shards'


def make(images, out, key=KEY, beam_args=()):
    """Run the job on this process's runner; returns the finished cache and the job's counters."""
    inputs = list_inputs([str(images)])
    units = cut_units(inputs, OPTIONS)
    known = {file.path: file for file in inputs}
    named = [NamedUnit(unit, part_name(unit, known, OPTIONS, key.fingerprint)) for unit in units]
    config = FeaturesConfig(str(out), key, len(units))
    result = run_pipeline(lambda root: define_pipeline(root, config, named), pipeline_options(list(beam_args)))
    return read_cache(str(out)), counters(result)


def rows_of(cache, view=0):
    """The rows of a view, in the order of the parts."""
    return pa.concat_tables([pq.read_table(f'{cache.folder}/{view_path(view, part.name)}') for part in cache.parts])


def vectors(table, name):
    return np.array(table[name].to_pylist(), np.float32)


def contents(folder):
    """Path -> digest of every file."""
    found = (path for path in sorted(folder.rglob('*')) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


# What is in a cache


@pytest.mark.beam
def test_rows_are_the_features_of_the_pictures_and_of_views_that_their_bytes_decide(shards, tmp_path, pictures):
    cache, counted = make(shards, tmp_path / 'cache')
    pixels = np.stack([decode(data, SIZE).pixels for _, data in pictures])
    clean = rows_of(cache)
    expected = hand_features(pixels, ('edges', 'color'))
    for name in ('edges', 'color'):
        np.testing.assert_array_equal(vectors(clean, name), expected[name])
        assert clean.schema.field(name).type == pa.list_(pa.float32(), expected[name].shape[1])
    digests = [hashlib.blake2b(data, digest_size=16).digest() for _, data in pictures]
    for view, seed in enumerate(SEEDS, 1):
        moved = [
            augment(image[None], np.random.default_rng([seed, int.from_bytes(digest, 'little')]), LOOK)[0]
            for image, digest in zip(pixels, digests, strict=True)
        ]
        rows = rows_of(cache, view)
        assert rows.column_names == ['image_id', 'digest', 'color']
        np.testing.assert_array_equal(vectors(rows, 'color'), hand_features(np.stack(moved), ('color',))['color'])
        assert rows['digest'].to_pylist() == clean['digest'].to_pylist() == digests
    assert not np.array_equal(vectors(rows_of(cache, 1), 'color'), vectors(rows_of(cache, 2), 'color'))
    assert clean['image_id'].to_pylist() == [fields['id'] for fields, _ in pictures]
    assert dict(clean['labels'][3].as_py()) == {level: [v] for level, v in pictures[3][0]['labels'].items()}
    assert clean['caption'].to_pylist() == [fields['caption'] for fields, _ in pictures]
    assert clean['source'][11].as_py() == {'shard': str(shards / '1.tar'), 'member': '000001.webp'}
    assert counted == {'records_read': 30, 'pictures': 30, 'reused': 0}
    assert cache.key == KEY


@pytest.mark.beam
def test_features_do_not_depend_on_batches_or_units(shards, tmp_path, pictures, monkeypatch):
    first, _ = make(shards, tmp_path / 'three')
    write_tar(tmp_path / 'one.tar', tar_members(pictures[::-1]))
    monkeypatch.setattr(features_job, 'BATCH_SIZE', 7)
    second, _ = make(tmp_path / 'one.tar', tmp_path / 'one')
    for view, names in enumerate((['edges', 'color'], ['color'], ['color'])):
        a, b = rows_of(first, view), rows_of(second, view)
        assert a['image_id'].to_pylist() == b['image_id'].to_pylist()[::-1]
        for name in names:
            np.testing.assert_array_equal(vectors(a, name), vectors(b, name)[::-1])


@pytest.mark.beam
def test_what_cannot_be_read_is_counted_and_listed(shards, tmp_path, pictures, capsys):
    members = [*tar_members(pictures[:2]), ('x.jpg', b''), ('y.jpg', b'no picture')]
    write_tar(shards / '3.tar', members)
    write_tar(shards / '4.tar', [('z.jpg', b'none at all')])
    cache, counted = make(shards, tmp_path / 'cache')
    assert counted == {'records_read': 35, 'pictures': 32, 'reused': 0}
    assert [part.rows for part in cache.parts] == [10, 10, 10, 2, 0]
    assert [dict(p.reasons) for p in cache.parts[3:]] == [{'empty': 1, 'not_an_image': 1}, {'not_an_image': 1}]
    described = json.loads((tmp_path / 'cache' / 'features.json').read_text())
    assert described['counters'] == {
        'records_read': 35, 'pictures': 32, 'rejected': 3, 'reasons': {'empty': 1, 'not_an_image': 2}
    }  # fmt: skip
    rejects = pa.concat_tables([pq.read_table(p) for p in (tmp_path / 'cache' / 'rejects').iterdir()]).to_pylist()
    assert {(r['source']['member'], r['reason'], r['image_id']) for r in rejects} == {
        ('x.jpg', 'empty', 'x'), ('y.jpg', 'not_an_image', 'y'), ('z.jpg', 'not_an_image', 'z')
    }  # fmt: skip
    again, counted = make(shards, tmp_path / 'cache')
    assert again == cache
    assert counted == {'records_read': 35, 'pictures': 32, 'reused': 32}


@pytest.mark.beam
def test_nothing_readable_is_no_cache(tmp_path):
    write_tar(tmp_path / 'a.tar', [('z.jpg', b'none at all')])
    with pytest.raises(BuildError, match='none of 1 records could be used: 1 not_an_image'):
        make(tmp_path / 'a.tar', tmp_path / 'cache')
    assert not (tmp_path / 'cache' / 'features.json').exists()


@pytest.mark.beam
def test_a_record_that_is_lost_fails_the_job(shards, tmp_path, monkeypatch):
    def lose_one(*args):
        part = write_part(*args)
        return type(part)(part.number, part.name, part.rows - 1, part.records_read, part.reasons)

    write_part = features_job.write_part
    monkeypatch.setattr(features_job, 'write_part', lose_one)
    with pytest.raises(BuildError, match='records are missing: read 30, used 27'):
        make(shards, tmp_path / 'cache')


@pytest.mark.beam
def test_duckdb_reads_pictures_views_and_rejects(shards, tmp_path):
    write_tar(shards / '3.tar', [('z.jpg', b'none at all')])
    make(shards, tmp_path / 'cache')
    rows = duckdb.sql(
        'select view, count(*), min(len(color)), count(edges), count(distinct digest) from '
        f"read_parquet('{tmp_path}/cache/view=*/*.parquet', hive_partitioning=true, union_by_name=true) "
        'group by view order by view'
    ).fetchall()
    assert rows == [(0, 30, 197, 30, 30), (1, 30, 197, 0, 30), (2, 30, 197, 0, 30)]
    assert duckdb.sql(f"select reason from '{tmp_path}/cache/rejects/*.parquet'").fetchall() == [('not_an_image',)]


# What is not made twice


@pytest.fixture
def made_units(monkeypatch):
    """The shards of the units that are really made."""
    made = []

    def note(items, config, number, *rest):
        made.append(number)
        return write_part(items, config, number, *rest)

    write_part = features_job.write_part
    monkeypatch.setattr(features_job, 'write_part', note)
    return made


@pytest.mark.beam
def test_only_new_and_changed_units_are_made(shards, tmp_path, pictures, made_units):
    first, _ = make(shards, tmp_path / 'cache')
    before = contents(tmp_path / 'cache')
    del made_units[:]
    make(shards, tmp_path / 'cache')
    assert made_units == []
    assert contents(tmp_path / 'cache') == before

    write_tar(shards / '1.tar', tar_members(pictures[10:14]))
    write_tar(shards / '0-new.tar', tar_members(pictures[:5]))
    second, counted = make(shards, tmp_path / 'cache')
    assert sorted(made_units) == [0, 2]
    assert counted['reused'] == 20
    expected = [fields['id'] for fields, _ in [*pictures[:5], *pictures[:14], *pictures[20:]]]
    assert rows_of(second)['image_id'].to_pylist() == expected
    after = contents(tmp_path / 'cache')
    assert len(after) == 1 + 3 * 4  # the parts of what is there no more are gone
    assert {first.parts[0].name, first.parts[2].name} < {part.name for part in second.parts}
    assert sum(before.get(path) == digest for path, digest in after.items()) == 6


@pytest.mark.beam
def test_a_job_that_failed_goes_on_where_it_stopped(shards, tmp_path, monkeypatch):
    whole, _ = make(shards, tmp_path / 'whole')
    made, write_part = [], features_job.write_part

    def fail_at_the_third(items, config, number, *rest):
        if len(made) == 2:
            raise OSError('disk full')
        made.append(number)
        return write_part(items, config, number, *rest)

    monkeypatch.setattr(features_job, 'write_part', fail_at_the_third)
    with pytest.raises(OSError, match='disk full'):
        make(shards, tmp_path / 'cache')
    assert len(set(made)) == 2
    stopped = contents(tmp_path / 'cache')
    assert len(stopped) == 6  # two parts of three views
    with pytest.raises(InputError, match='holds no finished features'):
        read_cache(str(tmp_path / 'cache'))
    monkeypatch.setattr(features_job, 'write_part', write_part)
    cache, counted = make(shards, tmp_path / 'cache')
    assert counted['reused'] == 20
    assert cache.parts == whole.parts
    assert contents(tmp_path / 'cache') == contents(tmp_path / 'whole')
    assert stopped.items() <= contents(tmp_path / 'cache').items()


@pytest.mark.beam
def test_a_view_that_is_missing_is_made_again_with_its_unit(shards, tmp_path, made_units):
    cache, _ = make(shards, tmp_path / 'cache')
    before = contents(tmp_path / 'cache')
    (tmp_path / 'cache' / view_path(2, cache.parts[1].name)).unlink()
    del made_units[:]
    make(shards, tmp_path / 'cache')
    assert made_units == [1]
    assert contents(tmp_path / 'cache') == before


@pytest.mark.beam
def test_repeated_bundles_change_nothing(shards, tmp_path):
    once, _ = make(shards, tmp_path / 'once')
    twice, _ = make(shards, tmp_path / 'twice', beam_args=[REPEATED])
    assert once.parts == twice.parts
    assert contents(tmp_path / 'once') == contents(tmp_path / 'twice')


@pytest.mark.beam
def test_what_could_not_be_read_is_tried_again(shards, tmp_path, pictures):
    """A broken end, and then none though neither size nor time of the file tell; rejects of before are gone."""
    shard = shards / '1.tar'
    whole, times = shard.read_bytes(), shard.stat()
    shard.write_bytes(whole[:-4000] + bytes(4000)[:-1] + b'x')
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    cache, _ = make(shards, tmp_path / 'cache')
    assert cache.parts[1].reasons.keys() == {BROKEN_SHARD}
    shard.write_bytes(whole)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    cache, counted = make(shards, tmp_path / 'cache')
    assert not cache.parts[1].reasons
    assert counted == {'records_read': 30, 'pictures': 30, 'reused': 20}
    assert not list((tmp_path / 'cache').rglob('rejects/*'))


@pytest.mark.beam
def test_features_of_another_kind_are_refused_and_unfinished_ones_discarded(shards, tmp_path):
    make(shards, tmp_path / 'cache')
    other = FeatureKey(Resizing(32), KEY.backbone, '', KEY.groups, KEY.view_groups, SEEDS)
    with pytest.raises(InputError, match=r"features of another kind: resizing {'size': 64, .* not {'size': 32"):
        feature_cache.check_cache_folder(str(tmp_path / 'cache'), other)
    feature_cache.check_cache_folder(str(tmp_path / 'cache'), KEY)
    (tmp_path / 'cache' / 'features.json').unlink()
    feature_cache.check_cache_folder(str(tmp_path / 'cache'), other)
    make(shards, tmp_path / 'cache', other)
    make(shards, tmp_path / 'new', other)
    assert contents(tmp_path / 'cache') == contents(tmp_path / 'new')


def test_a_key_covers_all_that_makes_features():
    others = [
        FeatureKey(Resizing(64, 'pad'), *list(KEY.__dict__.values())[1:]),
        *(
            FeatureKey(**{**KEY.__dict__, name: value})
            for name, value in {
                'backbone': 'MobileNet',
                'backbone_digest': 'f' * 64,
                'groups': ('edges',),
                'view_groups': ('edges',),
                'view_seeds': (11, 13),
            }.items()
        ),
    ]
    assert len({KEY.fingerprint, *(key.fingerprint for key in others)}) == 7
    assert FeatureKey.from_json(json.loads(json.dumps(KEY.to_json()))) == KEY
    a, b = (FeatureKey(SIZE, path, 'f' * 64, ('top',)) for path in ('/a/mine.keras', '/b/yours.keras'))
    assert a.fingerprint == b.fingerprint


def test_views_are_those_that_trainings_without_these_labels_need():
    spec = CodeSpec((Segment('fine', 8, ('top', 'mid')), Segment('look', 8, ('color', 'edges'))))
    assert views_for(spec, (), 3, 5) == (('edges', 'color', 'mid', 'top'), view_seeds(Training(seed=5, views=3)))
    assert views_for(spec, ['fine'], 2, 5)[0] == ('edges', 'color')
    assert views_for(spec, ['fine', 'look'], 2, 5) == ((), [])
    assert views_for(spec, (), 0, 5) == ((), [])


# Training on a cache


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 40), st.integers(0, 50))
def test_the_rows_drawn_are_the_records_that_a_training_on_images_draws(counts, size, seed):
    units = [[Record(f'{u}/{i}', b'', Source('', '')) for i in range(count)] for u, count in enumerate(counts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('pipelines.inputs.sampling.read_unit', lambda unit, _: iter(unit))
        kept, _ = sample_records(units, OPTIONS, size, seed, lambda record: record.image_id)
    ids = [record.image_id for unit in units for record in unit]
    assert [ids[row] for row in draw_rows(counts, size, seed)] == kept


@pytest.mark.beam
def test_features_are_read_in_the_order_drawn(shards, tmp_path):
    cache, _ = make(shards, tmp_path / 'cache')
    spec = CodeSpec((Segment('item', 4, ('color', 'edges')), Segment('look', 4, ('color',))))
    drawn = draw_rows([10, 10, 10], 17, 3)
    features, training = load_features(cache, ['edges', 'color'], spec, Training(seed=3, views=2), 17)
    clean = rows_of(cache)
    for name in ('edges', 'color'):
        np.testing.assert_array_equal(features.groups[name], vectors(clean, name)[drawn])
    assert training.method == 'ridge'
    assert len(features.views) == 2
    np.testing.assert_array_equal(features.views[1]['color'], vectors(rows_of(cache, 2), 'color')[drawn])
    values = [dict(row)['item'] for row in clean['labels'].to_pylist()]
    assert list(features.labels) == ['coarse', 'fine', 'item']
    level = features.labels['item']
    found = [[level.names[c] for c in level.classes[a:b]] for a, b in zip(level.starts, level.starts[1:], strict=False)]
    assert found == [values[row] for row in drawn]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with `shards`, and a `cache` of them by the command."""
    folder = tmp_path_factory.mktemp('trained')
    pictures = catalogue_pictures(60)
    (folder / 'shards').mkdir()
    for i in range(4):
        write_tar(folder / 'shards' / f'{i}.tar', tar_members(pictures[15 * i : 15 * i + 15]))
    options = ('--segments', 'coarse=6,look=8', '--input-size', 32, '--views', 2)
    succeed('features', '--images', folder / 'shards', '--output', folder / 'cache', *options)
    return folder


@pytest.mark.beam
@pytest.mark.tf
@pytest.mark.parametrize('method', ['itq', 'ridge', 'ortho'])
@pytest.mark.parametrize('most', [40, 100])
def test_without_views_a_training_on_features_is_the_training_on_images(trained, tmp_path, method, most):
    options = ('--max-images', most, '--segments', 'coarse=6', '--seed', 5, '--method', method)
    images = ('--images', trained / 'shards', '--input-size', 32)
    succeed('train', '--features', trained / 'cache', '--model', tmp_path / 'a', *options)
    succeed('train', *images, '--model', tmp_path / 'b', *options)
    a, b = (HashModel.load(tmp_path / name) for name in 'ab')
    assert a.fingerprint == b.fingerprint
    assert a.training == b.training
    assert a.training['images'] == min(most, 60)


@pytest.mark.beam
@pytest.mark.tf
def test_views_of_the_cache_are_what_unlabelled_segments_learn_from(trained, tmp_path, capsys):
    succeed('train', '--features', trained / 'cache', '--model', tmp_path / 'model', '--segments', 'look=8')
    model = HashModel.load(tmp_path / 'model')
    assert (model.spec.names, model.extractor.size) == (('look',), 32)
    data = catalogue_pictures(1)[0][1]
    assert model.encode(model.decode(data).pixels[None]).shape == (1, 1)


@pytest.mark.beam
@pytest.mark.tf
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('--segments look=8 --views 3', 'the training needs 3 views; .* has 2'),
        ('--input-size 96', '--input-size is 96; .*cache was made with 32'),
        ('--resize pad', '--resize is pad; .*cache was made with squash'),
        ('--backbone MobileNet', '--backbone is MobileNet; .*cache was made with efficientnet_lite0'),
        ('--labels coarse', '--labels tells how images are read; --features has them read already'),
        ('--finetune-blocks 1', '--finetune-blocks needs --images'),
    ],
)
def test_a_training_that_does_not_fit_the_features_is_refused(trained, tmp_path, capsys, options, message):
    segments = [] if '--segments' in options else ['--segments', 'look=8']
    command = ['train', '--features', f'{trained}/cache', '--model', f'{tmp_path}/m', *segments, *options.split()]
    assert main(command) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / 'm').exists()


@pytest.mark.beam
@pytest.mark.tf
def test_features_without_the_views_wanted_or_by_other_weights_are_refused(shards, tmp_path, trained, capsys):
    cache, _ = make(shards, tmp_path / 'cache')
    assert main(['train', '--features', cache.folder, '--model', f'{tmp_path}/m', '--segments', 'fine=8']) == 2
    assert re.search('segment fine reads the features top, high, mid; .* has edges, color', capsys.readouterr().err)
    spec = CodeSpec((Segment('look', 4, ('edges',)),))
    with pytest.raises(InputError, match=r'needs augmented views of edges; .* has views of color: make the features'):
        load_features(cache, ['edges'], spec, Training(), 10)
    copy = shutil.copytree(trained / 'cache', tmp_path / 'copy')
    described = json.loads((copy / 'features.json').read_text())
    described['key']['backbone_digest'] = 'f' * 64
    described['fingerprint'] = FeatureKey.from_json(described['key']).fingerprint
    (copy / 'features.json').write_text(json.dumps(described))
    assert main(['train', '--features', str(copy), '--model', f'{tmp_path}/m', '--segments', 'look=4']) == 2
    assert 'are not those that made the features' in capsys.readouterr().err
    described['key']['features_version'] = 0
    described['fingerprint'] = 'f' * 64
    (copy / 'features.json').write_text(json.dumps(described))
    with pytest.raises(InputError, match='by another version of grainhash'):
        read_cache(str(copy))


@pytest.mark.beam
@pytest.mark.tf
def test_a_damaged_part_is_named(trained, tmp_path, capsys):
    copy = shutil.copytree(trained / 'cache', tmp_path / 'copy')
    part = copy / view_path(0, read_cache(str(copy)).parts[2].name)
    part.write_bytes(part.read_bytes()[:-1000])
    command = ['train', '--features', str(copy), '--model', f'{tmp_path}/m', '--segments', 'look=4']
    assert main(command) == 1
    assert f'cannot read {part}' in capsys.readouterr().err


@pytest.mark.beam
@pytest.mark.tf
def test_folders_of_other_things_are_refused(trained, tmp_path, capsys):
    images = ['--images', str(trained / 'shards')]
    (tmp_path / 'notes').mkdir()
    (tmp_path / 'notes' / 'todo.txt').write_text('tidy up')
    for out, message in (
        (tmp_path / 'notes', 'holds todo.txt and no features'),
        (tmp_path / 'notes' / 'todo.txt', 'is a file'),
        (trained / 'cache', 'features of another kind'),
    ):
        assert main(['features', *images, '--output', str(out)]) == 2
        assert message in capsys.readouterr().err
    assert main(['train', '--features', str(tmp_path / 'notes'), '--model', str(tmp_path / 'm')]) == 2
    assert 'holds no finished features' in capsys.readouterr().err
    assert main(['features', *images, '--output', str(tmp_path / 'new'), '--views', '-1']) == 2
    assert '--views is -1' in capsys.readouterr().err


# Other runners, and being killed


@pytest.mark.beam
@pytest.mark.tf
@pytest.mark.process
@pytest.mark.parametrize('options', [TWO_PROCESSES, PORTABLE], ids=['two processes', 'portable runner'])
def test_other_runners_write_the_same_bytes(trained, tmp_path, options):
    wanted = ('--segments', 'coarse=6,look=8', '--input-size', 32, '--views', 2)
    done = start('features', '--images', trained / 'shards', '--output', tmp_path / 'cache', *wanted, *options)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / 'cache') == contents(trained / 'cache')


@pytest.mark.process
def test_a_killed_job_keeps_what_it_has_and_goes_on(tmp_path, pictures):
    (tmp_path / 'shards').mkdir()
    for i in range(8):
        write_tar(tmp_path / 'shards' / f'{i}.tar', tar_members(pictures))
    images = ('--images', tmp_path / 'shards', '--input-size', 32, '--segments', 'look=8')
    command = ('features', *images, '--output', tmp_path / 'cache')
    with subprocess.Popen(
        [sys.executable, '-m', 'grainhash', *map(str, command)], cwd=ROOT, stderr=subprocess.PIPE
    ) as job:
        deadline = time.monotonic() + 300
        while not list(tmp_path.rglob('view=0/*.parquet')) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert job.poll() is None, 'the job ended before it could be killed'
        job.send_signal(signal.SIGKILL)
        job.communicate(timeout=60)
    kept = contents(tmp_path / 'cache')
    assert any(path.startswith('view=0') for path in kept)
    assert 'features.json' not in kept
    done = start(*command, timeout=400)
    assert done.returncode == 0, done.stderr
    assert 'features of 240 of 240 pictures, 3 views each; ' in done.stderr
    assert 'were there already' in done.stderr
    after = contents(tmp_path / 'cache')
    assert len(after) == 1 + 8 * 4
    assert {p: d for p, d in kept.items() if p.endswith('.parquet')}.items() <= after.items()
