"""The jobs on engines with workers of their own: an embedded Apache Flink, and Prism, Beam's engine in Go.

Flink's job server comes through Maven, Prism through Go. Where there is neither, the tests are skipped and say why.
"""

import contextlib
import fcntl
import importlib.metadata
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hashing_model.codes.spec import CodeSpec
from pipelines.index import versions
from tests.helpers.make_index import (
    CATALOGUE,
    ROOT,
    catalogue_pictures,
    data_bytes,
    flip_bits,
    hand_model,
    make_codes,
    read_served,
    succeed,
    write_code_files,
    write_codes,
)

pytestmark = pytest.mark.engine
ELSEWHERE = pytest.mark.xdist_group('engines on pictures')  # at the same time as those on codes

BEAM = importlib.metadata.version('apache-beam')
FLINK = '1.19'
SEGMENTS = 'coarse=32,fine=32,look=64'
SPEC = CodeSpec.parse(SEGMENTS)
ROWS, PARTITION_ROWS = 2_000_000, 100_000
FINISHED = {  # what an engine logs of a job
    'Flink': r'Job \S+ \(\w+\) switched from state RUNNING to FINISHED',
    'Spark': r'Job BeamApp\S+ finished',
    'Prism': r'PrismRunner: pipeline done!',
}
MEMORY = '--job_server_jvm_properties=-Xmx2g'
JOB_SECONDS = 480  # of which a job takes a tenth on a quiet machine; a hanging one never ends by itself


def run(*command, seconds=JOB_SECONDS, **more):
    """A command's (exit code, output), in a process group of which nothing is left after some seconds."""
    with start_group(*command, **more) as process:
        try:
            output = process.communicate(timeout=seconds)[0]
        finally:
            kill_group(process)
    return process.returncode, output


def start_group(*command, stdout=subprocess.PIPE, **more):
    options = {'stdout': stdout, 'stderr': subprocess.STDOUT, 'text': True, 'cwd': ROOT, 'start_new_session': True}
    return subprocess.Popen([str(word) for word in command], **options, **more)


def kill_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def grainhash(*command):
    """A command's output, which shows what the engine logs; it must end well."""
    code, output = run(sys.executable, '-m', 'grainhash', *command, '--verbose')
    assert code == 0, output[-5000:]
    return output


# Engines


def tool(name):
    """The path of a program that the test cannot do without."""
    return shutil.which(name) or pytest.skip(f'{name} is not installed')


@pytest.fixture(scope='module')
def flink():
    """Options that run a job on a Flink inside the job server."""
    jar = f'--flink_job_server_jar={job_server("flink", f"beam-runners-flink-{FLINK}-job-server")}'
    return '--runner=FlinkRunner', f'--flink_version={FLINK}', '--flink_master=[local]', jar, '--parallelism=2', MEMORY


@pytest.fixture(scope='module')
def spark():
    """Options that run a job on a Spark inside the job server."""
    jar = f'--spark_job_server_jar={job_server("spark", "beam-runners-spark-3-job-server")}'
    return '--runner=SparkRunner', '--spark_master_url=local[2]', '--environment_type=LOOPBACK', jar, MEMORY


