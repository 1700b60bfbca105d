"""Two thousand hostile pictures: decoded in a process of their own, then indexed by a real build.

Everything is counted, nothing crashes, floods or hangs, and nothing is written outside the index.
"""

import io
import json
import subprocess
import sys

import pytest
from PIL import Image

from hashing_model.images import decode
from tests.helpers.make_hostile import hostile_pictures
from tests.helpers.make_index import ROOT, TWO_PROCESSES, catalogue_pictures, hand_model
from tests.helpers.measure import MOST_MEMORY, MOST_SECONDS, check_counts, listing, run_measured

pytestmark = pytest.mark.process

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
