"""`grainhash train`: the sample of records that a model is fitted on, and what is told and written of a fit."""

import collections
import contextlib
import io
import json
import re
import tarfile
import unittest.mock

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from hashing_model.codes.spec import CodeSpec
from hashing_model.images.decode import NOT_AN_IMAGE, decode
from hashing_model.model import HashModel
from hashing_model.networks.loop import Progress
from pipelines.cli.main import main
from pipelines.inputs import shards
from pipelines.inputs.options import ReadOptions
from pipelines.inputs.sampling import MAX_UNITS, draw_units, sample_images, sample_records
from pipelines.inputs.shards import WorkUnit, list_units, read_unit
from pipelines.records import Record, Reject, Source
from pipelines.training.training_log import (
    CURVES_FILE,
    TRAINING_FILE,
    TrainingLog,
    describe_training,
    write_training,
)
from tests.helpers.make_index import catalogue_pictures, tar_members, write_tar
from tests.helpers.make_models import SIZE, catalogue_pixels, encoded_pictures, fit_look

OPTIONS = ReadOptions()


def write_shards(folder, counts):
    """Tar shards of `counts` records each, with ids `0`, `1`, ... over all of them."""
    number = 0
    for shard, count in enumerate(counts):
        with tarfile.open(folder / f'{shard:02}.tar', 'w') as tar:
            for _ in range(count):
                info = tarfile.TarInfo(f'{number}.jpg')
                info.size = 3
                tar.addfile(info, io.BytesIO(b'abc'))
                number += 1
    return list_units([str(folder)], OPTIONS)


def itself(record):
    return record


def test_every_record_is_as_likely_as_any_other(tmp_path):
    """Chi-square over seeds: 24 records in unequal shards, samples of 6, so each is expected in a quarter."""
    units = write_shards(tmp_path, (3, 14, 7))
    seeds = 400
    times = collections.Counter()
    for seed in range(seeds):
        kept, rejects = sample_records(units, OPTIONS, 6, seed, itself)
        ids = [r.image_id for r in kept]
        assert len(set(ids)) == 6
        assert rejects == []
        times.update(ids)
    expected = seeds * 6 / 24
    chi_square = sum((times[str(i)] - expected) ** 2 / expected for i in range(24)) / (1 - 6 / 24)
    assert chi_square < 55  # 23 degrees of freedom: once in 5000 sets of seeds
    assert set(times) == {str(i) for i in range(24)}


def test_all_records_are_kept_when_they_are_few(tmp_path):
    units = write_shards(tmp_path, (3, 4))
    for size in (7, 8, 100):
        kept, _ = sample_records(units, OPTIONS, size, 0, itself)
        assert sorted(r.image_id for r in kept) == [str(i) for i in range(7)]
    assert Record('4', b'abc', Source(units[1].paths[0], '4.jpg')) in sample_records(units, OPTIONS, 100, 0, itself)[0]


def test_a_sample_is_never_larger_than_asked_and_a_seed_gives_one_sample(tmp_path):
    units = write_shards(tmp_path, (9, 9))
    for size in range(1, 18):
        assert len(sample_records(units, OPTIONS, size, size, itself)[0]) == size
    samples = [[r.image_id for r in sample_records(units, OPTIONS, 5, seed, itself)[0]] for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]


def test_of_many_units_only_some_are_read(tmp_path):
    units = write_shards(tmp_path, [1] * (MAX_UNITS + 16))
    samples = [{r.image_id for r in sample_records(units, OPTIONS, 1000, seed, itself)[0]} for seed in range(12)]
    assert {len(sample) for sample in samples} == {MAX_UNITS}
    assert set.union(*samples) == {str(i) for i in range(MAX_UNITS + 16)}  # other units with other seeds


