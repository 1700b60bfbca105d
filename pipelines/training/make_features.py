"""`make_features`: what `grainhash features` does. Features of images are made once, and kept for many trainings.

The job is in `features_job.py`, the files in `feature_cache.py`; Beam and TensorFlow load when they are needed.

    grainhash features --images 'photos/' --output cache
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from hashing_model.images.decode import Resizing
from pipelines import files
from pipelines.inputs.options import ReadOptions
from pipelines.records import Tally, describe_reasons
from pipelines.requests import STAGED, Paths, Report, check_one_of, paths_of, set_fields, spec_of
from pipelines.training.train_model import BACKBONE, resizing_of


@dataclasses.dataclass(frozen=True)
class FeaturesRequest:
    """Of which images to keep which features, and where.

    Args:
        images: patterns of image shards, image files or folders.
        output: folder of the features; what is there already is not made again.
        segments, input_size, resize, backbone: as of `TrainRequest`.
        views: augmented views per image, for segments that `read.labels` does not name.
        seed: of the views.
        read: which column or key of the shards holds what.

    Raises:
        InputError: no images, or a number that is not possible.
    """

    images: Paths
    output: str
    segments: str | CodeSpec | None = None
    input_size: int | None = None
    resize: str | None = None
    backbone: str | None = None
    views: int = 3
    seed: int = 0
    read: ReadOptions = ReadOptions()

    def __post_init__(self) -> None:
        set_fields(self, images=paths_of(self.images))
        check_one_of(images=self.images)
        if self.views < 0:
            raise InputError(f'--views is {self.views}; 0 or more are possible')
        spec_of(self.segments)
        self.resizing  # noqa: B018 - raises what is wrong with it

    @property
    def resizing(self) -> Resizing:
        """How pictures become square."""
        return resizing_of(self.input_size, self.resize)


@dataclasses.dataclass(frozen=True)
class FeaturesReport(Report):
    """What features were made.

    Args:
        output: their folder.
        seconds: that it took.
        tally: what became of the records; None of a job that is only staged.
        views: augmented views per picture.
        reused: pictures whose features were there already.
    """

    output: str
    seconds: float
    tally: Tally | None = None
    views: int = 0
    reused: int = 0

    def lines(self) -> list[str]:
        """How many there are, and what was rejected."""
        if self.tally is None:
            return [f'{self.output}: {STAGED}']
        views = f', {self.views} view{"s" if self.views > 1 else ""} each' if self.views else ''
        text = f'features of {self.tally.used:,} of {self.tally.read:,} pictures{views}'
        if self.reused:
            text += f'; {self.reused:,} were there already'
        if self.tally.reasons:
            text += f'; {self.tally.rejected:,} rejected ({describe_reasons(self.tally.reasons)})'
        return [f'{self.output}: {text}, {self.seconds:.0f} s']


def make_features(request: FeaturesRequest, beam_args: Sequence[str] = ()) -> FeaturesReport:
    """Make the features of images and keep them in files, so that trainings read no images.

    Args:
        request: of which images, which features, and where.
        beam_args: options of Apache Beam, such as `--runner=FlinkRunner`.

    Raises:
        InputError: no images, or a folder that holds something else or other features.
        BuildError: records are missing, or none could be read.
        OSError: files that cannot be read or written.
    """
    from hashing_model.training.feature_key import FeatureKey, views_for
    from hashing_model.training.fit import make_extractor
    from pipelines.inputs.shards import cut_units, list_inputs
    from pipelines.jobs.counts import counters
    from pipelines.jobs.runner import pipeline_options, run_pipeline, threads_per_worker
    from pipelines.training.feature_cache import MANIFEST, check_cache_folder, part_name, read_cache
    from pipelines.training.features_job import FeaturesConfig, NamedUnit, cached_extractor, define_pipeline

    # What is asked
    beam_options, options = pipeline_options(beam_args), request.read
    threads = threads_per_worker(beam_options)
    spec, resizing, backbone = spec_of(request.segments), request.resizing, request.backbone or BACKBONE
    groups = tuple(make_extractor(spec, resizing, backbone).groups)
    out = files.absolute(request.output)
    check_cache_folder(out)
    inputs = list_inputs([files.absolute(pattern) for pattern in paths_of(request.images)])
    units = cut_units(inputs, options)
    files.check_writable(files.join(out, MANIFEST))

    # The key of the features names the parts, so that those that are there are known
    started = time.monotonic()
    digest = cached_extractor(backbone, resizing.size, groups, threads).weights_digest
    of_views, seeds = views_for(spec, options.labels, request.views, request.seed)
    key = FeatureKey(resizing, backbone, digest, groups, of_views, tuple(seeds))
    check_cache_folder(out, key)
    known = {file.path: file for file in inputs}
    named = [NamedUnit(unit, part_name(unit, known, options, key.fingerprint)) for unit in units]
    config = FeaturesConfig(out, key, len(units), options, threads)
    result = run_pipeline(lambda root: define_pipeline(root, config, named), beam_options)
    if result is None:
        return FeaturesReport(request.output, time.monotonic() - started)
    cache = read_cache(out)
    reused = counters(result).get('reused', 0)
    return FeaturesReport(request.output, time.monotonic() - started, cache.tally, len(key.view_seeds), reused)
