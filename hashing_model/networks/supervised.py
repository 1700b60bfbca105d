"""Heads trained on labels: target codes for the classes, a loss that pulls each picture to its class's, validation.

OrthoHash (Hoe et al. 2021), CSQ (Yuan et al. 2020) with our own centres, GreedyHash (Su et al. 2018). The features are
fixed here; `ridge.py` needs no gradients, `finetune.py` trains the backbone along.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashing_model.codes.bits import pack_bits
from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.errors import InputError
from hashing_model.heads.head import HashHead
from hashing_model.heads.target_codes import check_centers, hierarchical_centers, hierarchy_order
from hashing_model.keras_runtime import import_keras
from hashing_model.labels import LabelLevel
from hashing_model.networks import losses
from hashing_model.networks.head_network import head_outputs, trained_head
from hashing_model.networks.loop import Batch, Report, Training, train_network

BY_GRADIENTS = ('ortho', 'csq', 'greedy')
SUPERVISED = ('ridge', *BY_GRADIENTS)
MARGIN = 0.3
BATCH_SIZE = 64
PATIENCE = 15
VALIDATION_SHARE, MOST_VALIDATION, LEAST_VALIDATION = 0.05, 2000, 20
ITEM_IMAGES = 10  # on average at most, where a level of the labels tells items from each other
Arrays = Mapping[str, NDArray[np.float32]]


@dataclasses.dataclass(frozen=True)
class Supervision:
    """What the supervised segments are trained to.

    Args:
        segments: in the order of the code spec.
        levels: segment name -> the labels of N images.
        centers: segment name -> the classes' target codes, int8 [classes, bits] of -1 and +1.
        train: int64, rows of the labelled images to train on.
        held_out: int64, rows of those to validate on; none if there are too few.
    """

    segments: tuple[Segment, ...]
    levels: Mapping[str, LabelLevel]
    centers: Mapping[str, NDArray[np.int8]]
    train: NDArray[np.int64]
    held_out: NDArray[np.int64]

    @property
    def order(self) -> float:
        """How far the distances of target codes keep the order of nested levels; see `centers.hierarchy_order`."""
        return hierarchy_order(list(self.centers.values()), _parents(self.segments, self.levels))

    @property
    def groups(self) -> tuple[str, ...]:
        """The feature groups that the segments read."""
        return tuple(dict.fromkeys(name for s in self.segments for name in s.features))

    def targets(self, rows: NDArray) -> dict[str, NDArray[np.float32]]:
        """Segment name -> label distributions of some images, float32 [N, classes]."""
        return {name: level.take(rows).targets() for name, level in self.levels.items()}

    def scores(self, activations: Arrays, rows: NDArray) -> dict[str, float]:
        """Per segment, the tie-aware mAP@all of images among themselves, each left out of its own answers.

        A query whose class has no other image among the rows does not count.
        """
        found = {s.name: self.precision(s, activations[s.name], rows) for s in self.segments}
        return {name: float(np.nanmean(p)) if np.isfinite(p).any() else 0.0 for name, p in found.items()}

    def precision(self, segment: Segment, activations: NDArray[np.float32], rows: NDArray) -> NDArray[np.float64]:
        """The average precision of each image of `scores` in one segment, float64 [N]; NaN of those that do not count.

        Args:
            segment: one of the supervised segments.
            activations: float32 [N, bits] of the images.
            rows: int64 [N], which images they are.
        """
        from hashing_model.evaluation.metrics import average_precision
        from hashing_model.evaluation.ranking import rank

        codes, level = pack_bits(activations >= 0), self.levels[segment.name].take(rows)
        ranking = rank(codes, [level], codes, [level], CodeSpec((segment,)), leave_out=np.arange(len(rows)))
        return average_precision(ranking.totals, ranking.relevant)

    def about(self, heads: Mapping[str, HashHead], fused: Arrays) -> dict[str, Any]:
        """For people: images with labels, how far nested levels keep their order, mAP of the images held out."""
        about: dict[str, Any] = {
            'labelled': {name: int((level.counts > 0).sum()) for name, level in self.levels.items()},
            'hierarchy_order': round(self.order, 4),
        }
        if len(self.held_out):
            found = {}
            for s in self.segments:
                x = np.concatenate([fused[name][self.held_out] for name in s.features], axis=1)
                precision = self.precision(s, heads[s.name].activations(x), self.held_out)
                if np.isfinite(precision).any():
                    found[s.name] = round(float(np.nanmean(precision)), 4)
            about['validation_map'] = found
        return about


def supervise(spec: CodeSpec, labels: Mapping[str, LabelLevel], rng: np.random.Generator) -> Supervision:
    """Choose the segments that have labels, their target codes, and the images to validate on.

    Pictures of one item, if a level of the labels that is no segment's tells items, are held out together.

    Raises:
        InputError: no segment has labels, a level has one class only, or more classes than the bits can hold apart.
    """
    segments = tuple(s for s in spec.segments if s.name in labels)
    levels = {s.name: labels[s.name] for s in segments}
    if not segments:
        raise InputError(
            f'the labels have the levels {", ".join(labels) or "(none)"} and the code has the segments '
            f'{", ".join(spec.names)}: name segments after levels, as in --segments coarse=32,fine=32'
        )
    for name, level in levels.items():
        classes = len(np.unique(level.classes))
        if classes < 2:
            raise InputError(f'{name}: {classes} class is nothing to tell apart; give labels of two or more')
    centers = _centers(segments, levels, rng)
    labelled = np.flatnonzero(np.sum([level.counts for level in levels.values()], axis=0))
    order = rng.permutation(labelled)
    held_out = min(MOST_VALIDATION, int(VALIDATION_SHARE * len(order)))
    if (items := _items(labels, segments)) is not None:
        order, ends = together(order, items)
        held_out = int(ends[np.searchsorted(ends, held_out)])
    pairs = any(len(np.unique(c)) < len(c) for c in (v.take(order[:held_out]).classes for v in levels.values()))
    held_out = held_out if held_out >= LEAST_VALIDATION and pairs else 0  # who has no like asks for nothing
    return Supervision(segments, levels, centers, np.sort(order[held_out:]), np.sort(order[:held_out]))


def _items(labels: Mapping[str, LabelLevel], segments: Sequence[Segment]) -> NDArray[np.int64] | None:
    """A number per image, equal for pictures of one item; None if no level of the labels tells items.

    Such a level is no segment's, gives an image one label at most, and names few images by each. Pictures of one item
    on both sides of a split would make the side that is held out look better than what is new will be.
    """
    for name in reversed([name for name in labels if name not in {s.name for s in segments}]):
        level = labels[name]
        named = np.flatnonzero(level.counts)
        if (level.counts <= 1).all() and len(named) <= ITEM_IMAGES * len(np.unique(level.classes)):
            items = -1 - np.arange(len(level.counts))  # without a label, each image is an item
            items[named] = level.classes[level.starts[named]]
            return items
    return None


def together(order: NDArray[np.int64], items: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows in an order that has those of one item together, each item where its first was; and where items end.

    Args:
        order: int64 [n], rows in some order.
        items: int64 [N], the item of each row.
    """
    _, first, item = np.unique(items[order], return_index=True, return_inverse=True)
    place = np.argsort(first[item], kind='stable')
    changes = np.flatnonzero(np.diff(item[place])) + 1
    return order[place], np.concatenate([[0], changes, [len(order)]])


