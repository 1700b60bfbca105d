"""The model that encodes, loaded once per process from a folder or a bucket; and what else its codes depend on."""

from __future__ import annotations

import atexit
import functools
import importlib.metadata
import platform
import shutil
import tempfile
import threading

from pyarrow import fs as arrow_fs

from hashing_model.errors import InputError
from hashing_model.model import HashModel
from pipelines import files

_loading = threading.Lock()  # a runner may start several units at once in one process


def load_model(uri: str, threads: int | None = None, fingerprint: str | None = None) -> HashModel:
    """The model in a local folder or a bucket, loaded once per process; its backbone loads when it is first needed.

    Args:
        uri: the model's folder.
        threads: see `HashModel.load`.
        fingerprint: the model that is expected there, if any.

    Raises:
        InputError: no readable model there, or another than expected.
    """
    with _loading:
        model = _load_model(uri, threads)
    if fingerprint not in (None, model.fingerprint):
        raise InputError(f'{uri} has the fingerprint {model.fingerprint[:12]}; the index wants {fingerprint[:12]}')
    return model


@functools.lru_cache(maxsize=1)
def _load_model(uri: str, threads: int | None) -> HashModel:
    return HashModel.load(local_model(uri), threads)


def check_backbone(model: HashModel) -> None:
    """`HashModel.check_backbone`, one thread at a time, so that the backbone is loaded once."""
    with _loading:
        model.check_backbone()


def local_model(uri: str) -> str:
    """The path of a local model folder.

    A model in a bucket is copied first; the copy is removed when the process ends.
    """
    filesys, path = files.filesystem(uri)
    if isinstance(filesys, arrow_fs.LocalFileSystem):
        return path
    copy = tempfile.mkdtemp(prefix='grainhash-model-')
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    arrow_fs.copy_files(path, copy, source_filesystem=filesys)
    return copy


# What makes pixels, features and codes.
CODING_LIBRARIES = 'grainhash', 'numpy', 'tensorflow', 'keras', 'pillow', 'opencv-python-headless', 'scikit-image'


def library_versions() -> dict[str, str]:
    """The versions of the libraries that codes and files depend on, for the manifest."""
    names = (*CODING_LIBRARIES, 'apache-beam', 'pyarrow')
    return {'python': platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
