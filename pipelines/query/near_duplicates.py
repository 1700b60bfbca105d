"""Groups of images of an index that are near to each other, as a Beam job: which to keep, which to drop.

    grainhash duplicates --index DIR --radius R --output FILE

    partitions -> Reshuffle -> Link each with those near to it -> Join, as many links as needed -> Number the groups
               -> Describe, images part by images part -> GroupByKey -> Render, block by block -> WriteGroups, one file

Two images are in one group if a chain of images leads from one to the other, each within the radius of the next. The
groups are exact for the same reason as searches are: two images within the radius differ, in at least one table, in no
more bits than that table's radius (see `index/layout.py`). One worker joins all links, and one writes each group.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import TaggedOutput
from numpy.typing import NDArray

from hashing_model.codes.bits import segment_distances, to_words
from pipelines.index import code_tables
from pipelines.index.code_tables import CodeRows
from pipelines.index.layout import (
    choose_radii,
    groups_of,
    near_prefixes,
    probe_costs,
    scanned_table,
    substring_keys,
    table_weights,
)
from pipelines.index.manifest import Manifest, Partition, Table
from pipelines.index.versions import Version
from pipelines.jobs.counts import counted, with_counts
from pipelines.jobs.runner import list_values
from pipelines.jobs.threads import InThreads
from pipelines.query.answers import ANSWERS_PER_BLOCK, from_stream, render_block, to_stream, write_blocks
from pipelines.query.stats import read_counts, write_query_stats
from pipelines.search import kernels
from pipelines.search.kernels import KeyedCodes
from pipelines.search.multi_index import number_rows
from pipelines.search.near_pairs import distinct_codes, groups_linked, join_near, spanning
from pipelines.search.partition_reader import CODE_COLUMNS, Amount, read_all, read_rows
from pipelines.search.search_plan import Metric

LINKS_AT_ONCE = 1 << 22  # that wait to be joined
PLANNED = 256  # codes of the sample that are compared with all of it
MEMBER = np.dtype([('block', '<i4'), ('group', '<i8'), ('row', '<u4')])  # row: in the images part
DESCRIBED = ('image_id', 'width', 'height', 'labels', 'caption', 'source', 'digest', 'code')
GROUPS = pa.schema(
    [
        ('group', pa.int64()),
        ('keep', pa.bool_()),
        ('image_id', pa.string()),
        ('distance', pa.int32()),
        ('same_bytes', pa.bool_()),
        ('width', pa.int32()),
        ('height', pa.int32()),
        ('labels', code_tables.LABELS),
        ('caption', pa.string()),
        ('source', code_tables.SOURCE),
    ]
)


@dataclasses.dataclass(frozen=True)
class DuplicatesConfig:
    """Which images count as near-duplicates, of which index, and where the groups go.

    Args:
        index: absolute path or uri of the index.
        version: id of its version.
        output: path of the groups, `.parquet` or `.jsonl`.
        radius: largest weighted distance of two images that are near.
        profile: weight per segment.
        table_radii: see `plan_radii`.
    """

    index: str
    version: str
    output: str
    radius: int
    profile: dict[str, int] | None = None
    table_radii: tuple[int, ...] = ()

    @functools.cached_property
    def index_version(self) -> Version:
        """The version whose images are grouped. Its manifest is not sent with the steps; each process reads it once."""
        return Version(self.index, self.version)

    @property
    def manifest(self) -> Manifest:
        """The manifest of that version."""
        return self.index_version.manifest

    @property
    def segment_weights(self) -> tuple[int, ...]:
        """The weight of each segment."""
        return self.manifest.spec.weights(self.profile)

    @property
    def part_starts(self) -> NDArray[np.int64]:
        """The number of images in all images parts before each part, and in all parts.

        Added to a row in a part, it numbers an image.
        """
        return np.cumsum([0, *(part.rows for part in self.manifest.images)])


def plan_radii(config: DuplicatesConfig) -> tuple[int, ...]:
    """For each table, in how many bits of its substring a pair may differ to be found there.

    The number is negative for tables that are not used. The sample is read, because the cost depends on how near
    different codes are; equal codes are joined without a search.

    Raises:
        OSError: the sample cannot be read.
    """
    manifest, metric = config.manifest, Metric.of(config.manifest.spec, config.segment_weights)
    sample, _ = read_all(config.index_version, manifest.sample, ['code'])
    codes = to_words(code_tables.codes_from_arrow(sample['code']))
    distinct = codes[distinct_codes(codes & np.bitwise_or.reduce(metric.masks, axis=0))[0]]
    rows = math.ceil(manifest.rows * len(distinct) / max(len(codes), 1))
    some = np.random.default_rng(0).permutation(distinct)[:PLANNED]
    weights, costs = table_weights([t.substring for t in manifest.tables], config.segment_weights), []
    for substring in (table.substring for table in manifest.tables):
        mask = substring.mask(manifest.spec.num_bytes)
        pairs = kernels.distance_histogram(some, distinct, mask, substring.bits)
        pairs[0] -= len(some)  # each with itself
        costs.append(probe_costs(np.cumsum(pairs) / max(pairs.sum(), 1), substring.bits, rows))
    return tuple(choose_radii(costs, weights, config.radius, float(costs[scanned_table(weights)][-1])))


def define_pipeline(root: beam.Pipeline, config: DuplicatesConfig) -> beam.PCollection:
    """Wire the whole job; the result is one element, when the groups are written."""
    one = root | 'One' >> beam.Create([None])
    links, of_link = (
        one
        | 'Partitions' >> beam.FlatMap(list_near_partitions, config)
        | 'Spread' >> beam.Reshuffle()
        | 'Link' >> with_counts(beam.ParDo(InThreads(link_partition), config))
    )
    members, of_number = (
        links
        | 'Join' >> beam.CombineGlobally(Join(config))
        | 'Number' >> with_counts(beam.FlatMap(number_groups, config).with_output_types(tuple[int, bytes]))
    )
    described, of_describe = (
        members
        | 'SpreadParts' >> beam.Reshuffle()
        | 'Describe'
        >> with_counts(beam.ParDo(InThreads(describe_members), config).with_output_types(tuple[int, bytes]))
    )
    rendered = (
        described
        | 'GroupBlocks' >> beam.GroupByKey()
        | 'ListMembers' >> beam.Map(list_values)
        | 'Render' >> beam.Map(render_groups, config).with_output_types(tuple[int, bytes])
    )
    counts = map(beam.pvalue.AsIter, (of_link, of_number, of_describe))
    return one | 'WriteGroups' >> beam.Map(write_groups, config, beam.pvalue.AsIter(rendered), *counts)


NearPartitions = tuple[int, int, list[int]]  # table, place of a partition, places of those near to it that follow


def list_near_partitions(_: None, config: DuplicatesConfig) -> Iterator[NearPartitions]:
    """The partitions that can hold a pair, each with itself and those after it in the same table."""
    for number, (table, radius) in enumerate(zip(config.manifest.tables, config.table_radii, strict=True)):
        if radius < 0:
            continue
        near = near_prefixes([p.prefix for p in table.partitions], radius)
        for place, others in enumerate(near):
            if table.partitions[place].rows:
                yield number, place, [other for other in others if table.partitions[other].rows]


def link_partition(element: NearPartitions, config: DuplicatesConfig) -> Iterator[NDArray[np.int64] | TaggedOutput]:
    """Find links between images' numbers, int64 [L, 2], that join all near pairs of a partition with those after it.

    It also outputs what was read.
    """
    number, place, near = element
    table, radii, join = config.manifest.tables[number], config.table_radii, Join(config)
    metric = Metric.of(config.manifest.spec, config.segment_weights)
    codes, equal, read = _read_distinct(table.partitions[place], config, metric)
    first = all(radius < 0 for radius in radii[:number])  # other tables need not link equal codes again
    kept = join.add_input(join.create_accumulator(), equal if first else equal[:0])
    for other in near:
        partition, others = table.partitions[other], codes
        if other != place:
            others, _, more = _read_distinct(partition, config, metric)
            read += more
        mine, its = (_keyed(table, *pair) for pair in ((table.partitions[place], codes), (partition, others)))
        pairs = join_near(mine, its, other == place, radii[number], metric.masks, metric.weights, config.radius)
        kept = join.add_input(kept, np.stack([codes.rows[pairs[:, 0]], others.rows[pairs[:, 1]]], axis=1))
    yield join.extract_output(kept)
    yield counted(**read_counts(read))


def _keyed(table: Table, partition: Partition, rows: CodeRows) -> KeyedCodes:
    """Rows of a partition as `join_near` takes them."""
    return KeyedCodes(rows.keys, rows.words, int(partition.prefix, 2), table.substring.bits - len(partition.prefix))


def _read_distinct(
    partition: Partition, config: DuplicatesConfig, metric: Metric
) -> tuple[CodeRows, NDArray[np.int64], Amount]:
    """One row of each distinct code of a partition, by key; links from these rows to the others; and what was read."""
    substring = config.manifest.tables[partition.table].substring
    mask, kept, links, total = np.bitwise_or.reduce(metric.masks, axis=0), [], [], Amount()
    for file in partition.files:
        table, read = read_all(config.index_version, file, CODE_COLUMNS)
        codes = code_tables.codes_from_arrow(table['code'])
        numbers = np.empty(len(codes), np.int64)
        if not number_rows(table['row'].to_numpy(), config.part_starts, numbers):
            raise OSError(f'{config.index_version.path(file.path)}: rows that no images part has')
        distinct, equal = _distinct(CodeRows(substring_keys(codes, substring), codes, numbers), mask)
        kept.append(distinct)
        links.append(equal)
        total += read
    distinct = kept[0]
    if len(kept) > 1:
        keys, codes, numbers = (np.concatenate([getattr(r, n) for r in kept]) for n in ('keys', 'codes', 'rows'))
        distinct, equal = _distinct(CodeRows.sorted(keys, codes, numbers), mask)
        links.append(equal)
    return distinct, np.concatenate(links), total


def _distinct(rows: CodeRows, mask: NDArray[np.uint64]) -> tuple[CodeRows, NDArray[np.int64]]:
    """One row of each code that is distinct in the bits of a mask, and links from these rows to the others."""
    firsts, pairs = distinct_codes(rows.words & mask)
    return rows.take(firsts), rows.rows[pairs]


class Join(beam.CombineFn):
    """Combines the links of all partitions, keeping only as many as are needed to join the same images."""

    def __init__(self, config: DuplicatesConfig):
        self.config = config

    def create_accumulator(self) -> list[NDArray[np.int64]]:
        """No links yet."""
        return []

    def add_input(self, kept: list[NDArray[np.int64]], more: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Add links. They are joined when there are as many new ones as were kept the last time."""
        kept.append(more)
        new = sum(len(links) for links in kept[1:])
        return self.compact(kept) if new > max(len(kept[0]), LINKS_AT_ONCE) else kept

    def merge_accumulators(self, several: Iterable[list[NDArray[np.int64]]]) -> list[NDArray[np.int64]]:
        """Links of several bundles."""
        merged = self.create_accumulator()
        for links in itertools.chain(*several):
            merged = self.add_input(merged, links)
        return merged

    def compact(self, kept: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        """Join all links, before they are sent."""
        return [self.extract_output(kept)]

    def extract_output(self, kept: list[NDArray[np.int64]]) -> NDArray[np.int64]:
        """The links that are needed, int64 [L, 2]."""
        return spanning(np.concatenate([np.zeros((0, 2), np.int64), *kept]), self.config.manifest.rows)


def number_groups(links: NDArray[np.int64], config: DuplicatesConfig) -> Iterator[tuple[int, bytes] | TaggedOutput]:
    """Number the groups, and list their members by images part: (part, records of `MEMBER`)."""
    numbers, groups = groups_linked(links, config.manifest.rows)
    parts = np.searchsorted(config.part_starts, numbers, side='right') - 1
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    largest = int(np.diff(np.append(starts, len(numbers))).max(initial=0))
    yield counted(groups=len(starts), images=len(numbers), largest=largest)
    members = np.empty(len(numbers), MEMBER)
    members['block'], members['group'] = starts[groups] // ANSWERS_PER_BLOCK, groups
    members['row'] = numbers - config.part_starts[parts]
    for part, places in groups_of(parts):
        yield part, members[places].tobytes()


def describe_members(
    element: tuple[int, bytes], config: DuplicatesConfig
) -> Iterator[tuple[int, bytes] | TaggedOutput]:
    """Read what one images part says of its members of groups: Arrow streams by block, and the bytes read."""
    part, members = element[0], np.frombuffer(element[1], MEMBER)
    rows = members['row'].astype(np.int64)
    images, read = read_rows(config.index_version, config.manifest.images[part], rows, DESCRIBED)
    images = images.append_column('group', pa.array(np.ascontiguousarray(members['group'])))
    images = images.append_column('row', pa.array((np.int64(part) << 32) + rows))
    yield counted(bytes_read=read.bytes)
    for block, places in groups_of(members['block'].astype(np.int64)):
        yield block, to_stream(images.take(places))


def render_groups(element: tuple[int, list[bytes]], config: DuplicatesConfig) -> tuple[int, bytes]:
    """The groups of a block, as they will stand in the output."""
    block, streams = element
    return block, render_block(config.output, choose_kept(pa.concat_tables(map(from_stream, streams)), config))


def choose_kept(images: pa.Table, config: DuplicatesConfig) -> pa.Table:
    """Members of groups as rows of `GROUPS`.

    The image with most pixels of each group is kept; of several, the first in the index.

    Args:
        images: the columns DESCRIBED, `group` and `row`.
    """
    pixels = pc.fill_null(pc.multiply(images['width'].cast(pa.int64()), images['height'].cast(pa.int64())), 0)
    order = np.lexsort((images['row'].to_numpy(), -pixels.to_numpy(), images['group'].to_numpy()))
    images = images.take(order)
    keep = np.diff(images['group'].to_numpy(), prepend=-1) != 0
    kept = images.take(np.flatnonzero(keep)[np.cumsum(keep) - 1])
    mine, its = (code_tables.codes_from_arrow(table['code']) for table in (images, kept))
    far = segment_distances(mine, its, config.manifest.spec) @ np.array(config.segment_weights)
    columns = {
        **{name: images[name] for name in images.column_names},
        'keep': pa.array(keep),
        'distance': pa.array(far),
        'same_bytes': pc.equal(images['digest'], kept['digest']),
    }
    return pa.table({name: columns[name] for name in GROUPS.names}).cast(GROUPS)


def write_groups(
    _: None, config: DuplicatesConfig, rendered: Iterable[tuple[int, bytes]], *counts: Iterable[Mapping[str, int]]
) -> None:
    """Write the output file, and what the job counted."""
    write_blocks(config.output, (block for _, block in sorted(rendered)), GROUPS)
    asked = {'index': config.index, 'version': config.version, 'radius': config.radius, 'profile': config.profile}
    write_query_stats(config.output, asked, counts)
