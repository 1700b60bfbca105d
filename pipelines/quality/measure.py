"""Which coded images ask which, how well they find each other, and the files that tell it.

The figures themselves are computed by `hashing_model.evaluation.evaluate`; `coded_images.py` reads the images of an
index and `shard_images.py` encodes those of shards. Neither Beam nor TensorFlow is needed here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from hashing_model.evaluation.evaluate import CodedImages, evaluate, label_levels
from hashing_model.evaluation.figures import Quality
from pipelines import files
from pipelines.index import code_tables
from pipelines.index.layout import cut_substrings
from pipelines.quality.coded_images import COLUMNS, Images, with_ids
from pipelines.reports.plots import PLOTS

FORMAT_VERSION = 1
EVALUATION_FILE, SPLIT_FILE = 'evaluation.json', 'split.json'
CATALOGUE_SIZES = (1_000_000, 100_000_000)
MAX_IMAGES, MAX_QUERIES = 100_000, 1_000


@dataclasses.dataclass(frozen=True)
class Split:
    """Which images ask which, by their ids; the same split gives the same figures."""

    queries: tuple[str, ...]
    database: tuple[str, ...]

    @classmethod
    def read(cls, path: str) -> Split:
        """A split as `write_results` wrote it, or made by hand: `{"queries": [...], "database": [...]}`.

        Raises:
            InputError: the file is not there or is no split.
        """
        if not files.exists(path):
            raise InputError(f'there is no file {path}')
        try:
            value = json.loads(files.read_bytes(path))
            parts = [value['queries'], value['database']]
        except (ValueError, KeyError, TypeError) as e:
            raise InputError(f'{path} is no split: {e!r}') from e
        for part in parts:
            if not part or not isinstance(part, list) or not all(isinstance(i, str) for i in part):
                raise InputError(f'{path} is no split: queries and database must be lists of image ids, not empty')
        return cls(*(tuple(sorted(set(part))) for part in parts))

    def describe(self) -> dict[str, Any]:
        """How many there are, and the SHA-256 of each list: every id, sorted, in UTF-8 with a zero byte behind."""
        lists = {'queries': self.queries, 'database': self.database}
        digests = {name: hashlib.sha256(b''.join(i.encode() + b'\0' for i in ids)) for name, ids in lists.items()}
        return {
            **{name: len(ids) for name, ids in lists.items()},
            'sha256': {name: digest.hexdigest() for name, digest in digests.items()},
        }


# Which images


def choose(
    images: Images,
    asking: Images | None,
    split: Split | None = None,
    max_images: int | None = None,
    max_queries: int | None = None,
    seed: int = 0,
) -> tuple[pa.Table, pa.Table]:
    """Queries and database.

    Args:
        images: the database is drawn from them, and without `asking` the queries from the database.
        asking: the queries.
        split: what to take, instead of drawing.
        max_images: draw at most so many images for the database; None for 100,000.
        max_queries: draw at most so many queries; None for all that `asking` has, or else 1,000.
        seed: of the draw.

    Raises:
        InputError: images of the split are not there, or there are none at all.
    """
    if split:
        found = images.find(split.database if asking else {*split.database, *split.queries})
        asked = asking.find(split.queries) if asking else found
        return _pick(asked, split.queries, 'queries'), _pick(found, split.database, 'database images')
    database = images.draw(max_images or MAX_IMAGES, seed)
    if asking:
        return asking.draw(max_queries, seed), database
    drawn = np.random.default_rng([seed, 1]).permutation(len(database))[: max_queries or MAX_QUERIES]
    return database.take(drawn), database


def _pick(images: pa.Table, ids: Sequence[str], what: str) -> pa.Table:
    found = with_ids(images, ids)
    if len(found) < len(ids):
        missing = min(set(ids) - set(found['image_id'].to_pylist()))
        raise InputError(
            f'{len(ids) - len(found):,} of the {len(ids):,} {what} of the split are not there, such as {missing}'
        )
    return found


# Measuring


def measure(
    queries: pa.Table,
    database: pa.Table,
    spec: CodeSpec,
    profiles: Iterable[Mapping[str, int]],
    catalogue_images: int,
) -> tuple[Quality, Split]:
    """The figures of `hashing_model.evaluation.evaluate.evaluate`, and the split that was measured.

    Args:
        queries, database: tables of COLUMNS; their order does not matter.
        spec: the code spec.
        profiles: to measure besides each segment and all segments together.
        catalogue_images: images of the whole catalogue. The cost of a search is estimated for this size, and for 1 and
            100 million images.

    Raises:
        InputError: no images on one side.
    """
    tables = [table.select(COLUMNS).sort_by('image_id') for table in (queries, database)]  # the same sums in any order
    labels = [[dict(row or ()) for row in table['labels'].to_pylist()] for table in tables]
    asking, asked = (
        CodedImages(
            code_tables.codes_from_arrow(table['code']),
            table['image_id'].to_pylist(),
            levels,
            table['digest'].to_pylist(),
        )
        for table, levels in zip(tables, label_levels(*labels), strict=True)
    )
    cut = {n: _bits(spec, n) for n in sorted({catalogue_images, *CATALOGUE_SIZES})}
    return evaluate(asking, asked, spec, profiles, cut), Split(tuple(asking.ids), tuple(asked.ids))


def _bits(spec: CodeSpec, images: int) -> list[tuple[int, int]]:
    return [(substring.start, substring.bits) for substring in cut_substrings(spec, images)]


# Files


def check_folder(folder: str) -> None:
    """Refuse a folder that holds other things than the results of an evaluation.

    Raises:
        InputError: the folder holds what no evaluation wrote, is a file, or takes none.
    """
    try:
        names = files.names_in(folder)
    except NotADirectoryError as e:
        raise InputError(f'{folder} is a file; give a folder for the results') from e
    strange = [name for name in names if name not in _written()]
    if strange:
        raise InputError(f'{folder} holds {strange[0]}, which no evaluation wrote; give a new or empty folder')
    files.check_writable(files.join(folder, EVALUATION_FILE))


def _written() -> Iterator[str]:
    yield from (EVALUATION_FILE, SPLIT_FILE, *PLOTS)


def write_results(folder: str, quality: Quality, split: Split, facts: Mapping[str, Any]) -> list[str]:
    """Write the figures, the split and the plots, in place of what an earlier evaluation left; returns the names.

    Args:
        folder: see `check_folder`.
        quality, split: see `measure`.
        facts: what else `evaluation.json` shall tell, such as the model; plain JSON values.
    """
    figures = {'format_version': FORMAT_VERSION, **facts, 'split': split.describe(), **quality.to_json()}
    contents = {
        **{name: image for name, draw in PLOTS.items() if (image := draw(quality)) is not None},
        SPLIT_FILE: _json(dataclasses.asdict(split)),
        EVALUATION_FILE: _json(figures),
    }
    for name in _written():
        files.delete_file(files.join(folder, name))
    for name, content in contents.items():
        files.write_bytes(files.join(folder, name), content)
    return list(contents)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + '\n').encode()
