"""Options of a command in a TOML file: `--config FILE` reads them, `--print-config` writes them.

    [build]
    images = ["gs://shop/images/"]
    model = "gs://shop/model"
    keep = 3

    [beam]
    runner = "DataflowRunner"

Keys are options without the dashes in front. A table is named like its command; keys outside of any table are for
every command that has them. The table `beam` has options of Apache Beam. Options on the command line win.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hashing_model.errors import InputError
from pipelines.cli.options import COMMANDS
from pipelines.cli.parser import Parser, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BEAM_TABLE = 'beam'
NOT_KEPT = ('config', 'print_config', 'help')


def read(given: Sequence[str], command: Parser, beam: bool) -> list[str]:
    """The arguments that the file named by `--config` adds to those that are given; none without one.

    Args:
        given: the command's name and its arguments.
        command: the parser of the command.
        beam: whether the command takes options of Beam.

    Raises:
        InputError: the file is not there, is no TOML, or has a key that is no option.
    """
    path = _file(given)
    if path is None:
        return []
    try:
        content = tomllib.loads(Path(path).read_text(encoding='utf-8'))
    except (ValueError, OSError) as e:
        raise InputError(f'--config {path} cannot be read: {e}') from e
    tables = {name: value for name, value in content.items() if isinstance(value, Mapping)}
    unknown = [name for name in tables if name not in (*COMMANDS, BEAM_TABLE)]
    if unknown:
        raise InputError(
            f'{path} has a table [{unknown[0]}], but no command is called so{nearest(unknown[0], COMMANDS)}'
        )
    everywhere = {key: value for key, value in content.items() if key not in tables and _name(key) in command.options}
    own = {_name(key): value for key, value in {**everywhere, **tables.get(given[0], {})}.items()}
    for name in own:
        if name not in command.options or name in ('--config', '--print-config', '--help'):
            raise InputError(f'{path}: {given[0]} has no option {name}{nearest(name, command.options)}')
    said = {argument.partition('=')[0] for argument in given}
    arguments = [a for name, value in own.items() if name not in said for a in _arguments(name, value, command)]
    of_beam = tables.get(BEAM_TABLE, {}) if beam else {}
    return arguments + [f'--{name}={value}' for name, value in of_beam.items() if f'--{name}' not in said]


def _file(given: Sequence[str]) -> str | None:
    for place, argument in enumerate(given):
        name, equals, value = argument.partition('=')
        if name == '--config':
            return value if equals else next(iter(given[place + 1 :]), None)
    return None


def _name(key: str) -> str:
    return f'--{key.replace("_", "-")}'


def _arguments(name: str, value: Any, command: Parser) -> list[str]:
    action = command.options[name]
    if isinstance(value, bool):
        return [name] if value else []
    values = [str(v) for v in value] if isinstance(value, list) else [str(value)]
    if action.nargs == argparse.ONE_OR_MORE:
        return [name, *values]
    return [f'{name}={v}' for v in values]  # one by one: a profile may be given again


def write(args: argparse.Namespace, rest: Sequence[str], command: Parser) -> str:
    """The options of a command as a file that `read` reads; `rest` are those for Beam, `--name=value`."""
    lines = [f'[{args.command}]']
    for name, action in command.options.items():
        value = getattr(args, action.dest, None)
        if value is None and action.default not in (None, argparse.SUPPRESS):
            value = 'all'  # of --k
        if name.startswith('--') and action.dest not in NOT_KEPT and value not in (None, False):
            lines.append(f'{name.removeprefix("--")} = {_toml(value)}')
    of_beam = [argument.removeprefix('--').partition('=') for argument in rest]
    if of_beam:
        lines += ['', f'[{BEAM_TABLE}]', *(f'{name} = {_toml(value)}' for name, _, value in of_beam)]
    return '\n'.join(lines)


def _toml(value: Any) -> str:
    """JSON is TOML, for the values that options have."""
    return json.dumps(value, ensure_ascii=False)
