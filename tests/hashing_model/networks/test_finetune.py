"""Training the backbone along: what moves and what may not, and going on after a kill."""

import dataclasses
import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.errors import InputError
from hashing_model.features.backbone import SAVED, load_backbone
from hashing_model.features.fusion import Fusion
from hashing_model.heads.head import HashHead
from hashing_model.heads.ridge import fit_linear_ridge
from hashing_model.heads.supervision import supervise
from hashing_model.images.decode import Resizing
from hashing_model.keras_runtime import import_keras
from hashing_model.labels import LabelLevel
from hashing_model.model import HashModel
from hashing_model.networks import finetune as module
from hashing_model.networks.finetune import choose_trainable, finetune
from hashing_model.networks.head_network import START_VARIANCE, start_from
from hashing_model.networks.loop import Checkpoint, Training
from hashing_model.networks.supervised import BY_GRADIENTS, hash_network, segment_losses
from hashing_model.training.fit import fit
from tests.helpers.make_index import ROOT
from tests.helpers.make_models import catalogue_pixels

pytestmark = pytest.mark.tf

SIDE = 32
SPEC = CodeSpec((Segment('kind', 8, ('top', 'color')), Segment('look', 8, ('color',))))
TRAINING = Training('ortho', finetune_blocks=2, finetune_epochs=3, views=1, learning_rate=0.01)


def small_backbone(folder):
    """A network of four blocks with batch normalisation, random weights, as a .keras file."""
    keras = import_keras()
    keras.utils.set_random_seed(0)
    layers = [keras.Input((SIDE, SIDE, 3)), keras.layers.Rescaling(1 / 127, -1)]
    for i in range(4):
        layers += [
            keras.layers.Conv2D(6 + i, 3, 2, 'same', name=f'block{i}_conv'),
            keras.layers.BatchNormalization(name=f'block{i}_bn'),
            keras.layers.ReLU(name=f'block{i}_relu'),
        ]
    keras.Sequential(layers).save(folder / 'small.keras')
    return str(folder / 'small.keras')


def images_of(count=60, side=SIDE, seed=0):
    """Pictures of three kinds: stripes that lie, stripes that stand, squares; in any colours."""
    rng = np.random.default_rng(seed)
    kinds = np.arange(count) % 3
    wave = np.sign(np.sin(np.arange(side)[None] * rng.uniform(0.5, 1.2, (count, 1)) + rng.uniform(0, 6, (count, 1))))
    lying, standing = np.broadcast_to(wave[:, :, None], (count, side, side)), wave[:, None, :] + np.zeros((1, side, 1))
    shapes = np.choose(kinds[:, None, None], [lying, standing, lying * standing])[..., None]
    colors = rng.uniform(0, 255, (2, count, 1, 1, 3))
    return np.where(shapes > 0, *colors).astype(np.uint8), LabelLevel.from_values([[str(k)] for k in kinds])


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    return small_backbone(tmp_path_factory.mktemp('backbone'))


@pytest.fixture(scope='module')
def frozen(path):
    """Pictures, the scales of their features, what is trained towards, and the standardised features."""
    images, level = images_of()
    backbone = load_backbone(path, SIDE)
    from hashing_model.features import hand_features

    groups = {'top': backbone.taps(images)['top'], **hand_features(images, ['color'])}
    fusion = Fusion.fit(groups)
    supervision = supervise(SPEC, {'kind': level}, np.random.default_rng(0))
    fused = {name: fusion.fuse(groups, [name]) for name in groups}
    return images, fusion, supervision, fused


def weights_of(layers):
    return {f'{layer.name}/{v.name}': np.array(v) for layer in layers for v in layer.variables}


# Which layers


@pytest.fixture(scope='module')
def lite0():
    return load_backbone('efficientnet_lite0', 64).model


def trainable(model):
    return {layer.name for layer in model.layers if layer.trainable_weights}


