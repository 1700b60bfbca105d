"""Training the last blocks of the backbone along with the supervised heads, on augmented pictures."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashing_model.errors import InputError
from hashing_model.features import BACKBONE_FEATURES, HAND_FEATURES, hand_features
from hashing_model.features.backbone import Backbone
from hashing_model.features.fusion import Fusion
from hashing_model.heads.ridge import fit_linear_ridge
from hashing_model.heads.supervision import Arrays, Supervision
from hashing_model.images.augment import TRAIN, augment
from hashing_model.keras_runtime import import_keras
from hashing_model.networks.head_network import standardised, start_from
from hashing_model.networks.loop import Batch, Checkpoint, Report, Training, train_network
from hashing_model.networks.supervised import activations_of, hash_network, segment_losses, shuffled, start_classifier

BATCH_SIZE = 32
RATE = 0.3  # of the learning rate: what is trained already takes smaller steps
WARM_UP = 0.05  # of all steps
AVERAGED_STEPS = 200  # the mean over about so many steps is what is kept
_BLOCK = re.compile(r'.*?\d+[a-z]?(?=_|$)')


def finetune(
    images: Sequence[NDArray[np.uint8]],
    backbone: Backbone,
    fusion: Fusion,
    supervision: Supervision,
    fused: Arrays,
    training: Training,
    report: Report | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[Any, list[dict[str, float]]]:
    """Train `backbone` in place, with the head of each supervised segment.

    The heads are fitted before the backbone is trained; otherwise their first gradients would destroy what it knows
    (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features"). For the same reason batch normalisation is not
    trained: statistics over small batches of other pictures would change the network.

    Args:
        images: N pictures uint8 [size, size, 3].
        backbone: its last `training.finetune_blocks` blocks are trained.
        fusion: scales of the feature groups; kept.
        supervision: what is trained towards, and the images to validate on.
        fused: standardised feature groups of the pictures by the backbone as it is, name -> float32 [N, d].
        training: how.
        report: told after every step.
        checkpoint: see `train_network`.

    Returns:
        The trained network, for `trained_heads`, and the history of epochs.

    Raises:
        InputError: no supervised segment reads the backbone, or the loss is not a number.
    """
    if not set(supervision.groups) & set(BACKBONE_FEATURES):
        raise InputError('finetune-blocks: no labelled segment reads the backbone; leave it out')

    # The network, whose heads are fitted to the backbone as it is
    choose_trainable(backbone.model, training.finetune_blocks)
    pictures = _Pictures(images, backbone, supervision, training.seed)
    network = _network(pictures, fusion, training)
    start(network, supervision, fused, training)

    # Both together, in small steps
    steps = max(1, len(supervision.train) // BATCH_SIZE)
    optimizer = _optimizer(RATE * training.learning_rate, training.finetune_epochs * steps)
    network.compile(optimizer, segment_losses(supervision, training))
    history = train_network(
        network,
        pictures.batches,
        steps,
        training.finetune_epochs,
        functools.partial(pictures.score, network) if len(supervision.held_out) else None,
        None,
        'fine-tuning',
        report,
        checkpoint,
        momentum=1 - 1 / max(1, min(AVERAGED_STEPS, steps)),
    )
    backbone.weights_changed()
    return network, history


@dataclasses.dataclass(frozen=True)
class _Pictures:
    """What a network learns from, batch by batch, and is validated on; see `finetune`."""

    images: Sequence[NDArray[np.uint8]]
    backbone: Backbone
    supervision: Supervision
    seed: int

    @property
    def hand(self) -> list[str]:
        """The hand-made feature groups that the segments read."""
        return [name for name in self.supervision.groups if name in HAND_FEATURES]

    def batches(self, epoch: int) -> Iterable[Callable[[], Batch]]:
        """Functions that make the batches of an epoch."""
        for rows in shuffled(self.supervision.train, BATCH_SIZE, self.seed, epoch):
            yield functools.partial(self.batch, rows, epoch)

    def batch(self, rows: NDArray[np.int64], epoch: int) -> Batch:
        """Augmented pictures and their targets."""
        rng = np.random.default_rng([self.seed, epoch, *rows[:2]])
        pixels = augment(np.stack([self.images[i] for i in rows]), rng, TRAIN)
        return self.inputs(pixels), self.supervision.targets(rows)

    def inputs(self, pixels: NDArray[np.uint8]) -> dict[str, Any]:
        """What the network reads of pictures uint8 [N, size, size, 3]."""
        found = {self.backbone.tapped.inputs[0].name: self.backbone.to_input(pixels.astype(np.float32))}
        return {**found, **hand_features(pixels, self.hand)} if self.hand else found

    def score(self, network: Any) -> float:
        """The mAP of the pictures held out, the mean over the segments."""
        held_out, parts = self.supervision.held_out, []
        for first in range(0, len(held_out), BATCH_SIZE):
            pixels = np.stack([self.images[i] for i in held_out[first : first + BATCH_SIZE]])
            parts.append(activations_of(network, self.inputs(pixels), self.supervision))
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return float(np.mean(list(self.supervision.scores(whole, held_out).values())))


def _network(pictures: _Pictures, fusion: Fusion, training: Training) -> Any:
    """The backbone and hand-made features, brought to scale, with the heads of the supervised segments on them."""
    image = pictures.backbone.tapped.inputs[0]
    inputs = {image.name: image}  # Keras warns of other keys than the names
    inputs |= {name: import_keras().Input((len(fusion.mean[name]),), name=name) for name in pictures.hand}
    groups = {**pictures.backbone.tapped.output, **inputs}
    scaled = {
        name: standardised(groups[name], fusion.mean[name], fusion.scale[name]) for name in pictures.supervision.groups
    }
    return hash_network(inputs, scaled, pictures.supervision, training)


def start(network: Any, supervision: Supervision, fused: Arrays, training: Training) -> None:
    """Start the heads of a `hash_network` from those that `fit_linear_ridge` fits to standardised features."""
    heads = fit_linear_ridge(fused, supervision)
    for segment in supervision.segments:
        x = np.concatenate([fused[name] for name in segment.features], axis=1)
        start_from(network, segment, heads[segment.name], x)
        if training.method == 'greedy':
            start_classifier(network, segment, supervision.centers[segment.name])


def choose_trainable(model: Any, blocks: int) -> None:
    """Make the layers of the last `blocks` blocks and all that follow them trainable, but no batch normalisation.

    A block is a run of layers with weights whose names agree up to the first number: `block12_expand_conv`,
    `block12_project_conv`. More blocks than the network has make all of it trainable.
    """
    names = [_block(layer) for layer in model.layers]
    order = list(dict.fromkeys(name for name in names if name))
    first = names.index(order[-blocks]) if blocks <= len(order) else 0
    for i, layer in enumerate(model.layers):
        layer.trainable = i >= first
    for layer in _all_layers(model):
        if _is_norm(layer):
            layer.trainable = False


def _block(layer: Any) -> str | None:
    match = _BLOCK.match(layer.name.replace('conv2d', 'conv'))
    return match.group() if match and layer.weights and not _is_norm(layer) else None


def _all_layers(model: Any) -> Iterator[Any]:
    """Its layers, and those of the models that are layers of it."""
    for layer in model.layers:
        yield layer
        yield from _all_layers(layer) if hasattr(layer, 'layers') else ()


def _is_norm(layer: Any) -> bool:
    return type(layer).__name__ == 'BatchNormalization'


def _optimizer(learning_rate: float, steps: int) -> Any:
    """AdamW whose learning rate warms up and falls along a cosine."""
    keras = import_keras()
    warm = max(1, round(WARM_UP * steps))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm), alpha=0.02, warmup_target=learning_rate, warmup_steps=warm
    )
    return keras.optimizers.AdamW(schedule, weight_decay=1e-4, name='finetuning')
