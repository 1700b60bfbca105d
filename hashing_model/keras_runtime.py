"""Starts TensorFlow and Keras: late, quietly, and with the threads asked for."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from types import ModuleType

from hashing_model.errors import InputError

_log = logging.getLogger(__name__)
_LEVEL = 'TF_CPP_MIN_LOG_LEVEL'
_lock = threading.Lock()  # standard error is the process's: two threads at once would put back each other's
# What TensorFlow's C++ side prints as it starts: that it found no GPU, that oneDNN is on, and where such lines go.
_START_UP = re.compile(rb'[IWE]\d{4} \d\d:|\d{4}-\d\d-\d\d \d\d:[\d:.]+: [IWE] |WARNING: All log messages before absl')


def import_keras() -> ModuleType:
    """Keras on TensorFlow, without TensorFlow's start-up lines unless TF_CPP_MIN_LOG_LEVEL is 0 or 1.

    Safe to call from several threads.

    Raises:
        InputError: Keras was told to use another backend than TensorFlow.
    """
    with _lock:
        os.environ.setdefault(_LEVEL, '2')
        quiet = 'tensorflow' not in sys.modules and os.environ[_LEVEL] not in ('0', '1')
        with _without_start_up_lines() if quiet else contextlib.nullcontext():
            import keras
            import tensorflow as tf

            if quiet and keras.backend.backend() == 'tensorflow':
                tf.config.list_physical_devices()  # looks for a GPU, and says that there is none, only once
    if keras.backend.backend() != 'tensorflow':
        raise InputError(f'Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=tensorflow')
    return keras


def set_threads(threads: int | None) -> None:
    """Let one TensorFlow operation use `threads` threads, and run one operation at a time; None changes nothing.

    TensorFlow takes this only before its first operation; later it is logged and left as it is. Safe to call from
    several threads.

    Raises:
        InputError: threads below 1.
    """
    if threads is None:
        return
    if threads < 1:
        raise InputError(f'threads is {threads}; at least 1 is needed')
    import_keras()
    from tensorflow import config

    with _lock:
        now = config.threading.get_intra_op_parallelism_threads()
        if now == threads:
            return
        try:
            config.threading.set_intra_op_parallelism_threads(threads)
            config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError:
            _log.warning('TensorFlow has started with %s threads and keeps them; %d asked for', now or 'all', threads)


@contextlib.contextmanager
def _without_start_up_lines() -> Iterator[None]:
    """Hold back what is written to the process's standard error, and pass on all but TensorFlow's own lines.

    Since TensorFlow 2.19 or so no setting silences the lines logged while it is imported.
    """
    try:
        saved = os.dup(2)
    except OSError:  # no standard error at all
        yield
        return
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            for line in held:
                if _START_UP.match(line):
                    _log.debug('%s', line.decode(errors='replace').rstrip())
                else:
                    os.write(2, line)
