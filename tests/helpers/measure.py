"""Commands run with their memory measured, and what they may leave behind."""

import collections
import hashlib
import os
import subprocess
import sys

from pipelines import files
from tests.helpers.make_index import ROOT, read_served, served_folder

MOST_MEMORY = 2 << 30  # bytes per worker
MOST_SECONDS = 10  # per picture
TIMEOUT = 300  # for all

# Runs a command and tells on file 3 the most memory, in KiB, that it or one of its workers had. This process is small:
# the kernel counts what a process had before it started another program.
MEASURE = """
import os, resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
os.write(3, str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss).encode())
sys.exit(code if code >= 0 else 128 - code)
"""


def run_measured(command, folder):
    """Run a command with its home and temporary files in a folder.

    Returns:
        Exit code (above 128: killed by a signal), standard output, standard error, and the most memory in bytes that it
        or any one of its workers had.
    """
    environment = {**os.environ, 'TMPDIR': str(folder / 'tmp'), 'HOME': str(folder / 'home'), 'NO_COLOR': '1'}
    for name in ('tmp', 'home'):
        (folder / name).mkdir(exist_ok=True)
    words = ['sh', '-c', 'exec "$@" 3> "$0"', folder.parent / f'{folder.name}.memory', sys.executable, '-c', MEASURE]
    done = subprocess.run(
        [str(word) for word in (*words, *command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    memory = int((folder.parent / f'{folder.name}.memory').read_text()) * 1024
    return done.returncode, done.stdout, done.stderr, memory


def listing(folder):
    """Path -> digest of every file below a folder, None for folders."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        for path in sorted(folder.rglob('*'))
    }


def all_rejects(index):
    """All rejects of the served version, as dicts."""
    folder = served_folder(index)
    tables = [files.read_table(str(folder / f.path)) for f in read_served(index).rejects]
    return [row for table in tables for row in table.to_pylist()]


def check_counts(index, records_read):
    """That the numbers of a build add up, and that every record that is not indexed has a reason."""
    counters, rejects = read_served(index).counters, all_rejects(index)
    assert counters['records_read'] == counters['indexed'] + counters['rejected'] + counters['duplicates']
    assert counters['records_read'] == records_read
    assert len(rejects) == counters['rejected'] + counters['duplicates']
    reasons = collections.Counter(row['reason'] for row in rejects)
    reasons.pop('duplicate_id', None)
    assert reasons == counters['reasons']
    assert all(row['detail'] and '\n' not in row['detail'] for row in rejects)
    return counters
