"""What tests cost, as marks; a test without a mark fails where it does what the mark is for, so that marks stay true.

All tests without a mark together are the fast ones. What the marks say is in pyproject.toml.
"""

import contextlib
import subprocess
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import pytest

# Mark -> seconds after which a test hangs for sure, the costliest last; pyproject.toml has those of the fast tests.
COSTS = {'tf': 300, 'beam': 300, 'process': 600, 'engine': 1800}
HEAVY = {'tensorflow', 'keras'}


def missing(mark, act):
    """Fail the test that now runs: it does what it has no mark for."""
    pytest.fail(f'{act}: mark the test with `@pytest.mark.{mark}`, or let it do without', pytrace=True)


class NoTensorFlow(MetaPathFinder):
    """Refuses to import TensorFlow and Keras, where they are not loaded yet."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname in HEAVY:
            missing('tf', f'this test imports {fullname}')


def refuse_pipelines(*_, **__):
    missing('beam', 'this test runs a Beam pipeline')


def popen_without_python(self, args, *rest, **options):
    words = [args] if isinstance(args, str | bytes | Path) else list(args)
    if Path(str(words[0])).name.startswith('python'):
        missing('process', f'this test starts {words[0]}')
    return start_process(self, args, *rest, **options)


start_process = subprocess.Popen.__init__


@contextlib.contextmanager
def only(marks):
    """Within, what none of the marks allows fails."""
    with pytest.MonkeyPatch.context() as patch:
        if not marks & {'tf', 'engine'}:
            patch.setattr(sys, 'meta_path', [NoTensorFlow(), *sys.meta_path])
        if not marks & {'beam', 'engine'} and 'apache_beam' in sys.modules:
            patch.setattr('apache_beam.Pipeline.run', refuse_pipelines)
        if not marks & {'process', 'engine'}:
            patch.setattr(subprocess.Popen, '__init__', popen_without_python)
        yield


class Costs:
    """The plugin: guards each test with its fixtures, limits its seconds, keeps a module's tests on one worker."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        with only({mark.name for mark in item.iter_markers()}):
            return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config, items):
        """Tests of a module share fixtures and go to one worker, but for those that a mark puts into another group.

        Workers take the costly groups first, so that none of them works alone at the end.
        """
        for item in items:
            if item.get_closest_marker('xdist_group') is None:
                item.add_marker(pytest.mark.xdist_group(item.location[0]))
            if cost_of(item) and item.get_closest_marker('timeout') is None:
                item.add_marker(pytest.mark.timeout([*COSTS.values()][cost_of(item) - 1]))
        if hasattr(config, 'workerinput'):
            costs = {}
            for item in items:
                costs[group_of(item)] = max(costs.get(group_of(item), 0), cost_of(item))
            items.sort(key=lambda item: -costs[group_of(item)])


def group_of(item):
    """What its tests all go to one worker by."""
    return item.get_closest_marker('xdist_group').args[0]


def cost_of(item):
    """0 for a fast test; the higher, the longer it may take."""
    return max((1 + [*COSTS].index(mark.name) for mark in item.iter_markers() if mark.name in COSTS), default=0)
