"""Training a Keras network: settings, epochs, validation, early stopping, checkpoints that survive a kill, progress."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hashing_model.errors import InputError

Report = Callable[['Progress'], None]
Batch = tuple[Mapping[str, Any], Any]  # the network's inputs by name, and its targets
_AHEAD = 4  # batches made while one is trained on


@dataclasses.dataclass(frozen=True)
class Training:
    """How to fit a model.

    Args:
        method: see `hashing_model.training.fit.METHODS`; None takes the best for the labels there are.
        seed: of every random choice.
        epochs: most epochs of heads trained by gradients: `ortho`, `csq`, `greedy`.
        learning_rate: of these and of `contrastive`, at the start; fine-tuning takes a part of it.
        balance, decorrelation: weights of the loss terms that even out the bits of segments trained by gradients.
        gated: train the weights of the feature groups by gradients too.
        views: augmented views per picture, for `contrastive` and `lda`.
        finetune_blocks: last blocks of the backbone to train with the supervised segments; 0 leaves it frozen.
        finetune_epochs: epochs of that.

    Raises:
        InputError: a number that is not possible.
    """

    method: str | None = None
    seed: int = 0
    epochs: int = 60
    learning_rate: float = 1e-3
    balance: float = 0.0
    decorrelation: float = 0.0
    gated: bool = True
    views: int = 3
    finetune_blocks: int = 0
    finetune_epochs: int = 30

    def __post_init__(self) -> None:
        least = {'epochs': 1, 'views': 1, 'finetune_blocks': 0, 'finetune_epochs': 1, 'balance': 0, 'decorrelation': 0}
        for name, value in {'seed': 0, **least}.items():
            if not value <= getattr(self, name) < math.inf:
                raise InputError(f'{name.replace("_", "-")} is {getattr(self, name)}; at least {value} is needed')
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f'learning-rate is {self.learning_rate}; a number above 0 is needed')


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a training is; `score` is that of the last epoch's validation, if there was one."""

    stage: str
    step: int
    steps: int
    loss: float | None = None
    score: float | None = None


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where the state of a training is kept after each epoch, so that it goes on after a kill.

    Args:
        path: the file, `.npz`.
        key: all that determines the training; a state with another key is not used.
    """

    path: Path
    key: Mapping[str, Any]

    def save(self, arrays: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Write a state whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        described = json.dumps({'key': self.key, 'arrays': sorted(arrays), **state})
        with self._unfinished.open('wb') as file:
            np.savez(file, state=np.array(described), **arrays)
        self._unfinished.replace(self.path)

    def load(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The arrays and state of an unfinished training with the same key, if there is one."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = dict(file)
            state = json.loads(str(arrays.pop('state')))
            same = state.pop('key') == json.loads(json.dumps(self.key)) and state.pop('arrays') == sorted(arrays)
        except Exception:  # zip, numpy and JSON have many words for damage
            return None
        return (arrays, state) if same else None

    def remove(self) -> None:
        """Remove the state, when the training is over."""
        for path in (self.path, self._unfinished):
            path.unlink(missing_ok=True)

    @property
    def _unfinished(self) -> Path:
        return self.path.with_name(f'.{self.path.name}')


def train_network(
    network: Any,
    batches: Callable[[int], Iterable[Callable[[], Batch]]],
    steps: int,
    epochs: int,
    validate: Callable[[], float] | None = None,
    patience: int | None = None,
    stage: str = 'training',
    report: Report | None = None,
    checkpoint: Checkpoint | None = None,
    momentum: float = 0.0,
) -> list[dict[str, float]]:
    """Train a compiled Keras network, and leave it with its last weights or, with a patience, with the best.

    With a momentum, a running mean of the weights is validated and kept instead (Polyak and Juditsky 1992).

    Args:
        network: a compiled Keras model.
        batches: epoch -> functions that make its batches, called in threads, a few ahead.
        steps: batches per epoch.
        epochs: at most this many.
        validate: the score of the network as it is, higher is better.
        patience: stop after so many epochs without a better score, and keep the weights with the best score; None
            trains to the end and keeps the last. A few images held out show when heads begin to overfit, but not which
            of the last epochs is best.
        stage: a name for people.
        report: told after every step.
        checkpoint: written after every epoch; if it has a state, training resumes from there. The caller removes it.
        momentum: of the running mean, per step; 0 takes the weights as they are.

    Returns:
        Per epoch: `loss` (mean over its batches), `score` (if validated) and `seconds`.

    Raises:
        InputError: the loss is not a number.
    """
    # Where it starts: anew, or after the last epoch that a checkpoint kept
    network.optimizer.build(network.trainable_variables)  # or its moments would be in no checkpoint
    variables = [*network.variables, *network.optimizer.variables]
    history: list[dict[str, float]] = []
    kept = _RunningMean(network, momentum)
    best: list[Any] = []
    found = checkpoint.load() if checkpoint else None
    if found:
        arrays, state = found
        history = state['history']
        for i, variable in enumerate(variables):
            variable.assign(arrays[f'now{i}'])
        count = len(network.variables)
        kept.mean = [arrays[f'mean{i}'] for i in range(count)] if momentum else kept.mean
        best = [arrays[f'best{i}'] for i in range(count) if patience is not None and f'best{i}' in arrays]

    for epoch in range(len(history), epochs):
        if _stalled(history, patience):
            break
        logs = _run_epoch(network, batches(epoch), epoch, steps, epochs, stage, report, history, kept.update)

        # What the weights to keep are worth
        values = kept.values()
        if validate:
            with _weights(network, values):
                logs['score'] = float(validate())
            if patience is not None and logs['score'] >= max((h['score'] for h in history), default=-math.inf):
                best = values
        history.append(logs)

        # All that the next epoch needs, should this process end
        if checkpoint:
            arrays = {f'now{i}': np.array(v) for i, v in enumerate(variables)}
            arrays |= {f'mean{i}': v for i, v in enumerate(kept.mean)} if momentum else {}
            arrays |= {f'best{i}': v for i, v in enumerate(best)}
            checkpoint.save(arrays, {'history': history})

    # The weights that are left
    for variable, value in zip(network.variables, best or kept.values(), strict=True):
        variable.assign(value)
    return history


class _RunningMean:
    """The mean of a network's weights over its last steps; without a momentum, its weights as they are."""

    def __init__(self, network: Any, momentum: float):
        self.network, self.momentum = network, momentum
        self.mean = [np.array(v) for v in network.variables]

    def update(self) -> None:
        """Take in the weights after a step."""
        if not self.momentum:
            return
        steps = int(self.network.optimizer.iterations)
        momentum = min(self.momentum, (1 + steps) / (10 + steps))  # or few steps would leave much of the beginning
        for i, now in enumerate(map(np.array, self.network.variables)):
            if np.issubdtype(now.dtype, np.floating):
                now = self.mean[i] + (now - self.mean[i]) * np.float32(1 - momentum)
            self.mean[i] = now

    def values(self) -> list[Any]:
        """The weights to keep."""
        return list(self.mean) if self.momentum else [np.array(v) for v in self.network.variables]


