"""Training loops: what is reported, which weights stay, and going on after a kill as if nothing had happened."""

import functools
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hashing_model.errors import InputError
from hashing_model.keras_runtime import import_keras
from hashing_model.networks.loop import Checkpoint, Progress, Training, _made_ahead, train_network
from tests.helpers.make_index import ROOT

STEPS = 3
EPOCHS = 6
KEY = {'seed': 0, 'layers': (4, 2)}


def network(optimizer=None):
    """A small network with batch normalisation, whose first weights are always the same."""
    keras = import_keras()
    start = [keras.initializers.GlorotUniform(seed=i) for i in range(2)]
    x = keras.Input((4,), name='x')
    h = keras.layers.Dense(3, 'relu', kernel_initializer=start[0], name='hidden')(x)
    h = keras.layers.BatchNormalization(name='bn')(h)
    y = keras.layers.Dense(2, kernel_initializer=start[1], name='y')(h)
    made = keras.Model({'x': x}, {'y': y})
    made.compile(optimizer or keras.optimizers.AdamW(0.01), {'y': 'mse'})
    return made


def batch(epoch, step, size=8):
    rng = np.random.default_rng([epoch, step])
    x = rng.standard_normal((size, 4)).astype(np.float32)
    return {'x': x}, {'y': np.stack([x[:, 0] * x[:, 1], x[:, 2] ** 2], axis=1)}


def batches(epoch):
    for step in range(STEPS):
        yield lambda step=step: batch(epoch, step)


def weights_of(trained):
    return [np.array(v) for v in trained.variables]


def assert_same(a, b):
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


def score_of(trained):
    """A validation that is neither always better nor always worse."""
    x, y = batch(99, 0)
    return -float(np.mean((np.asarray(trained.predict_on_batch(x)['y']) - y['y']) ** 2))


def trained(epochs=EPOCHS, **options):
    """The weights and the history of a training from the start."""
    made = network()
    history = train_network(made, batches, STEPS, epochs, **options)
    return weights_of(made), history


# The epochs


@pytest.mark.tf
def test_the_loss_is_the_mean_over_the_batches_of_an_epoch():
    made = network(import_keras().optimizers.SGD(0.0))  # it stays as it is, but for the statistics of the batches
    sizes = (8, 8, 2)

    def uneven(epoch):
        for step, size in enumerate(sizes):
            yield lambda step=step, size=size: batch(epoch, step, size)

    told = []
    history = train_network(made, uneven, STEPS, 2, report=told.append)
    for epoch in range(2):
        losses = []
        for step, size in enumerate(sizes):
            x, y = batch(epoch, step, size)
            losses.append(np.mean((np.asarray(made(x, training=True)['y']) - y['y']) ** 2))
        assert max(losses) > 1.2 * min(losses)  # not trivial
        assert history[epoch]['loss'] == pytest.approx(np.mean(losses), rel=1e-5)
        for step in range(STEPS):
            assert told[epoch * STEPS + step].loss == pytest.approx(np.mean(losses[: step + 1]), rel=1e-5)
        assert history[epoch]['seconds'] >= 0
        assert 'score' not in history[epoch]


@pytest.mark.tf
def test_every_step_is_reported_with_the_last_score():
    told = []
    scores = iter((0.25, 0.75))
    train_network(network(), batches, STEPS, 2, lambda: next(scores), stage='heads', report=told.append)
    assert [(p.stage, p.step, p.steps) for p in told] == [('heads', i + 1, 2 * STEPS) for i in range(2 * STEPS)]
    assert [p.score for p in told] == [None] * STEPS + [0.25] * STEPS
    assert all(isinstance(p, Progress) and math.isfinite(p.loss) for p in told)


@pytest.mark.tf
def test_it_learns():
    _, history = trained(60)
    assert history[-1]['loss'] < 0.7 * history[0]['loss']


