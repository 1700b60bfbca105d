"""The gate: checks of a finished version before it is served, whose findings are written to `quality.json`.

Each check is a function of the version's files, manifest and sample, and of the version that is served now. Checks that
compare versions are skipped if there is nothing to compare with. They read little; `grainhash verify` reads every byte.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import GateError, InputError
from hashing_model.evaluation import code_health, metrics
from hashing_model.evaluation.evaluate import label_levels
from hashing_model.evaluation.ranking import rank
from hashing_model.labels import LabelLevel
from pipelines import files
from pipelines.index import code_tables
from pipelines.index.layout import NOT_PROBED
from pipelines.index.manifest import DataFile, Gate, Manifest
from pipelines.index.versions import QUALITY_PATH, Version
from pipelines.search.on_demand import search_file
from pipelines.search.partition_reader import opened
from pipelines.search.search_plan import SearchPlan, plan_search

FORMAT_VERSION = 1
ASKED = 100  # images that must find themselves
QUERIES = 1_000  # that ask both versions
FEW = 100  # images or queries, below which figures say little
FOOTER_THREADS, SEARCH_THREADS = 16, 4


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits that a version must be within to be served.

    Args:
        max_reject_rate: share of the records read that may be rejected.
        max_fewer_rows: by what share it may have fewer images than the served version.
        max_equal_codes: share of the images that may have one and the same code.
        min_entropy: collision entropy that each segment must have, in bits (`code_health.substring_entropy`).
        max_map_loss: how much mAP it may lose against the served version.
    """

    max_reject_rate: float = 0.05
    max_fewer_rows: float = 0.1
    max_equal_codes: float = 0.5
    min_entropy: float = 0.01
    max_map_loss: float = 0.02

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            option = f'--{name.replace("_", "-")}'
            if name == 'min_entropy' and not 0 <= value <= 64:
                raise InputError(f'{option} is {value:g}; bits from 0 to 64 are possible')
            if name != 'min_entropy' and not 0 <= value <= 1:
                raise InputError(f'{option} is {value:g}; a share from 0 to 1 is needed (0.05 is 5 %)')


@dataclasses.dataclass(frozen=True)
class Check:
    """What one check found.

    Args:
        name: of the check.
        value: what was measured; None if nothing was.
        limit: what it may be at most; of `entropy`, at least.
        passed: whether it is within the limit; None if the check was skipped.
        detail: the finding in words.
        figures: more of what was measured, as plain JSON values.
    """

    name: str
    value: float | None
    limit: float
    passed: bool | None
    detail: str
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Served:
    """What the checks compare with: the served version's id, rows, code spec and sample."""

    version: str
    rows: int
    spec: CodeSpec
    sample: pa.Table


@dataclasses.dataclass(frozen=True)
class Compared:
    """The mAP of two versions at a label level, by some segments, on the same queries."""

    level: str
    segments: str
    queries: int
    new: float
    served: float

    @property
    def loss(self) -> float:
        """How much the new one has lost."""
        return self.served - self.new


def judge(version: Version, sample: pa.Table, limits: Limits | None, served: str | None) -> Manifest:
    """Check a version that is written but for its manifest, and write `quality.json`; returns the manifest with both.

    Args:
        version: with its manifest, as far as that is known.
        sample: rows of `code_tables.sample_schema`.
        limits: None for no checks.
        served: id of the version to compare with, None if there is none.
    """
    checks = list(check(version, sample, limits, *read_served(version.index, served))) if limits else []
    gate: Gate = 'skipped' if limits is None else 'failed' if any(c.passed is False for c in checks) else 'passed'
    found = {
        'format_version': FORMAT_VERSION,
        'gate': gate,
        'served': served,
        'checks': [dataclasses.asdict(c) for c in checks],
    }
    content = (json.dumps(found, indent=1, allow_nan=False) + '\n').encode()
    quality = version.write(QUALITY_PATH, 0, content)
    return dataclasses.replace(version.manifest, gate=gate, quality=quality)


def enforce(version: Version) -> None:
    """Refuse to serve a version that failed its gate.

    Raises:
        GateError: it failed; the message says what failed, and how to serve the version nevertheless.
    """
    if version.manifest.gate != 'failed':
        return
    path = version.path(QUALITY_PATH)
    failed = [c['detail'] for c in json.loads(files.read_bytes(path))['checks'] if c['passed'] is False]
    raise GateError(
        f'version {version.id} is finished but not served, because it failed its gate: {"; ".join(failed)}; '
        f'see {path}; grainhash promote {version.index} {version.id} serves it all the same'
    )


def read_served(index: str, version: str | None) -> tuple[Served | None, str]:
    """The version to compare with, or the reason why there is none.

    A served version that cannot be read must not block the next one.
    """
    if version is None:
        return None, 'no version was served before'
    try:
        served = Version.open(index, version)
        sample = served.read_table(served.manifest.sample)
    except (InputError, OSError) as e:
        return None, f'version {version}, which is served, cannot be read: {" ".join(str(e).split())}'
    return Served(version, served.manifest.rows, served.manifest.spec, sample), ''


