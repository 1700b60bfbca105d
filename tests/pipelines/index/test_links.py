"""Nothing outside an index is removed, listed or counted: links are not followed, and strange names stay."""

import os
import time
from pathlib import Path

import pytest

from hashing_model.errors import InputError
from pipelines import files
from pipelines.cli.main import main
from pipelines.index import versions
from pipelines.index.maintenance import prune_index, verify_index
from pipelines.index.prune import prune_behind
from tests.helpers.make_index import build_by_hand, skewed_codes

OLD = time.time() - 30 * 86400


def age(path):
    """Make a file, a link or a folder with all in it a month old."""
    for below in [*Path(path).rglob('*'), Path(path)] if not Path(path).is_symlink() else [Path(path)]:
        os.utime(below, (OLD, OLD), follow_symlinks=False)


def everything(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(Path(folder).rglob('*'))
    }


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index of three versions, the last of them served; those of one second would not be told apart."""
    for number, rows in enumerate((40, 50, 60)):
        monkeypatch.setattr(versions, 'new_version_id', lambda number=number: f'20260101T00000{number}Z-000000')
        build_by_hand(tmp_path / 'index', [skewed_codes(rows)])
    monkeypatch.undo()
    return tmp_path / 'index'


@pytest.fixture
def precious(tmp_path):
    """A folder of somebody's, with names that grainhash would remove in an index of its own."""
    folder = tmp_path / 'precious'
    for name in ('photo.jpg', f'a.{"0" * 32}.tmp', 'images/part-00000.parquet', 'staging/work-units.parquet'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    age(folder)
    return folder


def served_folder(index):
    return index / 'versions' / versions.current_version(str(index))


def links(index, precious):
    """Each place below an index where a link may lie, and what it leads to."""
    served = served_folder(index)
    oldest = min(set((index / 'versions').iterdir()) - {served})
    return {
        'staging of the served version': (served / 'staging', precious),
        'staging of a version that goes': (oldest / 'staging', precious),
        'a folder inside the images': (served / 'images' / 'more', precious),
        'a half-written file': (served / f'x.{"1" * 32}.tmp', precious / 'photo.jpg'),
        'a file of the index': (index / f'x.{"1" * 32}.tmp', precious / 'photo.jpg'),
        'a version by name': (index / 'versions' / '20200101T000000Z-abcdef', precious),
        'a dead build by another name': (index / 'versions' / 'extra', precious),
    }


@pytest.mark.parametrize(
    'place',
    [
        'staging of the served version',
        'staging of a version that goes',
        'a folder inside the images',
        'a half-written file',
        'a file of the index',
        'a version by name',
        'a dead build by another name',
    ],
)
@pytest.mark.parametrize('prune', ['command', 'behind a build'])
def test_what_a_link_leads_to_stays(index, precious, place, prune):
    link, target = links(index, precious)[place]
    if link.is_dir() and not link.is_symlink():
        link.rmdir()
    link.symlink_to(target, target_is_directory=target.is_dir())
    age(link)
    before, served = everything(precious), versions.current_version(str(index))
    if prune == 'command':
        assert main(['prune', str(index), '--keep', '1', '--older-than', '0']) == 0
    else:
        prune_behind(str(index), 1)
    assert everything(precious) == before
    left = [v.version for v in versions.list_versions(str(index)) if v.state == 'finished']
    assert served in left
    assert len(left) <= 2  # the newest of three that were made within a second, and the served one
    if place in ('a version by name', 'a dead build by another name', 'a file of the index'):
        assert verify_index(str(index)).problems == ()


def test_a_version_that_is_a_link_keeps_its_manifest_where_it_leads(index, tmp_path):
    other = tmp_path / 'other'
    build_by_hand(other, [skewed_codes(30)])
    (oldest,) = (other / 'versions').iterdir()
    (index / 'versions' / oldest.name).symlink_to(oldest, target_is_directory=True)
    before = everything(other)
    report = prune_index(str(index), 1)
    assert everything(other) == before
    assert report.left_alone == (oldest.name,)


def test_a_link_instead_of_the_versions_is_refused(index, tmp_path):
    (index / 'versions').rename(tmp_path / 'elsewhere')
    (index / 'versions').symlink_to(tmp_path / 'elsewhere', target_is_directory=True)
    before = everything(tmp_path / 'elsewhere')
    with pytest.raises(InputError, match='versions is a link; nothing is removed behind links'):
        prune_index(str(index), 1)
    prune_behind(str(index), 1)
    assert everything(tmp_path / 'elsewhere') == before


def test_what_no_build_has_made_stays_and_is_told(index, capsys):
    strange = {'my-notes': 'todo.txt', '20200101': 'a', 'backup.2020': 'manifest.txt'}
    for name, file in strange.items():
        (index / 'versions' / name).mkdir()
        (index / 'versions' / name / file).write_text('mine')
        age(index / 'versions' / name)
    (index / 'versions' / 'readme.txt').write_text('mine')
    (index / 'a.probe').write_text('mine')
    age(index / 'versions' / 'readme.txt')
    age(index / 'a.probe')
    dead = index / 'versions' / '20200101T000000Z-0123ab'
    (dead / 'images').mkdir(parents=True)
    (dead / 'images' / 'part-00000.parquet').write_bytes(b'half')
    age(dead)
    assert main(['prune', str(index), '--keep', '1']) == 0
    out = capsys.readouterr().out
    assert f'removed dead build {dead.name}\n' in out
    assert not dead.exists()
    for name in (*strange, 'readme.txt'):
        assert f'left alone {name}, which no build has made\n' in out
    assert all((index / 'versions' / name / file).read_text() == 'mine' for name, file in strange.items())
    assert (index / 'versions' / 'readme.txt').exists()
    assert (index / 'a.probe').exists()


def test_files_are_listed_without_what_links_lead_to(tmp_path, precious):
    (tmp_path / 'own' / 'below').mkdir(parents=True)
    (tmp_path / 'own' / 'below' / 'a').write_bytes(b'abc')
    (tmp_path / 'own' / 'folder').symlink_to(precious, target_is_directory=True)
    (tmp_path / 'own' / 'file').symlink_to(precious / 'photo.jpg')
    (tmp_path / 'own' / 'gone').symlink_to(precious / 'nothing')
    os.mkfifo(tmp_path / 'own' / 'pipe')
    assert files.sizes_below(str(tmp_path / 'own')) == {'below/a': 3}
    assert files.infos_below(str(tmp_path / 'own'), recursive=False) == {}
    assert files.sizes_below(str(tmp_path / 'none')) == {}


def test_a_folder_that_is_a_link_is_not_removed(tmp_path, precious):
    (tmp_path / 'link').symlink_to(precious, target_is_directory=True)
    before = everything(precious)
    with pytest.raises(OSError, match='symbolic link'):
        files.delete_folder(str(tmp_path / 'link'))
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own' / 'link').symlink_to(precious, target_is_directory=True)
    files.delete_folder(str(tmp_path / 'own'))
    assert not (tmp_path / 'own').exists()
    assert everything(precious) == before


# What is no file, or no manifest, blocks nobody


@pytest.mark.parametrize('command', ['inspect', 'versions', 'prune --keep 1', 'verify', 'rollback'])
@pytest.mark.parametrize('current', ['pipe', 'large'])
def test_a_current_that_is_no_small_file_is_one_line(index, capsys, command, current):
    (index / 'CURRENT').unlink()
    if current == 'pipe':
        os.mkfifo(index / 'CURRENT')  # a reader would wait for a writer, deaf to signals
    else:
        (index / 'CURRENT').write_bytes(b'v' * 100_000)
    before = sorted(p.name for p in (index / 'versions').iterdir())
    name, *options = command.split()
    code = main([name, str(index), *options])
    wanted = (
        'CURRENT is no regular file' if current == 'pipe' else 'CURRENT has 100,000 bytes; at most 1,024 are expected'
    )
    err = capsys.readouterr().err
    assert (code, len(err.splitlines())) == (1, 1)
    assert wanted in err
    assert sorted(p.name for p in (index / 'versions').iterdir()) == before


@pytest.mark.parametrize('content', [b'[' * 200_000, b'{"a":' * 100_000, b'null', b'\xff\xfe'])
def test_one_bad_manifest_does_not_block_the_others(index, content, capsys):
    served = served_folder(index)
    oldest = min(set((index / 'versions').iterdir()) - {served})
    (oldest / 'manifest.json').write_bytes(content)
    found = {v.version: v.state for v in versions.list_versions(str(index))}
    assert found[oldest.name] == 'unreadable'
    assert found[served.name] == 'finished'
    assert main(['versions', str(index)]) == 0
    assert main(['prune', str(index), '--keep', '1']) == 0
    assert oldest.exists()  # another release of grainhash may have written it
    with pytest.raises(InputError, match='is not a manifest of grainhash'):
        versions.read_manifest(str(index), oldest.name)
