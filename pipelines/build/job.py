"""The build job: work units -> encoded images -> code tables partitioned by prefix -> a published version.

    grainhash build --images PATTERN... --model DIR --index DIR

    list of units -> Reshuffle -> Encode    staged images part and rejects of each unit, or those of the base
          -> GroupIdRuns -> SplitIds -> GroupByKey -> FindDuplicates
          -> FinishPart                     images/part-*.parquet and rejects/part-*.parquet, without duplicates
          -> GroupRuns -> CountKeys -> CutPrefixes (side input)
                       -> CutCodes -> GroupByKey -> WritePartition    codes/table=T/prefix=P/part-N.parquet
          -> Publish                        everything checked, quality.json, manifest.json, then CURRENT

Elements are file numbers and `blocks`; a repeated bundle writes the same names with the same content.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from pipelines import files
from pipelines.build.base import Origin, known_images, open_base, origin_of, read_images
from pipelines.build.config import BuildConfig
from pipelines.build.id_buckets import IdsOfBucket, compare_ids, split_base_run, split_run
from pipelines.build.part_runs import Runs
from pipelines.build.partitions import (
    SAMPLE_ROWS,
    Part,
    PartitionKey,
    count_keys,
    cut_codes,
    in_order,
    keep_sample,
    lay_out,
    sample_part,
    write_partition,
)
from pipelines.build.publish import publish_version
from pipelines.build.stats import Work
from pipelines.build.unit_list import read_unit_list
from pipelines.encoding.code_files import read_codes
from pipelines.encoding.encode import EncodedUnit, encode_unit, rejects_table
from pipelines.encoding.ids import without_duplicates
from pipelines.encoding.models import load_model
from pipelines.index import versions
from pipelines.index.code_tables import IMAGES_OPTIONS
from pipelines.index.manifest import DataFile
from pipelines.index.versions import Version
from pipelines.inputs.shards import WorkUnit, read_unit
from pipelines.jobs.blocks import Block
from pipelines.jobs.counts import count, distribute
from pipelines.jobs.runner import list_values
from pipelines.jobs.threads import InThreads
from pipelines.records import DUPLICATE_ID

CUT = tuple[PartitionKey, tuple[int, Block]]  # what a partition file gets of a run of images parts, by its number

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Staged:
    """A unit that was encoded or taken over: where its rows and rejects wait for the duplicate search.

    A unit may be encoded twice with different results, for example on two kinds of processors. The attempt whose
    element arrives counts: the names of its files have digests of their contents.

    Args:
        part: the unit's number.
        images: uri of its images; the name of a staged file has a digest of the content.
        rows: of the images.
        rejects: uri of its rejects, None if there are none.
        records_read: how many records it gave.
        origin: what it was made from.
        taken_over: whether the files are those of the base.
        reused: how many images got their codes from the base, if the unit as a whole was not taken over.
        work: when.
        sums: of `encode.Measures`.
    """

    part: int
    images: str
    rows: int
    rejects: str | None
    records_read: int
    origin: Origin
    taken_over: bool = False
    reused: int = 0
    work: Work | None = None
    sums: Mapping[str, int] = dataclasses.field(default_factory=dict)


def define_pipeline(root: beam.Pipeline, config: BuildConfig) -> beam.PCollection:
    """Wire the whole build of the work units of `write_unit_list`.

    The result is one element, the number of rows published.
    """
    # Encode, and find the ids that occur twice
    version = root | 'Version' >> beam.Create([config.index_version])
    encoded = (
        version
        | 'Units' >> beam.FlatMap(read_unit_list)
        | 'Spread' >> beam.Reshuffle()
        | 'Encode' >> beam.ParDo(EncodeUnit(config)).with_outputs('left', main='staged')
    )
    found = search_duplicates(version, encoded, config)

    # The images parts without duplicates, some together as runs
    parts = (
        {'staged': encoded.staged | 'ByPart' >> beam.Map(lambda s: (s.part, s)), 'duplicates': found.duplicates}
        | 'JoinDuplicates' >> beam.CoGroupByKey()
        | 'FinishPart' >> beam.ParDo(FinishPart(config))
    )
    part_runs, rows = cut_runs('Parts', parts | 'PartRows' >> beam.Map(lambda p: (p.number, p.images.rows)))
    runs = (
        parts
        | 'ByRun' >> beam.Map(lambda part, runs: (runs.of(part.number), part), part_runs)
        | 'GroupRuns' >> beam.GroupByKey()
        | 'ListParts' >> beam.Map(list_values)
    )

    # How the keys are spread decides the prefixes; then the codes go to their partitions
    index_layout = beam.pvalue.AsSingleton(
        runs
        | 'CountKeys' >> beam.ParDo(InThreads(count_keys), config, rows)
        | 'AddHistograms' >> beam.CombinePerKey(sum)
        | 'CutPrefixes' >> beam.Map(lay_out, config, rows)
        | 'ListTables' >> beam.combiners.ToList()
        | 'OrderTables' >> beam.Map(in_order)
    )
    partitions = (
        runs
        | 'CutCodes' >> beam.ParDo(InThreads(cut_codes), config, index_layout).with_output_types(CUT)
        | 'GroupPartitions' >> beam.GroupByKey()
        | 'ListBlocks' >> beam.Map(list_values)
        | 'WritePartition' >> beam.ParDo(InThreads(write_partition), config, index_layout)
    )

    # Once all files are there: check, judge, publish
    sample = parts | 'SamplePart' >> beam.Map(sample_part, config) | 'Sample' >> beam.CombineGlobally(MergeSamples())
    return (
        root
        | 'Once' >> beam.Create([None])
        | 'Publish'
        >> beam.Map(
            publish_version,
            config,
            index_layout,
            beam.pvalue.AsList(parts),
            beam.pvalue.AsList(partitions),
            beam.pvalue.AsSingleton(sample),
            beam.pvalue.AsSingleton(found.changes | 'AddChanges' >> beam.CombineGlobally(sum)),
        )
    )


def search_duplicates(version: beam.PCollection, encoded: Any, config: BuildConfig) -> Any:
    """Wire the comparison of all ids, bucket by bucket.

    The ids are those of `Staged` units and of the base's parts that are not taken over.

    Returns:
        `duplicates`, (part number, places of its duplicates as bytes), and `changes`, counts as `CHANGES` names them.
    """
    runs, rows = cut_runs('Staged', encoded.staged | 'StagedRows' >> beam.Map(lambda s: (s.part, s.rows)))
    ids = (
        encoded.staged
        | 'StagedIds' >> beam.Map(lambda s: (s.part, s.images, s.taken_over))
        | 'IdsByRun' >> beam.Map(lambda ids, runs: (runs.of(ids[0]), ids), runs)
        | 'GroupIdRuns' >> beam.GroupByKey()
        | 'ListStaged' >> beam.Map(list_values)
        | 'SplitIds' >> beam.ParDo(InThreads(split_run), config, rows).with_output_types(IdsOfBucket)
    )
    if config.base:
        gone = version | 'GoneParts' >> beam.FlatMap(parts_gone, config)
        left = (
            (gone, encoded.left)
            | 'PartsLeft' >> beam.Flatten()
            | 'LeftByRun' >> beam.Map(lambda part: (open_base(config.index, config.base).runs.of(part), part))
            | 'GroupLeftRuns' >> beam.GroupByKey()
            | 'ListLeft' >> beam.Map(list_values)
            | 'SplitLeft' >> beam.ParDo(InThreads(split_base_run), config, rows).with_output_types(IdsOfBucket)
        )
        ids = (ids, left) | 'AllIds' >> beam.Flatten()
    return (
        ids
        | 'GroupIds' >> beam.GroupByKey()
        | 'ListIds' >> beam.Map(list_values)
        | 'FindDuplicates'
        >> beam.ParDo(InThreads(compare_ids), bool(config.base)).with_outputs('changes', main='duplicates')
    )


def cut_runs(name: str, sizes: beam.PCollection) -> tuple[beam.pvalue.AsSingleton, beam.pvalue.AsSingleton]:
    """Side inputs of (part number, rows) elements: the `Runs` of the parts, and the rows of all."""
    runs = sizes | f'List{name}Rows' >> beam.combiners.ToList() | f'Cut{name}' >> beam.Map(Runs.cut)
    rows = runs | f'Count{name}' >> beam.Map(lambda r: r.rows)
    return beam.pvalue.AsSingleton(runs), beam.pvalue.AsSingleton(rows)


class EncodeUnit(beam.DoFn):
    """Take a unit over from the base, or read, decode and encode it; stage its image rows and rejects."""

    def __init__(self, config: BuildConfig):
        self.config = config

    def process(self, unit: WorkUnit) -> Iterator[Any]:
        """One `Staged`; ('left', part) of a base part that is replaced."""
        started = time.time()
        origin = origin_of(unit, self.config.options)
        taken = take_over(unit, origin, self.config)
        staged = taken or self._stage_unit(unit, origin)
        log.info(
            'unit %d of %d, %s: %s%d records, %d rejected',
            unit.number + 1,
            self.config.unit_count,
            unit.shard,
            'unchanged, ' if taken else f'{staged.reused} known, ' if staged.reused else '',
            staged.records_read,
            staged.records_read - staged.rows,
        )
        count(
            records_read=staged.records_read,
            rejected=staged.records_read - staged.rows,
            encoded=0 if taken else staged.rows - staged.reused,
            taken_over=staged.rows if taken else 0,
            reused=staged.reused,
        )
        yield dataclasses.replace(staged, work=Work(started, time.time()))
        if unit.base_part is not None and not taken:
            yield beam.pvalue.TaggedOutput('left', unit.base_part)

    def _stage_unit(self, unit: WorkUnit, origin: Origin) -> Staged:
        encoded = self._encode(unit)
        distribute(**encoded.measures)
        images = self._stage('images', unit.number, files.table_bytes(encoded.images, **IMAGES_OPTIONS))
        rejects = self._stage('rejects', unit.number, files.table_bytes(rejects_table(encoded.rejects)))
        staged = Staged(unit.number, images, len(encoded.images), rejects, encoded.records_read, origin)
        sums = {name: sum(values) for name, values in encoded.measures.items()}
        return dataclasses.replace(staged, reused=encoded.reused, sums=sums)

    def _encode(self, unit: WorkUnit) -> EncodedUnit:
        config = self.config
        if config.model is None:
            return read_codes(unit, config.spec)
        fingerprint = (config.model_info or {}).get('fingerprint')
        model = load_model(config.model, config.threads, fingerprint)
        known = known_images(open_base(config.index, config.base), unit.base_parts) if config.base else None
        return encode_unit(read_unit(unit, config.options), model, known)

    def _stage(self, kind: str, number: int, content: pa.Buffer) -> str:
        uri = self.config.index_version.path(
            f'{versions.STAGING_FOLDER}/{kind}-{number:05d}-{files.digest(content)}.parquet'
        )
        files.write_bytes(uri, content)
        return uri


def take_over(unit: WorkUnit, origin: Origin, config: BuildConfig) -> Staged | None:
    """The base's part of a unit, if nothing in the unit has changed since and the part is not damaged; else None."""
    if config.base is None or unit.base_part is None:
        return None
    base, part = open_base(config.index, config.base), unit.base_part
    if base.units[part] != origin:
        return None
    if read_images(base, part, []) is None:
        return None
    images, rejects = base.manifest.images[part], base.rejects_of(part)
    uris = base.path(images), base.path(rejects) if rejects else None
    return Staged(unit.number, uris[0], images.rows, uris[1], base.records_read[part], origin, True)


