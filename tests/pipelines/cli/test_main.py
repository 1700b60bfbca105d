"""The command line: bad input is one line and leaves nothing behind; help that reads well."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cli.arguments import command_parser, index_as_option, make_parser
from pipelines.cli.config import tomllib
from pipelines.cli.main import main
from pipelines.cli.options import COMMANDS
from tests.helpers.make_index import ROOT, SPEC, build_by_hand, skewed_codes
from tests.helpers.make_models import catalogue_pixels, encoded_pictures, fit_look


def write_codes(path, codes):
    columns = {'image_id': [f'q{i}' for i in range(len(codes))], 'code': pa.array([bytes(c) for c in codes])}
    pq.write_table(pa.table(columns), path)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A folder with a model, an index of codes, one that names a model, codes, photos, and what is none of these."""
    folder = tmp_path_factory.mktemp('made')
    model = fit_look(catalogue_pixels(), 'random')
    model.save(folder / 'model')
    build_by_hand(folder / 'index', [skewed_codes(60)])
    write_codes(folder / 'codes.parquet', skewed_codes(3))
    write_codes(folder / 'short.parquet', skewed_codes(3)[:, :8])
    write_codes(folder / 'spare.parquet', skewed_codes(3) | np.uint8(1))
    pq.write_table(pa.table({'image_id': ['', ''], 'code': [b'123456789'] * 2}), folder / 'no-ids.parquet')
    pq.write_table(pa.table({'image_id': ['a'], 'hash': [b'x']}), folder / 'columns.parquet')
    (folder / 'ids.txt').write_text('image 0-1\n')
    (folder / 'photos').mkdir()
    for i, data in enumerate(encoded_pictures(3)):
        (folder / 'photos' / f'{i}.webp').write_bytes(data)
    (folder / 'notes').mkdir()
    (folder / 'notes' / 'todo.txt').write_text('tidy up')
    (folder / 'damaged').mkdir()
    (folder / 'damaged' / 'CURRENT').write_text('v1\n')
    (folder / 'damaged' / 'versions' / 'v1').mkdir(parents=True)
    (folder / 'damaged' / 'versions' / 'v1' / 'manifest.json').write_text('{"format_version": 99}')
    return folder


def everything(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in Path(folder).rglob('*')}


TRAIN = 'train --images photos --model new --segments look=4'
BUILD = 'build --codes codes.parquet --index new'
QUERY = 'query --index index --codes codes.parquet --output new.jsonl'

