"""The command line: `grainhash train | features | ... | plan | build | query | inspect | versions | ... | demo`.

Arguments and messages only. Commands import what they need when they run, so that `--help`, `inspect` and those
about versions load neither Beam nor TensorFlow.
Exit codes: 0 done, 1 failed, 2 bad input or options, 3 built but not good enough to be served.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from hashing_model.errors import BuildError, InputError, exit_code

DESCRIPTION = """\
Build and query indexes of images: each image becomes a binary code with named segments
(coarse: same kind of thing, fine: same thing, look: same appearance), codes are stored as
Parquet tables partitioned by hash prefix, and queries get their exact nearest neighbours.
"""
PROGRESS_SECONDS = 15
STAGES = 'pipelines.build.stats'  # logs a line per stage
BEAM_COMMANDS = ('features', 'calibrate', 'build', 'query', 'duplicates')
MODULES = {  # module of this folder -> the commands it has; `query` has the others
    'build': ('build',),
    'models': ('train', 'features', 'calibrate', 'evaluate'),
    'versions': ('versions', 'promote', 'rollback', 'prune', 'verify'),
}
MOST_IMAGES = 10**12
BEAM = 'Options of Apache Beam pass through: --runner, --direct_num_workers, --project, ...'


class _CommandsFormatter(argparse.RawDescriptionHelpFormatter):
    """Has room for the longest command: argparse forgets that commands are indented when it measures them."""

    def __init__(self, prog: str):
        super().__init__(prog, indent_increment=1)
        self._action_max_length = max(map(len, HELP)) + 2


class _OptionsFormatter(argparse.HelpFormatter):
    """Writes `PATTERN...` where argparse has `PATTERN [PATTERN ...]`."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs != argparse.ONE_OR_MORE:
            return super()._format_args(action, default_metavar)
        return f'{action.metavar or default_metavar}...'


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('--verbose', action='store_true', help='log every step; show the traceback of an error')
    parser = argparse.ArgumentParser(
        'grainhash', description=DESCRIPTION, formatter_class=_CommandsFormatter, allow_abbrev=False
    )
    parser.add_argument('--version', action='version', version=f'grainhash {importlib.metadata.version("grainhash")}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    added = {
        'train': _train,
        'features': _features,
        'calibrate': _calibrate,
        'evaluate': _evaluate,
        'plan': _plan,
        'build': _build,
        'query': _query,
        'duplicates': _duplicates,
        'inspect': _inspect,
        'versions': _versions,
        'promote': _promote,
        'rollback': _rollback,
        'prune': _prune,
        'verify': _verify,
        'demo': _demo,
    }
    for name, add in added.items():
        help_text, epilog = HELP[name]
        command = commands.add_parser(
            name,
            parents=[common],
            help=help_text,
            description=help_text,
            epilog=epilog,
            formatter_class=_OptionsFormatter,
            allow_abbrev=False,
        )
        add(command)
    return parser


HELP = {
    'train': ('Fit a hash model on images, or on features made before.', None),
    'features': ('Make the features of images and keep them, so that train reads no images.', BEAM),
    'calibrate': ('Fit the thresholds of a model to a catalogue, so that its bits are balanced there.', BEAM),
    'evaluate': ('Measure how good codes are, before or after an index is built.', None),
    'plan': (
        'Reckon what an index of so many images takes to build, keep and ask, before it is built.',
        'Sizes are of evenly spread codes. See deploy/SCALING.md for where the figures come from.',
    ),
    'build': ('Build an index from images, or from codes made elsewhere.', BEAM),
    'query': ('Find the exact nearest images of query images, texts, ids or codes.', BEAM),
    'duplicates': (
        'Group the images of an index that are near-duplicates of each other, and say which to keep.',
        f'In a group, each image is within the radius of another one. {BEAM}',
    ),
    'inspect': ('Show what an index holds.', None),
    'versions': ('List the versions of an index: which is served, which are not finished.', None),
    'promote': ('Make a finished version of an index the served one.', None),
    'rollback': ('Serve the version of an index that is next older than the served one.', None),
    'prune': (
        'Remove old versions of an index, and what builds that died have left.',
        'A reader that is at work on a removed version fails: keep as many as may be in use.',
    ),
    'verify': (
        'Check every file of a version against its manifest.',
        'Prints a line for everything that is wrong. Exit code 0 if nothing is, 1 if something is.',
    ),
    'demo': ('Fit, build and query on the embedded catalogue of emoji, and write a gallery.', None),
}
INDEX_HELP = 'folder of the index; local or gs://'
PATTERN_HELP = 'image shards (.tar, .tar.gz, .tfrecord, .parquet), image files or folders; globs and gs:// are fine'


