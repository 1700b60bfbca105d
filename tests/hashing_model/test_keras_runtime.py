"""Starting Keras from many threads at once, with stand-ins that take their time and write what TensorFlow writes."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

KERAS = """
import os, time, types
os.write(2, b'W0000 00:00:1760000000.000000 1 cuda.cc:1] start-up line\\nkept by keras\\n')
time.sleep(0.3)
backend = types.SimpleNamespace(backend=lambda: 'tensorflow')
"""
TENSORFLOW = """
import os, time, types
os.write(2, b'2025-01-01 00:00:00.000000: I tensorflow/core/x.cc:1] start-up line\\nkept by tensorflow\\n')
time.sleep(0.3)
inside = [0, 0]  # threads between reading the setting and changing it: now, at most

def get():
    inside[0] += 1
    inside[1] = max(inside)
    time.sleep(0.05)
    inside[0] -= 1
    return 0

threading = types.SimpleNamespace(
    get_intra_op_parallelism_threads=get,
    set_intra_op_parallelism_threads=lambda n: None,
    set_inter_op_parallelism_threads=lambda n: None,
)
config = types.SimpleNamespace(threading=threading, list_physical_devices=lambda: time.sleep(0.1))
"""
THREADS = """
import os, sys, threading, time
sys.path.insert(0, sys.argv[1])
from hashing_model.keras_runtime import import_keras, set_threads
start = threading.Barrier(7)

def call(i):
    start.wait()
    time.sleep(i * 0.05)
    os.write(2, b'before %d\\n' % i)
    set_threads(1) if i % 2 else import_keras()
    os.write(2, b'after %d\\n' % i)

threads = [threading.Thread(target=call, args=(i,)) for i in range(6)]
for thread in threads:
    thread.start()
before = os.fstat(2)
start.wait()
for thread in threads:
    thread.join()
assert os.path.samestat(before, os.fstat(2))
os.write(2, b'at the end\\n')
import tensorflow
print(tensorflow.inside)
"""


@pytest.fixture
def stand_ins(tmp_path):
    (tmp_path / 'keras.py').write_text(KERAS)
    (tmp_path / 'tensorflow.py').write_text(TENSORFLOW)
    return tmp_path


def test_threads_that_start_keras_at_once_lose_no_line(stand_ins):
    done = subprocess.run([sys.executable, '-c', THREADS, str(stand_ins)], capture_output=True, text=True, check=True)
    called = [f'{when} {i}' for when in ('before', 'after') for i in range(6)]
    assert sorted(done.stderr.splitlines()) == sorted([*called, 'kept by keras', 'kept by tensorflow', 'at the end'])
    assert done.stdout == '[0, 1]\n'
