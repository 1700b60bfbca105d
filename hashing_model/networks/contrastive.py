"""The unsupervised head: two augmented views of a picture get similar codes, and different pictures different ones.

Qiu et al. 2021, "Unsupervised Hashing with Contrastive Information Bottleneck" (CIBHash), on fixed features. The head
learns from the principal components of the features, all divided by one number, because thousands of dimensions would
overfit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashing_model.codes.spec import Segment
from hashing_model.errors import InputError
from hashing_model.heads.head import HashHead
from hashing_model.heads.projections import principal_components
from hashing_model.keras_runtime import import_keras
from hashing_model.networks import losses
from hashing_model.networks.head_network import BN_MOMENTUM
from hashing_model.networks.loop import Batch, Report, Training, train_network
from hashing_model.networks.supervised import shuffled

BATCH_SIZE = 512
STEPS = 300
COMPONENTS = 256
HIDDEN = 512
TEMPERATURE = 0.6  # the paper's .3 pays for telling instances apart, and gave less between them
Floats = NDArray[np.float32]


def fit_contrastive(
    x: Floats, views: Sequence[Floats], segment: Segment, training: Training, report: Report | None = None
) -> tuple[HashHead, list[dict[str, float]]]:
    """Fit a head Dense - ReLU - Dense - batch normalisation.

    Args:
        x: the features of N images, float32 [N, d].
        views: those of augmented views of the same images, float32 [N, d] each.
        segment: its name and bits.
        training: seed and learning rate.
        report: told after every step.

    Returns:
        The head, balanced over `x`, and the history of epochs.

    Raises:
        InputError: no views, fewer than two images, or a loss that is not a number.
    """
    if not views or len(x) < 2:
        raise InputError(
            f'{segment.name}: contrastive needs augmented views of two images or more; '
            f'there are {len(views)} views of {len(x)} images'
        )
    keras = import_keras()
    mean, components = principal_components(x, min(COMPONENTS, *x.shape))
    components /= ((x - mean) @ components).std() or 1.0
    every = [((view - mean) @ components).astype(np.float32) for view in (x, *views)]
    a, b = (keras.Input((components.shape[1],), name=name) for name in 'ab')
    layers = _layers(segment.bits, training.seed)
    # One small network for both sides of a pair
    outputs = []
    for z in (a, b):
        for layer in layers:
            z = layer(z)
        outputs.append(z)
    network = keras.Model({'a': a, 'b': b}, keras.layers.Concatenate()(outputs))

    # Trained on pairs of views drawn anew in each epoch
    steps = max(1, len(x) // BATCH_SIZE)
    epochs = -(-STEPS // steps)

    def loss(_: Any, output: Any) -> Any:
        return losses.contrastive_loss(output[:, : segment.bits], output[:, segment.bits :], TEMPERATURE)

    network.compile(keras.optimizers.Adam(training.learning_rate), loss)

    def make(rows: NDArray, epoch: int) -> Batch:
        first, second = np.random.default_rng([training.seed, epoch, *rows[:2]]).choice(len(every), 2, replace=False)
        return {'a': every[first][rows], 'b': every[second][rows]}, np.zeros(len(rows), np.float32)

    def batches(epoch: int) -> Iterable[Callable[[], Batch]]:
        for rows in shuffled(np.arange(len(x)), BATCH_SIZE, training.seed, epoch):
            yield functools.partial(make, rows, epoch)

    history = train_network(network, batches, steps, epochs, stage=segment.name, report=report)

    # The head takes features: what was done to them before goes into its first layer
    hidden, last = layers[0].get_weights(), layers[1].get_weights()[0]
    first = (components @ hidden[0]).astype(np.float32)
    head = HashHead(last, np.zeros(segment.bits, np.float32), ((first, (hidden[1] - mean @ first).astype(np.float32)),))
    return head.shifted(head.activations(x).mean(axis=0, dtype=np.float64)), history


def _layers(bits: int, seed: int) -> list[Any]:
    keras = import_keras()
    start = [keras.initializers.GlorotUniform(seed=seed + i) for i in range(2)]
    return [
        keras.layers.Dense(HIDDEN, activation='relu', kernel_initializer=start[0]),
        keras.layers.Dense(bits, use_bias=False, kernel_initializer=start[1]),
        keras.layers.BatchNormalization(center=False, scale=False, momentum=BN_MOMENTUM),
    ]
