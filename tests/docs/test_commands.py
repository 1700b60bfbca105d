"""What the pages show is run: commands in one folder per page, with their output compared, and short pieces of Python.

Numbers that differ from run to run are left out of the comparison, and so are those that a smaller folder of pictures
makes differ, where a mark says so.
"""

import contextlib
import dataclasses
import io
import logging
import os
import re
import shutil
import tarfile
from pathlib import Path

import duckdb
import pytest
from PIL import Image

from pipelines.cli.main import main
from tests.helpers.make_index import CATALOGUE
from tests.helpers.pages import PAGES, blocks_of, grainhash_commands

pytestmark = [pytest.mark.beam, pytest.mark.tf, pytest.mark.timeout(600)]

THINGS = {
    'fruit': ['kiwi', 'lemon', 'mango', 'pineapple', 'plum', 'pomegranate', 'watermelon'],
    'packages': ['oat-milk', 'orange-juice', 'strawberry-yoghurt'],
    'vegetables': ['aubergine', 'carrots', 'cucumber', 'garlic', 'red-bell-pepper'],
}
EACH = 20  # pictures of a thing
VARYING = [
    (r'\d{8}T\d{6}Z-[0-9a-f]{6}', 'VERSION'),
    (r'\b[0-9a-f]{12}\b', 'FINGERPRINT'),
    (r'\d{4}-\d\d-\d\dT[\d:+]+', 'TIME'),
    (r'\S*/(?=photos/)', ''),
    (r'\b(seconds|work_seconds|\w+_ms|\w*bytes)=[\d.]+', r'\1=N'),
    (r'\b[\d.,]+ s\b', 'N s'),
    (r'\b[\d.,]+ [kMG]?B\b', 'N bytes'),
    (r'\d+ %', 'N %'),
    (r': \S+ on (?=[\d,]+ images)', ': METHOD on '),
    (r'\b\d+\.\d+\b', 'N'),
]
PASSING = re.compile(r'unit \d+ of \d+, .*|\S+: version \S+ is served')  # lines of progress, now and then


def normal(line):
    """A line without what differs from run to run."""
    for pattern, instead in VARYING:
        line = re.sub(pattern, instead, line)
    return re.sub(r'\s+', ' ', line).strip()


def comparable(lines, figures_vary):
    kept = [normal(line) for line in lines if line.strip() and not PASSING.match(line)]
    return [re.sub(r'\d[\d,]*', 'N', line) for line in kept] if figures_vary else kept


def run(argv):
    """Run a command of grainhash; its exit code and the lines that it printed, whichever way."""
    told, root = io.StringIO(), logging.getLogger()
    handlers, level = root.handlers, root.level
    root.handlers = []  # as in a process of its own
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            code = main(argv)
    finally:
        root.handlers = handlers
        root.setLevel(level)
    return code, told.getvalue().splitlines()


def is_run(block):
    return block.language == 'console' and 'not run' not in block.marks


def run_on(page):
    """The commands of grainhash on a page that are run."""
    return [command for command in grainhash_commands(page) if is_run(command.block)]


def argv_of(command):
    return [*command.argv[1:], *command.block.marks.get('with', '').split()]


# The folder that pages speak of


@dataclasses.dataclass(frozen=True)
class Made:
    """A folder with what pages need, and what the commands of the README, which make most of it, gave."""

    folder: Path
    given: dict


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pages')
    with changed_folder(folder):
        write_photos(folder, read_catalogue('index-google-00000.tar.gz', 303))
        given = {command: run(argv_of(command)) for command in run_on('README.md')}
        write_emoji(folder / 'emoji.tar', 'index-fluent-00000.tar.gz', 120)
        model = ['--method', 'random', '--input-size', '64']
        for argv in (
            ['train', '--images', 'emoji.tar', '--model', 'emoji-model', *model],
            ['build', 'emoji-index', '--images', 'emoji.tar', '--model', 'emoji-model', '--no-gate'],
        ):
            assert run(argv)[0] == 0, argv
    return Made(folder, given)


