"""Builds and queries that are submitted to Dataflow: to its API on loopback, and run there from what was staged.

What `helpers/fake_dataflow.py` runs is the very pipeline that was put into the bucket, in a process that does not
know who submitted it and has grainhash from the staged package alone. The answers are those of the same commands run
locally.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from hashing_model.codes.spec import CodeSpec
from pipelines.index import versions
from tests.helpers.fake_dataflow import FakeDataflow, run_job
from tests.helpers.make_bucket import PROJECT, emulated_bucket, names_in, upload
from tests.helpers.make_index import (
    ROOT,
    catalogue_pictures,
    hand_model,
    make_codes,
    start,
    tar_members,
    write_code_files,
    write_codes,
    write_tar,
)

pytest.importorskip('gcp_storage_emulator')
pytest.importorskip('cryptography')

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group('package')]  # builds write beside the source

BUCKET = 'gs://shop'
PICTURES = 120
LAUNCH = ROOT / 'deploy' / 'dataflow' / 'launch.py'
LOCALLY = (f'--project={PROJECT}',)
REMOTELY = (
    *LOCALLY,
    '--runner=DataflowRunner',
    '--region=us-central1',
    f'--temp_location={BUCKET}/tmp',
    f'--staging_location={BUCKET}/staging',
)


@pytest.fixture(scope='module')
def bucket(tmp_path_factory):
    """A bucket with three image shards, the last of them with a broken and a repeated picture, and a model."""
    folder = tmp_path_factory.mktemp('shop')
    pictures = catalogue_pictures(PICTURES)
    pictures[-1] = ({**pictures[-1][0], 'id': 'broken'}, b'RIFF')
    pictures[-2] = pictures[0]
    (folder / 'shards').mkdir()
    for number in range(3):
        write_tar(folder / 'shards' / f'{number}.tar', tar_members(pictures[number::3]))
    hand_model(pictures[:50]).save(folder / 'model')
    with emulated_bucket(folder) as made:
        for name in ('shards', 'model'):
            upload(made, folder / name, name)
        yield made


@pytest.fixture(scope='module')
def sdist(tmp_path_factory):
    """The package that Dataflow would install."""
    folder = tmp_path_factory.mktemp('sdist')
    code = f'import setuptools.build_meta as b; print(b.build_sdist({str(folder)!r}))'
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob('*.tar.gz')
    return path


@pytest.fixture(scope='module')
def dataflow(tmp_path_factory, bucket):
    with FakeDataflow(tmp_path_factory.mktemp('workers')) as service:
        yield service


def succeed(*command):
    done = start(*command)
    assert done.returncode == 0, done.stderr
    return done.stderr


def submit(dataflow, sdist, *command):
    """Run a command on Dataflow; what it said in the end, and the job."""
    job = len(dataflow.jobs)
    said = succeed(*command, *REMOTELY, f'--dataflow_endpoint={dataflow.endpoint}', f'--extra_package={sdist}')
    assert len(dataflow.jobs) == job + 1
    return said, dataflow.jobs[job]


def contents(index, version=None):
    """Digest by path of every file of a version but those with times of the build, and its counters."""
    manifest = versions.read_manifest(str(index), version)
    files = (*manifest.data_files, *manifest.model_files)
    return {file.path: file.digest for file in files}, manifest.counters


@pytest.fixture(scope='module')
def local(bucket, tmp_path_factory):
    """An index of the bucket's shards that was built here."""
    index = tmp_path_factory.mktemp('local') / 'index'
    succeed('build', *BUILD, '--index', index, *LOCALLY)
    return index


BUILD = ('--images', f'{BUCKET}/shards/*.tar', '--model', f'{BUCKET}/model', '--partition-rows', '50')


def test_a_build_and_a_query_on_dataflow_give_the_local_results(bucket, dataflow, sdist, local, tmp_path):
    said, job = submit(dataflow, sdist, 'build', *BUILD, '--index', f'{BUCKET}/index')
    assert f'{PICTURES - 2} of {PICTURES} records indexed, 1 with a duplicate id, 1 rejected' in said
    assert job.code == str(job.folder / 'pipelines' / '__init__.py')
    assert contents(f'{BUCKET}/index') == contents(local)
    asked = ('--images', f'{BUCKET}/shards/1.tar', '--k', '5')
    said, job = submit(
        *(dataflow, sdist, 'query', '--index', f'{BUCKET}/index', *asked),
        *('--output', f'{BUCKET}/out/answers.jsonl', '--explain'),
    )
    assert job.code.startswith(str(job.folder))
    here = succeed('query', '--index', local, *asked, '--output', tmp_path / 'answers.jsonl', '--explain', *LOCALLY)
    assert '200 answers to 40 queries' in said
    assert said.splitlines()[-2] == here.splitlines()[-2]  # read so many bytes and rows
    answers = bucket.blob('out/answers.jsonl').download_as_text()
    assert len(answers.splitlines()) == 200
    assert answers == (tmp_path / 'answers.jsonl').read_text()
    stats = json.loads(bucket.blob('out/answers.jsonl.stats.json').download_as_text())
    assert stats == {
        **json.loads((tmp_path / 'answers.jsonl.stats.json').read_text()),
        'index': f'{BUCKET}/index',
        'version': versions.current_version(f'{BUCKET}/index'),
    }
    groups = ('duplicates', '--radius', '20', '--output')
    said, _ = submit(dataflow, sdist, *groups, f'{BUCKET}/out/groups.jsonl', '--index', f'{BUCKET}/index')
    succeed(*groups, tmp_path / 'groups.jsonl', '--index', f'{BUCKET}/index', *LOCALLY)
    found = bucket.blob('out/groups.jsonl').download_as_text()
    assert f' {found.count(chr(10))} images' in said
    assert '"keep": false' in found
    assert found == (tmp_path / 'groups.jsonl').read_text()


