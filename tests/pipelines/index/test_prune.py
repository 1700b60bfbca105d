"""What `grainhash prune` removes, and what it must leave: the served version, the newest, running builds."""

import os
import threading
import time

import numpy as np
import pytest

from hashing_model.codes.spec import CodeSpec
from pipelines.cli.main import main
from pipelines.index import prune as prune_index
from pipelines.index import versions
from pipelines.index.prune import left_overs, prune_versions, superseded
from pipelines.index.versions import ListedVersion, current_version, list_versions, publish
from pipelines.search.local_index import LocalIndex
from tests.helpers.make_index import (
    build_by_hand,
    config_for,
    error_line,
    make_codes,
    served_folder,
    skewed_codes,
    write_codes,
    write_part,
)
from tests.helpers.make_versions import three_versions, write_version

HOUR = 3600
DEAD, EMPTY, RUNNING = '20200101T000000Z-00dead', '20200102T000000Z-000e0e', '20200103T000000Z-000a1b'


def age(path, hours):
    """Make a file, or all files of a folder, and the folders, as old as that."""
    then = time.time() - hours * HOUR
    for each in (path, *path.rglob('*')):
        os.utime(each, (then, then))


def names(index):
    return [f.version for f in list_versions(str(index))]


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


@pytest.mark.parametrize(
    ('keep', 'served', 'gone'),
    [
        (1, 'd', 'abc'),
        (2, 'd', 'ab'),
        (4, 'd', ''),
        (9, 'd', ''),
        (1, 'a', 'bc'),
        (2, 'b', 'a'),
        (1, None, 'abc'),
    ],
)
def test_the_newest_and_the_served_stay(keep, served, gone):
    found = [
        ListedVersion('x', 'unfinished'),
        ListedVersion('y', 'unreadable'),
        *(ListedVersion(v, 'finished') for v in 'abcd'),
    ]
    assert superseded(found, served, keep) == list(gone)


def test_versions_that_failed_their_gate_are_counted_apart(tmp_path):
    for day, gate in enumerate(('passed', 'passed', 'failed', 'failed', 'skipped', 'failed', 'failed', 'failed'), 1):
        write_version(tmp_path, f'v{day}', created=f'2026-01-0{day}T00:00:00+00:00', gate=gate)
    found = list_versions(str(tmp_path))
    assert superseded(found, 'v5', 2) == ['v1', 'v3', 'v4', 'v6']
    assert superseded(found, 'v5', 1) == ['v1', 'v2', 'v3', 'v4', 'v6', 'v7']


def test_half_written_files_and_staging_are_left_overs():
    half = f'codes/table=0/prefix=0/part-0.parquet.{"0af" * 10}00.tmp'
    old = {path: prune_index.FileInfo(1, 5.0) for path in ('staging/a', half, f'manifest.json.{"0af" * 10}00.probe')}
    kept = {
        path: prune_index.FileInfo(1, 5.0) for path in ('manifest.json', 'model/x.tmp', 'images/staging/a', 'a.tmp')
    }
    assert left_overs({**old, **kept}, 6.0) == list(old)
    assert left_overs({**old, **kept}, 5.0) == []


def test_old_versions_go_and_the_others_are_as_before(tmp_path, capsys):
    for rows in (60, 70, 80, 90):
        build_by_hand(tmp_path, [skewed_codes(rows)])
    order = names(tmp_path)
    publish(str(tmp_path), order[0])
    before = {name: everything(tmp_path / 'versions' / name) for name in order}
    assert main(['prune', str(tmp_path), '--keep', '2']) == 0
    out, err = capsys.readouterr()
    assert out == f'removed version {order[1]}\n'
    assert ': 1 old versions, 0 dead builds and 0 other left-over files removed, ' in err
    assert names(tmp_path) == [order[0], *order[2:]]
    assert all(everything(tmp_path / 'versions' / name) == before[name] for name in names(tmp_path))
    assert current_version(str(tmp_path)) == order[0]
    assert main(['prune', str(tmp_path), '--keep', '2']) == 0
    assert capsys.readouterr().out == ''


