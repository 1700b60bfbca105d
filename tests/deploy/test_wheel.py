"""The wheel and the archive of the sources: whole, described for readers elsewhere; the wheel alone runs the demo."""

import email
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy
import pytest

from tests.helpers.make_index import CATALOGUE, ROOT

pytestmark = [pytest.mark.process, pytest.mark.xdist_group('package')]  # builds write beside the source

PACKAGES = ('grainhash', 'hashing_model', 'pipelines')
DATA = {'grainhash/py.typed', 'hashing_model/py.typed', 'pipelines/py.typed'}
DATA |= {'pipelines/reports/gallery.css', 'pipelines/reports/gallery.html'}
LICENCES = ('LICENSE', 'NOTICE')


def check(*command, **more):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source, folder, *options):
    check(sys.executable, '-m', 'build', '--no-isolation', '--outdir', folder, *options, source)


@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    """The folder of a release: the archive, and the wheel that was built from nothing but the archive."""
    folder = tmp_path_factory.mktemp('release')
    build(ROOT, folder)
    return folder


@pytest.fixture(scope='module')
def wheel(dist):
    """Name -> content of the wheel's files."""
    (path,) = dist.glob('*.whl')
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture(scope='module')
def sdist(dist):
    """Name -> content of the archive's files, without the folder that holds them all."""
    (path,) = dist.glob('*.tar.gz')
    with tarfile.open(path) as tar:
        return {m.name.split('/', 1)[1]: tar.extractfile(m).read() for m in tar if m.isfile()}


def info(wheel, name):
    (path,) = [path for path in wheel if path.endswith(f'.dist-info/{name}')]
    return wheel[path].decode()


def test_the_wheel_holds_the_packages_their_data_and_nothing_else(wheel):
    sources = {str(p.relative_to(ROOT)) for package in PACKAGES for p in (ROOT / package).rglob('*.py')}
    embedded = {f'pipelines/cli/catalogue/{path.name}' for path in CATALOGUE.iterdir()}
    assert len(sources) > 100
    assert len(embedded) == 13
    assert {name for name in wheel if '.dist-info/' not in name} == sources | embedded | DATA
    for path in CATALOGUE.iterdir():
        assert wheel[f'pipelines/cli/catalogue/{path.name}'] == path.read_bytes()


def test_the_archive_holds_what_the_wheel_does_and_what_builds_it(wheel, sdist):
    inside = {name: data for name, data in wheel.items() if '.dist-info/' not in name}
    assert {name: sdist.get(name) for name in inside} == inside
    others = {name for name in set(sdist) - set(inside) if not name.startswith('grainhash.egg-info/')}
    meta = {'MANIFEST.in', 'PKG-INFO', 'pyproject.toml', 'setup.cfg', 'setup.py'}
    assert others == {*meta, *LICENCES, 'README.md', 'CHANGELOG.md'}


def test_the_licences_are_in_both(wheel, sdist):
    for name in LICENCES:
        assert info(wheel, f'licenses/{name}') == sdist[name].decode() == (ROOT / name).read_text()
    notice = sdist['NOTICE'].decode()
    expression = email.message_from_string(info(wheel, 'METADATA'))['License-Expression']
    assert expression.split(' AND ') == ['Apache-2.0', 'MIT', 'CC-BY-4.0']
    assert all(name in notice for name in ('Apache-2.0', 'MIT License', 'CC-BY 4.0'))


def test_the_description_has_no_link_that_only_a_checkout_can_follow(wheel, dist):
    text = email.message_from_string(info(wheel, 'METADATA')).get_payload()
    assert text.startswith('# grainhash\n')
    links = re.findall(r'\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"', text)
    assert [link for link in map(''.join, links) if not link.startswith('https://')] == []
    check(sys.executable, '-m', 'twine', 'check', '--strict', *dist.iterdir())


def test_what_the_image_copies_builds_a_wheel_without_pictures(tmp_path):
    """The image for Dataflow gets no examples/: the link to the catalogue leads nowhere there."""
    source = tmp_path / 'template'
    source.mkdir()
    for line in (ROOT / '.dockerignore').read_text().splitlines():
        name = line.removeprefix('!')
        if line.startswith('!') and not name.startswith('deploy/'):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, source / name, **({'symlinks': True} if copy is shutil.copytree else {}))
    assert not (source / 'pipelines' / 'cli' / 'catalogue').exists()
    build(source, tmp_path / 'dist', '--wheel')
    (path,) = (tmp_path / 'dist').glob('*.whl')
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
    assert 'pipelines/cli/main.py' in names
    assert not [name for name in names if 'catalogue' in name]


@pytest.fixture(scope='module')
def installed(dist, tmp_path_factory):
    """A command beside the present packages, in an environment whose only grainhash is the wheel."""
    folder = tmp_path_factory.mktemp('clean')
    check(sys.executable, '-m', 'venv', '--without-pip', folder / 'venv')
    (site,) = (folder / 'venv' / 'lib').glob('python3.*/site-packages')
    (site / 'present.pth').write_text(str(Path(numpy.__file__).parents[1]))
    (path,) = dist.glob('*.whl')
    pip = (sys.executable, '-m', 'pip', '--python', folder / 'venv' / 'bin' / 'python', 'install')
    check(*pip, '--no-deps', '--no-index', '--ignore-installed', path)
    return folder / 'venv' / 'bin' / 'grainhash'


def test_the_wheel_alone_runs_the_demo(installed, tmp_path):
    """With the command's own default: the catalogue inside the wheel, outside any checkout."""
    assert 'Build an index' in check(installed, '--help', cwd=tmp_path)
    said = check(installed, 'demo', '--output', 'out', cwd=tmp_path, timeout=900)
    assert str(ROOT) not in said
    answer = json.loads((tmp_path / 'out' / 'answers.jsonl').read_text().splitlines()[0])
    assert Path(answer['source']['shard']).is_relative_to(installed.parents[1])
    assert (tmp_path / 'out' / 'report.html').stat().st_size > 1_000_000
    assert '3,195' in check(installed, 'inspect', 'out/index', cwd=tmp_path)
