"""How good codes are: which queries find what their labels ask for, and how well the bits are used.

The numbers come from `metrics.py`. This module decides what is measured: every profile on every label level, and each
query without itself. No file is read or written here; `grainhash evaluate` does that.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hashing_model.codes.bits import check_codes
from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from hashing_model.evaluation import code_health, metrics
from hashing_model.evaluation.figures import (
    CatalogueCost,
    Collision,
    Collisions,
    LevelFigures,
    ProfileFigures,
    Quality,
    TableEntropy,
)
from hashing_model.evaluation.ranking import Counts, Ranking, rank
from hashing_model.labels import LabelLevel

RADIUS = 2  # of P@H<=2
PLACES = tuple(m * 10**e for e in range(7) for m in (1, 2, 5))  # the k of precision@k, as far as the database goes
ALWAYS_AT = (1, 10, 100)
COLLISIONS_SHOWN, IDS_SHOWN = 20, 10
LOPSIDED, ALIKE, CROWDED, HARDLY = 0.05, 0.95, 0.01, 1.5  # when to warn; see `_warnings`


@dataclasses.dataclass(frozen=True)
class CodedImages:
    """N images: their codes and what is known of them.

    Args:
        codes: uint8 [N, B].
        ids: N different names. A query finds itself in the database by its id, and is left out of its own answers.
        labels: level -> classes, coarse first, with the same class names in queries and database; see `label_levels`.
        digests: of the images' bytes, None where unknown; images with equal digests are copies of one picture. Empty if
            no digest is known.
    """

    codes: NDArray[np.uint8]
    ids: Sequence[str]
    labels: Mapping[str, LabelLevel] = dataclasses.field(default_factory=dict)
    digests: Sequence[bytes | None] = ()

    def __len__(self) -> int:
        """The number of images N."""
        return len(self.codes)

    @property
    def pictures(self) -> list[bytes | str]:
        """What tells pictures apart: the digest, or the id where there is none."""
        digests = self.digests or [None] * len(self)
        return [i if d is None else d for d, i in zip(digests, self.ids, strict=True)]


def label_levels(*groups: Sequence[Mapping[str, Iterable[str]]]) -> list[dict[str, LabelLevel]]:
    """Turn the labels of several groups of images into levels that have the same class names in every group.

    >>> queries, database = label_levels([{'fine': ['cat']}], [{'fine': ['dog']}, {}])
    >>> queries['fine'].names, database['fine'].counts.tolist()
    (('cat', 'dog'), [1, 0])
    """
    names: dict[str, set[str]] = {}
    for labels in itertools.chain(*groups):
        for level, values in labels.items():
            names.setdefault(level, set()).update(values)
    return [
        {
            level: LabelLevel.from_values([labels.get(level, ()) for labels in group], sorted(classes))
            for level, classes in names.items()
        }
        for group in groups
    ]


def evaluate(
    queries: CodedImages,
    database: CodedImages,
    spec: CodeSpec,
    profiles: Iterable[Mapping[str, int]] = (),
    catalogues: Mapping[int, Sequence[tuple[int, int]]] | None = None,
) -> Quality:
    """Ask the database with every query, and measure the answers and the database's codes.

    The profiles are each segment alone, then all segments together, then those given. Without labels, only the codes
    are measured.

    Args:
        queries: the images that ask; one whose id is in the database is left out of its own answers.
        database: the images asked.
        spec: what the codes consist of.
        profiles: more profiles, a weight per segment.
        catalogues: number of images -> (start, bits) of the tables that such a catalogue would be cut into.

    Raises:
        InputError: no images on one side, or codes, ids, labels or profiles that do not fit.
    """
    _check(queries, spec, 'queries')
    _check(database, spec, 'database images')
    rows = {image_id: row for row, image_id in enumerate(database.ids)}
    leave_out = np.array([rows.get(image_id, -1) for image_id in queries.ids])
    weights = _profiles(spec, profiles)
    levels = _levels(queries, database, spec)
    hierarchy = tuple(name for name in levels if name in spec.names)
    quality = Quality(
        queries=len(queries),
        database=len(database),
        left_out=int((leave_out >= 0).sum()),
        copies=_copies(queries, database),
        levels=levels,
        hierarchy=hierarchy,
        profiles=tuple(
            _profile_figures(name, w, queries, database, spec, levels, hierarchy, leave_out)
            for name, w in weights.items()
            if levels
        ),
        health=code_health.health(database.codes, spec),
        collisions=_collisions(database),
        catalogues=tuple(_catalogue(database.codes, spec, n, cut) for n, cut in (catalogues or {}).items()),
    )
    return dataclasses.replace(quality, warnings=tuple(_warnings(quality, queries, database)))


def _check(images: CodedImages, spec: CodeSpec, what: str) -> None:
    check_codes(images.codes, spec)
    if not len(images):
        raise InputError(f'there are no {what} to measure')
    if len(set(images.ids)) != len(images):
        raise InputError(f'the {what} have {len(images)} codes and {len(set(images.ids))} different ids')
    if images.digests and len(images.digests) != len(images):
        raise InputError(f'the {what} have {len(images)} codes and {len(images.digests)} digests')


def _profiles(spec: CodeSpec, given: Iterable[Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Name -> weights."""
    found = {name: {name: 1} for name in spec.names}
    if len(spec.names) > 1:
        found['all' if 'all' not in spec.names else 'all segments'] = dict.fromkeys(spec.names, 1)
    for profile in given:
        spec.weights(profile)
        found.setdefault(','.join(f'{name}={weight}' for name, weight in profile.items()), dict(profile))
    return found