@pytest.mark.parametrize('blocks', [1, 3])
def test_the_last_blocks_of_lite0_and_its_head_are_trained(lite0, blocks):
    choose_trainable(lite0, blocks)
    last = [f'block{i}_' for i in range(16 - blocks, 16)]
    convs = {layer.name for layer in lite0.layers if layer.weights and not layer.name.endswith('_bn')}
    assert trainable(lite0) == {name for name in convs if name.startswith((*last, 'head'))}
    assert len(trainable(lite0)) == 3 * blocks + 1


@pytest.mark.parametrize('blocks', [16, 17, 99])
def test_more_blocks_than_there_are_train_all(lite0, blocks):
    choose_trainable(lite0, blocks)
    convs = {layer.name for layer in lite0.layers if layer.weights and not layer.name.endswith('_bn')}
    assert trainable(lite0) == convs - ({'stem_conv'} if blocks == 16 else set())
    choose_trainable(lite0, 1)
    assert len(trainable(lite0)) == 4  # the last choice counts


def test_layers_named_by_keras_are_a_block_each():
    keras = import_keras()
    x = image = keras.Input((SIDE, SIDE, 3))
    convs = []
    for _ in range(4):
        convs.append(keras.layers.Conv2D(4, 3, 2))
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(convs[-1](x)))
    model = keras.Model(image, x)
    for blocks in (1, 2):
        choose_trainable(model, blocks)
        assert trainable(model) == {conv.name for conv in convs[-blocks:]}


def test_an_application_trains_its_last_blocks_though_keras_names_its_activations():
    model = import_keras().applications.MobileNetV3Small(weights=None, include_top=False, input_shape=(64, 64, 3))
    choose_trainable(model, 2)
    assert {name.split('_')[2] for name in trainable(model) if name.startswith('expanded')} == {'10'}
    assert 'conv_1' in trainable(model)


def test_batch_normalisation_inside_a_model_inside_is_not_trained():
    keras = import_keras()
    inner = keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3)),
            keras.layers.Conv2D(4, 3, name='conv'),
            keras.layers.BatchNormalization(name='bn'),
        ]
    )
    image = keras.Input((SIDE, SIDE, 3))
    model = keras.Model(image, inner(image))
    choose_trainable(model, 9)
    assert [v.path.split('/')[-2] for v in model.trainable_variables] == ['conv', 'conv']
    assert not inner.get_layer('bn').trainable


# What moves


def test_only_the_chosen_blocks_and_the_heads_move(path, frozen):
    images, fusion, supervision, fused = frozen
    backbone = load_backbone(path, SIDE)
    before, digest = weights_of(backbone.model.layers), backbone.digest
    network, history = finetune(list(images), backbone, fusion, supervision, fused, TRAINING)
    for name, value in weights_of(backbone.model.layers).items():
        moves = name.startswith(('block2_conv', 'block3_conv'))
        assert np.array_equal(value, before[name]) != moves, name
    assert np.abs(network.get_layer('kind_gates').get_weights()[0]).max() > 0
    assert np.abs(cosines(network, fused, supervision) - 1).max() > 1e-3
    assert backbone.digest != digest
    assert len(history) == 3


def cosines(network, fused, supervision):
    """How like the projection of each bit is to that of the frozen features' heads."""
    ridge = fit_linear_ridge(fused, supervision)['kind'].weights
    now = network.get_layer('kind_projection').get_weights()[0]
    return (ridge * now).sum(axis=0) / np.linalg.norm(ridge, axis=0) / np.linalg.norm(now, axis=0)


def test_heads_go_on_from_those_of_the_frozen_features(path, frozen):
    images, fusion, supervision, fused = frozen
    still = dataclasses.replace(TRAINING, learning_rate=1e-30, finetune_epochs=1)
    network, _ = finetune(images, load_backbone(path, SIDE), fusion, supervision, fused, still)
    np.testing.assert_allclose(cosines(network, fused, supervision), 1, atol=1e-5)


