"""Heads trained on labels by gradients: a loss pulls each picture to the target code of its class.

The losses are OrthoHash (Hoe et al. 2021), CSQ (Yuan et al. 2020) with our own centres, and GreedyHash (Su et al.
2018). The features are fixed here; `finetune.py` trains the backbone too, and `heads/ridge.py` needs no gradients.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashing_model.codes.spec import Segment
from hashing_model.heads.head import HashHead
from hashing_model.heads.supervision import Arrays, Supervision
from hashing_model.keras_runtime import import_keras
from hashing_model.networks import losses
from hashing_model.networks.head_network import head_outputs, trained_head
from hashing_model.networks.loop import Batch, Report, Training, train_network

BY_GRADIENTS = ('ortho', 'csq', 'greedy')
SUPERVISED = ('ridge', *BY_GRADIENTS)
MARGIN = 0.3
BATCH_SIZE = 64
PATIENCE = 15


def hash_network(inputs: Any, groups: Mapping[str, Any], supervision: Supervision, training: Training) -> Any:
    """The Keras network from `inputs` to each supervised segment's output, over symbolic standardised `groups`.

    An output holds the activations, [N, bits]; with `greedy`, the logits of a classifier follow in the same array.
    """
    keras = import_keras()
    outputs = head_outputs(groups, supervision.segments, training.gated, training.seed)
    if training.method == 'greedy':
        for name, v in outputs.items():
            signs = keras.layers.Lambda(losses.greedy_sign, name=f'{name}_sign')(v)
            start = keras.initializers.GlorotUniform(seed=training.seed)
            classes = len(supervision.levels[name].names)
            logits = keras.layers.Dense(classes, kernel_initializer=start, name=f'{name}_classifier')(signs)
            outputs[name] = keras.layers.Concatenate(name=f'{name}_output')([v, logits])
    return keras.Model(inputs, outputs)


def start_classifier(network: Any, segment: Segment, centers: NDArray[np.int8]) -> None:
    """Start the classifier of `greedy` with the classes' target codes as weights: logits are similarities to them."""
    weights = centers.T / math.sqrt(segment.bits)
    network.get_layer(f'{segment.name}_classifier').set_weights([weights, np.zeros(len(centers))])


def segment_losses(supervision: Supervision, training: Training) -> dict[str, Callable]:
    """A loss for each output of `hash_network`: (targets [N, classes], output) -> scalar."""
    return {s.name: functools.partial(_loss, supervision.centers[s.name], training) for s in supervision.segments}


def _loss(centers: NDArray[np.int8], training: Training, targets: Any, output: Any) -> Any:
    ops = import_keras().ops
    bits, signs = centers.shape[1], centers.astype(np.float32)
    v = output[:, :bits]
    if training.method == 'csq':
        value = losses.csq_loss(ops.tanh(v), signs, targets)
    elif training.method == 'greedy':
        value = losses.greedy_loss(output[:, bits:], targets, v)
    else:
        value = losses.ortho_loss(v, signs, targets, MARGIN, math.sqrt(bits))
    if training.balance:
        value += training.balance * losses.balance_loss(ops.tanh(v))
    if training.decorrelation:
        value += training.decorrelation * losses.decorrelation_loss(ops.tanh(v))
    return value


def shuffled(rows: NDArray[np.int64], size: int, seed: int, epoch: int) -> Iterator[NDArray[np.int64]]:
    """The rows in an order that differs per epoch, `size` at a time; rows that do not fill a batch are left out."""
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    size = min(size, len(order))
    for start in range(0, len(order) - size + 1, size):
        yield order[start : start + size]


def fit_supervised(
    fused: Arrays, supervision: Supervision, training: Training, report: Report | None = None
) -> tuple[Any, list[dict[str, float]]]:
    """Train the heads of the supervised segments on fixed features.

    Args:
        fused: standardised feature groups, name -> float32 [N, d].
        supervision: see `supervise`.
        training: how.
        report: told after every step.

    Returns:
        The trained network, for `trained_heads`, and the history of epochs.
    """
    # The network and how fast it learns
    keras = import_keras()
    names = supervision.groups
    inputs = {name: keras.Input((fused[name].shape[1],), name=name) for name in names}
    network = hash_network(inputs, inputs, supervision, training)
    steps = max(1, len(supervision.train) // BATCH_SIZE)
    schedule = keras.optimizers.schedules.CosineDecay(training.learning_rate, training.epochs * steps, alpha=0.02)
    network.compile(keras.optimizers.Adam(schedule), segment_losses(supervision, training))

    # What it learns from, and what it is validated on
    def batches(epoch: int) -> Iterable[Callable[[], Batch]]:
        for rows in shuffled(supervision.train, BATCH_SIZE, training.seed, epoch):
            yield functools.partial(make, rows)

    def make(rows: NDArray) -> Batch:
        return {name: fused[name][rows] for name in names}, supervision.targets(rows)

    def validate() -> float:
        held_out = {name: fused[name][supervision.held_out] for name in names}
        scores = supervision.scores(activations_of(network, held_out, supervision), supervision.held_out)
        return float(np.mean(list(scores.values())))

    history = train_network(
        network,
        batches,
        steps,
        training.epochs,
        validate if len(supervision.held_out) else None,
        PATIENCE,
        'heads',
        report,
    )
    return network, history


def activations_of(network: Any, inputs: Any, supervision: Supervision) -> dict[str, NDArray[np.float32]]:
    """The activations, whose signs are the bits: segment name -> float32 [N, bits]."""
    outputs = network.predict_on_batch(inputs)
    return {s.name: np.asarray(outputs[s.name])[:, : s.bits] for s in supervision.segments}


def trained_heads(
    network: Any, supervision: Supervision, fused: Arrays
) -> tuple[dict[str, HashHead], dict[str, dict[str, float]]]:
    """The heads of a trained network with their thresholds at the mean over N images, and the gates of each."""
    heads, gates = {}, {}
    for segment in supervision.segments:
        head, gates[segment.name] = trained_head(network, segment)
        x = np.concatenate([fused[name] for name in segment.features], axis=1)
        heads[segment.name] = head.shifted(head.activations(x).mean(axis=0, dtype=np.float64))
    return heads, gates
