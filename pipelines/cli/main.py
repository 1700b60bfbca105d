"""The command line: `grainhash train | features | ... | plan | build | query | inspect | versions | ... | demo`.

Parse, call one function, tell. Commands import what they need when they run, so that `--help`, `inspect` and those
about versions load neither Beam nor TensorFlow.
Exit codes: 0 done, 1 failed, 2 bad input or options, 3 built but not good enough to be served, 130 interrupted.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from hashing_model.errors import BuildError, InputError, exit_code
from pipelines.cli import config
from pipelines.cli.arguments import command_parser, index_as_option, make_parser
from pipelines.cli.logs import set_up_logging
from pipelines.cli.options import COMMANDS
from pipelines.cli.parser import nearest
from pipelines.requests import UnknownOptionError


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end.

    No plain KeyboardInterrupt: of one raised below `exec` of a text, as libraries do when they are imported, python
    remembers that it was never caught, and ends by the signal whatever the exit code. And it has a message, so Beam
    passes it on as it is.
    """


def _interrupt(*_: Any) -> None:
    raise Interrupted('interrupted')


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    command = command_parser(parser, given[0]) if given else None
    verbose = '--verbose' in given
    try:
        if command:
            from_file = config.read(given, command, COMMANDS[given[0]].beam)
            given = [given[0], *from_file, *index_as_option(given[1:], command)]
        args, rest = parser.parse_known_args(given)
        os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
        set_up_logging(verbose)
        _heed_signals()
        about = COMMANDS[args.command]
        if rest and not about.beam:
            raise UnknownOptionError(rest[0])
        if args.print_config and command:
            print(config.write(args, rest, command))
            return 0
        getattr(importlib.import_module(f'pipelines.cli.{about.module}'), args.command)(args, rest)
    except UnknownOptionError as e:
        meant = nearest(e.given.partition('=')[0], command.options) if command else ''
        return _fail(f'{e}{meant}', exit_code(e), verbose)
    except (InputError, BuildError, OSError) as e:
        return _fail(e, exit_code(e), verbose)
    except KeyboardInterrupt as e:
        return _fail('interrupted', exit_code(e), False)
    except Exception as e:
        return _fail(f'{type(e).__name__}: {_last_line(e)} (--verbose shows where)', exit_code(e), verbose)
    return 0


def _heed_signals() -> None:
    """Schedulers stop jobs by SIGTERM: clean up as for Ctrl-C."""
    if threading.current_thread() is threading.main_thread():
        for asked in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(asked) is not signal.SIG_IGN:
                signal.signal(asked, _interrupt)


def _last_line(error: Exception) -> str:
    """What happened, of an error whose message may be a remote worker's whole traceback."""
    return str(error).strip().rpartition('\n')[2]


def _fail(error: BaseException | str, code: int, verbose: bool) -> int:
    if verbose:
        logging.exception('traceback')
    sys.stderr.write(f'grainhash: error: {" ".join(str(error).split())}\n')
    return code


if __name__ == '__main__':
    sys.exit(main())
