"""A gallery in one HTML file: each query beside its answers at each granularity, with their distances.

Looks and structure are in `gallery.html` and `gallery.css`; what fills them is here. The page loads nothing and
runs no script: pictures are thumbnails inside the file, each once. Searching, and fetching the pictures' bytes,
is the caller's.
"""

from __future__ import annotations

import base64
import html
import io
import os
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import NamedTuple

from PIL import Image, ImageOps

from pipelines import files
from pipelines.records import Labels

THUMBNAIL_PIXELS = 160
THUMBNAIL_BYTES = 20 * 1024
SEGMENT_COLORS = 6  # how many .s0, .s1, ... gallery.css has

MEANINGS = {
    'coarse': 'same kind of thing',
    'fine': 'same thing',
    'look': 'same appearance',
    'all': 'everything together',
}
DISTANCES = (
    'The number under a picture is its distance from the query: how many bits of their codes differ, 0 for '
    'equal codes. The bar shows it as a share of the bits compared.'
)
_SHOWN_AS_STORED = {'PNG': 'image/png', 'JPEG': 'image/jpeg', 'WEBP': 'image/webp'}


@dataclass(frozen=True)
class Picture:
    """An image as the page shows it; `data` holds its encoded bytes, None where they are not available."""

    image_id: str
    data: bytes | None
    caption: str | None
    labels: Labels

    @property
    def name(self) -> str:
        """What to call it: its caption, or else its id."""
        return self.caption or self.image_id


@dataclass(frozen=True)
class Answer:
    """A found image, its distance under the row's profile and its Hamming distance in each segment."""

    picture: Picture
    distance: int
    segment_distances: Mapping[str, int]


@dataclass(frozen=True)
class Row:
    """The answers under one profile (`coarse`, `fine`, `look`, `all` or any other name), nearest first."""

    profile: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class QueryGallery:
    """A query, a picture or words, and its rows of answers."""

    query: Picture | str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Fact:
    """One tile of the header: `Fact('images indexed', '3,195')`."""

    name: str
    value: str


def write_report(
    path: str | os.PathLike[str],
    title: str,
    intro: str,
    facts: Sequence[Fact],
    segments: Mapping[str, int],
    galleries: Sequence[QueryGallery],
    label_level_of: Mapping[str, str] | None = None,
    made_of: Mapping[str, str] | None = None,
) -> None:
    """Write the page that `render` makes; a failure leaves what was at `path` as it was."""
    page = render(title, intro, facts, segments, galleries, label_level_of, made_of)
    files.write_bytes(files.absolute(path), page.encode())


def render(
    title: str,
    intro: str,
    facts: Sequence[Fact],
    segments: Mapping[str, int],
    galleries: Sequence[QueryGallery],
    label_level_of: Mapping[str, str] | None = None,
    made_of: Mapping[str, str] | None = None,
) -> str:
    """Return the page as HTML.

    Args:
        title: the heading.
        intro: a few sentences under it, as plain text.
        facts: the tiles of the header.
        segments: name -> bits of the code's segments, in their order.
        galleries: the queries, in the order of the page.
        label_level_of: profile -> the label level it should get right, as `{'coarse': 'coarse'}`; answers
            that share a label of that level with their query are marked and counted.
        made_of: segment -> the feature groups it reads and their shares, in words.
    """
    page = _Page(segments, label_level_of or {})
    cards = [page.card(number, gallery) for number, gallery in enumerate(galleries, 1)]
    return string.Template(_resource('gallery.html')).substitute(
        title=_text(title),
        intro=f'<p class="intro" dir="auto">{_text(intro)}</p>' if intro else '',
        facts=_facts(facts),
        legend=_legend(segments, made_of or {}),
        contents=page.contents(galleries),
        galleries='\n'.join(cards) or '<p class="none">no queries</p>',
        style=_resource('gallery.css'),
        pictures=page.album.css(),
    )


class _Thumbnail(NamedTuple):
    uri: str
    see_through: bool  # drawn with a margin; an opaque picture fills its tile


