"""`evaluate`: what `grainhash evaluate` does. Codes of an index or of a model are measured; figures and plots written.

grainhash evaluate my-index --output quality
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from hashing_model.evaluation.figures import Quality
from hashing_model.model import HashModel
from pipelines import files
from pipelines.encoding.models import load_model, local_model
from pipelines.index.versions import open_version
from pipelines.inputs.options import ReadOptions
from pipelines.quality.coded_images import Images, IndexImages
from pipelines.quality.measure import Split, check_folder, choose, measure, write_results
from pipelines.records import Reject, describe_reasons
from pipelines.requests import Paths, Report, check_one_of, option, paths_of, set_fields, weights_of

Progress = Callable[[str, int, int], None]  # hears what is done, how many of it are, and how many there will be


@dataclasses.dataclass(frozen=True)
class EvaluateRequest:
    """What to measure.

    Args:
        output: folder for `evaluation.json`, `split.json` and the plots.
        index: folder of an index, the database, with the codes and labels inside; or else
        images: patterns of the database's images, and
        model: folder of the model that encodes them.
        version: of the index, if not the served one.
        queries: patterns of the images that ask; without them a sample of the database asks, each image without itself.
        profiles: weights per segment to measure beside each segment and all, as mappings or `NAME=WEIGHT,...`.
        max_images: draw at most so many images for the database; 100,000 if None.
        max_queries: draw at most so many queries; 1,000, or all of `queries`, if None.
        seed: of every random choice.
        split: a `split.json` that lists the images to take, instead of drawing.
        read: which column or key of the shards holds what.

    Raises:
        InputError: both or none of index and images, what does not go with them, or a number that is not possible.
    """

    output: str
    index: str | None = None
    images: Paths = ()
    model: str | None = None
    version: str | None = None
    queries: Paths = ()
    profiles: Sequence[str | Mapping[str, int]] = ()
    max_images: int | None = None
    max_queries: int | None = None
    seed: int = 0
    split: str | None = None
    read: ReadOptions = ReadOptions()

    def __post_init__(self) -> None:
        set_fields(self, images=paths_of(self.images), queries=paths_of(self.queries))
        set_fields(self, profiles=tuple(weights_of(profile) for profile in self.profiles))
        check_one_of(index=self.index, images=self.images)
        if self.images and not self.model:
            raise InputError('--images need --model, the model that encodes them; grainhash train makes one')
        if self.index and self.model:
            raise InputError('--model does not go with --index: the codes are those of the model inside')
        if self.version and not self.index:
            raise InputError('--version goes with --index')
        if self.index and not self.queries:
            self.read.refuse('tells how images are read; --index has them read already')
        for name in ('max_images', 'max_queries'):
            given = getattr(self, name)
            if given is not None and self.split:
                raise InputError(f'{option(name)} does not go with --split, which lists the images')
            if given is not None and given < 1:
                raise InputError(f'{option(name)} is {given}; at least 1 is needed')


@dataclasses.dataclass(frozen=True)
class EvaluateReport(Report):
    """What was measured.

    Args:
        output: folder of the results.
        files: their names there.
        seconds: that it took.
        quality: all figures.
        model: fingerprint and method of the model; None of an index that was built from codes.
        rejected: records that could not be used, by reason.
    """

    output: str
    files: Sequence[str]
    seconds: float
    quality: Quality
    model: Mapping[str, str] | None
    rejected: Mapping[str, int]

    def lines(self) -> list[str]:
        """What could not be used, and where the results are; the tables are those of `print_quality`."""
        lines = [f'{self.output}: {", ".join(self.files)} in {self.seconds:.0f} s']
        if self.rejected:
            many = sum(self.rejected.values())
            lines.insert(0, f'{many:,} records could not be used: {describe_reasons(self.rejected)}')
        return lines

    def to_json(self) -> dict[str, Any]:
        """As in `evaluation.json`."""
        return {**super().to_json(), 'quality': self.quality.to_json()}


def evaluate(request: EvaluateRequest, progress: Progress | None = None) -> EvaluateReport:
    """Measure how good codes are, and write figures and plots.

    Args:
        request: what to measure.
        progress: hears how many images are encoded.

    Raises:
        InputError: no index, model or images, or a split of other images.
        OSError: files that cannot be read or written.
    """
    out = files.absolute(request.output)
    check_folder(out)
    split = Split.read(files.absolute(request.split)) if request.split else None
    started = time.monotonic()
    given = _given(request, progress)
    profiles = [weights for profile in request.profiles if (weights := weights_of(profile)) is not None]
    for profile in profiles:
        given.spec.weights(profile)
    queries, database = choose(given.images, given.asking, split, request.max_images, request.max_queries, request.seed)
    quality, split = measure(queries, database, given.spec, profiles, given.catalogue_images or len(database))
    rejected = dict(collections.Counter(reject.reason for reject in given.rejects).most_common())
    names = write_results(out, quality, split, {**given.facts, 'rejects': rejected})
    seconds = time.monotonic() - started
    return EvaluateReport(request.output, tuple(names), seconds, quality, given.facts['model'], rejected)


@dataclasses.dataclass(frozen=True)
class _Given:
    """The images asked and those that ask, their code spec, where they are from, and what could not be read."""

    images: Images
    asking: Images | None
    spec: CodeSpec
    facts: Mapping[str, Any]
    rejects: list[Reject]
    catalogue_images: int | None = None


def _given(request: EvaluateRequest, progress: Progress | None) -> _Given:
    rejects: list[Reject] = []
    queries = paths_of(request.queries)
    facts: dict[str, Any] = {
        'index': request.index,
        'images': list(paths_of(request.images)) or None,
        'queries_from': list(queries) or None,
    }
    if not request.index:
        model = HashModel.load(local_model(files.absolute(str(request.model))))
        facts['model'] = {'fingerprint': model.fingerprint, 'method': str(model.training.get('method'))}
        asking = _encoded(queries, model, request.read, rejects, progress) if queries else None
        images = _encoded(paths_of(request.images), model, request.read, rejects, progress)
        return _Given(images, asking, model.spec, facts, rejects)
    index = files.absolute(request.index)
    version = open_version(index, request.version)
    manifest, asking = version.manifest, None
    if queries:
        if manifest.model is None:
            raise InputError(f'{request.index} has no model to encode --queries with: it was built from codes')
        model = load_model(version.model_path, fingerprint=manifest.model['fingerprint'])
        asking = _encoded(queries, model, request.read, rejects, progress)
    facts |= {'version': manifest.version, 'model': manifest.model}
    return _Given(IndexImages(version), asking, manifest.spec, facts, rejects, manifest.rows)


def _encoded(
    patterns: Sequence[str], model: HashModel, read: ReadOptions, rejects: list[Reject], progress: Progress | None
) -> Images:
    from pipelines.inputs.shards import list_units
    from pipelines.quality.shard_images import ShardImages

    units = list_units([files.absolute(pattern) for pattern in patterns], read)
    hear = progress or (lambda *_: None)
    return ShardImages(units, read, model, rejects, lambda n, of: hear('encoding', n, of))