BAD_INPUT = [
    # nothing matches
    ('train --images none/*.jpg --model new', 'no images match .*none/'),
    ('build --images none.tar --model model --index new', r'no images match .*none\.tar'),
    ('build --codes none.parquet --index new', r'match .*none\.parquet'),
    ('query --index index --codes none.parquet --output new.jsonl', r'match .*none\.parquet'),
    ('query --index index --ids none.txt --output new.jsonl', r'there is no file none\.txt'),
    # folders that hold something else
    ('build --codes codes.parquet --index notes', r'notes is not an index: it holds todo\.txt'),
    ('build --codes codes.parquet --index ids.txt', r'ids\.txt is a file; give a folder for the index'),
    ('query --index notes --codes codes.parquet --output new.jsonl', 'notes is not an index: there is no .*CURRENT'),
    ('inspect notes', 'notes is not an index: there is no .*CURRENT'),
    ('inspect none', 'none is not an index'),
    ('inspect damaged', 'has index format 99; this grainhash reads format 1'),
    ('inspect index --version v7', 'has no version v7'),
    ('train --images photos --model notes', r'notes is not a model: it holds todo\.txt'),
    ('train --images photos --model ids.txt', r'ids\.txt is a file; give a folder for the model'),
    ('build --images photos --model notes --index new', r'notes is not a model: there is no .*model\.json'),
    ('build --images photos --model none --index new', 'none is not a model'),
    ('demo --output notes', r'notes holds todo\.txt, which no demo made'),
    ('demo --output new --catalogue none', 'no catalogue in none'),
    # what does not fit the index
    ('query --index index --codes short.parquet --output new.jsonl', 'have 8 bytes; the index has codes of 9 bytes'),
    ('query --index index --codes columns.parquet --output new.jsonl', 'has no column code; it has image_id, hash'),
    ('query --index index --images photos --output new.jsonl --model model', 'the model does not fit the index'),
    (f'{BUILD} --segments code=64', 'make 8 bytes; the codes have 9 bytes'),
    (f'{QUERY} --profile colour=1', "unknown segment 'colour' in the profile; the index has coarse, fine, look"),
    (f'{QUERY} --profile coarse=0', 'the profile weighs every segment 0'),
    (f'{QUERY} --profile coarse', "'coarse' is not NAME=INTEGER"),
    ('evaluate --images photos --model notes --output new', r'notes is not a model: there is no .*model\.json'),
    ('evaluate --index notes --output new', 'notes is not an index: there is no .*CURRENT'),
    ('evaluate --index index --version v7 --output new', 'has no version v7'),
    ('evaluate --index index --output notes', r'notes holds todo\.txt, which no evaluation wrote'),
    ('evaluate --index index --output ids.txt', r'ids\.txt is a file; give a folder for the results'),
    ('evaluate --images none.tar --model model --output new', r'no images match .*none\.tar'),
    ('evaluate --index index --split none.json --output new', r'there is no file .*none\.json'),
    ('evaluate --index index --split ids.txt --output new', r'ids\.txt is no split'),
    ('evaluate --index index --profile colour=1 --output new', "unknown segment 'colour'"),
    # limits
    ('evaluate --index index --max-images 0 --output new', '--max-images is 0; at least 1 is needed'),
    ('evaluate --index index --max-queries -1 --output new', '--max-queries is -1; at least 1 is needed'),
    (f'{QUERY} --k 0', 'k is 0; at least 1 is needed'),
    (f'{QUERY} --k -3', 'k is -3; at least 1 is needed'),
    (f'{QUERY} --k all', 'give k, a radius, or both'),
    (f'{QUERY} --radius -1', 'the radius is -1'),
    (f'{BUILD} --partition-rows 0', '--partition-rows is 0'),
    (f'{TRAIN} --max-images 0', '--max-images is 0'),
    (f'{TRAIN} --input-size 0', 'image size 0 is not'),
    (f'{TRAIN},look=8', 'look is given twice'),
    ('train --images photos --model new --segments look=0', 'segment look has 0 bits'),
    ('plan --images 0', 'rows are 0'),
    ('plan --images 5 --bits 0', 'segment code has 0 bits'),
    ('plan --images 5 --unit-rows 0', 'unit rows are 0'),
    ('plan --images 5 --workers 0', '--workers is 0'),
    # options that need or exclude each other
    ('plan --images 5 --workers -1', '--workers is -1'),
    ('plan --images 5 --codes --images-per-core-second 3', '--images-per-core-second does not go with --codes'),
    ('build --images photos --index new', '--images need --model'),
    (f'{BUILD} --model model', '--model does not go with --codes'),
    (f'{BUILD} --labels-from folders', '--labels-from does not go with --codes'),
    ('build --images photos --model model --index new --segments look=32', '--segments goes with --codes'),
    ('evaluate --images photos --output new', '--images need --model'),
    ('evaluate --index index --model model --output new', '--model does not go with --index'),
    ('evaluate --images photos --model model --version v1 --output new', '--version goes with --index'),
    ('evaluate --index index --labels fine --output new', '--labels tells how images are read'),
    ('evaluate --index index --split ids.txt --max-images 3 --output new', '--max-images does not go with --split'),
    # places that take no file
    (
        'query --index index --codes codes.parquet --output new.csv',
        r'new\.csv ends neither in \.parquet nor in \.jsonl',
    ),
    (
        'query --index index --codes codes.parquet --output ids.txt/new.jsonl',
        r'cannot write .*new\.jsonl: Not a directory',
    ),
    ('query --index index --codes none.parquet --output new/below/new.jsonl', r'match .*none\.parquet'),
    ('train --images photos --model ids.txt/model', 'cannot write .*: Not a directory'),
    ('build --codes codes.parquet --index ids.txt/index', 'Not a directory|is a file'),
    ('evaluate --index index --output ids.txt/new', 'Not a directory|is a file'),
    # unknown options
    ('evaluate --index index --output new --rows 3', 'unknown option --rows'),
    ('inspect index --jsn', 'unknown option --jsn; did you mean --json\\?'),
    ('build --imges photos --codes codes.parquet --index new', 'unknown option --imges: .*; did you mean --images\\?'),
    (f'{TRAIN} --runner=FlinkRunner', 'unknown option --runner=FlinkRunner'),
    (f'{BUILD} --rows 3', 'unknown option --rows: neither grainhash nor Beam has it'),
    (f'{QUERY} --top 3', 'unknown option --top: neither grainhash nor Beam has it'),
]


