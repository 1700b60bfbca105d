"""Files: whole or not at all, and errors that name them."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing_model.errors import InputError
from pipelines import files


def everything(folder):
    """Every file and folder below, with the files' contents."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in Path(folder).rglob('*')}


def test_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert files.absolute('a/../b/') == str(tmp_path / 'b')
    assert files.absolute(Path('b')) == str(tmp_path / 'b')
    assert files.absolute('gs://bucket/a/') == 'gs://bucket/a'
    assert files.join('gs://bucket', 'a', 'b.txt') == 'gs://bucket/a/b.txt'
    assert files.filesystem('b')[1] == str(tmp_path / 'b')
    with pytest.raises(InputError, match='nosuch://x'):
        files.filesystem('nosuch://x')


def test_bytes_are_written_with_their_folders_and_read_back(tmp_path):
    path = str(tmp_path / 'a' / 'b' / 'c.bin')
    assert files.write_bytes(path, b'one') == 3
    assert files.read_bytes(path) == b'one'
    assert files.write_bytes(path, pa.py_buffer(b'second')) == 6
    assert everything(tmp_path) == {'a': None, 'a/b': None, 'a/b/c.bin': b'second'}
    assert (files.exists(path), files.exists(f'{tmp_path}/a'), files.exists(f'{path}x')) == (True, True, False)
    assert files.names_in(f'{tmp_path}/a/b') == ['c.bin']
    assert files.names_in(f'{tmp_path}/none') == []
    with pytest.raises(OSError, match='none'):
        files.read_bytes(f'{tmp_path}/none')


def test_a_range_is_read_whole_or_not_at_all(tmp_path):
    path = str(tmp_path / 'a.bin')
    files.write_bytes(path, b'0123456789')
    assert [files.read_range(path, *where) for where in ((0, 10), (3, 4), (10, 0))] == [b'0123456789', b'3456', b'']
    with pytest.raises(OSError, match=r'a\.bin ends before byte 11'):
        files.read_range(path, 8, 3)
    with pytest.raises(OSError, match='none'):
        files.read_range(f'{tmp_path}/none', 0, 1)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = str(tmp_path / 'a.bin')
    files.write_bytes(path, b'old')
    for content in ('text', None, 7):
        with pytest.raises((TypeError, ValueError)):
            files.write_bytes(path, content)
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'x').write_bytes(b'x')
    with pytest.raises(OSError, match='folder'):
        files.write_bytes(str(tmp_path / 'folder'), b'new')
    assert everything(tmp_path) == {'a.bin': b'old', 'folder': None, 'folder/x': b'x'}


@pytest.mark.process
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    code = (
        'import resource, signal, sys\n'
        'from pipelines import files\n'
        'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n'
        'files.write_bytes(sys.argv[1], bytes(5000))\n'
        'try:\n'
        '    files.write_bytes(sys.argv[1], bytes(100_000))\n'
        'except OSError:\n'
        '    print("refused")\n'
    )
    command = [sys.executable, '-c', code, str(tmp_path / 'a.bin')]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == 'refused\n'
    assert everything(tmp_path) == {'a.bin': bytes(5000)}


def test_readers_see_the_old_or_the_new_file_and_never_half(tmp_path):
    path = str(tmp_path / 'a.bin')
    contents = [bytes([i]) * (100_000 + i) for i in range(2)]
    files.write_bytes(path, contents[0])
    done = threading.Event()

    def write(content):
        while not done.is_set():
            files.write_bytes(path, content)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    try:
        seen = {files.read_bytes(path) for _ in range(300)}
    finally:
        done.set()
        for writer in writers:
            writer.join()
    assert seen <= set(contents)
    assert everything(tmp_path).keys() == {'a.bin'}


def test_folders_are_listed_and_deleted_whole(tmp_path):
    for name in ('a.txt', 'below/b.txt', 'below/further/c.txt'):
        files.write_bytes(str(tmp_path / 'source' / name), name.encode())
    sizes = {'a.txt': 5, 'below/b.txt': 11, 'below/further/c.txt': 19}
    assert files.sizes_below(str(tmp_path / 'source')) == sizes
    assert files.sizes_below(str(tmp_path / 'nothing')) == {}
    files.delete_file(str(tmp_path / 'source' / 'a.txt'))
    files.delete_file(str(tmp_path / 'source' / 'a.txt'))
    assert sorted(files.sizes_below(str(tmp_path / 'source'))) == ['below/b.txt', 'below/further/c.txt']
    files.delete_folder(str(tmp_path / 'source'))
    files.delete_folder(str(tmp_path / 'source'))
    assert sorted(p.name for p in tmp_path.iterdir()) == []


