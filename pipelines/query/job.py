"""The query job: queries -> codes -> plan -> partitions that can hold an answer -> exact answers in one file.

    grainhash query --index DIR (--images PATTERN... | --text TEXT... | --texts FILE | --ids FILE | --codes PATTERN...)
                    --k 10 --output FILE

    units, texts or ids -> EncodeQueries / EncodeTexts / FindIds
                                 -> Plan: codes, bounds and radii of all queries, a side input of the looks
    partition files -> Reshuffle -> FirstLook, where the queries' own keys are -> Tighten the bounds
                                 -> Search, all that the radii need, by blocks of queries
                                 -> ByPart -> GroupByKey -> Describe, images part by images part
                                 -> GroupByKey -> Render, block by block -> WriteAnswers, one file

The counts of every step go to WriteAnswers, too, which writes them beside the answers (`stats.py`). Only row groups
that can hold an answer are read. The answers, ranked by (distance, row), equal those of an exhaustive search;
`pipelines/index/layout.py` says why. Ids, codes, bounds and radii of all queries are in one element; matches and
answers are in blocks of queries.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import TaggedOutput
from numpy.typing import NDArray

from hashing_model.codes.bits import segment_distances
from hashing_model.errors import InputError
from hashing_model.model import HashModel
from pipelines import files
from pipelines.encoding.code_files import read_query_codes
from pipelines.encoding.encode import encode_unit
from pipelines.encoding.models import load_model
from pipelines.index import code_tables, layout
from pipelines.index.manifest import DataFile, Manifest
from pipelines.index.versions import Version
from pipelines.inputs.options import ReadOptions
from pipelines.inputs.shards import WorkUnit, read_unit
from pipelines.jobs.counts import counted, with_counts
from pipelines.jobs.runner import list_values
from pipelines.jobs.threads import InThreads
from pipelines.query.answers import (
    ANSWERS_PER_BLOCK,
    answers_schema,
    from_stream,
    query_rejects_path,
    render_block,
    to_stream,
    write_blocks,
    write_rows,
)
from pipelines.query.stats import bound_counts, look_counts, radius_counts, write_query_stats
from pipelines.records import UNKNOWN_ID, UNKNOWN_TEXT, Reject, Source
from pipelines.search.on_demand import bounded
from pipelines.search.partition_reader import find_texts, read_near, read_rows
from pipelines.search.search_plan import Matches, SearchPlan, add_matches, plan_search

TEXTS_PER_BLOCK = 4096
NO_KNOWN_WORD = 'the model has learned none of its words'
ALL_WITHIN_RADIUS = 64  # answers expected per query, where no k says
ANSWER = np.dtype([('query', '<i4'), ('rank', '<i4'), ('distance', '<i4'), ('row', '<u4')])  # row: in the images part
DESCRIBED = ('image_id', 'labels', 'caption', 'source')


@dataclasses.dataclass(frozen=True)
class QueryConfig:
    """What is asked, of which index, and where the answers go.

    Args:
        index: absolute path or uri of the index.
        version: id of the version that answers.
        output: path of the answers, `.parquet` or `.jsonl`.
        ids: a text file with one image id per line; None when something else asks.
        texts: a text file with one query per line; None when something else asks.
        text: queries in words; none when something else asks.
        model: uri of the model that encodes images and texts; None when ids or codes ask.
        options: which column or key of query images holds what.
        k: answers per query; None for all within `radius`.
        radius: largest weighted distance of an answer.
        profile: weight per segment.
        threads: per worker process; None for one per core.
    """

    index: str
    version: str
    output: str
    ids: str | None = None
    texts: str | None = None
    text: tuple[str, ...] = ()
    model: str | None = None
    options: ReadOptions = ReadOptions()
    k: int | None = 10
    radius: int | None = None
    profile: dict[str, int] | None = None
    threads: int | None = None

    @functools.cached_property
    def index_version(self) -> Version:
        """The version that is asked. Its manifest is not sent with the steps; each process reads it once."""
        return Version(self.index, self.version)

    @property
    def manifest(self) -> Manifest:
        """The manifest of the version that is asked."""
        return self.index_version.manifest

    @property
    def block_queries(self) -> int:
        """How many queries are searched for, described and written together."""
        return max(ANSWERS_PER_BLOCK // (self.k or ALL_WITHIN_RADIUS), 1)


@dataclasses.dataclass(frozen=True)
class QueryBlock:
    """Some queries: their places in the order asked, ids and codes; and those that could not be read."""

    places: NDArray[np.int64]
    ids: list[str]
    codes: NDArray[np.uint8]
    rejects: tuple[Reject, ...] = ()


@dataclasses.dataclass(frozen=True)
class Planned:
    """All queries in the order asked, and how to search for them."""

    ids: pa.Array
    plan: SearchPlan
    rejects: tuple[Reject, ...]


def define_pipeline(root: beam.Pipeline, config: QueryConfig, units: Sequence[WorkUnit] = ()) -> beam.PCollection:
    """Wire the whole query job; the result is one element, when the answers are written."""
    # Who asks what, and how to search for it
    blocks, counts = _asking_blocks(root, config, units)
    one = root | 'One' >> beam.Create([None])
    planned, of_plan = one | 'Plan' >> with_counts(beam.FlatMap(make_plan, config, beam.pvalue.AsList(blocks)))
    counts.append(of_plan)

    # A first look where near answers are likely makes the bounds tighter; then all that the bounds need
    partitions = one | 'Partitions' >> beam.FlatMap(list_partitions, config) | 'Spread' >> beam.Reshuffle()
    if config.k is None:
        plans = planned | 'PlanOnly' >> beam.Map(lambda p: p.plan)
    else:
        home = planned | 'AtHome' >> beam.Map(lambda p: p.plan.at_home())
        near, of_first_look = partitions | 'FirstLook' >> Search(config, home)
        seen = near | 'Bound' >> beam.Map(kth_bounds, config.k)
        plans, of_tighten = planned | 'Tighten' >> with_counts(beam.FlatMap(tighten, config, beam.pvalue.AsList(seen)))
        counts += of_first_look, of_tighten
    found, of_search = partitions | 'Search' >> Search(config, plans)

    # What is known of the answers, images part by images part, and the answers as they are written, block by block
    described, of_describe = (
        found
        | 'ByPart' >> beam.FlatMap(split_by_part).with_output_types(tuple[int, bytes])
        | 'GroupParts' >> beam.GroupByKey()
        | 'ListAnswers' >> beam.Map(list_values)
        | 'Describe'
        >> with_counts(beam.ParDo(InThreads(describe_answers), config).with_output_types(tuple[int, bytes]))
    )
    asked = planned | 'Asked' >> beam.FlatMap(asked_blocks, config).with_output_types(tuple[int, bytes])
    rendered, of_render = (
        (described, asked)
        | 'Together' >> beam.CoGroupByKey()
        | 'Render' >> with_counts(beam.FlatMap(render_answers, config).with_output_types(tuple[int, bytes]))
    )
    counts += of_search, of_describe, of_render  # each a side input: flattened to one, Beam's local runner gets stuck
    return planned | 'WriteAnswers' >> beam.Map(
        write_answers, config, beam.pvalue.AsIter(rendered), *map(beam.pvalue.AsIter, counts)
    )


class Search(beam.PTransform):
    """Searches partition files for the k nearest matches of each block of queries, by a plan; also outputs counts."""

    def __init__(self, config: QueryConfig, plans: beam.PCollection):
        self.config = config
        self.plan = beam.pvalue.AsSingleton(plans)

    def expand(self, partitions: beam.PCollection) -> tuple[beam.PCollection, beam.PCollection]:
        """(table, prefix, file) to (block of queries, matches)."""
        search = beam.ParDo(InThreads(search_partition_file), self.config, self.plan)
        found, counts = partitions | 'Open' >> with_counts(search.with_output_types(tuple[int, Matches]))
        return found | 'KeepNearest' >> beam.CombinePerKey(KeepNearest(self.config.k)), counts


def _asking_blocks(
    root: beam.Pipeline, config: QueryConfig, units: Sequence[WorkUnit]
) -> tuple[beam.PCollection, list[beam.PCollection]]:
    """The queries as `QueryBlock`s, and the counts of the steps that made them."""
    if config.ids:
        blocks, counts = _ids_blocks(root, config)
        return blocks, [counts]
    if config.texts or config.text:
        return root | 'Texts' >> beam.Create([None]) | 'EncodeTexts' >> beam.FlatMap(encode_texts, config), []
    blocks = (
        root
        | 'Units' >> beam.Create(units)
        | 'SpreadUnits' >> beam.Reshuffle()
        | 'EncodeQueries' >> beam.Map(encode_queries, config)
    )
    return blocks, []


def _ids_blocks(root: beam.Pipeline, config: QueryConfig) -> tuple[beam.PCollection, beam.PCollection]:
    ids = root | 'IdsFile' >> beam.Create([config.ids]) | 'ReadIds' >> beam.Map(read_lines)
    ordered = ids | 'OrderIds' >> beam.Map(sorted)
    return (
        root
        | 'OneList' >> beam.Create([None])
        | 'ImageParts' >> beam.FlatMap(lambda _: config.manifest.images)
        | 'SpreadParts' >> beam.Reshuffle()
        | 'FindIds'
        >> with_counts(beam.FlatMap(find_ids, config, beam.pvalue.AsSingleton(ids), beam.pvalue.AsSingleton(ordered)))
    )


def list_partitions(_: None, config: QueryConfig) -> Iterator[tuple[int, str, DataFile]]:
    """(table, prefix, file) of all partition files; listed by a step, as a job's graph could not hold very many."""
    for number, table in enumerate(config.manifest.tables):
        for partition in table.partitions:
            for file in partition.files:
                yield number, partition.prefix, file


