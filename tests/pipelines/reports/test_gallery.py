"""The gallery page: what it says, what it must never do (load, run or break anything), how it is written."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from pipelines.reports import gallery as report
from pipelines.reports.gallery import Answer, Fact, Picture, QueryGallery, Row, render, write_report

SEGMENTS = {'coarse': 16, 'fine': 32, 'look': 16}
LEVELS = {'coarse': 'kind', 'fine': 'thing'}
VOID = {'meta', 'link', 'br', 'img', 'input', 'hr'}
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\'${title} $$ </style>'


class Page(HTMLParser):
    """Parses a page; an unbalanced tag is an error."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != 'style':
            self.words.append(data)

    def with_class(self, name):
        return [attrs for _, attrs in self.tags if name in (attrs.get('class') or '').split()]

    @property
    def text(self):
        return ' '.join(' '.join(self.words).split())


def image_bytes(color, size=(8, 8), image_format='PNG', mode='RGB'):
    encoded = io.BytesIO()
    Image.new(mode, size, color).save(encoded, image_format)
    return encoded.getvalue()


def picture(image_id, color='red', caption=None, **labels):
    return Picture(image_id, image_bytes(color), caption, {level: (value,) for level, value in labels.items()})


def answer(shown, coarse=1, fine=2, look=3, distance=None):
    bits = {'coarse': coarse, 'fine': fine, 'look': look}
    return Answer(shown, sum(bits.values()) if distance is None else distance, bits)


def page_of(*rows, query=None, levels=None):
    gallery = QueryGallery(query or picture('q', 'black'), rows)
    return render('Title', 'Intro.', [Fact('images indexed', '3,195')], SEGMENTS, [gallery], levels)


def embedded(page):
    """The pictures in the page, decoded, in order."""
    return [
        Image.open(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r'url\(data:image/\w+;base64,([^)]*)\)', page)
    ]


def test_a_page_says_who_what_and_how_far():
    query = picture('q-1', 'black', 'a cat', kind='animal', thing='cat')
    text = Page(page_of(Row('coarse', [answer(picture('a-1', caption='a dog'), distance=5)]), query=query)).text
    for words in ('Title', 'Intro.', '3,195', 'images indexed', 'a cat', 'q-1', 'animal', 'a dog', 'a-1'):
        assert words in text
    assert 'coarse same kind of thing' in text
    assert 'bits that differ out of 16' in text
    assert 'fine: 32 bits' in text
    assert 'grainhash' in text


def test_the_legend_says_what_a_segment_is_made_of():
    page = Page(render('', '', [], SEGMENTS, [], made_of={'fine': '60 % top, 40 % mid'}))
    assert 'fine: 32 bits, made of 60 % top, 40 % mid' in page.text
    assert page.text.count('made of') == 1


def test_hostile_words_stay_words():
    shown = Picture(HOSTILE, image_bytes('red'), HOSTILE, {HOSTILE: (HOSTILE,)})
    gallery = QueryGallery(shown, [Row(HOSTILE, [Answer(shown, 1, {HOSTILE: 1})]), Row('fine', [])])
    segments, same = {HOSTILE: 8}, {HOSTILE: HOSTILE}
    page = Page(render(HOSTILE, HOSTILE, [Fact(HOSTILE, HOSTILE)], segments, [gallery, gallery], same, same))
    assert {'script', 'img'}.isdisjoint(tag for tag, _ in page.tags)
    assert not any(name.startswith('on') for _, attrs in page.tags for name in attrs)
    assert ' '.join(HOSTILE.split()) in page.text
    assert {attrs['aria-label'] for attrs in page.with_class('picture')} == {HOSTILE}


def test_a_caption_that_utf8_cannot_carry_is_written_all_the_same(tmp_path):
    gallery = QueryGallery(picture('q', caption='half a pair \ud83d'), [])
    write_report(tmp_path / 'report.html', 'Title', '', [], SEGMENTS, [gallery])
    assert 'half a pair ?' in (tmp_path / 'report.html').read_text(encoding='utf-8')