def _thumbnail(data: bytes) -> _Thumbnail | None:
    """Return the picture as stored when small, else scaled down; None when it cannot be read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            media_type = _SHOWN_AS_STORED.get(image.format or '')
            small = len(data) <= THUMBNAIL_BYTES and max(image.size) <= THUMBNAIL_PIXELS
            if not (media_type and small) or getattr(image, 'is_animated', False):
                media_type, data = 'image/webp', _scaled_down(image)
            uri = f'data:{media_type};base64,{base64.b64encode(data).decode("ascii")}'
            return _Thumbnail(uri, _see_through(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # a broken picture is no reason to lose the report: the page shows a placeholder


def _scaled_down(image: Image.Image) -> bytes:
    if image.mode.startswith('I'):  # 16-bit grey, which Pillow would clip instead of scale
        image = image.convert('I').point(lambda value: value * (1 / 257)).convert('L')
    upright = ImageOps.exif_transpose(image).convert('RGBA' if image.has_transparency_data else 'RGB')
    upright.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    encoded = io.BytesIO()
    upright.save(encoded, 'WEBP', quality=82)
    return encoded.getvalue()


def _see_through(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    return image.convert('RGBA').getchannel('A').histogram()[255] < image.width * image.height


class _Album:
    """The distinct pictures of a page: each is embedded once, as the background of a CSS class."""

    def __init__(self) -> None:
        self._number_of: dict[bytes, int] = {}  # encoded picture -> its place in the list
        self._thumbnails: list[_Thumbnail | None] = []

    def show(self, picture: Picture) -> str:
        """Return the HTML of the picture, or of a placeholder."""
        name = _text(picture.name)
        number = self._add(picture.data) if picture.data else None
        thumbnail = self._thumbnails[number] if number is not None else None
        if thumbnail is None:
            return f'<span class="picture missing" role="img" aria-label="{name} (no picture)">no picture</span>'
        fill = '' if thumbnail.see_through else ' opaque'
        return f'<span class="picture{fill} p{number}" role="img" aria-label="{name}"></span>'

    def css(self) -> str:
        """Return the style sheet with the pictures themselves."""
        shown = ((number, thumbnail) for number, thumbnail in enumerate(self._thumbnails) if thumbnail)
        return '\n'.join(f'.p{number}{{background-image:url({thumbnail.uri})}}' for number, thumbnail in shown)

    def _add(self, data: bytes) -> int:
        if data not in self._number_of:
            self._number_of[data] = len(self._thumbnails)
            self._thumbnails.append(_thumbnail(data))
        return self._number_of[data]


@dataclass(frozen=True)
class _Scale:
    """What a full bar stands for: the bits of the segments `names`; without names, a weighted distance."""

    names: tuple[str, ...]
    whole: int

    def describe(self) -> str:
        return f'bits that differ out of {self.whole:,}' if self.names else 'weighted distance'

    def parts(self, answer: Answer) -> list[tuple[str, int]]:
        """Return the pieces of the answer's bar as (segment, bits)."""
        if len(self.names) < 2:
            return [(name, answer.distance) for name in self.names or ('',)]
        return [(name, answer.segment_distances.get(name, 0)) for name in self.names]


def _scale(row: Row, segments: Mapping[str, int]) -> _Scale:
    if row.profile in segments:
        return _Scale((row.profile,), segments[row.profile])
    total = sum(segments.values())
    if all(sum(answer.segment_distances.values()) == answer.distance for answer in row.answers):
        return _Scale(tuple(segments), total)
    return _Scale((), max([total, *(answer.distance for answer in row.answers)]))


@dataclass(frozen=True)
class _Page:
    segments: Mapping[str, int]
    label_level_of: Mapping[str, str]
    album: _Album = field(default_factory=_Album)

    def contents(self, galleries: Sequence[QueryGallery]) -> str:
        if len(galleries) < 2:
            return ''
        links = ''.join(
            f'<a href="#query-{number}">{self.link(gallery.query)}</a>' for number, gallery in enumerate(galleries, 1)
        )
        return f'<nav class="contents" aria-label="Queries">{links}</nav>'

    def link(self, query: Picture | str) -> str:
        return f'<span class="text">{_text(query)}</span>' if isinstance(query, str) else self.album.show(query)

    def card(self, number: int, gallery: QueryGallery) -> str:
        strips = '\n'.join(self.strip(gallery.query, row) for row in gallery.rows)
        return (
            f'<article class="query" id="query-{number}" aria-labelledby="name-{number}">\n'
            f'<div class="asked">{self.asked(gallery.query, number)}</div>\n'
            f'<div class="strips">\n{strips}\n{self.numbers(gallery)}</div>\n</article>'
        )

    def asked(self, query: Picture | str, number: int) -> str:
        if isinstance(query, str):
            return f'<h2 class="text" id="name-{number}" dir="auto">{_text(query)}</h2>'
        identity = f'<p class="id">{_text(query.image_id)}</p>' if query.caption else ''
        heading = f'<h2 id="name-{number}" dir="auto">{_text(query.name)}</h2>'
        return f'{self.album.show(query)}<div class="words">{heading}{identity}{_labels(query)}</div>'

    def strip(self, query: Picture | str, row: Row) -> str:
        meaning = f' <span>{MEANINGS[row.profile]}</span>' if row.profile in MEANINGS else ''
        heading = f'<h3 dir="auto">{_text(row.profile)}{meaning}</h3>'
        if not row.answers:
            body = '<p class="none">no answer</p>'
            return f'<section><div class="head">{heading}</div>\n{body}\n</section>'
        scale = _scale(row, self.segments)
        level, hits = self.hits(query, row)
        pairs = zip(row.answers, hits, strict=True)
        items = '\n'.join(self.answer(answer, scale, level if hit else '') for answer, hit in pairs)
        head = f'{heading}<span>{scale.describe()}</span>{_agreement(hits, level)}'
        return f'<section><div class="head">{head}</div>\n<ol class="answers">\n{items}\n</ol>\n</section>'

    def hits(self, query: Picture | str, row: Row) -> tuple[str, list[bool]]:
        """Return the row's label level ('' if none applies) and which answers share a label of it."""
        level = self.label_level_of.get(row.profile, '')
        wanted = set() if isinstance(query, str) else set(query.labels.get(level, ()))
        if not wanted:
            return '', [False] * len(row.answers)
        return level, [not wanted.isdisjoint(answer.picture.labels.get(level, ())) for answer in row.answers]

    def answer(self, answer: Answer, scale: _Scale, shared_level: str) -> str:
        words = f'<span class="unseen">shares the {_text(shared_level)}</span>'
        check = f'<span class="check"><span aria-hidden="true">&#10003;</span>{words}</span>' if shared_level else ''
        return (
            f'<li class="answer{" hit" if shared_level else ""}" title="{_text(_tooltip(answer))}">'
            f'{self.album.show(answer.picture)}'
            f'<span class="measure"><span class="unseen">distance</span> '
            f'<span class="distance">{answer.distance:,}</span>{check}</span>{self.bar(answer, scale)}'
            f'<span class="name" dir="auto" aria-hidden="true">{_text(answer.picture.name)}</span></li>'
        )

    def bar(self, answer: Answer, scale: _Scale) -> str:
        percents = ((name, 100 * part / max(scale.whole, 1)) for name, part in scale.parts(answer) if part)
        pieces = ''.join(
            f'<i class="{self.color(name)}" style="width:{min(percent, 100):.4g}%"></i>' for name, percent in percents
        )
        return f'<span class="bar" aria-hidden="true">{pieces}</span>'

    def color(self, segment: str) -> str:
        return f's{list(self.segments).index(segment) % SEGMENT_COLORS}' if segment in self.segments else 'weighted'

    def numbers(self, gallery: QueryGallery) -> str:
        """Return the answers as a table to unfold, with ids to copy and each segment's distance."""
        names = list(self.segments)
        rows = [
            _table_row('td', [row.profile, answer.picture.image_id], [rank, answer.distance, *_bits(answer, names)])
            for row in gallery.rows
            for rank, answer in enumerate(row.answers, 1)
        ]
        if not rows:
            return ''
        head = _table_row('th', ['profile', 'id'], ['rank', 'distance', *names])
        return (
            '<details><summary>Ids and distances</summary><div class="numbers"><table>\n'
            f'<thead>{head}</thead>\n<tbody>\n{"".join(rows)}</tbody></table></div></details>\n'
        )


