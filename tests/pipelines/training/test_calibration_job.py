"""Calibration: thresholds at the catalogue's means, whatever way the catalogue is cut."""

import dataclasses
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing_model.codes.bits import unpack_bits
from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.errors import InputError
from hashing_model.images.decode import Resizing, decode
from hashing_model.model import HashModel
from hashing_model.networks.loop import Training
from hashing_model.training.fit import fit
from pipelines.cli.main import main
from pipelines.inputs.options import ReadOptions
from pipelines.inputs.shards import list_units, read_unit
from pipelines.training import calibration_job
from pipelines.training.calibration_job import AddTotals, Totals, imbalance, sum_unit
from tests.helpers.make_index import (
    PORTABLE,
    REPEATED,
    TWO_PROCESSES,
    catalogue_pictures,
    hand_model,
    start,
    succeed,
    tar_members,
    write_tar,
)
from tests.helpers.make_models import small_network


@pytest.fixture(scope='module')
def pictures():
    return catalogue_pictures(60)


@pytest.fixture(scope='module')
def folder(tmp_path_factory, pictures):
    """A folder with `shards` of 60 pictures and 3 bad records, a `model` whose bits are lopsided, and `calibrated`."""
    folder = tmp_path_factory.mktemp('calibrated')
    (folder / 'shards').mkdir()
    for i in range(4):
        write_tar(folder / 'shards' / f'{i}.tar', tar_members(pictures[15 * i : 15 * i + 15]))
    write_tar(folder / 'shards' / 'bad.tar', [('x.jpg', b''), ('y.jpg', b'no picture'), ('z.jpg', b'neither')])
    lopsided(pictures).save(folder / 'model')
    calibrate(folder / 'shards', folder / 'model', folder / 'calibrated')
    return folder


def lopsided(pictures):
    """A model of two segments whose activations are far from 0."""
    resizing = Resizing(64)
    pixels = np.stack([decode(data, resizing).pixels for _, data in pictures])
    spec = CodeSpec((Segment('fine', 9, ('shape', 'texture')), Segment('look', 12, ('edges', 'color'))))
    model = fit(pixels, training=Training(method='itq', seed=1), spec=spec, resizing=resizing)[0]
    shift = np.random.default_rng(0).normal(0, 2, 12)
    return model.calibrated({'fine': np.full(9, 0.5), 'look': shift})


def calibrate(images, model, out, *options):
    succeed('calibrate', '--images', images, '--model', model, '--output', out, *options)
    return HashModel.load(out)


def pixels_of(model, pictures):
    return np.stack([model.decode(data).pixels for _, data in pictures])


def by_numpy(model, pictures):
    """Activations of all pictures at once, float64 [N, bits]."""
    groups = model.extractor.features(pixels_of(model, pictures))
    return np.concatenate([x.astype(np.float64) for x in model.activations(groups).values()], axis=1)


@pytest.mark.beam
def test_thresholds_are_the_means_over_the_catalogue(folder, pictures):
    before, after = (HashModel.load(folder / name) for name in ('model', 'calibrated'))
    moved = np.concatenate([before.heads[name].offset - after.heads[name].offset for name in ('fine', 'look')])
    expected = by_numpy(before, pictures).mean(axis=0)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    np.testing.assert_allclose(by_numpy(after, pictures).mean(axis=0), 0, atol=1e-6)
    for name in ('fine', 'look'):
        np.testing.assert_array_equal(before.heads[name].weights, after.heads[name].weights)


@pytest.mark.beam
def test_bits_are_balanced_on_the_catalogue_and_the_model_says_so(folder, pictures):
    before, after = (HashModel.load(folder / name) for name in ('model', 'calibrated'))
    off = [
        np.abs(unpack_bits(model.encode(pixels_of(model, pictures)), 21).mean(axis=0) - 0.5).mean()
        for model in (before, after)
    ]
    assert off[0] > 0.3
    assert off[1] < 0.1
    about = after.training
    assert about['calibrated_on'] == 60
    assert about['calibration']['rejected'] == {'empty': 1, 'not_an_image': 2}
    assert about['calibration']['measured_on'] == 60
    np.testing.assert_allclose(about['calibration']['imbalance'], off, atol=0.001)
    assert about['method'] == before.training['method']


