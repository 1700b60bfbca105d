"""The end of a build: everything checked, the manifest written, the version served.

Pure functions over what the steps before have written; the last step of `job.py` calls `publish_version`.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashing_model.errors import BuildError
from pipelines import files
from pipelines.build.base import UNSETTLED
from pipelines.build.config import BuildConfig
from pipelines.build.partitions import Part, TableLayout, WrittenPartition
from pipelines.build.stats import BuildStage, Work, write_build_stats
from pipelines.encoding.models import library_versions
from pipelines.index import code_tables, versions
from pipelines.index.code_tables import UNITS
from pipelines.index.manifest import CHANGES, DataFile, Manifest, Partition, Table
from pipelines.index.prune import prune_behind
from pipelines.index.versions import Version
from pipelines.quality.gate import enforce, judge
from pipelines.records import Tally
from pipelines.search.search_plan import selectivity

log = logging.getLogger(__name__)


def publish_version(
    _: None,
    config: BuildConfig,
    tables: Sequence[TableLayout],
    parts: Sequence[Part],
    partitions: Sequence[WrittenPartition],
    sample: pa.Table,
    changes: NDArray[np.int64] | int = 0,
) -> int:
    """Finish a version, publish it if it passes its gate, and prune older ones if asked; returns its number of rows.

    Runners may repeat it: a version that is finished is not written again, and `CURRENT` stays if it names the version.

    Raises:
        BuildError: something is missing, or another version was published since the build began.
        GateError: the version is finished, but failed its gate.
    """
    version = config.index_version
    if not version.finished:
        started = time.time()
        parts = sorted(parts, key=lambda p: p.number)
        manifest = describe_version(config, tables, parts, partitions, sample, changes)
        check_version(version.with_manifest(manifest))
        served = (config.believed or versions.look(config.index)).text
        manifest = judge(version.with_manifest(manifest), sample, config.gate, served)
        stages = [*describe_stages(parts, partitions), BuildStage.of('check', [Work(started, time.time())])]
        stats = write_build_stats(version.with_manifest(manifest), stages, config.started)
        manifest = dataclasses.replace(manifest, build=stats)
        files.flush(version.folder)  # a manifest must not outlive a loss of power that its files do not
        files.write_bytes(version.manifest_path, manifest.dumps(), durable=True)
    version = Version.open(config.index, config.version)
    try:
        enforce(version)
        versions.publish(config.index, config.version, config.believed)
    finally:
        delete_staged(config)
    if config.keep is not None:
        prune_behind(config.index, config.keep)
    return version.manifest.rows


def delete_staged(config: BuildConfig) -> None:
    """Remove the staged files. A failure is only logged, as `grainhash prune` can remove them later."""
    try:
        files.delete_folder(config.index_version.path(versions.STAGING_FOLDER))
    except OSError as e:
        log.warning('what was staged is left there: %s', e)


def describe_stages(parts: Sequence[Part], partitions: Sequence[WrittenPartition]) -> Iterator[BuildStage]:
    """The stages of the build up to the last partition file."""
    sums = sum((collections.Counter(p.sums) for p in parts), collections.Counter())
    milliseconds = {f'{name.removesuffix("_us")}_ms': us // 1000 for name, us in sums.items() if name.endswith('_us')}
    rejected = sum((collections.Counter(p.reasons) for p in parts), collections.Counter())
    yield BuildStage.of(
        'encode',
        [p.encoding for p in parts if p.encoding],
        records_read=sum(p.records_read for p in parts),
        taken_over=sum(p.images.rows for p in parts if p.taken_over),
        reused=sum(p.reused for p in parts),
        image_bytes=sums['image_bytes'],
        **milliseconds,
    )
    yield BuildStage.of(
        'finish',
        [p.finishing for p in parts if p.finishing],
        indexed=sum(p.images.rows for p in parts),
        **{f'rejected_{reason}': count for reason, count in sorted(rejected.items())},
        bytes=sum(p.images.bytes for p in parts),
    )
    yield BuildStage.of(
        'partition',
        [work for *_, work in partitions],
        rows=sum(file.rows for _, _, file, _ in partitions),
        bytes=sum(file.bytes for _, _, file, _ in partitions),
    )


def describe_version(
    config: BuildConfig,
    tables: Sequence[TableLayout],
    parts: Sequence[Part],
    partitions: Sequence[WrittenPartition],
    sample: pa.Table,
    changes: NDArray[np.int64] | int = 0,
) -> Manifest:
    """Write the sample and the list of units, and make the manifest, which is not written yet."""
    sampled = files.table_bytes(sample)
    return Manifest(
        version=config.version,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        spec=config.spec,
        model=config.model_info,
        tables=list_tables(tables, partitions, code_tables.codes_from_arrow(sample['code'])),
        images=tuple(p.images for p in parts),
        rejects=tuple(p.rejects for p in parts if p.rejects),
        inputs=config.inputs,
        counters=add_counters(parts, config.unit_count),
        libraries=library_versions(),
        sample=config.index_version.write(versions.SAMPLE_PATH, len(sample), sampled),
        model_files=tuple(list_model_files(config.index_version)),
        units=write_units(config.index_version, parts),
        changes=add_changes(parts, config.base, changes) if config.base else None,
    )


def list_model_files(version: Version) -> Iterator[DataFile]:
    """The files of a version's model, if it has one, as they are."""
    for name in files.sizes_below(version.model_path):
        path = f'{versions.MODEL_FOLDER}/{name}'
        content = files.read_bytes(version.path(path))
        yield DataFile(path, 0, len(content), files.digest(content))