def launch(bucket, sdist, *parameters):
    """Start a template as Dataflow's launcher does; how it ended, and the description of the job that it left."""
    staged = f'templates/{len(names_in(bucket, "templates/"))}/job_object'
    options = (
        *REMOTELY,
        f'--extra_package={sdist}',
        f'--template_location={BUCKET}/{staged}',
        '--labels={"by": "test"}',
    )
    done = subprocess.run(
        [sys.executable, LAUNCH, *parameters, *options],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        check=False,
    )
    description = bucket.blob(staged)
    return done, json.loads(description.download_as_bytes()) if description.exists() else None


def test_templates_leave_jobs_that_do_everything(bucket, dataflow, sdist, local, tmp_path):
    """The launcher waits for nothing: the version is published and the answers are written by the jobs alone."""
    index, out = f'{BUCKET}/nightly', 'out/nightly.jsonl'
    shards = ','.join(f'{BUCKET}/shards/{number}.tar' for number in range(3))
    parameters = (f'--images={shards}', f'--model={BUCKET}/model', '--partition_rows=50', '--labels=', '--id_field=')
    jobs = len(dataflow.jobs)
    done, description = launch(bucket, sdist, f'--index={index}', *parameters)
    assert (done.returncode, len(dataflow.jobs)) == (0, jobs), done.stderr
    assert 'the job is staged' in done.stderr
    assert description['labels'] == {'by': 'test'}
    assert 'CURRENT' not in names_in(bucket, 'nightly/')
    ran = run_job(description, tmp_path / 'build')
    assert ran.returncode == 0, ran.stderr
    assert versions.current_version(index) in done.stderr
    assert contents(index) == contents(local)
    asked = ('--images', f'{BUCKET}/shards/1.tar', '--k', '5')
    done, description = launch(
        bucket, sdist, f'--index={index}', f'--images={BUCKET}/shards/1.tar', '--k=5', f'--output={BUCKET}/{out}'
    )
    assert done.returncode == 0, done.stderr
    assert not bucket.blob(out).exists()
    ran = run_job(description, tmp_path / 'query')
    assert ran.returncode == 0, ran.stderr
    succeed('query', '--index', local, *asked, '--output', tmp_path / 'answers.jsonl', *LOCALLY)
    assert bucket.blob(out).download_as_text() == (tmp_path / 'answers.jsonl').read_text()


def test_a_template_that_cannot_be_launched_says_why(bucket, sdist):
    done, description = launch(bucket, sdist, f'--index={BUCKET}/none', f'--images={BUCKET}/shards/*.tar')
    assert (done.returncode, description) == (2, None)
    assert '--images need --model' in done.stderr.splitlines()[-1]


def test_what_fails_on_dataflow_is_told_in_a_line_and_leaves_nothing(bucket, dataflow, sdist, tmp_path):
    write_code_files(tmp_path, make_codes('uniform', 600, CodeSpec.parse('code=64')), 2)
    data = bytearray((tmp_path / 'codes-1.parquet').read_bytes())
    data[100:1000] = bytes(900)  # of the second file the launcher reads the footer alone
    (tmp_path / 'codes-1.parquet').write_bytes(data)
    upload(bucket, tmp_path, 'bad')
    endpoint = f'--dataflow_endpoint={dataflow.endpoint}'
    done = start(
        'build',
        '--codes',
        f'{BUCKET}/bad/',
        '--index',
        f'{BUCKET}/failed',
        *REMOTELY,
        endpoint,
        f'--extra_package={sdist}',
    )
    assert done.returncode == 1, done.stderr
    assert dataflow.jobs[-1].state == 'JOB_STATE_FAILED'
    assert f'cannot read {BUCKET}/bad/codes-1.parquet' in done.stderr.splitlines()[-1]
    assert [name for name in names_in(bucket, 'failed/') if name and not name.endswith('/')] == []


def test_ctrl_c_cancels_the_job_and_leaves_nothing(bucket, dataflow, tmp_path):
    write_codes(tmp_path / 'few.parquet', ['a', 'b'], make_codes('uniform', 2, CodeSpec.parse('code=64')))
    upload(bucket, tmp_path, 'few')
    command = ('build', '--codes', f'{BUCKET}/few/few.parquet', '--index', f'{BUCKET}/stopped', *REMOTELY)
    jobs = len(dataflow.jobs)
    dataflow.has_workers = False
    try:
        with subprocess.Popen(
            [sys.executable, '-m', 'grainhash', *command, f'--dataflow_endpoint={dataflow.endpoint}'],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            until = time.monotonic() + 60
            while len(dataflow.jobs) == jobs and time.monotonic() < until:
                time.sleep(0.2)
            time.sleep(2)  # it waits for the job now
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
    finally:
        dataflow.has_workers = True
    assert process.returncode == 130, said
    assert dataflow.jobs[-1].state == 'JOB_STATE_CANCELLED'
    assert [name for name in names_in(bucket, 'stopped/') if name and not name.endswith('/')] == []