def test_the_network_sees_features_as_the_frozen_heads_did(path, frozen, monkeypatch):
    """With heads, scales, preprocessing and hand-made features in place, its outputs are those of the frozen heads."""
    images, fusion, supervision, fused = frozen
    monkeypatch.setattr(module, 'augment', lambda pixels, *_: pixels)
    made = {}

    def stop(network, batches, *_, **__):
        x, y = next(iter(batches(0)))()
        made['outputs'], made['targets'] = network.predict_on_batch(x)['kind'], y
        made['epsilon'] = network.get_layer('kind_bn').epsilon
        return []

    monkeypatch.setattr(module, 'train_network', stop)
    finetune(images, load_backbone(path, SIDE), fusion, supervision, fused, TRAINING)
    rows = next(module.shuffled(supervision.train, module.BATCH_SIZE, 0, 0))
    head = fit_linear_ridge(fused, supervision)['kind']
    v = head.activations(np.concatenate([fused['top'], fused['color']], axis=1))
    epsilon = made['epsilon']
    expected = (v / v.std(axis=0))[rows] * np.sqrt(START_VARIANCE / (START_VARIANCE + epsilon))
    np.testing.assert_allclose(made['outputs'], expected, rtol=1e-3, atol=1e-3)
    assert made['targets']['kind'].sum() == module.BATCH_SIZE


def test_a_segment_starts_from_a_head_whose_thresholds_are_anywhere():
    rng = np.random.default_rng(0)
    segment = SPEC.segments[0]
    supervision = supervise(CodeSpec((segment,)), {'kind': images_of()[1]}, rng)
    keras = import_keras()
    inputs = {'top': keras.Input((6,), name='top'), 'color': keras.Input((3,), name='color')}
    network = hash_network(inputs, inputs, supervision, TRAINING)
    x = {name: (rng.standard_normal((50, d)) + 2).astype(np.float32) for name, d in (('top', 6), ('color', 3))}
    joined = np.concatenate([x['top'], x['color']], axis=1)
    head = HashHead(rng.standard_normal((9, 8)).astype(np.float32), 5 * rng.standard_normal(8).astype(np.float32))
    start_from(network, segment, head, joined)
    v = head.activations(joined)
    epsilon = network.get_layer('kind_bn').epsilon
    expected = v / v.std(axis=0) * np.sqrt(START_VARIANCE / (START_VARIANCE + epsilon))
    np.testing.assert_allclose(network.predict_on_batch(x)['kind'], expected, rtol=1e-3, atol=1e-4)


def test_the_learning_rate_warms_up_and_falls():
    optimizer = module._optimizer(0.02, 1000)
    rates = [float(optimizer._learning_rate(step)) for step in (0, 25, 50, 525, 1000)]
    np.testing.assert_allclose(rates, [0, 0.01, 0.02, 0.02 * (0.02 + 0.98 / 2), 0.02 * 0.02], atol=1e-5)


@pytest.mark.parametrize('method', BY_GRADIENTS)
def test_the_first_gradients_do_not_undo_what_is_known(method):
    """A frozen head that is right leaves the first losses low: no part of the network begins at random."""
    rng = np.random.default_rng(0)
    kinds = np.arange(120) % 3
    level = LabelLevel.from_values([[str(k)] for k in kinds])
    segment = Segment('kind', 16, ('color',))
    supervision = supervise(CodeSpec((segment,)), {'kind': level}, rng)
    fused = {'color': (np.eye(3)[kinds] + 0.01 * rng.standard_normal((120, 3))).astype(np.float32)}
    keras = import_keras()
    inputs = {'color': keras.Input((3,), name='color')}
    training = Training(method)
    losses = []
    for started in (False, True):
        network = hash_network(inputs, inputs, supervision, training)
        if started:
            module.start(network, supervision, fused, training)
        outputs = network.predict_on_batch(fused)['kind']
        losses.append(
            float(segment_losses(supervision, training)['kind'](supervision.targets(np.arange(120))['kind'], outputs))
        )
    assert losses[1] < 0.6 * losses[0]