def write_units(version: Version, parts: Sequence[Part]) -> DataFile:
    """Write what each part was made from, for a later incremental build."""
    rows = []
    for part in parts:
        settled = not UNSETTLED & set(part.reasons)
        content = part.origin.content if settled else ''
        rows.append({**dataclasses.asdict(part.origin), 'content': content, 'records_read': part.records_read})
    table = pa.Table.from_pylist(rows, schema=UNITS)
    return version.write(versions.UNITS_PATH, len(table), files.table_bytes(table))


def check_version(version: Version) -> None:
    """Refuse to publish a version of which something is missing.

    Raises:
        BuildError: a table whose number of rows differs from the indexed images, or a file that is missing or of
            another size.
    """
    manifest = version.manifest
    for number, table in enumerate(manifest.tables):
        held = sum(p.rows for p in table.partitions)
        if held != manifest.rows:
            raise BuildError(f'table {number} holds {held} rows; {manifest.rows} images were indexed')
    sizes = files.sizes_below(version.folder)
    for file in manifest.all_files:
        if sizes.get(file.path) != file.bytes:
            found = 'is missing' if file.path not in sizes else f'has {sizes[file.path]} bytes instead of {file.bytes}'
            raise BuildError(f'{version.path(file.path)} {found}: it was changed during the build')


def add_counters(parts: Sequence[Part], units: int) -> dict[str, Any]:
    """The manifest's counters of a build whose units are all finished.

    Raises:
        BuildError: a unit or records are missing, or nothing was indexed.
    """
    if [p.number for p in parts] != list(range(units)):
        raise BuildError(f'{len(parts)} of {units} work units were finished')
    reasons = sum((collections.Counter(p.reasons) for p in parts), collections.Counter())
    tally = Tally.of(sum(p.records_read for p in parts), sum(p.images.rows for p in parts), reasons).check()
    return {
        'records_read': tally.read,
        'indexed': tally.used,
        'rejected': tally.rejected,
        'duplicates': tally.duplicates,
        'reasons': dict(tally.reasons),
    }


def add_changes(parts: Sequence[Part], base: str, changes: NDArray[np.int64] | int) -> dict[str, Any]:
    """The manifest's `changes`: every image is added, changed or unchanged, or BuildError.

    Args:
        parts, base: of the version, and from which it was made.
        changes: int64 [4], the counts that `CHANGES` names; 0 if there was nothing to compare.
    """
    counts = dict(zip(CHANGES, np.broadcast_to(changes, len(CHANGES)).tolist(), strict=True))
    rows = sum(p.images.rows for p in parts)
    if counts['added'] + counts['changed'] + counts['unchanged'] != rows:
        raise BuildError(f'{rows} images were indexed: {", ".join(f"{n} {name}" for name, n in counts.items())}')
    return {
        'base': base,
        **counts,
        'units': sum(p.taken_over for p in parts),
        'images': sum(p.reused for p in parts),
    }


def list_tables(
    tables: Sequence[TableLayout], partitions: Sequence[WrittenPartition], sample: NDArray[np.uint8]
) -> tuple[Table, ...]:
    """The manifest's tables with every prefix of the layout, including prefixes without rows."""
    written = collections.defaultdict(list)
    for number, prefix, file, _ in partitions:
        written[number, prefix].append(file)
    return tuple(
        Table(
            table.substring,
            selectivity(sample, table.substring),
            tuple(
                Partition(number, prefix, tuple(sorted(written[number, prefix], key=lambda f: f.path)))
                for prefix in table.prefixes
            ),
        )
        for number, table in enumerate(tables)
    )