def _reading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('reading images')
    group.add_argument('--image-field', metavar='NAME', help='column, feature or suffix that holds the image bytes')
    group.add_argument('--id-field', metavar='NAME', help='column, feature or json key that holds the image id')
    group.add_argument('--caption-field', metavar='NAME', help='column, feature or json key that holds the caption')
    group.add_argument(
        '--labels', metavar='NAME,...', help='columns, features or json keys of the labels, coarse first'
    )
    group.add_argument('--labels-from', choices=['folders'], help='take the names of sub-folders as labels')


def _train(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--images', nargs='+', metavar='PATTERN', help=PATTERN_HELP)
    source.add_argument(
        '--features',
        metavar='DIR',
        help='what grainhash features made; no image is read, size and backbone are its own',
    )
    parser.add_argument('--model', required=True, metavar='DIR', help='folder to save the model in')
    parser.add_argument(
        '--method',
        choices=['ridge', 'ortho', 'csq', 'greedy', 'contrastive', 'lda', 'itq', 'pca-rr', 'random'],
        help='how the bits are made; ridge, ortho, csq and greedy learn from labels at the levels that segments are '
        'named after (default: ridge for segments with labels, ortho to fine-tune; without labels, lda for look and '
        'contrastive for others)',
    )
    _describing(parser)
    parser.add_argument('--max-images', type=int, default=10_000, metavar='N', help='fit on at most N (default: 10000)')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='of every random choice (default: 0)')
    group = parser.add_argument_group('training')
    group.add_argument('--epochs', type=int, metavar='N', help='most epochs of ortho, csq or greedy (default: 60)')
    group.add_argument('--learning-rate', type=float, metavar='R', help='of what gradients train (default: 0.001)')
    group.add_argument('--views', type=int, metavar='N', help='augmented views per image without label (default: 3)')
    group.add_argument('--balance', type=float, metavar='W', help='weight of a loss that evens out bits (default: 0)')
    group.add_argument('--decorrelation', type=float, metavar='W', help='weight of a loss that parts bits (default: 0)')
    group.add_argument(
        '--finetune-blocks',
        type=int,
        metavar='N',
        help='train the last N blocks of the backbone too, with augmented images; slow without a GPU, and goes on '
        'after a kill if started again (default: 0)',
    )
    group.add_argument('--finetune-epochs', type=int, metavar='N', help='epochs of that (default: 30)')
    group.add_argument('--tensorboard', metavar='DIR', help='folder for TensorBoard logs')
    _reading(parser)


def _describing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--segments', metavar='NAME=BITS,...', help='bits per segment (default: coarse=32,fine=32,look=64)'
    )
    parser.add_argument('--input-size', type=int, metavar='PX', help='side of the square in pixels (default: 224)')
    parser.add_argument(
        '--resize',
        choices=['squash', 'crop', 'pad'],
        help='how a picture becomes square: whole and squashed, its centre, or with white borders (default: squash)',
    )
    parser.add_argument(
        '--backbone',
        metavar='NAME',
        help='efficientnet_lite0 (default, no download), a model of keras.applications, or a .keras file',
    )


