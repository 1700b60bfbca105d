"""The pages as `make docs` builds them: no warning, and nothing that another host would have to send."""

import html.parser
import importlib.util
import os
import re
import subprocess
import sys

import pytest

from tests.helpers.make_index import ROOT

pytestmark = pytest.mark.process


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    if importlib.util.find_spec('mkdocs') is None or importlib.util.find_spec('mkdocstrings_handlers') is None:
        pytest.skip("the pages are built with pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp('site')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(folder)]
    env = {**os.environ, 'NO_MKDOCS_2_WARNING': '1'}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


class _Loads(html.parser.HTMLParser):
    """What a browser fetches to show a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.found += [given[name] for name in ('src', 'srcset', 'data', 'poster') if given.get(name)]
        if tag == 'link' and given.get('rel') not in ('canonical', 'prev', 'next', 'alternate'):
            self.found.append(given.get('href') or '')


def is_elsewhere(address):
    return bool(re.match(r'(?:https?:)?//', address))


def test_no_page_loads_anything_from_another_host(site):
    pages = sorted(site.rglob('*.html'))
    assert len(pages) > 25
    for page in pages:
        loads = _Loads()
        loads.feed(page.read_text(encoding='utf-8'))
        assert loads.found, page
        assert not [address for address in loads.found if is_elsewhere(address)], page
    for style in site.rglob('*.css'):
        addresses = re.findall(r'url\(["\']?([^)"\']+)', style.read_text(encoding='utf-8'))
        assert not [address for address in addresses if is_elsewhere(address)], style


def test_the_references_are_filled(site):
    command_line = (site / 'reference' / 'command-line' / 'index.html').read_text(encoding='utf-8')
    assert 'id="grainhash-build"' in command_line
    assert '--labels-from' in command_line
    python = (site / 'reference' / 'python' / 'index.html').read_text(encoding='utf-8')
    assert 'partition_rows' in python
    assert ':::' not in python