@pytest.mark.tf
@pytest.mark.parametrize(
    ('scores', 'patience', 'epochs', 'kept'),
    [
        ((0.1, 0.9, 0.3, 0.2, 0.8), 9, 5, 1),
        ((0.1, 0.9, 0.3, 0.2, 0.8), None, 5, 4),  # the last
        ((0.1, 0.9, 0.3, 0.2, 0.8), 2, 4, 1),
        ((0.1, 0.9, 0.3, 0.95, 0.2), 2, 5, 3),
        ((0.5, 0.7, 0.7, 0.1, 0.1), 9, 5, 2),  # of equals the last
        ((0.0, 0.0, 0.0, 0.0, 0.0), 2, 3, 2),
        ((0.9, 0.1, 0.1, 0.1, 0.1), 1, 2, 0),
    ],
)
def test_with_a_patience_the_weights_that_validated_best_stay(scores, patience, epochs, kept):
    made, seen = network(), []

    def validate():
        seen.append(weights_of(made))
        return scores[len(seen) - 1]

    history = train_network(made, batches, STEPS, 5, validate, patience)
    assert [epoch['score'] for epoch in history] == list(scores[:epochs])
    assert len(seen) == epochs
    assert_same(weights_of(made), seen[kept])
    assert not np.array_equal(seen[0][0], seen[1][0])


@pytest.mark.tf
def test_without_validation_the_last_weights_stay():
    steps = []
    made = network()
    train_network(made, batches, STEPS, 2, patience=1, report=lambda _: steps.append(weights_of(made)))
    assert len(steps) == 2 * STEPS
    assert_same(weights_of(made), steps[-1])


@pytest.mark.tf
@pytest.mark.parametrize('momentum', [0.5, 0.9])
def test_with_a_momentum_the_running_mean_is_validated_and_stays(momentum):
    made, plain = network(), []
    expected, validated, steps = weights_of(made), [], []
    train_network(
        network_steps := network(), batches, STEPS, 3, report=lambda _: plain.append(weights_of(network_steps))
    )

    def validate():
        validated.append(weights_of(made))
        return 0.5

    def report(_):
        steps.append(weights_of(made))
        of_step = min(momentum, (1 + len(steps)) / (10 + len(steps)))
        for i, value in enumerate(steps[-1]):
            expected[i] = of_step * expected[i] + (1 - of_step) * value

    train_network(made, batches, STEPS, 3, validate, report=report, momentum=momentum)
    for now, alone in zip(steps, plain, strict=True):
        assert_same(now, alone)  # what is trained is not the mean
    for found, want, last in zip(weights_of(made), expected, steps[-1], strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)
        assert not np.array_equal(found, last)
    assert_same(weights_of(made), validated[-1])


@pytest.mark.tf
def test_a_loss_that_is_no_number_ends_it():
    made = network(import_keras().optimizers.SGD(1e30))
    with pytest.raises(
        InputError, match=r'tail: the loss is (nan|inf) in epoch 1, at .* 1e\+30: .* lower --learning-rate'
    ):
        train_network(made, batches, STEPS, 2, stage='tail')


# Batches made ahead


def test_batches_come_in_order_though_made_in_threads():
    rng, threads = random.Random(0), set()
    begun = []

    def make(number, seconds):
        begun.append(number)
        threads.add(threading.current_thread().name)
        time.sleep(seconds)
        return number

    taken = []
    pauses = [rng.random() / 100 for _ in range(40)]
    for number in _made_ahead([functools.partial(make, i, pause) for i, pause in enumerate(pauses)]):
        taken.append(number)
        assert max(begun) <= number + 5  # a few ahead, not all
    assert taken == list(range(40))
    assert len(threads) == 2
    assert threading.current_thread().name not in threads
    assert list(_made_ahead([])) == []


@pytest.mark.tf
def test_an_error_while_a_batch_is_made_arrives():
    def broken():
        raise OSError('disk')

    def some(epoch):
        yield lambda: batch(epoch, 0)
        yield broken

    with pytest.raises(OSError, match='disk'):
        train_network(network(), some, 2, 1)


# Checkpoints


class Stopped(Exception):
    """Instead of a kill."""


def stopping_at(step):
    def report(progress):
        if progress.step == step:
            raise Stopped

    return report