def test_a_dead_build_goes_and_a_running_one_stays(tmp_path):
    served = build_by_hand(tmp_path, [skewed_codes(60)])
    dead, running, odd = (config_for(tmp_path, 1) for _ in range(3))
    for config in (dead, running, odd):
        write_part(0, skewed_codes(20), config)
        age(tmp_path / 'versions' / config.version, 30)
    (tmp_path / 'versions' / odd.version / 'manifest.json').write_bytes(b'{"format_version": 99}')
    age(tmp_path / 'versions' / odd.version, 30)
    (tmp_path / 'versions' / running.version / 'staging').mkdir()
    (tmp_path / 'versions' / running.version / 'staging' / 'ids').write_bytes(b'just now')
    (tmp_path / 'versions' / EMPTY).mkdir()
    kept = everything(tmp_path / 'versions' / running.version)
    removed = prune_versions(str(tmp_path), 1, time.time() - 31 * HOUR)
    assert removed == prune_index.Removed((), (), (), 0)
    removed = prune_versions(str(tmp_path), 1, time.time() - 24 * HOUR)
    assert (removed.finished, removed.dead, removed.files) == ((), (dead.version,), ())
    assert removed.bytes > 1000
    assert sorted(names(tmp_path)) == sorted([served.version, running.version, odd.version, EMPTY])
    assert everything(tmp_path / 'versions' / running.version) == kept
    age(tmp_path / 'versions' / EMPTY, 30)
    assert prune_versions(str(tmp_path), 1, time.time() - 24 * HOUR).dead == (EMPTY,)


def test_left_overs_in_finished_versions_go_when_old(tmp_path, capsys):
    build_by_hand(tmp_path, [skewed_codes(60)])
    before = everything(tmp_path)
    folder, tmp = served_folder(tmp_path), f'{"0a" * 16}.tmp'
    left = [tmp_path / f'CURRENT.{tmp}', folder / f'sample.parquet.{tmp}', folder / 'staging' / 'codes-00000-0.arrow']
    (folder / 'staging').mkdir()
    for path in left:
        path.write_bytes(bytes(10))
    assert main(['prune', str(tmp_path), '--keep', '1']) == 0
    assert all(path.exists() for path in left)
    for path in left:
        age(path, 3)
    capsys.readouterr()
    assert main(['prune', str(tmp_path), '--keep', '1', '--older-than', '2.5']) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(f'removed left-over {path}' for path in left)
    assert everything(tmp_path) == before


def test_an_index_without_a_finished_version(tmp_path):
    (tmp_path / 'versions' / DEAD).mkdir(parents=True)
    age(tmp_path / 'versions', 30)
    assert prune_versions(str(tmp_path), 1, time.time() - 24 * HOUR).dead == (DEAD,)
    assert prune_versions(str(tmp_path), 1, time.time()).dead == ()
    versions.check_index_folder(str(tmp_path))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('--keep', '0'), '--keep is 0; at least 1 is needed'),
        (('--keep', '1', '--older-than', '-1'), '--older-than is -1; 0 or more hours'),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, message, tmp_path, capsys):
    index = three_versions(tmp_path)
    assert main(['prune', index, *options]) == 2
    assert message in error_line(capsys)
    assert len(names(tmp_path)) == 4


def test_a_folder_that_is_no_index_is_left_alone(tmp_path, capsys):
    (tmp_path / 'staging').mkdir()
    (tmp_path / 'staging' / 'photo.jpg').write_bytes(b'')
    age(tmp_path, 100)
    assert main(['prune', str(tmp_path), '--keep', '1']) == 2
    assert 'is not an index' in error_line(capsys)
    assert (tmp_path / 'staging' / 'photo.jpg').exists()


@pytest.fixture
def shop(tmp_path):
    """A function that builds an index of so many codes, with options; returns the exit code."""
    spec = CodeSpec.parse('code=64')

    def build(rows, *options):
        ids = [str(i) for i in range(rows)]
        codes = write_codes(tmp_path / 'codes.parquet', ids, make_codes('uniform', rows, spec))
        return main(['build', '--codes', codes, '--index', str(tmp_path / 'index'), *options])

    return build


