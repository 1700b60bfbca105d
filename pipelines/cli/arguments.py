"""The arguments of all commands: one design, written down once; what they mean is the commands' business.

The index may stand first or as `--index`, outputs are `--output`, numbers may be written 10000, 10,000 or 10k. Options
may stand in a file (`config.py`). Whatever no option of ours is goes to Apache Beam, where a command runs a Beam job.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Sequence

import shtab

from pipelines.cli.options import COMMANDS
from pipelines.cli.parser import OptionsFormatter, Parser

DESCRIPTION = """\
Build and query indexes of images: each image becomes a binary code with named segments
(coarse: same kind of thing, fine: same thing, look: same appearance), codes are stored as
Parquet tables partitioned by hash prefix, and queries get their exact nearest neighbours.
"""


class _CommandsFormatter(argparse.RawDescriptionHelpFormatter):
    """Has room for the longest command: argparse forgets that commands are indented when it measures them."""

    def __init__(self, prog: str):
        super().__init__(prog, indent_increment=1)
        self._action_max_length = max(map(len, COMMANDS)) + 2


def make_parser() -> Parser:
    """The parser of all commands."""
    common = Parser(add_help=False)
    group = common.add_argument_group('for every command')
    group.add_argument('--config', metavar='FILE', help='take options from this TOML file; those given here win')
    group.add_argument('--print-config', action='store_true', help='print the options as such a file, and do nothing')
    group.add_argument('--json', action='store_true', help='print what is reported as JSON, for machines')
    group.add_argument('--verbose', action='store_true', help='log every step; show the traceback of an error')
    parser = Parser('grainhash', description=DESCRIPTION, formatter_class=_CommandsFormatter, allow_abbrev=False)
    parser.add_argument('--version', action='version', version=f'grainhash {importlib.metadata.version("grainhash")}')
    shtab.add_argument_to(parser, '--print-completion', help='print a script that completes commands and options')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND', parser_class=Parser)
    for name, about in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=about.help,
            description=about.help,
            epilog=about.epilog,
            formatter_class=OptionsFormatter,
            allow_abbrev=False,
        )
        about.add(command)
        command._add_container_actions(common)  # as `parents` does, but last
    return parser


def command_parser(parser: Parser, name: str) -> Parser | None:
    """The parser of one command; None if there is no such command."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return commands.choices.get(name)


def index_as_option(arguments: Sequence[str], command: Parser) -> list[str]:
    """The arguments of a command, with an index that stands without `--index` behind it.

    >>> parser = command_parser(make_parser(), 'inspect')
    >>> index_as_option(['--json', 'my-index'], parser)
    ['--json', '--index', 'my-index']
    """
    options, arguments = command.options, list(arguments)
    if '--index' not in options or any(a.partition('=')[0] == '--index' for a in arguments):
        return arguments
    place = 0
    while place < len(arguments):
        name = arguments[place]
        if not name.startswith('-'):
            return [*arguments[:place], '--index', *arguments[place:]]
        action = options.get(name)
        if action is None and '=' not in name:  # of Beam, or unknown: what follows may be its value
            return arguments
        place += 1
        if action is not None and action.nargs is None:
            place += 1
        while action is not None and action.nargs == '+' and place < len(arguments) and arguments[place][:1] != '-':
            place += 1
    return arguments