@contextlib.contextmanager
def alone(name):
    """Waits until no other process makes the same file below `build`."""
    (ROOT / 'build').mkdir(exist_ok=True)
    with (ROOT / 'build' / f'{name}.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def job_server(engine, name):
    """The job server of the installed Beam; if Maven has none, one of the parts that deploy/flink/pom.xml names."""
    tool('java')
    with alone('job-servers'):  # one at a time: Maven's own folder is shared, too
        return make_job_server(engine, name)


def make_job_server(engine, name):
    folder = ROOT / 'build' / engine
    made, ready = folder / 'job-server.jar', folder / f'{name}-{BEAM}.jar'
    if ready.exists() or made.exists():
        return ready if ready.exists() else made
    artifact = f'-Dartifact=org.apache.beam:{name}:{BEAM}'
    maven = tool('mvn'), '-q', '-B'
    code, output = run(*maven, 'dependency:get', artifact, '-Dtransitive=false')
    if code == 0:
        code, output = run(*maven, 'dependency:copy', artifact, f'-DoutputDirectory={folder}')
        assert code == 0, output
        return ready
    code, output = run(*maven, '-f', ROOT / 'deploy' / 'flink', 'package', f'-P{engine}')
    if code:
        pytest.skip(f'Maven gives no job server of {engine}: {output[:1000]}')
    return made


@pytest.fixture(scope='module')
def prism():
    """Options that run a job on Prism."""
    binary = ROOT / 'build' / f'prism-{BEAM}' / 'prism'
    with alone('prism'):
        if not binary.exists():
            wanted = f'github.com/apache/beam/sdks/v2/go/cmd/prism@v{BEAM}'
            code, output = run(tool('go'), 'install', wanted, env={**os.environ, 'GOBIN': str(binary.parent)})
            if code:
                pytest.skip(f'Go gives no Prism: {output[-1000:]}')
    return '--runner=PrismRunner', f'--prism_location={binary}'


@pytest.fixture
def pool():
    """A process that starts worker processes when a job asks for them, and the options to ask."""
    with socket.create_server(('localhost', 0)) as free:
        port = free.getsockname()[1]
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'  # workers are started as `python`
    command = sys.executable, '-m', 'apache_beam.runners.worker.worker_pool_main', f'--service_port={port}'
    with start_group(*command, stdout=subprocess.DEVNULL, env={**os.environ, 'PATH': path}) as process:
        try:
            until(lambda: listens(port), 'the pool does not listen')
            yield process, ('--environment_type=EXTERNAL', f'--environment_config=localhost:{port}')
        finally:
            kill_group(process)


def until(reached, otherwise, seconds=60):
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(('localhost', port), 1):
        return True
    return False


@pytest.fixture
def engine(request):
    """Its name, and options that run a job on it."""
    name = request.param.split()[0]
    options = request.getfixturevalue(name.lower())
    if request.param.endswith('processes'):
        options += *request.getfixturevalue('pool')[1], '--sdk_worker_parallelism=2'
    return name, options


# Inputs, and what the local runner makes of them


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """The embedded catalogue and a model: folder, options to build, options to ask."""
    folder = tmp_path_factory.mktemp('pictures')
    hand_model(catalogue_pictures(40)).save(folder / 'model')
    reading = '--images', CATALOGUE / 'index-*.tar.gz', '--model', folder / 'model', '--partition-rows', 500
    return folder, reading, ('--images', CATALOGUE / 'query-twitter-*.tar.gz')


@pytest.fixture(scope='module')
def codes(tmp_path_factory):
    """Two million codes, half of them the same code, and some near them: folder, options to build, options to ask."""
    folder = tmp_path_factory.mktemp('codes')
    made = make_codes('identical', ROWS, SPEC)
    pattern = write_code_files(folder, made, 8)
    asked = flip_bits(made[:100], SPEC, 0.05)
    questions = write_codes(folder / 'questions.parquet', [f'question {i}' for i in range(len(asked))], asked)
    reading = '--codes', pattern, '--segments', SEGMENTS, '--partition-rows', PARTITION_ROWS, '--no-gate'
    return folder, reading, ('--codes', questions)


@pytest.fixture(scope='module')
def given(request):
    """One of both, and `index` built of it locally, and what asking that gave."""
    folder, reading, asking = request.getfixturevalue(request.param)
    if not (folder / 'index').exists():  # pytest sets a parameter up again when another was in between
        grainhash('build', *reading, '--index', folder / 'index')
    return folder, reading, asking, ask(folder / 'index', asking, folder / 'answers.jsonl')[1]


def ask(index, asking, answers, *options):
    """Ask an index: the output, and of it what the job counted."""
    output = grainhash('query', '--index', index, *asking, '--k', 10, '--output', answers, '--explain', *options)
    told = re.findall(r'^(?: +\d.*|bounds .*|read .*)$', output, re.MULTILINE)
    return output, told


# Jobs


@pytest.mark.parametrize(
    ('given', 'engine'),
    [
        pytest.param('pictures', 'Flink', marks=ELSEWHERE),
        pytest.param('pictures', 'Flink with worker processes', marks=ELSEWHERE),
        pytest.param('pictures', 'Prism', marks=ELSEWHERE),
        pytest.param('pictures', 'Spark', marks=ELSEWHERE),
        ('codes', 'Flink'),
        ('codes', 'Flink with worker processes'),
    ],
    indirect=True,
)
def test_builds_and_answers_are_those_of_the_local_runner(given, engine, tmp_path):
    name, options = engine
    folder, reading, asking, told = given
    output = grainhash('build', *reading, '--index', tmp_path / 'index', *options)
    assert re.search(FINISHED[name], output)
    assert data_bytes(tmp_path / 'index') == data_bytes(folder / 'index')
    assert read_served(tmp_path / 'index').counters == read_served(folder / 'index').counters
    output, told_there = ask(folder / 'index', asking, tmp_path / 'answers.jsonl', *options)
    assert re.search(FINISHED[name], output)
    assert told_there == told
    assert len(told) > 3
    assert (tmp_path / 'answers.jsonl').read_bytes() == (folder / 'answers.jsonl').read_bytes()


@pytest.mark.parametrize(
    ('given', 'engine'),
    [pytest.param('pictures', 'Spark', marks=ELSEWHERE), ('codes', 'Flink with worker processes')],
    indirect=True,
)
def test_near_duplicates_are_those_of_the_local_runner(given, engine, tmp_path):
    """Half of the codes are equal: a group of a million, whose links travel at once."""
    name, options = engine
    command = ('duplicates', '--index', given[0] / 'index', '--radius', 3, '--output')
    told = grainhash(*command, tmp_path / 'here.parquet')
    output = grainhash(*command, tmp_path / 'there.parquet', *options)
    assert re.search(FINISHED[name], output)
    groups, left = re.search(r'(\d\S* groups? of .*), in .*(; .*)', told).groups()
    assert groups in output
    assert left in output
    here, there = (pq.read_table(tmp_path / f'{where}.parquet') for where in ('here', 'there'))
    assert len(here) > 0
    assert there == here


@pytest.mark.parametrize('given', ['codes'], indirect=True)
def test_no_file_of_a_code_that_half_the_catalogue_has_is_larger_than_others(given):
    for table in read_served(given[0] / 'index').tables:
        rows = {partition.prefix: [file.rows for file in partition.files] for partition in table.partitions}
        hottest = max(rows.values(), key=sum)
        assert sum(hottest) >= ROWS / 2
        assert len(hottest) > 10
        assert max(hottest) < 1.1 * min(hottest)
        assert max(map(max, rows.values())) <= PARTITION_ROWS


@pytest.mark.parametrize('given', ['codes'], indirect=True)
@pytest.mark.parametrize('restarts', [False, True], ids=['no restarts', 'restarts'])
def test_a_killed_worker_fails_the_build_or_is_made_good_by_flink(given, restarts, flink, pool, tmp_path):
    folder, reading, _, _ = given
    workers, options = pool
    index = shutil.copytree(folder / 'index', tmp_path / 'index')
    served, bytes_served = versions.current_version(str(index)), data_bytes(index)
    options += (f'--flink_conf_dir={ROOT}/deploy/flink',) if restarts else ()
    again = ('build', '--full', *reading, '--index', index)  # all of it: what is taken over is not encoded
    command = [sys.executable, '-m', 'grainhash', *again, *flink, *options, '--verbose']
    with (tmp_path / 'log').open('w') as log, start_group(*command, stdout=log) as build:
        try:
            until(lambda: list(index.rglob('staging/images-*.parquet')), 'nothing was encoded')
            killed = children(workers.pid)
            for worker in killed:
                os.kill(worker, signal.SIGKILL)
            build.wait(JOB_SECONDS)
        finally:
            kill_group(build)
    output = (tmp_path / 'log').read_text()
    assert killed
    assert ('switched from state RUNNING to RESTARTING' in output) == restarts
    assert (build.returncode == 0) == restarts, output[-5000:]
    if not restarts:
        assert re.search('^grainhash: error: .* failed in state FAILED', output, re.MULTILINE), output[-5000:]
        assert [found.version for found in versions.list_versions(str(index))] == [served]
    assert (versions.current_version(str(index)) != served) == restarts
    assert data_bytes(index) == bytes_served
    succeed('verify', index)


def children(pid):
    """Processes that a process started, from whichever thread."""
    return [int(child) for file in Path(f'/proc/{pid}/task').glob('*/children') for child in file.read_text().split()]
