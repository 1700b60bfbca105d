"""Versions of an index: their ids and paths, and which one is served."""

import dataclasses
import pickle
import re
from pathlib import Path

import pyarrow as pa
import pytest

from hashing_model.errors import InputError
from pipelines.index import versions
from pipelines.index.versions import (
    Version,
    check_index_folder,
    current_version,
    new_version_id,
    publish,
    read_manifest,
)
from tests.helpers.make_versions import write_version


def test_ids_sort_by_time_and_do_not_repeat():
    ids = [new_version_id() for _ in range(50)]
    assert len(set(ids)) == 50
    assert all(re.fullmatch(r'20\d{6}T\d{6}Z-[0-9a-f]{6}', i) for i in ids)
    seconds = [i.partition('-')[0] for i in ids]
    assert seconds == sorted(seconds)


def test_paths_are_those_of_the_design():
    assert versions.Version('gs://bucket/index', 'v').folder == 'gs://bucket/index/versions/v'
    assert versions.images_path(12) == 'images/part-00012.parquet'
    assert versions.rejects_path(123456) == 'rejects/part-123456.parquet'
    assert versions.codes_path(0, '0110', 3) == 'codes/table=0/prefix=0110/part-3.parquet'


def test_the_version_published_last_is_served(tmp_path):
    index = str(tmp_path)
    first, second = (write_version(tmp_path, f'v{i}') for i in (1, 2))
    publish(index, 'v1')
    assert (tmp_path / 'CURRENT').read_bytes() == b'v1\n'
    assert (current_version(index), read_manifest(index)) == ('v1', first)
    publish(index, 'v2')
    assert (current_version(index), read_manifest(index)) == ('v2', second)
    assert read_manifest(index, 'v1') == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ['CURRENT', 'CURRENT.lock', 'versions']


def test_what_is_not_there_is_told(tmp_path):
    index = str(tmp_path)
    for folder in (index, f'{index}/none'):
        with pytest.raises(InputError, match=r'is not an index: there is no .*/CURRENT'):
            read_manifest(folder)
    (tmp_path / 'versions' / 'v1').mkdir(parents=True)
    with pytest.raises(InputError, match=r'has no finished version: there is no .*/CURRENT'):
        read_manifest(index)
    (tmp_path / 'CURRENT').write_bytes(b'v1\n')
    with pytest.raises(InputError, match=r'has no version v1: there is no .*/versions/v1/manifest\.json'):
        read_manifest(index)
    with pytest.raises(InputError, match='has no version v7'):
        read_manifest(index, 'v7')
    (tmp_path / 'versions' / 'v1' / 'manifest.json').write_bytes(b'{')
    with pytest.raises(InputError, match=r'versions/v1/manifest\.json is not a manifest'):
        read_manifest(index)


@pytest.mark.parametrize('content', [b'', b'\n', b'\xff\xfe', b'v1\nv2\n'])
def test_a_damaged_current_is_told(tmp_path, content):
    write_version(tmp_path, 'v1')
    (tmp_path / 'CURRENT').write_bytes(content)
    with pytest.raises(InputError, match='CURRENT'):
        read_manifest(str(tmp_path))


def test_an_index_is_built_into_a_new_or_empty_folder_or_an_index(tmp_path):
    check_index_folder(str(tmp_path / 'new'))
    check_index_folder(str(tmp_path))
    (tmp_path / 'half').mkdir()
    (tmp_path / 'half' / 'versions').mkdir()
    (tmp_path / 'half' / 'notes.txt').write_bytes(b'')
    check_index_folder(str(tmp_path / 'half'))
    for name in 'dbca':
        (tmp_path / 'photos').mkdir(exist_ok=True)
        (tmp_path / 'photos' / name).write_bytes(b'')
    with pytest.raises(InputError, match='photos is not an index: it holds a, b, c; give a new or empty folder'):
        check_index_folder(str(tmp_path / 'photos'))
    with pytest.raises(InputError, match='is a file; give a folder for the index'):
        check_index_folder(str(tmp_path / 'photos' / 'a'))


# The handle of a version


def test_a_handle_travels_as_two_texts_and_reads_its_manifest_once(tmp_path, monkeypatch):
    write_version(tmp_path, 'v1')
    handle = versions.open_version(str(tmp_path), 'v1')
    assert handle.manifest.version == handle.id == 'v1'
    sent = pickle.dumps(handle)
    assert len(sent) < 200 + len(str(tmp_path))
    received = pickle.loads(sent)
    assert (received, received.folder) == (handle, f'{tmp_path}/versions/v1')
    read = []
    monkeypatch.setattr(versions.files, 'read_bytes', lambda path: read.append(path) or Path(path).read_bytes())
    assert pickle.loads(sent).manifest == received.manifest == handle.manifest
    assert read == [handle.manifest_path]


def test_a_handle_of_a_version_removed_since_says_so(tmp_path):
    write_version(tmp_path, 'v1')
    handle = Version(str(tmp_path), 'v1')
    assert handle.finished
    Path(handle.manifest_path).unlink()
    assert not handle.finished
    with pytest.raises(OSError, match=f'cannot read {handle.folder}: the version was removed after it was opened'):
        _ = handle.manifest


def test_a_manifest_in_memory_goes_before_that_on_disk_and_does_not_travel(tmp_path):
    manifest = write_version(tmp_path, 'v1')
    judged = Version(str(tmp_path), 'v1').with_manifest(dataclasses.replace(manifest, gate='failed'))
    assert judged.manifest.gate == 'failed'
    assert pickle.loads(pickle.dumps(judged)).manifest.gate is None


def test_files_are_written_and_read_through_the_handle(tmp_path):
    handle = Version(str(tmp_path), 'v1')
    table = pa.table({'a': [1, 2, 3], 'b': ['x', 'y', 'z']})
    listed = handle.write('images/part-00000.parquet', 3, versions.files.table_bytes(table))
    assert listed.bytes == Path(handle.path(listed.path)).stat().st_size
    assert handle.read_table(listed, ['b']) == table.select(['b'])
    with pytest.raises(OSError, match=r'part-00000\.parquet has 3 rows; the manifest says 4'):
        handle.read_table(dataclasses.replace(listed, rows=4))
