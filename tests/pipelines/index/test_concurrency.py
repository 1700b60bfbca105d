"""Readers in processes of their own while versions are promoted and pruned: no answer is wrong, no version mixed."""

import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from hashing_model.codes.spec import CodeSpec
from pipelines.index import versions
from pipelines.index.prune import prune_versions
from pipelines.index.versions import REMOVED
from pipelines.search.local_index import LocalIndex
from tests.helpers.make_index import ROOT, make_codes, make_version, start, write_codes

SPEC = CodeSpec.parse('code=64')
QUERIES = make_codes('uniform', 7, SPEC)
ROWS = 300
MOVES, KEEP = 50, 3

# Opens and asks until a file appears; prints a line of JSON for each: version, distances, ids, what went wrong.
READER = """
import json, sys, time
from pathlib import Path
import numpy as np
from pipelines.search.local_index import LocalIndex

index, queries, ending, in_memory = sys.argv[1], np.load(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == 'memory'
while not ending.exists():
    opened = LocalIndex.open(index, in_memory=in_memory)
    for _ in range(3):
        time.sleep(0.05)  # let others have the processor
        distances = ids = error = None
        try:
            found = opened.search(queries, k=1)
            distances, ids = found.distances.ravel().tolist(), found.image_ids.ravel().tolist()
        except OSError as e:
            error = str(e)
        print(json.dumps((opened.manifest.version, distances, ids, error)), flush=True)
"""


def distances_of(number):
    """The distance of each query from its nearest code in the version of a number: its bits."""
    return [number >> place & 1 for place in range(len(QUERIES))]


def add_version(index, number):
    """Build and serve the version of a number; no other answers the queries as it does."""
    codes = make_codes('uniform', ROWS, SPEC, seed=1)
    codes[: len(QUERIES)] = QUERIES
    codes[: len(QUERIES), -1] ^= np.array(distances_of(number), np.uint8)
    make_version(index, SPEC, [codes], partition_rows=50, version=f'v{number:03}')


def check_answer(version, distances, ids):
    assert distances == distances_of(int(version[1:])), version
    assert ids == [str(place) for place in range(len(QUERIES))]


def wait_until(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, 'it takes too long'
        time.sleep(0.05)


@pytest.mark.process
def test_readers_while_versions_are_promoted_and_pruned(tmp_path):
    """Six processes that read, in memory and on demand, and two that run the query command again and again."""
    index, ending = tmp_path / 'index', tmp_path / 'ending'
    np.save(tmp_path / 'queries.npy', QUERIES)
    asked = write_codes(tmp_path / 'queries.parquet', [str(i) for i in range(len(QUERIES))], QUERIES)
    add_version(index, 1)
    arguments = [index, tmp_path / 'queries.npy', ending]
    commands = [
        (tmp_path / f'{number}.lines', [sys.executable, '-c', READER, *arguments, kind])
        for number, kind in enumerate(('memory', 'on demand') * 3)
    ]
    repeat = f'while [ ! -e {ending} ]; do "$@" --output "{tmp_path}/$0-$(date +%s%N).jsonl" 2>&1; done; true'
    query = [sys.executable, '-m', 'grainhash', 'query', '--index', index, '--codes', asked, '--k', '1']
    commands += [(tmp_path / f'{name}.told', ['bash', '-c', repeat, name, *query]) for name in 'ab']
    readers = []
    for path, command in commands:
        with path.open('wb') as output:
            readers.append(subprocess.Popen([str(word) for word in command], cwd=ROOT, stdout=output))
    try:
        wait_until(lambda: all(path.stat().st_size for path in tmp_path.glob('*.lines')))
        for number in range(2, 2 + MOVES):
            add_version(index, number)
            if number % 5 == 0:
                versions.publish(str(index), f'v{number - 1:03}')
            prune_versions(str(index), KEEP, 0)
        wait_until(lambda: len(list(tmp_path.glob('*.jsonl'))) > 2)
    finally:
        ending.touch()
        codes = [reader.wait(60) for reader in readers]
    assert codes == [0] * 8
    found = [json.loads(line) for path in tmp_path.glob('*.lines') for line in path.read_text().splitlines()]
    for version, distances, ids, error in found:
        if error is None:
            check_answer(version, distances, ids)
        else:  # only of a version that is gone, and the reader is told what to do
            assert not (index / 'versions' / version / 'manifest.json').exists()
            assert re.fullmatch(rf'cannot read {index}/versions/{version}/\S+: {REMOVED}', error)
    good = [version for version, _, _, error in found if error is None]
    assert len(good) > 3 * (len(found) - len(good))
    assert len(set(good)) > 10
    for path in tmp_path.glob('*.jsonl'):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        number = sum(row['distance'] << place for place, row in enumerate(rows))
        check_answer(f'v{number:03}', [row['distance'] for row in rows], [row['image_id'] for row in rows])
        assert 1 <= number < 2 + MOVES
    errors = [
        line for path in tmp_path.glob('*.told') for line in path.read_text().splitlines() if 'grainhash: error' in line
    ]
    assert all(line.endswith(REMOVED) for line in errors), errors


@pytest.mark.parametrize('in_memory', [True, False], ids=['memory', 'on demand'])
def test_a_reader_whose_version_is_pruned_is_told_so_in_one_line(in_memory, tmp_path):
    add_version(tmp_path, 1)
    opened, read = (LocalIndex.open(str(tmp_path), in_memory=in_memory) for _ in range(2))
    before = read.search(QUERIES, k=1)
    add_version(tmp_path, 2)
    assert opened.search(QUERIES, k=1).distances.ravel().tolist() == distances_of(1), 'it keeps its version'
    late = LocalIndex.open(str(tmp_path), 'v001', in_memory=in_memory)
    prune_versions(str(tmp_path), 1, 0)
    message = rf'^cannot read {tmp_path}/versions/v001/\S+: {REMOVED}$'
    with pytest.raises(OSError, match=message):
        late.search(QUERIES, k=1)
    with pytest.raises(OSError, match=message):
        print(before.image_ids)
    if in_memory:
        assert read.search(QUERIES, k=1).distances.ravel().tolist() == distances_of(1)


@pytest.mark.process
@pytest.mark.beam
def test_a_query_whose_version_is_pruned_fails_in_one_line(tmp_path, monkeypatch, capsys):
    from pipelines.cli.main import main
    from pipelines.query import job

    add_version(tmp_path / 'index', 1)
    define = job.define_pipeline

    def prune_then_define(root, config, units):
        add_version(tmp_path / 'index', 2)
        prune_versions(str(tmp_path / 'index'), 1, 0)
        return define(root, config, units)

    monkeypatch.setattr(job, 'define_pipeline', prune_then_define)
    asked = write_codes(tmp_path / 'queries.parquet', [str(i) for i in range(len(QUERIES))], QUERIES)
    options = ['--index', f'{tmp_path}/index', '--codes', asked, '--k', '1', '--output', f'{tmp_path}/out.jsonl']
    assert main(['query', *options]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('grainhash: error')]
    assert line.endswith(REMOVED)
    assert not (tmp_path / 'out.jsonl').exists()
    monkeypatch.undo()
    assert start('query', *options).returncode == 0
