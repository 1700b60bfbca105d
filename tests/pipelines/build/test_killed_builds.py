"""Builds that are killed, as by the machine: the served version stays as it is, and prune leaves nothing of them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hashing_model.codes.spec import CodeSpec
from pipelines.cli.main import main
from pipelines.index import versions
from pipelines.search.local_index import LocalIndex
from tests.helpers.make_index import (
    ROOT,
    catalogue_pictures,
    data_bytes,
    hand_model,
    make_codes,
    served_folder,
    succeed,
    tar_members,
    write_code_files,
    write_tar,
)

pytestmark = [pytest.mark.beam, pytest.mark.process]

# Runs a command that dies, uncaught and at once, in the middle of writing the first file whose path matches.
DYING = """
import os, re, signal, sys
from pipelines.cli.main import main
from pipelines import files

write = files.write_bytes

def write_or_die(uri, content, **options):
    if re.search(sys.argv[1], uri):
        write(f'{uri}.{"0a" * 16}.tmp', bytes(content)[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(uri, content, **options)

files.write_bytes = write_or_die
main(sys.argv[2:])
"""
POINTS = {
    'before anything': r'manifest\.json\.\w+\.probe$',
    'inputs': r'inputs\.parquet$',
    'encoding': r'staging/images-00001',
    'images': r'images/part-00001\.parquet$',
    'tables': r'codes/table=2/',
    'gate': r'quality\.json$',
    'manifest': r'manifest\.json$',
    'promotion': r'CURRENT$',
}
SPEC = CodeSpec.parse('coarse=32,fine=32')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """Codes and an index of them, which every killed build finds as the one before left it."""
    folder = tmp_path_factory.mktemp('killed')
    codes = make_codes('clustered', 600, SPEC)
    write_code_files(folder, codes, 3)
    succeed(*build_command(folder))
    return folder, codes


def build_command(folder):
    options = ('--segments', 'coarse=32,fine=32', '--partition-rows', 100, '--index', folder / 'index')
    return [str(word) for word in ('build', '--codes', folder / 'codes-*.parquet', *options)]


def answers(folder, codes):
    return LocalIndex.open(str(folder / 'index')).search(codes[:20], k=9).distances.tolist()


@pytest.mark.parametrize('point', POINTS.values(), ids=list(POINTS))
def test_a_killed_build_harms_nothing_and_is_pruned(point, built):
    folder, codes = built
    index = folder / 'index'
    served, before, bytes_before = versions.current_version(str(index)), answers(folder, codes), data_bytes(index)
    command = [sys.executable, '-c', DYING, point, *build_command(folder), '--full']
    died = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=100, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    left = set(index.rglob('*.tmp'))
    assert len(left) == 1, 'it did not die in the middle of a file'
    assert versions.current_version(str(index)) == served
    assert answers(folder, codes) == before
    assert data_bytes(index) == bytes_before
    assert main(['verify', str(index)]) == 0
    dead = [f for f in versions.list_versions(str(index)) if f.version != served]
    assert [f.state for f in dead] == ['finished' if 'CURRENT' in point else 'unfinished']
    time.sleep(1)  # versions finished in the same second are not told apart
    succeed(*build_command(folder))
    assert versions.current_version(str(index)) not in (served, dead[0].version)
    assert answers(folder, codes) == before
    succeed('prune', index, '--keep', 1)
    assert left == set(index.rglob('*.tmp')), 'what is new belongs to a build that may be running'
    succeed('prune', index, '--keep', 1, '--older-than', 0)
    assert sorted(path.name for path in index.iterdir()) == ['CURRENT', 'CURRENT.lock', 'versions']
    assert list((index / 'versions').iterdir()) == [served_folder(index)]
    assert main(['verify', str(index)]) == 0
    assert answers(folder, codes) == before


# Forks a process, a group of its own, for each line of words: to run a command without loading everything again.
ZYGOTE = """
import json, os, sys
from pipelines.build import build_index, job, partitions
from pipelines.encoding import code_files
from pipelines.jobs import runner
from pipelines.cli.main import main

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.setsid()
        os._exit(main(json.loads(line)))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope='module')
def zygote():
    """Runs a command, which it kills so many seconds after it has begun a version, if ever; returns when it ended.

    The times are in seconds from the begin of the version; the exit code is below 0 if it was killed.
    """
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'stderr': subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, '-c', ZYGOTE], cwd=ROOT, text=True, **pipes) as process:

        def run(command, index, seconds=None):
            before = set((index / 'versions').glob('*'))
            process.stdin.write(json.dumps(command) + '\n')
            process.stdin.flush()
            child = int(process.stdout.readline())
            while set((index / 'versions').glob('*')) == before:
                time.sleep(0.002)
            started = time.monotonic()
            if seconds is not None:
                time.sleep(seconds)
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    os.killpg(child, signal.SIGKILL)
            code = int(process.stdout.readline())
            return code, time.monotonic() - started

        yield run
        process.stdin.close()


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


