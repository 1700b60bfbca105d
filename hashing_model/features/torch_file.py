"""Reads tensors from torch's legacy `.pth` files with numpy alone, trusting nothing in the file.

Before torch 1.6 a file was five pickles, then the raw numbers:

    magic number | protocol | system | tensors by name | storage keys | per key: int64 count, numbers

The tensors are views (offset, size, stride) into storages, which follow in the order of the keys. A pickle can call
any function, so `_Unpickler` knows the few names that such a file needs and refuses all others.
"""

from __future__ import annotations

import collections
import hashlib
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from hashing_model.errors import InputError

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {
    'FloatStorage': '<f4',
    'DoubleStorage': '<f8',
    'HalfStorage': '<f2',
    'LongStorage': '<i8',
    'IntStorage': '<i4',
}

Tensors = dict[str, npt.NDArray[Any]]


def read_torch_file(path: Path) -> Tensors:
    """Tensor name to array (little-endian, own memory, shape as in torch).

    Raises:
        InputError: no such file, another format, a cut or forged file.
    """
    try:
        with open(path, 'rb') as file:
            return _read(file, path.stat().st_size)
    except OSError as e:
        raise InputError(f'cannot read the weights {path}: {e.strerror}') from e
    except Exception as e:  # a forged pickle can raise anything
        raise InputError(f'{path} is not a sound torch weights file of the legacy format: {e}') from e


def tensors_digest(tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes, sorted by name; how a file packs them does not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        array = array.astype(array.dtype.newbyteorder('<'), order='C', copy=False)
        digest.update(f'{name}\0{array.dtype.str}\0{array.shape}\0'.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


# Named tuples, because a pickle can change the attributes of other objects.
class _Storage(NamedTuple):
    """A run of numbers of one type. The file names it first; its numbers follow later."""

    key: str
    dtype: str
    length: int


class _View(NamedTuple):
    """A tensor: elements of a storage, addressed as torch does (in elements, not bytes)."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> _View:
        """Stands in for the function that torch calls with these and further arguments."""
        return cls(storage, offset, tuple(size), tuple(stride))

    def take(self, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The tensor's own copy out of its storage's numbers."""
        given = (self.offset, *self.size, *self.stride)
        if len(self.size) != len(self.stride) or not all(type(n) is int and n >= 0 for n in given):
            raise ValueError(f'a tensor has offset {self.offset}, size {self.size}, stride {self.stride}')
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if 0 in self.size or max(last + 1, math.prod(self.size)) > len(numbers):
            raise ValueError(f'a tensor of size {self.size} reaches beyond its {len(numbers)} numbers')
        strides = [step * numbers.itemsize for step in self.stride]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.size, strides).copy()


class _Unpickler(pickle.Unpickler):
    """Knows ordered dicts, tensor views and number types, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('collections', 'OrderedDict'):
            return collections.OrderedDict
        if (module, name) in (('torch._utils', '_rebuild_tensor_v2'), ('torch._utils', '_rebuild_tensor')):
            return _View.of
        if module == 'torch' and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f'it asks for {module}.{name}, which no weights need')

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, length = pid[:5]
        if kind != 'storage' or dtype not in _DTYPES.values() or type(length) is not int:
            raise pickle.UnpicklingError(f'unknown kind of storage {pid!r}')
        return _Storage(key, dtype, length)


def _read(file: BinaryIO, size: int) -> Tensors:
    for expected in (_MAGIC, _PROTOCOL):
        if _Unpickler(file).load() != expected:
            raise ValueError('it starts with other numbers')
    _Unpickler(file).load()  # byte order and sizes of the writing system; the numbers are little-endian anyway
    views = _Unpickler(file).load()
    keys = _Unpickler(file).load()
    if not all(isinstance(name, str) and isinstance(view, _View) for name, view in views.items()):
        raise ValueError('it holds other things than named tensors')
    storages = {view.storage.key: view.storage for view in views.values()}
    numbers = {key: _read_numbers(file, storages[key], size) for key in keys}
    if file.read(1):
        raise ValueError('bytes follow after the last tensor')
    return {name: view.take(numbers[view.storage.key]) for name, view in views.items()}


def _read_numbers(file: BinaryIO, storage: _Storage, size: int) -> npt.NDArray[Any]:
    count = int.from_bytes(file.read(8), 'little', signed=True)
    size_needed = count * np.dtype(storage.dtype).itemsize
    if count != storage.length or not 0 <= size_needed <= size - file.tell():
        raise ValueError(f'storage {storage.key} should have {storage.length} numbers; the file has fewer or others')
    return np.frombuffer(file.read(size_needed), storage.dtype)
