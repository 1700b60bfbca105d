"""Labels to targets: target codes for the classes of each segment, and the images held out to validate on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashing_model.codes.bits import pack_bits
from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.errors import InputError
from hashing_model.heads.head import HashHead
from hashing_model.heads.target_codes import check_centers, hierarchical_centers, hierarchy_order
from hashing_model.labels import LabelLevel

VALIDATION_SHARE, MOST_VALIDATION, LEAST_VALIDATION = 0.05, 2000, 20
ITEM_IMAGES = 10  # on average at most, where a level of the labels tells items from each other
Arrays = Mapping[str, NDArray[np.float32]]


@dataclasses.dataclass(frozen=True)
class Supervision:
    """What the supervised segments are trained towards.

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
        """How far the distances of target codes keep the order of nested levels; see `target_codes.hierarchy_order`."""
        return hierarchy_order(list(self.centers.values()), _parents(self.segments, self.levels))

    @property
    def groups(self) -> tuple[str, ...]:
        """The feature groups that the segments read."""
        return tuple(dict.fromkeys(name for s in self.segments for name in s.features))

    def targets(self, rows: NDArray) -> dict[str, NDArray[np.float32]]:
        """Segment name -> label distributions of some images, float32 [N, classes]."""
        return {name: level.take(rows).targets() for name, level in self.levels.items()}

    def scores(self, activations: Arrays, rows: NDArray) -> dict[str, float]:
        """The tie-aware mAP@all of each segment, for images that ask each other; each is left out of its own answers.

        A query whose class has no other image among the rows does not count.
        """
        found = {s.name: self.precision(s, activations[s.name], rows) for s in self.segments}
        return {name: float(np.nanmean(p)) if np.isfinite(p).any() else 0.0 for name, p in found.items()}

    def precision(self, segment: Segment, activations: NDArray[np.float32], rows: NDArray) -> NDArray[np.float64]:
        """The average precision in one segment of each image that asks in `scores`, float64 [N].

        NaN for those that do not count.

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
        """Facts for `training.json`: images with labels, order of nested levels, mAP of the images held out."""
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

    If a label level that belongs to no segment tells which pictures show the same item, such pictures are held out
    together.

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
    """A number per image, equal for pictures of the same item; None if no label level tells items.

    A level tells items if it belongs to no segment, gives an image at most one label, and each of its labels has few
    images. Pictures of one item must not be on both sides of a split: validation would then look better than new
    pictures will be.
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
    """The rows with those of one item together, each item at the place of its first row; and where the items end.

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