def _centers(
    segments: tuple[Segment, ...], levels: Mapping[str, LabelLevel], rng: np.random.Generator
) -> dict[str, NDArray[np.int8]]:
    above = _parents(segments, levels)
    made = hierarchical_centers(above, [len(level.names) for level in levels.values()], [s.bits for s in segments], rng)
    centers = {s.name: c for s, c in zip(segments, made, strict=True)}
    for name, level in levels.items():
        check_centers(centers[name], level.names)
    return centers


def _parents(segments: tuple[Segment, ...], levels: Mapping[str, LabelLevel]) -> list[NDArray[np.int32] | None]:
    return [None, *(parents(levels[a.name], levels[b.name]) for a, b in itertools.pairwise(segments))]


def parents(upper: LabelLevel, lower: LabelLevel) -> NDArray[np.int32] | None:
    """The class of `upper` that each class of `lower` lies in, int32 [lower classes]; None if they do not nest."""
    if (upper.counts > 1).any() or len(upper.names) == len(lower.names):
        return None  # one child each is no hierarchy
    both = np.flatnonzero((upper.counts == 1) & (lower.counts > 0))
    above = np.repeat(upper.classes[upper.starts[both]], lower.counts[both])
    below = lower.take(both).classes
    found = np.full(len(lower.names), -1, np.int32)
    found[below] = above
    return found if (found >= 0).all() and (found[below] == above).all() else None


def hash_network(inputs: Any, groups: Mapping[str, Any], supervision: Supervision, training: Training) -> Any:
    """The Keras network from `inputs` to each supervised segment's output, over symbolic standardised `groups`.

    An output holds the activations [N, bits]; with `greedy` a classifier's logits after them.
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
    """Let a segment's classifier of `greedy` begin with the likeness of a code to each class's target code."""
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
    """The rows in another order each epoch, `size` at a time; what does not fill a batch waits for another epoch."""
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
    keras = import_keras()
    names = supervision.groups
    inputs = {name: keras.Input((fused[name].shape[1],), name=name) for name in names}
    network = hash_network(inputs, inputs, supervision, training)
    steps = max(1, len(supervision.train) // BATCH_SIZE)
    schedule = keras.optimizers.schedules.CosineDecay(training.learning_rate, training.epochs * steps, alpha=0.02)
    network.compile(keras.optimizers.Adam(schedule), segment_losses(supervision, training))

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
    """What the bits are the signs of: segment name -> float32 [N, bits]."""
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
