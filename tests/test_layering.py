"""Who may import whom, read from the source; and what really loads, asked of fresh processes."""

import ast
import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.index.versions import list_versions
from tests.helpers.make_index import build_by_hand, skewed_codes

ROOT = Path(__file__).parents[1]
# The wings, floor by floor: a module imports from its own wing and from lower floors, never sideways and never up.
FLOORS = (
    ('hashing_model.errors',),
    ('hashing_model.labels', 'hashing_model.compiled', 'hashing_model.keras_runtime'),
    ('hashing_model.codes', 'hashing_model.features'),
    ('hashing_model.images', 'hashing_model.evaluation'),
    ('hashing_model.heads',),
    ('hashing_model.networks', 'hashing_model.model'),
    ('hashing_model.training',),
    ('pipelines.files', 'pipelines.records', 'pipelines.requests'),
    ('pipelines.index', 'pipelines.jobs', 'pipelines.inputs'),
    ('pipelines.search', 'pipelines.reports', 'pipelines.encoding'),
    ('pipelines.query', 'pipelines.quality', 'pipelines.training'),
    ('pipelines.build',),
    ('pipelines.cli',),
    ('grainhash',),
)
FLOOR_OF = {wing: floor for floor, wings in enumerate(FLOORS) for wing in wings}
PACKAGES = ('hashing_model', 'pipelines', 'grainhash')
NO_WING = {'hashing_model', 'pipelines'}  # the packages themselves: a docstring each
PURE = {
    'hashing_model.codes',
    'hashing_model.labels',
    'hashing_model.evaluation',
    'hashing_model.compiled',
    'hashing_model.errors',
    'pipelines.search.kernels',
    'pipelines.search.multi_index',
    'pipelines.search.near_pairs',
    'pipelines.index.layout',
}
PURE_MAY_IMPORT = {'numpy', 'numba', 'llvmlite', *sys.stdlib_module_names}
HEAVY = {'tensorflow', 'keras'}
LATE = {*HEAVY, 'apache_beam'}  # what importing the packages must not load
NO_BEAM = (
    'hashing_model',
    *(f'pipelines.{wing}' for wing in ('files', 'records', 'requests', 'index', 'search', 'reports')),
)
NO_TENSORFLOW = ('pipelines.index', 'pipelines.search')


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {
    module_name(path): path.read_text(encoding='utf-8')
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob('*.py'))
}


def imports_of(source, known=(), module='pipelines.x', at_import_only=False):
    """Every module that a source imports, as full names; without those in functions and for type checkers, if asked."""
    found = set()

    def visit(node):
        if at_import_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if at_import_only and isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = '.'.join(module.split('.')[: -node.level]) if node.level else ''
            base = '.'.join(part for part in (base, node.module) if part)
            for alias in node.names:
                full = f'{base}.{alias.name}'
                found.add(full if full in known else base)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


def is_in(name, packages):
    return any(name == p or name.startswith(f'{p}.') for p in packages)


def wing_of(module):
    """The wing of one of our modules; None if the table has none for it."""
    return next((wing for wing in FLOOR_OF if is_in(module, [wing])), None)


def misplaced(module, name):
    """Whether the import of a module of ours leads up or sideways, or to where no wing is."""
    if not is_in(name, PACKAGES) or wing_of(name) == wing_of(module):
        return False
    return wing_of(name) is None or FLOOR_OF[wing_of(name)] >= FLOOR_OF[wing_of(module)]


def forbidden(module, source, known=frozenset(MODULES)):
    """The imports of a module that the table of the floors, or the rules about heavy packages, forbid."""
    names = imports_of(source, known, module)
    at_import = imports_of(source, known, module, at_import_only=True)
    wrong = {name for name in names if misplaced(module, name)}
    wrong |= {name for name in at_import if is_in(name, HEAVY)}
    if is_in(module, PURE):
        wrong |= {name for name in names if not is_in(name, PURE | PURE_MAY_IMPORT)}
    if is_in(module, NO_BEAM):
        wrong |= {name for name in names if is_in(name, ['apache_beam'])}
    if is_in(module, NO_TENSORFLOW):
        wrong |= {name for name in names if is_in(name, HEAVY)}
    return sorted(wrong)


