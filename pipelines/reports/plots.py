"""The plots of an evaluation, as PNG: what codes find, and how their bits are used.

Colours are Okabe and Ito's, which colour-blind people tell apart; every profile also has a line style of its own.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MultipleLocator, NullLocator

from hashing_model.evaluation.figures import LevelFigures, Quality

DPI = 100
WIDTH = 9.0  # inches: 900 pixels
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00')
DASHES = ('--', '-.', ':', (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)))
GREY = '#7a7a7a'
BLACK = '#1a1a1a'
STYLE: dict[str, Any] = {'fontsize': 11, 'color': BLACK}
PANELS_ABREAST = 3
ALL = ('all', 'all segments')


def _looks(quality: Quality) -> dict[str, dict[str, Any]]:
    """Profile or segment -> colour and line style; all segments together are a solid grey line."""
    names = [p.name for p in quality.profiles] or list(quality.health.segments)
    others = [name for name in names if name not in ALL]
    return {name: {'color': GREY, 'linestyle': '-'} for name in ALL} | {
        name: {'color': COLORS[i % len(COLORS)], 'linestyle': DASHES[i % len(DASHES)]} for i, name in enumerate(others)
    }


def precision_recall(quality: Quality) -> bytes | None:
    """Precision over recall, a panel per level and a line per profile; None without labels."""

    def draw(axes: Axes, figures: LevelFigures, **style: Any) -> None:
        axes.plot(list(figures.curve), list(figures.curve.values()), **style)

    def finish(axes: Axes, figures: LevelFigures) -> None:
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ['0', '0.5', '1'])
        axes.set_xlabel('recall', **STYLE)

    return _panels(quality, 'Precision over recall', draw, finish)


def precision_at_k(quality: Quality) -> bytes | None:
    """Precision of the first k over k, a panel per level and a line per profile; None without labels."""

    def draw(axes: Axes, figures: LevelFigures, **style: Any) -> None:
        axes.plot(list(figures.precision), list(figures.precision.values()), **style)

    def finish(axes: Axes, figures: LevelFigures) -> None:
        axes.set_xscale('log')
        axes.set_xlim(1, max(figures.precision))
        axes.xaxis.set_major_locator(FixedLocator([10**e for e in range(8)]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f'{k:,.0f}'))
        axes.set_xlabel('first k answers', **STYLE)

    return _panels(quality, 'Precision of the first k answers', draw, finish)


def _panels(
    quality: Quality,
    title: str,
    draw: Callable[..., None],
    finish: Callable[[Axes, LevelFigures], None],
) -> bytes | None:
    levels = [name for name in quality.levels if quality.profiles[0].levels[name].queries]
    if not levels:
        return None
    columns = min(len(levels), PANELS_ABREAST)
    rows = -(-len(levels) // columns)
    figure = Figure((WIDTH, 1.1 + 3.4 * rows), DPI, layout='constrained')
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    looks = _looks(quality)
    for axes, level in zip(grid.flat, levels, strict=False):
        for profile in quality.profiles:
            draw(axes, profile.levels[level], linewidth=2, label=_text(profile.name), **looks[profile.name])
        _plain_axes(axes)
        figures = quality.profiles[0].levels[level]
        axes.set_title(f'same {_text(level)}\n{figures.queries:,} queries', **STYLE)
        axes.set_ylim(0, 1)
        finish(axes, figures)
    for axes in grid.flat[len(levels) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel('precision', **STYLE)
    _legend(figure, grid[0, 0].get_legend_handles_labels()[0])
    return _png(figure, title)


def mean_average_precision(quality: Quality) -> bytes | None:
    """mAP of each profile on each level, how far ties could move it, and what chance has; None without labels."""
    levels = [name for name in quality.levels if quality.profiles[0].levels[name].queries]
    if not levels:
        return None
    figure = Figure((WIDTH, 4.6), DPI, layout='constrained')
    axes = figure.subplots()
    looks = _looks(quality)
    width = 0.8 / len(quality.profiles)
    handles: list[Any] = []
    for i, profile in enumerate(quality.profiles):
        found = [profile.levels[name] for name in levels]
        x = np.arange(len(levels)) + (i - (len(quality.profiles) - 1) / 2) * width
        heights = np.array([f.map for f in found])
        ends = np.array([[f.map_worst for f in found], [f.map_best for f in found]])
        handles.append(axes.bar(x, heights, 0.9 * width, color=looks[profile.name]['color'], label=_text(profile.name)))
        axes.errorbar(x, heights, np.abs(ends - heights), fmt='none', ecolor=BLACK, elinewidth=1.5, capsize=4)
        for place, height, top in zip(x, heights, ends[1], strict=True):
            text = f'{height:.2f}'.lstrip('0')
            axes.text(place, top + 0.012, text, ha='center', va='bottom', fontsize=10, color=BLACK)
    for i, name in enumerate(levels):
        chance = quality.profiles[0].levels[name].chance
        axes.plot([i - 0.45, i + 0.45], [chance] * 2, color=BLACK, linestyle=':', linewidth=1.5)
    handles += axes.plot([], [], color=BLACK, linestyle=':', linewidth=1.5, label='chance')
    _plain_axes(axes)
    axes.set_xticks(range(len(levels)), [f'same {_text(name)}' for name in levels], **STYLE)
    axes.tick_params(axis='x', length=0)
    axes.set_ylim(0, min(1.08, 1.2 * max(p.levels[n].map_best for p in quality.profiles for n in levels)))
    axes.set_ylabel('mean average precision', **STYLE)
    _legend(figure, handles)
    return _png(figure, 'Mean average precision; whiskers: equal distances in the worst and best order')


def bit_balance(quality: Quality) -> bytes:
    """The share of images in which each bit is 1."""
    figure = Figure((WIDTH, 3.6), DPI, layout='constrained')
    axes = figure.subplots()
    looks = _looks(quality)
    start = 0
    for name, bits in quality.health.segments.items():
        x = np.arange(len(bits.ones)) + start
        axes.bar(x, bits.ones - 0.5, 0.8, bottom=0.5, color=looks[name]['color'])
        start += len(bits.ones)
    _plain_axes(axes)
    axes.axhline(0.5, color=GREY, linewidth=1)
    axes.set_xlim(-1, start)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_locator(MultipleLocator(0.25))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f'{share:.0%}'))
    _mark_segments(axes, quality)
    axes.set_ylabel('images in which the bit is 1', **STYLE)
    return _png(figure, 'Balance of the bits; one half is best')


def bit_correlation(quality: Quality) -> bytes:
    """Pearson's correlation between every two bits."""
    values = quality.health.code.correlation.copy()
    np.fill_diagonal(values, np.nan)
    figure = Figure((WIDTH, 7.6), DPI, layout='constrained')
    axes = figure.subplots()
    axes.set_facecolor('white')
    image = axes.imshow(values, 'RdBu_r', vmin=-1, vmax=1, interpolation='nearest')
    for edge in _edges(quality)[1:-1]:
        axes.axhline(edge - 0.5, color=BLACK, linewidth=1)
        axes.axvline(edge - 0.5, color=BLACK, linewidth=1)
    _mark_segments(axes, quality)
    middles, names = _segment_ticks(quality)
    axes.set_yticks(middles, names, rotation=90, va='center', **STYLE)
    axes.tick_params(axis='y', length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label('correlation', **STYLE)
    bar.outline.set_visible(False)
    return _png(figure, 'Correlation of the bits; none is best')


PLOTS: dict[str, Callable[[Quality], bytes | None]] = {
    'precision-recall.png': precision_recall,
    'precision-at-k.png': precision_at_k,
    'map.png': mean_average_precision,
    'bit-balance.png': bit_balance,
    'bit-correlation.png': bit_correlation,
}


# What the plots share


def training_curves(history: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """Loss and validation mAP over the epochs of each stage of a training, as PNG: a row per stage."""
    figure = Figure(figsize=(WIDTH, 2.6 * len(history)), layout='constrained')
    rows = figure.subplots(len(history), 2, squeeze=False)
    for (stage, epochs), (left, right) in zip(history.items(), rows, strict=True):
        numbers = range(1, len(epochs) + 1)
        left.plot(numbers, [epoch['loss'] for epoch in epochs], color=COLORS[0], marker='.')
        left.set_ylabel(f'{_text(stage)}: loss')
        scores = [(n, epoch['score']) for n, epoch in zip(numbers, epochs, strict=True) if 'score' in epoch]
        if scores:
            right.plot(*zip(*scores, strict=True), color=COLORS[1], marker='.')
            right.set_ylabel('mAP of images held out')
        else:
            right.set_visible(False)
        for axes in (left, right):
            _plain_axes(axes)
            axes.set_xlabel('epoch')
    return _png(figure, 'training')


def _edges(quality: Quality) -> list[int]:
    return np.cumsum([0, *(len(bits.ones) for bits in quality.health.segments.values())]).tolist()


def _segment_ticks(quality: Quality) -> tuple[list[float], list[str]]:
    edges = _edges(quality)
    middles = [(a + b - 1) / 2 for a, b in itertools.pairwise(edges)]
    return middles, [_text(name) for name in quality.health.segments]


def _mark_segments(axes: Axes, quality: Quality) -> None:
    middles, names = _segment_ticks(quality)
    counts = [len(bits.ones) for bits in quality.health.segments.values()]
    axes.set_xticks(middles, [f'{name}, {n} bits' for name, n in zip(names, counts, strict=True)], **STYLE)
    axes.tick_params(axis='x', length=0)


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    columns = len(handles) if len(handles) <= 5 else 3
    figure.legend(
        handles=handles, loc='outside lower center', ncols=columns, frameon=False, fontsize=11, handlelength=3
    )


def _plain_axes(axes: Axes) -> None:
    """Two spines, a faint grid behind the data."""
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color='#d9d9d9', linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=10, labelcolor=BLACK, color=GREY)


def _text(name: str) -> str:
    """A name as it is: no formula between dollar signs."""
    return name.replace('$', r'\$')


def _png(figure: Figure, title: str) -> bytes:
    figure.suptitle(title, fontsize=13, color=BLACK)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=DPI, facecolor='white', metadata={'Software': None})
    return buffer.getvalue()