def own_model(config: QueryConfig) -> HashModel:
    """The index's own model, loaded once per process.

    Raises:
        InputError: the version's folder holds another.
    """
    assert config.model is not None  # images or texts ask
    return load_model(config.model, config.threads, (config.manifest.model or {}).get('fingerprint'))


def encode_queries(unit: WorkUnit, config: QueryConfig) -> QueryBlock:
    """The queries of one unit of images or codes."""
    spec = config.manifest.spec
    if config.model is None:
        ids, codes = read_query_codes(unit, spec)
        rejects: tuple[Reject, ...] = ()
    else:
        encoded = encode_unit(read_unit(unit, config.options), own_model(config))
        ids = encoded.images['image_id'].to_pylist()
        codes, rejects = code_tables.codes_from_arrow(encoded.images['code']), encoded.rejects
    return QueryBlock(layout.row_numbers(unit.number, len(ids)), ids, codes, rejects)


def encode_texts(_: None, config: QueryConfig) -> Iterator[QueryBlock]:
    """The queries in words. Blank lines are skipped; a text without any word that the model knows is rejected."""
    model = own_model(config)
    lines = read_lines(config.texts) if config.texts else config.text
    asked = [(place, line.strip()) for place, line in enumerate(lines) if line.strip()]
    for start in range(0, len(asked), TEXTS_PER_BLOCK):
        places, texts = zip(*asked[start : start + TEXTS_PER_BLOCK], strict=True)
        codes, known = model.encode_text(texts)
        rejects = tuple(
            Reject(Source(config.texts or '--text', str(places[i] + 1)), UNKNOWN_TEXT, NO_KNOWN_WORD, texts[i])
            for i in np.flatnonzero(~known)
        )
        kept = np.flatnonzero(known)
        yield QueryBlock(np.array(places, np.int64)[kept], [texts[i] for i in kept], codes[kept], rejects)