def test_every_module_is_in_a_wing():
    assert [module for module in MODULES.keys() - NO_WING if wing_of(module) is None] == [], 'give it a place in FLOORS'


def test_modules_import_only_from_lower_floors():
    found = {module: forbidden(module, MODULES[module]) for module in MODULES.keys() - NO_WING if wing_of(module)}
    assert {module: wrong for module, wrong in found.items() if wrong} == {}


def test_the_wings_and_modules_named_here_are_there():
    assert {wing for wing in FLOOR_OF if wing not in MODULES} == set()
    assert {name for name in PURE if name not in MODULES} == set()


@pytest.mark.parametrize(
    ('module', 'source', 'found'),
    [
        ('hashing_model.model', 'def f():\n    import pipelines.index.versions', ['pipelines.index.versions']),
        ('hashing_model.model', 'def f():\n    from apache_beam import io', ['apache_beam']),
        ('hashing_model.model', 'from pipelines.encoding import encode', ['pipelines.encoding.encode']),
        ('hashing_model.model', 'try:\n    import keras\nexcept ImportError:\n    pass', ['keras']),
        ('hashing_model.model', 'class A:\n    from tensorflow.io import x', ['tensorflow.io']),
        ('hashing_model.model', 'def f():\n    import tensorflow as tf', []),
        ('hashing_model.model', 'if TYPE_CHECKING:\n    import tensorflow\nelse:\n    import keras', ['keras']),
        ('hashing_model.heads.ridge', 'from hashing_model.networks import loop', ['hashing_model.networks.loop']),
        ('hashing_model.codes.bits', 'import numpy, re, numba.types', []),
        ('hashing_model.codes.bits', 'from hashing_model.errors import InputError', []),
        ('hashing_model.codes.bits', 'import pyarrow', ['pyarrow']),
        ('hashing_model.codes.bits', 'from hashing_model.images import decode', ['hashing_model.images.decode']),
        ('hashing_model.codes.bits', 'import numpyx', ['numpyx']),
        ('pipelines.index.layout', 'from pipelines import files', ['pipelines.files']),
        ('pipelines.index.layout', 'from . import versions', ['pipelines.index.versions']),
        ('pipelines.index.layout', 'from hashing_model.codes.bits import bit_mask', []),
        ('pipelines.index.versions', 'from pipelines.search import kernels', ['pipelines.search.kernels']),
        ('pipelines.index.versions', 'from pipelines.inputs.shards import X', ['pipelines.inputs.shards']),
        ('pipelines.index.versions', 'from pipelines import files, nowhere', ['pipelines']),
        ('pipelines.search.memory', 'from pipelines import files\nfrom ..records import Source', []),
        ('pipelines.search.memory', 'def f():\n    import apache_beam', ['apache_beam']),
        ('pipelines.query.job', 'from pipelines.quality.gate import Limits', ['pipelines.quality.gate']),
        ('pipelines.query.job', 'from pipelines.build import job', ['pipelines.build.job']),
        ('pipelines.build.job', 'import apache_beam\nfrom pipelines.quality.gate import Limits', []),
        ('pipelines.build.job', 'import grainhash', ['grainhash']),
    ],
)
def test_the_rules_find_what_they_forbid(module, source, found):
    assert forbidden(module, source) == found


TESTS = {module_name(path): path.read_text(encoding='utf-8') for path in sorted((ROOT / 'tests').rglob('*.py'))}


def borrowed(module, source, known=frozenset(TESTS)):
    """The modules under tests/ that one of them imports without being allowed to: all but helpers."""
    return sorted(name for name in imports_of(source, known, module) if is_in(name, ['tests']) and not is_helper(name))


def is_helper(name):
    return is_in(name, ['tests.helpers'])


def test_no_test_module_imports_another():
    found = {module: borrowed(module, source) for module, source in TESTS.items()}
    assert {module: wrong for module, wrong in found.items() if wrong} == {}, 'what tests share belongs in helpers'


@pytest.mark.parametrize(
    ('source', 'found'),
    [
        ('from tests.pipelines.test_files import x', ['tests.pipelines.test_files']),
        ('from tests.pipelines import test_files', ['tests.pipelines.test_files']),
        ('def f():\n    from .test_jobs import x', ['tests.pipelines.test_jobs']),
        ('import tests.conftest', ['tests.conftest']),
        ('from tests.helpers.make_index import x\nfrom tests.helpers import measure', []),
    ],
)
def test_the_rule_about_tests_finds_what_it_forbids(source, found):
    assert borrowed('tests.pipelines.test_new', source) == found