def check(version: Version, sample: pa.Table, limits: Limits, served: Served | None, why_none: str) -> Iterator[Check]:
    """All checks of a version, given its sample, and the served version or why there is none."""
    manifest, codes = version.manifest, code_tables.codes_from_arrow(sample['code'])
    yield reject_rate(manifest.counters, limits.max_reject_rate)
    if served:
        yield fewer_rows(manifest.rows, served, limits.max_fewer_rows)
    else:
        yield skipped('fewer_rows', limits.max_fewer_rows, why_none)
    yield readable_files(version)
    yield self_retrieval(version, sample[:ASKED])
    yield equal_codes(codes, limits.max_equal_codes)
    yield entropy(codes, manifest, limits.min_entropy)
    if served:
        yield map_loss(sample, manifest.spec, served, limits.max_map_loss)
    else:
        yield skipped('map_loss', limits.max_map_loss, why_none)


def skipped(name: str, limit: float, why: str) -> Check:
    """A check that was not made."""
    return Check(name, None, limit, None, f'not checked: {why}')


# What was read, and what is there


def reject_rate(counters: Mapping[str, Any], limit: float) -> Check:
    """The share of the records read that were rejected. Duplicates do not count, as their image is in the index."""
    rejected, read = counters['rejected'], counters['records_read']
    share = rejected / read
    detail = f'{rejected:,} of {read:,} records were rejected, {percent(share)} (at most {percent(limit)})'
    if reasons := counters.get('reasons'):
        reason = max(reasons, key=lambda r: reasons[r])
        detail += f', {reasons[reason]:,} of them as {reason}'
    return Check('reject_rate', share, limit, share <= limit, detail)


def fewer_rows(rows: int, served: Served, limit: float) -> Check:
    """By what share the version has fewer images than the served one; 0 if it has more."""
    share = max(served.rows - rows, 0) / served.rows
    detail = (
        f'{rows:,} images, and version {served.version}, which is served, has {served.rows:,}: '
        f'{percent(share)} fewer (at most {percent(limit)})'
    )
    return Check('fewer_rows', share, limit, share <= limit, detail)


def readable_files(version: Version) -> Check:
    """How many Parquet files of the version cannot be opened, or have other rows than the manifest says."""
    listed = version.manifest.data_files
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        problems = [p for p in pool.map(functools.partial(_footer_problem, version), listed) if p]
    told = f', the first: {problems[0]}' if problems else ''
    detail = f'{len(problems):,} of {len(listed):,} files cannot be read{told}'
    return Check('readable_files', len(problems), 0, not problems, detail)


def _footer_problem(version: Version, file: DataFile) -> str | None:
    try:
        with opened(version, file):
            return None
    except OSError as e:
        return ' '.join(str(e).split())


# What is found


def self_retrieval(version: Version, asked: pa.Table) -> Check:
    """How many images do not find themselves at distance 0 in every table, each table searched alone in its files.

    Args:
        version: with its manifest.
        asked: rows of `code_tables.sample_schema`.
    """
    manifest = version.manifest
    codes, of_image = np.unique(code_tables.codes_from_arrow(asked['code']), axis=0, return_inverse=True)
    rows = asked['row'].to_numpy()
    plan = plan_search(manifest.spec, manifest.tables, manifest.rows, codes[:0], codes, k=None, radius=0)

    def search(table: int, prefix: str, file: DataFile) -> tuple[set[tuple[int, int, int]], str | None]:
        """(table, query, row) of the answers that are wanted, and what is wrong with the file."""
        try:
            found, _ = search_file(version, table, prefix, file, _alone(plan, table))
        except OSError as e:
            return set(), ' '.join(str(e).split())
        wanted = found.take(np.isin(found.rows, rows))  # other images may have these codes, too
        return {(table, q, r) for q, r in zip(wanted.queries.tolist(), wanted.rows.tolist(), strict=True)}, None

    jobs = [(p.table, p.prefix, file) for t in manifest.tables for p in t.partitions for file in p.files]
    with ThreadPoolExecutor(SEARCH_THREADS) as pool:
        results = list(pool.map(lambda job: search(*job), jobs))
    found = set().union(*(answers for answers, _ in results))
    asking = list(zip(of_image.ravel().tolist(), rows.tolist(), asked['image_id'].to_pylist(), strict=True))
    lost = [(t, i) for t in range(len(manifest.tables)) for q, row, i in asking if (t, q, row) not in found]
    count = len({image_id for _, image_id in lost})
    detail = f'{count} of {len(asked)} images do not find themselves'
    if lost:
        detail += f', the first: {lost[0][1]} in table {lost[0][0]}'
    problem = next((p for _, p in results if p), None)
    passed = not lost and problem is None
    return Check('self_retrieval', count, 0, passed, detail + (f': {problem}' if problem else ''))


