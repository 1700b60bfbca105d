"""`query_index`: what `grainhash query` does. Queries are checked, an index answers them exactly, in one file.

The job is in `job.py`; Beam loads when it starts. For searches in memory there is `LocalIndex`.

    grainhash query my-index --images 'questions/*.jpg' --k 10 --output answers.jsonl
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hashing_model.errors import InputError
from hashing_model.model import HashModel
from pipelines import files
from pipelines.encoding.models import local_model
from pipelines.index.layout import table_weights
from pipelines.index.manifest import Manifest
from pipelines.index.versions import open_version
from pipelines.inputs.options import ReadOptions
from pipelines.query.answers import check_output, check_suffix, query_rejects_path
from pipelines.requests import STAGED, Paths, Report, check_one_of, paths_of, set_fields, weights_of
from pipelines.search.search_plan import check_k_and_radius, check_limits

if TYPE_CHECKING:
    from pipelines.inputs.shards import WorkUnit


@dataclasses.dataclass(frozen=True)
class QueryRequest:
    """What to ask an index, in one of five forms, and where the answers go.

    Args:
        index: folder of the index.
        output: file of the answers, `.parquet` or `.jsonl`.
        images: patterns of query images, or
        text: queries in words, or
        texts: a text file with such a query per line, or
        ids: a text file with one image id of the index per line, or
        codes: patterns of Parquet files with `image_id` and `code`.
        model: folder of a model; the query is refused unless it is the index's own.
        k: answers per query; None for all within the radius.
        radius: largest weighted distance of an answer.
        profile: weight per segment, also as `NAME=WEIGHT,...`; None weighs every bit 1.
        read: which column or key of shards of query images holds what.

    Raises:
        InputError: none or several of the five, limits that are not possible, or an output of another suffix.
    """

    index: str
    output: str
    images: Paths = ()
    text: str | Sequence[str] = ()
    texts: str | None = None
    ids: str | None = None
    codes: Paths = ()
    model: str | None = None
    k: int | None = 10
    radius: int | None = None
    profile: str | Mapping[str, int] | None = None
    read: ReadOptions = ReadOptions()

    def __post_init__(self) -> None:
        text = (self.text,) if isinstance(self.text, str) else tuple(self.text)
        set_fields(self, images=paths_of(self.images), codes=paths_of(self.codes), text=text)
        set_fields(self, profile=weights_of(self.profile))
        check_one_of(images=self.images, text=text, texts=self.texts, ids=self.ids, codes=self.codes)
        for words in text:
            if any('\ud800' <= c <= '\udfff' for c in words):  # bytes of the command line that no decoder knows
                raise InputError(f'--text {words!a} is not UTF-8')
        if self.model and not self.encodes:
            raise InputError('--model goes with --images and texts; codes and ids need none')
        check_k_and_radius(self.k, self.radius)
        check_suffix(self.output)

    @property
    def encodes(self) -> bool:
        """Whether the model is needed."""
        return bool(self.images or self.text or self.texts)


@dataclasses.dataclass(frozen=True)
class QueryReport(Report):
    """What was answered.

    Args:
        output: file of the answers.
        version: that answered.
        seconds: that it took.
        queries, answers: how many there are; None of a job that is only staged.
        rejected: queries that could not be asked; `rejects` is the file that lists them.
        explained: the plan, and what was read of each table, for `--explain`.
        counts: what the steps of the job counted, by name, as in the statistics beside the answers.
    """

    output: str
    version: str
    seconds: float
    queries: int | None = None
    answers: int = 0
    rejected: int = 0
    rejects: str | None = None
    explained: Sequence[str] = ()
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def lines(self) -> list[str]:
        """How many answers there are, and how many queries could not be asked."""
        if self.queries is None:
            return [f'{self.output}: {STAGED}']
        asked = f'{self.queries:,} {"query" if self.queries == 1 else "queries"}'
        lines = [f'{self.output}: {self.answers:,} answers to {asked} in {self.seconds:.1f} s, exact']
        if self.rejected:
            many = 'query' if self.rejected == 1 else 'queries'
            lines.insert(0, f'{self.rejected:,} {many} could not be asked: see {self.rejects}')
        return lines


def query_index(request: QueryRequest, beam_args: Sequence[str] = ()) -> QueryReport:
    """Answer queries exactly, and write the answers.

    Args:
        request: what is asked, and of which index.
        beam_args: options of Apache Beam, such as `--runner=FlinkRunner`.

    Raises:
        InputError: no index, queries that do not fit it, or none that could be asked.
        OSError: files that cannot be read or written.
    """
    from pipelines.jobs.runner import pipeline_options, run_pipeline, threads_per_worker
    from pipelines.query.job import QueryConfig, check_model, define_pipeline
    from pipelines.query.stats import bounds_line, read_line, read_totals, table_lines

    # What is asked
    options = pipeline_options(beam_args)
    index = files.absolute(request.index)
    version = open_version(index)
    manifest = version.manifest
    profile = weights_of(request.profile)
    weights = check_limits(manifest.spec, request.k, request.radius, profile)
    check_output(request.output)
    if request.model:
        check_model(manifest, HashModel.load(local_model(files.absolute(request.model))).fingerprint)
    units = _query_units(request, manifest)
    output = files.absolute(request.output)
    asking = [path for unit in units for path in unit.paths] + [path for path in (request.ids, request.texts) if path]
    if output in map(files.absolute, asking):
        raise InputError(f'{request.output} asks; give another file for the answers')
    config = QueryConfig(
        index=index,
        version=manifest.version,
        output=output,
        ids=files.absolute(request.ids) if request.ids else None,
        texts=files.absolute(request.texts) if request.texts else None,
        text=tuple(request.text),
        model=version.model_path if request.encodes else None,
        options=request.read,
        k=None if request.k is None else min(request.k, manifest.rows),
        radius=request.radius,
        profile=profile,
        threads=threads_per_worker(options),
    )

    # The job, and what it did
    started = time.monotonic()
    staged = run_pipeline(lambda root: define_pipeline(root, config, units), options) is None
    seconds = time.monotonic() - started
    if staged:
        return QueryReport(request.output, manifest.version, seconds)
    totals = read_totals(output)
    rejects = query_rejects_path(request.output)
    if totals.get('rejected') and not totals.get('queries'):
        raise InputError(f'no query could be asked: see {rejects}')
    of_tables = table_weights([t.substring for t in manifest.tables], weights)
    explained = [*table_lines(totals, manifest, of_tables), bounds_line(totals), read_line(totals, manifest)]
    return QueryReport(
        output=request.output,
        version=manifest.version,
        seconds=seconds,
        queries=totals.get('queries', 0),
        answers=totals.get('answers', 0),
        rejected=totals.get('rejected', 0),
        rejects=rejects if totals.get('rejected') else None,
        explained=tuple(explained),
        counts=totals,
    )


def _query_units(request: QueryRequest, manifest: Manifest) -> Sequence[WorkUnit]:
    """The work units that ask; none if ids or texts do."""
    from pipelines.encoding.code_files import code_bytes, list_code_units
    from pipelines.inputs.shards import list_units
    from pipelines.query.job import check_has_model

    listed = request.ids if request.texts is None else request.texts
    if listed is not None and not (listed and files.exists(listed)):
        raise InputError(f'there is no file {listed}')
    if request.encodes:
        check_has_model(manifest)
    if request.ids or request.text or request.texts:
        return []
    if request.codes:
        patterns = paths_of(request.codes)
        units, _ = list_code_units([files.absolute(pattern) for pattern in patterns])
        found, wanted = code_bytes(units), manifest.spec.num_bytes
        if found != wanted:
            raise InputError(f'the codes of {patterns[0]} have {found} bytes; the index has codes of {wanted} bytes')
        return units
    return list_units([files.absolute(pattern) for pattern in paths_of(request.images)], request.read)