@pytest.mark.tf
@pytest.mark.parametrize('momentum', [0.0, 0.8])
def test_a_training_stopped_at_any_step_goes_on_as_if_it_had_not(tmp_path, momentum):
    expected, whole = trained(momentum=momentum)
    for step in (1, STEPS, STEPS + 1, 3 * STEPS + 2, EPOCHS * STEPS):
        checkpoint = Checkpoint(tmp_path / f'{step}.npz', KEY)
        with pytest.raises(Stopped):
            trained(report=stopping_at(step), checkpoint=checkpoint, momentum=momentum)
        told = []
        weights, history = trained(report=told.append, checkpoint=checkpoint, momentum=momentum)
        assert_same(weights, expected)
        assert [h['loss'] for h in history] == [h['loss'] for h in whole]
        assert told[0].step == (step - 1) // STEPS * STEPS + 1  # a finished epoch is not done again


@pytest.mark.tf
def test_without_patience_the_last_weights_stay_though_a_checkpoint_has_the_best(tmp_path):
    checkpoint = Checkpoint(tmp_path / 'state.npz', {})
    scores = iter((0.9, 0.1, 0.1))
    train_network(network(), batches, STEPS, 2, lambda: next(scores), 5, checkpoint=checkpoint)
    made = network()
    seen = []

    def validate():
        seen.append(weights_of(made))
        return 0.1

    train_network(made, batches, STEPS, 3, validate, checkpoint=checkpoint)
    assert len(seen) == 1
    assert_same(weights_of(made), seen[-1])


@pytest.mark.tf
def test_the_best_weights_so_far_and_the_patience_survive_a_stop(tmp_path):
    scores = (0.1, 0.9, 0.3, 0.2, 0.8, 0.7)

    def run(stop=None, checkpoint=None):
        made, found = network(), checkpoint and checkpoint.load()
        left = iter(scores[len(found[1]['history']) if found else 0 :])
        report = stopping_at(stop) if stop else None
        history = train_network(made, batches, STEPS, 6, lambda: next(left), 3, report=report, checkpoint=checkpoint)
        return weights_of(made), [h['score'] for h in history]

    expected = run()
    assert expected[1] == list(scores[:5])
    checkpoint = Checkpoint(tmp_path / 'c.npz', KEY)
    for stop in (2 * STEPS + 1, 4 * STEPS + 1):
        with pytest.raises(Stopped):
            run(stop, checkpoint)
    weights, found = run(None, checkpoint)
    assert_same(weights, expected[0])
    assert found == expected[1]
    weights, found = run(None, checkpoint)  # it was over, and stays so
    assert_same(weights, expected[0])
    assert found == expected[1]


@pytest.mark.tf
def test_a_checkpoint_of_another_training_is_not_used(tmp_path):
    path = tmp_path / 'below' / 'c.npz'
    trained(2, checkpoint=Checkpoint(path, KEY))
    assert Checkpoint(path, {'layers': [4, 2], 'seed': 0}).load()[1]['history']  # the same, as JSON has it
    for key in ({'seed': 1, 'layers': (4, 2)}, {'seed': 0}, {**KEY, 'epochs': 2}, {}):
        assert Checkpoint(path, key).load() is None
    expected, whole = trained()
    weights, history = trained(checkpoint=Checkpoint(path, {**KEY, 'seed': 1}))
    assert_same(weights, expected)
    assert [h['loss'] for h in history] == [h['loss'] for h in whole]


