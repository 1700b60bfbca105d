"""The library's face: what it has, what loads when, and that requests are checked when they are made."""

import ast
import dataclasses
import inspect
import json
import subprocess
import sys

import numpy as np
import pytest

import grainhash
from hashing_model.codes.spec import CodeSpec
from pipelines.cli.main import main
from tests.helpers.make_index import ROOT, make_codes, write_codes

REQUESTS = [name for name in grainhash.__all__ if name.endswith('Request')]
FUNCTIONS = {
    'build_index': ('BuildRequest', 'BuildReport'),
    'query_index': ('QueryRequest', 'QueryReport'),
    'find_near_duplicates': ('DuplicatesRequest', 'DuplicatesReport'),
    'train_model': ('TrainRequest', 'TrainReport'),
    'make_features': ('FeaturesRequest', 'FeaturesReport'),
    'calibrate_model': ('CalibrateRequest', 'CalibrateReport'),
    'evaluate': ('EvaluateRequest', 'EvaluateReport'),
    'plan': ('PlanRequest', None),
}
# fields of a request that are wrong -> the same on the command line, and what both say
WRONG = {
    'BuildRequest': [
        ({'index': 'i'}, None, 'one of --images and --codes is needed'),
        ({'index': 'i', 'images': 'a', 'codes': 'b'}, None, 'only one of --images and --codes can be given'),
        ({'index': 'i', 'images': 'a'}, 'build i --images a', '--images need --model'),
        ({'index': 'i', 'codes': 'a', 'keep': 0}, 'build i --codes a --keep 0', '--keep is 0; at least 1 is needed'),
        (
            {'index': 'i', 'codes': 'a', 'partition_rows': 0},
            'build i --codes a --partition-rows 0',
            '--partition-rows is 0; at least 1 is needed',
        ),
        (
            {'index': 'i', 'codes': 'a', 'metrics_file': 'gs://b/m'},
            'build i --codes a --metrics-file gs://b/m',
            '--metrics-file is gs://b/m; node-exporter reads files of a disk',
        ),
    ],
    'QueryRequest': [
        ({'index': 'i', 'output': 'a.jsonl'}, None, 'one of --images, --text, --texts, --ids and --codes is needed'),
        (
            {'index': 'i', 'output': 'a.csv', 'ids': 'b'},
            'query i --output a.csv --ids b',
            'a.csv ends neither in .parquet nor in .jsonl',
        ),
        (
            {'index': 'i', 'output': 'a.jsonl', 'ids': 'b', 'k': 0},
            'query i --output a.jsonl --ids b --k 0',
            'k is 0; at least 1 is needed',
        ),
        (
            {'index': 'i', 'output': 'a.jsonl', 'ids': 'b', 'profile': 'look'},
            'query i --output a.jsonl --ids b --profile look',
            "--profile 'look': 'look' is not NAME=INTEGER",
        ),
    ],
    'DuplicatesRequest': [
        (
            {'index': 'i', 'radius': -1, 'output': 'a.jsonl'},
            'duplicates i --radius -1 --output a.jsonl',
            'the radius is -1; it cannot be negative',
        ),
    ],
    'TrainRequest': [
        (
            {'model': 'm', 'images': 'a', 'max_images': 0},
            'train --model m --images a --max-images 0',
            '--max-images is 0; at least 1 is needed',
        ),
        (
            {'model': 'm', 'images': 'a', 'input_size': 0},
            'train --model m --images a --input-size 0',
            'image size 0 is not an integer from 1 to 4096',
        ),
        (
            {'model': 'm', 'features': 'a', 'finetune_blocks': 1},
            'train --model m --features a --finetune-blocks 1',
            '--finetune-blocks needs --images',
        ),
        ({'model': 'm', 'images': 'a', 'epochs': 0}, 'train --model m --images a --epochs 0', 'epochs is 0'),
    ],
    'FeaturesRequest': [
        (
            {'images': 'a', 'output': 'o', 'views': -1},
            'features --images a --output o --views -1',
            '--views is -1; 0 or more are possible',
        ),
        ({'images': [], 'output': 'o'}, None, 'one of --images is needed'),
    ],
    'CalibrateRequest': [({'model': 'm', 'images': (), 'output': 'o'}, None, 'one of --images is needed')],
    'EvaluateRequest': [
        ({'output': 'o', 'images': 'a'}, 'evaluate --output o --images a', '--images need --model'),
        (
            {'output': 'o', 'index': 'i', 'max_images': 0},
            'evaluate i --output o --max-images 0',
            '--max-images is 0; at least 1 is needed',
        ),
    ],
    'PlanRequest': [
        ({'images': 0}, 'plan --images 0', 'rows are 0; more than 0 are needed'),
        ({'images': 5, 'workers': 0}, 'plan --images 5 --workers 0', '--workers is 0; more than 0 is needed'),
    ],
}


def test_every_name_is_there_and_a_wrong_one_is_not():
    assert all(getattr(grainhash, name) is not None for name in grainhash.__all__)
    assert set(grainhash.__all__) <= set(dir(grainhash))
    with pytest.raises(AttributeError, match="'grainhash' has no attribute 'LocalIndx'"):
        grainhash.LocalIndx  # noqa: B018


