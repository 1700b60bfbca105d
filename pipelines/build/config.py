"""What a build job is told: BuildConfig."""

from __future__ import annotations

import dataclasses
import functools
import time

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from pipelines.index.current import Current
from pipelines.index.manifest import DataFile
from pipelines.index.versions import Version
from pipelines.inputs.options import ReadOptions
from pipelines.quality.gate import Limits

PARTITION_ROWS = 2_000_000


@dataclasses.dataclass(frozen=True)
class BuildConfig:
    """What a build reads and where it writes.

    Args:
        index: absolute path or uri of the index.
        version: id of the version to write.
        spec: the code spec.
        unit_count: how many work units there are (`unit_list.write_unit_list`).
        inputs: the version's list of the files that they read (`unit_list.write_inputs`).
        model: uri of the model, None when the units hold codes.
        model_info: fingerprint and method of the model, for the manifest.
        options: which column or key holds what.
        partition_rows: rows a partition file should not exceed.
        threads: per worker process, for TensorFlow and the features; None for one per core.
        believed: what `CURRENT` was when the build began; see `versions.publish`.
        base: the version that an incremental build starts from; None for a full build.
        started: when the command began, in seconds since 1970.
        gate: what the version must keep to be served; None to serve it unchecked.
        keep: how many finished versions stay once this one is served; None for all.
    """

    index: str
    version: str
    spec: CodeSpec
    unit_count: int
    inputs: DataFile
    model: str | None = None
    model_info: dict[str, str] | None = None
    options: ReadOptions = ReadOptions()
    partition_rows: int = PARTITION_ROWS
    threads: int | None = None
    believed: Current | None = None
    base: str | None = None
    started: float = dataclasses.field(default_factory=time.time)
    gate: Limits | None = Limits()
    keep: int | None = None

    def __post_init__(self) -> None:
        if self.partition_rows < 1:
            raise InputError(f'partition rows are {self.partition_rows}; at least 1 is needed')
        if self.keep is not None and self.keep < 1:
            raise InputError(f'--keep is {self.keep}; at least 1 is needed')

    @functools.cached_property
    def index_version(self) -> Version:
        """The version that is written."""
        return Version(self.index, self.version)