def parts_gone(version: Version, config: BuildConfig) -> list[int]:
    """The parts of the base that no unit of the new version takes over, such as those of shards that were deleted."""
    count = len(open_base(config.index, config.base).units)
    return sorted(set(range(count)) - {unit.base_part for unit in read_unit_list(version)})


class FinishPart(beam.DoFn):
    """Write a unit's images part without its duplicates, and its rejects with them."""

    def __init__(self, config: BuildConfig):
        self.config = config

    def process(self, element: tuple[int, dict[str, Iterable[Any]]]) -> Iterator[Part]:
        """(part number, its `Staged` and the places of its duplicates) to one `Part`."""
        started = time.time()
        number, joined = element
        (staged,) = joined['staged']
        places = np.frombuffer(b''.join(joined['duplicates']), '<u4')
        rejects = files.read_table(staged.rejects) if staged.rejects else rejects_table([])
        if len(places):
            duplicates = np.zeros(staged.rows, bool)
            duplicates[places] = True
            images, dropped = without_duplicates(files.read_table(staged.images), duplicates)
            rejects = pa.concat_tables([rejects, dropped])
            content = files.table_bytes(images, **IMAGES_OPTIONS)
        else:
            content = files.read_bytes(staged.images)
        rows = staged.rows - len(places)
        count(duplicates=len(places), indexed=rows)
        of_rejects = len(rejects), files.table_bytes(rejects)
        reasons = {row['values']: row['counts'] for row in rejects['reason'].value_counts().to_pylist()}
        count(**{f'rejected_{reason}': n for reason, n in reasons.items() if reason != DUPLICATE_ID})
        yield Part(
            number,
            self._write(versions.images_path(number), rows, content),
            self._write(versions.rejects_path(number), *of_rejects) if len(rejects) else None,
            staged.records_read,
            reasons,
            staged.origin,
            staged.taken_over,
            staged.reused,
            staged.work,
            Work(started, time.time()),
            staged.sums,
        )

    def _write(self, name: str, rows: int, content: bytes | pa.Buffer) -> DataFile:
        return self.config.index_version.write(name, rows, content)


class MergeSamples(beam.CombineFn):
    """Combines the samples of all parts by `keep_sample`: a uniform sample, which a repeated bundle does not change.

    Tables are collected and reduced only when they have many rows, so that many small parts cost little.
    """

    def create_accumulator(self) -> list[pa.Table]:
        """No images yet."""
        return []

    def add_input(self, kept: list[pa.Table], more: pa.Table) -> list[pa.Table]:
        """Rows of `code_tables.sample_schema` of one part."""
        return self.merge_accumulators([kept, [more]])

    def merge_accumulators(self, several: Iterable[list[pa.Table]]) -> list[pa.Table]:
        """All tables, reduced to the sample if they have many rows."""
        tables = list(itertools.chain(*several))
        return tables if sum(map(len, tables)) <= 4 * SAMPLE_ROWS else self.compact(tables)

    def compact(self, kept: list[pa.Table]) -> list[pa.Table]:
        """Only the rows that may be in the sample, before they are sent."""
        return [keep_sample(pa.concat_tables(kept))] if kept else []

    def extract_output(self, kept: list[pa.Table]) -> pa.Table:
        """The sample."""
        return keep_sample(pa.concat_tables(kept))