def test_nothing_is_loaded_from_anywhere():
    text = page_of(Row('coarse', [answer(picture('a'))]))
    page = Page(text)
    assert 'http://' not in text
    assert 'https://' not in text
    assert '@import' not in text
    assert all(target.startswith('data:image/') for target in re.findall(r'url\((.*?)\)', text))
    links = [attrs[name] for _, attrs in page.tags for name in ('src', 'href') if name in attrs]
    assert links
    assert all(link.startswith('#') for link in links)
    assert "default-src 'none'" in [attrs.get('content', '') for tag, attrs in page.tags if tag == 'meta'][1]


def test_each_distinct_picture_is_embedded_once():
    red, blue = picture('red', 'red'), picture('blue', 'blue')
    rows = [Row(profile, [answer(red), answer(blue), answer(picture('copy', 'red'))]) for profile in SEGMENTS]
    text = page_of(*rows, query=red)
    shown = embedded(text)
    assert sorted(image.getpixel((0, 0)) for image in shown) == [(0, 0, 255), (255, 0, 0)]
    assert len(Page(text).with_class('picture')) == 1 + 3 * 3
    assert len(Page(text).with_class('p0')) == 1 + 3 * 2


def test_a_small_picture_is_embedded_as_stored():
    data = image_bytes('red', (160, 100), 'JPEG')
    text = page_of(query=Picture('q', data, None, {}))
    assert base64.b64encode(data).decode() in text


@pytest.mark.parametrize(
    ('image_format', 'mode', 'color', 'pixel'),
    [
        ('PNG', 'RGB', (200, 30, 30), (200, 30, 30)),
        ('PNG', 'RGBA', (200, 30, 30, 0), None),
        ('PNG', 'I;16', 257 * 100, (100, 100, 100)),
        ('PNG', 'P', 0, None),
        ('JPEG', 'CMYK', (0, 0, 0, 0), (255, 255, 255)),
        ('TIFF', 'RGB', (200, 30, 30), (200, 30, 30)),
    ],
)
def test_a_large_picture_is_scaled_down(image_format, mode, color, pixel):
    data = image_bytes(color, (640, 320), image_format, mode)
    (shown,) = embedded(page_of(query=Picture('q', data, None, {})))
    assert (shown.format, shown.size) == ('WEBP', (160, 80))
    if pixel:
        assert shown.convert('RGB').getpixel((80, 40)) == pytest.approx(pixel, abs=6)


def test_a_format_that_browsers_do_not_show_is_converted():
    (shown,) = embedded(page_of(query=Picture('q', image_bytes('red', image_format='TIFF'), None, {})))
    assert shown.format == 'WEBP'


def test_a_moving_picture_stands_still():
    frames = [Image.new('RGB', (8, 8), color) for color in ('red', 'blue')]
    encoded = io.BytesIO()
    frames[0].save(encoded, 'WEBP', save_all=True, append_images=frames[1:])
    (shown,) = embedded(page_of(query=Picture('q', encoded.getvalue(), None, {})))
    assert not getattr(shown, 'is_animated', False)


@pytest.mark.parametrize('data', [None, b'', b'not an image', image_bytes('red')[:40]])
def test_a_picture_that_cannot_be_shown_has_a_placeholder(data):
    page = Page(page_of(query=Picture('q-7', data, 'a cat', {})))
    assert [attrs['aria-label'] for attrs in page.with_class('missing')] == ['a cat (no picture)']
    assert 'no picture' in page.text


