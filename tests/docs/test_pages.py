"""What the pages say, compared with the code: commands, links, tables, messages."""

import ast
import re
import sys

import pytest

import grainhash
from hashing_model.images import decode
from pipelines import records
from pipelines.cli.arguments import command_parser, index_as_option, make_parser
from pipelines.cli.main import main
from pipelines.cli.options import COMMANDS as ABOUT
from tests.helpers.make_index import ROOT
from tests.helpers.pages import (
    PAGES,
    anchors_of,
    blocks_of,
    grainhash_commands,
    hooks,
    inline_commands,
    links_of,
    text_of,
)

if sys.version_info >= (3, 11):
    import tomllib as tomli
else:
    import tomli

COMMANDS = [command for page in PAGES for command in grainhash_commands(page)]
PYTHON = [block for page in PAGES for block in blocks_of(page) if block.language == 'python']
LEFT_OUT = {'build': ['--images', 'x', '--model', 'm', '--index', 'i']}  # what `grainhash build ...` stands for
OUR_SOURCES = [path for name in ('hashing_model', 'pipelines') for path in sorted((ROOT / name).rglob('*.py'))]


def parse(argv):
    """Parse a command as the command line does; what is left over is for Beam."""
    parser = make_parser()
    command = command_parser(parser, argv[0])
    parsed, rest = parser.parse_known_args([argv[0], *index_as_option(argv[1:], command)] if command else argv)
    assert not rest or ABOUT[parsed.command].beam, rest
    return parsed, rest


def complete(argv):
    """A command whose arguments are left out in part, with such arguments."""
    if '...' not in argv:
        return argv
    at = argv.index('...')
    return [*argv[:at], *LEFT_OUT[argv[0]], *argv[at + 1 :]]


def test_there_is_something_to_check():
    assert len(PAGES) > 25
    assert len(COMMANDS) > 25
    assert len(PYTHON) > 5


# Commands


@pytest.mark.parametrize('command', COMMANDS, ids=[command.name for command in COMMANDS])
def test_every_command_that_is_shown_parses(command):
    argv = complete(command.argv[1:])
    if argv[0] in ('--version', '--help', '--print-completion'):
        with pytest.raises(SystemExit, match=r'^0$'):
            parse(argv)
        return
    _, rest = parse(argv)
    assert all(re.match(r'--[a-z_]+=', option) for option in rest), rest


@pytest.mark.parametrize('page', PAGES)
def test_commands_in_a_sentence_exist_with_their_options(page):
    commands = hooks().commands_of(make_parser())
    for text in inline_commands(page):
        _, name, *words = text.split()
        if name.startswith('-') or name in ('COMMAND', '...') or '|' in text:
            continue
        assert name in commands, text
        known = {option for action in commands[name]._actions for option in action.option_strings}
        given = {word.split('=')[0] for word in words if re.match(r'--[a-z]', word)}
        beam = {option for option in given if '_' in option or option == '--runner'}
        assert given - beam <= known, text
        assert not beam or ABOUT[name].beam, text


def test_the_reference_has_every_command_and_option():
    text = hooks().complete('<!-- command line -->', 'reference/command-line.md')
    for name, command in hooks().commands_of(make_parser()).items():
        section = re.search(rf'^## grainhash {name}\n(.*?)(?=^## |\Z)', text, re.MULTILINE | re.DOTALL)[1]
        for action in command._actions:
            if action.help != '==SUPPRESS==' and action.dest != 'help':
                assert all(option in section for option in action.option_strings), (name, action.option_strings)


def test_the_configuration_that_is_shown_is_read(tmp_path, capsys):
    (block,) = (b for b in blocks_of('docs/running/local.md') if b.language == 'toml')
    (tmp_path / 'grainhash.toml').write_text(block.text, encoding='utf-8')
    config = ['--config', str(tmp_path / 'grainhash.toml'), '--print-config']
    assert main(['build', *config]) == 0
    shown = tomli.loads(capsys.readouterr().out)
    given = tomli.loads(block.text)
    assert shown['build'].items() >= {**given['build'], 'index': given['index']}.items()
    assert {name: str(value) for name, value in given['beam'].items()} == shown['beam']
    assert main(['query', '--images', 'a.jpg', '--output', 'b.jsonl', *config]) == 0
    assert tomli.loads(capsys.readouterr().out)['query'].items() >= given['query'].items()