@pytest.mark.beam
def test_what_was_done_is_told(folder, tmp_path, capsys):
    calibrate(folder / 'shards', folder / 'model', tmp_path / 'out')
    lines = capsys.readouterr().err.splitlines()
    before, after = (HashModel.load(folder / name).fingerprint[:12] for name in ('model', 'calibrated'))
    assert lines[-3] == '3 records could not be used: 2 not_an_image, 1 empty'
    assert re.fullmatch(
        r'balance of fine, look: share of ones off 1/2 by 0\.[34]\d\d before, by 0\.0\d\d now '
        r'\(mean over bits, 60 images\)',
        lines[-2],
    )
    assert f'calibrated on 60 images, fingerprint {after} (was {before})' in lines[-1]


@pytest.mark.beam
def test_the_catalogue_may_be_cut_anyhow(folder, pictures, tmp_path):
    fingerprints = {HashModel.load(folder / 'calibrated').fingerprint}
    order = np.random.default_rng(0).permutation(60)
    for number, cut in enumerate(([60], [1] * 7 + [53], [20, 20, 20])):
        ends = np.cumsum([0, *cut])
        shards = tmp_path / str(number)
        shards.mkdir()
        for i in range(len(cut)):
            write_tar(shards / f'{i}.tar', tar_members([pictures[p] for p in order[ends[i] : ends[i + 1]]]))
        fingerprints.add(calibrate(shards, folder / 'model', tmp_path / f'out{number}', REPEATED).fingerprint)
    assert len(fingerprints) == 1


@pytest.mark.beam
def test_batches_have_no_part_in_the_means(folder):
    model = HashModel.load(folder / 'model')
    (unit,) = list_units([str(folder / 'shards' / '2.tar')], ReadOptions())
    made = [sum_unit(read_unit(unit, ReadOptions()), model, size) for size in (1, 4, 15, 100)]
    assert [t.pictures for t in made] == [15] * 4
    for other in made[1:]:
        np.testing.assert_array_equal(other.means, made[0].means)
        np.testing.assert_array_equal(other.hashes, made[0].hashes)


