"""The feature cache: Parquet files of feature groups with labels, and how a training reads them.

    CACHE/features.json               written last: what the features are, and the parts in the order of the input
    CACHE/view=0/part-<id>.parquet    a row per picture of one work unit: image_id, source, digest, labels, caption,
                                      groups
    CACHE/view=1/part-<id>.parquet    the same rows, of an augmented view: image_id, digest, some of the groups
    CACHE/rejects/part-<id>.parquet   what could not be read

A part's id is a digest of the features' key and of the unit's files with their sizes and times. If a file with that id
exists, the unit need not be done again.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from hashing_model.features.fusion import Groups
from hashing_model.labels import LabelLevel
from hashing_model.networks.loop import Training
from hashing_model.training.feature_key import FeatureKey
from hashing_model.training.feature_set import FeatureSet
from hashing_model.training.fit import choose_method, view_groups
from pipelines import files
from pipelines.index.code_tables import LABELS, SOURCE
from pipelines.records import TRANSIENT, Record, Tally

if TYPE_CHECKING:  # they load Beam
    from pipelines.inputs.options import ReadOptions
    from pipelines.inputs.shards import InputFile, WorkUnit

FORMAT_VERSION = 2
MANIFEST = 'features.json'
REJECTS_FOLDER = 'rejects'


@dataclasses.dataclass(frozen=True)
class FeaturePart:
    """The result of a work unit; rows and rejects add up to the records read."""

    number: int
    name: str
    rows: int
    records_read: int
    reasons: Mapping[str, int]
    reused: bool = dataclasses.field(default=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Cache:
    """A finished cache: what the features are, and its parts in the order of the input."""

    folder: str
    key: FeatureKey
    parts: tuple[FeaturePart, ...]

    @property
    def rows(self) -> int:
        """How many pictures there are."""
        return sum(part.rows for part in self.parts)

    @property
    def tally(self) -> Tally:
        """What became of the records of all parts."""
        reasons = sum((collections.Counter(part.reasons) for part in self.parts), collections.Counter())
        return Tally.of(sum(part.records_read for part in self.parts), self.rows, reasons)


def view_path(view: int, name: str) -> str:
    """The path of the file of a part's view, below the cache's folder; view 0 is the pictures themselves."""
    return f'view={view}/part-{name}.parquet'


def feature_rejects_path(name: str) -> str:
    """The file of a part's rejects, below the cache's folder."""
    return f'{REJECTS_FOLDER}/part-{name}.parquet'


def part_name(unit: WorkUnit, inputs: Mapping[str, InputFile], options: ReadOptions, fingerprint: str) -> str:
    """The id of a unit's part: a digest of which files are read, how they are read, and the key.

    It changes when the features do.
    """
    read = [(path, inputs[path].size, inputs[path].mtime) for path in unit.paths]
    described = [
        FORMAT_VERSION,
        fingerprint,
        unit.format,
        unit.root,
        unit.row_groups,
        read,
        dataclasses.asdict(options),
    ]
    text = json.dumps(described, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def row_schema(view: int, dims: Mapping[str, int]) -> pa.Schema:
    """The columns of a part: what is known of a picture (view 0 only), and its feature groups."""
    digest = ('digest', pa.binary(16))
    known = [('source', SOURCE), digest, ('labels', LABELS), ('caption', pa.string())] if view == 0 else [digest]
    vectors = [(name, pa.list_(pa.float32(), size)) for name, size in dims.items()]
    return pa.schema([('image_id', pa.string()), *known, *vectors])


def to_rows(records: Sequence[Record], digests: Sequence[bytes], groups: Groups, schema: pa.Schema) -> pa.RecordBatch:
    """Rows of `row_schema` for N records, their digests and their groups float32 [N, d]."""
    known = {
        'image_id': [r.image_id for r in records],
        'source': [dataclasses.asdict(r.source) for r in records],
        'digest': digests,
        'labels': [[(level, list(values)) for level, values in r.labels.items()] for r in records],
        'caption': [r.caption for r in records],
    }
    columns = [
        _vectors(groups[field.name]) if field.name in groups else pa.array(known[field.name], field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _vectors(x: NDArray[np.float32]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(x).reshape(-1)), x.shape[1])


class PartWriter:
    """Writes a part's views batch by batch, and publishes them together, view 0 last.

    The files grow on the local disk first, because a unit's features may be larger than a worker's memory.
    """

    def __init__(self, folder: str, name: str, schemas: Sequence[pa.Schema]) -> None:
        self._folder, self._name, self._schemas = folder, name, schemas
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> PartWriter:
        self._local = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix='grainhash-features-')))
        self._writers = [
            self._stack.enter_context(
                pq.ParquetWriter(self._local / str(view), schema, compression='zstd', use_dictionary=False)
            )
            for view, schema in enumerate(self._schemas)
        ]
        return self

    def write(self, view: int, rows: pa.RecordBatch) -> None:
        """Add rows to a view, as a row group."""
        self._writers[view].write_batch(rows)

    def finish(self) -> None:
        """Publish the part."""
        for writer in self._writers:
            writer.close()
        for view in reversed(range(len(self._schemas))):
            with pa.memory_map(str(self._local / str(view))) as content:
                files.write_bytes(files.join(self._folder, view_path(view, self._name)), content.read_buffer())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def find_part(folder: str, number: int, name: str, views: int) -> FeaturePart | None:
    """A part that is complete with all its views. None if it is not, or if some of its rejects may be readable now.

    Raises:
        OSError: a file of it is damaged; the message names it.
    """
    if not all(files.exists(files.join(folder, view_path(view, name))) for view in range(views + 1)):
        return None
    with _open(files.join(folder, view_path(0, name))) as file:
        rows = file.metadata.num_rows
    reasons: collections.Counter[str] = collections.Counter()
    if files.exists(path := files.join(folder, feature_rejects_path(name))):
        reasons.update(files.read_table(path, ['reason'])['reason'].to_pylist())
    if not reasons.keys().isdisjoint(TRANSIENT):
        return None
    return FeaturePart(number, name, rows, rows + reasons.total(), dict(reasons), reused=True)


def write_cache(cache: Cache, counters: Mapping[str, Any], libraries: Mapping[str, str]) -> None:
    """Write `features.json`, then remove the parts that it does not list."""
    described = {
        'format_version': FORMAT_VERSION,
        'fingerprint': cache.key.fingerprint,
        'key': cache.key.to_json(),
        'counters': counters,
        'parts': [{'name': p.name, 'rows': p.rows, 'rejected': dict(p.reasons)} for p in cache.parts],
        'libraries': libraries,
    }
    content = json.dumps(described, indent=1).encode()
    files.write_bytes(files.join(cache.folder, MANIFEST), content)
    names = [part.name for part in cache.parts]
    views = range(len(cache.key.view_seeds) + 1)
    kept = {MANIFEST, *(view_path(view, name) for name in names for view in views), *map(feature_rejects_path, names)}
    for path in files.sizes_below(cache.folder):
        if path not in kept and path.startswith(('view=', f'{REJECTS_FOLDER}/')):
            files.delete_file(files.join(cache.folder, path))


def read_cache(folder: str) -> Cache:
    """The cache in a folder.

    Raises:
        InputError: none is there, one that was not finished, or one of another version of grainhash.
    """
    path = files.join(folder, MANIFEST)
    if not files.exists(path):
        raise InputError(f'{folder} holds no finished features: there is no {path}')
    try:
        described = json.loads(files.read_bytes(path))
        version, fingerprint = described['format_version'], described['fingerprint']
        key = FeatureKey.from_json(described['key'])
        parts = tuple(
            FeaturePart(i, p['name'], p['rows'], p['rows'] + sum(p['rejected'].values()), p['rejected'])
            for i, p in enumerate(described['parts'])
        )
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f'{path} describes no features: {e!r}') from e
    if version != FORMAT_VERSION or key.fingerprint != fingerprint:
        raise InputError(
            f'{folder} was made by another version of grainhash, whose features differ: make them in a new folder'
        )
    return Cache(folder, key, parts)


def check_cache_folder(folder: str, key: FeatureKey | None = None) -> None:
    """Refuse to write features into a folder that does not fit them.

    Raises:
        InputError: it is a file, holds other things, or holds features of another key.
    """
    try:
        names = files.names_in(folder)
    except NotADirectoryError as e:
        raise InputError(f'{folder} is a file; give a folder for the features') from e
    own = [n for n in names if n in (MANIFEST, REJECTS_FOLDER) or n.startswith('view=')]
    if names and not own:
        raise InputError(f'{folder} holds {", ".join(names[:3])} and no features; give a new or empty folder')
    if key is None or MANIFEST not in names:
        return
    other = read_cache(folder).key
    if other.fingerprint != key.fingerprint:
        found, wanted = other.to_json(), key.to_json()
        name = next(name for name in wanted if found[name] != wanted[name])
        raise InputError(
            f'{folder} holds features of another kind: {name.replace("_", " ")} {_brief(found[name])}, '
            f'not {_brief(wanted[name])}; give another folder, or delete it'
        )


def _brief(value: Any) -> str:
    text = ', '.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= 80 else f'{text[:77]}...'


# What a training reads


def draw_rows(counts: Sequence[int], size: int, seed: int) -> NDArray[np.int64]:
    """Draw at most `size` rows of all parts uniformly: int64 [size], numbered from 0 over all parts.

    It draws the same rows in the same order as `sampling.sample_records`. A training on a cache thus has the pictures
    that it would have had without one, as long as all can be decoded or all are taken, and there are at most 64 units.
    """
    rng = np.random.default_rng(seed)
    starts = np.cumsum([0, *counts])
    parts = rng.permutation(len(counts))
    rows = np.concatenate([np.arange(starts[p], starts[p + 1]) for p in parts]) if len(parts) else starts[:0]
    drawn = rows[:size].copy()
    for seen in range(size, len(rows)):
        place = int(rng.integers(seen + 1))
        if place < size:
            drawn[place] = rows[seen]
    return drawn


def check_readable(cache: Cache, spec: CodeSpec) -> None:
    """Refuse a code spec that reads feature groups which the cache does not have.

    Raises:
        InputError: a group is missing; the message names it, and the groups that there are.
    """
    for segment in spec.segments:
        missing = [name for name in segment.features if name not in cache.key.groups]
        if missing:
            raise InputError(
                f'segment {segment.name} reads the features {", ".join(missing)}; '
                f'{cache.folder} has {", ".join(cache.key.groups)}'
            )


def load_features(
    cache: Cache, groups: Sequence[str], spec: CodeSpec, training: Training, size: int
) -> tuple[FeatureSet, Training]:
    """Read what a training needs: features and labels of at most `size` pictures, and features of their views.

    Args:
        cache: the features there are.
        groups: the feature groups to read.
        spec: the segments; those named like a label level learn from its labels.
        training: its settings; the seed draws the pictures.
        size: how many pictures at most.

    Returns:
        The features, and the settings with a method.

    Raises:
        InputError: no pictures, or views that are needed are not there.
        OSError: a part is missing or damaged.
    """
    drawn = draw_rows([part.rows for part in cache.parts], size, training.seed)
    if not len(drawn):
        raise InputError(f'{cache.folder} holds no pictures')
    made, known = _read_groups(cache, 0, groups, drawn, ('labels', 'caption'))
    values = [dict(row['labels']) for row in known]
    levels = dict.fromkeys(level for row in values for level in row)
    labels = {level: LabelLevel.from_values([row.get(level, ()) for row in values]) for level in levels}
    training = choose_method(training, spec, labels)
    seen = view_groups(spec, training, labels)
    _check_views(cache, seen, training.views)
    views = (_read_groups(cache, v + 1, seen, drawn)[0] for v in range(training.views if seen else 0))
    return FeatureSet(made, tuple(views), labels, [row['caption'] for row in known]), training


def _check_views(cache: Cache, wanted: Sequence[str], views: int) -> None:
    key = cache.key
    missing = [name for name in wanted if name not in key.view_groups]
    if missing:
        has = f'views of {", ".join(key.view_groups)}' if key.view_groups else 'no views'
        raise InputError(
            f'the training needs augmented views of {", ".join(wanted)}; {cache.folder} has {has}: '
            'make the features with --views and without --labels'
        )
    if wanted and views > len(key.view_seeds):
        raise InputError(f'the training needs {views} views; {cache.folder} has {len(key.view_seeds)}')


def _read_groups(
    cache: Cache, view: int, groups: Sequence[str], drawn: NDArray[np.int64], columns: Sequence[str] = ()
) -> tuple[Groups, list[dict[str, Any]]]:
    """The groups, float32 [n, d], of the rows drawn, in their order, and the values of some other columns."""
    order = np.argsort(drawn, kind='stable')
    ascending = drawn[order]
    made: dict[str, NDArray[np.float32]] = {}
    known: list[dict[str, Any]] = [{} for _ in drawn]
    for start, batch in _batches(cache, view, [*groups, *columns], ascending):
        first, last = np.searchsorted(ascending, [start, start + len(batch)])
        rows, places = ascending[first:last] - start, order[first:last]
        if not len(rows):
            continue
        for name in groups:
            vectors = batch[name].flatten().to_numpy().reshape(len(batch), -1)
            made.setdefault(name, np.empty((len(drawn), vectors.shape[1]), np.float32))[places] = vectors[rows]
        if columns:
            described = batch.select(list(columns)).take(pa.array(rows)).to_pylist()
            for place, value in zip(places.tolist(), described, strict=True):
                known[place] = value
    return made, known


def _batches(
    cache: Cache, view: int, columns: Sequence[str], ascending: NDArray[np.int64]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of rows from the parts that have rows drawn, each with the number of its first row."""
    start = 0
    for part in cache.parts:
        first, last = np.searchsorted(ascending, [start, start + part.rows])
        if first < last:
            path = files.join(cache.folder, view_path(view, part.name))
            with _open(path) as file:
                if file.metadata.num_rows != part.rows:
                    raise OSError(f'it has {file.metadata.num_rows} rows; {MANIFEST} says {part.rows}')
                at = start
                for batch in file.iter_batches(columns=list(columns)):
                    yield at, batch
                    at += len(batch)
        start += part.rows


@contextlib.contextmanager
def _open(uri: str) -> Iterator[pq.ParquetFile]:
    filesys, path = files.filesystem(uri)
    try:
        with filesys.open_input_file(path) as file:
            yield pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as e:
        raise OSError(f'cannot read {uri}: {e}') from e
