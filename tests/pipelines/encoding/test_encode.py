"""One work unit: records in, rows and rejects out, and models."""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.errors import InputError
from hashing_model.features.backbone import load_backbone
from hashing_model.images.decode import NOT_AN_IMAGE, TRUNCATED, decode
from hashing_model.networks.loop import Training
from hashing_model.training.fit import fit
from pipelines.encoding import encode
from pipelines.encoding.encode import BATCH_SIZE, KnownImage, decoded_batches, encode_unit, rejects_table
from pipelines.encoding.models import load_model, local_model
from pipelines.index.code_tables import REJECTS, codes_from_arrow, images_schema
from pipelines.records import MISSING_ID, Record, Reject, Source
from tests.helpers.make_models import LOOK, SIZE, catalogue_pixels, encoded_pictures, look_model


@pytest.fixture(scope='module')
def model():
    return look_model('random')


def records_of(count):
    """Records of different pictures, some of them with labels and caption."""
    return [
        Record(
            f'id-{i}',
            data,
            Source('a.tar', f'{i}.webp'),
            {'kind': ('x', f'{i}')} if i % 2 else {},
            f'no {i}' if i else None,
        )
        for i, data in enumerate(encoded_pictures(count))
    ]


def broken(number, data):
    return Record(f'bad-{number}', data, Source('a.tar', f'bad {number}'))


# Encoding


@pytest.mark.parametrize('count', [0, 1, 3, 4, 5, 8, 9])
def test_batches_have_no_edges(model, count):
    records = records_of(count)
    unit = encode_unit(iter(records), model, batch_size=4)
    assert unit.records_read == count == len(unit.images)
    assert unit.rejects == ()
    assert unit.images.schema.equals(images_schema(4))
    assert unit.images['image_id'].to_pylist() == [r.image_id for r in records]
    expected = [bytes(model.encode(decode(r.data, SIZE).pixels[None])[0]) for r in records]
    assert unit.images['code'].to_pylist() == expected
    assert len(set(expected)) == count


def test_good_and_bad_records_are_told_apart_in_order(model):
    good = records_of(7)
    early = Reject(Source('a.tar', 'x'), MISSING_ID, 'no id')
    empty, text, cut = broken(0, b''), broken(1, b'no picture'), broken(2, good[0].data[:200])
    items = [early, good[0], text, good[1], *good[2:4], cut, empty, text, early, good[4], early, *good[5:], cut]
    for batch_size in (1, 2, 3, 5, 100):
        unit = encode_unit(items, model, batch_size=batch_size)
        assert unit.records_read == len(items) == len(unit.images) + len(unit.rejects)
        assert unit.images['image_id'].to_pylist() == [r.image_id for r in good]
        np.testing.assert_array_equal(codes_from_arrow(unit.images['code']), model.encode(catalogue_pixels(7)))
        assert [r.reason for r in unit.rejects] == [
            MISSING_ID, NOT_AN_IMAGE, TRUNCATED, 'empty', NOT_AN_IMAGE, MISSING_ID, MISSING_ID, TRUNCATED
        ]  # fmt: skip
        assert unit.rejects[0] is early
        assert (unit.rejects[1].image_id, unit.rejects[1].source) == ('bad-1', text.source)