def test_of_files_and_row_groups_sorted_by_class_all_classes_are_drawn(tmp_path):
    """As folders of classes are, and Parquet made of them."""
    names = [f'{kind:02}/{i}' for kind in range(50) for i in range(20)]
    for name in names:
        (tmp_path / 'files' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'files' / f'{name}.jpg').write_bytes(b'abc')
    rows = pa.table({'id': names, 'image': [b'abc'] * len(names)})
    (tmp_path / 'rows').mkdir()
    for number in range(10):
        pq.write_table(rows.slice(100 * number, 100), tmp_path / 'rows' / f'{number}.parquet', row_group_size=1)
    for kind in ('files', 'rows'):
        units = list_units([str(tmp_path / kind)], OPTIONS)
        with unittest.mock.patch.multiple(shards, MAX_UNIT_FILES=10, MAX_UNIT_ROWS=10):
            small = list_units([str(tmp_path / kind)], OPTIONS)
        assert len(units) <= 10 < MAX_UNITS < len(small)
        drawn = draw_units(small, np.random.default_rng(0))
        ids = [r.image_id for unit in drawn for r in read_unit(unit, OPTIONS)]
        assert len(set(ids)) == len(ids) == pytest.approx(1000 * MAX_UNITS / len(small), rel=0.1)
        assert len({i.split('/')[0] for i in ids}) == 50
        assert len(draw_units(units, np.random.default_rng(0))) == len(units)


def test_records_that_cannot_be_read_are_counted_and_take_no_place(tmp_path):
    units = write_shards(tmp_path, (5, 5))
    content = (tmp_path / '01.tar').read_bytes()
    (tmp_path / '01.tar').write_bytes(content[: 2 * 1024 + 700])  # a header and a block per record
    units.append(WorkUnit(2, 'files', (str(tmp_path / 'gone.jpg'),), root=str(tmp_path)))
    read = [item for unit in units for item in read_unit(unit, OPTIONS)]
    bad = [item for item in read if isinstance(item, Reject)]
    kept, rejects = sample_records(units, OPTIONS, 100, 3, itself)
    assert {r.image_id for r in kept} == {r.image_id for r in read if isinstance(r, Record)}
    assert sorted(r.reason for r in rejects) == sorted(r.reason for r in bad) == ['broken_shard', 'unreadable_file']


def test_a_record_that_does_not_decode_takes_no_place(tmp_path):
    pictures = encoded_pictures(40)
    bad = {3, 31, 32, 38}
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        for number, data in enumerate(pictures):
            content = b'none' if number in bad else data
            info = tarfile.TarInfo(f'{number}.jpg')
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    units = list_units([str(tmp_path)], OPTIONS)
    kept, rejects = sample_records(units, OPTIONS, 100, 0, lambda record: decode(record.data, SIZE).pixels)
    expected = [decode(d, SIZE).pixels for i, d in enumerate(pictures) if i not in bad]
    np.testing.assert_array_equal(np.stack(kept), np.stack(expected))
    assert [(r.image_id, r.reason) for r in rejects] == [(str(i), NOT_AN_IMAGE) for i in sorted(bad)]
    few, rejects = sample_records(units, OPTIONS, 4, 0, lambda record: decode(record.data, SIZE).pixels)
    assert len(few) == 4
    assert NOT_AN_IMAGE in {r.reason for r in rejects}


# Images and labels


def labelled(count=24, unlabelled=()):
    """Pictures of the catalogue; some without a label `fine`."""
    found = catalogue_pictures(count)
    for i in unlabelled:
        del found[i][0]['labels']['fine']
    return found


def sampled(path, size=100, seed=0):
    return sample_images(list_units([str(path)], OPTIONS), OPTIONS, size, seed, SIZE)


def test_images_come_with_the_labels_of_every_level(tmp_path):
    pictures = labelled(24, unlabelled=(0, 5))
    write_tar(tmp_path / 'a.tar', tar_members(pictures))
    sample = sampled(tmp_path)
    assert set(sample.labels) == {'coarse', 'fine', 'item'}
    np.testing.assert_array_equal(sample.images, [decode(data, SIZE).pixels for _, data in pictures])
    for name, level in sample.labels.items():
        values = [fields['labels'].get(name) for fields, _ in pictures]
        found = [[level.names[c] for c in level.take(np.array([i])).classes] for i in range(24)]
        assert found == [[v] if v else [] for v in values]
    assert sample.captions == [fields['caption'] for fields, _ in pictures]
    few = sampled(tmp_path, 7, seed=1)
    assert len(few.images) == len(few.captions) == 7
    assert all(len(level) == 7 for level in few.labels.values())
    place = next(i for i, pixels in enumerate(sample.images) if np.array_equal(pixels, few.images[3]))
    assert few.labels['item'].names[few.labels['item'].classes[3]] == pictures[place][0]['labels']['item']


