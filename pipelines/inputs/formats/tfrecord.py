"""TFRecord shards of `tf.train.Example`, read without TensorFlow, which takes seconds and 500 MB to import.

A record in the file: its length (uint64), a checksum of the length, the bytes, a checksum of the bytes; little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import IO, Any

import google_crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from pipelines import records
from pipelines.inputs.formats import common
from pipelines.inputs.formats.common import BrokenShardError
from pipelines.inputs.options import ReadOptions
from pipelines.records import Record, Reject, Source

_IMAGE = ('image/encoded', 'image')
_ID = ('image/id', 'image/filename', 'id')
_CAPTION = ('caption', 'image/caption')
_LABEL = 'label/'
_CLASS = 'image/class/label'

Features = Mapping[str, list[Any]]

_EXAMPLE_PROTO = """
    name: "example.proto" package: "tensorflow" syntax: "proto3"
    message_type { name: "BytesList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
    message_type { name: "FloatList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
    message_type { name: "Int64List" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
    message_type {
      name: "Feature" oneof_decl { name: "kind" }
      field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: ".tensorflow.BytesList" oneof_index: 0 }
      field { name: "float_list" number: 2 type: TYPE_MESSAGE type_name: ".tensorflow.FloatList" oneof_index: 0 }
      field { name: "int64_list" number: 3 type: TYPE_MESSAGE type_name: ".tensorflow.Int64List" oneof_index: 0 }
    }
    message_type {
      name: "Features"
      nested_type {
        name: "FeatureEntry" options { map_entry: true }
        field { name: "key" number: 1 type: TYPE_STRING }
        field { name: "value" number: 2 type: TYPE_MESSAGE type_name: ".tensorflow.Feature" }
      }
      field {
        name: "feature" number: 1 label: LABEL_REPEATED
        type: TYPE_MESSAGE type_name: ".tensorflow.Features.FeatureEntry"
      }
    }
    message_type {
      name: "Example" field { name: "features" number: 1 type: TYPE_MESSAGE type_name: ".tensorflow.Features" }
    }
"""


def _example_class() -> Any:
    """The message class of `tf.train.Example`, in a pool of its own, because TensorFlow registers the same names."""
    file = text_format.Parse(_EXAMPLE_PROTO, descriptor_pb2.FileDescriptorProto())
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName('tensorflow.Example'))


_Example = _example_class()


def read(shard: str, options: ReadOptions) -> Iterator[Record | Reject]:
    """The records of a TFRecord shard, in its order; a source's member is the record's number, from 0."""
    return common.rejecting_damage(_records(shard, options), shard, common.DAMAGE)


def read_member(shard: str, member: str, options: ReadOptions) -> bytes | None:
    """The image of record number `member`; None if there is none."""
    with common.open_stream(shard) as stream:
        for number, data in enumerate(_payloads(stream)):
            if str(number) == member:
                return _image(parse_example(data), options)
    return None


def parse_example(data: bytes) -> Features:
    """The features of a serialized `tf.train.Example`: name -> list of bytes, int or float.

    Raises:
        google.protobuf.message.DecodeError: it is none.
    """
    example = _Example.FromString(data)
    lists = {name: getattr(f, f.WhichOneof('kind') or 'bytes_list') for name, f in example.features.feature.items()}
    return {name: list(values.value) for name, values in sorted(lists.items())}


def _records(shard: str, options: ReadOptions) -> Iterator[Record | Reject]:
    with common.open_stream(shard) as stream:
        for number, data in enumerate(_payloads(stream)):
            source = Source(shard, str(number))
            try:
                features = parse_example(data)
            except DecodeError:
                yield Reject(source, records.BROKEN_METADATA, 'the record is no tf.train.Example')
                continue
            image_id = _first(features, (options.image_id,) if options.image_id else _ID)
            caption = _first(features, (options.caption,) if options.caption else _CAPTION)
            labels = _labels(features, options.labels)
            yield common.make_record(source, image_id, _image(features, options), labels, caption)


def _payloads(stream: IO[bytes]) -> Iterator[bytes]:
    """The bytes of each record.

    Raises:
        BrokenShardError: a checksum that is wrong, or a file that was cut short.
    """
    while head := stream.read(12):
        if len(head) < 12:
            raise BrokenShardError('the file ends within a record')
        length, length_check = struct.unpack('<QI', head)
        if _checksum(head[:8]) != length_check:
            raise BrokenShardError("a record's length has a wrong checksum")
        if length > common.MAX_RECORD_BYTES:
            raise BrokenShardError(f'a record of {length} bytes; the limit is {common.MAX_RECORD_BYTES}')
        data, check = stream.read(length), stream.read(4)
        if len(check) < 4:
            raise BrokenShardError('the file ends within a record')
        if _checksum(data) != struct.unpack('<I', check)[0]:
            raise BrokenShardError('a record has a wrong checksum')
        yield data


def _checksum(data: bytes) -> int:
    """CRC-32C, masked as in TFRecord, where it keeps the checksum of data that contains checksums strong."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _first(features: Features, names: tuple[str, ...]) -> Any:
    return next((features[name][0] for name in names if features.get(name)), None)


def _image(features: Features, options: ReadOptions) -> bytes | None:
    data = _first(features, (options.image,) if options.image else _IMAGE)
    return data if isinstance(data, bytes) else None


def _labels(features: Features, levels: tuple[str, ...]) -> Mapping[str, object]:
    if levels:
        return {level: features.get(_LABEL + level, features.get(level)) for level in levels}
    labels: dict[str, object] = {
        name.removeprefix(_LABEL): values
        for name, values in features.items()
        if name.startswith(_LABEL) and not any(isinstance(value, float) for value in values)
    }
    labels.setdefault('class', features.get(_CLASS))
    return labels
