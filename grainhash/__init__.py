"""Exact image search with binary codes, rebuilt by batch jobs: the library's face.

    import grainhash

    grainhash.build_index(grainhash.BuildRequest(index='my-index', images='photos/', model='my-model'))
    index = grainhash.LocalIndex.open('my-index')

Every command of the command line is one function here: it takes a frozen request, which is checked when it is made, and
gives a report with the figures that the command prints. Names load when they are first used: importing this package
loads neither Beam nor TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hashing_model.codes.spec import CodeSpec
    from hashing_model.errors import BuildError, GateError, InputError
    from hashing_model.model import HashModel
    from pipelines.build.build_index import BuildReport, BuildRequest, build_index
    from pipelines.build.scale import PlanRequest, ScalePlan, plan
    from pipelines.inputs.options import ReadOptions
    from pipelines.quality.evaluate_codes import EvaluateReport, EvaluateRequest, evaluate
    from pipelines.quality.gate import Limits
    from pipelines.query.find_near_duplicates import DuplicatesReport, DuplicatesRequest, find_near_duplicates
    from pipelines.query.query_index import QueryReport, QueryRequest, query_index
    from pipelines.search.local_index import LocalIndex, SearchResult
    from pipelines.training.calibrate_model import CalibrateReport, CalibrateRequest, calibrate_model
    from pipelines.training.make_features import FeaturesReport, FeaturesRequest, make_features
    from pipelines.training.train_model import TrainReport, TrainRequest, train_model

    __version__: str

_MODULES = {
    'hashing_model.codes.spec': ('CodeSpec',),
    'hashing_model.errors': ('BuildError', 'GateError', 'InputError'),
    'hashing_model.model': ('HashModel',),
    'pipelines.build.build_index': ('BuildReport', 'BuildRequest', 'build_index'),
    'pipelines.build.scale': ('PlanRequest', 'ScalePlan', 'plan'),
    'pipelines.inputs.options': ('ReadOptions',),
    'pipelines.quality.evaluate_codes': ('EvaluateReport', 'EvaluateRequest', 'evaluate'),
    'pipelines.quality.gate': ('Limits',),
    'pipelines.query.find_near_duplicates': ('DuplicatesReport', 'DuplicatesRequest', 'find_near_duplicates'),
    'pipelines.query.query_index': ('QueryReport', 'QueryRequest', 'query_index'),
    'pipelines.search.local_index': ('LocalIndex', 'SearchResult'),
    'pipelines.training.calibrate_model': ('CalibrateReport', 'CalibrateRequest', 'calibrate_model'),
    'pipelines.training.make_features': ('FeaturesReport', 'FeaturesRequest', 'make_features'),
    'pipelines.training.train_model': ('TrainReport', 'TrainRequest', 'train_model'),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    'BuildError',
    'BuildReport',
    'BuildRequest',
    'CalibrateReport',
    'CalibrateRequest',
    'CodeSpec',
    'DuplicatesReport',
    'DuplicatesRequest',
    'EvaluateReport',
    'EvaluateRequest',
    'FeaturesReport',
    'FeaturesRequest',
    'GateError',
    'HashModel',
    'InputError',
    'Limits',
    'LocalIndex',
    'PlanRequest',
    'QueryReport',
    'QueryRequest',
    'ReadOptions',
    'ScalePlan',
    'SearchResult',
    'TrainReport',
    'TrainRequest',
    '__version__',
    'build_index',
    'calibrate_model',
    'evaluate',
    'find_near_duplicates',
    'make_features',
    'plan',
    'query_index',
    'train_model',
]


def __getattr__(name: str) -> Any:
    """Load a name when it is first used."""
    if name == '__version__':
        from importlib.metadata import version

        return version('grainhash')
    if name not in _MODULE_OF:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