@contextlib.contextmanager
def _weights(network: Any, values: Sequence[Any]) -> Iterator[None]:
    """Give the network other weights within a `with` block."""
    own = [np.array(v) for v in network.variables]
    for variable, value in zip(network.variables, values, strict=True):
        variable.assign(value)
    try:
        yield
    finally:
        for variable, value in zip(network.variables, own, strict=True):
            variable.assign(value)


def _run_epoch(
    network: Any,
    batches: Iterable[Callable[[], Batch]],
    epoch: int,
    steps: int,
    epochs: int,
    stage: str,
    report: Report | None,
    history: Sequence[Mapping[str, float]],
    after_step: Callable[[], None],
) -> dict[str, float]:
    started = time.monotonic()
    score = history[-1].get('score') if history else None
    loss = total = 0.0
    for step, (x, y) in enumerate(_made_ahead(batches)):
        network.reset_metrics()  # before 3.13, Keras gives the mean since this
        total += float(network.train_on_batch(x, y, return_dict=True)['loss'])
        loss = total / (step + 1)
        if not math.isfinite(loss):
            rate = float(np.asarray(network.optimizer.learning_rate))
            raise InputError(
                f'{stage}: the loss is {loss} in epoch {epoch + 1}, at a learning rate of {rate:.2g}: '
                'give a lower --learning-rate'
            )
        after_step()
        if report:
            report(Progress(stage, epoch * steps + step + 1, epochs * steps, loss, score))
    return {'loss': loss, 'seconds': round(time.monotonic() - started, 2)}


def _made_ahead(makers: Iterable[Callable[[], Batch]]) -> Iterable[Batch]:
    """Call the functions in threads, a few ahead of what the caller takes, and yield their results in order."""
    source = iter(makers)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(make) for make in itertools.islice(source, _AHEAD)]
        while waiting:
            made = waiting.pop(0).result()
            waiting += [pool.submit(make) for make in itertools.islice(source, 1)]
            yield made


def _stalled(history: Sequence[Mapping[str, float]], patience: int | None) -> bool:
    scores = [epoch['score'] for epoch in history if 'score' in epoch]
    if patience is None or not scores:
        return False
    return len(scores) - 1 - scores.index(max(scores)) >= patience