@pytest.mark.filterwarnings('error::UserWarning')
def test_each_epoch_sees_other_views_of_the_pictures(path, frozen, monkeypatch):
    images, fusion, supervision, fused = frozen
    seen = []
    augment = module.augment

    def recorded(pixels, rng, recipe):
        views = augment(pixels, rng, recipe)
        seen.append({image.tobytes(): view.tobytes() for image, view in zip(pixels, views, strict=True)})
        return views

    monkeypatch.setattr(module, 'augment', recorded)
    finetune(images, load_backbone(path, SIDE), fusion, supervision, fused, TRAINING)
    assert len(seen) == TRAINING.finetune_epochs  # 60 images make one batch of 32
    assert all(image != view for batch in seen for image, view in batch.items())
    shared = [set(a) & set(b) for a, b in ((seen[0], seen[1]), (seen[1], seen[2]))]
    assert min(map(len, shared)) > 5
    assert all(seen[i][image] != seen[i + 1][image] for i in (0, 1) for image in shared[i])


def test_it_learns_what_the_frozen_backbone_does_not_tell(path):
    images, level = images_of(960)
    spec = CodeSpec((Segment('kind', 8, ('top',)),))
    training = Training('ortho', finetune_blocks=9, finetune_epochs=12, learning_rate=0.03)
    model, history = fit(images, {'kind': level}, training, spec, Resizing(SIDE), path)
    assert set(history) == {'fine-tuning'}
    losses = [epoch['loss'] for epoch in history['fine-tuning']]
    assert losses[-1] < 0.8 * losses[0]
    scores = [epoch['score'] for epoch in history['fine-tuning']]
    frozen, _ = fit(images, {'kind': level}, Training(), spec, Resizing(SIDE), path)
    assert scores[-1] > frozen.training['validation_map']['kind'] + 0.3
    assert model.training['validation_map']['kind'] == pytest.approx(scores[-1], abs=0.05)


def test_the_model_keeps_the_scales_it_was_fine_tuned_with(path, frozen):
    """The heads were trained on them; those of groups that only other segments read are the tuned backbone's."""
    images, fusion, _, _ = frozen
    spec = CodeSpec((SPEC.segments[0], Segment('look', 8, ('high',))))
    model, _ = fit(images, {'kind': images_of()[1]}, TRAINING, spec, Resizing(SIDE), path)
    for name in ('top', 'color'):
        np.testing.assert_allclose(model.fusion.mean[name], fusion.mean[name], rtol=1e-5)
        np.testing.assert_allclose(model.fusion.scale[name], fusion.scale[name], rtol=1e-5)
    tuned, old = model.extractor.backbone.taps(images), load_backbone(path, SIDE).taps(images)
    assert np.abs(tuned['top'].mean(axis=0) / fusion.mean['top'] - 1).max() > 0.01  # not trivial
    np.testing.assert_allclose(model.fusion.mean['high'], tuned['high'].mean(axis=0), rtol=1e-4)
    assert not np.allclose(model.fusion.mean['high'], old['high'].mean(axis=0), rtol=1e-4)


# What is refused


def test_without_labels_or_backbone_nothing_can_be_fine_tuned(path):
    images, level = images_of(40)

    def tune(method, labels, spec):
        training = Training(method, epochs=1, finetune_blocks=1, finetune_epochs=1)
        fit(images, labels, training, spec, Resizing(SIDE), path)

    color = CodeSpec((Segment('kind', 8, ('color',)), Segment('other', 8, ('top',))))
    with pytest.raises(InputError, match='finetune-blocks: no labelled segment reads the backbone; leave it out'):
        tune('ortho', {'kind': level}, color)
    for method, labels in (('itq', {'kind': level}), ('contrastive', {}), ('lda', {}), (None, {})):
        with pytest.raises(InputError, match='finetune-blocks needs labels and one of ortho, csq, greedy'):
            tune(method, labels, SPEC)


# Saved and killed


def fit_small(path, folder=None, report=None, **changes):
    """A fine-tuned model of the small backbone; goes on if `folder` holds a checkpoint."""
    images, level = images_of()
    checkpoint = Checkpoint(Path(folder) / 'checkpoint.npz', {'a': 1}) if folder else None
    training = dataclasses.replace(TRAINING, **changes)
    return fit(images, {'kind': level}, training, SPEC, Resizing(SIDE), path, report, checkpoint)


