"""Which version is served, and who may change it: two builds at once, retries, promote, rollback, versions."""

import dataclasses
import datetime
import json
import os
import re
import types
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor

import pytest

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import BuildError, InputError
from pipelines.build import build_index
from pipelines.build.publish import publish_version
from pipelines.cli.main import main
from pipelines.index import current, versions
from pipelines.index.versions import (
    check_index_folder,
    current_version,
    list_versions,
    look,
    publish,
    version_before,
)
from tests.helpers.make_index import (
    build_by_hand,
    error_line,
    make_codes,
    served_folder,
    skewed_codes,
    start,
    succeed,
    write_codes,
)
from tests.helpers.make_versions import three_versions, write_version


def test_of_many_that_believe_the_same_one_wins(tmp_path):
    index, names = str(tmp_path), [f'v{i}' for i in range(16)]
    for name in names:
        write_version(tmp_path, name)
    believed = look(index)

    def attempt(name):
        try:
            publish(index, name, believed)
        except BuildError as e:
            return str(e)

    for _ in range(2):  # first there is no CURRENT
        with ThreadPoolExecutor(16) as pool:
            errors = dict(zip(names, pool.map(attempt, names), strict=True))
        (winner,) = [name for name, error in errors.items() if error is None]
        assert current_version(index) == winner
        for name in set(names) - {winner}:
            assert errors[name] == (
                f'version {name} is finished but not served: {index}/CURRENT names {winner} now, not '
                f'{believed.text or "none"} as when the work began; grainhash promote {index} {name} serves it'
            )
        names.remove(winner)
        believed = look(index)


def test_a_repeated_step_neither_fails_nor_moves_current_back(tmp_path):
    index = three_versions(tmp_path)
    believed = look(index)
    publish(index, 'v3', believed)
    publish(index, 'v3', believed)
    assert current_version(index) == 'v3'
    publish(index, 'v1', look(index))
    with pytest.raises(BuildError, match='CURRENT names v1 now, not v2'):
        publish(index, 'v3', believed)
    assert current_version(index) == 'v1'


def test_a_removed_version_is_not_served(tmp_path):
    index = three_versions(tmp_path)
    for name in ('dead', 'gone'):
        with pytest.raises(BuildError, match=f'has no finished version {name}'):
            publish(index, name)
    assert current_version(index) == 'v2'