def test_tables_are_zstd_in_row_groups_that_can_be_skipped(tmp_path):
    path = str(tmp_path / 'a.parquet')
    table = pa.table({'key': range(40_000), 'name': ['x'] * 40_000})
    assert files.write_table(path, table) == os.path.getsize(path)
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [16_384, 16_384, 7232]
    assert metadata.row_group(1).column(0).statistics.min == 16_384
    assert {metadata.row_group(0).column(i).compression for i in range(2)} == {'ZSTD'}
    assert files.read_table(path).equals(table)
    assert files.read_table(path, ['name']).column_names == ['name']


def test_files_that_are_no_tables_are_named(tmp_path):
    (tmp_path / 'a.parquet').write_bytes(b'PAR1 and no more')
    for path in (f'{tmp_path}/a.parquet', f'{tmp_path}/none.parquet', str(tmp_path)):
        with pytest.raises(OSError, match=f'cannot read {path}: '):
            files.read_table(path)


def test_without_credentials_for_google_a_bucket_is_refused_at_once(tmp_path, monkeypatch):
    for name in ('GOOGLE_APPLICATION_CREDENTIALS', 'CLOUD_STORAGE_EMULATOR_ENDPOINT', 'STORAGE_EMULATOR_HOST'):
        monkeypatch.delenv(name, raising=False)
    for name, value in {'NO_GCE_CHECK': 'true', 'CLOUDSDK_CONFIG': str(tmp_path), 'HOME': str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    files.check_google_credentials.cache_clear()
    with pytest.raises(InputError, match=r'^there are no credentials for Google Cloud Storage: run gcloud auth'):
        files.exists('gs://bucket/a')


def test_a_place_is_tried_without_a_trace(tmp_path, monkeypatch):
    monkeypatch.setenv('CLOUD_STORAGE_EMULATOR_ENDPOINT', 'http://127.0.0.1:1')
    files.check_google_credentials.cache_clear()
    (tmp_path / 'file').write_bytes(b'keep')
    files.check_writable(str(tmp_path / 'file'))
    files.check_writable(str(tmp_path / 'a' / 'b' / 'new'))
    files.check_writable('gs://no-such-bucket/a')  # not asked
    with pytest.raises(InputError, match='is a folder; give a file'):
        files.check_writable(str(tmp_path))
    with pytest.raises(InputError, match=r'cannot write .*/file/new: Not a directory'):
        files.check_writable(str(tmp_path / 'file' / 'new'))
    with pytest.raises(InputError, match=r'cannot write .*: File name too long'):
        files.check_writable(str(tmp_path / ('n' * 300)))
    assert everything(tmp_path) == {'file': b'keep'}


def test_size_and_time_of_the_files_below(tmp_path):
    (tmp_path / 'a' / 'b').mkdir(parents=True)
    (tmp_path / 'a' / 'b' / 'c').write_bytes(b'123')
    (tmp_path / 'd').write_bytes(b'1')
    os.utime(tmp_path / 'd', (5, 5))
    found = files.infos_below(str(tmp_path))
    assert {path: info.size for path, info in found.items()} == {'a/b/c': 3, 'd': 1} == files.sizes_below(str(tmp_path))
    assert found['d'].time == files.time_of(f'{tmp_path}/d') == 5
    assert abs(found['a/b/c'].time - time.time()) < 60
    assert list(files.infos_below(str(tmp_path), recursive=False)) == ['d']
    assert files.infos_below(f'{tmp_path}/none') == {}
    assert files.time_of(f'{tmp_path}/none') == 0


def test_only_an_empty_folder_is_removed_as_empty(tmp_path):
    (tmp_path / 'a' / 'b').mkdir(parents=True)
    files.delete_empty_folder(f'{tmp_path}/a')
    assert (tmp_path / 'a' / 'b').exists()
    for name in ('a/b', 'a', 'none'):
        files.delete_empty_folder(f'{tmp_path}/{name}')
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_pieces_takes_its_place_only_when_whole(tmp_path):
    path = tmp_path / 'new' / 'a.bin'
    with files.written_in_pieces(str(path)) as file:
        file.write(b'one ')
        assert not path.exists()
        file.write(b'two')
    assert path.read_bytes() == b'one two'
    with pytest.raises(TypeError), files.written_in_pieces(str(path)) as file:
        file.writelines([b'other', 'not bytes'])
    assert path.read_bytes() == b'one two'
    assert [p.name for p in path.parent.iterdir()] == ['a.bin']


def test_a_durable_file_is_on_the_disk_before_its_name_and_its_name_before_the_end(tmp_path, monkeypatch):
    calls = []

    def note(name, function):
        def noting(*arguments):
            what = [os.readlink(f'/proc/self/fd/{a}') if isinstance(a, int) else a for a in arguments]
            calls.append((name, what[-1]))
            return function(*arguments)

        monkeypatch.setattr(os, name, noting)

    for name in ('fsync', 'replace'):
        note(name, getattr(os, name))
    files.write_bytes(f'{tmp_path}/a/b', b'content', durable=True)
    (first, half), *rest = calls
    assert (first, half.startswith(f'{tmp_path}/a/b.')) == ('fsync', True)
    assert rest == [('replace', f'{tmp_path}/a/b'), ('fsync', f'{tmp_path}/a')]
    del calls[:]
    files.write_bytes(f'{tmp_path}/a/b', b'other')
    assert [name for name, _ in calls] == ['replace']


def test_a_flush_that_fails_is_told(tmp_path, monkeypatch):
    files.flush(str(tmp_path))
    monkeypatch.setenv('STORAGE_EMULATOR_HOST', 'http://127.0.0.1:1')  # needs no credentials; nobody listens
    files.flush('gs://no-such-bucket/a')  # nothing to do
    with pytest.raises(FileNotFoundError):
        files.flush(f'{tmp_path}/none')

    def fail(number):
        def failing(handle):
            raise OSError(number, 'no')

        return failing

    monkeypatch.setattr(files, '_syncfs', fail(errno.ENOSYS))
    files.flush(str(tmp_path))
    monkeypatch.setattr(files, '_syncfs', fail(errno.EIO))
    with pytest.raises(OSError, match='no'):
        files.flush(str(tmp_path))


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.integers(0, 300))
def test_equal_tables_are_equal_files_however_they_are_cut(lengths, letters):
    rows = sum(lengths)
    rng = np.random.default_rng(rows)
    table = pa.table({'id': [str(i) for i in range(rows)], 'text': [rng.bytes(letters).hex() for _ in range(rows)]})
    ends = np.cumsum(lengths)
    pieces = pa.concat_tables([table.slice(e - n, n) for e, n in zip(ends, lengths, strict=True)])
    assert files.digest(files.table_bytes(pieces)) == files.digest(files.table_bytes(table))


def test_a_folder_that_somebody_else_writes_to_is_not_removed(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'held' / 'by').mkdir(parents=True)
    for name in ('empty', 'held', 'none'):
        files.delete_empty_folder(str(tmp_path / name))
    assert everything(tmp_path) == {'held': None, 'held/by': None}


@pytest.mark.parametrize('broken', [False, True])
def test_a_file_in_a_store_is_replaced_whole_or_not_at_all(broken, monkeypatch):
    store, _ = pa.fs.FileSystem.from_uri('mock:///')
    store.create_dir('a')
    monkeypatch.setattr(files, 'filesystem', lambda uri: (store, uri))
    files.write_bytes('a/b', b'old')
    copy = shutil.copyfileobj

    def break_off(source, stream, size):
        stream.write(b'ne')
        raise KeyboardInterrupt

    monkeypatch.setattr(files.shutil, 'copyfileobj', break_off if broken else copy)
    with (
        pytest.raises(KeyboardInterrupt) if broken else contextlib.nullcontext(),
        files.written_in_pieces('a/b') as file,
    ):
        file.write(b'new')
    assert files.read_bytes('a/b') == (b'old' if broken else b'new')
    assert list(files.infos_below('a')) == ['b']
