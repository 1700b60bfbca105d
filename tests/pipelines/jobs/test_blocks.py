"""Blocks arrive as they were sent, by element or by file."""

import pyarrow as pa
import pytest

from pipelines import files
from pipelines.jobs import blocks
from pipelines.jobs.blocks import get_blocks, put_blocks

SCHEMA = pa.schema([('place', pa.uint32()), ('text', pa.string())])


def some_batches():
    whole = pa.record_batch({'place': pa.array(range(3000), pa.uint32()), 'text': [f'é{i}' * 3 for i in range(3000)]})
    return [whole.slice(first, count) for first, count in ((0, 1000), (1000, 0), (1000, 1), (1001, 1999))]


@pytest.mark.parametrize('inline', [10, 1 << 20])
def test_blocks_arrive_as_they_were_sent_in_any_order(tmp_path, monkeypatch, inline):
    monkeypatch.setattr(blocks, 'INLINE_BYTES', inline)
    uri = str(tmp_path / 'folder' / 'blocks')
    sent = some_batches()
    keyed = put_blocks(uri, enumerate(sent, 7))
    assert files.exists(uri) == (inline == 10)
    assert put_blocks(uri, list(enumerate(sent, 7))) == keyed
    assert [key for key, _ in keyed] == list(range(7, 7 + len(sent)))
    put = [block for _, block in keyed]
    assert [b.to_pylist() for b in get_blocks(put, SCHEMA)] == [b.to_pylist() for b in sent]
    assert [b.to_pylist() for b in get_blocks(put[::-2], SCHEMA)] == [b.to_pylist() for b in sent[::-2]]
    assert put_blocks(uri, []) == get_blocks([], SCHEMA) == []


def test_a_slice_of_a_batch_is_sent_alone():
    sent = some_batches()
    ((_, block),) = put_blocks('not written', [('key', sent[2])])
    assert len(block) < 500


def test_a_file_that_is_gone_or_shorter_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, 'INLINE_BYTES', 0)
    uri = str(tmp_path / 'blocks')
    put = [block for _, block in put_blocks(uri, enumerate(some_batches()))]
    files.write_bytes(uri, files.read_bytes(uri)[:-1])
    with pytest.raises(OSError, match='blocks ends before byte'):
        get_blocks(put, SCHEMA)
    files.delete_file(uri)
    with pytest.raises(OSError, match='blocks'):
        get_blocks(put, SCHEMA)