FLOATS = st.floats(-1e6, 1e6, width=32)


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=30), st.randoms(use_true_random=False), st.data())
def test_totals_are_the_same_in_any_order_and_grouping(rows, random, data):
    activations = np.array(rows, np.float64)
    hashes = np.arange(len(rows), dtype=np.uint64) * np.uint64(7)
    whole = Totals.of(activations, hashes)
    order = list(range(len(rows)))
    random.shuffle(order)
    cut = data.draw(st.integers(0, len(rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration_job, 'SAMPLE_ROWS', 5)
        adder, parts = AddTotals(2), []
        for places in (order[:cut], order[cut:]):
            total = adder.create_accumulator()
            for place in places:
                total = adder.add_input(total, Totals.of(activations[[place]], hashes[[place]]))
            parts.append(total)
        merged = adder.extract_output(adder.merge_accumulators(parts))
    assert merged.sums.tolist() == whole.sums.tolist()
    np.testing.assert_array_equal(merged.means, whole.means)
    np.testing.assert_allclose(merged.means, activations.mean(axis=0), atol=2**-24, rtol=1e-6)
    assert merged.hashes.tolist() == hashes[:5].tolist()
    np.testing.assert_array_equal(merged.sample, activations[:5].astype(np.float32))
    assert (merged.pictures, merged.records_read) == (len(rows), len(rows))


def test_sums_of_any_size_are_exact():
    one = Totals.of(np.full((4, 1), 2.0**37 + 2.0**-15), np.arange(4, dtype=np.uint64))
    total = Totals.none(1)
    for _ in range(1000):
        total = total.plus(one)
    assert total.sums[0] == 4000 * (2**61 + 2**9)  # beyond int64


def test_activations_that_are_no_numbers_are_refused():
    for bad in (np.nan, np.inf, 1e12):
        with pytest.raises(InputError, match='not numbers'):
            Totals.of(np.array([[0.0, bad]]), np.zeros(1, np.uint64))


def test_imbalance_is_half_for_constant_bits_and_nothing_for_even_ones():
    assert imbalance(np.ones((4, 3))) == imbalance(-np.ones((4, 3))) == 0.5
    assert imbalance(np.array([[1.0, -1.0], [-1.0, 1.0]])) == 0


@pytest.mark.beam
def test_an_index_refuses_the_queries_of_the_other_model(folder, tmp_path, capsys):
    names = ('model', 'calibrated')
    for own, other in (names, names[::-1]):
        index = tmp_path / own
        succeed('build', '--images', folder / 'shards', '--model', folder / own, '--index', index)
        ask = ['query', '--index', f'{index}', '--images', f'{folder}/shards/0.tar', '--output', f'{tmp_path}/o.jsonl']
        succeed(*ask, '--model', folder / own)
        (tmp_path / 'o.jsonl').unlink()
        capsys.readouterr()
        assert main([*ask, '--model', str(folder / other)]) == 2
        assert 'the model does not fit the index' in capsys.readouterr().err
        assert not (tmp_path / 'o.jsonl').exists()


@pytest.mark.beam
def test_places_that_hold_something_else_are_refused(folder, tmp_path, capsys):
    index = tmp_path / 'index'
    succeed('build', '--images', folder / 'shards', '--model', folder / 'model', '--index', index)
    (inside,) = index.glob('versions/*/model')
    before = {p: p.read_bytes() for p in [*inside.iterdir(), *(folder / 'model').iterdir()]}
    (tmp_path / 'notes').mkdir()
    (tmp_path / 'notes' / 'todo.txt').write_text('tidy up')
    capsys.readouterr()
    for model, out, message in (
        (folder / 'model', folder / 'model', 'is the model itself'),
        (folder / 'model', f'{folder}/shards/../model', 'is the model itself'),
        (folder / 'model', inside, 'belongs to an index'),
        (folder / 'model', tmp_path / 'notes', 'is not a model: it holds todo.txt'),
        (folder / 'model', tmp_path / 'notes' / 'todo.txt', 'is a file'),
        (tmp_path / 'notes', tmp_path / 'new', 'is not a model'),
    ):
        assert main(['calibrate', '--images', f'{folder}/shards', '--model', str(model), '--output', str(out)]) == 2
        assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert not (tmp_path / 'new').exists()


@pytest.mark.beam
def test_a_catalogue_of_bad_records_makes_no_model(folder, tmp_path, capsys):
    command = ['calibrate', '--images', f'{folder}/shards/bad.tar', '--model', f'{folder}/model', '--output']
    assert main([*command, f'{tmp_path}/out']) == 1
    assert 'none of 3 records could be used: 2 not_an_image, 1 empty' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.beam
def test_a_unit_or_a_record_that_is_lost_fails_the_job(folder, tmp_path, monkeypatch, capsys):
    command = ['calibrate', '--images', f'{folder}/shards', '--model', f'{folder}/model', '--output', f'{tmp_path}/out']
    true_sums = calibration_job.sum_unit
    for change, message in (({'units': 0}, '0 of 5 work units'), ({'pictures': 3}, 'records are missing')):
        monkeypatch.setattr(
            calibration_job, 'sum_unit', lambda *a, change=change: dataclasses.replace(true_sums(*a), **change)
        )
        assert main(command) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.fixture
def learned(folder, tmp_path):
    """The lopsided model as if `fine` had learned from labels, in a folder."""
    model = HashModel.load(folder / 'model')
    dataclasses.replace(model, training={**model.training, 'labelled': {'fine': 60}}).save(tmp_path / 'learned')
    return tmp_path / 'learned'


@pytest.mark.beam
@pytest.mark.parametrize(('options', 'moved'), [((), {'look'}), (('--segments', 'fine, look'), {'fine', 'look'})])
def test_what_has_learned_from_labels_is_moved_only_if_named(folder, learned, tmp_path, options, moved, capsys):
    made, given = calibrate(folder / 'shards', learned, tmp_path / 'out', *options), HashModel.load(learned)
    changed = {n for n in given.spec.names if not np.array_equal(made.heads[n].offset, given.heads[n].offset)}
    assert changed == moved
    assert f'balance of {", ".join(sorted(moved))}: ' in capsys.readouterr().err
    whole = HashModel.load(folder / 'calibrated')
    for name in moved:
        np.testing.assert_array_equal(made.heads[name].offset, whole.heads[name].offset)


@pytest.mark.beam
def test_segments_that_are_not_there_and_models_of_labels_alone_are_refused(folder, learned, tmp_path, capsys):
    command = ['calibrate', '--images', str(folder / 'shards'), '--output', str(tmp_path / 'out'), '--model']
    assert main([*command, str(learned), '--segments', 'look,coarse']) == 2
    assert "no segment 'coarse'; it has fine, look" in capsys.readouterr().err
    model = HashModel.load(learned)
    labelled = {'labelled': {'fine': 60, 'look': 60}}
    dataclasses.replace(model, training={**model.training, **labelled}).save(tmp_path / 'all')
    assert main([*command, str(tmp_path / 'all')]) == 2
    assert '--segments fine,look' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.beam
@pytest.mark.tf
def test_an_older_model_at_the_place_is_replaced_and_its_network_goes(folder, tmp_path, pictures):
    out = tmp_path / 'out'
    hand_model(pictures).save(out)
    (out / 'backbone.keras').write_bytes(b'of the older one')
    made = calibrate(folder / 'shards', folder / 'model', out)
    assert made.fingerprint == HashModel.load(folder / 'calibrated').fingerprint
    assert sorted(path.name for path in out.iterdir()) == ['arrays.npz', 'model.json']
    assert json.loads((out / 'model.json').read_text())['training']['calibrated_on'] == 60


@pytest.mark.beam
@pytest.mark.tf
def test_a_network_of_ones_own_goes_with_the_model(folder, pictures, tmp_path):
    path = small_network(tmp_path / 'mine.keras')
    resizing = Resizing(64)
    pixels = np.stack([decode(data, resizing).pixels for _, data in pictures])
    spec = CodeSpec((Segment('coarse', 5, ('top',)),))
    fit(pixels, training=Training(method='random'), spec=spec, resizing=resizing, backbone=str(path))[0].save(
        tmp_path / 'model'
    )
    path.unlink()
    made = calibrate(folder / 'shards', tmp_path / 'model', tmp_path / 'out')
    np.testing.assert_allclose(by_numpy(made, pictures).mean(axis=0), 0, atol=1e-5)
    made.check_backbone()
    assert (tmp_path / 'out' / 'backbone.keras').exists()


@pytest.mark.beam
@pytest.mark.process
@pytest.mark.parametrize('options', [TWO_PROCESSES, PORTABLE], ids=['two processes', 'portable runner'])
def test_other_runners_make_the_same_model(folder, tmp_path, options):
    command = ('calibrate', '--images', folder / 'shards', '--model', folder / 'model', '--output', tmp_path / 'out')
    done = start(*command, *options)
    assert done.returncode == 0, done.stderr
    assert HashModel.load(tmp_path / 'out').fingerprint == HashModel.load(folder / 'calibrated').fingerprint
