"""The demo: fit a model on the embedded catalogue, build its index, ask it, show the answers as a gallery.

    grainhash demo --output demo-out

The pictures that ask are another vendor's drawings of the same emoji; none of them is in the index.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from hashing_model.codes.bits import segment_distances
from hashing_model.errors import InputError
from hashing_model.model import HashModel
from pipelines.build.build_index import BuildRequest, build_index
from pipelines.cli.logs import tell, tell_report
from pipelines.encoding.encode import encode_unit
from pipelines.index.code_tables import codes_from_arrow
from pipelines.inputs.options import ReadOptions
from pipelines.inputs.shards import list_units, read_unit
from pipelines.query.query_index import QueryRequest, query_index
from pipelines.records import Record
from pipelines.reports.console import output_console
from pipelines.reports.gallery import Answer, Fact, Picture, QueryGallery, Row, write_report
from pipelines.requests import option
from pipelines.search.local_index import LocalIndex, SearchResult
from pipelines.training.train_model import TrainRequest, train_model
from pipelines.training.training_log import describe_shares

CATALOGUE = Path(__file__).with_name('catalogue').resolve()  # in the repository a link to examples/catalogue
PROFILES: dict[str, dict[str, int] | None] = {
    'coarse': {'coarse': 1},
    'fine': {'fine': 1},
    'look': {'look': 1},
    'all': None,
}
SHOWN_PER_CATEGORY = 2
ANSWERS = 8
TEXTS = ('red heart', 'smiling cat', 'flag', 'fruit', 'sport', 'musical instrument', 'a house by night')
OWN_IMAGES = """\
The same with your own images (folders, .tar, .tfrecord or .parquet shards, local or gs://):

  grainhash train --images 'photos/' --model my-model
  grainhash build --images 'photos/' --model my-model --index my-index
  grainhash query --index my-index --images 'questions/*.jpg' --k 10 --output answers.jsonl
  grainhash query --index my-index --text 'red shoes' --k 10 --output answers.jsonl
  grainhash inspect my-index
"""


def demo(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Show all of it on the embedded catalogue."""
    run_demo(Path(args.output), Path(args.catalogue) if args.catalogue else None)


def run_demo(out: Path, catalogue: Path | None = None) -> None:
    """Everything, into the folder `out`; what an earlier demo left there is replaced.

    Raises:
        InputError: the catalogue is not there, or `out` cannot be written or holds other things.
    """
    catalogue = catalogue or CATALOGUE
    if not catalogue.is_dir():
        raise InputError(f'no catalogue in {catalogue}: give the folder of one with --catalogue')
    _clear(out)
    console = output_console()
    index_shards, query_shards = str(catalogue / 'index-*.tar.gz'), str(catalogue / 'query-twitter-00000.tar.gz')
    model, index = str(out / 'model'), str(out / 'index')
    answers, of_texts = str(out / 'answers.jsonl'), str(out / 'answers-to-texts.jsonl')
    started = time.monotonic()
    _show(console, 'train', images=index_shards, model=model, input_size=96, views=1)
    tell_report(train_model(TrainRequest(images=index_shards, model=model, input_size=96, views=1), tell), False)
    _show(console, 'build', index=index, images=index_shards, model=model, partition_rows=1000)
    request = BuildRequest(index=index, images=index_shards, model=model, partition_rows=1000)
    tell_report(build_index(request, tell=tell), False)
    _show(console, 'query', index=index, images=query_shards, k=ANSWERS, output=answers)
    tell_report(query_index(QueryRequest(index=index, images=query_shards, k=ANSWERS, output=answers)), False)
    fitted = HashModel.load(model)
    texts, codes_of_texts = known_texts(fitted)
    if texts:  # a catalogue of one's own may have none of the words
        _show(console, 'query', index=index, text=TEXTS, k=ANSWERS, output=of_texts)
        tell_report(query_index(QueryRequest(index=index, text=TEXTS, k=ANSWERS, output=of_texts)), False)
    records = read_all(query_shards)
    searcher = LocalIndex.open(index)
    codes = encode(records, fitted)
    results = {name: searcher.search(codes, ANSWERS, profile=profile) for name, profile in PROFILES.items()}
    shares = shares_found(records, results, searcher)
    shown = first_of_each_category(records, SHOWN_PER_CATEGORY)
    pictures = {record.image_id: picture(record) for record in read_all(index_shards)}
    galleries = [gallery(picture(records[i]), i, codes, results, searcher, pictures) for i in shown]
    found = {'all': searcher.search(codes_of_texts, ANSWERS)}
    asked_in_words = [gallery(text, i, codes_of_texts, found, searcher, pictures) for i, text in enumerate(texts)]
    for some in filter(None, (galleries[::SHOWN_PER_CATEGORY], asked_in_words)):
        console.print(answers_table(some))
    facts = [
        Fact('images indexed', f'{len(searcher):,}'),
        Fact('pictures that asked', f'{len(records):,}'),
        *(Fact(name, f'{share:.0%}') for name, share in shares.items()),
        Fact('seconds in all', f'{time.monotonic() - started:.0f}'),
    ]
    levels = {'coarse': 'coarse', 'fine': 'fine', 'all': 'fine'}
    segments = {s.name: s.bits for s in searcher.spec.segments}
    report = out / 'report.html'
    made_of = {name: describe_shares(groups) for name, groups in fitted.training['shares'].items()}
    title = 'Emoji that look alike, to a hash'
    write_report(report, title, INTRO, facts, segments, [*asked_in_words, *galleries], levels, made_of)
    console.print(
        f'\n{len(records):,} pictures asked: ' + ', '.join(f'{n} {s:.0%}' for n, s in shares.items()), soft_wrap=True
    )
    console.print(f'The gallery: {report}\n\n{OWN_IMAGES}', soft_wrap=True)


INTRO = (
    'Emoji drawn by two vendors were indexed; a third vendor, whose pictures are not in the index, asks. '
    'Each row of answers compares another part of the code. What codes say of kinds (coarse, fine) they learned '
    'from the labels of the indexed drawings, their look from no label; no drawing that asks was seen before. '
    'Words ask too: the model has learned them from the captions and labels of the indexed drawings.'
)


def _show(console: Console, command: str, **options: Any) -> None:
    """Print the command that does what comes next."""
    words = ['grainhash', command]
    for name, value in options.items():
        words += [option(name), *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    console.print(f'$ {shlex.join(words)}', style='bold', soft_wrap=True)


def _clear(out: Path) -> None:
    ours = (
        'model',
        'index',
        *(
            f'{answers}.{suffix}'
            for answers in ('answers', 'answers-to-texts')
            for suffix in ('jsonl', 'rejects.jsonl', 'jsonl.stats.json')
        ),
        'report.html',
    )
    names = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    strange = [name for name in names if name not in ours]
    if strange:
        raise InputError(f'{out} holds {strange[0]}, which no demo made; give another folder with --output')
    for name in names:
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        else:
            (out / name).unlink()


def read_all(pattern: str) -> list[Record]:
    """All readable records of the shards that match."""
    options = ReadOptions()
    items = (item for unit in list_units([pattern], options) for item in read_unit(unit, options))
    return [item for item in items if isinstance(item, Record)]


def encode(records: Sequence[Record], model: HashModel) -> NDArray[np.uint8]:
    """The codes of records that all decode: uint8 [N, B]."""
    return codes_from_arrow(encode_unit(records, model).images['code'])


def known_texts(model: HashModel) -> tuple[list[str], NDArray[np.uint8]]:
    """Those of TEXTS of which the model knows a word, and their codes uint8 [N, B]."""
    codes, known = model.encode_text(TEXTS)
    return [text for text, is_known in zip(TEXTS, known, strict=True) if is_known], codes[known]


def first_of_each_category(records: Sequence[Record], count: int) -> list[int]:
    """The numbers of the first `count` records of every coarse label: what the gallery shows is not picked by eye."""
    numbers: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        numbers.setdefault(record.labels['coarse'][0], []).append(number)
    return [number for category in sorted(numbers) for number in numbers[category][:count]]


def picture(record: Record) -> Picture:
    """A record for the report."""
    return Picture(record.image_id, record.data, record.caption, record.labels)


def shares_found(records: Sequence[Record], results: Mapping[str, SearchResult], index: LocalIndex) -> dict[str, float]:
    """How often the answers of a profile are right, by labels that no code has seen."""
    questions = {
        'first of the same category (coarse)': ('coarse', 'coarse', 1),
        'first of the same subcategory (fine)': ('fine', 'fine', 1),
        f'same emoji among the first {ANSWERS} (all)': ('all', 'item', ANSWERS),
    }
    shares = {}
    for question, (profile, level, first) in questions.items():
        rows = results[profile].rows[:, :first]
        labels = [dict(row)[level] for row in index.images(rows.ravel(), ['labels'])['labels'].to_pylist()]
        wanted = [list(record.labels[level]) for record in records]
        hits = [wanted[q] in labels[q * first : (q + 1) * first] for q in range(len(records))]
        shares[question] = float(np.mean(hits))
    return shares


def gallery(
    query: Picture | str,
    number: int,
    codes: NDArray[np.uint8],
    results: Mapping[str, SearchResult],
    index: LocalIndex,
    pictures: Mapping[str, Picture],
) -> QueryGallery:
    """The query of some number with its answers under every profile."""
    rows = []
    for name, result in results.items():
        found = index.images(result.rows[number], ['image_id', 'code'])
        by_segment = segment_distances(codes[number], codes_from_arrow(found['code']), index.spec)
        answers = [
            Answer(pictures[image_id], int(d), dict(zip(index.spec.names, s.tolist(), strict=True)))
            for image_id, d, s in zip(found['image_id'].to_pylist(), result.distances[number], by_segment, strict=True)
        ]
        rows.append(Row(name, answers))
    return QueryGallery(query, rows)


def answers_table(galleries: Sequence[QueryGallery]) -> Table:
    """The first three answers of each query under each profile, with their distances in bits."""
    table = Table(title='nearest images, and by how many bits they differ', show_lines=True, expand=True)
    for heading in ('asked', *(row.profile for row in galleries[0].rows)):
        table.add_column(heading, no_wrap=True, overflow='ellipsis', ratio=1)
    for g in galleries:
        cells = ['\n'.join(f'{a.distance:2d} {a.picture.caption}' for a in row.answers[:3]) for row in g.rows]
        table.add_row(g.query if isinstance(g.query, str) else g.query.name, *cells)
    return table