def test_answers_that_share_the_label_are_counted_and_marked():
    query = picture('q', kind='animal', thing='cat')
    found = [answer(picture('a', kind='animal', thing='cat')), answer(picture('b', kind='animal', thing='dog'))]
    found += [answer(picture('c', kind='tool', thing='saw')), answer(picture('d'))]
    page = Page(page_of(Row('coarse', found), Row('fine', found), Row('look', found), query=query, levels=LEVELS))
    assert "2 of 4 share the query's kind" in page.text
    assert "1 of 4 share the query's thing" in page.text
    assert page.text.count('share the query') == 2
    assert len(page.with_class('hit')) == 3


def test_one_common_label_of_several_is_enough():
    query = Picture('q', None, None, {'kind': ('animal', 'toy')})
    found = [answer(Picture('a', None, None, {'kind': ('toy', 'gift')}))]
    assert "1 of 1 share the query's kind" in Page(page_of(Row('coarse', found), query=query, levels=LEVELS)).text


def test_a_query_without_the_label_is_not_judged():
    page = Page(page_of(Row('coarse', [answer(picture('a', kind='tool'))]), levels=LEVELS))
    assert 'share the query' not in page.text
    assert page.with_class('hit') == []


def widths(text):
    return re.findall(r'<i class="(\w+)" style="width:([\d.]+)%">', text)


def test_bars_are_relative_to_the_bits_compared():
    assert widths(page_of(Row('fine', [answer(picture('a'), distance=8)]))) == [('s1', '25')]
    assert widths(page_of(Row('all', [answer(picture('a'), 4, 16, 8)]))) == [
        ('s0', '6.25'),
        ('s1', '25'),
        ('s2', '12.5'),
    ]


def test_a_weighted_distance_is_not_called_bits():
    text = page_of(Row('coarse + 9 look', [answer(picture('a'), distance=64), answer(picture('b'), distance=128)]))
    assert widths(text) == [('weighted', '50'), ('weighted', '100')]
    assert 'weighted distance' in Page(text).text
    assert 'bits that differ out of' not in Page(text).text


def test_no_answers_and_no_queries_are_said():
    assert 'no answer' in Page(page_of(Row('coarse', []), levels=LEVELS)).text
    assert 'no queries' in Page(render('Title', '', [], {}, [])).text


def test_several_queries_have_a_table_of_contents():
    galleries = [QueryGallery(picture(f'q-{number}'), []) for number in range(3)]
    page = Page(render('Title', '', [], SEGMENTS, galleries))
    targets = [attrs['href'] for _, attrs in page.tags if attrs.get('href', '').startswith('#query-')]
    assert targets == ['#query-1', '#query-2', '#query-3']
    assert {target[1:] for target in targets} <= {attrs.get('id') for _, attrs in page.tags}


def test_words_ask_as_pictures_do():
    found = [answer(picture(f'a-{number}', kind='x')) for number in range(2)]
    galleries = [QueryGallery(HOSTILE, [Row('coarse', found)]), QueryGallery('red heart', [Row('all', found)])]
    page = Page(render('Title', '', [], SEGMENTS, galleries, LEVELS))
    assert page.text.count('red heart') == 2  # in the contents and above its answers
    assert page.text.count(HOSTILE) == 2
    assert [attrs['id'] for attrs in page.with_class('text') if 'id' in attrs] == ['name-1', 'name-2']
    assert not page.with_class('missing')
    assert not page.with_class('agreement')
    assert len(page.with_class('answer')) == 4


def test_the_page_is_written_whole(tmp_path):
    path = tmp_path / 'report.html'
    write_report(path, 'Title', '', [], SEGMENTS, [])
    assert path.read_text(encoding='utf-8') == render('Title', '', [], SEGMENTS, [])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('failing', ['render', 'os.replace'])
def test_a_failure_leaves_the_old_page(tmp_path, monkeypatch, failing):
    def fail(*_args):
        raise OSError('disk full')

    path = tmp_path / 'report.html'
    path.write_text('old')
    monkeypatch.setattr(f'pipelines.reports.gallery.{failing}', fail)
    with pytest.raises(OSError, match='disk full'):
        report.write_report(path, 'Title', '', [], SEGMENTS, [])
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]
