"""Shards and an index in a bucket of an emulator of Cloud Storage: listing, reading, building, asking."""

import json
import os
import re

import numpy as np
import pytest

from hashing_model.codes.spec import CodeSpec
from pipelines import files, records
from pipelines.cli.main import main
from pipelines.index import versions
from pipelines.inputs import shards
from pipelines.search.on_demand import search_on_demand
from pipelines.search.search_plan import plan_search
from tests.helpers.make_bucket import PROJECT, emulated_bucket, names_in, upload
from tests.helpers.make_index import (
    catalogue_pictures,
    distances_to,
    hand_model,
    make_codes,
    make_version,
    nearest,
    start,
    tar_members,
    write_code_files,
    write_tar,
)

pytestmark = pytest.mark.engine

pytest.importorskip('gcp_storage_emulator')
pytest.importorskip('cryptography')

BUCKET = 'gs://shop'
BEAM = (f'--project={PROJECT}',)


@pytest.fixture(scope='module')
def bucket(tmp_path_factory):
    with emulated_bucket(tmp_path_factory.mktemp('gcs')) as made:
        yield made


def succeed(*command):
    done = start(*command, *(BEAM if command[0] in ('build', 'query') else ()))
    assert done.returncode == 0, done.stderr
    return done


def read_answers(bucket, name):
    return [json.loads(line) for line in bucket.blob(name).download_as_text().splitlines()]


def listed_versions():
    return json.loads(succeed('versions', f'{BUCKET}/index', '--json').stdout)


def test_codes_in_a_bucket_are_indexed_and_asked_in_the_bucket(bucket, tmp_path):
    spec = CodeSpec.parse('code=64')
    codes = make_codes('clustered', 2000, spec)
    write_code_files(tmp_path, codes, 2)
    upload(bucket, tmp_path, 'codes')
    for rows in (200, 300):  # a rebuild beside the first version
        built = ('--codes', f'{BUCKET}/codes/codes-*.parquet', '--partition-rows', rows)
        succeed('build', *built, '--index', f'{BUCKET}/index')
    names = names_in(bucket, 'index/')
    current = bucket.blob('index/CURRENT').download_as_text().strip()
    assert len({name.split('/')[1] for name in names if name.startswith('versions/')}) == 2
    assert f'versions/{current}/manifest.json' in names
    assert not [name for name in names if 'staging' in name or name.endswith('.tmp')]
    asked = ('--codes', write_code_files(tmp_path / 'ask', codes[:5], 1, 'query'))
    succeed('query', '--index', f'{BUCKET}/index', *asked, '--k', 7, '--output', f'{BUCKET}/out/answers.jsonl')
    found = [(row['distance'], row['image_id']) for row in read_answers(bucket, 'out/answers.jsonl')]
    expected = nearest(distances_to(codes, codes[:5], spec), 7)
    assert found == [(d, f'codes-{i}') for answers in expected for d, i in answers]
    assert current in succeed('inspect', f'{BUCKET}/index').stdout
    states = {row['version']: row['state'] for row in listed_versions()}
    assert states.pop(current) == 'served'
    (before,) = states
    assert states[before] == 'finished'
    succeed('rollback', f'{BUCKET}/index')
    assert bucket.blob('index/CURRENT').download_as_text() == f'{before}\n'
    succeed('promote', f'{BUCKET}/index', current)
    dead = '20200101T000000Z-00dead'  # named as builds name them: nothing else is removed
    bucket.blob(f'index/versions/{dead}/inputs.parquet').upload_from_string(b'')
    for keep, older, left in ((2, 24, {before, current, dead}), (2, 0, {before, current}), (1, 0, {current})):
        succeed('prune', f'{BUCKET}/index', '--keep', keep, '--older-than', older)
        assert {row['version'] for row in listed_versions()} == left
    assert ' is whole: 2,000 images' in succeed('verify', f'{BUCKET}/index').stderr
    damaged = next(name for name in names if name.startswith(f'versions/{current}/codes'))
    bucket.blob(f'index/{damaged}').upload_from_string(b'')
    done = start('verify', f'{BUCKET}/index')
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 1)