def _levels(queries: CodedImages, database: CodedImages, spec: CodeSpec) -> tuple[str, ...]:
    """The levels that both sides have labels of: segments in their order, then the others."""
    known = [name for name in database.labels if _has(queries, name) and _has(database, name)]
    return (*(n for n in spec.names if n in known), *(n for n in known if n not in spec.names))


def _has(images: CodedImages, level: str) -> bool:
    return level in images.labels and bool(images.labels[level].counts.any())


def _copies(queries: CodedImages, database: CodedImages) -> int:
    """Queries whose picture the database has under another id."""
    ids_of: dict[bytes | str, list[str]] = {}
    for picture, image_id in zip(database.pictures, database.ids, strict=True):
        ids_of.setdefault(picture, []).append(image_id)
    asked = zip(queries.pictures, queries.ids, strict=True)
    return sum(any(other != own for other in ids_of.get(picture, ())) for picture, own in asked)


def _profile_figures(
    name: str,
    weights: Mapping[str, int],
    queries: CodedImages,
    database: CodedImages,
    spec: CodeSpec,
    levels: Sequence[str],
    hierarchy: Sequence[str],
    leave_out: NDArray[np.int64],
) -> ProfileFigures:
    def ranked(names: Sequence[str]) -> Ranking:
        asked, known = ([images.labels[n] for n in names] for images in (queries, database))
        return rank(queries.codes, asked, database.codes, known, spec, weights, leave_out)

    whole = ranked(hierarchy) if hierarchy else None
    figures = {}
    for level in levels:
        ranking = whole if whole is not None and level == hierarchy[0] else ranked([level])
        unlabelled = int((queries.labels[level].counts == 0).sum())
        figures[level] = _level_figures(ranking.totals, ranking.relevant, unlabelled)
    return ProfileFigures(
        name,
        dict(weights),
        figures,
        _mean(metrics.ndcg(whole.totals, whole.graded, 100)) if whole else math.nan,
        _mean(metrics.hierarchical_average_precision(whole.totals, whole.graded)) if whole else math.nan,
    )


def _level_figures(totals: Counts, relevant: Counts, unlabelled: int) -> LevelFigures:
    """Figures of histograms int64 [Q, D + 1], over the queries to which something is relevant."""
    counts = relevant.any(axis=1)
    without = int((~counts).sum()) - unlabelled
    totals, relevant = totals[counts], relevant[counts]
    worst, best = metrics.average_precision_bounds(totals, relevant)
    size = int(totals[0].sum()) if len(totals) else 0
    places = sorted({*ALWAYS_AT, *(k for k in PLACES if k <= size)})
    curve = metrics.precision_recall_curve(totals, relevant)
    return LevelFigures(
        queries=len(totals),
        without_relevant=without,
        unlabelled=unlabelled,
        chance=_mean(metrics.average_precision(*(h.sum(axis=1, keepdims=True) for h in (totals, relevant)))),
        map=_mean(metrics.average_precision(totals, relevant)),
        map_worst=_mean(worst),
        map_best=_mean(best),
        map_1000=_mean(metrics.average_precision(totals, relevant, 1000)),
        precision={k: _mean(metrics.precision_at(totals, relevant, k)) for k in places},
        recall_100=_mean(metrics.recall_at(totals, relevant, 100)),
        hit={k: _mean(metrics.hit_at(totals, relevant, k)) for k in (1, 10)},
        precision_radius_2=_mean(metrics.precision_within(totals, relevant, RADIUS)),
        empty_radius_2=metrics.empty_rate(totals, RADIUS),
        curve=dict(zip(metrics.RECALL_LEVELS, curve.tolist(), strict=True)),
    )


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of the values that there are; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _collisions(images: CodedImages) -> Collisions:
    pictures = images.pictures
    groups = code_health.collisions(images.codes, len(images))
    different = [len({pictures[row] for row in rows}) for rows in groups]
    ranked = sorted(
        (pair for pair in zip(different, groups, strict=True) if pair[0] > 1), key=lambda p: (-p[0], -len(p[1]))
    )
    return Collisions(
        groups=len(ranked),
        images=sum(len(rows) for _, rows in ranked),
        identical_groups=len(groups) - len(ranked),
        worst=tuple(
            Collision(len(rows), count, tuple(images.ids[row] for row in rows[:IDS_SHOWN]))
            for count, rows in ranked[:COLLISIONS_SHOWN]
        ),
    )


