"""Starts TensorFlow and Keras: late, quietly, and with the threads asked for."""

from __future__ import annotations

import logging
import os
from types import ModuleType

from hashing_model.errors import InputError

_log = logging.getLogger(__name__)


def import_keras() -> ModuleType:
    """Keras on TensorFlow, without TensorFlow's start-up lines.

    Raises:
        InputError: Keras was told to use another backend than TensorFlow.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    import keras

    if keras.backend.backend() != 'tensorflow':
        raise InputError(f'Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=tensorflow')
    return keras


def set_threads(threads: int | None) -> None:
    """Let one TensorFlow operation use `threads` threads, and run one operation at a time; None changes nothing.

    TensorFlow takes this only before its first operation; later it is logged and left as it is.
    """
    if threads is None:
        return
    if threads < 1:
        raise InputError(f'threads is {threads}; at least 1 is needed')
    import_keras()
    import tensorflow as tf

    threading = tf.config.threading
    now = threading.get_intra_op_parallelism_threads()
    if now == threads:
        return
    try:
        threading.set_intra_op_parallelism_threads(threads)
        threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        _log.warning('TensorFlow has started with %s threads and keeps them; %d asked for', now or 'all', threads)
