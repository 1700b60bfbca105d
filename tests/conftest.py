"""Settings of all tests: one thread a process, the examples of Hypothesis, and the guard of the marks."""

import os

from hypothesis import settings

from tests.helpers.costs import Costs

# As many processes run as there are cores. NumPy, numba and TensorFlow read this when they load, which is later.
for library in ('OMP', 'OPENBLAS', 'MKL', 'NUMBA'):
    os.environ.setdefault(f'{library}_NUM_THREADS', '1')
for operations in ('INTRAOP', 'INTEROP'):
    os.environ.setdefault(f'TF_NUM_{operations}_THREADS', '1')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

# No deadline: first calls compile, other machines are slower. In CI always the same examples.
settings.register_profile('default', deadline=None, derandomize='CI' in os.environ)
settings.load_profile('default')


def pytest_configure(config):
    config.pluginmanager.register(Costs())
