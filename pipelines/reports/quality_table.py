"""The figures of an evaluation as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table

from hashing_model.evaluation.code_health import BitHealth
from hashing_model.evaluation.figures import CatalogueCost, LevelFigures, Quality
from pipelines.reports.console import output_console


def print_quality(quality: Quality, model: Mapping[str, str] | None) -> None:
    """The figures for people, on standard output."""
    console = output_console()
    asked = 'each without itself' if quality.left_out == quality.queries else 'the queries are not in it'
    if 0 < quality.left_out < quality.queries:
        asked = f'{quality.left_out:,} without themselves'
    console.print(f'asked     {quality.queries:,} queries in a database of {quality.database:,} images, {asked}')
    console.print(f'model     {model["method"]} {model["fingerprint"][:12]}' if model else 'model     none, from codes')
    for table in _tables(quality):
        console.print()
        console.print(table)
    console.print()
    console.print(f'collisions  {_collisions(quality)}', soft_wrap=True)
    for warning in quality.warnings:
        console.print(f'warning     {warning}', soft_wrap=True)


def _tables(quality: Quality) -> Iterable[Table]:
    measured = [level for level in quality.levels if quality.profiles[0].levels[level].queries]
    if measured:
        yield _retrieval(quality, measured)
    if any(level in measured for level in quality.hierarchy):
        yield _hierarchy(quality)
    yield _health(quality)
    yield _cost(quality)


def _table(title: str, *columns: str, left: int = 1) -> Table:
    """An empty table whose first columns are words and the others numbers."""
    table = Table(title=title, title_justify='left', title_style='bold', box=None, pad_edge=False, min_width=len(title))
    for i, name in enumerate(columns):
        table.add_column(name, justify='left' if i < left else 'right', no_wrap=True)
    return table


def _retrieval(quality: Quality, levels: Sequence[str]) -> Table:
    table = _table(
        'what is found, by label level',
        *('same', 'profile', 'mAP', 'ties', 'mAP@1000', 'P@1', 'P@10', 'P@100', 'R@100', 'hit@10', 'P@H<=2', 'empty'),
        left=2,
    )
    for level in levels:
        figures = {profile.name: profile.levels[level] for profile in quality.profiles}
        best = max(f.map for f in figures.values())
        for i, (name, f) in enumerate(figures.items()):
            style = 'bold' if f.map == best else None
            table.add_row(level if i == 0 else '', name, *_row(f), style=style)
        table.add_row('', 'chance', _number(f.chance), *[''] * 9, style='dim')
        if level != levels[-1]:
            table.add_row()
    return table


def _row(f: LevelFigures) -> Iterable[str]:
    yield _number(f.map)
    yield f'{_number(f.map_worst)}-{_number(f.map_best)}'
    yield from map(_number, (f.map_1000, f.precision[1], f.precision[10], f.precision[100], f.recall_100, f.hit[10]))
    yield from map(_number, (f.precision_radius_2, f.empty_radius_2))


def _hierarchy(quality: Quality) -> Table:
    table = _table(f'by how many of {", ".join(quality.hierarchy)} are shared', 'profile', 'nDCG@100', 'H-AP')
    for profile in quality.profiles:
        table.add_row(profile.name, _number(profile.ndcg_100), _number(profile.hierarchical_ap))
    return table


def _health(quality: Quality) -> Table:
    table = _table(
        'the codes',
        *('segment', 'bits', 'different codes', 'most with one', 'imbalance', 'worst', 'correlation', 'worst'),
    )
    parts: dict[str, BitHealth] = {**quality.health.segments}
    if len(parts) > 1:
        parts['whole code'] = quality.health.code
    for name, bits in parts.items():
        h = bits.to_json()
        worst = (h['mean_imbalance'], h['max_imbalance'], h['mean_correlation'], h['max_correlation'])
        table.add_row(
            name, f'{h["bits"]:,}', f'{bits.distinct:,}', f'{bits.largest_bucket:,}', *(f'{x:.3f}' for x in worst)
        )
    return table


def _cost(quality: Quality) -> Table:
    names = list(quality.health.segments)
    table = _table('what a query visits at radius 0, by H2 of the tables', 'catalogue', 'images visited', *names)
    for cost in quality.catalogues:
        visited = (
            f'{"<= " if cost.at_most else ""}{cost.expected_candidates:,.{0 if cost.expected_candidates >= 10 else 1}f}'
        )
        table.add_row(f'{cost.images:,}', visited, *(_entropies(cost, name) for name in names))
    return table


def _entropies(cost: CatalogueCost, segment: str) -> str:
    """The entropies of a segment's tables, of so many bits: `13.1 12.8 of 16`."""
    tables = [t for t in cost.tables if t.segment == segment]
    bits = sorted({t.bits for t in tables})
    return f'{" ".join(f"{t.entropy:.1f}" for t in tables)} of {"-".join(map(str, bits))}'


def _collisions(quality: Quality) -> str:
    c = quality.collisions
    text = f'{c.groups:,} codes are shared by different pictures, {c.images:,} images in all'
    if c.identical_groups:
        text += f'; {c.identical_groups:,} more by copies of one picture'
    return text


def _number(value: float) -> str:
    return '-' if math.isnan(value) else f'{value:.3f}'
