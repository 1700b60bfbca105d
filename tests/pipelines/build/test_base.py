"""Incremental builds: what they make equals what a full build makes, and nothing is encoded that need not be."""

import dataclasses
import io
import os
import random
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from hashing_model.model import HashModel
from pipelines.build import build_index, part_runs
from pipelines.build.base import Base, KnownImages, check_base, open_base, origin_of, with_base_parts, with_states
from pipelines.encoding import models
from pipelines.encoding.encode import KnownImage
from pipelines.encoding.ids import count_changes
from pipelines.index import versions
from pipelines.inputs.options import ReadOptions
from pipelines.inputs.shards import FILES, PARQUET, TAR, InputFile, WorkUnit, list_units
from pipelines.jobs import blocks
from tests.helpers.make_index import (
    ORIGIN,
    TWO_PROCESSES,
    catalogue_pictures,
    hand_model,
    make_codes,
    read_served,
    served_folder,
    start,
    succeed,
    tar_members,
    write_code_files,
    write_codes,
    write_tar,
)

OPTIONS = ReadOptions()


@pytest.fixture(scope='module')
def pictures():
    return catalogue_pictures(60)


@pytest.fixture(scope='module')
def model(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp('model')
    hand_model(pictures).save(folder)
    return folder


@pytest.fixture
def encoded(monkeypatch):
    """How many images the model encodes."""
    counts, encode = [], HashModel.encode_features

    def encode_and_count(self, groups):
        counts.append(len(groups['color']))
        return encode(self, groups)

    monkeypatch.setattr(HashModel, 'encode_features', encode_and_count)
    return counts


def build(source, model, index, *options):
    succeed('build', '--images', source, '--model', model, '--index', index, '--no-gate', *options)
    return read_served(index)


def assert_equal_builds(one, other):
    """All files of both served versions are the same, and so are the manifests, but for time, place and the gate."""
    listed = [{f.path: f for f in read_served(index).all_files} for index in (one, other)]
    for files_ in listed:
        del files_[versions.QUALITY_PATH], files_[versions.BUILD_PATH]
    assert listed[0] == listed[1]
    for path in listed[0]:
        assert (served_folder(one) / path).read_bytes() == (served_folder(other) / path).read_bytes()
    plain = [
        dataclasses.replace(read_served(index), version='', created='', changes=None, quality=None, build=None)
        for index in (one, other)
    ]
    assert plain[0] == plain[1]


def changes(manifest):
    return {name: n for name, n in manifest.changes.items() if name != 'base'}


def rebuild(source, model, folder, *options):
    """Build upon the served version, and anew beside it; the manifest of the former."""
    manifest = build(source, model, folder / 'index', *options)
    build(source, model, folder / 'full', '--full', *options)
    assert_equal_builds(folder / 'index', folder / 'full')
    return manifest


def jpeg(picture, quality=80):
    sink = io.BytesIO()
    Image.open(io.BytesIO(picture[1])).convert('RGB').save(sink, 'JPEG', quality=quality)
    return picture[0], sink.getvalue()


# Whole builds


@pytest.mark.beam
def test_nothing_changed_nothing_is_encoded(pictures, model, tmp_path, encoded):
    source = tmp_path / 'shards'
    source.mkdir()
    for i in range(3):
        write_tar(source / f'{i}.tar', tar_members(pictures[20 * i : 20 * i + 20]))
    first = build(source, model, tmp_path / 'index')
    assert first.changes is None
    assert sum(encoded) == 60
    del encoded[:]
    for path in source.iterdir():
        os.utime(path)  # only the content counts on a disk
    second = build(source, model, tmp_path / 'index')
    assert encoded == []
    assert second.version != first.version
    assert second.changes == {
        'base': first.version, 'added': 0, 'changed': 0, 'unchanged': 60, 'removed': 0, 'units': 3, 'images': 0
    }  # fmt: skip
    rebuild(source, model, tmp_path)


@pytest.mark.beam
def test_a_shard_that_changed_has_only_its_new_images_encoded(pictures, model, tmp_path, encoded, capsys):
    source = tmp_path / 'shards'
    source.mkdir()
    for i in range(2):
        write_tar(source / f'{i}.tar', tar_members(pictures[25 * i : 25 * i + 25]))
    write_tar(source / '2.tar', tar_members(pictures[50:55]))
    first = build(source, model, tmp_path / 'index')
    changed = [*pictures[:3], jpeg(pictures[3]), *pictures[5:25], *pictures[55:57]]  # 1 changed, 1 removed, 2 added
    write_tar(source / '0.tar', tar_members(changed))
    (source / '2.tar').unlink()  # 5 removed
    del encoded[:]
    capsys.readouterr()
    second = build(source, model, tmp_path / 'index')
    assert sum(encoded) == 3
    assert changes(second) == {'added': 2, 'changed': 1, 'unchanged': 48, 'removed': 6, 'units': 1, 'images': 23}
    told = capsys.readouterr().err
    assert f'since version {first.version}: 2 added, 1 changed, 48 unchanged, 6 removed; 1 of 2 units taken' in told
    assert 'and 23 images of other units were known' in told
    build(source, model, tmp_path / 'full', '--full')
    assert_equal_builds(tmp_path / 'index', tmp_path / 'full')


@pytest.mark.beam
def test_a_change_that_keeps_size_and_time_is_seen(pictures, model, tmp_path, encoded):
    path = tmp_path / 'a.tar'
    write_tar(path, tar_members(pictures[:5]))
    build(path, model, tmp_path / 'index')
    before = path.stat()
    flipped = bytearray(path.read_bytes())
    at = flipped.index(pictures[2][1]) + len(pictures[2][1]) - 1
    flipped[at] ^= 1
    path.write_bytes(flipped)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    del encoded[:]
    manifest = rebuild(path, model, tmp_path)
    assert manifest.changes['units'] == 0
    assert manifest.changes['images'] == 4


@pytest.mark.beam
def test_files_of_a_folder_shift_from_unit_to_unit_and_stay_known(pictures, model, tmp_path, encoded, monkeypatch):
    monkeypatch.setattr('pipelines.inputs.shards.MAX_UNIT_FILES', 10)
    source = tmp_path / 'photos'
    source.mkdir()
    for i, (_, data) in enumerate(pictures[:50]):
        (source / f'{i:03}.webp').write_bytes(data)
    build(source, model, tmp_path / 'index')
    (source / '0005.webp').write_bytes(pictures[50][1])
    (source / '033.webp').unlink()
    del encoded[:]
    manifest = rebuild(source, model, tmp_path)
    assert changes(manifest) == {'added': 1, 'changed': 0, 'unchanged': 49, 'removed': 1, 'units': 1, 'images': 39}
    assert sum(encoded) == 1 + 50  # the full build


@pytest.mark.beam
def test_a_duplicate_becomes_the_first_when_the_first_goes(pictures, model, tmp_path):
    source = tmp_path / 'shards'
    source.mkdir()
    write_tar(source / '0.tar', tar_members(pictures[:10]))
    write_tar(source / '1.tar', tar_members([jpeg(pictures[0]), *pictures[10:20]]))
    write_tar(source / '2.tar', tar_members(pictures[20:25]))
    first = build(source, model, tmp_path / 'index')
    assert (first.counters['duplicates'], first.rows) == (1, 25)
    write_tar(source / '0.tar', tar_members(pictures[1:10]))
    second = rebuild(source, model, tmp_path)
    assert (second.counters['duplicates'], second.rows) == (0, 25)
    assert changes(second) == {'added': 0, 'changed': 1, 'unchanged': 24, 'removed': 0, 'units': 1, 'images': 19}
    write_tar(source / '0.tar', tar_members(pictures[:10]))  # and back: now a unit taken over has a duplicate
    third = rebuild(source, model, tmp_path)
    assert (third.counters['duplicates'], third.rows) == (1, 25)
    assert changes(third) == {'added': 0, 'changed': 1, 'unchanged': 24, 'removed': 0, 'units': 2, 'images': 9}


@pytest.mark.beam
def test_rejects_are_taken_over_and_a_cut_shard_is_read_again(pictures, model, tmp_path, encoded):
    source = tmp_path / 'shards'
    source.mkdir()
    write_tar(source / '0.tar', tar_members([*pictures[:6], (pictures[6][0], b'no picture')]))
    write_tar(source / '1.tar', tar_members(pictures[10:20]))
    whole = (source / '1.tar').read_bytes()
    (source / '1.tar').write_bytes(whole[: len(whole) // 2])
    first = build(source, model, tmp_path / 'index')
    assert first.counters['rejected'] >= 2
    second = build(source, model, tmp_path / 'index')
    assert second.counters == first.counters
    assert second.changes['units'] == 1
    (source / '1.tar').write_bytes(whole)
    third = rebuild(source, model, tmp_path)
    assert third.counters['rejected'] == 1
    assert third.rows == 16


@pytest.mark.beam
@pytest.mark.parametrize('run_rows', [15, 2_000_000])
def test_random_edits_night_after_night(pictures, model, tmp_path, monkeypatch, run_rows):
    """Ten nights of added, changed, moved and removed pictures in tars, Parquet and folders: all equal full builds."""
    monkeypatch.setattr(part_runs, 'RUN_ROWS', run_rows)
    chance = random.Random(5)
    source = tmp_path / 'images'
    kinds = ['tar', 'parquet', 'tar', 'parquet', 'd']
    shards = {f'{i}.{kind}': pictures[6 * i : 6 * i + 6] for i, kind in enumerate(kinds)}
    rows_before = None
    for _night in range(10):
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        for name, held in shards.items():
            write_shard(source / name, held)
        manifest = rebuild(source, model, tmp_path)
        if rows_before is not None:
            c = manifest.changes
            assert c['added'] + c['changed'] + c['unchanged'] == manifest.rows
            assert c['changed'] + c['unchanged'] + c['removed'] == rows_before
        rows_before = manifest.rows
        for _ in range(chance.randrange(4)):
            name = chance.choice(list(shards))
            held = list(shards[name])
            edit = chance.randrange(4)
            if edit == 0:
                held.insert(chance.randrange(len(held) + 1), chance.choice(pictures))
            elif edit == 1 and len(held) > 1:
                held.pop(chance.randrange(len(held)))
            elif edit == 2:
                at = chance.randrange(len(held))
                held[at] = jpeg(pictures[30 + at], chance.randrange(50, 90))
            else:
                chance.shuffle(held)
            shards = {**shards, name: held}


def write_shard(path, held):
    if path.suffix == '.tar':
        write_tar(path, tar_members(held))
    elif path.suffix == '.parquet':
        columns = {'id': [f['id'] for f, _ in held], 'image': [data for _, data in held]}
        pq.write_table(pa.table(columns), path, row_group_size=2)
    else:
        path.mkdir()
        for fields, data in held:
            (path / f'{fields["id"].replace("/", "-")}.webp').write_bytes(data)


@pytest.mark.beam
@pytest.mark.parametrize('inline_bytes', [0, 1 << 18])
@pytest.mark.parametrize('run_rows', [1_000, 2_000_000])
def test_codes_are_taken_over_and_compared(tmp_path, monkeypatch, run_rows, inline_bytes):
    monkeypatch.setattr(part_runs, 'RUN_ROWS', run_rows)
    monkeypatch.setattr(blocks, 'INLINE_BYTES', inline_bytes)
    spec = CodeSpec.parse('code=64')
    codes = make_codes('clustered', 4000, spec)
    pattern = write_code_files(tmp_path, codes, 4)
    succeed('build', '--codes', pattern, '--index', tmp_path / 'index')
    _, second, _, last = sorted(tmp_path.glob('codes*.parquet'))
    changed = codes[1000:2000].copy()
    changed[:7, 3] ^= 1
    write_codes(second, [*pq.read_table(second)['image_id'].to_pylist()[:-2], 'new'], changed[:-1])
    write_codes(last, pq.read_table(last)['image_id'].to_pylist()[5:], codes[3005:])
    for index in ('index', 'full'):
        succeed('build', '--codes', pattern, '--index', tmp_path / index)
    manifest = read_served(tmp_path / 'index')
    assert changes(manifest) == {'added': 1, 'changed': 7, 'unchanged': 3986, 'removed': 7, 'units': 2, 'images': 0}
    assert_equal_builds(tmp_path / 'index', tmp_path / 'full')


@pytest.mark.beam
@pytest.mark.process
def test_worker_processes_take_over_too(pictures, model, tmp_path):
    source = tmp_path / 'shards'
    source.mkdir()
    for i in range(3):
        write_tar(source / f'{i}.tar', tar_members(pictures[20 * i : 20 * i + 20]))
    build(source, model, tmp_path / 'index')
    write_tar(source / '1.tar', tar_members(pictures[21:40]))
    options = ('--no-gate', *TWO_PROCESSES)
    done = start('build', '--images', source, '--model', model, '--index', tmp_path / 'index', *options)
    assert done.returncode == 0, done.stderr
    assert '0 added, 0 changed, 59 unchanged, 1 removed; 2 of 3 units taken over, and 19 images' in done.stderr
    build(source, model, tmp_path / 'full', '--full')
    assert_equal_builds(tmp_path / 'index', tmp_path / 'full')


@pytest.mark.beam
@pytest.mark.parametrize('damage', ['flipped', 'cut', 'gone'])
def test_a_damaged_part_of_the_base_is_made_anew(pictures, model, tmp_path, encoded, caplog, damage):
    source = tmp_path / 'shards'
    source.mkdir()
    for i in range(2):
        write_tar(source / f'{i}.tar', tar_members(pictures[10 * i : 10 * i + 10]))
    build(source, model, tmp_path / 'index')
    damaged = served_folder(tmp_path / 'index') / versions.images_path(1)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 4
    if damage == 'gone':
        damaged.unlink()
    else:
        damaged.write_bytes(content if damage == 'flipped' else content[:100])
    del encoded[:]
    manifest = build(source, model, tmp_path / 'index')
    assert sum(encoded) == 10
    assert manifest.changes['units'] == 1
    assert re.search(r'part-00001\.parquet( is damaged|.*No such file)|made anew: .*part-00001', caplog.text)
    changed = manifest.changes
    assert (changed['added'], changed['unchanged'], changed['removed']) == (10, 10, 0)
    build(source, model, tmp_path / 'full')
    assert_equal_builds(tmp_path / 'index', tmp_path / 'full')


@pytest.mark.beam
@pytest.mark.parametrize('what', ['model', 'library', 'before', 'damaged'])
def test_what_does_not_fit_is_not_taken_over_and_told(pictures, model, tmp_path, capsys, monkeypatch, what):
    path = write_tar(tmp_path / 'a.tar', tar_members(pictures[:5]))
    first = build(path, model, tmp_path / 'index')
    manifest_path = served_folder(tmp_path / 'index') / versions.MANIFEST_PATH
    if what == 'model':
        hand_model(pictures, seed=9).save(tmp_path / 'other')
        model, why = tmp_path / 'other', 'its model is'
    elif what == 'library':
        now = models.library_versions()
        monkeypatch.setattr(build_index, 'library_versions', lambda: {**now, 'pillow': '99.0'})
        why = f'it was made with pillow {now["pillow"]}, and this is 99.0'
    elif what == 'before':
        manifest_path.write_bytes(dataclasses.replace(first, units=None).dumps())
        why = 'does not say what its parts were made from'
    else:
        manifest_path.write_bytes(manifest_path.read_bytes()[:-9])
        why = 'is not a manifest'
    capsys.readouterr()
    open_base.cache_clear()
    manifest = build(path, model, tmp_path / 'index')
    assert manifest.changes is None
    told = capsys.readouterr().err
    assert f'nothing is taken over from version {first.version}: ' in told
    assert why in told


@pytest.mark.beam
def test_other_options_read_again_but_keep_the_codes(pictures, model, tmp_path, encoded):
    path = write_tar(tmp_path / 'a.tar', tar_members(pictures[:5]))
    build(path, model, tmp_path / 'index')
    del encoded[:]
    second = build(path, model, tmp_path / 'index', '--labels', 'group')
    assert encoded == []
    assert (second.changes['units'], second.changes['images']) == (0, 5)


# Units and their content


def base_of(*origins):
    return Base(None, tuple(origins), (0,) * len(origins))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=8), st.integers(0, 9), st.integers(0, 9))
def test_parts_from_any_of_the_files_are_found(ranges, a, b):
    ranges = [tuple(sorted(r)) for r in ranges]
    first, last = sorted((a, b))
    origins = [dataclasses.replace(ORIGIN, first=b'%d' % x, last=b'%d' % y) for x, y in ranges]
    (unit,) = with_base_parts([WorkUnit(0, FILES, (str(first), str(last)))], base_of(*origins), OPTIONS)
    assert unit.base_parts == tuple(i for i, (x, y) in enumerate(ranges) if x <= last and y >= first)
    assert unit.base_part is None


def test_a_unit_is_found_by_its_files_and_how_they_are_read(tmp_path):
    path = write_tar(tmp_path / 'a.tar', [('a', b'b')])
    unit = WorkUnit(0, TAR, (path,))
    origin = origin_of(unit, OPTIONS)
    assert with_base_parts([unit], base_of(ORIGIN, origin), OPTIONS)[0].base_part == 1
    for other, options in [
        (unit, ReadOptions(labels=('x',))),
        (dataclasses.replace(unit, row_groups=(0, 1)), OPTIONS),
        (dataclasses.replace(unit, root='b'), OPTIONS),
        (dataclasses.replace(unit, paths=(path, path)), OPTIONS),
    ]:
        assert with_base_parts([other], base_of(ORIGIN, origin), options)[0].base_part is None
    assert with_base_parts([dataclasses.replace(unit, number=7)], base_of(origin), OPTIONS)[0].base_part == 0


def test_every_byte_of_a_row_group_counts_and_others_do_not(tmp_path):
    path = tmp_path / 'a.parquet'
    table = pa.table({'id': [str(i) for i in range(40)], 'image': [os.urandom(50) for _ in range(40)]})
    pq.write_table(table, path, row_group_size=10, compression='none')
    units = [WorkUnit(i, PARQUET, (str(path),), (i, i + 1)) for i in range(4)]
    before = [origin_of(unit, OPTIONS).content for unit in units]
    assert len(set(before)) == 4
    content, metadata = path.read_bytes(), pq.read_metadata(path)
    column = metadata.row_group(2).column(0)
    start_ = column.dictionary_page_offset or column.data_page_offset
    end = start_ + sum(metadata.row_group(2).column(i).total_compressed_size for i in range(2))
    for at in range(start_, end):
        path.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        after = [origin_of(unit, OPTIONS).content for unit in units]
        assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, True]


