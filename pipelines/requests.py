"""What the functions of all commands share: requests that are checked when they are made, reports that tell themselves.

Every command is one function: it takes a frozen request, and gives a report with the figures that the command prints.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hashing_model.codes.spec import CodeSpec, parse_pairs
from hashing_model.errors import InputError

Tell = Callable[[str], None]  # hears a line about what goes on, before there is a report
Paths = str | os.PathLike | Sequence[str | os.PathLike]
STAGED = 'the job is staged; the work is done when someone starts it, as Dataflow does for a template'


@dataclasses.dataclass(frozen=True)
class Report:
    """What a command found or did; `print(report)` shows what the command prints."""

    def lines(self) -> list[str]:
        """For people, the most important last."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values for strict JSON."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def __str__(self) -> str:
        return '\n'.join(self.lines())


def _plain(value: Any) -> Any:
    if isinstance(value, CodeSpec):
        return {segment.name: segment.bits for segment in value.segments}
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def paths_of(given: Paths) -> tuple[str, ...]:
    """One path or pattern, or several, as a tuple of strings.

    >>> paths_of('photos/')
    ('photos/',)
    """
    several = [given] if isinstance(given, (str, os.PathLike)) else given
    return tuple(os.fspath(path) for path in several)


def set_fields(request: Any, **values: Any) -> None:
    """Set fields of a frozen request while it is being made, to what was given in another form."""
    for name, value in values.items():
        object.__setattr__(request, name, value)


def check_one_of(**given: Any) -> str:
    """The name of the one value that is given, that is neither None nor an empty tuple.

    Raises:
        InputError: none is given, or several.
    """
    names = [name for name, value in given.items() if value not in (None, ())]
    if not names:
        raise InputError(f'one of {_options(given)} is needed')
    if len(names) > 1:
        raise InputError(f'only one of {_options(names)} can be given')
    return names[0]


def refuse(request: Any, names: Iterable[str], why: str) -> None:
    """Refuse fields of a request that were given though they mean nothing there.

    Raises:
        InputError: one of them was.
    """
    for name in names:
        if getattr(request, name):
            raise InputError(f'{option(name)} {why}')


def option(name: str) -> str:
    """How the command line writes the name of a field.

    >>> option('max_images')
    '--max-images'
    """
    return f'--{name.replace("_", "-")}'


def weights_of(profile: str | Mapping[str, int] | None) -> dict[str, int] | None:
    """The weight of each segment that a profile names; None for all alike.

    >>> weights_of('coarse=1,fine=2')
    {'coarse': 1, 'fine': 2}

    Raises:
        InputError: a text that is not `NAME=INTEGER,...`.
    """
    if isinstance(profile, str):
        return parse_pairs(profile, '--profile')
    return None if profile is None else dict(profile)


def spec_of(segments: str | CodeSpec | None) -> CodeSpec:
    """The code spec that is meant: one that is given, or as `NAME=BITS,...`; the default one for None.

    Raises:
        InputError: a text that is no code spec.
    """
    if isinstance(segments, CodeSpec):
        return segments
    return CodeSpec.parse(segments) if segments else CodeSpec.default()


class UnknownOptionError(InputError):
    """An option that nobody knows; the command line adds the nearest that it knows."""

    def __init__(self, given: str, why: str = ''):
        super().__init__(f'unknown option {given}' + (f': {why}' if why else ''))
        self.given = given


def _options(names: Iterable[str]) -> str:
    *others, last = map(option, names)
    return f'{", ".join(others)} and {last}' if others else last
