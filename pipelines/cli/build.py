"""`grainhash build`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from hashing_model.errors import InputError
from pipelines.cli.logs import tell, tell_report
from pipelines.cli.models import read_options
from pipelines.quality.gate import Limits
from pipelines.requests import option


def build(args: argparse.Namespace, beam_args: Sequence[str]) -> None:
    """Build a version of an index and serve it."""
    from pipelines.build.build_index import BuildRequest, build_index

    request = BuildRequest(
        index=args.index,
        images=args.images or (),
        codes=args.codes or (),
        model=args.model,
        segments=args.segments,
        read=read_options(args),
        full=args.full,
        partition_rows=args.partition_rows,
        keep=args.keep,
        metrics_file=args.metrics_file,
        gate=_gate_limits(args),
    )
    tell_report(build_index(request, beam_args, tell), args.json)


def _gate_limits(args: argparse.Namespace) -> Limits | None:
    """What the version must keep to be served; None for no gate."""
    settings = {f.name: getattr(args, f.name) for f in dataclasses.fields(Limits)}
    given = {name: value for name, value in settings.items() if value is not None}
    if args.no_gate and given:
        raise InputError(f'{option(next(iter(given)))} does not go with --no-gate, which checks nothing')
    return None if args.no_gate else Limits(**given)
