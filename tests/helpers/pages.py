"""The pages as a test sees them: blocks of code with what is said of them, commands, links, headings."""

import dataclasses
import functools
import importlib.util
import posixpath
import re
import shlex

from tests.helpers.make_index import ROOT

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ('*.md', 'docs/**/*.md', 'deploy/**/*.md', 'examples/**/*.md')
    for path in ROOT.glob(pattern)
)
_MARK = re.compile(r'\s*<!-- (files|with|figures vary|not run|include|command line)(?:: (.*?))? -->$')
_FENCE = re.compile(r'( *)```(\w*)$')
_SHELL = re.compile(r'\s(?:[|&>]|2>)(?:\s|$).*')  # what the shell does with a command
_INLINE = re.compile(r'(?<!`)`([^`\n]+)`(?!`)')
_LINK = re.compile(r'!?\[[^\]]*\]\(([^)\s]+)\)')
_SLUG = re.compile(r'[^\w\s-]')


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """A block of code.

    Args:
        page, line: where it begins.
        language: of a fence; empty of an indented block.
        text: without the fence and its indentation.
        marks: comments before it -> what they say. `files`: what it needs; `with`: options that make it cheap;
            `figures vary` and `not run`: why.
    """

    page: str
    line: int
    language: str
    text: str
    marks: dict

    @property
    def name(self):
        return f'{self.page}:{self.line}'


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line that is shown, and the output below it."""

    block: Block
    text: str
    output: tuple

    @property
    def argv(self):
        """Its words, without what the shell does with them."""
        return shlex.split(_SHELL.sub('', self.text), comments=True)

    @property
    def name(self):
        return f'{self.block.name} {self.text[:60]}'


@functools.cache
def text_of(page):
    return (ROOT / page).read_text(encoding='utf-8')


@functools.cache
def blocks_of(page):
    """All blocks of a page: fences, and lines that four spaces indent after an empty line."""
    found, marks, fence, lines, indented = [], {}, None, [], None
    for number, line in enumerate([*text_of(page).splitlines(), ''], 1):
        if fence:
            if line.strip() == '```':
                found.append(Block(page, fence[0], fence[2], '\n'.join(lines), marks))
                fence, marks = None, {}
            else:
                lines.append(line[len(fence[1]) :])
            continue
        mark, opening = _MARK.match(line), _FENCE.match(line)
        if indented and not line.startswith('    ') and line.strip():
            found.append(Block(page, indented, '', '\n'.join(lines).rstrip(), {}))
            indented = None
        if mark:
            marks[mark[1]] = mark[2]
        elif opening:
            fence, lines, indented = (number, opening[1], opening[2]), [], None
        elif line.startswith('    ') and (indented or line.startswith(('    $ ', '    grainhash '))):
            if not indented:
                indented, lines = number, []
            lines.append(line[4:])
        elif indented:
            lines.append('')
        elif line.strip():
            marks = {}
    return tuple(found)


@functools.cache
def commands_of(block):
    """The commands of a block of console, or of lines that begin with `grainhash`."""
    found, lines = [], block.text.split('\n')
    prompt = '$ ' if block.language == 'console' or any(line.startswith('$ ') for line in lines) else ''
    at = 0
    while at < len(lines):
        line, at = lines[at], at + 1
        if not line.startswith(prompt or 'grainhash '):
            continue
        line = line[len(prompt) :]
        while line.endswith('\\') and at < len(lines):
            line, at = line[:-1] + lines[at].strip(), at + 1
        output = []
        while prompt and at < len(lines) and not lines[at].startswith(prompt):
            output.append(lines[at])
            at += 1
        found.append(Command(block, line, tuple(output)))
    return tuple(found)


def grainhash_commands(page):
    """Every command of grainhash that a block of the page shows."""
    shell = [block for block in blocks_of(page) if block.language in ('', 'console', 'bash', 'sh')]
    return [c for block in shell for c in commands_of(block) if c.text.startswith('grainhash ')]


def inline_commands(page):
    """What stands in single backquotes and begins with `grainhash`."""
    prose = re.sub(r'^( *)```.*?^\1```', '', text_of(page), flags=re.MULTILINE | re.DOTALL)
    return [text for text in _INLINE.findall(prose) if text.startswith('grainhash ')]


def links_of(page):
    """Relative links and pictures of a page, as (page or file, anchor) from the repository's root."""
    text = re.sub(r'^( *)```.*?^\1```', '', text_of(page), flags=re.MULTILINE | re.DOTALL)
    for target in _LINK.findall(_INLINE.sub('', text)):
        if re.match(r'[a-z]+:', target):
            continue
        path, _, anchor = target.partition('#')
        yield posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page, anchor


@functools.cache
def anchors_of(page):
    """The anchors of a page's headings, those of the text that it includes among them."""
    text, path = text_of(page), hooks().including().get(page.removeprefix('docs/'))
    if path:
        text += text_of(path)
    prose = re.sub(r'^( *)```.*?^\1```', '', text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r'^#+ (.*)$', prose, re.MULTILINE)
    return {re.sub(r'[\s-]+', '-', _SLUG.sub('', title.lower()).strip()) for title in titles}


@functools.cache
def hooks():
    """The module that `mkdocs build` calls."""
    spec = importlib.util.spec_from_file_location('docs_hooks', ROOT / 'docs' / 'hooks.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
