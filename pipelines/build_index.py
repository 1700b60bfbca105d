"""The build job: work units -> encoded images -> code tables partitioned by prefix -> a published version.

    grainhash build --images PATTERN... --model DIR --index DIR

    units -> Reshuffle -> Encode            staged images part and rejects of each unit; its ids
          -> FindDuplicates -> FinishPart   images/part-*.parquet and rejects/part-*.parquet, without duplicates
          -> CountRows -> Histograms -> Layout (side inputs)
          -> CutCodes -> GroupByKey -> WritePartition     codes/table=T/prefix=P/part-N.parquet
          -> Publish                        everything checked, quality.json, manifest.json, then CURRENT

Elements are file numbers and `blocks`; a repeated bundle writes the same names with the same content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.assemble import (
    SAMPLE_ROWS,
    BuildConfig,
    Part,
    PartitionKey,
    cut_codes,
    keep_sample,
    make_layout,
    part_histograms,
    publish_version,
    sample_part,
    write_partition,
)
from pipelines.blocks import Block, get_blocks, put_blocks
from pipelines.code_files import read_codes
from pipelines.duplicates import IDS, duplicate_places, split_ids, without_duplicates
from pipelines.encode import EncodedUnit, encode_unit, load_model, rejects_table
from pipelines.index import files, versions
from pipelines.index.code_tables import IMAGES_OPTIONS
from pipelines.index.manifest import DataFile
from pipelines.run import InThreads, count, list_values
from pipelines.shards import WorkUnit, read_unit

ID_BUCKETS = 16, 512  # at least and at most, 16 a unit between: a few 100,000 ids fit the processor's cache
CUT = tuple[PartitionKey, tuple[int, Block]]  # what a partition file gets of an images part, by the part's number

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Staged:
    """A unit that was encoded: where its rows and rejects wait for the duplicate search, how many records it gave.

    `rows` are those of the images. The names carry a digest of the content. Should a unit be encoded twice with other
    results (on another kind of processor, say), the attempt that counts is the one whose names arrive.
    """

    part: int
    images: str
    rows: int
    rejects: str
    records_read: int


def define_pipeline(root: beam.Pipeline, config: BuildConfig, units: Sequence[WorkUnit]) -> beam.PCollection:
    """Wire the whole build of work units numbered from 0; the result is one element, the rows published."""
    encoded = (
        root
        | 'Units' >> beam.Create(units)
        | 'Spread' >> beam.Reshuffle()
        | 'Encode' >> beam.ParDo(EncodeUnit(config)).with_outputs('ids', main='staged')
    )
    duplicates = (
        encoded.ids
        | 'GroupIds' >> beam.GroupByKey()
        | 'ListIds' >> beam.Map(list_values)
        | 'FindDuplicates' >> beam.ParDo(InThreads(bucket_duplicates)).with_output_types(tuple[int, bytes])
    )
    parts = (
        {'staged': encoded.staged | 'ByPart' >> beam.Map(lambda s: (s.part, s)), 'duplicates': duplicates}
        | 'JoinDuplicates' >> beam.CoGroupByKey()
        | 'FinishPart' >> beam.ParDo(FinishPart(config))
    )
    rows = beam.pvalue.AsSingleton(
        parts | 'PartRows' >> beam.Map(lambda p: p.images.rows) | 'CountRows' >> beam.CombineGlobally(sum)
    )
    index_layout = beam.pvalue.AsSingleton(
        parts
        | 'CountKeys' >> beam.Map(part_histograms, config, rows)
        | 'AddHistograms' >> beam.CombineGlobally(AddHistograms())
        | 'CutPrefixes' >> beam.Map(make_layout, config, rows)
    )
    partitions = (
        parts
        | 'SpreadParts' >> beam.Reshuffle()
        | 'CutCodes' >> beam.ParDo(InThreads(cut_codes), config, index_layout).with_output_types(CUT)
        | 'GroupPartitions' >> beam.GroupByKey()
        | 'ListBlocks' >> beam.Map(list_values)
        | 'WritePartition' >> beam.ParDo(InThreads(write_partition), config, index_layout)
    )
    sample = parts | 'SamplePart' >> beam.Map(sample_part, config) | 'Sample' >> beam.CombineGlobally(Sample())
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
        )
    )


class EncodeUnit(beam.DoFn):
    """Read, decode and encode one unit; stage its image rows and rejects; emit its ids."""

    def __init__(self, config: BuildConfig):
        self.config = config
        self.buckets = min(max(16 * config.unit_count, ID_BUCKETS[0]), ID_BUCKETS[1])

    def process(self, unit: WorkUnit) -> Iterator[Any]:
        """One `Staged`, and ('ids', (bucket, (unit number, block))) for the duplicate search."""
        encoded = self._encode(unit)
        log.info(
            'unit %d of %d, %s: %d records, %d rejected',
            unit.number + 1,
            self.config.unit_count,
            unit.shard,
            encoded.records_read,
            len(encoded.rejects),
        )
        images = self._stage('images', unit.number, files.table_bytes(encoded.images, **IMAGES_OPTIONS))
        rejects = self._stage('rejects', unit.number, files.table_bytes(rejects_table(encoded.rejects)))
        count(records_read=encoded.records_read, rejected=len(encoded.rejects), encoded=len(encoded.images))
        yield Staged(unit.number, images, len(encoded.images), rejects, encoded.records_read)
        split = list(split_ids(encoded.images['image_id'], self.buckets))
        uri = self.config.path(f'{images}.ids')
        for (bucket, _), block in zip(split, put_blocks(uri, (batch for _, batch in split)), strict=True):
            yield beam.pvalue.TaggedOutput('ids', (bucket, (unit.number, block)))

    def _encode(self, unit: WorkUnit) -> EncodedUnit:
        if self.config.model is None:
            return read_codes(unit, self.config.spec)
        fingerprint = (self.config.model_info or {}).get('fingerprint')
        model = load_model(self.config.model, self.config.threads, fingerprint)
        return encode_unit(read_unit(unit, self.config.options), model)

    def _stage(self, kind: str, number: int, content: pa.Buffer) -> str:
        digest = hashlib.blake2b(content, digest_size=8).hexdigest()
        path = f'{versions.STAGING_FOLDER}/{kind}-{number:05d}-{digest}.parquet'
        files.write_bytes(self.config.path(path), content)
        return path


class FinishPart(beam.DoFn):
    """Write a unit's images part without its duplicates, and its rejects with them."""

    def __init__(self, config: BuildConfig):
        self.config = config

    def process(self, element: tuple[int, dict[str, Iterable[Any]]]) -> Iterator[Part]:
        """(part number, its `Staged` and the places of its duplicates) to one `Part`."""
        number, joined = element
        (staged,) = joined['staged']
        places = np.frombuffer(b''.join(joined['duplicates']), '<u4')
        rejects = files.read_table(self.config.path(staged.rejects))
        if len(places):
            duplicates = np.zeros(staged.rows, bool)
            duplicates[places] = True
            images, dropped = without_duplicates(files.read_table(self.config.path(staged.images)), duplicates)
            rejects = pa.concat_tables([rejects, dropped])
            content = files.table_bytes(images, **IMAGES_OPTIONS)
        else:
            content = files.read_bytes(self.config.path(staged.images))
        rows = staged.rows - len(places)
        count(duplicates=len(places), indexed=rows)
        of_rejects = len(rejects), files.table_bytes(rejects)
        yield Part(
            number,
            self._write(versions.images_path(number), rows, content),
            self._write(versions.rejects_path(number), *of_rejects) if len(rejects) else None,
            staged.records_read,
            {row['values']: row['counts'] for row in rejects['reason'].value_counts().to_pylist()},
        )

    def _write(self, name: str, rows: int, content: bytes | pa.Buffer) -> DataFile:
        return versions.write_data_file(self.config.folder, name, rows, content)


