"""The sample of records that a model is fitted on."""

import collections
import io
import tarfile

import numpy as np
from test_train import SIZE, encoded_pictures

from hashing_model.images import NOT_AN_IMAGE, decode
from pipelines.records import Record, Reject, Source
from pipelines.shards import ReadOptions, WorkUnit, list_units, read_unit
from pipelines.train_model import MAX_UNITS, describe_rejects, sample_records

OPTIONS = ReadOptions()


def write_shards(folder, counts):
    """Tar shards of `counts` records each, with ids `0`, `1`, ... over all of them."""
    number = 0
    for shard, count in enumerate(counts):
        with tarfile.open(folder / f'{shard:02}.tar', 'w') as tar:
            for _ in range(count):
                info = tarfile.TarInfo(f'{number}.jpg')
                info.size = 3
                tar.addfile(info, io.BytesIO(b'abc'))
                number += 1
    return list_units([str(folder)], OPTIONS)


def itself(record):
    return record


def test_every_record_is_as_likely_as_any_other(tmp_path):
    """Chi-square over seeds: 24 records in unequal shards, samples of 6, so each is expected in a quarter."""
    units = write_shards(tmp_path, (3, 14, 7))
    seeds = 400
    times = collections.Counter()
    for seed in range(seeds):
        kept, rejects = sample_records(units, OPTIONS, 6, seed, itself)
        ids = [r.image_id for r in kept]
        assert len(set(ids)) == 6
        assert rejects == []
        times.update(ids)
    expected = seeds * 6 / 24
    chi_square = sum((times[str(i)] - expected) ** 2 / expected for i in range(24)) / (1 - 6 / 24)
    assert chi_square < 55  # 23 degrees of freedom: once in 5000 sets of seeds
    assert set(times) == {str(i) for i in range(24)}


def test_all_records_are_kept_when_they_are_few(tmp_path):
    units = write_shards(tmp_path, (3, 4))
    for size in (7, 8, 100):
        kept, _ = sample_records(units, OPTIONS, size, 0, itself)
        assert sorted(r.image_id for r in kept) == [str(i) for i in range(7)]
    assert Record('4', b'abc', Source(units[1].paths[0], '4.jpg')) in sample_records(units, OPTIONS, 100, 0, itself)[0]


def test_a_sample_is_never_larger_than_asked_and_a_seed_gives_one_sample(tmp_path):
    units = write_shards(tmp_path, (9, 9))
    for size in range(1, 18):
        assert len(sample_records(units, OPTIONS, size, size, itself)[0]) == size
    samples = [[r.image_id for r in sample_records(units, OPTIONS, 5, seed, itself)[0]] for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]


def test_of_many_units_only_some_are_read(tmp_path):
    units = write_shards(tmp_path, [1] * (MAX_UNITS + 16))
    samples = [{r.image_id for r in sample_records(units, OPTIONS, 1000, seed, itself)[0]} for seed in range(12)]
    assert {len(sample) for sample in samples} == {MAX_UNITS}
    assert set.union(*samples) == {str(i) for i in range(MAX_UNITS + 16)}  # other units with other seeds


def test_records_that_cannot_be_read_are_counted_and_take_no_place(tmp_path):
    units = write_shards(tmp_path, (5, 5))
    content = (tmp_path / '01.tar').read_bytes()
    (tmp_path / '01.tar').write_bytes(content[: 2 * 1024 + 700])  # a header and a block per record
    units.append(WorkUnit(2, 'files', (str(tmp_path / 'gone.jpg'),), root=str(tmp_path)))
    read = [item for unit in units for item in read_unit(unit, OPTIONS)]
    bad = [item for item in read if isinstance(item, Reject)]
    kept, rejects = sample_records(units, OPTIONS, 100, 3, itself)
    assert {r.image_id for r in kept} == {r.image_id for r in read if isinstance(r, Record)}
    assert sorted(r.reason for r in rejects) == sorted(r.reason for r in bad) == ['broken_shard', 'unreadable_file']


def test_a_record_that_does_not_decode_takes_no_place(tmp_path):
    pictures = encoded_pictures(40)
    bad = {3, 31, 32, 38}
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        for number, data in enumerate(pictures):
            content = b'none' if number in bad else data
            info = tarfile.TarInfo(f'{number}.jpg')
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    units = list_units([str(tmp_path)], OPTIONS)
    kept, rejects = sample_records(units, OPTIONS, 100, 0, lambda record: decode(record.data, SIZE).pixels)
    expected = [decode(d, SIZE).pixels for i, d in enumerate(pictures) if i not in bad]
    np.testing.assert_array_equal(np.stack(kept), np.stack(expected))
    assert [(r.image_id, r.reason) for r in rejects] == [(str(i), NOT_AN_IMAGE) for i in sorted(bad)]
    few, rejects = sample_records(units, OPTIONS, 4, 0, lambda record: decode(record.data, SIZE).pixels)
    assert len(few) == 4
    assert NOT_AN_IMAGE in {r.reason for r in rejects}


def test_rejects_are_told_by_how_often():
    rejects = [Reject(Source('a', ''), reason, '') for reason in ('empty', 'truncated', 'truncated')]
    assert describe_rejects(rejects) == '2 truncated, 1 empty'