def read_lines(path: str) -> list[str]:
    """The ids or queries of a text file, one per line; blank lines are kept, so that the others keep their numbers.

    Raises:
        InputError: the file is not UTF-8.
    """
    with FileSystems.open(path) as file:
        try:
            lines = file.read().decode('utf-8-sig').split('\n')
        except UnicodeDecodeError as e:
            raise InputError(f'{path} is not a UTF-8 text file: {e}') from e
    return [line.rstrip('\r') for line in lines]


def find_ids(
    part: DataFile, config: QueryConfig, ids: Sequence[str], ordered: Sequence[str]
) -> Iterator[QueryBlock | TaggedOutput]:
    """Find queried ids (also given in ascending order) in one images part: their codes, and the bytes read."""
    rows, read = find_texts(config.index_version, part, 'image_id', pa.array(ids, pa.string()), ordered)
    places = np.flatnonzero(rows >= 0)
    if len(places):
        found, more = read_rows(config.index_version, part, rows[places], ['code'])
        read += more
        yield QueryBlock(places, [ids[i] for i in places.tolist()], code_tables.codes_from_arrow(found['code']))
    yield counted(bytes_read=read.bytes)


def make_plan(_: None, config: QueryConfig, blocks: Sequence[QueryBlock]) -> Iterator[Planned | TaggedOutput]:
    """All queries in order, with bounds and radii."""
    manifest = config.manifest
    places = np.concatenate([b.places for b in blocks] or [np.zeros(0, np.int64)])
    order = np.argsort(places, kind='stable')
    ids = [i for b in blocks for i in b.ids]
    codes = np.concatenate([b.codes for b in blocks] or [np.zeros((0, manifest.spec.num_bytes), np.uint8)])[order]
    rejects = sorted((r for b in blocks for r in b.rejects), key=_place)
    if config.ids:
        found = set(places.tolist())
        rejects += [
            Reject(Source(config.ids, str(line + 1)), UNKNOWN_ID, 'not in the index', image_id)
            for line, image_id in enumerate(read_lines(config.ids))
            if image_id.strip() and line not in found
        ]
    none_yet = codes[:0]
    plan = plan_search(
        manifest.spec, manifest.tables, manifest.rows, none_yet, codes, config.k, config.radius, config.profile
    )
    yield Planned(pa.array(ids, pa.string()).take(pa.array(order)), plan, tuple(rejects))
    yield counted(queries=len(codes), rejected=len(rejects), **bound_counts('before', plan))
    if config.k is None:
        yield counted(**radius_counts(plan))


