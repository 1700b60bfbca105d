"""Which records have an id that an earlier record has: ids of runs of parts -> buckets of ids -> places of duplicates.

Pure functions over files and arrays; `build_index.py` wires them into a Beam job.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.assemble import BuildConfig, run_of
from pipelines.base_version import open_base, read_images
from pipelines.blocks import READING_THREADS, Block, get_blocks, put_blocks
from pipelines.duplicates import IDS, IDS_WITH_CONTENT, count_changes, duplicate_rows, list_ids, places_of, split_ids
from pipelines.index import files, versions

BUCKETS = 16, 512  # at least and at most
BUCKET_ROWS = 125_000  # whose ids fit the processor's cache

StagedIds = tuple[int, str, bool]  # of a unit: part number, uri of its images, whether they are the base's
IdsOfBucket = tuple[int, tuple[bool, int, Block]]  # bucket; what it gets of a run: is of the base, run number, block


def id_buckets(rows: int) -> int:
    """How many buckets the ids of so many images are compared in."""
    return min(max(rows // BUCKET_ROWS, BUCKETS[0]), BUCKETS[1])


def split_run(element: tuple[int, list[StagedIds]], config: BuildConfig, rows: int) -> Iterator[IdsOfBucket]:
    """The ids of a run of units by bucket."""
    run, units = element
    columns = ['image_id', 'digest', 'code'] if config.base else ['image_id']

    def read(unit: StagedIds) -> pa.Table:
        part, uri, taken_over = unit
        return list_ids(files.read_table(uri, columns), part, bool(config.base), taken_over)

    with ThreadPoolExecutor(READING_THREADS) as pool:
        yield from _put_ids(False, run, list(pool.map(read, sorted(units))), config, rows)


def by_base_run(part: int, config: BuildConfig) -> tuple[int, int]:
    """The run that a part of the base is in, and the part."""
    manifest = open_base(config.index, config.base).manifest
    return run_of(part, len(manifest.images), manifest.rows), part


def split_base_run(element: tuple[int, list[int]], config: BuildConfig, rows: int) -> Iterator[IdsOfBucket]:
    """The ids of a run of parts of the base that are not taken over, by bucket; none of a damaged part."""
    run, parts = element
    base = open_base(config.index, config.base)

    def read(part: int) -> pa.Table | None:
        images = read_images(base, part, ['image_id', 'digest', 'code'])
        return None if images is None else list_ids(images, part, with_content=True)

    with ThreadPoolExecutor(READING_THREADS) as pool:
        found = [ids for ids in pool.map(read, sorted(parts)) if ids is not None]
    if found:
        yield from _put_ids(True, run, found, config, rows)


def _put_ids(of_base: bool, run: int, ids: Sequence[pa.Table], config: BuildConfig, rows: int) -> Iterator[IdsOfBucket]:
    split = list(split_ids(pa.concat_tables(ids), id_buckets(rows)))
    uri = config.path(f'{versions.STAGING_FOLDER}/{"base-" if of_base else ""}ids-{run:05d}.arrow')
    for (bucket, _), block in zip(split, put_blocks(uri, (batch for _, batch in split)), strict=True):
        yield bucket, (of_base, run, block)


def compare_ids(element: tuple[int, list[tuple[bool, int, Block]]], with_base: bool) -> Iterator[Any]:
    """The ids of one bucket to (unit number, places of ids that were seen before).

    With a base, also one ('changes', counts of `count_changes`).
    """
    blocks = sorted(element[1], key=lambda block: block[:2])
    schema = IDS_WITH_CONTENT if with_base else IDS
    batches = get_blocks([block for *_, block in blocks], schema)
    of_units = [batch for (of_base, *_), batch in zip(blocks, batches, strict=True) if not of_base]
    ids = pa.Table.from_batches(of_units, schema)
    duplicates = duplicate_rows(ids)
    for number, places in places_of(duplicates):
        yield number, places.astype('<u4').tobytes()
    if with_base:
        left = pa.Table.from_batches(batches[len(of_units) :], schema)
        now = ids.filter(pc.invert(pc.is_in(ids['row'], pa.array(duplicates))))
        before = pa.concat_tables([ids.filter(ids['taken_over']), left])
        yield beam.pvalue.TaggedOutput('changes', [count_changes(now, before)])
