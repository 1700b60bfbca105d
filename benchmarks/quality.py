"""How good the codes are, beside the published figures: every method on one protocol, in one run.

    python -m benchmarks.quality --cifar DIR --work DIR
    python -m benchmarks.quality --cifar DIR --work DIR --only cifar-5k-finetuned

CIFAR-10 (`--cifar`): Parquet files `train-*.parquet` and `test-*.parquet` with `image_id`, `image` and `fine`. The
catalogue is the one in `examples`. Each experiment's figures, features and models stay in `--work`; what is there is
not done again, and an unfinished fine-tuning goes on from its last epoch. The images of a split are drawn once, by a
fixed seed, and their ids are in the figures as a hash; the seeds that vary are those of the training. Nothing is chosen
on images that ask. mAP is tie-aware and over the whole database.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from rich.console import Console
from rich.table import Table

from hashing_model.codes.bits import hamming
from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.evaluation.metrics import average_precision, hit_at
from hashing_model.evaluation.ranking import Ranking, rank
from hashing_model.features import FEATURES
from hashing_model.features.extractor import Extractor
from hashing_model.images.decode import Resizing, decode
from hashing_model.labels import LabelLevel
from hashing_model.model import HashModel
from hashing_model.networks.loop import Checkpoint, Progress, Training
from hashing_model.training.feature_set import FeatureSet, extract
from hashing_model.training.fit import fit, fit_features, view_seeds
from pipelines.inputs.options import ReadOptions
from pipelines.inputs.shards import list_units, read_unit
from pipelines.records import Record

CATALOGUE = Path(__file__).parents[1] / 'examples' / 'catalogue'
BACKBONE = 'efficientnet_lite0'
BITS = (16, 32, 64, 128)
SEEDS = (0, 1, 2)
SPLIT_SEED = 2026
FROZEN_SIZE = 160
CATALOGUE_SIZE = 224  # what grainhash train takes unless told otherwise
LOOK_SIZE = 96  # of CIFAR-10, whose pictures have 32
FOLDS = 5
EVERY_BLOCK = 99
KIND = ('top', 'high', 'mid')  # what tells kinds of things apart
FINETUNED = {  # images that ask and that train, epochs, side in px
    'cifar-5k-finetuned': (1_000, 5_000, 24, 192),
    'cifar-50k-finetuned': (10_000, 50_000, 5, 192),
}
LOOK = ('low', 'edges', 'texture', 'shape', 'color')
LOOK_BITS = (64, 96, 128)
LOOK_TRAINING, LOOK_QUERIES = 5_000, 1_000
PUBLISHED = {
    'LSH, AlexNet features': {16: 0.129, 32: 0.159, 64: 0.176},
    'ITQ, AlexNet features': {16: 0.218, 32: 0.231, 64: 0.249},
    'CSQ, AlexNet fine-tuned': {64: 0.790},
    'GreedyHash, AlexNet fine-tuned (48 bits)': {64: 0.817},
    'OrthoHash, AlexNet fine-tuned': {64: 0.824},
}
METHODS = ('random', 'pca-rr', 'itq', 'contrastive', 'greedy', 'csq', 'ortho', 'ridge')
CATALOGUE_ITEMS = (*(f'catalogue-{method}' for method in METHODS), 'catalogue-text')
Figures = dict[str, Any]
Rows = Mapping[str, NDArray[np.int64]]


class Pictures(NamedTuple):
    """Encoded pictures with their ids, labels and captions; `part` says which of a data set's parts each is in."""

    data: list[bytes]
    ids: list[str]
    labels: dict[str, list[list[str]]]
    part: NDArray[np.str_]
    captions: list[str | None]

    def pixels(self, resizing: Resizing, rows: NDArray | None = None) -> NDArray[np.uint8]:
        """Some of the pictures as a model's decoder makes them."""
        chosen = range(len(self.data)) if rows is None else rows
        return np.stack([decode(self.data[i], resizing).pixels for i in chosen])

    def level(self, name: str) -> LabelLevel:
        """The labels of all pictures at one level."""
        return LabelLevel.from_values(self.labels[name])