def test_a_damaged_checkpoint_is_not_used(tmp_path):
    path = tmp_path / 'c.npz'
    checkpoint = Checkpoint(path, KEY)
    assert checkpoint.load() is None
    array = np.arange(50, dtype=np.float32)
    checkpoint.save({'now0': array}, {'history': [{'loss': 1.0}]})
    assert sorted(p.name for p in tmp_path.iterdir()) == ['c.npz']
    content = path.read_bytes()
    for length in (0, 1, 30, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert checkpoint.load() is None
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0x11
        path.write_bytes(damaged)
        found = checkpoint.load()
        if found:  # a byte that is never read
            np.testing.assert_array_equal(found[0]['now0'], array)
            assert found[1] == {'history': [{'loss': 1.0}]}
    for text in (b'PK', b'[1, 2]', b'\0' * 500):
        path.write_bytes(text)
        assert checkpoint.load() is None
    for state in ('7', '[]', '{}', '{"key": {}}', 'none'):
        np.savez(path, state=np.array(state))
        assert checkpoint.load() is None
    np.savez(path, other=array)
    assert checkpoint.load() is None
    np.save(tmp_path / 'c', array)
    (tmp_path / 'c.npy').replace(path)
    assert checkpoint.load() is None


def test_a_checkpoint_is_replaced_whole_and_removed(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / 'c.npz', KEY)
    checkpoint.save({'now0': np.ones(3)}, {'history': [1]})

    def full(file, **arrays):
        file.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(np, 'savez', full)
    with pytest.raises(OSError, match='No space'):
        checkpoint.save({'now0': np.zeros(3)}, {'history': [1, 2]})
    assert checkpoint.load()[1] == {'history': [1]}
    checkpoint.remove()
    checkpoint.remove()
    assert list(tmp_path.iterdir()) == []


def train_slowly(folder):
    """What the killed process does: 20 epochs in about 2 s, after a line that says it has begun."""
    made = network()
    checkpoint = Checkpoint(Path(folder) / 'c.npz', KEY)
    print('begun', flush=True)
    train_network(
        made,
        batches,
        STEPS,
        20,
        lambda: score_of(made),
        report=lambda _: time.sleep(0.03),
        checkpoint=checkpoint,
        momentum=0.5,
    )
    np.savez(Path(folder) / 'done.npz', *weights_of(made))


@pytest.mark.tf
@pytest.mark.process
def test_killed_processes_end_with_the_weights_of_one_never_killed(tmp_path):
    made = network()
    train_network(made, batches, STEPS, 20, lambda: score_of(made), momentum=0.5)
    command = [
        sys.executable,
        '-c',
        f'from {__name__} import train_slowly; train_slowly({str(tmp_path)!r})',
    ]
    epochs = []
    for number in range(3):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, env=dict(os.environ)
        )
        assert process.stdout.readline() == b'begun\n'
        while number and not (tmp_path / 'c.npz').exists():  # the first may be killed before it has kept anything
            time.sleep(0.01)
        time.sleep(random.uniform(0.2, 1.2))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        found = Checkpoint(tmp_path / 'c.npz', KEY).load()
        epochs.append(len(found[1]['history']) if found else 0)
    assert epochs == sorted(epochs)
    assert not (tmp_path / 'done.npz').exists()
    subprocess.run(command, stderr=subprocess.DEVNULL, cwd=ROOT, check=True)
    with np.load(tmp_path / 'done.npz') as file:
        assert_same([file[f'arr_{i}'] for i in range(len(made.variables))], weights_of(made))
    assert epochs[-1] > 0  # it did go on from somewhere


# Settings


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'epochs': 0}, 'epochs is 0; at least 1 is needed'),
        ({'views': 0}, 'views is 0; at least 1'),
        ({'finetune_blocks': -1}, 'finetune-blocks is -1; at least 0'),
        ({'finetune_epochs': 0}, 'finetune-epochs is 0; at least 1'),
        ({'balance': -0.5}, 'balance is -0.5; at least 0'),
        ({'balance': math.nan}, 'balance is nan'),
        ({'balance': math.inf}, 'balance is inf'),
        ({'decorrelation': math.inf}, 'decorrelation is inf'),
        ({'decorrelation': -1}, 'decorrelation is -1; at least 0'),
        ({'learning_rate': 0}, 'learning-rate is 0; a number above 0 is needed'),
        ({'learning_rate': -1}, 'learning-rate is -1'),
        ({'learning_rate': math.inf}, 'learning-rate is inf'),
        ({'learning_rate': math.nan}, 'learning-rate is nan'),
        ({'seed': -1}, 'seed is -1; at least 0'),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Training(**settings)


def test_settings_at_their_limits_are_taken():
    assert (
        Training(epochs=1, views=1, balance=0, seed=0, finetune_blocks=10**6, learning_rate=1e-12).finetune_epochs == 30
    )
