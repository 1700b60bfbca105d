"""Faults of the file system in the middle of a build: it fails loudly or rejects the record, and never serves less."""

import errno
import os
import subprocess
import sys

import pytest

from hashing_model.codes.spec import CodeSpec
from pipelines import files, records
from pipelines.build import build_index
from pipelines.cli.main import main
from pipelines.index import versions
from pipelines.inputs import shards
from pipelines.search.local_index import LocalIndex
from tests.helpers.make_index import (
    ROOT,
    catalogue_pictures,
    data_bytes,
    error_line,
    hand_model,
    make_codes,
    read_rejects,
    read_served,
    served_folder,
    succeed,
    tar_members,
    write_code_files,
    write_tar,
)

pytestmark = pytest.mark.beam

SPEC = CodeSpec.parse('code=64')


@pytest.fixture
def built(tmp_path):
    """Codes, an index of them, and a command that builds it again."""
    codes = make_codes('clustered', 900, SPEC)
    pattern, index = write_code_files(tmp_path, codes, 3), tmp_path / 'index'
    command = ['build', '--full', '--codes', pattern, '--index', str(index), '--partition-rows', '100']
    succeed(*command)
    return index, codes, command


def state(index, codes):
    """What a build that fails must leave: the served version, its files, its answers."""
    answers = LocalIndex.open(str(index)).search(codes[:20], k=5)
    return versions.current_version(str(index)), data_bytes(index), answers.distances.tolist(), answers.rows.tolist()


def check_whole(index, codes, before, finished=1):
    """That nothing has changed, and that after a prune nothing else is there than so many finished versions."""
    assert state(index, codes) == before
    assert main(['verify', str(index)]) == 0
    succeed('prune', index, '--keep', 1, '--older-than', 0)
    assert state(index, codes) == before
    assert sorted(p.name for p in index.iterdir()) == ['CURRENT', 'CURRENT.lock', 'versions']
    assert served_folder(index) in (index / 'versions').iterdir()
    assert [f.state for f in versions.list_versions(str(index))] == ['finished'] * finished


def failing(function, number, at, match=''):
    """A function that raises an OSError when it is called for the `at`-th time with a path that holds `match`."""
    calls = []

    def fail(*arguments, **options):
        path = os.readlink(f'/proc/self/fd/{arguments[0]}') if isinstance(arguments[0], int) else arguments[-1]
        calls.append(match in str(path))
        if calls[-1] and sum(calls) == at:
            raise OSError(number, os.strerror(number), str(path))
        return function(*arguments, **options)

    return fail


FAULTS = [
    ('replace', errno.EIO, 1, 'inputs'),
    ('replace', errno.EACCES, 1, 'staging'),
    ('replace', errno.EIO, 2, 'images/part'),
    ('replace', errno.ENOSPC, 20, 'codes/table'),
    ('replace', errno.EIO, 1, 'sample'),
    ('replace', errno.EROFS, 2, 'manifest.json'),  # the first is the look whether one could be written
    ('replace', errno.EIO, 1, 'CURRENT'),
    ('fsync', errno.EIO, 1, 'manifest.json'),
    ('fsync', errno.EIO, 1, 'CURRENT'),
    ('makedirs', errno.EDQUOT, 3, 'codes'),
]


@pytest.mark.parametrize('fault', FAULTS, ids=lambda f: f'{f[0]} {f[3]}')
def test_a_write_that_fails_fails_the_build(fault, built, capsys, monkeypatch):
    index, codes, command = built
    name, number, at, match = fault
    before = state(index, codes)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, name, failing(getattr(os, name), number, at, match))
        capsys.readouterr()
        assert main(command) == 1
    line = error_line(capsys)
    assert os.strerror(number) in line
    assert match in line
    check_whole(index, codes, before, finished=2 if match == 'CURRENT' else 1)


