"""The sample of encoded images that an evaluation takes from shards."""

import numpy as np
import pytest

from hashing_model.images.decode import decode
from pipelines.index.code_tables import codes_from_arrow
from pipelines.inputs.options import ReadOptions
from pipelines.inputs.shards import list_units, read_unit
from pipelines.quality import shard_images
from pipelines.quality.shard_images import ENOUGH, ShardImages
from tests.helpers.make_index import catalogue_pictures, tar_members, write_tar
from tests.helpers.make_models import look_model

COUNT = 24


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    """24 pictures in shards of 3, 14 and 7, and a model."""
    folder = tmp_path_factory.mktemp('shards')
    pictures = catalogue_pictures(COUNT)
    for name, own in (('a', pictures[:3]), ('b', pictures[3:17]), ('c', pictures[17:])):
        write_tar(folder / f'{name}.tar', tar_members(own))
    return folder, look_model(), [f['id'] for f, _ in pictures]


def images_of(folder, model, progress=lambda n, of: None):
    options = ReadOptions()
    return ShardImages(list_units([str(folder)], options), options, model, [], progress)


def test_codes_and_labels_are_those_of_the_pictures(shards):
    folder, model, ids = shards
    heard = []
    table = images_of(folder, model, lambda *numbers: heard.append(numbers)).draw(None, 0)
    pixels = np.stack([decode(data, model.resizing).pixels for _, data in catalogue_pictures(COUNT)])
    np.testing.assert_array_equal(codes_from_arrow(table['code']), model.encode(pixels))
    assert table['image_id'].to_pylist() == ids
    labels = [dict(row) for row in table['labels'].to_pylist()]
    assert labels == [{k: [v] for k, v in f['labels'].items()} for f, _ in catalogue_pictures(COUNT)]
    assert heard == [(i + 1, COUNT) for i in range(COUNT)]


def test_every_image_is_as_likely_as_any_other(shards, monkeypatch):
    """Chi-square over seeds: samples of 9 look at all 24."""
    folder, model, ids = shards
    monkeypatch.setattr(shard_images, 'encode_unit', lambda items, _: list(items))
    monkeypatch.setattr(ShardImages, '_encode', lambda self, items: [item.image_id for item in items])
    assert ENOUGH * 9 >= COUNT
    images = images_of(folder, model)
    times = dict.fromkeys(ids, 0)
    for seed in range(200):
        drawn = images.draw(9, seed)
        assert len(set(drawn)) == 9
        for image_id in drawn:
            times[image_id] += 1
    expected = 200 * 9 / COUNT
    assert sum((n - expected) ** 2 / expected for n in times.values()) / (1 - 9 / COUNT) < 55  # once in 5000


def test_no_more_shards_are_read_than_are_needed(shards, monkeypatch):
    folder, model, _ = shards
    opened = []

    def read(unit, options):
        opened.append(unit.number)
        return read_unit(unit, options)

    monkeypatch.setattr(shard_images, 'read_unit', read)
    assert images_of(folder, model).draw(1, 0).num_rows == 1
    assert 1 <= len(set(opened)) <= 2  # 3 records are enough


def test_ids_find_their_images_wherever_they_are(shards):
    folder, model, ids = shards
    heard = []
    wanted = {ids[2], ids[3], ids[20], 'nobody'}
    table = images_of(folder, model, lambda *numbers: heard.append(numbers)).find(wanted)
    assert table['image_id'].to_pylist() == [ids[2], ids[3], ids[20]]
    assert heard == [(1, 4), (2, 4), (3, 4)]


def test_what_cannot_be_used_is_kept_aside(shards, tmp_path):
    _, model, _ = shards
    pictures = catalogue_pictures(4)
    members = list(tar_members([*pictures, (pictures[1][0], pictures[2][1])]))
    write_tar(tmp_path / 'x.tar', [*members, ('bad.jpg', b'no picture')])
    images = images_of(tmp_path, model)
    assert images.draw(None, 0)['image_id'].to_pylist() == [f['id'] for f, _ in pictures]
    assert sorted(reject.reason for reject in images.rejects) == ['duplicate_id', 'not_an_image']