class AddHistograms(beam.CombineFn):
    """Sums, table by table, of key histograms given as lists of int64 arrays."""

    def create_accumulator(self) -> list[NDArray]:
        """No histograms yet."""
        return []

    def add_input(self, total: list[NDArray], one: list[NDArray]) -> list[NDArray]:
        """Add those of one part."""
        return [a + b for a, b in zip(total, one, strict=True)] if total else one

    def merge_accumulators(self, totals: Iterable[list[NDArray]]) -> list[NDArray]:
        """Add sums."""
        merged: list[NDArray] = []
        for total in totals:
            merged = self.add_input(merged, total) if total else merged
        return merged

    def extract_output(self, total: list[NDArray]) -> list[NDArray]:
        """The sum."""
        return total


class Sample(beam.CombineFn):
    """`keep_sample` of all parts: a uniform sample that a repeated bundle cannot change.

    Tables wait in a list until they are worth sorting out, so that many small parts cost little.
    """

    def create_accumulator(self) -> list[pa.Table]:
        """No images yet."""
        return []

    def add_input(self, kept: list[pa.Table], more: pa.Table) -> list[pa.Table]:
        """Rows of `code_tables.sample_schema` of one part."""
        return self.merge_accumulators([kept, [more]])

    def merge_accumulators(self, several: Iterable[list[pa.Table]]) -> list[pa.Table]:
        """All of them; sorted out, if there are many."""
        tables = list(itertools.chain(*several))
        return tables if sum(map(len, tables)) <= 4 * SAMPLE_ROWS else self.compact(tables)

    def compact(self, kept: list[pa.Table]) -> list[pa.Table]:
        """Only what may be in the sample, before it travels."""
        return [keep_sample(pa.concat_tables(kept))] if kept else []

    def extract_output(self, kept: list[pa.Table]) -> pa.Table:
        """The sample."""
        return keep_sample(pa.concat_tables(kept))


def bucket_duplicates(element: tuple[int, Iterable[tuple[int, Block]]]) -> Iterator[tuple[int, bytes]]:
    """Ids of one bucket, (unit number, block), to (unit number, places of ids that were seen before)."""
    numbers, blocks = zip(*element[1], strict=True)
    for number, places in duplicate_places(zip(numbers, get_blocks(blocks, IDS), strict=True)):
        yield number, places.astype('<u4').tobytes()