def _place(reject: Reject) -> tuple[str, str]:
    """The sort key of a reject: its shard, then its member, where numbers of rows and lines sort as numbers."""
    shard, member = reject.source.shard, reject.source.member
    return shard, member.rjust(20) if member.isdigit() else member


def search_partition_file(
    partition: tuple[int, str, DataFile], config: QueryConfig, plan: SearchPlan
) -> Iterator[tuple[int, Matches] | TaggedOutput]:
    """The answers of one partition file (table, prefix, file), in blocks of queries; the file is opened if needed."""
    table, prefix, file = partition
    which = plan.queries_for(table, prefix)
    if not len(which):
        return
    rows, read = read_near(
        config.index_version, file, plan.substrings[table], plan.keys(table)[which], plan.radii[which, table]
    )
    yield counted(**look_counts(1 if plan.reach else 2, table, read))
    starts = np.arange(0, len(plan.codes) + config.block_queries, config.block_queries)
    for block, asking in enumerate(np.split(which, np.searchsorted(which, starts[1:-1]))):
        if len(asking) and len((matches := plan.search(table, prefix, rows, asking)).rows):
            yield block, matches


def kth_bounds(element: tuple[int, Matches], k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The queries of a block that have k answers, and the distance of the k-th."""
    last = element[1].kth(k)
    return last.queries, last.distances


def tighten(
    planned: Planned, config: QueryConfig, seen: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
) -> Iterator[SearchPlan | TaggedOutput]:
    """The plan, with bounds from the answers of a first look, and from the sample where that pays."""
    plan = planned.plan
    if seen:
        queries, distances = (np.concatenate(arrays) for arrays in zip(*seen, strict=True))
        plan = plan.nearer(queries, distances)
    plan, read = bounded(config.index_version, plan)
    yield plan
    yield counted(bytes_read=read.bytes, **bound_counts('after', plan), **radius_counts(plan))


class KeepNearest(beam.CombineFn):
    """Merges matches and keeps the k nearest of each query. In a first look, several tables may give the same match."""

    def __init__(self, k: int | None):
        self.k = k

    def create_accumulator(self) -> list[Matches]:
        """No matches yet."""
        return []

    def add_input(self, kept: list[Matches], more: Matches) -> list[Matches]:
        """Add those of one partition."""
        return add_matches(kept, more, self.k)

    def merge_accumulators(self, several: Iterable[list[Matches]]) -> list[Matches]:
        """Merge matches of several bundles."""
        return self.compact([m for kept in several for m in kept])

    def compact(self, kept: list[Matches]) -> list[Matches]:
        """Merge all matches, before they are sent."""
        return [Matches.merged(kept, self.k)]

    def extract_output(self, kept: list[Matches]) -> Matches:
        """The nearest matches, ordered by (query, distance, row)."""
        return Matches.merged(kept, self.k)


def split_by_part(element: tuple[int, Matches]) -> Iterator[tuple[int, bytes]]:
    """Split the ranked matches of a block of queries by images part: (part, records of `ANSWER`)."""
    matches = element[1]
    answers = np.empty(len(matches.rows), ANSWER)
    answers['query'], answers['rank'] = matches.queries, matches.ranks + 1
    answers['distance'], answers['row'] = matches.distances, matches.rows & 0xFFFFFFFF
    parts = matches.rows >> 32
    for part in np.unique(parts).tolist():
        yield part, answers[parts == part].tobytes()


def describe_answers(
    element: tuple[int, Iterable[bytes]], config: QueryConfig
) -> Iterator[tuple[int, bytes] | TaggedOutput]:
    """Read what one images part says of its answers: Arrow streams by block of queries, and the bytes read."""
    part, blocks = element
    several = [np.frombuffer(block, ANSWER) for block in blocks]
    rows = np.unique(np.concatenate([answers['row'] for answers in several])).astype(np.int64)
    images, read = read_rows(config.index_version, config.manifest.images[part], rows, [*DESCRIBED, 'code'])
    yield counted(bytes_read=read.bytes)
    for answers in several:
        of_block = images.take(np.searchsorted(rows, answers['row']))
        for name in ('query', 'rank', 'distance'):
            of_block = of_block.append_column(name, pa.array(np.ascontiguousarray(answers[name])))
        yield int(answers['query'][0]) // config.block_queries, to_stream(of_block)


def asked_blocks(planned: Planned, config: QueryConfig) -> Iterator[tuple[int, bytes]]:
    """Ids and codes of the queries by block, as Arrow streams."""
    codes = code_tables.codes_to_arrow(planned.plan.codes)
    queries = pa.table({'id': planned.ids, 'code': codes})
    for block, start in enumerate(range(0, len(queries), config.block_queries)):
        yield block, to_stream(queries.slice(start, config.block_queries))


def render_answers(
    element: tuple[int, tuple[Iterable[bytes], Iterable[bytes]]], config: QueryConfig
) -> Iterator[tuple[int, bytes] | TaggedOutput]:
    """The answers to a block of queries, in order, as they will stand in the output; nothing if there are none."""
    block, (described, (asked,)) = element
    tables = [from_stream(stream) for stream in described]
    if not tables:
        return
    answers = pa.concat_tables(tables).sort_by([('query', 'ascending'), ('rank', 'ascending')])
    queries = from_stream(asked).take(answers['query'].to_numpy() - block * config.block_queries)
    spec = config.manifest.spec
    asking, found = (code_tables.codes_from_arrow(table['code']) for table in (queries, answers))
    by_segment = segment_distances(asking, found, spec)
    columns = {
        'query_id': queries['id'],
        **{name: answers[name] for name in ('rank', 'distance', *DESCRIBED)},
        **{f'distance_{name}': pa.array(by_segment[:, i]) for i, name in enumerate(spec.names)},
    }
    schema = answers_schema(spec)
    yield counted(answers=len(answers))
    yield block, render_block(config.output, pa.table(columns).select(schema.names).cast(schema))


def write_answers(
    planned: Planned,
    config: QueryConfig,
    rendered: Iterable[tuple[int, bytes]],
    *counts: Iterable[Mapping[str, int]],
) -> None:
    """Write the output file, the rejects beside it if there are any, and what the job counted."""
    blocks = (block for _, block in sorted(rendered))
    write_blocks(config.output, blocks, answers_schema(config.manifest.spec))
    if planned.rejects:
        rejects = pa.Table.from_pylist([dataclasses.asdict(r) for r in planned.rejects], code_tables.REJECTS)
        write_rows(query_rejects_path(config.output), rejects)
    else:
        files.delete_file(query_rejects_path(config.output))  # an earlier run's
    asked = {'index': config.index, 'version': config.version, 'k': config.k, 'radius': config.radius}
    write_query_stats(config.output, {**asked, 'profile': config.profile}, counts)


def check_model(manifest: Manifest, fingerprint: str) -> None:
    """Refuse a model whose codes do not fit the index's.

    Raises:
        InputError: another fingerprint than the index's, or an index built from codes.
    """
    wanted = check_has_model(manifest)['fingerprint']
    if wanted != fingerprint:
        raise InputError(
            f'the model does not fit the index: its fingerprint is {fingerprint[:12]}, '
            f'the index was built with {wanted[:12]}'
        )


def check_has_model(manifest: Manifest) -> Mapping[str, str]:
    """The manifest's note of its model.

    Raises:
        InputError: an index built from codes.
    """
    if manifest.model is None:
        raise InputError('the index was built from codes and has no model: ask with --codes or --ids')
    return manifest.model
