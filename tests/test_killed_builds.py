"""Builds that are killed, as by the machine: the served version stays as it is, and prune leaves nothing of them."""

import signal
import subprocess
import sys
import time

import pytest
from make_index import ROOT, data_bytes, make_codes, served_folder, succeed, write_code_files

from hashing_model.code_spec import CodeSpec
from pipelines.__main__ import main
from pipelines.index import LocalIndex, versions

pytestmark = pytest.mark.slow

# Runs a command that dies, uncaught and at once, in the middle of writing the first file whose path matches.
DYING = """
import os, re, signal, sys
from pipelines.__main__ import main
from pipelines.index import files

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
    'before anything': r'manifest\.json\.probe$',
    'inputs': r'inputs\.parquet$',
    'encoding': r'staging/images-00001',
    'images': r'images/part-00001\.parquet$',
    'tables': r'codes/table=2/',
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
    command = [sys.executable, '-c', DYING, point, *build_command(folder)]
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