# Links, and what a README may be


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_to_a_file_and_a_heading(page):
    for path, anchor in links_of(page):
        assert (ROOT / path).exists(), path
        assert not anchor or anchor in anchors_of(path), f'{path}#{anchor}'


def test_links_of_an_included_text_are_turned_to_its_page():
    text = hooks().complete('<!-- include CONTRIBUTING.md -->', 'project/contributing.md')
    assert '(../explanations/architecture.md#wings)' in text
    assert '(releasing.md)' in text


def test_every_mark_in_a_page_is_known():
    for page in PAGES:
        for mark in re.findall(r'^ *<!-- (.*?) -->$', text_of(page), re.MULTILINE):
            known = r'(files|with|figures vary|not run): .+|include \S+|command line'
            assert re.fullmatch(known, mark), f'{page}: {mark}'


def test_the_readme_is_short_and_of_this_project_alone():
    text = text_of('README.md')
    assert len(text.splitlines()) <= 150
    assert not re.search(r'/(work|tmp|home|root)\b', text)


@pytest.mark.parametrize('block', PYTHON, ids=[block.name for block in PYTHON])
def test_python_on_a_page_compiles(block):
    compile(block.text, block.name, 'exec')


# Tables and messages


def table_below(page, heading):
    """The rows of the first table below a heading, as cells."""
    after = text_of(page).split(heading, 1)[1]
    lines = re.search(r'((?:^\|.*\n)+)', after, re.MULTILINE)[1].splitlines()
    return [[cell.strip().strip('`') for cell in line.strip('|').split('|')] for line in lines[2:]]


def test_the_table_of_wings_is_that_of_the_layering_test():
    source = ast.parse((ROOT / 'tests' / 'test_layering.py').read_text(encoding='utf-8'))
    assigned = {node.targets[0].id: node.value for node in source.body if isinstance(node, ast.Assign)}
    floors = ast.literal_eval(assigned['FLOORS'])
    shown = {wing: int(floor) for floor, wing, _ in table_below('docs/explanations/architecture.md', '## Wings')}
    assert shown == {wing: number for number, wings in enumerate(floors, 1) for wing in wings}


def test_every_reject_reason_has_a_row_and_no_other():
    constants = {**vars(records), **vars(decode)}
    reasons = {v for k, v in constants.items() if k.isupper() and isinstance(v, str) and re.fullmatch('[a-z_]+', v)}
    shown = {row[0] for row in table_below('docs/reference/reject-reasons.md', '# Reject reasons')}
    assert 'truncated' in reasons
    assert shown == reasons


def texts_of_source():
    """All texts in our sources; what is filled in is \\0."""
    found = set()
    for path in OUR_SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.JoinedStr):
                found.add(''.join(v.value if isinstance(v, ast.Constant) else '\0' for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_messages_of_the_troubleshooting_page_are_in_the_source():
    texts = texts_of_source()
    terms = re.findall(r'^(`.*)\n:  ', text_of('docs/troubleshooting.md'), re.MULTILINE)
    messages = [message for term in terms for message in re.findall(r'`([^`]+)`', term)]
    assert len(messages) > 50
    for message in messages:
        parts = [part.strip(' :;,()') for part in message.split('...')]
        assert any(all(part in text for part in parts) or is_of(message, text) for text in texts), message


def is_of(message, text):
    """Whether a message is that text of the source, filled in."""
    if '\0' not in text:
        return text == message
    parts = text.split('\0')
    return sum(map(len, parts)) >= 8 and bool(re.fullmatch('.*'.join(map(re.escape, parts)), message, re.DOTALL))


def test_the_python_page_has_every_name_of_the_package_and_no_other():
    shown = re.findall(r'^::: grainhash\.(\w+)$', text_of('docs/reference/python.md'), re.MULTILINE)
    assert sorted(shown) == sorted(set(grainhash.__all__) - {'__version__'})
    rows = table_below('docs/reference/python.md', '## A function for each command')
    assert {cell.split('`')[-1] for row in rows for cell in row} <= set(shown)