def test_a_few_queries_of_a_bucket_read_a_few_row_groups(bucket, tmp_path):
    """Through Beam, as the command's last line tells, and on demand; the answers are exact."""
    spec = CodeSpec.parse('code=64')
    codes = make_codes('clustered', 40_000, spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, 'ROW_GROUP_ROWS', 500)
        make_version(tmp_path / 'index', spec, np.array_split(codes, 2), partition_rows=20_000)
    upload(bucket, tmp_path / 'index', 'large')
    asked = ('--codes', write_code_files(tmp_path / 'ask', codes[:2], 1, 'query'))
    output = f'{BUCKET}/out/few.jsonl'
    done = succeed('query', '--index', f'{BUCKET}/large', *asked, '--k', 3, '--output', output, '--explain')
    expected = nearest(distances_to(codes, codes[:2], spec), 3)
    found = [(row['distance'], row['image_id']) for row in read_answers(bucket, 'out/few.jsonl')]
    assert found == [(d, str(i)) for answers in expected for d, i in answers]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith('read ')]
    version = versions.open_version(f'{BUCKET}/large')
    manifest = version.manifest
    rows, of = (int(n.replace(',', '')) for n in re.search(r'tables ([\d,]+) of ([\d,]+) rows', line).groups())
    assert of == len(codes) * len(manifest.tables)
    assert 0 < rows < of / 3
    plan = plan_search(spec, manifest.tables, manifest.rows, codes[:0], codes[:2], 3)
    matches, _ = search_on_demand(version, plan)
    starts = np.array([0, 20_000])
    places = starts[matches.rows >> 32] + (matches.rows & 0xFFFFFFFF)
    assert list(zip(matches.distances, places, strict=True)) == [a for answers in expected for a in answers]


def test_image_shards_and_the_model_in_a_bucket(bucket, tmp_path):
    pictures = catalogue_pictures(50)
    (tmp_path / 'shards').mkdir()
    for number in range(2):
        write_tar(tmp_path / 'shards' / f'{number}.tar', tar_members(pictures[number * 25 : number * 25 + 25]))
    hand_model(pictures).save(tmp_path / 'model')
    upload(bucket, tmp_path / 'shards', 'shards')
    upload(bucket, tmp_path / 'model', 'model')
    both = ('--images', f'{BUCKET}/shards/*.tar', '--model', f'{BUCKET}/model', '--index')
    succeed('build', *both, f'{BUCKET}/pictures')
    here = ('--images', tmp_path / 'shards' / '*.tar', '--model', tmp_path / 'model', '--index', tmp_path / 'index')
    succeed('build', *here)
    for index, output in (
        (f'{BUCKET}/pictures', f'{BUCKET}/out/there.jsonl'),
        (tmp_path / 'index', tmp_path / 'a.jsonl'),
    ):
        asked = ('--images', tmp_path / 'shards' / '1.tar', '--k', 3)
        succeed('query', '--index', index, *asked, '--output', output)
    answers = read_answers(bucket, 'out/there.jsonl')
    local = [json.loads(line) for line in (tmp_path / 'a.jsonl').read_text().splitlines()]
    assert len(answers) == 75
    for there, row in zip(answers, local, strict=True):
        assert there['source'].pop('shard') == f'{BUCKET}/shards/{os.path.basename(row["source"].pop("shard"))}'
        assert there == row


def test_unchanged_objects_are_taken_over_by_their_generation(bucket, tmp_path):
    pictures = catalogue_pictures(50)
    (tmp_path / 'shards').mkdir()
    for number in range(2):
        write_tar(tmp_path / 'shards' / f'{number}.tar', tar_members(pictures[number * 25 : number * 25 + 25]))
    hand_model(pictures).save(tmp_path / 'model')
    upload(bucket, tmp_path / 'shards', 'nightly')
    both = ('--images', f'{BUCKET}/nightly/*.tar', '--model', tmp_path / 'model', '--index', f'{BUCKET}/nights')

    def build():
        done = succeed('build', *both)
        manifest = versions.read_manifest(f'{BUCKET}/nights')
        folder = versions.Version(f'{BUCKET}/nights', manifest.version).folder
        return done.stderr, files.read_table(files.join(folder, manifest.inputs.path))['generation'].to_pylist()

    _, generations = build()
    listed = {blob.name: blob.generation for blob in bucket.client.list_blobs('shop', prefix='nightly/')}
    assert generations == [listed['nightly/0.tar'], listed['nightly/1.tar']]
    assert ' 0 added, 0 changed, 50 unchanged, 0 removed; 2 of 2 units taken over\n' in build()[0]
    write_tar(tmp_path / 'shards' / '1.tar', tar_members(pictures[26:50]))
    upload(bucket, tmp_path / 'shards', 'nightly')  # the first with the same bytes, but as another generation
    told, _ = build()
    assert ' 0 added, 0 changed, 49 unchanged, 1 removed; 0 of 2 units taken over, and 49 images of other' in told