@pytest.mark.parametrize('fails', [1, 99])
def test_what_a_failed_build_cannot_remove_does_not_hide_why_it_failed(fails, built, capsys, monkeypatch):
    """As where the workers of a job that died write on for a moment."""
    index, codes, command = built
    before, discard, calls = state(index, codes), versions.discard, []

    def busy(*arguments):
        calls.append(arguments)
        if len(calls) <= fails:
            raise OSError(errno.ENOTEMPTY, 'Directory not empty')
        discard(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(versions, 'discard', busy)
        patch.setattr(build_index, 'DISCARD_AGAIN', (0, 0))
        patch.setattr(files.os, 'replace', failing(os.replace, errno.EIO, 2, 'images/part'))
        capsys.readouterr()
        assert main(command) == 1
    lines = capsys.readouterr().err.splitlines()
    assert os.strerror(errno.EIO) in lines[-1]
    left = [line for line in lines[:-1] if 'for grainhash prune to remove: [Errno 39] Directory not empty' in line]
    assert len(left) == (fails > 2)
    assert len(list((index / 'versions').iterdir())) == (2 if fails > 2 else 1)
    check_whole(index, codes, before)


def test_staged_files_that_cannot_be_removed_do_not_fail_a_build(built, caplog, monkeypatch):
    index, codes, command = built
    before = state(index, codes)
    remove = files.delete_folder

    def busy(uri):
        if uri.endswith(versions.STAGING_FOLDER):
            raise OSError(errno.ENOTEMPTY, 'Directory not empty')
        remove(uri)

    monkeypatch.setattr(files, 'delete_folder', busy)
    assert main(command) == 0
    assert 'what was staged is left there: [Errno 39] Directory not empty' in caplog.text
    assert state(index, codes) != before
    assert LocalIndex.open(index).manifest.version == (index / 'CURRENT').read_text().strip()


@pytest.mark.parametrize('what', ['staging/images', 'images/part', 'codes-'])
def test_a_read_that_is_short_fails_the_build(what, built, capsys, monkeypatch):
    """The bytes of a staged file, a range of one, or a file of codes end early, and nobody says so."""
    index, codes, command = built
    before = state(index, codes)
    read_bytes, read_table = files.read_bytes, files.read_table
    with monkeypatch.context() as patch:
        patch.setattr(files, 'read_bytes', lambda uri, *most: read_bytes(uri, *most)[: -100 if what in uri else None])
        patch.setattr(files, 'read_table', lambda uri, *a: read_table(uri, *a) if what not in uri else cut(uri, *a))
        capsys.readouterr()
        code = main(command)
    if code == 0:  # it was not read this way
        assert data_bytes(index) == before[1]
        succeed('prune', index, '--keep', 1)
        return
    assert code == 1
    assert error_line(capsys)
    check_whole(index, codes, before)


def cut(uri, *arguments):
    raise OSError(f'cannot read {uri}: it ends early')


def test_a_full_disk_fails_the_build(built, tmp_path):
    """A small file system of its own, where one may be mounted."""
    index, codes, command = built
    pages = sum(-(-path.stat().st_size // 4096) for path in index.rglob('*') if path.is_file())
    disk, copy = tmp_path / 'disk', tmp_path / 'disk' / 'index'
    disk.mkdir()
    mount = f'mount -t tmpfs -o size={(pages + 20) * 4}k none {disk} && cp -a {index} {copy}'
    script = f'{mount} && "$@"; code=$?; cp -a {copy} {tmp_path}/after; exit $code'
    words = [word.replace(str(index), str(copy)) for word in command]
    run = ['unshare', '--mount', 'sh', '-c', script, 'sh', sys.executable, '-m', 'grainhash', *words]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    if 'unshare' in done.stderr or 'mount' in done.stderr:
        pytest.skip('no file system may be mounted here')
    assert done.returncode == 1, done.stderr
    assert 'No space left on device' in done.stderr.splitlines()[-1]
    before, after = state(index, codes), tmp_path / 'after'
    assert (after / 'CURRENT').read_text() == f'{before[0]}\n'
    check_whole(after, codes, before)


def test_files_have_a_limit_of_size(built, tmp_path):
    """The kernel refuses what is beyond the limit, as a disk that is full would."""
    index, codes, command = built
    before = state(index, codes)
    limited = 'ulimit -f 8; trap "" XFSZ; exec "$@"'
    run = ['bash', '-c', limited, 'bash', sys.executable, '-m', 'grainhash', *command]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith('grainhash: error: ')
    assert 'File too large' in done.stderr.splitlines()[-1]
    check_whole(index, codes, before)


@pytest.fixture
def pictures(tmp_path):
    """Pictures in a folder and in a shard, a model, an index of them, and the command that builds it."""
    found = catalogue_pictures(40)
    (tmp_path / 'in' / 'loose').mkdir(parents=True)
    for number, (_, data) in enumerate(found[:10]):
        (tmp_path / 'in' / 'loose' / f'{number}.webp').write_bytes(data)
    write_tar(tmp_path / 'in' / 'shard.tar', tar_members(found[10:]))
    hand_model(found).save(tmp_path / 'model')
    index = tmp_path / 'index'
    command = ['build', '--full', '--images', f'{tmp_path}/in', '--model', f'{tmp_path}/model', '--index', str(index)]
    succeed(*command)
    return tmp_path / 'in', index, command


def vanish_after_listing(monkeypatch, path):
    """Remove a file between the listing of the input and its reading."""
    list_inputs = shards.list_inputs

    def list_then_remove(*arguments):
        found = list_inputs(*arguments)
        path.unlink()
        return found

    monkeypatch.setattr(shards, 'list_inputs', list_then_remove)


def test_a_picture_that_vanishes_is_a_reject(pictures, monkeypatch):
    folder, index, command = pictures
    vanish_after_listing(monkeypatch, folder / 'loose' / '3.webp')
    succeed(*command)
    assert read_served(index).counters['indexed'] == 39
    assert read_rejects(index) == [(records.UNREADABLE_FILE, 'loose/3.webp', 'loose/3.webp')]


def test_a_shard_that_vanishes_fails_the_build(pictures, monkeypatch, capsys):
    folder, index, command = pictures
    before = versions.current_version(str(index)), data_bytes(index)
    vanish_after_listing(monkeypatch, folder / 'shard.tar')
    assert main(command) == 1
    assert f'cannot read {folder}/shard.tar: No such file' in error_line(capsys)
    assert (versions.current_version(str(index)), data_bytes(index)) == before
    assert main(['verify', str(index)]) == 0


def test_a_model_that_is_read_short_fails_the_build(pictures, monkeypatch, capsys):
    _, index, command = pictures
    before = versions.current_version(str(index)), data_bytes(index)
    read = files.read_bytes
    monkeypatch.setattr(files, 'read_bytes', lambda uri, *most: read(uri, *most)[: -50 if '.npz' in uri else None])
    assert main(command) in (1, 2)
    assert error_line(capsys)
    assert (versions.current_version(str(index)), data_bytes(index)) == before
