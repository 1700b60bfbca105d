"""What was measured of codes: a tree of plain values. `evaluate.py` fills it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from hashing_model.evaluation.code_health import CodeHealth


@dataclasses.dataclass(frozen=True)
class LevelFigures:
    """How well one profile finds the images that share a class at one level; means over `queries`, NaN if there are 0.

    Every figure is the expectation over all orders of images at the same distance; see `metrics.py`.

    Args:
        queries: how many queries count: they have a label at this level, and something in the database is relevant to
            them.
        without_relevant: queries with a label to which nothing is relevant.
        unlabelled: queries without a label at this level.
        chance: mean average precision if all codes were equal, that is, by chance.
        map, map_worst, map_best: mean average precision of the whole ranking: expected, and if ties fall worst and
            best.
        map_1000: of the first 1,000.
        precision: k -> precision of the first k.
        recall_100: share of the relevant images among the first 100.
        hit: k -> share of the queries with something relevant among the first k.
        precision_radius_2: share of relevant images within distance 2, 0 where nothing is.
        empty_radius_2: share of the queries with nothing within distance 2.
        curve: level of recall -> precision.
    """

    queries: int
    without_relevant: int
    unlabelled: int
    chance: float
    map: float
    map_worst: float
    map_best: float
    map_1000: float
    precision: Mapping[int, float]
    recall_100: float
    hit: Mapping[int, float]
    precision_radius_2: float
    empty_radius_2: float
    curve: Mapping[float, float]


@dataclasses.dataclass(frozen=True)
class ProfileFigures:
    """What one profile finds.

    Args:
        name: of a segment, `all`, or as the user wrote it.
        weights: segment -> weight.
        levels: level -> figures.
        ndcg_100, hierarchical_ap: graded by how many of the levels that are segments an answer shares with its query;
            NaN without such levels.
    """

    name: str
    weights: Mapping[str, int]
    levels: Mapping[str, LevelFigures]
    ndcg_100: float
    hierarchical_ap: float


# How the codes are used


@dataclasses.dataclass(frozen=True)
class Collision:
    """Different pictures with one code: how many images, how many different pictures, the first few ids."""

    images: int
    pictures: int
    image_ids: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Collisions:
    """Codes that several images have.

    Args:
        groups: codes that different pictures share.
        images: images with such a code.
        identical_groups: codes that only copies of one picture share (images with one digest), which are no collisions.
        worst: the groups with most pictures.
    """

    groups: int
    images: int
    identical_groups: int
    worst: tuple[Collision, ...]


@dataclasses.dataclass(frozen=True)
class TableEntropy:
    """The collision entropy H2 of one substring, in bits; see `code_health.substring_entropy`."""

    segment: str
    start: int
    bits: int
    entropy: float


@dataclasses.dataclass(frozen=True)
class CatalogueCost:
    """What a query at radius 0 would visit in a catalogue of `images`, cut into these tables.

    `at_most` is True if the measured images are too few to tell how rarely codes agree in some table; the cost is then
    an upper limit.
    """

    images: int
    expected_candidates: float
    at_most: bool
    tables: tuple[TableEntropy, ...]


@dataclasses.dataclass(frozen=True)
class Quality:
    """All that was measured.

    Args:
        queries, database: how many images asked, and were asked.
        left_out: queries that are in the database, by id; each was asked without itself.
        copies: queries whose picture is in the database under another id.
        levels: label levels, those that are segments first.
        hierarchy: the levels that are segments, in their order.
        profiles: empty without labels.
        health: of the database's codes; `collisions` and `catalogues` are of the same codes.
        warnings: what is wrong, in plain words.
    """

    queries: int
    database: int
    left_out: int
    copies: int
    levels: tuple[str, ...]
    hierarchy: tuple[str, ...]
    profiles: tuple[ProfileFigures, ...]
    health: CodeHealth
    collisions: Collisions
    catalogues: tuple[CatalogueCost, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for strict JSON: six digits of each number, None for what has no value."""
        return _plain(self)


def _plain(value: Any) -> Any:
    if isinstance(value, CodeHealth):
        return _plain(value.to_json())
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f'{value:.6g}') if math.isfinite(value) else None
    return value