@pytest.mark.parametrize(('command', 'message'), BAD_INPUT, ids=[command for command, _ in BAD_INPUT])
def test_bad_input_is_one_line_and_leaves_nothing_behind(made, monkeypatch, capsys, command, message):
    monkeypatch.chdir(made)
    before = everything(made)
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert re.fullmatch(rf'grainhash: error: .*(?:{message}).*\n', err)
    assert everything(made) == before


def test_too_few_images_are_told_after_a_look_and_leave_nothing(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    before = everything(made)
    assert main(['train', '--images', 'photos', '--model', 'new', '--segments', 'look=40', '--input-size', '32']) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith('grainhash: error: 40 bits need more than 40 training images; there are 3')
    assert everything(made) == before


@pytest.mark.beam
def test_queries_with_spare_bits_are_refused_by_the_job(made, monkeypatch, capsys):
    assert SPEC.bits % 8
    monkeypatch.chdir(made)
    assert main(['query', '--index', 'index', '--codes', 'spare.parquet', '--output', 'new.jsonl']) == 2
    path = made / 'spare.parquet'
    assert capsys.readouterr().err == f'grainhash: error: {path}: row 0: bits are set beyond the 66 of the code spec\n'
    assert not (made / 'new.jsonl').exists()


@pytest.mark.beam
def test_a_build_that_fails_is_exit_code_1_and_leaves_no_file(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    before = everything(made)
    assert main(['build', '--codes', 'no-ids.parquet', '--index', 'new']) == 1
    assert capsys.readouterr().err == 'grainhash: error: none of 2 records could be used: 2 missing_id\n'
    assert {name: content for name, content in everything(made).items() if content is not None} == {
        name: content for name, content in before.items() if content is not None
    }


@pytest.mark.beam
def test_a_damaged_index_is_exit_code_1_and_names_the_file(made, tmp_path, capsys):
    config = build_by_hand(tmp_path / 'index', [skewed_codes(20)])
    Path(config.index_version.path('sample.parquet')).unlink()
    answers = str(tmp_path / 'new.jsonl')
    assert main(['query', '--index', config.index, '--codes', str(made / 'codes.parquet'), '--output', answers]) == 1
    assert re.fullmatch(r'grainhash: error: cannot read .*sample\.parquet: .*\n', capsys.readouterr().err)
    assert [p.name for p in tmp_path.iterdir()] == ['index']


@pytest.mark.parametrize(
    ('command', 'message'),
    [
        ('', 'the following arguments are required: COMMAND'),
        ('inspct', "invalid choice: 'inspct'"),
        ('inspct', '; did you mean inspect?'),
        ('train --images photos', 'the following arguments are required: --model'),
        ('build --index new', 'one of the arguments --images --codes is required'),
        ('build --index new --images a --codes b', '--codes: not allowed with argument --images'),
        ('query --index index --codes c --output o --k ten', 'argument --k: \'ten\' is neither a number nor "all"'),
        ('train --images a --model b --method lsh', "invalid choice: 'lsh'"),
        ('plan --images 5t', "argument --images: '5t' is not a whole number"),
        ('plan --images 1.5', "argument --images: '1.5' is not a whole number"),
        ('plan --images 1001B', "argument --images: '1001B' is more than 1000B images"),
        ('plan --images 5 --bits 8 --segments a=8', '--segments: not allowed with argument --bits'),
        ('inspect', 'the following arguments are required: --index'),
        ('evaluate --index a', 'the following arguments are required: --output'),
        ('evaluate --index a --images b --output c', '--images: not allowed with argument --index'),
    ],
)
def test_commands_that_are_not_commands_show_their_usage(capsys, command, message):
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith('usage: grainhash')
    assert message in err.splitlines()[-1]


def run(*command, cwd):
    return subprocess.run(
        [sys.executable, '-m', 'grainhash', *command], capture_output=True, text=True, cwd=cwd, check=False
    )


@pytest.mark.process
def test_a_shell_sees_one_line_and_exit_code_2(made):
    done = run('inspect', 'notes', cwd=made)
    assert (done.returncode, done.stdout) == (2, '')
    assert re.fullmatch(r'grainhash: error: .*notes is not an index: .*\n', done.stderr)


@pytest.mark.process
def test_verbose_shows_the_traceback_and_ends_with_the_same_line(made):
    done = run('inspect', 'notes', '--verbose', cwd=made)
    assert done.returncode == 2
    *before, last = done.stderr.splitlines()
    assert 'Traceback (most recent call last):' in before
    assert any('versions.py' in line for line in before)
    assert last == run('inspect', 'notes', cwd=made).stderr.strip()


@pytest.mark.process
@pytest.mark.parametrize('sent', ['SIGINT', 'SIGTERM'])
def test_an_interrupt_below_exec_is_exit_code_130(tmp_path, sent):
    """Python would end by the signal, had it been a KeyboardInterrupt."""
    (tmp_path / 'interrupted.py').write_text(
        'import signal, sys\n'
        'from pipelines.cli import main, versions\n'
        'signal.signal(signal.SIGINT, signal.default_int_handler)\n'
        f'versions.inspect = lambda *_: exec("signal.raise_signal(signal.{sent})", globals())\n'
        'sys.exit(main.main(["inspect", "index"]))\n'
    )
    command = [sys.executable, '-m', 'interrupted']
    environment = {**os.environ, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}'}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (130, 'grainhash: error: interrupted\n')


# Help


def help_of(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, '--help'])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(['--help'])
    text = capsys.readouterr().out
    for name, about in COMMANDS.items():
        assert re.search(rf'^  {name} +{re.escape(about.help[:30])}', text, re.MULTILINE)


@pytest.mark.parametrize('command', COMMANDS)
def test_the_help_explains_every_option_once(command, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '100')
    text = help_of(command, capsys)
    assert max(map(len, text.splitlines())) <= 110
    usage, _, listed = text.partition('\n\n')
    explained = re.findall(r'^  (?:-h, )?(--[a-z-]+)', listed, re.MULTILINE)
    assert len(explained) == len(set(explained))
    assert sorted(explained) == sorted({f'--{name}' for name in re.findall(r'--([a-z-]+)', usage)} | {'--help'})
    assert {'--help', '--verbose'} <= set(explained)


def options_of(command):
    return [a for a in command_parser(make_parser(), command)._actions if a.dest != 'help']


@pytest.mark.parametrize('command', COMMANDS)
def test_help_texts_tell_their_defaults_and_end_alike(command):
    for option in options_of(command):
        text = option.help
        assert text[0].islower() or text.startswith(('Parquet', '--'))
        assert not text.endswith('.')
        if option.default not in (None, False):
            shown = f'{option.default:,}' if isinstance(option.default, int) else option.default
            assert f'default: {shown}' in text or f'{shown} (default' in text


# The same design for every command


@pytest.mark.parametrize(
    'command',
    ['inspect index', 'inspect --index index', 'inspect --json --index=index', 'inspect --json index'],
)
def test_an_index_stands_first_or_as_an_option(made, monkeypatch, capsys, command):
    monkeypatch.chdir(made)
    assert main(command.split()) == 0
    assert '60' in capsys.readouterr().out


def test_every_command_about_an_index_takes_it_first():
    parser = make_parser()
    for name in COMMANDS:
        options = command_parser(parser, name).options
        given = index_as_option(['my-index', '--verbose'], command_parser(parser, name))
        wanted = ['--index', 'my-index', '--verbose'] if '--index' in options else ['my-index', '--verbose']
        assert given == wanted
        assert ('--index' in options) == (name not in ('train', 'features', 'calibrate', 'plan', 'demo'))


@pytest.mark.parametrize(
    ('given', 'wanted'),
    [
        ('--model m my-index --images a b', '--model m --index my-index --images a b'),
        ('--images a b --model m', '--images a b --model m'),
        ('--runner FlinkRunner my-index', '--runner FlinkRunner my-index'),
        ('--runner=FlinkRunner my-index', '--runner=FlinkRunner --index my-index'),
        ('my-index --index other', 'my-index --index other'),
        ('--full my-index', '--full --index my-index'),
    ],
)
def test_only_what_is_no_value_of_an_option_is_the_index(given, wanted):
    assert index_as_option(given.split(), command_parser(make_parser(), 'build')) == wanted.split()


def test_options_come_from_a_file_and_the_command_line_wins(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(made)
    config = tmp_path / 'nightly.toml'
    config.write_text(
        'index = "none"\nmax_images = 5\n'
        '[build]\ncodes = ["codes.parquet"]\nfull = true\nkeep = 3\npartition_rows = "10k"\n'
        '[beam]\nrunner = "FlinkRunner"\n[train]\nmodel = "x"\n'
    )
    assert main(['build', 'new', '--config', str(config), '--keep', '7', '--print-config']) == 0
    printed = capsys.readouterr().out
    assert tomllib.loads(printed) == {
        'build': {'index': 'new', 'codes': ['codes.parquet'], 'full': True, 'keep': 7, 'partition-rows': 10_000},
        'beam': {'runner': 'FlinkRunner'},
    }
    again = tmp_path / 'again.toml'
    again.write_text(printed)
    assert main(['build', f'--config={again}', '--print-config']) == 0
    assert capsys.readouterr().out == printed
    assert main(['inspect', 'index', '--config', str(config)]) == 0  # what is for other commands is passed over


@pytest.mark.parametrize(
    ('command', 'printed'),
    [
        (
            'query index --text a --text -x --output b.jsonl --k all --radius 3',
            '[query]\nindex = "index"\ntext = ["a", "-x"]',
        ),
        ('plan --images 1k 2M', '[plan]\nimages = [1000, 2000000]\n'),
    ],
)
def test_every_option_that_is_printed_is_read_again(tmp_path, capsys, command, printed):
    command = command.replace('--text -x', '--text=-x')
    assert main([*command.split(), '--print-config']) == 0
    first = capsys.readouterr().out
    assert first.startswith(printed)
    (tmp_path / 'a.toml').write_text(first.replace('"-x"', '"x"'))
    assert main([command.split()[0], '--config', str(tmp_path / 'a.toml'), '--print-config']) == 0
    assert capsys.readouterr().out == first.replace('"-x"', '"x"')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('[build]\nkeap = 3', 'build has no option --keap; did you mean --keep?'),
        ('[biuld]\nkeep = 3', 'has a table [biuld], but no command is called so; did you mean build?'),
        ('keep = ', 'cannot be read: '),
        ('[build]\nconfig = "a"', 'build has no option --config'),
        (None, 'cannot be read: '),
    ],
)
def test_a_config_file_that_means_nothing_is_one_line(tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / 'a.toml').write_text(content)
    assert main(['build', 'new', '--config', str(tmp_path / 'a.toml')]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_shells_complete_commands_and_options(capsys):
    with pytest.raises(SystemExit) as ended:
        main(['--print-completion', 'bash'])
    assert ended.value.code == 0
    script = capsys.readouterr().out
    assert '--max-reject-rate' in script
    assert all(command in script for command in COMMANDS)


@pytest.mark.parametrize(
    ('command', 'keys'),
    [
        ('inspect index', {'version', 'images', 'tables'}),
        ('verify index', {'problems', 'rows', 'bytes'}),
        ('prune index --keep 1', {'finished', 'dead', 'bytes'}),
        ('evaluate index --output new', {'quality', 'files', 'model'}),
    ],
)
def test_reports_are_json_on_standard_output(made, tmp_path, monkeypatch, capsys, command, keys):
    shutil.copytree(made / 'index', tmp_path / 'index')
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), '--json']) == 0
    assert keys <= set(json.loads(capsys.readouterr().out, parse_constant=pytest.fail))
