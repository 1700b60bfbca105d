"""What is checked before a version is served."""

import pytest

from hashing_model.errors import BuildError
from pipelines import files
from pipelines.build.partitions import Part, sample_part, write_partition
from pipelines.build.publish import add_counters, check_version, publish_version
from pipelines.index import versions
from pipelines.index.manifest import DataFile
from pipelines.records import DUPLICATE_ID
from tests.helpers.make_index import ORIGIN, build_by_hand, config_for, cut_all, skewed_codes, write_part


def test_a_table_that_lost_rows_is_not_published(tmp_path):
    config = config_for(tmp_path, 1)
    part = write_part(0, skewed_codes(200), config)
    made, cut = cut_all([part], config)
    partitions = [found for element in cut.items() for found in write_partition(element, config, made)]
    sample = sample_part(part, config)
    lost = next(p for p in partitions if p[0] == 2)
    with pytest.raises(BuildError, match=rf'table 2 holds {200 - lost[2].rows} rows; 200 images were indexed'):
        publish_version(None, config, made, [part], [p for p in partitions if p is not lost], sample)
    with pytest.raises(BuildError, match=rf'table 2 holds {200 + lost[2].rows} rows; 200 images'):
        publish_version(None, config, made, [part], [*partitions, lost], sample)
    assert not (tmp_path / 'CURRENT').exists()
    assert not files.exists(config.index_version.path(versions.MANIFEST_PATH))
    publish_version(None, config, made, [part], partitions, sample)
    assert versions.current_version(str(tmp_path)) == config.version


def finished(number, indexed, read, **reasons):
    return Part(number, DataFile(f'{number}', indexed, 1), None, read, reasons, ORIGIN)


def test_counters_add_up():
    parts = [finished(0, 5, 9, truncated=2, duplicate_id=2), finished(1, 3, 4, empty=1), finished(2, 0, 0)]
    assert add_counters(parts, 3) == {
        'records_read': 13, 'indexed': 8, 'rejected': 3, 'duplicates': 2, 'reasons': {'empty': 1, 'truncated': 2}
    }  # fmt: skip
    assert DUPLICATE_ID == 'duplicate_id'


@pytest.mark.parametrize(
    ('parts', 'message'),
    [
        ([finished(0, 5, 6)], 'records are missing: read 6, used 5, rejected 0, duplicates 0'),
        ([finished(0, 5, 5, empty=1)], 'read 5, used 5, rejected 1'),
        ([finished(0, 5, 5, duplicate_id=1)], 'duplicates 1'),
        ([finished(0, 0, 3, empty=2, duplicate_id=1)], 'none of 3 records could be used: 2 empty'),
        ([finished(0, 0, 0)], 'none of 0 records could be used'),
        ([], '0 of 1 work units were finished'),
        ([finished(1, 5, 5)], '1 of 1 work units were finished'),
        ([finished(0, 5, 5), finished(0, 5, 5)], '2 of 1 work units were finished'),
    ],
)
def test_numbers_that_do_not_add_up_fail_the_build(parts, message):
    with pytest.raises(BuildError, match=message):
        add_counters(parts, 1)


def test_a_version_with_a_file_missing_or_changed_is_not_published(tmp_path):
    build_by_hand(tmp_path, [skewed_codes(40), skewed_codes(30, seed=1)], rejected=1)
    manifest = versions.read_manifest(str(tmp_path))
    version = versions.Version(str(tmp_path), manifest.version)
    folder = version.folder
    check_version(version)
    for file in manifest.data_files:
        path = files.join(folder, file.path)
        content = files.read_bytes(path)
        files.delete_file(path)
        with pytest.raises(BuildError, match=f'{file.path} is missing'):
            check_version(version)
        files.write_bytes(path, content[:-1])
        with pytest.raises(BuildError, match=f'{file.path} has {file.bytes - 1} bytes instead of {file.bytes}'):
            check_version(version)
        files.write_bytes(path, content)
    check_version(version)