def test_the_digest_follows_ids_pictures_and_labels(tmp_path):
    made = [labelled(4), labelled(4), labelled(4), labelled(4), labelled(4), labelled(4)[::-1]]
    made[2][0][0]['id'] = 'other'
    made[3][1] = (made[3][1][0], made[3][2][1])
    made[4][2][0]['labels']['fine'] = 'other'
    digests = []
    for number, pictures in enumerate(made):
        (tmp_path / str(number)).mkdir()
        write_tar(tmp_path / str(number) / 'a.tar', tar_members(pictures))
        digests.append(sampled(tmp_path / str(number)).digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 5
    assert len(digests[0]) == 64


# What is told and written


def test_a_bar_on_a_terminal_shows_the_stage_the_loss_and_the_score():
    console = Console(file=(shown := io.StringIO()), force_terminal=True, width=120)
    with TrainingLog(console) as log:
        log.report(Progress('features', 3, 3))
        log.report(Progress('heads', 5, 10, 1.23456, 0.5))
        log._bar.refresh()
        text = shown.getvalue()
    for part in ('features', 'heads', 'loss 1.235, validation mAP 0.500'):
        assert part in text
    assert shown.getvalue().endswith('\x1b[2K')  # the bar is wiped away


def test_nothing_is_shown_where_there_is_no_terminal():
    console = Console(file=(shown := io.StringIO()), force_terminal=False)
    with TrainingLog(console) as log:
        log.report(Progress('heads', 5, 10, 1.0))
    assert shown.getvalue() == ''


@pytest.mark.tf
def test_the_logs_of_tensorboard_hold_every_step(tmp_path):
    import tensorflow
    from tensorflow.python.summary.summary_iterator import summary_iterator

    with TrainingLog(Console(file=io.StringIO()), str(tmp_path / 'logs')) as log:
        log.report(Progress('features', 1, 1))
        log.report(Progress('heads', 1, 2, 0.5))
        log.report(Progress('heads', 2, 2, 0.25, 0.75))
    (path,) = (tmp_path / 'logs').iterdir()
    found = [
        (value.tag, event.step, float(tensorflow.make_ndarray(value.tensor)))
        for event in summary_iterator(str(path))
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == 'scalars'
    ]
    assert found == [('heads/loss', 1, 0.5), ('heads/loss', 2, 0.25), ('heads/validation mAP', 2, 0.75)]


def strict_json(path):
    def refuse(name):
        raise ValueError(name)

    return json.loads(path.read_text(encoding='utf-8'), parse_constant=refuse)


def test_a_training_without_epochs_has_no_curves(tmp_path):
    model = fit_look(catalogue_pixels(12), 'random')
    write_training(
        tmp_path, model, {'heads': [{'loss': 1.5, 'seconds': 0.1, 'score': 0.2}, {'loss': 1.0, 'seconds': 0.1}]}
    )
    height, width, _ = cv2.imread(str(tmp_path / CURVES_FILE)).shape
    assert (width, height) == (900, 260)
    described = strict_json(tmp_path / TRAINING_FILE)
    assert described['history']['heads'][0]['score'] == 0.2
    write_training(tmp_path, model, {})
    assert not (tmp_path / CURVES_FILE).exists()
    assert strict_json(tmp_path / TRAINING_FILE) == {
        'method': 'random',
        'seed': 0,
        'images': 12,
        'shares': model.training['shares'],
        'fingerprint': model.fingerprint,
        'history': {},
    }
    assert re.fullmatch(r'look: made of \d\d % edges, \d\d % color', *describe_training(model))


def test_images_without_labels_and_validation_are_told():
    class Model:
        spec = CodeSpec.parse('coarse=8,fine=8')
        training = {
            'images': 4000,
            'labelled': {'coarse': 4000, 'fine': 2000},
            'validation_map': {'fine': 0.41256},
            'shares': {'fine': {'top': 0.604, 'low': 0.396}, 'coarse': {'top': 1.0}},
            'text': {'images': 3999, 'words': 1200},
        }

    assert describe_training(Model) == [
        '2,000 of 4,000 images have no label fine: it did not learn from them',
        'coarse: made of 100 % top',
        'fine: mAP 0.413 on images held out; made of 60 % top, 40 % low',
        'text: 1,200 words of the captions and labels of 3,999 images',
    ]


# The command


@pytest.fixture(scope='module')
def shard(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shards')
    return write_tar(folder / 'a.tar', tar_members(labelled(48, unlabelled=(3, 7, 11))))


def run_train(shard, *options):
    """The exit code and what was told."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        code = main(['train', '--images', shard, '--input-size', '64', *map(str, options)])
    return code, told.getvalue().strip().splitlines()


@pytest.fixture(scope='module')
def trained(shard, tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    options = ('--segments', 'coarse=8,fine=16,look=16', '--epochs', 3, '--views', 1, '--tensorboard', folder / 'logs')
    return folder, *run_train(shard, '--model', folder / 'model', '--method', 'ortho', *options)


@pytest.mark.tf
def test_labels_are_learned_by_ridge_unless_told_otherwise(shard, tmp_path):
    code, told = run_train(shard, '--model', tmp_path / 'model', '--segments', 'coarse=8,fine=16,look=16', '--views', 1)
    assert code == 0
    assert told[-1].startswith(f'{tmp_path / "model"}: ridge+lda on 48 images, ')
    assert sorted(p.name for p in (tmp_path / 'model').iterdir()) == ['arrays.npz', 'model.json', 'training.json']


@pytest.mark.tf
def test_a_model_is_trained_on_the_labels_there_are(trained):
    folder, code, told = trained
    assert code == 0
    assert told[0] == '3 of 48 images have no label fine: it did not learn from them'
    segments = 'coarse 8, fine 16, look 16 bits'
    assert told[-1].startswith(f'{folder / "model"}: ortho+lda on 48 images, {segments}, fingerprint ')
    model = HashModel.load(folder / 'model')
    assert told[-1].split('fingerprint ')[1].startswith(model.fingerprint[:12])
    assert model.training['method'] == 'ortho+lda'
    assert model.training['labelled'] == {'coarse': 48, 'fine': 45}
    images = np.stack([decode(data, SIZE).pixels for _, data in catalogue_pictures(48)])
    codes = model.encode(images)
    assert codes.shape == (48, 5)
    assert len(np.unique(codes, axis=0)) > 40


@pytest.mark.tf
def test_the_training_is_written_beside_the_model(trained):
    folder, _, _ = trained
    names = sorted(p.name for p in (folder / 'model').iterdir())
    assert names == ['arrays.npz', 'model.json', 'training.json', 'training.png']  # and no checkpoint
    described = strict_json(folder / 'model' / TRAINING_FILE)
    assert described['fingerprint'] == HashModel.load(folder / 'model').fingerprint
    assert len(described['history']['heads']) == 3
    assert set(described['gates']['fine']) == {'top', 'high', 'mid'}
    strict_json(folder / 'model' / 'model.json')
    height, width, _ = cv2.imread(str(folder / 'model' / CURVES_FILE)).shape
    assert width == 900
    assert 200 < height < 600
    assert [p.name for p in (folder / 'logs').iterdir() if p.name.startswith('events.out.tfevents')]


@pytest.mark.tf
def test_settings_that_change_nothing_are_told(shard, tmp_path):
    options = ('--segments', 'fine=8', '--epochs', 2, '--balance', 0.1)
    code, told = run_train(shard, '--model', tmp_path / 'model', *options)
    assert code == 0
    for option in ('epochs', 'balance'):
        assert f'--{option} changed nothing: it is for ortho, csq, greedy' in told
    code, told = run_train(shard, '--model', tmp_path / 'model', '--method', 'csq', *options)
    assert code == 0
    assert not any('changed nothing' in line for line in told)


@pytest.mark.tf
def test_methods_without_labels_still_train(shard, tmp_path):
    for method in ('itq', 'lda'):
        code, told = run_train(shard, '--model', tmp_path / 'model', '--method', method, '--segments', 'look=16')
        assert code == 0
        assert len(told) == 3
        assert re.fullmatch(r'text: \d+ words of the captions and labels of 48 images', told[1])
        assert told[0].startswith('look: made of ')
        assert f'model: {method} on 48 images, look 16 bits' in told[2]
    names = sorted(p.name for p in (tmp_path / 'model').iterdir())
    assert names == ['arrays.npz', 'model.json', 'training.json']


@pytest.mark.tf
def test_labels_that_no_segment_learns_from_are_told(shard, tmp_path):
    code, told = run_train(shard, '--model', tmp_path / 'model', '--segments', 'look=16')
    assert code == 0
    assert (
        told[0] == 'no segment is named after a level of the labels (coarse, fine, item): no bits are learned from them'
    )


@pytest.mark.tf
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('--epochs 0', 'epochs is 0; at least 1 is needed'),
        ('--learning-rate 0', 'learning-rate is 0.0; a number above 0 is needed'),
        ('--learning-rate nan', 'learning-rate is nan'),
        ('--views 0', 'views is 0; at least 1 is needed'),
        ('--balance -1', 'balance is -1.0; at least 0 is needed'),
        ('--decorrelation inf', 'decorrelation is inf'),
        ('--seed -1', 'seed is -1; at least 0 is needed'),
        ('--finetune-blocks -1', 'finetune-blocks is -1; at least 0 is needed'),
        ('--finetune-epochs 0', 'finetune-epochs is 0; at least 1 is needed'),
        ('--finetune-blocks 1 --method itq', 'finetune-blocks needs labels and one of ortho, csq, greedy'),
        ('--segments look=16 --finetune-blocks 1', 'finetune-blocks needs labels'),
        (
            '--method csq --segments look=16',
            'the labels have the levels coarse, fine, item and the code has the segments look',
        ),
        ('--segments fine=3,look=8', 'classes in 3 bits; give the segment'),
        ('--method lda --segments look=64', '64 bits need more than 64 training images; there are 48'),
        ('--segments look=16 --learning-rate 1e30 --method contrastive', 'look: the loss is .*lower --learning-rate'),
    ],
)
def test_bad_options_are_told_in_a_line_and_leave_nothing(shard, tmp_path, options, message):
    code, told = run_train(shard, '--model', tmp_path / 'model', *options.split())
    assert code == 2
    (line,) = (line for line in told if line.startswith('grainhash: error:'))
    assert told[-1] == line
    assert re.search(message, line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.tf
def test_training_goes_on_after_an_interruption(shard, tmp_path, monkeypatch):
    options = ('--segments', 'coarse=8', '--epochs', 2, '--finetune-blocks', 1, '--finetune-epochs', 2)
    assert run_train(shard, '--model', tmp_path / 'whole', *options)[0] == 0
    report = TrainingLog.report

    def interrupting(log, progress):
        report(log, progress)
        if (progress.stage, progress.step) == ('fine-tuning', 2):
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingLog, 'report', interrupting)
    assert run_train(shard, '--model', tmp_path / 'model', *options) == (130, ['grainhash: error: interrupted'])
    assert [p.name for p in (tmp_path / 'model').iterdir()] == ['checkpoint.npz']
    steps = []
    monkeypatch.setattr(TrainingLog, 'report', lambda _, p: steps.append(p.step) if p.stage == 'fine-tuning' else None)
    assert run_train(shard, '--model', tmp_path / 'model', *options, '--verbose')[0] == 0
    assert steps == [2]
    models = [HashModel.load(tmp_path / name) for name in ('whole', 'model')]
    assert models[0].backbone_digest == models[1].backbone_digest
    assert sorted(p.name for p in (tmp_path / 'model').iterdir()) == [
        'arrays.npz',
        'backbone.keras',
        'model.json',
        'training.json',
        'training.png',
    ]