def test_builds_killed_at_random_moments_harm_nothing(zygote, tmp_path):
    codes = make_codes('clustered', 3_000, SPEC)
    write_code_files(tmp_path, codes, 6)
    command, index = build_command(tmp_path), tmp_path / 'index'
    succeed(*command)
    clean, expected = data_bytes(index), answers(tmp_path, codes)
    (code, duration), killed = zygote(command, index), 0
    assert code == 0
    for number, moment in enumerate(np.random.default_rng(11).uniform(0, 1, 20) * duration):
        time.sleep(1)  # versions finished in the same second are not told apart
        served = versions.current_version(str(index))
        code, _ = zygote([*command, *(['--full'] if number % 2 else [])], index, moment)
        killed += code == -signal.SIGKILL
        finished = {f.version for f in versions.list_versions(str(index)) if f.state == 'finished'}
        now = versions.current_version(str(index))
        assert now in finished  # a build may be killed when it has just moved CURRENT
        assert code or now != served
        assert answers(tmp_path, codes) == expected
        assert main(['verify', str(index)]) == 0
        code, _ = zygote(command, index)
        assert code == 0
        assert data_bytes(index) == clean
        succeed('prune', index, '--keep', 1, '--older-than', 0)
        version = versions.current_version(str(index))
        folders = {f'versions/{version}/{folder}' for path in clean for folder in parents(path)}
        whole = {f'versions/{version}/{path}' for path in (*clean, 'build.json', 'manifest.json', 'quality.json')}
        whole |= folders
        assert everything(index) == sorted({'CURRENT', 'CURRENT.lock', 'versions', f'versions/{version}', *whole})
    assert killed >= 15


def parents(path):
    return [str(folder) for folder in Path(path).parents if folder.name]


def test_a_killed_build_of_images_harms_nothing(zygote, tmp_path):
    pictures = catalogue_pictures(60)
    for number in range(3):
        write_tar(tmp_path / f'{number}.tar', tar_members(pictures[20 * number : 20 * number + 20]))
    hand_model(pictures).save(tmp_path / 'model')
    index = tmp_path / 'index'
    options = ('--images', tmp_path / '*.tar', '--model', tmp_path / 'model', '--index', index)
    command = ['build', '--full', *map(str, options)]
    code, duration = zygote(command, index)
    assert code == 0
    clean, served = data_bytes(index), versions.current_version(str(index))
    for share in (0.3, 0.8):
        code, _ = zygote(command, index, share * duration)
        assert code in (0, -signal.SIGKILL)
        if code:
            assert versions.current_version(str(index)) == served
        assert data_bytes(index) == clean
        assert main(['verify', str(index)]) == 0
        served = versions.current_version(str(index))
    assert zygote(command, index)[0] == 0
    assert data_bytes(index) == clean
    succeed('prune', index, '--keep', 1, '--older-than', 0)
    assert list((index / 'versions').iterdir()) == [served_folder(index)]