def _catalogue(codes: NDArray[np.uint8], spec: CodeSpec, images: int, cut: Sequence[tuple[int, int]]) -> CatalogueCost:
    pairs = len(codes) * (len(codes) - 1) // 2
    visible = math.log2(pairs) if pairs else 0.0
    tables = []
    for start, bits in cut:
        segment = next(s.name for s in spec.segments if spec.start(s.name) <= start < spec.start(s.name) + s.bits)
        tables.append(TableEntropy(segment, start, bits, code_health.substring_entropy(codes, start, bits)))
    candidates = images * min(1.0, sum(2**-t.entropy for t in tables))  # beyond, a scan costs less
    return CatalogueCost(images, candidates, any(t.entropy >= visible for t in tables), tuple(tables))


# What is wrong


def _warnings(quality: Quality, queries: CodedImages, database: CodedImages) -> Iterable[str]:
    yield from _bit_warnings(quality.health)
    worst = quality.collisions.worst[0] if quality.collisions.worst else None
    if worst and worst.pictures > 2 and worst.pictures > CROWDED * quality.database:
        share = worst.pictures / quality.database
        yield f'{worst.pictures:,} different pictures ({share:.1%} of all images) have one and the same code'
    if 0 < quality.left_out < quality.queries:
        yield (
            f'{quality.left_out:,} of {quality.queries:,} queries are in the database under the same id; '
            'each was asked without itself'
        )
    if quality.copies:
        yield f'{quality.copies:,} queries have a copy of their picture in the database, under another id'
    one_sided = [n for n in database.labels if n not in quality.levels and _has(queries, n) != _has(database, n)]
    for name in one_sided:
        yield f'level {name} is not measured: only the {"queries have" if _has(queries, name) else "database has"} it'
    if not quality.levels:
        yield 'there are no labels to compare: only the codes themselves were measured'
    yield from _level_warnings(quality)


def _bit_warnings(health: code_health.CodeHealth) -> Iterable[str]:
    for name, bits in health.segments.items():
        constant = np.flatnonzero((bits.ones == 0) | (bits.ones == 1))
        lopsided = np.flatnonzero(bits.imbalance > 0.5 - LOPSIDED).size - constant.size
        alike = np.argwhere(np.triu(np.abs(bits.correlation) > ALIKE, 1))
        if constant.size:
            which = ', '.join(map(str, constant[:5])) + (', ...' if constant.size > 5 else '')
            yield f'{name}: {constant.size} of {len(bits.ones)} bits are the same in all images ({which})'
        if lopsided:
            yield f'{name}: {lopsided} of {len(bits.ones)} bits have one value in over {1 - LOPSIDED:.0%} of the images'
        if len(alike):
            a, b = alike[0]
            yield f'{name}: {len(alike)} pairs of bits say the same (correlation above {ALIKE}), such as {a} and {b}'


def _level_warnings(quality: Quality) -> Iterable[str]:
    for level in quality.levels:
        figures = quality.profiles[0].levels[level]
        labelled = figures.queries + figures.without_relevant
        if not figures.queries:
            yield f'level {level} is not measured: nothing in the database is relevant to any query'
        elif figures.without_relevant > 0.1 * labelled:
            yield (
                f'level {level}: nothing in the database is relevant to {figures.without_relevant:,} of '
                f'{labelled:,} queries; its figures are those of the others'
            )
    for profile in quality.profiles:
        own = profile.levels.get(profile.name)
        if own and own.map < HARDLY * own.chance < 0.9:
            yield (
                f'{profile.name} hardly finds its own labels: mAP {own.map:.3f}, '
                f'where codes that say nothing have {own.chance:.3f}'
            )