def test_what_is_known_is_neither_decoded_nor_encoded(model):
    records = [*records_of(7), broken(0, b'known to be a picture')]
    digests = [hashlib.blake2b(r.data, digest_size=16).digest() for r in records]
    known = {digests[i]: KnownImage(digests[i], 10 + i, 20 + i, bytes([i] * 4)) for i in (0, 3, 7)}
    for batch_size in (1, 2, 100):
        unit = encode_unit(records, model, known, batch_size)
        assert (unit.records_read, unit.reused, unit.rejects) == (8, 3, ())
        assert unit.images['image_id'].to_pylist() == [r.image_id for r in records]
        assert unit.images['digest'].to_pylist() == digests
        codes = model.encode(catalogue_pixels(7))
        assert unit.images['code'].to_pylist() == [
            bytes([i] * 4) if i in (0, 3, 7) else bytes(codes[i]) for i in range(8)
        ]
        assert [unit.images['width'][i].as_py() for i in (0, 3, 7)] == [10, 13, 17]
        assert len(unit.measures['decode_us']) == 5
        assert unit.measures['image_bytes'] == [len(r.data) for r in records]
        assert len(unit.measures['hash_us']) == -(-5 // batch_size) == len(unit.measures['features_us'])


@pytest.mark.tf
def test_the_backbone_is_loaded_once_and_only_where_something_is_encoded(tmp_path, monkeypatch):
    spec = CodeSpec((Segment('look', 8, ('top',)),))
    fit(catalogue_pixels(9), {}, Training('random'), spec, SIZE)[0].save(tmp_path / 'model')
    records = records_of(3)
    known = {d: KnownImage(d, 1, 1, bytes(1)) for d in (encode.digest_of(record) for record in records)}
    loaded = []

    def slow(*arguments):
        loaded.append(arguments)
        time.sleep(0.2)
        return load_backbone(*arguments)

    monkeypatch.setattr('hashing_model.features.extractor.load_backbone', slow)
    model = load_model(str(tmp_path / 'model'))
    assert encode_unit(records, model, known).reused == 3
    assert not loaded
    with ThreadPoolExecutor(2) as pool:
        units = list(pool.map(lambda _: encode_unit(records, model), range(2)))
    assert units[0].images.equals(units[1].images)
    assert len(loaded) == 1


def test_known_images_wait_for_each_other_but_not_forever(model, monkeypatch):
    monkeypatch.setattr(encode, 'KNOWN_AT_ONCE', 3)
    records = records_of(7)
    digests = [hashlib.blake2b(r.data, digest_size=16).digest() for r in records]
    known = {digest: KnownImage(digest, 1, 1, bytes(4)) for digest in digests[:4] + digests[5:]}
    batches = decoded_batches(records, model.resizing, 1, known)
    assert [[item.image_id for item, _ in batch] for batch in batches] == [
        ['id-0', 'id-1', 'id-2'], ['id-3', 'id-4'], ['id-5', 'id-6']
    ]  # fmt: skip


def test_a_unit_of_nothing_but_bad_records_has_no_rows(model):
    unit = encode_unit([broken(i, b'no picture') for i in range(5)], model, batch_size=2)
    assert (len(unit.images), len(unit.rejects), unit.records_read) == (0, 5, 5)
    assert unit.images.schema.equals(images_schema(4))


def test_everything_known_of_a_record_is_in_its_row(model):
    record = records_of(2)[1]
    (row,) = encode_unit([record], model).images.to_pylist()
    size = decode(record.data, SIZE)
    assert row == {
        'image_id': 'id-1',
        'source': {'shard': 'a.tar', 'member': '1.webp'},
        'digest': hashlib.blake2b(record.data, digest_size=16).digest(),
        'width': size.width,
        'height': size.height,
        'labels': [('kind', ['x', '1'])],
        'caption': 'no 1',
        'code': bytes(model.encode(size.pixels[None])[0]),
    }
    assert size.width != 64  # the picture's own size, not the model's


def test_a_failure_to_read_ends_the_unit(model):
    def failing():
        yield from records_of(3)
        raise ConnectionResetError('gone')

    with pytest.raises(ConnectionResetError, match='gone'):
        encode_unit(failing(), model, batch_size=2)


def test_records_are_read_no_further_than_a_batch_ahead(model):
    data, taken = encoded_pictures(1)[0], []

    def counted():
        for i in range(20 * BATCH_SIZE):
            taken.append(i)
            yield Record(str(i), data, Source('a.tar', ''))

    batches = decoded_batches(counted(), model.resizing, BATCH_SIZE)
    for done in (1, 2, 3):
        assert len(next(batches)) == BATCH_SIZE
        assert len(taken) <= (done + 1) * BATCH_SIZE
    batches.close()


def test_rejects_are_rows(model):
    rejects = [Reject(Source('a', 'b'), 'empty', 'no bytes', 'id'), Reject(Source('c', 'd'), MISSING_ID, 'none')]
    table = rejects_table(rejects)
    assert table.schema.equals(REJECTS)
    assert table.to_pylist()[0] == {
        'source': {'shard': 'a', 'member': 'b'}, 'image_id': 'id', 'reason': 'empty', 'detail': 'no bytes'
    }  # fmt: skip
    assert table['image_id'].to_pylist() == ['id', None]
    assert rejects_table([]).schema.equals(REJECTS)


# Models


def test_a_model_is_loaded_from_its_folder(model, tmp_path):
    model.save(tmp_path / 'model')
    assert local_model(str(tmp_path / 'model')) == str(tmp_path / 'model')
    loaded = load_model(str(tmp_path / 'model'))
    assert (loaded.fingerprint, loaded.spec) == (model.fingerprint, LOOK)
    assert load_model(str(tmp_path / 'model')) is loaded
    with pytest.raises(InputError, match='is not a model'):
        load_model(str(tmp_path))