@pytest.mark.beam
def test_a_build_prunes_once_it_is_served(shop, tmp_path):
    index = tmp_path / 'index'
    dead, running = (index / 'versions' / name / 'staging' for name in (DEAD, RUNNING))
    for folder in (dead, running):
        folder.mkdir(parents=True)
        (folder / 'images-00000.parquet').write_bytes(b'')
    age(dead.parent, 30)
    assert [shop(rows) for rows in (100, 101)] == [0, 0]
    assert [f.state for f in list_versions(str(index))] == ['unfinished', 'unfinished', 'finished', 'finished']
    before = names(index)
    assert shop(102, '--keep', '2') == 0
    served = current_version(str(index))
    assert names(index) == [RUNNING, before[-1], served]


@pytest.mark.beam
def test_a_build_that_fails_its_gate_prunes_nothing(shop, tmp_path):
    assert shop(100) == 0
    served = current_version(str(tmp_path / 'index'))
    assert shop(50, '--keep', '1') == 3
    assert current_version(str(tmp_path / 'index')) == served
    assert len(names(tmp_path / 'index')) == 2


@pytest.mark.beam
def test_a_version_that_cannot_be_removed_does_not_fail_the_build(shop, tmp_path, monkeypatch, caplog):
    assert shop(100) == 0

    def refuse(uri):
        raise PermissionError(f'{uri} is not yours')

    delete = prune_index.files.delete_folder
    monkeypatch.setattr(
        prune_index.files, 'delete_folder', lambda uri: delete(uri) if uri.endswith('staging') else refuse(uri)
    )
    assert shop(101, '--keep', '1') == 0
    assert LocalIndex.open(str(tmp_path / 'index')).manifest.rows == 101
    assert 'grainhash prune does it' in caplog.text


def test_a_build_that_would_keep_nothing_is_refused(shop, tmp_path, capsys):
    assert shop(100, '--keep', '0') == 2
    assert '--keep is 0; at least 1 is needed' in error_line(capsys)
    assert not (tmp_path / 'index').exists()


def test_what_was_served_or_finished_since_the_look_is_not_retired(tmp_path):
    index = three_versions(tmp_path)
    write_version(tmp_path, 'ended')
    assert not versions.retire(index, 'v2')
    assert not versions.retire(index, 'ended', finished=False)
    assert versions.retire(index, 'v1')
    assert versions.retire(index, 'dead', finished=False)
    assert [f.version for f in list_versions(index) if f.state == 'unfinished'] == ['dead', 'v1']
    assert main(['promote', index, 'v1']) == 2


def test_readers_while_versions_are_promoted_and_pruned(tmp_path):
    """Answers are always those of some version; a reader fails only if its own version was pruned, and says so."""
    codes = skewed_codes(90)
    index, ending, opened, failures = str(tmp_path), threading.Event(), [], []
    build_by_hand(tmp_path, [codes[:60]])

    def read():
        while not ending.is_set():
            try:
                local = LocalIndex.open(index)
                assert local.search(codes[:5], k=1).distances[:, 0].tolist() == [0] * 5
                opened.append(len(local))
            except OSError as e:
                whole = [f.version for f in list_versions(index) if f.state != 'unfinished']
                if local.manifest.version in whole:
                    failures.append(e)
            except BaseException as e:
                failures.append(e)
                raise

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for rows in range(61, 73):
        build_by_hand(tmp_path, [codes[:rows]])
        prune_versions(index, 3, 0)
        seen, until = len(opened), time.monotonic() + 5
        while len(opened) == seen and not failures and time.monotonic() < until:
            time.sleep(0.01)  # let readers read, also on a busy machine
    ending.set()
    for reader in readers:
        reader.join()
    assert not failures
    assert len(set(opened)) > 3
    assert len(names(tmp_path)) in (3, 4)
    assert np.isin(opened, range(60, 73)).all()
