"""The query job: queries -> codes -> plan -> partitions that can hold an answer -> exact answers in one file.

    grainhash query --index DIR (--images PATTERN... | --ids FILE | --codes PATTERN...) --k 10 --output FILE

    units or ids -> EncodeQueries / FindIds -> Plan: codes, bounds and radii of all queries, a side input of the rest
    partition files -> Reshuffle -> FirstLook (where the queries' own keys are) -> Tighten the bounds
                                 -> Search -> ByPart -> GroupByKey -> Describe -> WriteAnswers

Of a partition only the row groups are read whose keys lie near enough to some query's, of images those with answers.

The answers equal an exhaustive search's, ranked by (distance, row); see `pipelines/index/layout.py` for why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystems import FileSystems
from numpy.typing import NDArray

from hashing_model.codes import segment_distances
from hashing_model.errors import InputError
from pipelines.answers import answers_schema, rejects_path, write_rows
from pipelines.code_files import read_query_codes
from pipelines.encode import encode_unit, load_model
from pipelines.explain import plan_counts
from pipelines.index import code_tables, files
from pipelines.index.manifest import DataFile, Manifest
from pipelines.index.on_demand import bounded
from pipelines.index.partition_reader import read_near, read_rows
from pipelines.index.plan import Matches, SearchPlan, plan_search
from pipelines.records import UNKNOWN_ID, Reject, Source
from pipelines.run import InThreads, count, list_values
from pipelines.shards import ReadOptions, WorkUnit, read_unit

QUERIES_PER_BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class QueryConfig:
    """What is asked, of which index, and where the answers go.

    Args:
        folder: absolute path or uri of the version that answers.
        manifest: its manifest.
        output: path of the answers, `.parquet` or `.jsonl`.
        ids: a text file with one image id per line; None when work units of images or codes ask.
        model: uri of the model that encodes query images; None when the units hold codes.
        options: which column or key of query images holds what.
        k: answers per query; None for all within `radius`.
        radius: largest weighted distance of an answer.
        profile: weight per segment.
        threads: per worker process; None for one per core.
        explain: whether to count how many queries probe each table how far.
    """

    folder: str
    manifest: Manifest
    output: str
    ids: str | None = None
    model: str | None = None
    options: ReadOptions = ReadOptions()
    k: int | None = 10
    radius: int | None = None
    profile: dict[str, int] | None = None
    threads: int | None = None
    explain: bool = False


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

    ids: list[str]
    plan: SearchPlan
    rejects: tuple[Reject, ...]


def define_pipeline(root: beam.Pipeline, config: QueryConfig, units: Sequence[WorkUnit] = ()) -> beam.PCollection:
    """Wire the whole query job; the result is one element, the number of answers written."""
    blocks = _ids_blocks(root, config) if config.ids else _unit_blocks(root, config, units)
    planned = root | 'One' >> beam.Create([None]) | 'Plan' >> beam.Map(make_plan, config, beam.pvalue.AsList(blocks))
    listed = [
        (number, partition.prefix, file)
        for number, table in enumerate(config.manifest.tables)
        for partition in table.partitions
        for file in partition.files
    ]
    partitions = root | 'Partitions' >> beam.Create(listed) | 'Spread' >> beam.Reshuffle()
    if config.k is None:
        plans = planned | 'PlanOnly' >> beam.Map(lambda p: p.plan)
    else:
        home = planned | 'AtHome' >> beam.Map(lambda p: p.plan.at_home())
        seen = partitions | 'FirstLook' >> Search(config, home)
        plans = planned | 'Tighten' >> beam.Map(tighten, config, beam.pvalue.AsList(seen))
    if config.explain:
        plans = plans | 'CountRadii' >> beam.Map(count_plan)
    described = (
        partitions
        | 'Search' >> Search(config, plans)
        | 'ByPart' >> beam.FlatMap(split_by_part).with_output_types(tuple[int, bytes])
        | 'GroupParts' >> beam.GroupByKey()
        | 'ListAnswers' >> beam.Map(list_values)
        | 'Describe' >> beam.ParDo(InThreads(describe_answers), config, beam.pvalue.AsSingleton(plans))
        | 'CountImages' >> beam.FlatMap(count_read)
    )
    return planned | 'WriteAnswers' >> beam.Map(write_answers, config, beam.pvalue.AsList(described))


class Search(beam.PTransform):
    """Partition files to the k nearest matches of each block of queries, under a plan (one element)."""

    def __init__(self, config: QueryConfig, plans: beam.PCollection):
        self.config = config
        self.plan = beam.pvalue.AsSingleton(plans)

    def expand(self, partitions: beam.PCollection) -> beam.PCollection:
        """(table, prefix, file) to (block of queries, matches)."""
        return (
            partitions
            | 'Open' >> beam.ParDo(InThreads(search_partition), self.config, self.plan)
            | 'CountRead' >> beam.FlatMap(count_read).with_output_types(tuple[int, Matches])
            | 'KeepNearest' >> beam.CombinePerKey(KeepNearest(self.config.k))
        )


def _unit_blocks(root: beam.Pipeline, config: QueryConfig, units: Sequence[WorkUnit]) -> beam.PCollection:
    return (
        root
        | 'Units' >> beam.Create(units)
        | 'SpreadUnits' >> beam.Reshuffle()
        | 'EncodeQueries' >> beam.Map(encode_queries, config)
    )


def _ids_blocks(root: beam.Pipeline, config: QueryConfig) -> beam.PCollection:
    ids = root | 'IdsFile' >> beam.Create([config.ids]) | 'ReadIds' >> beam.Map(read_ids)
    return (
        root
        | 'ImageParts' >> beam.Create(config.manifest.images)
        | 'SpreadParts' >> beam.Reshuffle()
        | 'FindIds' >> beam.Map(find_ids, config, beam.pvalue.AsSingleton(ids))
    )


def encode_queries(unit: WorkUnit, config: QueryConfig) -> QueryBlock:
    """The queries of one unit of images or codes."""
    spec = config.manifest.spec
    if config.model is None:
        ids, codes = read_query_codes(unit, spec)
        rejects: tuple[Reject, ...] = ()
    else:
        fingerprint = (config.manifest.model or {}).get('fingerprint')
        encoded = encode_unit(read_unit(unit, config.options), load_model(config.model, config.threads, fingerprint))
        ids = encoded.images['image_id'].to_pylist()
        codes, rejects = code_tables.codes_from_arrow(encoded.images['code']), encoded.rejects
    return QueryBlock((np.int64(unit.number) << 32) + np.arange(len(ids)), ids, codes, rejects)


def read_ids(path: str) -> list[str]:
    """The ids of a text file, one per line; blank lines give empty ids, so that ids keep their line numbers.

    Raises:
        InputError: the file is not UTF-8.
    """
    with FileSystems.open(path) as file:
        try:
            lines = file.read().decode().split('\n')
        except UnicodeDecodeError as e:
            raise InputError(f'{path} is not a UTF-8 text file: {e}') from e
    return [line.rstrip('\r') for line in lines]


def find_ids(part: DataFile, config: QueryConfig, ids: Sequence[str]) -> QueryBlock:
    """The queried ids that are in one images part, with their codes."""
    table = code_tables.read_file(config.folder, part, ['image_id', 'code'])
    asked = pa.array(ids, pa.string())
    at = pc.index_in(asked, table['image_id']).to_numpy(zero_copy_only=False)
    places = np.flatnonzero(~np.isnan(at.astype(float)))
    codes = code_tables.codes_from_arrow(table['code'])[at[places].astype(np.int64)]
    return QueryBlock(places, [ids[i] for i in places.tolist()], codes)


def make_plan(_: None, config: QueryConfig, blocks: Sequence[QueryBlock]) -> Planned:
    """All queries in order, with bounds and radii."""
    manifest = config.manifest
    places = np.concatenate([b.places for b in blocks] or [np.zeros(0, np.int64)])
    order = np.argsort(places, kind='stable')
    ids = [i for b in blocks for i in b.ids]
    codes = np.concatenate([b.codes for b in blocks] or [np.zeros((0, manifest.spec.num_bytes), np.uint8)])[order]
    rejects = [r for b in blocks for r in b.rejects]
    if config.ids:
        found = set(places.tolist())
        rejects += [
            Reject(Source(config.ids, str(line + 1)), UNKNOWN_ID, 'not in the index', image_id)
            for line, image_id in enumerate(read_ids(config.ids))
            if image_id.strip() and line not in found
        ]
    plan = plan_search(
        manifest.spec,
        manifest.tables,
        manifest.rows,
        codes[:0],  # the first look tells more than a sample
        codes,
        config.k,
        config.radius,
        config.profile,
    )
    count(queries=len(codes), rejected=len(rejects))
    return Planned([ids[i] for i in order], plan, tuple(rejects))


def search_partition(
    partition: tuple[int, str, DataFile], config: QueryConfig, plan: SearchPlan
) -> Iterator[tuple[dict[str, int], list[tuple[int, Matches]]]]:
    """What was read of one partition file (table, prefix, file), if it was needed, and its answers by query block."""
    table, prefix, file = partition
    which = plan.queries_for(table, prefix)
    if not len(which):
        return
    rows, amount = read_near(
        config.folder, file, plan.substrings[table], plan.keys(table)[which], plan.radii[which, table]
    )
    blocks = which // QUERIES_PER_BLOCK
    found = [(b, plan.search(table, prefix, rows, which[blocks == b])) for b in np.unique(blocks).tolist()]
    yield (
        {
            'bytes_read': amount.bytes,
            'row_groups_read': amount.row_groups,
            'rows_read': amount.rows,
            'partitions_read': amount.files,
        },
        [(block, matches) for block, matches in found if len(matches.queries)],
    )


def count_read(element: tuple[dict[str, int], list[Any]]) -> list[Any]:
    """Count what was read for some results; the results."""
    counts, results = element
    count(**counts)
    return results


def tighten(planned: Planned, config: QueryConfig, seen: Sequence[tuple[int, Matches]]) -> SearchPlan:
    """The plan, with bounds from the answers of a first look, and from the sample where these are loose."""
    found = Matches.merged((matches for _, matches in seen), planned.plan.k)
    return bounded(config.folder, config.manifest, planned.plan.tightened(found))


def count_plan(plan: SearchPlan) -> SearchPlan:
    """The plan as it came; counts what `explain.print_plan` tells."""
    count(**plan_counts(plan))
    return plan


class KeepNearest(beam.CombineFn):
    """Merges disjoint matches and keeps the k nearest of each query."""

    def __init__(self, k: int | None):
        self.k = k

    def create_accumulator(self) -> list[Matches]:
        """No matches yet."""
        return []

    def add_input(self, kept: list[Matches], more: Matches) -> list[Matches]:
        """Merge those of one partition."""
        return self.merge_accumulators([kept, [more]])

    def merge_accumulators(self, several: Iterable[list[Matches]]) -> list[Matches]:
        """Merge matches of several bundles."""
        return [Matches.merged((m for kept in several for m in kept), self.k)]

    def extract_output(self, kept: list[Matches]) -> Matches:
        """The nearest matches, ordered by (query, distance, row)."""
        return Matches.merged(kept, self.k)


def split_by_part(element: tuple[int, Matches]) -> Iterator[tuple[int, bytes]]:
    """Ranked matches by the images part that knows them: (part, int64 quadruples of query, rank, distance, row)."""
    matches = element[1]
    ranked = np.column_stack([matches.queries, matches.ranks + 1, matches.distances, matches.rows])
    parts = matches.rows >> 32
    for part in np.unique(parts).tolist():
        yield part, ranked[parts == part].astype('<i8').tobytes()


def describe_answers(
    element: tuple[int, Iterable[bytes]], config: QueryConfig, plan: SearchPlan
) -> Iterator[tuple[dict[str, int], list[bytes]]]:
    """Answers of one images part with what is known of them, as an Arrow stream with the query's number as id."""
    part, blocks = element
    spec = config.manifest.spec
    queries, ranks, distances, rows = np.frombuffer(b''.join(blocks), '<i8').reshape(-1, 4).T
    columns = ['image_id', 'labels', 'caption', 'source', 'code']
    images, amount = read_rows(config.folder, config.manifest.images[part], rows & 0xFFFFFFFF, columns)
    by_segment = segment_distances(plan.codes[queries], code_tables.codes_from_arrow(images['code']), spec)
    answers = {
        'query': pa.array(queries),
        'rank': pa.array(ranks, pa.int32()),
        'distance': pa.array(distances, pa.int32()),
        **{f'distance_{name}': pa.array(by_segment[:, i]) for i, name in enumerate(spec.names)},
        **{name: images[name] for name in columns[:-1]},
    }
    sink = pa.BufferOutputStream()
    table = pa.table(answers)
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    counts = {'bytes_read': amount.bytes, 'image_row_groups_read': amount.row_groups}
    yield counts, [sink.getvalue().to_pybytes()]


def write_answers(planned: Planned, config: QueryConfig, described: Sequence[bytes]) -> int:
    """Order all answers by query and rank and write the output file, and the rejects beside it if there are any."""
    schema = answers_schema(config.manifest.spec)
    tables = [pa.ipc.open_stream(block).read_all() for block in described]
    if tables:
        answers = pa.concat_tables(tables).sort_by([('query', 'ascending'), ('rank', 'ascending')])
        query_ids = pa.array(planned.ids, pa.string()).take(answers['query'].combine_chunks())
        answers = answers.append_column('query_id', query_ids).select(schema.names).cast(schema)
    else:
        answers = schema.empty_table()
    write_rows(config.output, answers)
    if planned.rejects:
        rejects = pa.Table.from_pylist([dataclasses.asdict(r) for r in planned.rejects], code_tables.REJECTS)
        write_rows(rejects_path(config.output), rejects)
    else:
        files.delete_file(rejects_path(config.output))  # an earlier run's
    count(answers=len(answers))
    return len(answers)


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