def test_a_failed_build_leaves_nothing_in_the_bucket(bucket, tmp_path):
    path = tmp_path / 'codes-1.parquet'
    write_code_files(tmp_path, make_codes('uniform', 1000, CodeSpec.parse('code=64')), 2)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(1000) + data[len(data) // 2 + 1000 :])
    upload(bucket, tmp_path, 'bad')
    done = start('build', '--codes', f'{BUCKET}/bad/codes-*.parquet', '--index', f'{BUCKET}/failed', *BEAM)
    assert done.returncode == 1
    assert f'cannot read {BUCKET}/bad/codes-1.parquet' in done.stderr.splitlines()[-1]
    assert [name for name in names_in(bucket, 'failed/') if name and not name.endswith('/')] == []


def test_objects_that_vanish_between_listing_and_reading(bucket, tmp_path, monkeypatch, capsys):
    """A picture is one reject; a shard fails the build, and what is served stays served."""
    pictures = catalogue_pictures(40)
    for number, (_, data) in enumerate(pictures[:5]):
        bucket.blob(f'vanishing/loose/{number}.webp').upload_from_string(data)
    write_tar(tmp_path / 'shard.tar', tar_members(pictures[5:]))
    bucket.blob('vanishing/shard.tar').upload_from_filename(str(tmp_path / 'shard.tar'))
    hand_model(pictures).save(tmp_path / 'model')
    index, list_inputs, vanishing = f'{BUCKET}/vanished', shards.list_inputs, []

    def list_then_delete(*arguments):
        found = list_inputs(*arguments)
        for name in vanishing:
            bucket.blob(name).delete()
        return found

    monkeypatch.setattr(shards, 'list_inputs', list_then_delete)
    build = ['build', '--images', f'{BUCKET}/vanishing', '--model', f'{tmp_path}/model', '--index', index, *BEAM]
    command = [*build, '--full', '--no-gate']  # what is as it was listed before would be taken over unread
    vanishing.append('vanishing/loose/3.webp')
    assert main(command) == 0
    manifest = versions.read_manifest(index)
    assert (manifest.rows, manifest.counters['reasons']) == (39, {records.UNREADABLE_FILE: 1})
    before = [name for name in names_in(bucket, 'vanished/') if not name.endswith('/')]
    vanishing[:] = ['vanishing/shard.tar']
    capsys.readouterr()
    assert main(command) == 1
    assert f'grainhash: error: cannot read {BUCKET}/vanishing/shard.tar: ' in capsys.readouterr().err
    assert [name for name in names_in(bucket, 'vanished/') if not name.endswith('/')] == before
    assert main(['verify', index]) == 0


def test_a_failed_rebuild_leaves_the_versions_before(bucket, tmp_path):
    write_code_files(tmp_path / 'good', make_codes('uniform', 300, CodeSpec.parse('code=64')), 1)
    succeed('build', '--codes', tmp_path / 'good' / 'codes-*.parquet', '--index', f'{BUCKET}/rebuilt')
    before = names_in(bucket, 'rebuilt/')
    (tmp_path / 'good' / 'codes-1.parquet').write_bytes((tmp_path / 'good' / 'codes-0.parquet').read_bytes())
    data = bytearray((tmp_path / 'good' / 'codes-0.parquet').read_bytes())
    data[100:1000] = bytes(900)
    (tmp_path / 'good' / 'codes-0.parquet').write_bytes(data)
    done = start('build', '--codes', tmp_path / 'good' / 'codes-*.parquet', '--index', f'{BUCKET}/rebuilt', *BEAM)
    assert done.returncode == 1
    assert [name for name in names_in(bucket, 'rebuilt/') if not name.endswith('/')] == before


def test_discarding_a_version_in_a_bucket_leaves_the_others(bucket):
    for name in ('CURRENT', 'versions/kept/images/a', 'versions/failed/images/a'):
        bucket.blob(f'discarding/{name}').upload_from_string(b'')
    versions.discard(f'{BUCKET}/discarding', 'failed')
    left = [name for name in names_in(bucket, 'discarding/') if name and not name.endswith('/')]
    assert left == ['CURRENT', 'versions/kept/images/a']


def test_names_in_a_bucket_are_those_of_files_and_folders(bucket):
    for name in ('named/a/b/c', 'named/d', 'named/e/f', 'named2/g', 'named/h/'):
        bucket.blob(name).upload_from_string(b'')
    assert files.names_in(f'{BUCKET}/named') == ['a', 'd', 'e', 'h']
    assert files.names_in(f'{BUCKET}/named/a') == ['b']
    assert files.names_in(f'{BUCKET}/nothing') == []


def test_a_bucket_without_an_index_is_refused(bucket):
    done = start('inspect', f'{BUCKET}/nothing')
    assert done.returncode == 2
    assert f'{BUCKET}/nothing is not an index' in done.stderr
