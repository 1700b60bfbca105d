"""What the commands do: arguments checked, jobs configured and run, results told. Nothing here computes.

`build` is in `build_command.py`, commands about models in `model_commands.py`, about versions in `version_commands.py`.
Each function takes the parsed arguments and the options left over for Beam. Imports are inside, so that a command
loads only what it needs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hashing_model.codes.spec import CodeSpec, Segment, parse_pairs
from hashing_model.errors import InputError
from pipelines import files
from pipelines.index import versions
from pipelines.index.manifest import Manifest

if TYPE_CHECKING:
    from pipelines.inputs.options import ReadOptions
    from pipelines.inputs.shards import WorkUnit

READING_OPTIONS = ('labels', 'labels_from', 'image_field', 'id_field', 'caption_field')
STAGED = 'the job is staged; the work is done when someone starts it, as Dataflow does for a template'


def plan(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Print what indexes of some sizes take."""
    from pipelines.build.scale import IMAGES_PER_CORE_SECOND, Scale, ScalePlan
    from pipelines.cli.plan import print_plans

    if args.codes and args.images_per_core_second:
        raise InputError('--images-per-core-second does not go with --codes: they are not encoded')
    for option in ('workers', 'core_hour_price'):
        if getattr(args, option) is not None and getattr(args, option) <= 0:
            raise InputError(f'--{option.replace("_", "-")} is {getattr(args, option):g}; more than 0 is needed')
    spec = code_spec(args) if args.bits is None else CodeSpec((Segment('code', args.bits),))
    rate = IMAGES_PER_CORE_SECOND if args.images_per_core_second is None else args.images_per_core_second
    scales = [Scale(rows, spec, args.codes, args.unit_rows, args.partition_rows, rate) for rows in args.images]
    print_plans([ScalePlan.of(scale) for scale in scales], args.workers, args.core_hour_price)


def query(args: argparse.Namespace, beam_args: Sequence[str]) -> None:
    """Answer queries and write the answers."""
    from hashing_model.model import HashModel
    from pipelines.encoding.models import local_model
    from pipelines.index.layout import table_weights
    from pipelines.jobs.runner import pipeline_options, run_pipeline, threads_per_worker
    from pipelines.query.answers import check_output, rejects_path
    from pipelines.query.job import QueryConfig, check_model, define_pipeline
    from pipelines.query.stats import bounds_line, read_line, read_totals, table_lines
    from pipelines.search.search_plan import check_limits

    options = pipeline_options(beam_args)
    index = files.absolute(args.index)
    manifest = versions.read_manifest(index)
    profile = parse_pairs(args.profile, '--profile') if args.profile else None
    check_limits(manifest.spec, args.k, args.radius, profile)
    check_output(args.output)
    encodes = args.images or args.text or args.texts
    for text in args.text or ():
        if any('\ud800' <= c <= '\udfff' for c in text):  # bytes of the command line that no decoder knows
            raise InputError(f'--text {text!a} is not UTF-8')
    if args.model and not encodes:
        raise InputError('--model goes with --images and texts; codes and ids need none')
    if args.model:
        check_model(manifest, HashModel.load(local_model(files.absolute(args.model))).fingerprint)
    units = _query_units(args, manifest)
    output = files.absolute(args.output)
    asking = [path for unit in units for path in unit.paths] + [path for path in (args.ids, args.texts) if path]
    if output in map(files.absolute, asking):
        raise InputError(f'{args.output} asks; give another file for the answers')
    config = QueryConfig(
        index=index,
        version=manifest.version,
        output=output,
        ids=files.absolute(args.ids) if args.ids else None,
        texts=files.absolute(args.texts) if args.texts else None,
        text=tuple(args.text or ()),
        model=files.join(versions.version_folder(index, manifest.version), versions.MODEL_FOLDER) if encodes else None,
        options=read_options(args),
        k=None if args.k is None else min(args.k, manifest.rows),
        radius=args.radius,
        profile=profile,
        threads=threads_per_worker(options),
    )
    started = time.monotonic()
    if run_pipeline(lambda root: define_pipeline(root, config, units), options) is None:
        tell(f'{args.output}: {STAGED}')
        return
    totals = read_totals(output)
    if args.explain:
        weights = table_weights([t.substring for t in manifest.tables], manifest.spec.weights(profile))
        for line in (*table_lines(totals, manifest, weights), bounds_line(totals)):
            tell(line)
    tell(
        f'{args.output}: {totals.get("answers", 0):,} answers to {totals.get("queries", 0):,} queries '
        f'in {time.monotonic() - started:.0f} s'
    )
    tell(read_line(totals, manifest))
    if totals.get('rejected'):
        if not totals.get('queries'):
            raise InputError(f'no query could be asked: see {rejects_path(args.output)}')
        many = 'query' if totals['rejected'] == 1 else 'queries'
        tell(f'{totals["rejected"]:,} {many} could not be asked: see {rejects_path(args.output)}')