def test_types_are_told_of_every_name_that_is_lazy():
    """What `__getattr__` loads, and what a type checker and an editor read, are the same."""
    tree = ast.parse((ROOT / 'grainhash' / '__init__.py').read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: n.module for n in checked.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert typed == grainhash._MODULE_OF
    assert sorted([*typed, '__version__']) == sorted(grainhash.__all__)


@pytest.mark.process
def test_names_load_neither_beam_nor_tensorflow_until_they_are_needed():
    code = (
        'import sys, json, grainhash\n'
        'late = {"tensorflow", "keras", "apache_beam"}\n'
        'assert "numpy" not in sys.modules\n'
        'for name in grainhash.__all__:\n'
        '    getattr(grainhash, name)\n'
        'assert grainhash.plan(grainhash.PlanRequest(images=10**6))\n'
        'grainhash.BuildRequest(index="i", images="photos/", model="m", read=grainhash.ReadOptions(labels=["a"]))\n'
        'grainhash.TrainRequest(model="m", images="photos/")\n'
        'grainhash.QueryRequest(index="i", text="red", output="a.jsonl")\n'
        'print(json.dumps(sorted(late & set(sys.modules))))\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize('name', FUNCTIONS)
def test_a_function_takes_a_frozen_request_and_gives_a_report(name):
    request, report = FUNCTIONS[name]
    signature = inspect.signature(getattr(grainhash, name))
    assert next(iter(signature.parameters.values())).annotation == request
    assert signature.return_annotation == (report or 'list[ScalePlan]')
    assert getattr(grainhash, request).__dataclass_params__.frozen
    assert 'Raises:' in getattr(grainhash, request).__doc__


def test_wrong_values_are_known_of_every_request():
    assert set(WRONG) == set(REQUESTS)


@pytest.mark.parametrize(
    ('name', 'fields', 'command', 'message'),
    [(name, *case) for name, cases in WRONG.items() for case in cases],
)
def test_a_wrong_request_says_what_the_command_line_says(tmp_path, monkeypatch, capsys, name, fields, command, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(grainhash.InputError) as raised:
        getattr(grainhash, name)(**fields)
    assert message in str(raised.value)
    if command:  # otherwise the parser itself refuses, with its usage
        assert main(command.split()) == 2
        assert capsys.readouterr().err == f'grainhash: error: {raised.value}\n'
    assert list(tmp_path.iterdir()) == []


@pytest.mark.beam
def test_an_index_is_built_asked_and_measured_from_python(tmp_path):
    spec = CodeSpec.parse('kind=32,look=32')
    codes = make_codes('clustered', 300, spec)
    write_codes(tmp_path / 'codes.parquet', [str(i) for i in range(300)], codes)
    index, told = str(tmp_path / 'index'), []
    request = grainhash.BuildRequest(index=index, codes=tmp_path / 'codes.parquet', segments='kind=32,look=32')
    built = grainhash.build_index(request, tell=told.append)
    assert (built.tally.read, built.tally.used, built.gate, told) == (300, 300, 'passed', [])
    assert str(built).endswith(f'version {built.version} in {built.seconds:.0f} s; 300 of 300 records indexed')
    assert json.loads(json.dumps(built.to_json(), allow_nan=False))['tally']['read'] == 300

    asking = {'codes': tmp_path / 'codes.parquet', 'k': 3, 'profile': {'kind': 1}, 'output': f'{tmp_path}/a.jsonl'}
    answered = grainhash.query_index(grainhash.QueryRequest(index=index, **asking))
    assert (answered.queries, answered.answers, answered.rejected) == (300, 900, 0)
    assert str(answered) == f'{asking["output"]}: 900 answers to 300 queries in {answered.seconds:.1f} s, exact'
    searched = grainhash.LocalIndex.open(index).search(codes, 3, profile={'kind': 1})
    lines = [json.loads(line) for line in (tmp_path / 'a.jsonl').read_text().splitlines()]
    assert [line['distance'] for line in lines] == searched.distances.ravel().tolist()

    wanted = grainhash.DuplicatesRequest(index=index, radius=4, output=str(tmp_path / 'd.parquet'))
    found = grainhash.find_near_duplicates(wanted)
    assert found.rows == 300
    assert found.images >= 2 * found.groups
    measured = grainhash.evaluate(grainhash.EvaluateRequest(index=index, output=str(tmp_path / 'quality')))
    assert measured.quality.database == 300
    assert measured.to_json()['quality'] == measured.quality.to_json()


def test_plans_are_made_from_python():
    small, large = grainhash.plan(grainhash.PlanRequest(images=[10**6, 10**9], segments='code=64'))
    assert small.stored_bytes * 500 < large.stored_bytes < small.stored_bytes * 1000
    assert json.loads(json.dumps(large.to_json()))['images'] == 10**9


def test_requests_are_values():
    first = grainhash.QueryRequest(index='i', images='a', output='a.jsonl')
    assert first == grainhash.QueryRequest(index='i', images=['a'], output='a.jsonl')
    assert dataclasses.replace(first, k=3).k == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.k = 3
    assert np.all([isinstance(path, str) for path in first.images])