def test_a_mover_waits_for_the_lock(tmp_path):
    index = three_versions(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        with current.locked(f'{index}/CURRENT'):
            moved = pool.submit(publish, index, 'v3')
            with pytest.raises(futures.TimeoutError):  # the builtin one from Python 3.11 on
                moved.result(timeout=0.3)
            assert current_version(index) == 'v2'
        moved.result(timeout=10)
    assert current_version(index) == 'v3'


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_lock_file_of_another_user_does_as_well(tmp_path):
    index = three_versions(tmp_path)
    (tmp_path / 'CURRENT.lock').chmod(0o444)
    publish(index, 'v3')
    assert current_version(index) == 'v3'


@pytest.mark.process
@pytest.mark.beam
def test_the_parts_of_two_builds_do_not_mix_and_the_later_promotion_loses(tmp_path, monkeypatch, capsys):
    """The second build, a process of its own, begins and ends while the first is under way."""
    spec, index = CodeSpec.parse('code=64'), tmp_path / 'index'
    inputs = [
        write_codes(tmp_path / f'{name}.parquet', [f'{name}{i}' for i in range(n)], make_codes('uniform', n, spec))
        for name, n in (('before', 5), ('slow', 60), ('quick', 40))
    ]
    succeed('build', '--codes', inputs[0], '--index', index)
    before = current_version(str(index))

    codes_input = build_index._codes_input

    def meanwhile(args):
        assert start('build', '--codes', inputs[2], '--index', index).returncode == 0
        return codes_input(args)

    monkeypatch.setattr('pipelines.build.build_index.versions.new_version_id', lambda: 'slow')
    monkeypatch.setattr('pipelines.build.build_index._codes_input', meanwhile)
    capsys.readouterr()
    assert main(['build', '--codes', inputs[1], '--index', str(index)]) == 1
    quick = current_version(str(index))
    line = error_line(capsys)
    assert line == (
        f'grainhash: error: version slow is finished but not served: {index}/CURRENT names {quick} now, not {before} '
        f'as when the work began; grainhash promote {index} slow serves it'
    )
    assert quick not in (before, 'slow')
    assert [f.manifest.rows for f in list_versions(str(index)) if f.version in (quick, 'slow')] == [40, 60]
    assert not list(index.rglob('staging'))
    assert main(line.split('; grainhash ')[1].split(' serves')[0].split()) == 0
    assert current_version(str(index)) == 'slow'


class Clock:
    """The module `datetime`, at some second of an hour."""

    timezone = datetime.timezone

    def __init__(self, second):
        self.datetime = types.SimpleNamespace(now=lambda zone: datetime.datetime(2026, 1, 1, 0, 0, second, tzinfo=zone))


def test_publishing_again_changes_nothing(tmp_path, monkeypatch):
    rows, manifests = [], []

    def publish_twice(*arguments):
        for second in range(2):
            monkeypatch.setattr('pipelines.build.publish.datetime', Clock(second))
            rows.append(publish_version(*arguments))
            manifests.append((served_folder(tmp_path) / 'manifest.json').read_bytes())

    monkeypatch.setattr('tests.helpers.make_index.publish_version', publish_twice)
    config = build_by_hand(tmp_path, [skewed_codes(120)])
    assert rows == [120, 120]
    assert manifests[0] == manifests[1]
    assert current_version(str(tmp_path)) == config.version
    assert main(['verify', str(tmp_path)]) == 0


def test_promote_serves_any_finished_version(tmp_path, capsys):
    index = three_versions(tmp_path)
    assert main(['promote', index, 'v3']) == 0
    assert current_version(index) == 'v3'
    assert capsys.readouterr().err == f'{index}: serves v3 now; it was v2\n'
    assert main(['promote', index, 'v3']) == 0
    assert capsys.readouterr().err == f'{index}: serves v3 already\n'


@pytest.mark.parametrize('version', ['dead', 'v9', '..', '../versions/v1', '', '.'])
def test_promote_refuses_what_is_no_finished_version(version, tmp_path, capsys):
    index = three_versions(tmp_path)
    assert main(['promote', index, version]) == 2
    assert f'{index} has no version ' in error_line(capsys)
    assert current_version(index) == 'v2'


def test_promote_serves_the_first_version_and_mends_a_damaged_current(tmp_path):
    write_version(tmp_path, 'v1')
    for content in (None, b'', b'\xff\xfe', b'v1\nv2\n', b'gone\n'):
        if content is not None:
            (tmp_path / 'CURRENT').write_bytes(content)
        assert main(['promote', str(tmp_path), 'v1']) == 0
        assert (tmp_path / 'CURRENT').read_bytes() == b'v1\n'


def test_rollback_goes_one_finished_version_back(tmp_path, capsys):
    index = three_versions(tmp_path)
    publish(index, 'v3')
    for expected in ('v2', 'v1'):
        assert main(['rollback', index]) == 0
        assert current_version(index) == expected
    capsys.readouterr()
    assert main(['rollback', index]) == 2
    assert f'{index} has no finished version older than v1, which is served' in error_line(capsys)
    assert current_version(index) == 'v1'


def test_rollback_passes_over_a_version_that_failed_its_gate(tmp_path):
    index = three_versions(tmp_path)
    write_version(tmp_path, 'v4', created='2026-01-04T00:00:00+00:00', gate='skipped')
    publish(index, 'v4')
    assert main(['rollback', index]) == 0
    assert current_version(index) == 'v2'


def test_older_is_what_was_finished_before(tmp_path):
    """Ids are of the begin: a build that began first and ended last is the newest."""
    for version, day in (('a', 3), ('b', 2), ('c', 1)):
        write_version(tmp_path, version, created=f'2026-01-0{day}T00:00:00+00:00')
    found = list_versions(str(tmp_path))
    assert [f.version for f in found] == ['c', 'b', 'a']
    assert [version_before(found, v) for v in 'abcd'] == ['b', 'c', None, None]


def test_versions_lists_them_all(tmp_path, capsys):
    index = three_versions(tmp_path)
    (tmp_path / 'versions' / 'odd').mkdir()
    (tmp_path / 'versions' / 'odd' / 'manifest.json').write_bytes(b'{')
    assert main(['versions', index, '--json']) == 0
    rows = json.loads(capsys.readouterr().out)
    size = sum(f.bytes for f in versions.read_manifest(index).data_files)
    days = [f'2026-01-0{i}T00:00:00+00:00' for i in (1, 2, 3)]
    assert [tuple(row.values()) for row in rows] == [
        ('dead', None, None, None, None, 'unfinished'),
        ('odd', None, None, None, None, 'unreadable'),
        ('v1', days[0], 12, size, None, 'finished'),
        ('v2', days[1], 12, size, 'passed', 'served'),
        ('v3', days[2], 12, size, 'failed', 'finished'),
    ]
    assert main(['versions', index]) == 0
    lines = [re.split(r'  +', line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ['version', 'created', 'rows', 'size', 'gate', 'state']
    assert lines[1] == ['dead', 'unfinished']
    assert lines[4][:3] == ['v2', days[1], '12']
    assert lines[4][-2:] == ['passed', 'served']


@pytest.mark.parametrize('command', [('versions',), ('promote', 'v1'), ('rollback',)])
def test_what_is_not_an_index_is_refused(command, tmp_path, capsys):
    name, *rest = command
    for folder in (tmp_path, tmp_path / 'none'):
        assert main([name, str(folder), *rest]) == 2
        assert str(folder) in error_line(capsys)
    assert not (tmp_path / 'none').exists()


def test_a_reader_follows_when_the_version_it_was_sent_to_is_gone(tmp_path, monkeypatch):
    """CURRENT is read, then the version is replaced and removed, then its manifest is read."""
    index = three_versions(tmp_path)
    answers = iter(['gone', 'v2', 'v2'])
    monkeypatch.setattr(versions, 'current_version', lambda _: next(answers))
    assert versions.read_manifest(index).version == 'v2'


def test_what_was_believed_travels_with_the_build(tmp_path):
    config = build_by_hand(tmp_path, [skewed_codes(12)])
    assert dataclasses.replace(config, believed=look(str(tmp_path))).believed.text == config.version
    assert served_folder(tmp_path).name == config.version


def test_a_publication_that_is_repeated_does_not_undo_a_rollback(tmp_path):
    """`CURRENT` names again what was believed, but it was moved in between."""
    index = str(tmp_path)
    for name in ('v1', 'v2'):
        write_version(tmp_path, name)
    publish(index, 'v1')
    believed = look(index)
    publish(index, 'v2', believed)
    publish(index, 'v1', look(index))
    with pytest.raises(BuildError):
        publish(index, 'v2', believed)
    assert current_version(index) == 'v1'


def test_a_lock_file_alone_does_not_stop_a_build(tmp_path):
    with current.locked(str(tmp_path / 'CURRENT')):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ['CURRENT.lock']
    check_index_folder(str(tmp_path))
    (tmp_path / 'holiday.jpg').write_bytes(b'')
    with pytest.raises(InputError, match=r'holds holiday\.jpg;'):
        check_index_folder(str(tmp_path))