def _table_row(tag: str, words: Sequence[str], numbers: Sequence[object]) -> str:
    cells = ''.join(f'<{tag}>{_text(word)}</{tag}>' for word in words)
    counts = ''.join(f'<{tag} class="number">{_text(str(number))}</{tag}>' for number in numbers)
    return f'<tr>{cells}{counts}</tr>\n'


def _bits(answer: Answer, names: Sequence[str]) -> list[object]:
    return [answer.segment_distances.get(name, '') for name in names]


def _tooltip(answer: Answer) -> str:
    picture = answer.picture
    labels = [f'{level}: {", ".join(values)}' for level, values in picture.labels.items() if values]
    distances = ', '.join(f'{name} {bits}' for name, bits in answer.segment_distances.items())
    lines = [
        picture.name,
        picture.image_id if picture.caption else '',
        *labels,
        distances and f'bits: {distances}',
    ]
    return '\n'.join(line for line in lines if line)


def _agreement(hits: Sequence[bool], level: str) -> str:
    if not level:
        return ''
    full = ' full' if all(hits) else ''
    return f'<span class="agreement{full}">{sum(hits)} of {len(hits)} share the query\'s {_text(level)}</span>'


def _labels(query: Picture) -> str:
    items = ''.join(
        f'<li><span>{_text(level)}</span> {_text(", ".join(values))}</li>'
        for level, values in query.labels.items()
        if values
    )
    return f'<ul class="labels">{items}</ul>' if items else ''


def _facts(facts: Sequence[Fact]) -> str:
    tiles = ''.join(f'<div><dt>{_text(fact.name)}</dt><dd>{_text(fact.value)}</dd></div>' for fact in facts)
    return f'<dl class="facts">{tiles}</dl>' if facts else ''


def _legend(segments: Mapping[str, int], made_of: Mapping[str, str]) -> str:
    items = ''
    for number, (name, bits) in enumerate(segments.items()):
        source = f', made of {_text(made_of[name])}' if name in made_of else ''
        swatch = f'<span class="swatch s{number % SEGMENT_COLORS}"></span>'
        items += f'<li>{swatch}<span>{_text(name)}: {bits:,} bits{source}</span></li>'
    return f'<div class="legend"><p>{DISTANCES}</p><ul>{items}</ul></div>'


def _text(text: str) -> str:
    """Escape for element text and quoted attributes; what UTF-8 cannot carry becomes a question mark."""
    return html.escape(text.encode('utf-8', 'replace').decode('utf-8'))


def _resource(name: str) -> str:
    return resources.files('pipelines.reports').joinpath(name).read_text(encoding='utf-8')
