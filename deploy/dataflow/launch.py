"""Starts a job inside Dataflow's flex template launcher: template parameters become a grainhash command line.

The launcher runs this file with every parameter as `--name=value`, and with options of Beam: those that tell Beam to
stage the job instead of running it, too. It must end without waiting for the job, and so it does. Parameters are named
as in metadata-build.json and metadata-query.json; a query is what has an `output`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from pipelines.cli.arguments import make_parser
from pipelines.cli.main import main


def command_line(parameters: Sequence[str]) -> list[str]:
    """The grainhash command of `--name=value` parameters; what is not grainhash's goes to Beam as it is.

    Several patterns or texts are separated by commas. An empty value is an option left out, as web forms send it.
    `labels` are grainhash's, those of images, but as JSON they are Beam's: the launcher tells so the labels of the job.

    >>> command_line(['--index=gs://b/i', '--images=gs://b/1.tar,gs://b/2.tar', '--id_field=key', '--region=us-east1'])
    ['build', '--index=gs://b/i', '--images', 'gs://b/1.tar', 'gs://b/2.tar', '--id-field=key', '--region=us-east1']
    >>> command_line(['--index=gs://b/i', '--ids=gs://b/a', '--output=gs://b/o.jsonl', '--explain=true', '--radius='])
    ['query', '--index=gs://b/i', '--ids=gs://b/a', '--output=gs://b/o.jsonl', '--explain']
    >>> command_line(['--index=gs://b/i', '--text=red shoes, -x', '--output=gs://b/o.jsonl'])
    ['query', '--index=gs://b/i', '--text=red shoes', '--text=-x', '--output=gs://b/o.jsonl']
    >>> command_line(['--index=gs://b/i', '--labels=coarse,fine', '--labels={"team": "search"}'])
    ['build', '--index=gs://b/i', '--labels=coarse,fine', '--label={"team": "search"}']
    """
    command = 'query' if any(p.startswith('--output=') for p in parameters) else 'build'
    known = options_of(command)
    return [command, *(word for p in parameters for word in _words(p, known))]


def options_of(command: str) -> dict[str, argparse.Action]:
    """The options of a grainhash command by the names that template parameters have: `id_field` is `--id-field`."""
    (commands,) = (a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {a.dest: a for a in commands.choices[command]._actions if a.dest != 'help'}


def _words(parameter: str, known: dict[str, argparse.Action]) -> Iterator[str]:
    name, separator, value = parameter.removeprefix('--').partition('=')
    if separator and not value:
        return
    if name == 'labels' and value.startswith('{'):
        yield f'--label={value}'
    elif name not in known:
        yield parameter
    elif isinstance(known[name], argparse._ExtendAction):
        yield from (f'{known[name].option_strings[-1]}={one.strip()}' for one in value.split(','))
    elif known[name].nargs == '+':
        yield from (known[name].option_strings[-1], *value.split(','))
    elif known[name].nargs != 0:
        yield f'{known[name].option_strings[-1]}={value}'
    elif value.lower() == 'true':
        yield known[name].option_strings[-1]


if __name__ == '__main__':
    sys.exit(main(command_line(sys.argv[1:])))