def _query_units(args: argparse.Namespace, manifest: Manifest) -> Sequence[WorkUnit]:
    """The work units that ask; none if ids or texts do."""
    from pipelines.encoding.code_files import code_bytes, list_code_units
    from pipelines.inputs.shards import list_units
    from pipelines.query.job import check_has_model

    listed = args.ids if args.texts is None else args.texts
    if listed is not None and not (listed and files.exists(listed)):
        raise InputError(f'there is no file {listed}')
    if args.text or args.texts:
        check_has_model(manifest)
    if args.ids or args.text or args.texts:
        return []
    if args.codes:
        units, _ = list_code_units(absolute(args.codes))
        found, wanted = code_bytes(units), manifest.spec.num_bytes
        if found != wanted:
            raise InputError(f'the codes of {args.codes[0]} have {found} bytes; the index has codes of {wanted} bytes')
        return units
    check_has_model(manifest)
    return list_units(absolute(args.images), read_options(args))


def duplicates(args: argparse.Namespace, beam_args: Sequence[str]) -> None:
    """Group near-duplicates and write the groups."""
    import dataclasses

    from pipelines.jobs.runner import pipeline_options, run_pipeline
    from pipelines.query.answers import check_output
    from pipelines.query.near_duplicates import DuplicatesConfig, define_pipeline, plan_radii
    from pipelines.query.stats import read_line, read_totals
    from pipelines.search.search_plan import Metric, check_limits

    options = pipeline_options(beam_args)
    index = files.absolute(args.index)
    manifest = versions.read_manifest(index)
    profile = parse_pairs(args.profile, '--profile') if args.profile else None
    weights = check_limits(manifest.spec, None, args.radius, profile)
    check_output(args.output)
    radius = min(args.radius, Metric.of(manifest.spec, weights).max_distance)
    output = files.absolute(args.output)
    config = DuplicatesConfig(index, manifest.version, output, radius, profile)
    config = dataclasses.replace(config, table_radii=plan_radii(config))
    if any(r == t.substring.bits for r, t in zip(config.table_radii, manifest.tables, strict=True)):
        tell(f'radius {args.radius} is too large for the tables to help: all codes are compared with all')
    started = time.monotonic()
    if run_pipeline(lambda root: define_pipeline(root, config), options) is None:
        tell(f'{args.output}: {STAGED}')
        return
    totals = read_totals(output)
    groups, images, largest = (totals.get(name, 0) for name in ('groups', 'images', 'largest'))
    many = 'group' if groups == 1 else 'groups'
    tell(
        f'{args.output}: {groups:,} {many} of {images:,} images, the largest of {largest:,}, '
        f'in {time.monotonic() - started:.0f} s; without {images - groups:,} of {manifest.rows:,} images no two are '
        f'within distance {args.radius}'
    )
    tell(read_line(totals, manifest))


def inspect(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Print what a version holds, as a table or as JSON."""
    from pipelines.index.summary import summarize
    from pipelines.reports.index_table import print_summary

    summary = summarize(versions.read_manifest(files.absolute(args.index), args.version))
    if args.json:
        print(json.dumps(summary, indent=1, ensure_ascii=False))
    else:
        print_summary(summary)


def demo(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Show all of it on the embedded catalogue."""
    from pipelines.cli.demo import run_demo

    run_demo(Path(args.output), Path(args.catalogue) if args.catalogue else None)


def absolute(patterns: Sequence[str]) -> list[str]:
    """Patterns that mean the same to every worker and in the index's `source` columns."""
    return [files.absolute(pattern) for pattern in patterns]


def code_spec(args: argparse.Namespace) -> CodeSpec:
    """The segments asked for."""
    return CodeSpec.parse(args.segments) if args.segments else CodeSpec.default()


def refuse(args: argparse.Namespace, options: Sequence[str], why: str) -> None:
    """Refuse options that were given though they mean nothing here.

    Raises:
        InputError: one of them was.
    """
    for option in options:
        if getattr(args, option):
            raise InputError(f'--{option.replace("_", "-")} {why}')


def read_options(args: argparse.Namespace) -> ReadOptions:
    """Which column, feature or key holds what."""
    from pipelines.inputs.options import ReadOptions

    labels = tuple(name.strip() for name in (args.labels or '').split(',') if name.strip())
    return ReadOptions(args.image_field, args.id_field, args.caption_field, labels, args.labels_from)


def tell(message: str) -> None:
    """A result for the person who ran the command; standard output is for data."""
    sys.stderr.write(f'{message}\n')  # at once: `print` lets a line that an engine logs come before the end
