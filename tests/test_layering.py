"""Who may import whom, read from the source; and what really loads, asked of fresh processes."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from make_index import build_by_hand, skewed_codes

from pipelines.index.versions import list_versions

ROOT = Path(__file__).parents[1]
PURE = {
    'hashing_model.codes.spec',
    'hashing_model.codes.bits',
    'hashing_model.labels',
    'hashing_model.evaluation.evaluate',
    'hashing_model.evaluation.code_health',
    'hashing_model.compiled',
    'hashing_model.evaluation.metrics',
    'hashing_model.evaluation.figures',
    'hashing_model.evaluation.ranking',
    'pipelines.search.kernels',
    'pipelines.search.multi_index',
    'pipelines.search.near_pairs',
    'pipelines.index.layout',
}
PURE_MAY_IMPORT = {'numpy', 'numba', 'llvmlite', *sys.stdlib_module_names}
HEAVY = {'tensorflow', 'keras'}
LATE = {*HEAVY, 'apache_beam'}  # what importing the packages must not load


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {
    module_name(path): path.read_text(encoding='utf-8')
    for package in ('hashing_model', 'pipelines')
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


def forbidden(module, source, known=frozenset(MODULES)):
    """The imports of a module that the table of the layers forbids."""
    names = imports_of(source, known, module)
    at_import = imports_of(source, known, module, at_import_only=True)
    wrong = {name for name in at_import if is_in(name, HEAVY)}
    if module in PURE:
        allowed = PURE | {'hashing_model.errors'} | PURE_MAY_IMPORT
        wrong |= {name for name in names if not is_in(name, allowed)}
    if is_in(module, ['hashing_model']):
        wrong |= {name for name in names if is_in(name, ['pipelines', 'apache_beam'])}
    if is_in(module, ['pipelines.index']):
        wrong |= {name for name in names if is_in(name, LATE)}
        wrong |= {name for name in names if is_in(name, ['pipelines']) and not is_in(name, ['pipelines.index'])}
    return sorted(wrong)


@pytest.mark.parametrize('module', MODULES)
def test_no_module_imports_what_its_layer_must_not(module):
    assert forbidden(module, MODULES[module]) == []


def test_the_modules_named_here_are_there():
    assert PURE - {'hashing_model.evaluation.metrics'} <= set(MODULES)
    assert {'pipelines.build.job', 'hashing_model.features.backbone', 'pipelines.index'} <= set(MODULES)


@pytest.mark.parametrize(
    ('module', 'source', 'found'),
    [
        ('hashing_model.model', 'def f():\n    import pipelines.files', ['pipelines.files']),
        ('hashing_model.model', 'def f():\n    from apache_beam import io', ['apache_beam']),
        ('hashing_model.model', 'from pipelines import encode', ['pipelines.encoding.encode']),
        ('hashing_model.model', 'try:\n    import keras\nexcept ImportError:\n    pass', ['keras']),
        ('hashing_model.model', 'class A:\n    from tensorflow.io import x', ['tensorflow.io']),
        ('hashing_model.model', 'def f():\n    import tensorflow as tf', []),
        ('hashing_model.model', 'if TYPE_CHECKING:\n    import tensorflow\nelse:\n    import keras', ['keras']),
        ('hashing_model.codes.bits', 'import numpy, re, numba.types', []),
        ('hashing_model.codes.bits', 'from hashing_model.errors import InputError', []),
        ('hashing_model.codes.bits', 'import pyarrow', ['pyarrow']),
        ('hashing_model.codes.bits', 'from hashing_model import images', ['hashing_model.images.decode']),
        ('hashing_model.codes.bits', 'import numpyx', ['numpyx']),
        ('pipelines.index.layout', 'from pipelines.index import files', ['pipelines.files']),
        ('pipelines.index.layout', 'from . import files', ['pipelines.files']),
        ('pipelines.index.layout', 'from hashing_model.codes.bits import bit_mask', []),
        ('pipelines.search.local_index', 'from pipelines import records', ['pipelines.records']),
        ('pipelines.search.local_index', 'from ..records import Source', ['pipelines.records']),
        ('pipelines.search.local_index', 'def f():\n    import apache_beam', ['apache_beam']),
        ('pipelines.search.local_index', 'from pipelines.index import files\nimport pyarrow', []),
        ('pipelines.encoding.encode', 'import apache_beam\nfrom hashing_model.codes.bits import hamming', []),
    ],
)
def test_the_rules_find_what_they_forbid(module, source, found):
    assert forbidden(module, source) == found


# What really loads


def loaded(code, *arguments):
    """Run code in a fresh process; which of the late packages it loaded, and its other output."""
    ending = '\nimport sys, json\nprint(json.dumps(sorted(set(sys.modules) & {"tensorflow", "keras", "apache_beam"})))'
    command = [sys.executable, '-c', code + ending, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    *lines, last = done.stdout.splitlines()
    return json.loads(last), lines


def test_importing_the_packages_loads_neither_tensorflow_nor_beam():
    code = 'import hashing_model, hashing_model.model, hashing_model.training.fit, pipelines, pipelines.index, pipelines.cli.main'
    assert loaded(code) == ([], [])
    assert loaded('import apache_beam.coders')[0] == ['apache_beam']  # the question can be answered with yes


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


def test_inspecting_and_searching_an_index_load_neither_tensorflow_nor_beam(tmp_path):
    build_by_hand(tmp_path, [skewed_codes(120)])
    code = (
        'import sys\n'
        'from pipelines.cli.main import main\n'
        'assert main(["inspect", sys.argv[1]]) == 0\n'
        'from pipelines.index import LocalIndex\n'
        'index = LocalIndex.open(sys.argv[1])\n'
        'print(index.search(index.sample[:3], k=2).distances[:, 0].tolist())\n'
    )
    found, lines = loaded(code, str(tmp_path))
    assert found == []
    assert lines[0].startswith('version')
    assert lines[-1] == '[0, 0, 0]'


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


def test_evaluating_an_index_loads_neither_tensorflow_nor_beam(tmp_path):
    build_by_hand(tmp_path / 'index', [skewed_codes(120)])
    code = (
        'import sys\n'
        'from pipelines.cli.main import main\n'
        'assert main(["evaluate", "--index", sys.argv[1], "--out", sys.argv[2]]) == 0\n'
    )
    found, lines = loaded(code, str(tmp_path / 'index'), str(tmp_path / 'out'))
    assert found == []
    assert lines[0].startswith('asked')
