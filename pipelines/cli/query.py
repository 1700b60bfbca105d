"""`grainhash query` and `grainhash duplicates`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipelines.cli.logs import tell, tell_report
from pipelines.cli.models import read_options


def query(args: argparse.Namespace, beam_args: Sequence[str]) -> None:
    """Answer queries and write the answers."""
    from pipelines.query.query_index import QueryRequest, query_index

    request = QueryRequest(
        index=args.index,
        output=args.output,
        images=args.images or (),
        text=args.text or (),
        texts=args.texts,
        ids=args.ids,
        codes=args.codes or (),
        model=args.model,
        k=args.k,
        radius=args.radius,
        profile=args.profile,
        read=read_options(args),
    )
    report = query_index(request, beam_args)
    for line in report.explained if args.explain else ():
        tell(line)
    tell_report(report, args.json)


def duplicates(args: argparse.Namespace, beam_args: Sequence[str]) -> None:
    """Group near-duplicates and write the groups."""
    from pipelines.query.find_near_duplicates import DuplicatesRequest, find_near_duplicates

    request = DuplicatesRequest(args.index, args.radius, args.output, args.profile)
    report = find_near_duplicates(request, beam_args, tell)
    for line in report.explained if args.explain else ():
        tell(line)
    tell_report(report, args.json)
