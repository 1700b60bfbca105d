"""Two thousand hostile pictures: decoded in a process of their own, then indexed by a real build.

Everything is counted, nothing crashes, floods or hangs, and nothing is written outside the index.
"""

import collections
import hashlib
import io
import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from hashing_model.images import decode
from pipelines import files
from tests.helpers.make_hostile import hostile_pictures
from tests.helpers.make_index import ROOT, TWO_PROCESSES, catalogue_pictures, hand_model, read_served, served_folder

pytestmark = pytest.mark.slow

MOST_MEMORY = 2 << 30  # bytes per worker
MOST_SECONDS = 10  # per picture
TIMEOUT = 300  # for all
REASONS = {decode.EMPTY, decode.NOT_AN_IMAGE, decode.TRUNCATED, decode.TOO_MANY_PIXELS, decode.TOO_COSTLY}
REASONS |= {decode.UNSUPPORTED_MODE}

# Decodes every file of a folder, two at a time as a worker does; prints a line of JSON for each, with the seconds of a
# processor: large pictures wait for each other, and other programs may be at work.
DECODE = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from hashing_model.images.decode import ImageError, Resizing, decode

def attempt(path):
    data, started = path.read_bytes(), time.thread_time()
    try:
        decode(data, Resizing(64))
        reason = detail = None
    except ImageError as e:
        reason, detail = e.reason, e.detail
    return path.name, reason, detail, time.thread_time() - started

with ThreadPoolExecutor(2) as pool:
    for found in pool.map(attempt, sorted(Path(sys.argv[1]).iterdir())):
        print(json.dumps(found))
"""


# Runs a command and tells on file 3 the most memory, in KiB, that it or one of its workers had. This process is small:
# the kernel counts what a process had before it started another program.
MEASURE = """
import os, resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
os.write(3, str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss).encode())
sys.exit(code if code >= 0 else 128 - code)
"""


def run_measured(command, folder):
    """Run a command with its home and temporary files in a folder.

    Returns:
        Exit code (above 128: killed by a signal), standard output, standard error, and the most memory in bytes that it
        or any one of its workers had.
    """
    environment = {**os.environ, 'TMPDIR': str(folder / 'tmp'), 'HOME': str(folder / 'home'), 'NO_COLOR': '1'}
    for name in ('tmp', 'home'):
        (folder / name).mkdir(exist_ok=True)
    words = ['sh', '-c', 'exec "$@" 3> "$0"', folder.parent / f'{folder.name}.memory', sys.executable, '-c', MEASURE]
    done = subprocess.run(
        [str(word) for word in (*words, *command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    memory = int((folder.parent / f'{folder.name}.memory').read_text()) * 1024
    return done.returncode, done.stdout, done.stderr, memory


def listing(folder):
    """Path -> digest of every file below a folder, None for folders."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        for path in sorted(folder.rglob('*'))
    }


def read_rejects(index):
    """All rejects of the served version, as dicts."""
    folder = served_folder(index)
    tables = [files.read_table(str(folder / f.path)) for f in read_served(index).rejects]
    return [row for table in tables for row in table.to_pylist()]


def check_counts(index, records_read):
    """That the numbers of a build add up, and that every record that is not indexed has a reason."""
    counters, rejects = read_served(index).counters, read_rejects(index)
    assert counters['records_read'] == counters['indexed'] + counters['rejected'] + counters['duplicates']
    assert counters['records_read'] == records_read
    assert len(rejects) == counters['rejected'] + counters['duplicates']
    reasons = collections.Counter(row['reason'] for row in rejects)
    reasons.pop('duplicate_id', None)
    assert reasons == counters['reasons']
    assert all(row['detail'] and '\n' not in row['detail'] for row in rejects)
    return counters


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """A folder of hostile pictures, and one with a model."""
    folder = tmp_path_factory.mktemp('hostile')
    (folder / 'pictures').mkdir()
    catalogue = catalogue_pictures(40)
    photo = Image.open(io.BytesIO(catalogue[0][1]))
    for name, data in hostile_pictures(photo):
        (folder / 'pictures' / name).write_bytes(data)
    hand_model(catalogue).save(folder / 'model')
    return folder


def test_all_are_decoded_or_refused_in_bounded_time_and_memory(pictures, capsys):
    command = [sys.executable, '-c', DECODE, pictures / 'pictures']
    code, out, err, memory = run_measured(command, pictures)
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0, f'after {found[-1:]}: {err}'
    assert len(found) >= 2_000
    assert {reason for _, reason, _, _ in found} == {None, *REASONS}
    assert all(detail and '\n' not in detail for _, reason, detail, _ in found if reason)
    assert err == '', 'decoders print'
    slowest = max(found, key=lambda row: row[3])
    with capsys.disabled():
        print(f'\nslowest: {slowest[0]} in {slowest[3]:.1f} s; most memory: {memory / 2**20:.0f} MiB')
    assert slowest[3] < MOST_SECONDS
    assert memory < MOST_MEMORY


@pytest.mark.parametrize('options', [(), TWO_PROCESSES], ids=['threads', 'two processes'])
def test_a_build_counts_all_of_them_and_writes_nothing_elsewhere(pictures, options, capsys):
    before, index = listing(pictures), pictures / 'index'
    given = ('--images', pictures / 'pictures', '--model', pictures / 'model', '--index', index, '--no-gate')
    code, _, err, memory = run_measured([sys.executable, '-m', 'grainhash', 'build', *given, *options], pictures)
    assert code == 0, err
    counters = check_counts(index, len(list((pictures / 'pictures').iterdir())))
    assert counters['rejected'] > 1_000
    assert set(counters['reasons']) == REASONS
    with capsys.disabled():
        print(f'\nmost memory of a worker: {memory / 2**20:.0f} MiB')
    assert memory < MOST_MEMORY
    assert len(err.splitlines()) < 20, 'one line per bad picture is too much'
    after = listing(pictures)
    before = {path: digest for path, digest in before.items() if not path.startswith('index')}
    assert {path for path in after if not path.startswith('index')} == {*before, 'tmp', 'home'}
    assert all(after[path] == digest for path, digest in before.items())
    ours = [sys.executable, '-m', 'grainhash', 'verify', str(index)]
    assert subprocess.run(ours, cwd=ROOT, capture_output=True, check=False).returncode == 0
