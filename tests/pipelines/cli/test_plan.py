"""What `grainhash plan` prints, and that deploy/SCALING.md and the README show just that."""

import re
import shlex

import pytest

from hashing_model.codes.spec import CodeSpec
from pipelines.build.scale import Scale, ScalePlan
from pipelines.cli.main import main
from pipelines.cli.plan import limits
from pipelines.reports.units import describe_count
from tests.helpers.make_index import ROOT

DOCUMENTS = [(ROOT / name).read_text(encoding='utf-8') for name in ('deploy/SCALING.md', 'README.md')]
SHOWN = [
    found
    for text in DOCUMENTS
    for found in re.findall(r'^    \$ grainhash (plan .*)\n((?:    (?!\$).*\n)+)', text, re.MULTILINE)
]


def printed(capsys, *command):
    assert main(['plan', *command]) == 0
    return capsys.readouterr().out


def table(text):
    """First words of a line -> its cells."""
    lines = (re.split(r'  +', line) for line in text.splitlines())
    return {cells[0]: cells[1:] for cells in lines}


@pytest.mark.parametrize(('command', 'shown'), SHOWN, ids=[command for command, _ in SHOWN])
def test_the_documents_show_what_the_command_prints(capsys, command, shown):
    lines = [line.rstrip() for line in printed(capsys, *shlex.split(command)[1:]).splitlines()]
    documented = [line.removeprefix('    ').rstrip() for line in shown.splitlines()]
    number = re.compile(r'\d[\d,]*\.?\d*')
    assert [number.sub('0', line) for line in documented] == [number.sub('0', line) for line in lines]
    for said, line in zip(documented, lines, strict=True):  # each PyArrow writes tables a few bytes larger or smaller
        figures = [[float(n.replace(',', '')) for n in number.findall(text)] for text in (said, line)]
        assert figures[0] == pytest.approx(figures[1], rel=1e-3), line


def test_the_documents_show_all_three_sizes():
    assert len(SHOWN) == 4
    assert {'10M', '1B', '10B'} <= set(SHOWN[0][0].split())


def test_a_column_for_each_size_with_hours_and_money(capsys):
    options = ['--workers', '10', '--core-hour-price', '0.5', '--images-per-core-second', '10']
    rows = table(printed(capsys, '--images', '36k', '1M', *options))
    assert rows['images'] == ['36,000', '1 million']
    assert rows['core-hours, encoding'] == ['1', '28']
    assert rows['hours on 10 cores'] == ['0.1', '2.8']
    assert rows['core-hours at 0.5'][0] == '0.50'
    assert rows['work units'] == ['4', '100']


def test_without_workers_and_price_there_are_no_hours_and_no_money(capsys):
    text = printed(capsys, '--images', '5000', '--bits', '64', '--codes')
    assert text.startswith('codes of 64 bits: code 64;')
    assert 'hours on' not in text
    assert 'core-hours at' not in text
    assert table(text)['core-hours, encoding'] == ['0']


def test_large_shards_leave_fewer_limits():
    spec = CodeSpec.default()
    assert not list(limits(ScalePlan.of(Scale(10**9, spec))))
    small, large = (list(limits(ScalePlan.of(Scale(10**10, spec, unit_rows=n)))) for n in (10_000, 1_000_000))
    for what in ('blocks are read', 'on one worker', 'a bucket'):
        assert any(what in line for line in small)
    assert len(large) < len(small)


def test_files_that_share_a_prefix_are_told():
    line, *_ = limits(ScalePlan.of(Scale(3 << 20, CodeSpec.parse('code=16'), partition_rows=20)))
    assert line.startswith('3 files share a prefix of 16 bits')


@pytest.mark.parametrize(
    ('number', 'text'), [(999_999, '999,999'), (1e6, '1 million'), (23_613_417_903, '23.6 billion')]
)
def test_counts_are_words(number, text):
    assert describe_count(number) == text