def _features(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--images', nargs='+', required=True, metavar='PATTERN', help=PATTERN_HELP)
    parser.add_argument(
        '--output', required=True, metavar='DIR', help='folder of the features; what is there already is not made again'
    )
    _describing(parser)
    parser.add_argument(
        '--views',
        type=int,
        default=3,
        metavar='N',
        help='augmented views per image, for segments that --labels does not name (default: 3)',
    )
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='of the views (default: 0)')
    _reading(parser)


def _calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--model', required=True, metavar='DIR', help='the model; it stays as it is')
    parser.add_argument(
        '--images', nargs='+', required=True, metavar='PATTERN', help=f'the catalogue to be indexed: {PATTERN_HELP}'
    )
    parser.add_argument('--output', required=True, metavar='DIR', help='folder to save the calibrated model in')
    parser.add_argument(
        '--segments', metavar='NAME,...', help='whose thresholds to move (default: those not learned from labels)'
    )
    _reading(parser)


def _evaluate(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--images', nargs='+', metavar='PATTERN', help=f'the database: {PATTERN_HELP}')
    source.add_argument('--index', metavar='DIR', help='the database: an index, with the codes and labels inside')
    parser.add_argument('--model', metavar='DIR', help='the model that encodes the images; needed with --images')
    parser.add_argument('--version', metavar='ID', help='the version of the index, if not the served one')
    parser.add_argument(
        '--queries',
        nargs='+',
        metavar='PATTERN',
        help='images that ask; without them a sample of the database asks, each image without itself',
    )
    parser.add_argument(
        '--output', required=True, metavar='DIR', help='folder for evaluation.json, split.json and the plots'
    )
    parser.add_argument(
        '--profile',
        action='append',
        metavar='NAME=WEIGHT,...',
        help='a weight per segment, 0 if left out, to measure beside each segment and all; may be given again',
    )
    parser.add_argument(
        '--max-images', type=int, metavar='N', help='draw at most N images for the database (default: 100000)'
    )
    parser.add_argument(
        '--max-queries', type=int, metavar='N', help='draw at most N queries (default: 1000, or all of --queries)'
    )
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='of every random choice (default: 0)')
    parser.add_argument('--split', metavar='FILE', help='take the images that a split.json lists, instead of drawing')
    _reading(parser)


def _plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--images',
        nargs='+',
        required=True,
        type=_count,
        metavar='N',
        help='how many images, also as 10M or 1B; a column for each',
    )
    spec = parser.add_mutually_exclusive_group()
    spec.add_argument(
        '--segments', metavar='NAME=BITS,...', help='bits per segment (default: coarse=32,fine=32,look=64)'
    )
    spec.add_argument('--bits', type=int, metavar='B', help='bits of a code of one segment, instead of --segments')
    parser.add_argument('--codes', action='store_true', help='plan a build from codes: no image is encoded')
    parser.add_argument(
        '--unit-rows',
        type=_count,
        metavar='N',
        help='images per shard, or per work unit of large shards (default: 10000; of --codes 2000000)',
    )
    parser.add_argument(
        '--partition-rows', type=_count, default=2_000_000, metavar='N', help='as of build (default: 2000000)'
    )
    parser.add_argument(
        '--images-per-core-second',
        type=float,
        metavar='R',
        help='what one core encodes, which python -m benchmarks.build measures (default: 37, at 224 pixels)',
    )
    parser.add_argument('--workers', type=int, metavar='N', help='tell the hours that so many cores take')
    parser.add_argument(
        '--core-hour-price', type=float, metavar='P', help='of a core with its memory, in your currency: tell money'
    )