def programs_in(source):
    """The texts in a source that are Python and import something of ours: what a test runs in another process."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and 'import ' in node.value:
            with contextlib.suppress(SyntaxError):
                if any(is_in(name, PACKAGES) for name in imports_of(node.value)):
                    yield node.value


def test_programs_for_other_processes_import_what_is_there():
    there = MODULES.keys() - {'hashing_model', 'pipelines'}  # these two have no names of their own
    for module in TESTS.keys() - {__name__}:
        for program in programs_in(TESTS[module]):
            assert {name for name in imports_of(program, MODULES) if is_in(name, PACKAGES)} <= there, module


# What really loads


def loaded(code, *arguments):
    """Run code in a fresh process; which of the late packages it loaded, and its other output."""
    ending = '\nimport sys, json\nprint(json.dumps(sorted(set(sys.modules) & {"tensorflow", "keras", "apache_beam"})))'
    command = [sys.executable, '-c', code + ending, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    *lines, last = done.stdout.splitlines()
    return json.loads(last), lines


@pytest.mark.process
def test_importing_the_packages_loads_neither_tensorflow_nor_beam():
    code = 'import grainhash, hashing_model.training.fit, pipelines.cli.main, pipelines.search.local_index'
    assert loaded(code) == ([], [])
    assert loaded('import apache_beam.coders')[0] == ['apache_beam']  # the question can be answered with yes


@pytest.mark.process
def test_help_loads_neither_tensorflow_nor_beam():
    code = (
        'from pipelines.cli.main import main\n'
        'try:\n'
        '    main(["build", "--help"])\n'
        'except SystemExit as e:\n'
        '    assert e.code == 0\n'
    )
    found, lines = loaded(code)
    assert found == []
    assert lines[0].startswith('usage: grainhash build')


@pytest.mark.process
def test_inspecting_and_searching_an_index_load_neither_tensorflow_nor_beam(tmp_path):
    build_by_hand(tmp_path, [skewed_codes(120)])
    code = (
        'import sys\n'
        'from pipelines.cli.main import main\n'
        'assert main(["inspect", sys.argv[1]]) == 0\n'
        'from pipelines.search.local_index import LocalIndex\n'
        'index = LocalIndex.open(sys.argv[1])\n'
        'print(index.search(index.sample[:3], k=2).distances[:, 0].tolist())\n'
    )
    found, lines = loaded(code, str(tmp_path))
    assert found == []
    assert lines[0].startswith('version')
    assert lines[-1] == '[0, 0, 0]'


@pytest.mark.process
def test_the_commands_about_versions_load_neither_tensorflow_nor_beam(tmp_path):
    for rows in (50, 60):
        build_by_hand(tmp_path, [skewed_codes(rows)])
    newest = list_versions(str(tmp_path))[-1].version
    code = (
        'import sys\n'
        'from pipelines.cli.main import main\n'
        'index, version = sys.argv[1:]\n'
        'for command in (["promote", version], ["rollback"], ["versions"], ["verify"], ["prune", "--keep", "1"]):\n'
        '    print(command[0], main([command[0], index, *command[1:]]))\n'
    )
    found, lines = loaded(code, str(tmp_path), newest)
    assert found == []
    ended = [line for line in lines if line.split()[0] in ('promote', 'rollback', 'versions', 'verify', 'prune')]
    assert ended == ['promote 0', 'rollback 0', 'versions 0', 'verify 0', 'prune 0']


@pytest.mark.process
def test_evaluating_an_index_loads_neither_tensorflow_nor_beam(tmp_path):
    build_by_hand(tmp_path / 'index', [skewed_codes(120)])
    code = (
        'import sys\n'
        'from pipelines.cli.main import main\n'
        'assert main(["evaluate", "--index", sys.argv[1], "--output", sys.argv[2]]) == 0\n'
    )
    found, lines = loaded(code, str(tmp_path / 'index'), str(tmp_path / 'out'))
    assert found == []
    assert lines[0].startswith('asked')
