"""The demo as a user runs it: in a process of its own, then once more over what it left."""

import base64
import gzip
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from pipelines.cli.demo import ANSWERS, TEXTS
from tests.helpers.make_index import catalogue_pictures, read_served, start, tar_members, write_tar

pytestmark = pytest.mark.process
OURS = [
    'answers-to-texts.jsonl',
    'answers-to-texts.jsonl.stats.json',
    'answers.jsonl',
    'answers.jsonl.stats.json',
    'index',
    'model',
    'report.html',
]
QUERIES = 404  # pictures of query-twitter-00000


def demo(out, *options, timeout=240):
    return start('demo', '--output', out, *options, timeout=timeout)


@pytest.fixture(scope='module')
def small_catalogue(tmp_path_factory):
    """A catalogue of 150 pictures and 40 that ask."""
    folder = tmp_path_factory.mktemp('catalogue')
    for name, count in (('index-fluent-00000.tar.gz', 150), ('query-twitter-00000.tar.gz', 40)):
        tar = write_tar(folder / 'plain.tar', tar_members(catalogue_pictures(count, name)))
        (folder / name).write_bytes(gzip.compress(Path(tar).read_bytes()))
    return folder


@pytest.fixture(scope='module')
def first(tmp_path_factory):
    """A finished demo of the whole catalogue: its folder and the process."""
    out = tmp_path_factory.mktemp('demo') / 'out'
    return out, demo(out)


def read_answers(out):
    return [json.loads(line) for line in (Path(out) / 'answers.jsonl').read_text().splitlines()]


def test_the_demo_ends_well_and_says_what_to_do_next(first):
    out, done = first
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in out.iterdir()) == OURS
    assert f'The gallery: {out}/report.html' in done.stdout
    commands = [line.strip() for line in done.stdout.splitlines() if line.startswith('  grainhash ')]
    assert [c.split()[1] for c in commands] == ['train', 'build', 'query', 'query', 'inspect']
    for command in commands[2:4]:
        assert command.endswith('--output answers.jsonl'), 'a command to copy must not be broken'


def test_every_query_has_k_answers(first):
    out, _ = first
    by_query = {}
    for row in read_answers(out):
        by_query.setdefault(row['query_id'], []).append(row)
    assert len(by_query) == QUERIES
    for rows in by_query.values():
        assert [row['rank'] for row in rows] == list(range(1, ANSWERS + 1))
        assert [row['distance'] for row in rows] == sorted(row['distance'] for row in rows)
    assert all(query.startswith('twitter/') for query in by_query)
    assert not any(row['image_id'].startswith('twitter/') for rows in by_query.values() for row in rows)


def test_words_are_answered_and_shown(first):
    out, done = first
    rows = [json.loads(line) for line in (out / 'answers-to-texts.jsonl').read_text().splitlines()]
    assert [row['query_id'] for row in rows] == [text for text in TEXTS for _ in range(ANSWERS)]
    by_text = {text: [row['caption'] for row in rows if row['query_id'] == text] for text in TEXTS}
    assert sum('cat' in caption for caption in by_text['smiling cat']) > ANSWERS / 2
    assert sum('heart' in caption for caption in by_text['red heart']) > ANSWERS / 2
    report = (out / 'report.html').read_text()
    for text in TEXTS:
        assert report.count(f'>{text}<') == 2
        assert text in done.stdout


def test_the_index_holds_the_whole_catalogue(first):
    out, _ = first
    counters = read_served(out / 'index').counters
    assert (counters['indexed'], counters['rejected'], counters['duplicates']) == (3195, 0, 0)


def test_the_report_shows_pictures(first):
    out, _ = first
    report = (out / 'report.html').read_text()
    assert re.search(r'coarse: 32 bits, made of \d+ % top', report)
    assert re.search(r'look: 64 bits, made of \d+ % low, \d+ % edges', report)
    pictures = set(re.findall(r'data:image/[a-z]+;base64,([A-Za-z0-9+/=]+)', report))
    assert len(pictures) > 100
    for data in pictures:
        assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) > 16


def test_a_second_demo_replaces_the_first(first, small_catalogue):
    out, _ = first
    done = demo(out, '--catalogue', small_catalogue)
    assert done.returncode == 0, done.stderr
    names = sorted(p.name for p in out.iterdir())
    assert names == sorted([*OURS, 'answers-to-texts.rejects.jsonl'])  # of 150 pictures none has to do with a flag
    assert len(list((out / 'index' / 'versions').iterdir())) == 1
    assert read_served(out / 'index').rows == 150
    assert len(read_answers(out)) == 40 * ANSWERS


def test_a_catalogue_in_other_words_is_asked_by_pictures_alone(tmp_path):
    for name, count in (('index-fluent-00000.tar.gz', 150), ('query-twitter-00000.tar.gz', 12)):
        pictures = catalogue_pictures(count, name)
        for number, (fields, _) in enumerate(pictures):
            labels = {**fields['labels'], **dict.fromkeys(('coarse', 'fine'), f'q{number % 2}')}
            fields |= {'caption': 'xyzzy', 'labels': labels}
        tar = write_tar(tmp_path / 'plain.tar', tar_members(pictures))
        (tmp_path / name).write_bytes(gzip.compress(Path(tar).read_bytes()))
    done = demo(tmp_path / 'out', '--catalogue', tmp_path)
    assert done.returncode == 0, done.stderr
    names = {p.name for p in (tmp_path / 'out').iterdir()}
    assert names == {name for name in OURS if not name.startswith('answers-to-texts')}


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / 'thesis.txt').write_text('years of work')
    (tmp_path / 'answers.jsonl').write_text('older answers')
    done = demo(tmp_path)
    assert done.returncode == 2
    assert 'thesis.txt' in done.stderr
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        'thesis.txt': 'years of work',
        'answers.jsonl': 'older answers',
    }


def test_a_catalogue_that_is_not_there_is_refused(tmp_path):
    done = demo(tmp_path / 'out', '--catalogue', tmp_path / 'none')
    assert done.returncode == 2
    assert 'no catalogue' in done.stderr
    assert not (tmp_path / 'out').exists()
