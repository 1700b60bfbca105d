"""A parser that helps: it says what was probably meant, and reads numbers as people write them."""

from __future__ import annotations

import argparse
import decimal
import difflib
import re
from collections.abc import Iterable
from typing import NoReturn

MOST_IMAGES = 10**12  # of a plan


class OptionsFormatter(argparse.HelpFormatter):
    """Writes `PATTERN...` where argparse has `PATTERN [PATTERN ...]`."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs != argparse.ONE_OR_MORE:
            return super()._format_args(action, default_metavar)
        return f'{action.metavar or default_metavar}...'


class Parser(argparse.ArgumentParser):
    """Says what was probably meant, when a command or a choice is unknown."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and what is wrong, and exit with 2."""
        found = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        meant = nearest(found[1], re.findall(r'[\w-]+', found[2])) if found else ''
        super().error(message + meant)

    @property
    def options(self) -> dict[str, argparse.Action]:
        """Its options by name, `--help` and all."""
        return {name: action for action in self._actions for name in action.option_strings}


def nearest(given: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the nearest name, or nothing if none is near.

    >>> nearest('indx', ['index', 'images'])
    '; did you mean index?'
    """
    found = difflib.get_close_matches(given, list(known), 1)
    return f'; did you mean {found[0]}?' if found else ''


def number(text: str) -> int:
    """A whole number as people write it.

    >>> [number(text) for text in ('10000', '10,000', '10_000', '10k', '1.5M', '-1')]
    [10000, 10000, 10000, 10000, 1500000, -1]
    """
    found = re.fullmatch(r'(-?[0-9][0-9,_]*(?:\.[0-9]+)?)([kmb]?)', text, re.IGNORECASE)
    factor = {'': 1, 'k': 10**3, 'm': 10**6, 'b': 10**9}
    value = decimal.Decimal(re.sub('[,_]', '', found[1])) * factor[found[2].lower()] if found else None
    if value is None or value != int(value):
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number, such as 500000, 500,000, 1.5M or 2B')
    return int(value)


def image_count(text: str) -> int:
    """As `number`, for as many images as plans are made for."""
    if (value := number(text)) > MOST_IMAGES:
        raise argparse.ArgumentTypeError(f'{text!r} is more than 1000B images')
    return value


def number_or_all(text: str) -> int | None:
    """As `number`; None for `all`."""
    if text == 'all':
        return None
    try:
        return number(text)
    except argparse.ArgumentTypeError as e:
        raise argparse.ArgumentTypeError(f'{text!r} is neither a number nor "all"') from e
