"""`find_near_duplicates`: what `grainhash duplicates` does. All images of an index within a radius, in groups.

The job is in `near_duplicates.py`; Beam loads when it starts.

    grainhash duplicates my-index --radius 6 --profile look=1 --output duplicates.jsonl
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

from pipelines import files
from pipelines.index import versions
from pipelines.query.answers import check_output, check_suffix
from pipelines.requests import STAGED, Report, Tell, set_fields, weights_of
from pipelines.search.search_plan import Metric, check_k_and_radius, check_limits


@dataclasses.dataclass(frozen=True)
class DuplicatesRequest:
    """Which images count as near-duplicates, of which index, and where the groups go.

    Args:
        index: folder of the index.
        radius: largest weighted distance of two images that are near.
        output: file of the groups, `.parquet` or `.jsonl`.
        profile: weight per segment, also as `NAME=WEIGHT,...`; None weighs every bit 1.

    Raises:
        InputError: a radius that is not possible, or an output of another suffix.
    """

    index: str
    radius: int
    output: str
    profile: str | Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        set_fields(self, profile=weights_of(self.profile))
        check_k_and_radius(None, self.radius)
        check_suffix(self.output)


@dataclasses.dataclass(frozen=True)
class DuplicatesReport(Report):
    """What was found.

    Args:
        output: file of the groups.
        version: of the index.
        seconds: that it took.
        radius: that was asked for.
        rows: images of the index.
        groups: how many there are; None of a job that is only staged.
        images: in groups.
        largest: images of the largest group.
        explained: what was read, for `--explain`.
    """

    output: str
    version: str
    seconds: float
    radius: int
    rows: int
    groups: int | None = None
    images: int = 0
    largest: int = 0
    explained: Sequence[str] = ()

    def lines(self) -> list[str]:
        """How many groups there are, and what would be left without all but one of each."""
        if self.groups is None:
            return [f'{self.output}: {STAGED}']
        many = 'group' if self.groups == 1 else 'groups'
        return [
            f'{self.output}: {self.groups:,} {many} of {self.images:,} images, the largest of {self.largest:,}, '
            f'in {self.seconds:.1f} s; without {self.images - self.groups:,} of {self.rows:,} images no two are within '
            f'distance {self.radius}'
        ]


def find_near_duplicates(
    request: DuplicatesRequest, beam_args: Sequence[str] = (), tell: Tell | None = None
) -> DuplicatesReport:
    """Group the images of an index that are near to each other, exactly, and say which to keep.

    Args:
        request: which images count as near.
        beam_args: options of Apache Beam, such as `--runner=FlinkRunner`.
        tell: hears if the radius is too large for the tables to help.

    Raises:
        InputError: no index, or limits that do not fit it.
        OSError: files that cannot be read or written.
    """
    from pipelines.jobs.runner import pipeline_options, run_pipeline
    from pipelines.query.near_duplicates import DuplicatesConfig, define_pipeline, plan_radii
    from pipelines.query.stats import read_line, read_totals

    options = pipeline_options(beam_args)
    index = files.absolute(request.index)
    manifest = versions.read_manifest(index)
    profile = weights_of(request.profile)
    weights = check_limits(manifest.spec, None, request.radius, profile)
    check_output(request.output)
    radius = min(request.radius, Metric.of(manifest.spec, weights).max_distance)
    output = files.absolute(request.output)
    config = DuplicatesConfig(index, manifest.version, output, radius, profile)
    config = dataclasses.replace(config, table_radii=plan_radii(config))
    if tell and any(r == t.substring.bits for r, t in zip(config.table_radii, manifest.tables, strict=True)):
        tell(f'radius {request.radius} is too large for the tables to help: all codes are compared with all')
    started = time.monotonic()
    staged = run_pipeline(lambda root: define_pipeline(root, config), options) is None
    seconds = time.monotonic() - started
    report = DuplicatesReport(request.output, manifest.version, seconds, request.radius, manifest.rows)
    if staged:
        return report
    totals = read_totals(output)
    return dataclasses.replace(
        report,
        groups=totals.get('groups', 0),
        images=totals.get('images', 0),
        largest=totals.get('largest', 0),
        explained=(read_line(totals, manifest),),
    )