def _build(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--images', nargs='+', metavar='PATTERN', help=PATTERN_HELP)
    source.add_argument('--codes', nargs='+', metavar='PATTERN', help='Parquet files with image_id and code')
    parser.add_argument('--model', metavar='DIR', help='the model that encodes the images; needed with --images')
    parser.add_argument('--index', required=True, metavar='DIR', help=INDEX_HELP)
    parser.add_argument(
        '--segments', metavar='NAME=BITS,...', help='bits per segment of --codes (default: one segment)'
    )
    parser.add_argument(
        '--full',
        action='store_true',
        help='make everything anew; else what did not change since the served version is taken over from it',
    )
    parser.add_argument(
        '--partition-rows', type=int, default=2_000_000, metavar='N', help='aim for N rows per file (default: 2000000)'
    )
    parser.add_argument(
        '--keep',
        type=int,
        metavar='N',
        help='once the version is served, remove all but the N newest, as grainhash prune does (default: no version)',
    )
    parser.add_argument(
        '--metrics-file',
        metavar='FILE',
        help="write how the build ended, for Prometheus' node-exporter to pick up; written after a failure, too",
    )
    _reading(parser)
    _gate(parser)


def _gate(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        'gate',
        'A version that fails a check is kept, but not served, and the exit code is 3. Results are in quality.json. '
        'Shares are numbers from 0 to 1.',
    )
    group.add_argument(
        '--max-reject-rate', type=float, metavar='SHARE', help='of the records that may be rejected (default: 0.05)'
    )
    group.add_argument(
        '--max-fewer-rows',
        type=float,
        metavar='SHARE',
        help="of the served version's images that the new one may have fewer (default: 0.1)",
    )
    group.add_argument(
        '--max-equal-codes',
        type=float,
        metavar='SHARE',
        help='of the images that may have one and the same code (default: 0.5)',
    )
    group.add_argument(
        '--min-entropy',
        type=float,
        metavar='BITS',
        help='collision entropy that each segment must have; 0 if all images agree in it (default: 0.01)',
    )
    group.add_argument(
        '--max-map-loss',
        type=float,
        metavar='SHARE',
        help='how much mAP on labelled images may be below that of the served version (default: 0.02)',
    )
    group.add_argument('--no-gate', action='store_true', help='serve the version without these checks')


def _query(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--index', required=True, metavar='DIR', help=INDEX_HELP)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--images', nargs='+', metavar='PATTERN', help=f'query images: {PATTERN_HELP}')
    source.add_argument(
        '--text',
        nargs='+',
        action='extend',
        metavar='TEXT',
        help='queries in words of the captions and labels that the model has learned',
    )
    source.add_argument('--texts', metavar='FILE', help='text file with one such query per line')
    source.add_argument('--ids', metavar='FILE', help='text file with one image id of the index per line')
    source.add_argument('--codes', nargs='+', metavar='PATTERN', help='Parquet files with image_id and code')
    parser.add_argument('--model', metavar='DIR', help="refuse to run unless this is the index's own model")
    parser.add_argument(
        '--k', type=_k, default=10, metavar='N', help='answers per query, or "all" within --radius (default: 10)'
    )
    parser.add_argument('--radius', type=int, metavar='R', help='largest distance of an answer (default: any)')
    parser.add_argument(
        '--profile', metavar='NAME=WEIGHT,...', help='weight per segment, 0 if left out (default: 1 each)'
    )
    parser.add_argument('--output', required=True, metavar='FILE', help='answers: .parquet or .jsonl')
    parser.add_argument('--explain', action='store_true', help='show the plan, and what was read of each table')
    _reading(parser)


def _duplicates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--index', required=True, metavar='DIR', help=INDEX_HELP)
    parser.add_argument(
        '--radius', type=int, required=True, metavar='R', help='largest distance of two images that are near'
    )
    parser.add_argument(
        '--profile', metavar='NAME=WEIGHT,...', help='weight per segment, 0 if left out (default: 1 each)'
    )
    parser.add_argument(
        '--output', required=True, metavar='FILE', help='a row per image that is in a group: .parquet or .jsonl'
    )


def _inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('index', metavar='INDEX', help=INDEX_HELP)
    parser.add_argument('--version', metavar='ID', help='show this version, not the served one')
    parser.add_argument('--json', action='store_true', help='print JSON, for machines')


def _versions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('index', metavar='INDEX', help=INDEX_HELP)
    parser.add_argument('--json', action='store_true', help='print JSON, for machines')


def _promote(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('index', metavar='INDEX', help=INDEX_HELP)
    parser.add_argument('version', metavar='VERSION', help='its id, as grainhash versions lists it')


def _rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('index', metavar='INDEX', help=INDEX_HELP)


def _prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('index', metavar='INDEX', help=INDEX_HELP)
    parser.add_argument(
        '--keep',
        type=int,
        required=True,
        metavar='N',
        help='keep the N newest finished versions, as many that failed their gate, and the served one in any case',
    )
    parser.add_argument(
        '--older-than',
        type=float,
        default=24,
        metavar='HOURS',
        help='an unfinished build that wrote its last file before that is dead (default: 24)',
    )


def _verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('index', metavar='INDEX', help=INDEX_HELP)
    parser.add_argument('--version', metavar='ID', help='check this version, not the served one')


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--output', default='demo-out', metavar='DIR', help='folder for the results (default: demo-out)'
    )
    parser.add_argument('--catalogue', metavar='DIR', help="folder of the shards (default: the source tree's)")


def _count(text: str) -> int:
    found = re.fullmatch(r'([0-9][0-9,]*(?:\.[0-9]+)?)([kmb]?)', text, re.IGNORECASE)
    number = float(found[1].replace(',', '')) * {'': 1, 'k': 1e3, 'm': 1e6, 'b': 1e9}[found[2].lower()] if found else 0
    if not found or number > MOST_IMAGES or number != int(number):
        raise argparse.ArgumentTypeError(f'{text!r} is not a number up to 1000B, such as 500000, 1.5M or 2B')
    return int(number)


def _k(text: str) -> int | None:
    if text == 'all':
        return None
    try:
        return int(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f'{text!r} is neither a number nor "all"') from e


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
    args, rest = make_parser().parse_known_args(argv)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    set_up_logging(args.verbose)
    if threading.current_thread() is threading.main_thread():
        for asked in (signal.SIGINT, signal.SIGTERM):  # schedulers stop jobs by SIGTERM: clean up as for Ctrl-C
            if signal.getsignal(asked) is not signal.SIG_IGN:
                signal.signal(asked, _interrupt)
    try:
        if rest and args.command not in BEAM_COMMANDS:
            raise InputError(f'unknown option {rest[0]}')
        module = next((name for name, commands in MODULES.items() if args.command in commands), 'query')
        getattr(importlib.import_module(f'pipelines.cli.{module}'), args.command)(args, rest)
    except (InputError, BuildError, OSError) as e:
        return _fail(e, exit_code(e), args.verbose)
    except KeyboardInterrupt as e:
        return _fail('interrupted', exit_code(e), False)
    except Exception as e:
        return _fail(f'{type(e).__name__}: {_last_line(e)} (--verbose shows where)', exit_code(e), args.verbose)
    return 0


def set_up_logging(verbose: bool) -> None:
    """Warnings and a line of progress now and then, or every step.

    A worker's traceback reaches us with its exception, so Beam need not log it too.
    """
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter('%(name)s: %(message)s' if verbose else '%(message)s'))
        root.addHandler(handler)
        handler.filters = [] if verbose else [_NowAndThen(PROGRESS_SECONDS)]
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    logging.getLogger('pipelines').setLevel(logging.INFO)
    logging.getLogger('apache_beam').setLevel(logging.INFO if verbose else logging.CRITICAL)
    logging.getLogger('apache_beam.typehints').setLevel(logging.WARNING)


class _NowAndThen(logging.Filter):
    """Lets one INFO record pass in so many seconds, everything more serious, and what stages have done."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds
        self.last = time.monotonic()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record."""
        if record.levelno > logging.INFO:
            return True
        if record.name == STAGES:
            return True
        due = time.monotonic() - self.last >= self.seconds
        self.last = time.monotonic() if due else self.last
        return due


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