@functools.cache
def cifar(folder: Path) -> Pictures:
    """CIFAR-10: parts `train` and `test`."""
    data, ids, classes, part = [], [], [], []
    for path in sorted(folder.glob('*.parquet')):
        table = pq.read_table(path, columns=['image_id', 'image', 'fine'])
        data += [image['bytes'] if isinstance(image, dict) else image for image in table['image'].to_pylist()]
        ids += table['image_id'].to_pylist()
        classes += [[str(value)] for value in table['fine'].to_pylist()]
        part += [path.name.partition('-')[0]] * len(table)
    return Pictures(data, ids, {'fine': classes}, np.array(part), [None] * len(data))


@functools.cache
def catalogue() -> Pictures:
    """The emoji of `examples/catalogue`: parts `index` (two artists) and `query` (a third)."""
    records, part = [], []
    for name in ('index', 'query'):
        options = ReadOptions()
        for unit in list_units([str(CATALOGUE / f'{name}-*.tar.gz')], options):
            for item in read_unit(unit, options):
                if isinstance(item, Record):
                    records.append(item)
                    part.append(name)
    labels = {level: [list(r.labels[level]) for r in records] for level in ('coarse', 'fine', 'item')}
    data, ids, captions = ([getattr(r, name) for r in records] for name in ('data', 'image_id', 'caption'))
    return Pictures(data, ids, labels, np.array(part), captions)