def test_texts_that_are_no_texts_do_not_matter_where_nobody_reads_them(tmp_path):
    path = tmp_path / 'a.parquet'
    texts = pa.array([b'fine', b'\xff\xfe']).view(pa.string())
    pq.write_table(pa.table({'id': ['1', '2'], 'image': [b'a', b'b'], 'alt': texts}), path)
    contents = {origin_of(WorkUnit(0, PARQUET, (str(path),), groups), OPTIONS).content for groups in (None, (0, 1))}
    assert len(contents) == 2


def test_where_a_file_ends_is_part_of_the_content(tmp_path):
    found = set()
    for number, contents in enumerate([(b'x\ny', b'z'), (b'x', b'y\nz'), (b'x\n3\ny', b'z'), (b'x', b'y\n3\nz')]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, content in zip('ab', contents, strict=True):
            (folder / f'{name}.jpg').write_bytes(content)
        (unit,) = list_units([str(folder)], OPTIONS)
        found.add(origin_of(unit, OPTIONS).content)
    assert len(found) == 4


@given(st.lists(st.integers(0, 300), max_size=30), st.integers(0, 300))
def test_known_images_are_found_by_their_digest(held, asked):
    digests = [b'%3d' % n + bytes(13) for n in held]  # zeros at the end, as some have
    rows = pa.table(
        {
            'digest': pa.array(digests, pa.binary(16)),
            'width': pa.array(held, pa.int32()),
            'height': pa.array([n + 1 for n in held], pa.int32()),
            'code': pa.array([bytes([n % 256, n // 256]) for n in held], pa.binary(2)),
        }
    )
    known = KnownImages(rows)
    assert len(known) == len(held)
    for n in (asked, *held):
        digest = b'%3d' % n + bytes(13)
        wanted = KnownImage(digest, n, n + 1, bytes([n % 256, n // 256])) if n in held else None
        assert known.get(digest) == wanted
    assert known.get(b'x' * 16) is None


def test_objects_are_told_apart_by_size_and_generation_or_else_time():
    unit = WorkUnit(0, FILES, ('gs://b/1.jpg', 'gs://b/2.jpg'))

    def state(*listed):
        inputs = [InputFile(path, *facts) for path, facts in zip(unit.paths, listed, strict=True)]
        return with_states([unit], inputs)[0].state

    known = state((5, 1.0, '', 11), (6, 2.0, '', 12))
    assert known == state((5, 9.0, '', 11), (6, 9.0, '', 12))
    assert known != state((5, 1.0, '', 11), (6, 2.0, '', 13))
    assert known != state((5, 1.0, '', 11), (7, 2.0, '', 12))
    assert state((5, 1.0), (6, 2.0)) != state((5, 1.0), (6, 3.0))
    assert state((5, 0.0), (6, 2.0)) != state((5, 0.0), (6, 2.0))
    assert with_states([WorkUnit(0, TAR, ('/a.tar',))], [InputFile('/a.tar', 1, 2.0)])[0].state == ''


def test_a_file_that_cannot_be_read_is_another_content(tmp_path):
    paths = [tmp_path / name for name in ('a.jpg', 'b.jpg')]
    for path in paths:
        path.write_bytes(b'x')
    (unit,) = list_units([str(tmp_path)], OPTIONS)
    whole = origin_of(unit, OPTIONS).content
    paths[1].unlink()
    assert origin_of(unit, OPTIONS).content != whole
    with pytest.raises(OSError, match=r'a\.tar'):
        origin_of(WorkUnit(0, TAR, (str(tmp_path / 'a.tar'),)), OPTIONS)


def test_what_differs_is_told(tmp_path):
    spec, now = CodeSpec.parse('a=8'), models.library_versions()
    manifest = type('M', (), {'model': {'fingerprint': 'f' * 64}, 'spec': spec, 'libraries': now})()
    check_base(manifest, spec, {'fingerprint': 'f' * 64}, now)
    check_base(manifest, spec, {'fingerprint': 'f' * 64}, {**now, 'pyarrow': '0'})
    for given_, why in [
        ((spec, {'fingerprint': 'e' * 64}, now), r'^its model is ffffffffffff, and this build has eeeeeeeeeeee$'),
        ((spec, {'fingerprint': 'f' * 63 + 'e'}, now), r'^its model is '),
        ((spec, None, now), r'^its model is ffffffffffff, and this build has none$'),
        ((CodeSpec.parse('b=8'), {'fingerprint': 'f' * 64}, now), r'^its codes have other segments$'),
        ((spec, {'fingerprint': 'f' * 64}, {**now, 'keras': '0'}), r'^it was made with keras \S+, and this is 0$'),
    ]:
        with pytest.raises(InputError, match=why):
            check_base(manifest, *given_)


# Changes


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 2)), st.dictionaries(st.text(max_size=3), st.integers(0, 2)))
def test_changes_are_counted_as_by_hand(now, before):
    tables = [
        pa.table({'image_id': pa.array(list(d), pa.string()), 'content': pa.array(list(d.values()), pa.uint64())})
        for d in (now, before)
    ]
    np.testing.assert_array_equal(
        count_changes(*tables),
        [
            len(now.keys() - before.keys()),
            sum(now[i] != before[i] for i in now.keys() & before.keys()),
            sum(now[i] == before[i] for i in now.keys() & before.keys()),
            len(before.keys() - now.keys()),
        ],
    )
