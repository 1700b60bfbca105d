"""What a build tells of itself: build.json, log lines, Beam's counters, and the file of metrics."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from hashing_model.codes.spec import CodeSpec
from pipelines.build.config import BuildConfig
from pipelines.build.job import define_pipeline
from pipelines.build.metrics_file import HELP, metrics
from pipelines.build.stats import BuildStage, Work, read_build_stats
from pipelines.build.unit_list import write_inputs, write_unit_list
from pipelines.index import versions
from pipelines.inputs.options import ReadOptions
from pipelines.inputs.shards import list_inputs, list_units
from pipelines.jobs.counts import counters
from pipelines.jobs.runner import pipeline_options, run_pipeline
from tests.helpers.make_index import (
    catalogue_pictures,
    hand_model,
    make_codes,
    read_served,
    served_folder,
    start,
    tar_members,
    write_code_files,
    write_tar,
)


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    """A model, and shards of 21 records: one is no picture, and one id is there twice."""
    folder = tmp_path_factory.mktemp('shop')
    pictures = catalogue_pictures(19)
    (folder / 'shards').mkdir()
    write_tar(folder / 'shards' / '0.tar', tar_members(pictures[:10]))
    write_tar(folder / 'shards' / '1.tar', tar_members([*pictures[10:], (pictures[0][0], pictures[1][1])]))
    write_tar(folder / 'shards' / '2.tar', [('broken.jpg', b'no picture')])
    hand_model(catalogue_pictures(40)).save(folder / 'model')
    return folder


def read_metrics(path):
    """(name, labels but the index) -> value."""
    found = {}
    for family in text_string_to_metric_families(path.read_text()):
        assert family.documentation == HELP[family.name.removeprefix('grainhash_')]
        for sample in family.samples:
            labels = frozenset((name, value) for name, value in sample.labels.items() if name != 'index')
            found[sample.name.removeprefix('grainhash_'), labels] = sample.value
    return found


def of(name, **labels):
    return name, frozenset(labels.items())


def build(shop, index, *options):
    command = ('build', '--images', shop / 'shards', '--model', shop / 'model', '--index', index)
    return start(*command, '--metrics-file', index.parent / 'metrics.prom', *options)


@pytest.mark.process
def test_a_build_is_told_in_its_version_its_log_and_its_metrics(shop, tmp_path):
    done = build(shop, tmp_path / 'index', '--max-reject-rate', '0.1')
    assert done.returncode == 0, done.stderr
    manifest = read_served(tmp_path / 'index')
    stats = json.loads((served_folder(tmp_path / 'index') / versions.BUILD_PATH).read_text())
    assert stats == read_build_stats(versions.Version(str(tmp_path / 'index'), manifest.version))
    assert stats['counters'] == manifest.counters
    assert manifest.counters == {
        'records_read': 21, 'indexed': 19, 'rejected': 1, 'duplicates': 1, 'reasons': {'not_an_image': 1}
    }  # fmt: skip
    assert stats['bytes'] == sum(f.bytes for f in manifest.all_files if f != manifest.build)
    stages = {stage['name']: stage for stage in stats['stages']}
    assert list(stages) == ['encode', 'finish', 'partition', 'check']
    written = sum(len(p.files) for t in manifest.tables for p in t.partitions)
    assert [stages[name]['tasks'] for name in stages] == [3, 3, written, 1]
    encode = stages['encode']['counts']
    sizes = sum(len(data) for _, data in catalogue_pictures(19)) + len(catalogue_pictures(2)[1][1]) + len(b'no picture')
    assert (encode['records_read'], encode['taken_over'], encode['image_bytes']) == (21, 0, sizes)
    assert 0 < encode['decode_ms'] + encode['features_ms'] < 1000 * stages['encode']['work_seconds'] * 3
    assert stages['partition']['counts']['rows'] == 19 * len(manifest.tables)
    ends = [stage['started'] + stage['seconds'] for stage in stats['stages']]
    assert stats['started'] < stages['encode']['started'] < ends[0] <= stages['finish']['started'] + 0.01
    assert max(ends) <= stats['started'] + stats['seconds'] + 0.01
    lines = [line for line in done.stderr.splitlines() if line.startswith('stage=')]
    assert [re.match(r'stage=(\w+) tasks=(\d+) seconds=[\d.]+ work_seconds=[\d.]+', line)[1] for line in lines] == [
        *stages
    ]
    assert ' rejected_duplicate_id=1 rejected_not_an_image=1 ' in lines[1]
    metrics = read_metrics(tmp_path / 'metrics.prom')
    assert metrics[of('build_exit_code')] == 0
    assert metrics[of('build_records', result='indexed')] == 19
    assert metrics[of('build_rejects', reason='not_an_image')] == 1
    assert metrics[of('build_stage_seconds', stage='encode')] == stages['encode']['seconds']
    assert abs(metrics[of('build_ended_timestamp_seconds')] - metrics[of('served_version_timestamp_seconds')]) < 60

    served = metrics[of('served_version_timestamp_seconds')]
    failed = build(shop, tmp_path / 'index', '--max-reject-rate', '0.01')
    assert failed.returncode == 3
    metrics = read_metrics(tmp_path / 'metrics.prom')
    assert metrics[of('build_exit_code')] == 3
    assert metrics[of('build_images', change='unchanged')] == 19
    assert metrics[of('served_version_timestamp_seconds')] == served


@pytest.mark.process
def test_a_build_that_never_began_is_told_too(shop, tmp_path):
    done = start('build', '--images', tmp_path / 'none', '--model', shop / 'model', '--index', tmp_path / 'index',
                 '--metrics-file', tmp_path / 'metrics.prom')  # fmt: skip
    assert done.returncode == 2
    metrics = read_metrics(tmp_path / 'metrics.prom')
    assert {name for name, _ in metrics} == {'build_exit_code', 'build_ended_timestamp_seconds', 'build_seconds'}
    assert metrics[of('build_exit_code')] == 2
    nowhere = start('build', '--codes', 'x', '--index', 'y', '--metrics-file', tmp_path)
    assert (nowhere.returncode, nowhere.stderr.count('\n')) == (2, 1)
    assert f'{tmp_path} is a folder' in nowhere.stderr
    afar = start('build', '--codes', 'x', '--index', 'y', '--metrics-file', 'gs://shop/metrics.prom')
    assert (afar.returncode, afar.stderr.count('\n')) == (2, 1)
    assert 'node-exporter reads files of a disk' in afar.stderr


@pytest.mark.beam
def test_beam_keeps_counters_and_distributions(shop, tmp_path):
    from hashing_model.model import HashModel

    inputs = list_inputs([str(shop / 'shards')])
    units = list_units([str(shop / 'shards')], ReadOptions())
    index, model = str(tmp_path / 'index'), HashModel.load(shop / 'model')
    listed = write_inputs(versions.Version(index, 'v'), inputs)
    info = {'fingerprint': model.fingerprint, 'method': 'itq'}
    count = write_unit_list(versions.Version(index, 'v'), units)
    config = BuildConfig(index, 'v', model.spec, count, listed, str(shop / 'model'), info, gate=None)
    result = run_pipeline(lambda root: define_pipeline(root, config), pipeline_options([]))
    found = counters(result)
    assert {name: n for name, n in found.items() if n} == {
        'records_read': 21, 'encoded': 20, 'rejected': 1, 'rejected_not_an_image': 1, 'duplicates': 1, 'indexed': 19
    }  # fmt: skip
    distributions = {d.key.metric.name: d.result for d in result.metrics().query()['distributions']}
    assert {name: distributions[name].count for name in ('image_bytes', 'decode_us', 'features_us', 'hash_us')} == {
        'image_bytes': 21, 'decode_us': 21, 'features_us': 2, 'hash_us': 2
    }  # fmt: skip
    assert distributions['image_bytes'].min == len(b'no picture')


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e3)), max_size=5))
def test_a_stage_lasts_from_its_first_begin_to_its_last_end(spans):
    stage = BuildStage.of('sort', [Work(a, a + b) for a, b in spans], rows=7)
    assert stage.tasks == len(spans)
    assert stage.seconds == pytest.approx(
        max((a + b for a, b in spans), default=0) - min((a for a, _ in spans), default=0), abs=2e-3
    )
    assert stage.work_seconds == pytest.approx(sum(b for _, b in spans), abs=1e-3)
    assert stage.line().startswith(f'stage=sort tasks={len(spans)} seconds=')
    assert stage.line().endswith(' rows=7')


def test_every_metric_has_a_help():
    stats = {
        'bytes': 5,
        'counters': {'indexed': 1, 'rejected': 2, 'duplicates': 3, 'reasons': {'empty': 2}},
        'changes': {'added': 1, 'changed': 2, 'unchanged': 3, 'removed': 4},
        'stages': [{'name': 'encode', 'seconds': 1.5}],
    }
    found = list(metrics(0, 1.0, 3.5, stats, 2.0))
    assert {metric.name for metric in found} == set(HELP)
    assert [s.value for s in found if s.name == 'build_seconds'] == [2.5]


@pytest.mark.process
def test_codes_are_told_without_measures(tmp_path):
    pattern = write_code_files(tmp_path, make_codes('uniform', 100, CodeSpec.parse('code=64')), 1)
    done = start('build', '--codes', pattern, '--index', tmp_path / 'index')
    (line,) = [line for line in done.stderr.splitlines() if line.startswith('stage=encode')]
    assert line.endswith('records_read=100 taken_over=0 reused=0 image_bytes=0')
