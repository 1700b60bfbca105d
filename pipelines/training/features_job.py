"""The features job: work units -> feature groups of pictures and their views, in files that trainings read again.

    grainhash features --images PATTERN... --output DIR

    units -> Reshuffle -> MakeFeatures    a part of each unit that has none yet
          -> FinishFeatures               counts checked, features.json; parts of other pictures removed

Elements are units and counts; a repeated bundle writes the same names with the same content.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np

from hashing_model.errors import BuildError
from hashing_model.features.extractor import Extractor
from hashing_model.training.feature_key import FeatureKey, check_weights, extract_views
from pipelines import files
from pipelines.encoding.encode import decoded_batches, digest_of, rejects_table, sort_batch
from pipelines.encoding.models import library_versions
from pipelines.inputs.options import ReadOptions
from pipelines.inputs.shards import WorkUnit, read_unit
from pipelines.jobs.counts import count
from pipelines.records import Record, Reject
from pipelines.training.feature_cache import (
    Cache,
    FeaturePart,
    PartWriter,
    feature_rejects_path,
    find_part,
    row_schema,
    to_rows,
    write_cache,
)

BATCH_SIZE = 64  # pictures at a time, and rows of a row group

log = logging.getLogger(__name__)
_loading = threading.Lock()  # a runner may start several units at once in one process


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """What the job makes and where.

    Args:
        folder: absolute path or uri of the cache.
        key: which features.
        unit_count: how many work units there are.
        options: which column or key holds what.
        threads: per worker process; None for one per core.
    """

    folder: str
    key: FeatureKey
    unit_count: int
    options: ReadOptions = ReadOptions()
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class NamedUnit:
    """A work unit and the name of its part; see `feature_cache.part_name`."""

    unit: WorkUnit
    name: str


def define_pipeline(root: beam.Pipeline, config: FeaturesConfig, units: Sequence[NamedUnit]) -> beam.PCollection:
    """Wire the job; the result is one element, the finished `Cache`."""
    parts = (
        root
        | 'Units' >> beam.Create(units)
        | 'Spread' >> beam.Reshuffle()
        | 'MakeFeatures' >> beam.ParDo(MakeFeatures(config))
    )
    once = root | 'Once' >> beam.Create([None])
    return once | 'FinishFeatures' >> beam.Map(finish_features, config, beam.pvalue.AsList(parts))


class MakeFeatures(beam.DoFn):
    """Write the part of one unit, unless it is there."""

    def __init__(self, config: FeaturesConfig):
        self.config = config

    def process(self, named: NamedUnit) -> Iterator[FeaturePart]:
        """One `FeaturePart`."""
        unit, config = named.unit, self.config
        part = find_part(config.folder, unit.number, named.name, len(config.key.view_seeds))
        if part is None:
            extractor = load_extractor(config.key, config.threads)
            part = write_part(read_unit(unit, config.options), config, unit.number, named.name, extractor)
        log.info('unit %d of %d, %s: %d pictures', unit.number + 1, config.unit_count, unit.shard, part.rows)
        count(records_read=part.records_read, pictures=part.rows, reused=part.rows if part.reused else 0)
        yield part


def load_extractor(key: FeatureKey, threads: int | None = None) -> Extractor:
    """What makes the features of a key; loaded once per process.

    Raises:
        InputError: the backbone installed here has other weights than the key says.
    """
    with _loading:
        extractor = cached_extractor(key.backbone, key.resizing.size, key.groups, threads)
        check_weights(extractor, key)
    return extractor


@functools.lru_cache(maxsize=1)
def cached_extractor(backbone: str, size: int, groups: tuple[str, ...], threads: int | None) -> Extractor:
    """The extractor that was asked for last, so that the command that starts a local job shares it with the job."""
    return Extractor(backbone, size, groups, threads=threads)


def write_part(
    items: Iterable[Record | Reject], config: FeaturesConfig, number: int, name: str, extractor: Extractor
) -> FeaturePart:
    """Decode the records of one unit, make their features and those of their views, and write them and the rejects."""
    key, rejects, records_read, rows = config.key, [], 0, 0
    side = key.resizing.size
    empty = extract_views(np.empty((0, side, side, 3), np.uint8), [], extractor, key)
    dims = [{group: x.shape[1] for group, x in groups.items()} for groups in empty]
    schemas = [row_schema(view, sizes) for view, sizes in enumerate(dims)]
    with PartWriter(config.folder, name, schemas) as writer:
        for batch in decoded_batches(items, key.resizing, BATCH_SIZE):
            records_read += len(batch)
            records, decoded, bad = sort_batch(batch)
            rejects += bad
            if not records:
                continue
            rows += len(records)
            digests = [digest_of(record) for record in records]
            pixels = np.stack([d.pixels for d in decoded])
            for view, groups in enumerate(extract_views(pixels, digests, extractor, key)):
                writer.write(view, to_rows(records, digests, groups, schemas[view]))
        rejected = files.join(config.folder, feature_rejects_path(name))
        if rejects:
            files.write_table(rejected, rejects_table(rejects))
        else:
            files.delete_file(rejected)  # of an attempt that was killed, or when less could be read
        writer.finish()
    reasons = collections.Counter(reject.reason for reject in rejects)
    return FeaturePart(number, name, rows, records_read, dict(reasons))


def finish_features(_: None, config: FeaturesConfig, parts: Sequence[FeaturePart]) -> Cache:
    """Check that nothing is missing, and write `features.json`.

    Raises:
        BuildError: units or records are missing, or no picture could be read.
    """
    parts = sorted(parts, key=lambda part: part.number)
    if [part.number for part in parts] != list(range(config.unit_count)):
        raise BuildError(f'{len(parts)} of {config.unit_count} work units were finished')
    cache = Cache(config.folder, config.key, tuple(parts))
    tally = cache.tally.check()
    counters = {'records_read': tally.read, 'pictures': tally.used, 'rejected': tally.rejected}
    write_cache(cache, {**counters, 'reasons': dict(tally.reasons)}, library_versions())
    return cache
