"""What `grainhash inspect` tells, against the files on disk."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hashing_model.codes.spec import CodeSpec
from pipelines.cli.main import main
from pipelines.index import versions
from pipelines.index.summary import summarize
from pipelines.reports.units import describe_size
from tests.helpers.make_index import build_by_hand, skewed_codes


def summary_of(index):
    return summarize(versions.read_manifest(str(index)))


def test_the_numbers_are_those_of_the_files(tmp_path):
    config = build_by_hand(tmp_path, [skewed_codes(300), skewed_codes(77, seed=1)], rejected=3)
    folder = Path(config.index_version.folder)
    summary = summary_of(tmp_path)
    assert json.loads(json.dumps(summary)) == summary
    written = [path for path in folder.rglob('*') if path.is_file() and path.name != 'manifest.json']
    assert summary['bytes'] == sum(path.stat().st_size for path in written)
    assert summary['gate'] == 'passed'
    assert (summary['version'], summary['images'], summary['image_parts']) == (config.version, 377, 2)
    assert summary['input_files'] == 2
    assert summary['segments'] == {'coarse': 11, 'fine': 20, 'look': 35}
    assert summary['counters'] == {'records_read': 383, 'indexed': 377, 'rejected': 6, 'duplicates': 0}
    assert summary['rejects'] == {'missing_id': 6}
    first_bit = 0
    for table, segment in zip(summary['tables'], ('coarse', 'fine', 'look', 'look'), strict=True):
        paths = sorted((folder / 'codes' / f'table={table["table"]}').rglob('*.parquet'))
        rows = {}
        for path in paths:
            rows[path.parent.name] = rows.get(path.parent.name, 0) + pq.ParquetFile(path).metadata.num_rows
        assert (table['segment'], table['first_bit']) == (segment, first_bit)
        assert (table['files'], table['rows']) == (len(paths), 377)
        assert table['bytes'] == sum(path.stat().st_size for path in paths)
        assert table['largest_partition'] == max(rows.values())
        counts = sorted([*rows.values(), *[0] * (table['partitions'] - len(rows))])
        assert table['smallest_partition'] == counts[0]
        middle = len(counts) // 2
        assert table['median_partition'] == (counts[middle] + counts[-middle - 1]) // 2
        first_bit += table['bits']
    assert first_bit == 66


def test_people_read_the_same_numbers(tmp_path, capsys):
    config = build_by_hand(tmp_path, [skewed_codes(1300)], rejected=2)
    assert main(['inspect', str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f'version   {config.version}, made 20')
    assert lines[1] == 'model     itq ffffffffffff'
    assert lines[2] == 'segments  coarse 11, fine 20, look 35 bits'
    assert lines[3].startswith('images    1,300 in 1 parts, from 1 files; the index has ')
    assert lines[4] == 'records   records read 1,302, indexed 1,300, rejected 2, duplicates 0'
    assert lines[5] == 'rejects   missing_id 2'
    assert lines[6] == 'gate      passed'
    assert lines[7].split() == [
        *('table', 'segment', 'bits', 'partitions', 'files', 'rows', 'smallest', 'median', 'largest', 'size')
    ]
    for line, table in zip(lines[8:], summary_of(tmp_path)['tables'], strict=True):
        bits = f'{table["first_bit"]}-{table["first_bit"] + table["bits"] - 1}'
        words = [table['table'], table['segment'], bits, table['partitions'], table['files'], '1,300']
        assert line.split()[:6] == [str(word) for word in words]


def test_machines_read_the_served_or_a_named_version(tmp_path, capsys):
    first = build_by_hand(tmp_path, [skewed_codes(5)]).version
    second = build_by_hand(tmp_path, [skewed_codes(7)]).version
    found = {}
    for options in ([], ['--version', first]):
        assert main(['inspect', str(tmp_path), '--json', *options]) == 0
        summary = json.loads(capsys.readouterr().out)
        found[summary['version']] = summary['images']
    assert found == {second: 7, first: 5}


def test_an_index_of_codes_without_rejects_says_so(tmp_path, capsys):
    spec = CodeSpec.parse('code=40')
    build_by_hand(tmp_path, [skewed_codes(9, spec)], spec)
    assert main(['inspect', str(tmp_path)]) == 0
    assert 'rejects' not in capsys.readouterr().out


@pytest.mark.parametrize(
    ('count', 'text'),
    [(0, '0 B'), (999, '999 B'), (1000, '1.0 kB'), (2_500_000, '2.5 MB'), (3e9, '3.0 GB'), (7.25e15, '7250.0 TB')],
)
def test_sizes_have_units(count, text):
    assert describe_size(count) == text