def test_a_fit_stopped_anywhere_goes_on_as_if_it_had_not(path, tmp_path):
    expected, whole = fit_small(path)
    for number, (stage, step) in enumerate((('fine-tuning', 2), ('features', 60))):

        def stop(progress, stage=stage, step=step, seen=[]):  # noqa: B006
            seen += [progress.stage]
            late = stage != 'features' or 'fine-tuning' in seen
            if (progress.stage, progress.step) == (stage, step) and late:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit_small(path, tmp_path / str(number), stop)
        model, history = fit_small(path, tmp_path / str(number))
        assert model.fingerprint == expected.fingerprint
        assert [e['loss'] for e in history['fine-tuning']] == [e['loss'] for e in whole['fine-tuning']]
    assert fit_small(path, seed=1)[0].fingerprint != expected.fingerprint


def test_a_saved_model_has_its_own_backbone_and_one_saved_over_it_has_not(tmp_path):
    images = catalogue_pixels(40)
    level = LabelLevel.from_values([[str(i % 2)] for i in range(40)])
    spec = CodeSpec((Segment('kind', 8, ('top',)),))
    training = Training('ortho', finetune_blocks=1, finetune_epochs=2, learning_rate=0.01)
    tuned, _ = fit(images, {'kind': level}, training, spec, Resizing(64))
    plain, _ = fit(images, {}, Training('itq'), spec, Resizing(64))
    assert tuned.backbone_digest != plain.backbone_digest
    assert tuned.extractor.backbone_name == plain.extractor.backbone_name == 'efficientnet_lite0'
    tuned.save(tmp_path / 'model')
    loaded = HashModel.load(tmp_path / 'model')
    np.testing.assert_array_equal(loaded.encode(images), tuned.encode(images))
    assert loaded.fingerprint == tuned.fingerprint
    loaded.save(tmp_path / 'copy')
    assert (tmp_path / 'copy' / SAVED).exists()
    (tmp_path / 'copy' / SAVED).unlink()
    with pytest.raises(InputError, match='the weights of efficientnet_lite0 on this machine are not those'):
        HashModel.load(tmp_path / 'copy').encode(images)
    plain.save(tmp_path / 'model')
    assert sorted(p.name for p in (tmp_path / 'model').iterdir()) == ['arrays.npz', 'model.json']
    np.testing.assert_array_equal(HashModel.load(tmp_path / 'model').encode(images), plain.encode(images))


def fit_lite(folder, pause=0.0):
    """What the killed process does: Lite0 at 64 px, 60 pictures, 3 epochs."""
    images, level = images_of(60, 64)
    spec = CodeSpec((Segment('kind', 8, ('top', 'color')),))
    training = Training('ortho', finetune_blocks=2, finetune_epochs=3)

    def report(progress):
        if progress.stage == 'fine-tuning':
            print(progress.step, flush=True)
            time.sleep(pause)

    checkpoint = Checkpoint(Path(folder) / 'checkpoint.npz', {'b': 2})
    model, _ = fit(images, {'kind': level}, training, spec, Resizing(64), report=report, checkpoint=checkpoint)
    model.save(folder)
    print(model.fingerprint, hashlib.sha256(model.encode(images).tobytes()).hexdigest(), flush=True)


@pytest.mark.process
def test_a_killed_fit_of_lite0_ends_with_the_model_of_one_never_killed(tmp_path):
    code = f'import sys; from {__name__} import fit_lite; fit_lite(sys.argv[1], float(sys.argv[2]))'

    def start(folder, pause=0.0):
        command = [sys.executable, '-c', code, str(tmp_path / folder), str(pause)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)

    process = start('killed', 1)
    for line in process.stdout:
        if line.strip() == '2':  # the first epoch is done and kept
            break
    time.sleep(random.uniform(0, 1.5))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    results = []
    for folder in ('killed', 'whole'):
        out, _ = start(folder).communicate()
        results.append(out.splitlines())
    assert results[0][-1] == results[1][-1]
    assert len(results[0]) < len(results[1]) == 4
    images, _ = images_of(60, 64)
    loaded = HashModel.load(tmp_path / 'whole')  # this is another process than the one that trained it
    codes = hashlib.sha256(loaded.encode(images).tobytes()).hexdigest()
    assert f'{loaded.fingerprint} {codes}' == results[1][-1]