@contextlib.contextmanager
def changed_folder(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def read_catalogue(shard, count):
    """The first pictures of a shard."""
    with tarfile.open(CATALOGUE / shard) as tar:
        members = [member for member in tar if member.name.endswith('.webp')]
        return [tar.extractfile(member).read() for member in members[:count]]


def write_photos(folder, pictures):
    taken = iter(pictures)
    for kind, things in THINGS.items():
        for thing in things:
            place = folder / 'photos' / kind / thing
            place.mkdir(parents=True)
            for number in range(1, EACH + 1):
                picture = Image.open(io.BytesIO(next(taken))).convert('RGB')
                picture.save(place / f'{number:02}.jpg')
    (folder / 'questions').mkdir()
    for name in ('lemon', 'pineapple', 'red-bell-pepper'):
        Image.open(io.BytesIO(next(taken))).convert('RGB').save(folder / 'questions' / f'{name}.jpg')


def write_emoji(path, shard, count):
    """A shard of emoji with captions, those with a heart or a cat first."""
    with tarfile.open(CATALOGUE / shard) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    names = sorted({name.rpartition('.')[0] for name in files})
    about = {n: b' '.join(files.get(f'{n}.{suffix}', b'') for suffix in ('json', 'txt')).lower() for n in names}
    names.sort(key=lambda name: not (b'heart' in about[name] or b'cat ' in about[name]))
    with tarfile.open(path, 'w') as tar:
        for name in names[:count]:
            for member in sorted(n for n in files if n.rpartition('.')[0] == name):
                info = tarfile.TarInfo(member)
                info.size = len(files[member])
                tar.addfile(info, io.BytesIO(files[member]))


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A folder of its own for a page; gives a function that puts there what a block needs."""
    monkeypatch.chdir(tmp_path)

    def put(names):
        for name in filter(None, (names or '').split(', ')):
            if not (tmp_path / name).exists():
                copy = shutil.copytree if (made.folder / name).is_dir() else shutil.copy
                copy(made.folder / name, tmp_path / name)

    return put


# Pages


PAGES_RUN = [page for page in PAGES if run_on(page)]
SQL = [b for page in PAGES for b in blocks_of(page) if b.language == 'sql' and 'files' in b.marks]
PYTHON = [b for page in PAGES for b in blocks_of(page) if b.language == 'python' and 'files' in b.marks]


@pytest.mark.parametrize('page', PAGES_RUN)
def test_a_page_shows_what_its_commands_print(page, made, place):
    for command in run_on(page):
        place(command.block.marks.get('files'))
        code, lines = made.given[command] if command in made.given else run(argv_of(command))
        assert code == 0, lines
        if command.output:
            vary = 'figures vary' in command.block.marks
            assert comparable(lines, vary) == comparable(command.output, vary), command.name


@pytest.mark.parametrize('block', PYTHON, ids=[block.name for block in PYTHON])
def test_python_on_a_page_runs(block, place, capsys):
    place(block.marks['files'])
    exec(compile(block.text, block.name, 'exec'), {})


@pytest.mark.parametrize('block', SQL, ids=[block.name for block in SQL])
def test_sql_on_a_page_runs(block, place):
    place(block.marks['files'])
    with duckdb.connect() as connection:
        for statement in block.text.split(';\n'):
            found = connection.sql(statement).fetchall()
            assert found or statement.startswith('SET ')


def test_lines_are_compared_without_what_differs_from_run_to_run():
    told = 'my-index: version 20261130T181444Z-d271cb in 24 s; 300 of 300 records indexed'
    assert normal(told) == 'my-index: version VERSION in N s; 300 of 300 records indexed'
    assert normal(told) != normal(told.replace('300 of', '299 of'))
    assert comparable(['unit 3 of 8, a.tar: 3 records, 0 rejected', '2 files'], True) == ['N files']