def _alone(plan: SearchPlan, table: int) -> SearchPlan:
    """The plan, changed to look up one table only, under the queries' own keys."""
    radii = np.full((len(plan.codes), len(plan.substrings)), NOT_PROBED, np.int8)
    radii[:, table] = 0
    return dataclasses.replace(plan, radii=radii)


# How good the codes are


def equal_codes(codes: NDArray[np.uint8], limit: float) -> Check:
    """The share of images that have the most frequent code, of a sample uint8 [S, B]."""
    if len(codes) < FEW:
        return skipped('equal_codes', limit, f'{len(codes)} images are too few')
    largest = len(next(iter(code_health.collisions(codes, 1)), [0]))
    share = largest / len(codes)
    detail = (
        f'{largest:,} of {len(codes):,} images in the sample have one and the same code, {percent(share)} '
        f'(at most {percent(limit)})'
    )
    return Check('equal_codes', share, limit, share <= limit, detail)


def entropy(codes: NDArray[np.uint8], manifest: Manifest, limit: float) -> Check:
    """The least collision entropy H2 of a segment, of a sample uint8 [S, B]: 0 if all images agree in it.

    The figures also have the entropies of all segments and of the substrings of all tables; the latter tell how well
    the tables divide the codes.
    """
    if len(codes) < FEW:
        return skipped('entropy', limit, f'{len(codes)} images are too few')
    spec = manifest.spec
    of_segment = {s.name: code_health.substring_entropy(codes, spec.start(s.name), s.bits) for s in spec.segments}
    of_table = [code_health.substring_entropy(codes, t.substring.start, t.substring.bits) for t in manifest.tables]
    name = min(of_segment, key=lambda n: of_segment[n])
    least = of_segment[name]
    detail = f'segment {name} has a collision entropy of {least:.3g} bits (at least {limit:g})'
    return Check('entropy', least, limit, least >= limit, detail, {'segments': of_segment, 'tables': of_table})


def map_loss(sample: pa.Table, spec: CodeSpec, served: Served, limit: float) -> Check:
    """How much lower mAP is than that of the served version, for the images in both samples, with their present labels.

    Per label level, the first QUERIES of these images that have a label are the queries, and all of these images the
    database. It is measured with all segments together, and with the segment named like the level. The value is the
    greatest loss.
    """
    if 'image_id' not in served.sample.column_names:
        return skipped('map_loss', limit, f'the sample of version {served.version}, which is served, has no image ids')
    places = pc.index_in(sample['image_id'], value_set=served.sample['image_id'].combine_chunks())
    both, old = sample.filter(places.is_valid()), served.sample.take(places.drop_null())
    (levels,) = label_levels([dict(row or ()) for row in both['labels'].to_pylist()])
    found = []
    for name, level in levels.items():
        asking = np.flatnonzero(level.counts)[:QUERIES]
        profiles = {'all': None, **({name: {name: 1}} if name in spec.names and name in served.spec.names else {})}
        for profile, weights in profiles.items() if len(asking) >= FEW else ():
            new = mean_average_precision(both, spec, level, asking, weights)
            before = mean_average_precision(old, served.spec, level, asking, weights)
            if new is not None and before is not None:
                found.append(Compared(name, profile, len(asking), new, before))
    if not levels and len(both) >= FEW and any(old['labels'].to_pylist()):
        lost = f'no image has a label, while those of version {served.version}, which is served, have'
        return Check('map_loss', 1.0, limit, limit >= 1, lost)
    if not found:
        return skipped('map_loss', limit, f'too few of {len(both):,} images of both versions have labels in common')
    worst = max(found, key=lambda c: c.loss)
    segments = 'all segments' if worst.segments == 'all' else f'segment {worst.segments}'
    detail = (
        f'mAP at level {worst.level}, by {segments}, is {worst.new:.3f}; in version {served.version}, '
        f'which is served, {worst.served:.3f}: {100 * worst.loss:.1f} points lost (at most {100 * limit:g})'
    )
    figures = {'images': len(both), 'measured': [dataclasses.asdict(c) for c in found]}
    return Check('map_loss', worst.loss, limit, worst.loss <= limit, detail, figures)


def mean_average_precision(
    images: pa.Table, spec: CodeSpec, level: LabelLevel, asking: NDArray[np.int64], weights: Mapping[str, int] | None
) -> float | None:
    """The tie-aware mAP of images that ask all of them, each without itself; None if nothing is relevant to any.

    Args:
        images: N rows with `code`.
        spec: of these codes.
        level: the labels of N images.
        asking: int64 [Q], which of them ask.
        weights: of the segments; None weighs every bit 1.
    """
    codes = code_tables.codes_from_arrow(images['code'])
    ranking = rank(codes[asking], [level.take(asking)], codes, [level], spec, weights, asking)
    if ranking.without_relevant == len(asking):
        return None
    return float(np.nanmean(metrics.average_precision(ranking.totals, ranking.relevant)))


def percent(share: float) -> str:
    """A share for people.

    >>> percent(0.2), percent(0.0512)
    ('20 %', '5.12 %')
    """
    return f'{100 * share:.3g} %'
