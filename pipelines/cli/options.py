"""The options of each command; what they mean is the commands' business."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pipelines.cli.parser import Parser, image_count, number, number_or_all

BEAM = 'Options of Apache Beam pass through: --runner, --direct_num_workers, --project, ...'
INDEX_HELP = 'folder of the index; local or gs://; may also stand first, without --index'
PATTERN_HELP = 'image shards (.tar, .tar.gz, .tfrecord, .parquet), image files or folders; globs and gs:// are fine'
SEGMENTS_HELP = 'bits per segment (default: coarse=32,fine=32,look=64)'
PROFILE_HELP = 'weight per segment, 0 if left out (default: 1 each)'


def _index(parser: Parser) -> None:
    parser.add_argument('--index', required=True, metavar='DIR', help=INDEX_HELP)


def _reading(parser: Parser) -> None:
    group = parser.add_argument_group('reading images')
    group.add_argument('--image-field', metavar='NAME', help='column, feature or suffix that holds the image bytes')
    group.add_argument('--id-field', metavar='NAME', help='column, feature or json key that holds the image id')
    group.add_argument('--caption-field', metavar='NAME', help='column, feature or json key that holds the caption')
    group.add_argument(
        '--labels', metavar='NAME,...', help='columns, features or json keys of the labels, coarse first'
    )
    group.add_argument('--labels-from', choices=['folders'], help='take the names of sub-folders as labels')


def _train(parser: Parser) -> None:
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
    parser.add_argument(
        '--max-images', type=number, default=10_000, metavar='N', help='fit on at most N (default: 10,000)'
    )
    parser.add_argument('--seed', type=number, default=0, metavar='N', help='of every random choice (default: 0)')
    group = parser.add_argument_group('training')
    group.add_argument('--epochs', type=number, metavar='N', help='most epochs of ortho, csq or greedy (default: 60)')
    group.add_argument('--learning-rate', type=float, metavar='R', help='of what gradients train (default: 0.001)')
    group.add_argument('--views', type=number, metavar='N', help='augmented views per image without label (default: 3)')
    group.add_argument('--balance', type=float, metavar='W', help='weight of a loss that evens out bits (default: 0)')
    group.add_argument('--decorrelation', type=float, metavar='W', help='weight of a loss that parts bits (default: 0)')
    group.add_argument(
        '--finetune-blocks',
        type=number,
        metavar='N',
        help='train the last N blocks of the backbone too, with augmented images; slow without a GPU, and goes on '
        'after a kill if started again (default: 0)',
    )
    group.add_argument('--finetune-epochs', type=number, metavar='N', help='epochs of that (default: 30)')
    group.add_argument('--tensorboard', metavar='DIR', help='folder for TensorBoard logs')
    _reading(parser)


def _describing(parser: Parser) -> None:
    parser.add_argument('--segments', metavar='NAME=BITS,...', help=SEGMENTS_HELP)
    parser.add_argument('--input-size', type=number, metavar='PX', help='side of the square in pixels (default: 224)')
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


def _features(parser: Parser) -> None:
    parser.add_argument('--images', nargs='+', required=True, metavar='PATTERN', help=PATTERN_HELP)
    parser.add_argument(
        '--output', required=True, metavar='DIR', help='folder of the features; what is there already is not made again'
    )
    _describing(parser)
    parser.add_argument(
        '--views',
        type=number,
        default=3,
        metavar='N',
        help='augmented views per image, for segments that --labels does not name (default: 3)',
    )
    parser.add_argument('--seed', type=number, default=0, metavar='N', help='of the views (default: 0)')
    _reading(parser)


def _calibrate(parser: Parser) -> None:
    parser.add_argument('--model', required=True, metavar='DIR', help='the model; it stays as it is')
    parser.add_argument(
        '--images', nargs='+', required=True, metavar='PATTERN', help=f'the catalogue to be indexed: {PATTERN_HELP}'
    )
    parser.add_argument('--output', required=True, metavar='DIR', help='folder to save the calibrated model in')
    parser.add_argument(
        '--segments', metavar='NAME,...', help='whose thresholds to move (default: those not learned from labels)'
    )
    _reading(parser)


def _evaluate(parser: Parser) -> None:
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
        '--max-images', type=number, metavar='N', help='draw at most N images for the database (default: 100,000)'
    )
    parser.add_argument(
        '--max-queries', type=number, metavar='N', help='draw at most N queries (default: 1,000, or all of --queries)'
    )
    parser.add_argument('--seed', type=number, default=0, metavar='N', help='of every random choice (default: 0)')
    parser.add_argument('--split', metavar='FILE', help='take the images that a split.json lists, instead of drawing')
    _reading(parser)


def _plan(parser: Parser) -> None:
    parser.add_argument(
        '--images',
        nargs='+',
        required=True,
        type=image_count,
        metavar='N',
        help='how many images, also as 10M or 1B; a column for each',
    )
    spec = parser.add_mutually_exclusive_group()
    spec.add_argument('--segments', metavar='NAME=BITS,...', help=SEGMENTS_HELP)
    spec.add_argument('--bits', type=number, metavar='B', help='bits of a code of one segment, instead of --segments')
    parser.add_argument('--codes', action='store_true', help='plan a build from codes: no image is encoded')
    parser.add_argument(
        '--unit-rows',
        type=number,
        metavar='N',
        help='images per shard, or per work unit of large shards (default: 10,000; of --codes 2,000,000)',
    )
    parser.add_argument(
        '--partition-rows', type=number, default=2_000_000, metavar='N', help='as of build (default: 2,000,000)'
    )
    parser.add_argument(
        '--images-per-core-second',
        type=float,
        metavar='R',
        help='what one core encodes, which python -m benchmarks.build measures (default: 37, at 224 pixels)',
    )
    parser.add_argument('--workers', type=number, metavar='N', help='tell the hours that so many cores take')
    parser.add_argument(
        '--core-hour-price', type=float, metavar='P', help='of a core with its memory, in your currency: tell money'
    )


def _build(parser: Parser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--images', nargs='+', metavar='PATTERN', help=PATTERN_HELP)
    source.add_argument('--codes', nargs='+', metavar='PATTERN', help='Parquet files with image_id and code')
    parser.add_argument('--model', metavar='DIR', help='the model that encodes the images; needed with --images')
    _index(parser)
    parser.add_argument(
        '--segments', metavar='NAME=BITS,...', help='bits per segment of --codes (default: one segment)'
    )
    parser.add_argument(
        '--full',
        action='store_true',
        help='make everything anew; else what did not change since the served version is taken over from it',
    )
    parser.add_argument(
        '--partition-rows',
        type=number,
        default=2_000_000,
        metavar='N',
        help='aim for N rows per file (default: 2,000,000)',
    )
    parser.add_argument(
        '--keep',
        type=number,
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


def _gate(parser: Parser) -> None:
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


def _query(parser: Parser) -> None:
    _index(parser)
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
        '--k',
        type=number_or_all,
        default=10,
        metavar='N',
        help='answers per query, or "all" within --radius (default: 10)',
    )
    parser.add_argument('--radius', type=number, metavar='R', help='largest distance of an answer (default: any)')
    parser.add_argument('--profile', metavar='NAME=WEIGHT,...', help=PROFILE_HELP)
    parser.add_argument('--output', required=True, metavar='FILE', help='answers: .parquet or .jsonl')
    parser.add_argument('--explain', action='store_true', help='show the plan, and what was read of each table')
    _reading(parser)


def _duplicates(parser: Parser) -> None:
    _index(parser)
    parser.add_argument(
        '--radius', type=number, required=True, metavar='R', help='largest distance of two images that are near'
    )
    parser.add_argument('--profile', metavar='NAME=WEIGHT,...', help=PROFILE_HELP)
    parser.add_argument(
        '--output', required=True, metavar='FILE', help='a row per image that is in a group: .parquet or .jsonl'
    )
    parser.add_argument('--explain', action='store_true', help='show what was read')


def _inspect(parser: Parser) -> None:
    _index(parser)
    parser.add_argument('--version', metavar='ID', help='show this version, not the served one')


def _versions(parser: Parser) -> None:
    _index(parser)


def _promote(parser: Parser) -> None:
    _index(parser)
    parser.add_argument('version', metavar='VERSION', help='its id, as grainhash versions lists it')


def _rollback(parser: Parser) -> None:
    _index(parser)


def _prune(parser: Parser) -> None:
    _index(parser)
    parser.add_argument(
        '--keep',
        type=number,
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


def _verify(parser: Parser) -> None:
    _index(parser)
    parser.add_argument('--version', metavar='ID', help='check this version, not the served one')


def _demo(parser: Parser) -> None:
    parser.add_argument(
        '--output', default='demo-out', metavar='DIR', help='folder for the results (default: demo-out)'
    )
    parser.add_argument('--catalogue', metavar='DIR', help='folder of the shards (default: the embedded catalogue)')


class Command(NamedTuple):
    """What the parser, and `main`, know of a command."""

    help: str
    add: Callable[[Parser], None]
    module: str  # of this folder; it has a function that is named like the command
    beam: bool = False  # whether options that are none of ours go to Beam
    epilog: str | None = None


COMMANDS = {
    'train': Command('Fit a hash model on images, or on features made before.', _train, 'models'),
    'features': Command(
        'Make the features of images and keep them, so that train reads no images.', _features, 'models', True, BEAM
    ),
    'calibrate': Command(
        'Fit the thresholds of a model to a catalogue, so that its bits are balanced there.',
        _calibrate,
        'models',
        True,
        BEAM,
    ),
    'evaluate': Command('Measure how good codes are, before or after an index is built.', _evaluate, 'evaluate'),
    'plan': Command(
        'Reckon what an index of so many images takes to build, keep and ask, before it is built.',
        _plan,
        'plan',
        epilog='Sizes are of evenly spread codes. See deploy/SCALING.md for where the figures come from.',
    ),
    'build': Command('Build an index from images, or from codes made elsewhere.', _build, 'build', True, BEAM),
    'query': Command(
        'Find the exact nearest images of query images, texts, ids or codes.', _query, 'query', True, BEAM
    ),
    'duplicates': Command(
        'Group the images of an index that are near-duplicates of each other, and say which to keep.',
        _duplicates,
        'query',
        True,
        f'In a group, each image is within the radius of another one. {BEAM}',
    ),
    'inspect': Command('Show what an index holds.', _inspect, 'versions'),
    'versions': Command(
        'List the versions of an index: which is served, which are not finished.', _versions, 'versions'
    ),
    'promote': Command('Make a finished version of an index the served one.', _promote, 'versions'),
    'rollback': Command('Serve the version of an index that is next older than the served one.', _rollback, 'versions'),
    'prune': Command(
        'Remove old versions of an index, and what builds that died have left.',
        _prune,
        'versions',
        epilog='A reader that is at work on a removed version fails: keep as many as may be in use.',
    ),
    'verify': Command(
        'Check every file of a version against its manifest.',
        _verify,
        'versions',
        epilog='Prints a line for everything that is wrong. Exit code 0 if nothing is, 1 if something is.',
    ),
    'demo': Command('Fit, build and query on the embedded catalogue of emoji, and write a gallery.', _demo, 'demo'),
}
