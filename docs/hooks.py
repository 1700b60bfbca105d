"""What `mkdocs build` adds to the pages: texts that live elsewhere in the repository, and the command line's reference.

`<!-- include PATH -->` is replaced by that file of the repository, `<!-- include PATH#anchor -->` by what stands below
that heading in it, with links turned so that they work from the page; `<!-- command line -->` by a section for each
command, read from the parser. MkDocs calls `on_page_markdown`.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = 'docs'
COLUMNS = '84'  # of a usage line
_INCLUDE = re.compile(r'^<!-- include (\S+) -->$', re.MULTILINE)
_COMMAND_LINE = re.compile(r'^<!-- command line -->$', re.MULTILINE)
_LINK = re.compile(r'(?<=\]\()(?![a-z]+:|#)([^)#\s]+)')


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page with its marks replaced; MkDocs calls this for every page."""
    return complete(markdown, page.file.src_uri)


def complete(markdown: str, place: str) -> str:
    """The text of the page at `place` below docs/, with its marks replaced."""
    text = _INCLUDE.sub(lambda found: included(found[1], place), markdown)
    return _COMMAND_LINE.sub(lambda _: command_line(), text)


# Texts of the repository


def included(path: str, place: str) -> str:
    """A file of the repository as part of the page at `place`, its links relative to that page."""
    path, _, anchor = path.partition('#')
    text = (ROOT / path).read_text(encoding='utf-8')
    if anchor:
        text = section(text, anchor)
    pages = {shown: page for page, shown in including().items()}

    def turned(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), found[1]))
        page = pages.get(target, posixpath.relpath(target, DOCS))
        return posixpath.relpath(page, posixpath.dirname(place) or '.')

    return _LINK.sub(turned, text)


def section(text: str, anchor: str) -> str:
    """What stands below a heading of the second level, up to the next one.

    >>> section('## One two\\n\\na\\n\\n## Three\\n', 'one-two')
    'a'
    """
    parts = re.split(r'^## (.*)$', text, flags=re.MULTILINE)
    found = {title.lower().replace(' ', '-'): below for title, below in zip(parts[1::2], parts[2::2], strict=True)}
    return found[anchor].strip()


def including() -> dict[str, str]:
    """Page below docs/ -> the file of the repository that it includes as a whole."""
    found = {}
    for page in sorted((ROOT / DOCS).rglob('*.md')):
        for path in _INCLUDE.findall(page.read_text(encoding='utf-8')):
            if '#' not in path:
                found[page.relative_to(ROOT / DOCS).as_posix()] = path
    return found


# The command line


def command_line() -> str:
    """A section for each command of grainhash: what it does, its usage, its options."""
    from pipelines.cli.main import make_parser

    width, os.environ['COLUMNS'] = os.environ.get('COLUMNS'), COLUMNS
    try:
        parser = make_parser()
        return '\n'.join(_sections(parser))
    finally:
        if width is None:
            del os.environ['COLUMNS']
        else:
            os.environ['COLUMNS'] = width


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands of a parser, by name."""
    return next(a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))


def _sections(parser: argparse.ArgumentParser) -> Iterator[str]:
    commands = commands_of(parser)
    helps = {
        choice.dest: choice.help
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for choice in action._choices_actions
    }
    yield from ('| command | does |', '|---|---|')
    for name in commands:
        yield f'| [`grainhash {name}`](#grainhash-{name}) | {_cell(helps.get(name) or "")} |'
    yield from ('', '## Options before any command', '')
    yield from _table([a for a in parser._actions if not isinstance(a, argparse._SubParsersAction)])
    for name, command in commands.items():
        yield from _section(name, command)


def _section(name: str, command: argparse.ArgumentParser) -> Iterator[str]:
    yield from ('', f'## grainhash {name}', '', _text(command.description or ''), '')
    yield from ('```text', command.format_usage().strip(), '```', '')
    for group in command._action_groups:
        actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS and a.dest != 'help']
        if not actions:
            continue
        title = {'positional arguments': 'Arguments'}.get(group.title or '', (group.title or '').capitalize())
        yield from (f'**{title}**', '')
        if group.description:
            yield from (_text(group.description), '')
        yield from _table(actions)
        yield ''
    if command.epilog:
        yield from (_text(command.epilog), '')


def _table(actions: list[argparse.Action]) -> Iterator[str]:
    yield from ('| name | means |', '|---|---|')
    for action in actions:
        needed = '; **needed**' if action.required and action.option_strings else ''
        yield f'| {_name(action)} | {_cell(_help(action))}{_choices(action)}{needed} |'


def _name(action: argparse.Action) -> str:
    value = _value(action)
    if not action.option_strings:
        return f'`{value}`'
    names = ', '.join(action.option_strings)
    return f'`{names}{" " if value else ""}{value}`'.replace('|', r'\|')


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ''
    if action.metavar is not None:
        name = action.metavar if isinstance(action.metavar, str) else ' '.join(action.metavar)
    else:
        name = action.dest.upper() if action.option_strings else action.dest
    return f'{name}...' if action.nargs in ('+', '*') else name


def _help(action: argparse.Action) -> str:
    return (action.help or '') % {**vars(action), 'prog': 'grainhash'}


def _choices(action: argparse.Action) -> str:
    return f'; one of {", ".join(f"`{c}`" for c in action.choices)}.' if action.choices else ''


def _text(text: str) -> str:
    """Plain text as Markdown: names like <id>, _ and * stay as they are, options become code."""
    return _as_code(re.sub(r'([<>*_])', r'\\\1', ' '.join(text.split())))


def _cell(text: str) -> str:
    return _text(text).replace('|', r'\|')


def _as_code(text: str) -> str:
    text = re.sub(r'(?<![\w`-])(--[a-z][a-z-]*[a-z])', r'`\1`', text)
    return re.sub(r'(?<![\w`.-])(grainhash [a-z]+)(?=[ ,.;)]|$)', r'`\1`', text)
