"""What `grainhash verify` finds: every way in which a version can differ from what was built, and no other."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import files
from pipelines.cli.main import main
from pipelines.index import layout, versions
from pipelines.index.code_tables import IMAGES_OPTIONS, PARTITION_OPTIONS
from pipelines.index.manifest import Manifest
from pipelines.index.verify import covers_once, mixed_sum, verify_version
from tests.helpers.make_index import assemble, config_for, served_folder, skewed_codes, write_part

IMAGES, CODES = 'images/part-00001.parquet', 'codes/table=2/prefix=0'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """An index with every kind of file: two images parts, tables, rejects, and a model, here of any bytes."""
    index = tmp_path_factory.mktemp('verify') / 'index'
    config = config_for(index, 2, partition_rows=60)
    for name in ('model.json', 'arrays.npz'):
        files.write_bytes(config.index_version.path(f'model/{name}'), name.encode() * 20)
    parts = [write_part(i, skewed_codes(n, seed=i), config, rejected=2) for i, n in enumerate((150, 80))]
    assemble(config, parts)
    return index


@pytest.fixture
def index(made, tmp_path):
    return shutil.copytree(made, tmp_path / 'index')


def paths_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def problems_of(index):
    return list(verify_version(versions.open_version(str(index))))


def rewrite(index, path, table, **options):
    """Put a table in the place of a file, and make the manifest agree, as a faulty build would have."""
    folder, manifest = served_folder(index), versions.read_manifest(str(index))
    content = files.table_bytes(table, **options)

    def listed(value):
        if isinstance(value, dict):
            if value.get('path') == path:
                value |= {'rows': len(table), 'bytes': content.size, 'digest': files.digest(content)}
            for each in value.values():
                listed(each)
        for each in value if isinstance(value, list) else ():
            listed(each)

    value = json.loads(manifest.dumps())
    del value['digest']
    listed(value)
    (folder / path).write_bytes(content)
    (folder / 'manifest.json').write_bytes(Manifest.loads(json.dumps(value).encode()).dumps())


def without_digests(index):
    """Manifest, files and sample as they were before files had digests and versions a gate."""
    folder = served_folder(index)
    (folder / 'quality.json').unlink()
    rewrite(index, 'sample.parquet', pq.read_table(folder / 'sample.parquet', columns=['code', 'row']))
    text = json.dumps({k: v for k, v in json.loads((folder / 'manifest.json').read_bytes()).items() if k != 'digest'})
    value = json.loads(text, object_hook=lambda d: {k: v for k, v in d.items() if k != 'digest'})
    for name in ('model_files', 'gate', 'quality'):
        del value[name]
    (folder / 'manifest.json').write_text(json.dumps(value))


def a_partition(index, table=2):
    """The path of a partition file with some rows."""
    manifest = versions.read_manifest(str(index))
    found = [f for p in manifest.tables[table].partitions for f in p.files if f.rows > 10]
    return found[0].path


def test_a_version_as_built_is_whole(made, capsys):
    assert {path.split('/')[0] for path in paths_of(served_folder(made))} == {
        *('build.json', 'codes', 'images', 'inputs.parquet', 'manifest.json', 'model', 'quality.json', 'rejects'),
        *('sample.parquet', 'units.parquet'),
    }
    assert main(['verify', str(made)]) == 0
    out, err = capsys.readouterr()
    assert out == ''
    assert f'version {served_folder(made).name} is whole: 230 images, ' in err
    assert 'older manifest' not in err


def test_a_flipped_byte_of_any_file_is_found(made, capsys):
    """One in each file, at another place of each; CURRENT and the manifest are refused as such."""
    folder = served_folder(made)
    rng = np.random.default_rng(0)
    for path in paths_of(folder):
        content = (folder / path).read_bytes()
        for place in (0, int(rng.integers(len(content))), len(content) - 1):
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(rng.integers(8))
            (folder / path).write_bytes(damaged)
            try:
                assert main(['verify', str(made)]) == 1
                found = capsys.readouterr().out.splitlines()
                if path != 'manifest.json':
                    assert [line.split()[:4] for line in found] == [[path, 'has', 'the', 'digest']]
            finally:
                (folder / path).write_bytes(content)
    assert problems_of(made) == []


def test_a_damaged_manifest_is_a_problem_and_no_version_is_bad_input(index, capsys):
    path = served_folder(index) / 'manifest.json'
    path.write_bytes(path.read_bytes()[:-9])
    assert main(['verify', str(index)]) == 1
    assert 'manifest.json is not a manifest of grainhash' in capsys.readouterr().out
    path.unlink()
    assert main(['verify', str(index)]) == 2
    assert main(['verify', str(index), '--version', 'none']) == 2
    (index / 'CURRENT').write_bytes(b'\xff')
    assert main(['verify', str(index)]) == 2


def test_missing_added_and_cut_files_are_found_one_line_each(index, made):
    folder = served_folder(index)
    for path in set(paths_of(folder)) - {'manifest.json'}:
        (folder / path).unlink()
        assert problems_of(index) == [f'{path} is missing']
        content = (served_folder(made) / path).read_bytes()
        for size in (0, len(content) - 1):
            (folder / path).write_bytes(content[:size])
            assert problems_of(index) == [f'{path} has {size} bytes instead of {len(content)}']
        (folder / path).write_bytes(content)
    for name in ('model/more', 'images/part-00002.parquet', f'{a_partition(index)}.tmp', 'staging/ids', 'x'):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b'')
        assert problems_of(index) == [f'{name} does not belong to the version']
        (folder / name).unlink()
    assert problems_of(index) == []


def test_swapped_partition_files_are_found(index):
    folder = served_folder(index)
    sizes = {path: (folder / path).stat().st_size for path in paths_of(folder) if path.startswith('codes/')}
    first = a_partition(index)
    second = next(path for path in sizes if path != first and path.split('/')[:2] == first.split('/')[:2])
    (folder / 'kept').write_bytes((folder / first).read_bytes())
    (folder / first).write_bytes((folder / second).read_bytes())
    (folder / 'kept').rename(folder / second)
    assert {line.split()[0] for line in problems_of(index)} == {first, second}
    assert main(['verify', str(index)]) == 1


def test_an_older_manifest_is_checked_by_content(index, capsys):
    """Without digests: a code changed in place is found by the sums."""
    without_digests(index)
    assert main(['verify', str(index)]) == 0
    assert 'files have no digest in this older manifest' in capsys.readouterr().err
    folder, path = served_folder(index), a_partition(index)
    content = (folder / path).read_bytes()
    code = pq.read_table(folder / path, partitioning=None)['code'][3].as_py()
    assert content.count(code) >= 1
    (folder / path).write_bytes(content.replace(code, bytes([code[0] ^ 128]) + code[1:]))
    assert main(['verify', str(index)]) == 1
    assert capsys.readouterr().out == 'codes/table=2 holds other rows or codes than the images\n'


def changed_rows(table, **columns):
    for name, values in columns.items():
        table = table.set_column(
            table.column_names.index(name), table.schema.field(name), pa.array(values, table.schema.field(name).type)
        )
    return table


def swapped(table):
    return table.take([1, 0, *range(2, len(table))])


def no_prefix(table):
    return changed_rows(table, key=table['key'].to_numpy() + (1 << 40))


def other_keys(table):
    keys = table['key'].to_numpy().copy()
    keys[-1] += 1
    return changed_rows(table, key=keys)


def twice(table):
    return table.take([*range(len(table) - 1), len(table) - 1 and len(table) - 2])


def other_row(table):
    rows = table['row'].to_numpy().copy()
    rows[-1] += 1 << 33
    return changed_rows(table, row=rows)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (swapped, 'is not in order of key and row, first at row 1'),
        (twice, 'is not in order of key and row, first at row '),
        (no_prefix, 'keys that are not under its prefix'),
        (other_keys, "has 1 keys that are not their code's"),
        (lambda t: t.rename_columns(['key', 'code', 'place']), 'has other columns: key int64, code'),
        (lambda t: t.set_column(0, 'key', t['key'].cast(pa.int32())), 'has other columns: key int32'),
        (other_row, 'codes/table=2 holds other rows or codes than the images'),
    ],
)
def test_what_a_faulty_build_may_write_is_found(change, message, index):
    path = a_partition(index)
    table = files.read_table(str(served_folder(index) / path))
    rewrite(index, path, change(table), **({} if 'columns' in message else PARTITION_OPTIONS))
    (line,) = problems_of(index)
    assert message in line
    assert line.startswith(path if 'codes/' not in message else 'codes/')


def test_a_lost_row_is_found_by_the_counts_and_the_sums(index):
    path = a_partition(index)
    rewrite(index, path, files.read_table(str(served_folder(index) / path))[:-1], **PARTITION_OPTIONS)
    assert problems_of(index) == [
        'manifest.json: table 2 has 229 rows, and there are 230 images',
        'codes/table=2 holds other rows or codes than the images',
    ]


def test_images_with_other_codes_differ_from_every_table(index):
    table = files.read_table(str(served_folder(index) / IMAGES))
    codes = table['code'].to_pylist()
    rewrite(index, IMAGES, changed_rows(table, code=[codes[1], codes[0], *codes[2:]]), **IMAGES_OPTIONS)
    tables = len(versions.read_manifest(str(index)).tables)
    assert codes[0] != codes[1]
    first, *others = problems_of(index)
    assert first == f'{IMAGES} has other codes than sample.parquet says, of 2 images'
    assert others == [f'codes/table={i} holds other rows or codes than the images' for i in range(tables)]


def test_the_manifest_of_another_version_is_found(index):
    folder = served_folder(index)
    folder.rename(folder.with_name('other'))
    found = list(verify_version(versions.open_version(str(index), 'other')))
    assert found == [f'manifest.json is of version {folder.name}']


def test_a_table_without_a_prefix_is_found(index):
    folder, manifest = served_folder(index), versions.read_manifest(str(index))
    cut = dataclasses.replace(manifest.tables[0], partitions=manifest.tables[0].partitions[1:])
    broken = dataclasses.replace(manifest, tables=(cut, *manifest.tables[1:]))
    (folder / 'manifest.json').write_bytes(broken.dumps())
    assert 'manifest.json: the prefixes of table 0 do not cover every key once, in order' in problems_of(index)


def test_the_command_counts_and_lists(index, capsys):
    (served_folder(index) / 'x').write_bytes(b'')
    (served_folder(index) / IMAGES).unlink()
    assert main(['verify', str(index), '--version', served_folder(index).name]) == 1
    out, err = capsys.readouterr()
    assert out == f'{IMAGES} is missing\nx does not belong to the version\n'
    assert err.endswith(f'version {served_folder(index).name} is not as it was built: 2 problems\n')


@given(st.lists(st.integers(0, 15), max_size=30), st.integers(1, 9))
def test_the_layouts_prefixes_cover_every_key_once(keys, target):
    prefixes = layout.cut_prefixes(layout.key_histogram(np.array(keys, np.int64), 4), target)
    assert covers_once(prefixes)
    for i in range(len(prefixes)):
        assert not covers_once([*prefixes[:i], *prefixes[i + 1 :]])
        assert not covers_once([*prefixes, prefixes[i]])
    assert not covers_once(prefixes[::-1])
    assert not covers_once([])


@given(st.integers(1, 17), st.integers(0, 2**32), st.data())
def test_the_sum_is_of_the_set_of_rows_and_codes(width, seed, data):
    rng = np.random.default_rng(seed)
    rows = np.unique(rng.integers(0, 1 << 50, 20))
    codes = rng.integers(0, 256, (len(rows), width), np.uint8)
    whole, order = mixed_sum(rows, codes), rng.permutation(len(rows))
    assert mixed_sum(rows[order], codes[order]) == whole
    cut = data.draw(st.integers(0, len(rows)))
    assert (mixed_sum(rows[:cut], codes[:cut]) + mixed_sum(rows[cut:], codes[cut:])) % 2**64 == whole
    place, byte = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, width - 1))
    codes[place, byte] ^= 1 << data.draw(st.integers(0, 7))
    assert mixed_sum(rows, codes) != whole


def test_a_sample_of_other_images_or_codes_is_found(index):
    table = pq.read_table(served_folder(index) / 'sample.parquet')
    rows, codes = table['row'].to_numpy().copy(), table['code']
    rows[3] += 1 << 40
    rewrite(index, 'sample.parquet', table.set_column(1, 'row', pa.array(rows)))
    assert problems_of(index) == ['sample.parquet has 1 rows that no images part has']
    swapped = pa.concat_arrays([codes.combine_chunks()[1:], codes.combine_chunks()[:1]])
    rewrite(index, 'sample.parquet', table.set_column(0, 'code', swapped))
    found = problems_of(index)
    assert [line.split(' has ')[0] for line in found] == ['images/part-00000.parquet', 'images/part-00001.parquet']
    assert 'other codes than sample.parquet says' in found[0]