def split(pictures: Pictures, queries: int, training: int) -> dict[str, NDArray[np.int64]]:
    """CIFAR-10: rows that ask (test images) and train, as many of each class; all that does not ask is the database.

    If every test image asks, the database is the training images: the 10,000 / 50,000 / 50,000 protocol.
    """
    rng = np.random.default_rng(SPLIT_SEED)
    classes = np.array([values[0] for values in pictures.labels['fine']])

    def draw(part: str, count: int) -> NDArray[np.int64]:
        of = [np.flatnonzero((classes == name) & (pictures.part == part)) for name in sorted(set(classes))]
        return np.sort(np.concatenate([rng.permutation(rows)[: count // len(of)] for rows in of]))

    asking, fitting = draw('test', queries), draw('train', training)
    return {'queries': asking, 'training': fitting, 'database': np.setdiff1d(np.arange(len(classes)), asking)}


def hashes(pictures: Pictures, rows: Rows) -> dict[str, str]:
    """SHA-256 over the sorted ids of each part of a split: who repeats a figure can see that it is the same split."""
    ids = {part: '\n'.join(sorted(pictures.ids[i] for i in numbers)) for part, numbers in rows.items()}
    return {part: hashlib.sha256(text.encode()).hexdigest() for part, text in ids.items()}


def features(
    work: Path,
    name: str,
    pixels: Callable[[], Sequence[Any]],
    size: int,
    view: int | None = None,
    groups: Sequence[str] = FEATURES,
) -> FeatureSet:
    """Feature groups of some pictures, from the work folder if they were made before."""
    path = work / f'{name}-{size}px{"" if view is None else f"-view{view}"}.npz'
    if not path.exists():
        extractor = Extractor(BACKBONE, size, groups)
        print(f'  features for {path.name}', flush=True)
        unfinished = path.with_suffix('.tmp.npz')
        np.savez(unfinished, **extract(pixels(), extractor, groups, say, view))
        unfinished.rename(path)
    with np.load(path) as file:
        return FeatureSet(dict(file))


def take(groups: Mapping[str, NDArray], rows: NDArray) -> dict[str, NDArray]:
    """Some rows of each feature group."""
    return {name: x[rows] for name, x in groups.items()}


def fitted_model(training_set: FeatureSet, training: Training, spec: CodeSpec, size: int) -> HashModel:
    """A model of heads alone."""
    return fit_features(training_set, Extractor(BACKBONE, size, FEATURES), Resizing(size), spec, training)[0]


def fitted(
    training_set: FeatureSet, training: Training, spec: CodeSpec, size: int
) -> Callable[[Mapping[str, NDArray]], NDArray[np.uint8]]:
    """Fit heads, and return what makes codes of feature groups."""
    return fitted_model(training_set, training, spec, size).encode_features


def mean_average_precision(
    codes: NDArray[np.uint8], level: LabelLevel, asking: NDArray, database: NDArray, spec: CodeSpec, segment: str
) -> float:
    """Tie-aware mAP@all of one segment."""
    ranking = ranked(codes, level, asking, database, spec, {segment: 1})
    return round(float(np.nanmean(average_precision(ranking.totals, ranking.relevant))), 4)


def of_every_length(names: Sequence[str]) -> CodeSpec:
    """A segment per code length, so that one fit and one pass over the images measure all."""
    return CodeSpec(tuple(Segment(f'bits{bits}', bits, tuple(names)) for bits in BITS))


def cifar_heads(args: argparse.Namespace, method: str) -> Figures:
    """Heads on frozen features, 1,000 / 5,000 / 59,000: every code length, three seeds."""
    pictures, spec = cifar(args.cifar), of_every_length(KIND)
    rows = split(pictures, 1_000, 5_000)
    resizing = Resizing(FROZEN_SIZE)
    everything = features(args.work, 'cifar', lambda: pictures.pixels(resizing), FROZEN_SIZE, groups=KIND)
    level, fit_rows = pictures.level('fine'), rows['training']
    pixels = functools.partial(pictures.pixels, resizing, fit_rows)
    found: dict[int, list[float]] = {bits: [] for bits in BITS}
    for seed in SEEDS:
        training = Training(method=method, seed=seed)
        views = ()
        if method in ('contrastive', 'lda'):
            views = tuple(
                features(args.work, 'cifar-5k', pixels, FROZEN_SIZE, v, KIND).groups for v in view_seeds(Training())
            )
        labels = {segment.name: level.take(fit_rows) for segment in spec.segments}
        encode = fitted(FeatureSet(take(everything.groups, fit_rows), views, labels), training, spec, FROZEN_SIZE)
        codes = np.concatenate(
            [encode(take(everything.groups, part)) for part in np.array_split(np.arange(len(everything)), 30)]
        )
        for segment in spec.segments:
            score = mean_average_precision(codes, level, rows['queries'], rows['database'], spec, segment.name)
            found[segment.bits].append(score)
    return {'map': {str(bits): spread(scores) for bits, scores in found.items()}, 'split': hashes(pictures, rows)}


def spread(scores: Sequence[float]) -> dict[str, float]:
    """Median, least and most over the seeds."""
    return {
        'median': round(statistics.median(scores), 4),
        'least': round(min(scores), 4),
        'most': round(max(scores), 4),
    }


def cifar_finetuned(
    args: argparse.Namespace, name: str, queries: int, training: int, epochs: int, size: int
) -> Figures:
    """The whole backbone fine-tuned once, with one head per code length."""
    pictures, resizing, spec = cifar(args.cifar), Resizing(size), of_every_length(('top',))
    rows = split(pictures, queries, training)
    fit_rows, level = rows['training'], pictures.level('fine')
    settings = Training(method='ortho', finetune_blocks=EVERY_BLOCK, finetune_epochs=epochs)
    key = {'name': name, 'size': resizing.size, 'epochs': epochs, 'split': hashes(pictures, rows)}
    labels = {segment.name: level.take(fit_rows) for segment in spec.segments}
    checkpoint = Checkpoint(args.work / f'{name}.npz', key)
    pixels = pictures.pixels(resizing, fit_rows)
    model, history = fit(pixels, labels, settings, spec, resizing, BACKBONE, say, checkpoint)
    model.save(args.work / f'{name}-model')
    parts = np.array_split(np.arange(len(pictures.data)), 200)
    codes = np.concatenate([model.encode(pictures.pixels(resizing, part)) for part in parts])
    np.save(args.work / f'{name}-codes.npy', codes)
    scores = {
        str(s.bits): mean_average_precision(codes, level, rows['queries'], rows['database'], spec, s.name)
        for s in spec.segments
    }
    return {
        'map': scores,
        'train_seconds': round(sum(epoch['seconds'] for stage in history.values() for epoch in stage)),
        'validation': model.training['validation_map'],
        'history': history,
        'split': hashes(pictures, rows),
    }


def catalogue_items(args: argparse.Namespace, method: str, by_caption: bool = False) -> Figures:
    """Emoji of a third artist ask, or their captions; a model never saw the emoji that asks, nor its caption.

    Five folds over emoji, three seeds.
    """
    pictures = catalogue()
    spec = CodeSpec((Segment('coarse', 32, KIND), Segment('fine', 64, KIND), Segment('look', 64, LOOK)))
    resizing = Resizing(CATALOGUE_SIZE)
    everything = features(args.work, 'catalogue', lambda: pictures.pixels(resizing), CATALOGUE_SIZE).groups
    database = np.flatnonzero(pictures.part == 'index')
    pixels = functools.partial(pictures.pixels, resizing, database)
    views = [features(args.work, 'catalogue', pixels, CATALOGUE_SIZE, v).groups for v in view_seeds(Training())]
    levels = {name: pictures.level(name) for name in ('coarse', 'fine', 'item')}
    items = np.array([values[0] for values in pictures.labels['item']])
    names = np.random.default_rng(SPLIT_SEED).permutation(sorted(set(items)))
    folds = [np.isin(items, part) for part in np.array_split(names, FOLDS)]
    figures: dict[str, list[float]] = {'coarse': [], 'fine': [], 'item@10': []}
    for seed in SEEDS:
        scores: dict[str, list[NDArray]] = {name: [] for name in figures}
        for held_out in folds:
            train = np.flatnonzero((pictures.part == 'index') & ~held_out)
            asking = np.flatnonzero((pictures.part == 'query') & held_out)
            training_set = FeatureSet(
                take(everything, train),
                tuple(take(view, np.searchsorted(database, train)) for view in views),
                {name: levels[name].take(train) for name in ('coarse', 'fine')},
                [pictures.captions[i] for i in train],
            )
            model = fitted_model(training_set, Training(method=method, seed=seed), spec, CATALOGUE_SIZE)
            codes = model.encode_features(everything)
            if by_caption:
                codes[asking] = model.encode_text([pictures.captions[i] or '' for i in asking])[0]
            for name in ('coarse', 'fine'):
                ranking = ranked(codes, levels[name], asking, database, spec, {name: 1})
                scores[name].append(average_precision(ranking.totals, ranking.relevant))
            ranking = ranked(codes, levels['item'], asking, database, spec, None)
            scores['item@10'].append(hit_at(ranking.totals, ranking.relevant, 10))
        for name, parts in scores.items():
            figures[name].append(float(np.nanmean(np.concatenate(parts))))
    rows = {'database': database, **{f'fold{i}': np.flatnonzero(f) for i, f in enumerate(folds)}}
    return {'map': {name: spread(s) for name, s in figures.items()}, 'split': hashes(pictures, rows)}


def ranked(
    codes: NDArray[np.uint8],
    level: LabelLevel,
    asking: NDArray,
    database: NDArray,
    spec: CodeSpec,
    profile: Mapping[str, int] | None,
) -> Ranking:
    """`hashing_model.evaluation.ranking.rank` of some rows among others."""
    return rank(codes[asking], [level.take(asking)], codes[database], [level.take(database)], spec, profile)


def distortions() -> dict[str, Callable[[Image.Image, np.random.Generator], bytes]]:
    """What happens to a picture that is posted again: the picture as it was -> the bytes of another file."""

    def crop(share: float) -> Callable[[Image.Image, np.random.Generator], bytes]:
        def make(image: Image.Image, rng: np.random.Generator) -> bytes:
            width, height = (max(1, round(side * share)) for side in image.size)
            left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
            return encoded(image.crop((left, top, left + width, top + height)))

        return make

    def jitter(image: Image.Image, rng: np.random.Generator) -> bytes:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(rng.uniform(0.75, 1.25))
        return encoded(image)

    def rotate(image: Image.Image, rng: np.random.Generator) -> bytes:
        return encoded(image.rotate(rng.choice([-10, 10]), Image.Resampling.BICUBIC, fillcolor=(255, 255, 255)))

    return {
        'half the size': lambda image, _: encoded(image.resize((max(1, image.width // 2), max(1, image.height // 2)))),
        'JPEG quality 30': lambda image, _: encoded(image, 'JPEG', quality=30),
        'colour jitter': jitter,
        'rotated by 10 degrees': rotate,
        'cropped to 70 % of the area': crop(0.7**0.5),
        'cropped to 70 % of each side': crop(0.7),
    }


def encoded(image: Image.Image, form: str = 'PNG', **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    """A picture, transparency over white, as `hashing_model.images.decode.decode` sees it."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert('RGBA')
    return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')


class LookFeatures(NamedTuple):
    """Feature groups for near-duplicates, made at one size in px.

    What a segment is fitted on, what is stored, what asks, per distortion.
    """

    size: int
    training_set: FeatureSet
    stored: Mapping[str, NDArray]
    asked: Mapping[str, Mapping[str, NDArray]]
    asking: NDArray[np.int64]
    same: NDArray[np.int64]

    def recall(self, training: Training, spec: CodeSpec) -> dict[str, float]:
        """Per distortion, how often the original is found first."""
        encode = fitted(self.training_set, training, spec, self.size)
        base = encode(self.stored)
        return {what: first_found(encode(x), base, self.asking, self.same) for what, x in self.asked.items()}


def look_features(args: argparse.Namespace, name: str) -> LookFeatures:
    """All feature groups of the pictures, their augmented views and their distorted copies."""
    size = CATALOGUE_SIZE if name == 'catalogue' else LOOK_SIZE
    resizing = Resizing(size)
    pictures, fit_rows, database = look_rows(args, name)
    fit_pixels = functools.partial(pictures.pixels, resizing, fit_rows)
    views = [features(args.work, f'{name}-look', fit_pixels, size, v).groups for v in view_seeds(Training())]
    labels = {'fine': pictures.level('fine').take(fit_rows)}
    fit_on = FeatureSet(features(args.work, f'{name}-look', fit_pixels, size).groups, tuple(views), labels)
    stored = features(args.work, f'{name}-stored', lambda: pictures.pixels(resizing, database), size).groups
    asking = np.random.default_rng(SPLIT_SEED).permutation(len(database))[:LOOK_QUERIES]
    asked = {}
    for what, distort in distortions().items():
        rng = np.random.default_rng(SPLIT_SEED)
        files = [distort(opened(pictures.data[database[i]]), rng) for i in asking]
        pixels = functools.partial(np.stack, [decode(data, resizing).pixels for data in files])
        file = re.sub(r'\W+', '-', f'{name} {what}').strip('-')
        asked[what] = features(args.work, file, pixels, size).groups
    return LookFeatures(size, fit_on, stored, asked, asking, same_pixels(pictures, database))


def look(args: argparse.Namespace, name: str) -> Figures:
    """How often a distorted picture finds its original first, by the look segment alone; expected over ties."""
    found = look_features(args, name)
    figures = {
        f'{method} {bits}': found.recall(Training(method), CodeSpec((Segment('look', bits, LOOK),)))
        for method in ('lda', 'contrastive', 'itq', 'random')
        for bits in LOOK_BITS
    }
    pictures, fit_rows, database = look_rows(args, name)
    return {'recall@1': figures, 'split': hashes(pictures, {'training': fit_rows, 'database': database})}


def ablation(args: argparse.Namespace) -> Figures:
    """Each feature group left out: mAP of a segment with labels, recall of one without; and the gates left out.

    CIFAR-10, 64 bits. The database is the test images, of which some ask, each without itself.
    """
    found = look_features(args, 'cifar')
    pictures, fit_rows, database = look_rows(args, 'cifar')
    level = pictures.level('fine').take(database)
    figures: dict[str, Figures] = {}
    for left_out in (None, *FEATURES):
        kept = [name for name in FEATURES if name != left_out]
        figures[f'without {left_out}' if left_out else 'all'] = {
            'mAP': ablated(found, level, kept, Training('ridge')),
            'recall@1': mean_recall(found, kept),
            "recall@1 of look's groups": mean_recall(found, [name for name in LOOK if name != left_out]),
        }
    for gated in (True, False):
        training = Training('ortho', gated=gated)
        figures[f'all, ortho, {"gated" if gated else "not gated"}'] = {'mAP': ablated(found, level, FEATURES, training)}
    return {'map': figures, 'split': hashes(pictures, {'training': fit_rows, 'database': database})}


def ablated(found: LookFeatures, level: LabelLevel, groups: Sequence[str], training: Training) -> dict[str, float]:
    """mAP of a supervised segment that reads some feature groups, over the seeds."""
    spec = CodeSpec((Segment('fine', 64, tuple(groups)),))
    scores = []
    for seed in SEEDS:
        seeded = dataclasses.replace(training, seed=seed)
        codes = fitted(found.training_set, seeded, spec, found.size)(found.stored)
        asking = [level.take(found.asking)]
        ranking = rank(codes[found.asking], asking, codes, [level], spec, leave_out=found.asking)
        scores.append(float(average_precision(ranking.totals, ranking.relevant).mean()))
    return spread(scores)


def mean_recall(found: LookFeatures, groups: Sequence[str]) -> float:
    """Recall@1 of near-duplicates by 64 bits that read some feature groups, the mean over the distortions."""
    recall = found.recall(Training('lda'), CodeSpec((Segment('look', 64, tuple(groups)),)))
    return round(statistics.mean(recall.values()), 4)


def look_rows(args: argparse.Namespace, name: str) -> tuple[Pictures, NDArray[np.int64], NDArray[np.int64]]:
    """The pictures, the rows a look segment is fitted on, and the database.

    CIFAR-10: some training images; all test images. Catalogue: what is indexed, as whoever indexes it can do.
    """
    if name == 'catalogue':
        rows = np.flatnonzero(catalogue().part == 'index')
        return catalogue(), rows, rows
    pictures = cifar(args.cifar)
    rows = np.random.default_rng(SPLIT_SEED).permutation(np.flatnonzero(pictures.part == 'train'))[:LOOK_TRAINING]
    return pictures, np.sort(rows), np.flatnonzero(pictures.part == 'test')


def same_pixels(pictures: Pictures, rows: NDArray) -> NDArray[np.int64]:
    """A number per picture, equal for equal pixels: several items of the catalogue share a drawing."""
    digests = [hashlib.sha256(opened(pictures.data[i]).tobytes()).digest() for i in rows]
    return np.unique(digests, return_inverse=True)[1]


def first_found(queries: NDArray, database: NDArray, asking: NDArray, same: NDArray) -> float:
    """The expected share of queries whose first answer is the original, or a picture with the same pixels."""
    shares = []
    for code, row in zip(queries, asking, strict=True):
        distances = hamming(database, code)
        first = distances == distances.min()
        shares.append((same[first] == same[row]).mean())
    return round(float(np.mean(shares)), 4)


def say(progress: Progress, every: float = 30.0, last: dict[str, float] = {}) -> None:  # noqa: B006
    """A line now and then."""
    if time.monotonic() - last.get('said', 0) < every:
        return
    last['said'] = time.monotonic()
    loss = f', loss {progress.loss:.3f}' if progress.loss is not None else ''
    score = f', validation mAP {progress.score:.3f}' if progress.score is not None else ''
    print(f'  {progress.stage}: {progress.step:,} of {progress.steps:,}{loss}{score}', flush=True)


def experiments(args: argparse.Namespace) -> dict[str, Callable[[], Figures]]:
    """Name -> what makes its figures."""
    made: dict[str, Callable[[], Figures]] = {
        **{f'catalogue-{method}': functools.partial(catalogue_items, args, method) for method in METHODS},
        'catalogue-text': functools.partial(catalogue_items, args, 'ridge', by_caption=True),
        'catalogue-look': functools.partial(look, args, 'catalogue'),
    }
    if args.cifar:
        made |= {f'cifar-5k-{method}': functools.partial(cifar_heads, args, method) for method in METHODS}
        made |= {
            'cifar-look': functools.partial(look, args, 'cifar'),
            'cifar-ablation': functools.partial(ablation, args),
        }
        made |= {n: functools.partial(cifar_finetuned, args, n, *settings) for n, settings in FINETUNED.items()}
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiments that have no figures yet, then print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cifar', type=Path, metavar='DIR')
    parser.add_argument('--work', type=Path, required=True, metavar='DIR')
    parser.add_argument('--only', nargs='*', metavar='EXPERIMENT')
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    for name, make in experiments(args).items():
        path = args.work / f'{name}.json'
        if (args.only and name not in args.only) or path.exists():
            continue
        print(f'{name} ...', flush=True)
        started = time.monotonic()
        figures = {**make(), 'seconds': round(time.monotonic() - started), 'versions': versions()}
        path.write_text(json.dumps(figures, indent=1))
    done = {name: args.work / f'{name}.json' for name in experiments(args)}
    show({name: json.loads(path.read_text()) for name, path in done.items() if path.exists()})


def show(done: Mapping[str, Figures]) -> None:
    """Print the figures of all experiments that have any, beside the published ones."""
    console = Console(width=110)
    heads = {name.removeprefix('cifar-5k-'): f['map'] for name, f in done.items() if name.startswith('cifar-5k-')}
    if items := {name.removeprefix('catalogue-'): f['map'] for name, f in done.items() if name in CATALOGUE_ITEMS}:
        title = 'catalogue, emoji never trained on: mAP of coarse and of fine; same emoji among ten, by all segments'
        show_table(console, title, items)
    if heads:
        table = Table(
            title='CIFAR-10, 1,000 ask / 5,000 train / 59,000 database: mAP@all, median of three seeds (spread)'
        )
        for heading in ('method', *(f'{bits} bits' for bits in BITS)):
            table.add_column(heading)
        for method, scores in heads.items():
            table.add_row(method, *(cell(scores[str(bits)]) for bits in BITS))
        for method, published in PUBLISHED.items():
            table.add_row(f'published: {method}', *(cell(published.get(bits, '')) for bits in BITS))
        console.print(table)
    if whole := done.get('cifar-50k-finetuned'):
        console.print(
            f'CIFAR-10, 10,000 / 50,000 / 50,000, fine-tuned: {whole["map"]} (published: GreedyHash .932 at 48 bits)'
        )
    for name, keyed in (('catalogue-look', 'recall@1'), ('cifar-look', 'recall@1'), ('cifar-ablation', 'map')):
        if name in done:
            show_table(console, f'{name}: {keyed}', done[name][keyed])
    for name, figures in done.items():
        console.print(f'{name}: {figures["seconds"]} s', end='; ')
    console.print()


def show_table(console: Console, title: str, figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Print figures, row -> column -> figure."""
    columns = list(dict.fromkeys(column for row in figures.values() for column in row))
    table = Table(title=title)
    for heading in ('', *columns):
        table.add_column(heading)
    for row, cells in figures.items():
        table.add_row(row, *(cell(cells.get(column, '')) for column in columns))
    console.print(table)


def cell(value: Any) -> str:
    """A figure, with its spread if it has one."""
    if isinstance(value, dict):
        return f'{value["median"]:.3f} ({value["least"]:.3f}-{value["most"]:.3f})'
    return value if isinstance(value, str) else f'{value:.3f}'


def versions() -> dict[str, str]:
    """What the figures were made with."""
    packages = ('tensorflow', 'keras', 'numpy', 'opencv-python-headless', 'pillow')
    return {'python': platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}}


if __name__ == '__main__':
    main()
