"""HashModel: encoded image bytes -> pixels -> feature groups -> fused vectors -> codes; saved, loaded, fingerprinted.

The parts are fitted by `training/fit.py`. TensorFlow loads when the backbone is first needed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from hashing_model.codes.bits import pack_bits
from hashing_model.codes.spec import CodeSpec
from hashing_model.errors import InputError
from hashing_model.features.backbone import SAVED
from hashing_model.features.extractor import FEATURES_VERSION, Extractor
from hashing_model.features.fusion import Fusion, Groups
from hashing_model.heads.head import Anchors, HashHead
from hashing_model.heads.text import TextHead, Vocabulary
from hashing_model.images.decode import Decoded, Resizing, decode

FORMAT_VERSION = 1
# Of a matrix product that makes codes. With 12 or more, OpenBLAS's kernel for Haswell and Zen rounds a row by its
# place; with 8, all its kernels for x86 do not care. 32 would take half the time: 0.1 ms less with 4,096 anchors.
BLOCK_ROWS = 8
MODEL_FILE = 'model.json'
ARRAYS_FILE = 'arrays.npz'
CHECKPOINT_FILE = 'checkpoint.npz'  # of a training that was stopped
MODEL_FILES = (ARRAYS_FILE, SAVED, MODEL_FILE)  # all that a model's folder may hold, in the order of writing
_DAMAGED_ARCHIVE = (EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)  # what numpy raises, beside ValueError


@dataclasses.dataclass(frozen=True)
class HashModel:
    """Turns images into codes.

    Args:
        spec: the segments of a code.
        resizing: how pictures become square inputs; part of the model.
        extractor: pixels to feature groups.
        backbone_digest: SHA-256 of the backbone's weights; empty if no segment reads them.
        fusion: the scales of the feature groups.
        heads: segment name -> its hash function.
        training: what it was fitted on, for people; not part of the fingerprint.
        text: words to codes, if the training images had captions or labels.

    Example:
        >>> model = HashModel.load('my-model')  # doctest: +SKIP
        >>> model.encode(model.decode(data).pixels[None])  # doctest: +SKIP
    """

    spec: CodeSpec
    resizing: Resizing
    extractor: Extractor
    backbone_digest: str
    fusion: Fusion
    heads: Mapping[str, HashHead]
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text: TextHead | None = None

    def decode(self, data: bytes) -> Decoded:
        """Encoded image bytes to the model's input; raises `hashing_model.images.decode.ImageError`."""
        return decode(data, self.resizing)

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Images uint8 [N, size, size, 3], as `decode` makes them, to codes uint8 [N, spec.num_bytes].

        Raises:
            InputError: images of another kind or size, or a backbone that is not the one the model was fitted on.
        """
        self.check_backbone()
        return self.encode_features(self.extractor.features(images))

    def encode_features(self, groups: Groups) -> NDArray[np.uint8]:
        """Feature groups float32 [N, d] to codes uint8 [N, spec.num_bytes].

        An image's code depends neither on the other images of the batch nor on the number of cores. The rounding of a
        matrix product depends on its number of rows, on some processors on the place of a row, and on how it is divided
        among threads; a bit near its threshold could change with it. Therefore all products here have BLOCK_ROWS rows
        and one thread, which is also faster while TensorFlow keeps the cores busy.

        Raises:
            InputError: features that are not numbers.
        """
        count = len(next(iter(groups.values())))
        codes = [np.zeros((0, self.spec.num_bytes), np.uint8)]
        with _blas().limit(limits=1, user_api='blas'):
            for first in range(0, count, BLOCK_ROWS):
                block = {g: _padded(x[first : first + BLOCK_ROWS]) for g, x in groups.items()}
                values = np.concatenate(list(self.activations(block).values()), axis=1)[: count - first]
                if not np.isfinite(values).all():
                    raise InputError('features of an image are not numbers: the backbone overflows')
                codes.append(pack_bits(values >= 0))
        return np.concatenate(codes)

    def activations(self, groups: Groups) -> dict[str, NDArray[np.float32]]:
        """What the bits are the signs of: segment name -> float32 [N, bits], in the order of the spec."""
        fused = {s.name: self.fusion.fuse(groups, s.features) for s in self.spec.segments}
        return {name: self.heads[name].activations(x) for name, x in fused.items()}

    def encode_text(self, texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Encode texts, so that they are near the codes of images that they describe; no backbone is needed.

        Returns:
            Codes uint8 [N, spec.num_bytes], and which texts have a word that the model knows, bool [N]; texts without
            one all get the same code.

        Raises:
            InputError: the model has learned no words, or one text stands where a list should.
        """
        if isinstance(texts, str):
            raise InputError('encode_text takes a list of texts')
        if self.text is None:
            raise InputError('the model has learned no words: its training images had neither captions nor labels')
        x = self.text.vocabulary.vectors(texts)
        values = np.concatenate(list(self.text.activations(x).values()), axis=1)
        return pack_bits(values >= 0), np.diff(x.indptr) > 0

    def calibrated(self, means: Mapping[str, NDArray]) -> HashModel:
        """A model with other thresholds, so that each bit is 1 for about half of a catalogue.

        Its fingerprint differs. The thresholds take the statistics of a head's batch normalisation from the catalogue
        to be indexed (Hoe et al. 2021). As a bit is a sign, only their means matter.

        Args:
            means: segment name -> the mean of the `activations` over the catalogue, [bits]; others stay as they are.
        """
        heads = {**self.heads, **{name: self.heads[name].shifted(mean) for name, mean in means.items()}}
        return dataclasses.replace(self, heads=heads, text=self.text and self.text.shifted(means))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that determines a code, the same on every machine, as 64 hex digits."""
        digest = hashlib.sha256(json.dumps(self._description(), sort_keys=True).encode())
        for name, array in sorted(self._arrays().items()):
            digest.update(f'{name} {array.shape}'.encode() + np.ascontiguousarray(array, '<f4').tobytes())
        return digest.hexdigest()

    def save(self, folder: str | os.PathLike) -> None:
        """Write the model into a folder; `model.json` comes last, so a half-written model does not load.

        Raises:
            InputError: the folder holds something that is not a model.
        """
        path = Path(folder)
        check_model_folder(path)
        path.mkdir(parents=True, exist_ok=True)
        (path / MODEL_FILE).unlink(missing_ok=True)
        backbone = self.extractor.backbone if self.backbone_digest else None  # it may load from this folder
        (path / SAVED).unlink(missing_ok=True)
        if backbone:
            backbone.save(path)
        buffer = io.BytesIO()
        np.savez(buffer, **self._arrays())  # type: ignore[arg-type]
        (path / ARRAYS_FILE).write_bytes(buffer.getvalue())
        described = {**self._description(), 'fingerprint': self.fingerprint, 'training': dict(self.training)}
        temporary = path / f'{MODEL_FILE}.tmp'
        temporary.write_text(json.dumps(described, indent=1), encoding='utf-8')
        temporary.replace(path / MODEL_FILE)

    @classmethod
    def load(cls, folder: str | os.PathLike, threads: int | None = None) -> HashModel:
        """Read a saved model; the backbone is loaded, and its weights compared, at the first encoding.

        Args:
            folder: a local folder.
            threads: for TensorFlow and the hand-made features; None for one per core.

        Raises:
            InputError: no model there, one of another format, or one whose content does not match its fingerprint.
        """
        path = Path(folder)
        described = _read_description(path)
        try:
            arrays = dict(np.load(path / ARRAYS_FILE, allow_pickle=False))
            spec = CodeSpec.from_json(described['spec'])
            groups = described['groups']
            model = cls(
                spec,
                Resizing.from_json(described['resizing']),
                Extractor(described['backbone'], described['resizing']['size'], groups, path, threads),
                described['backbone_digest'],
                Fusion(*({g: arrays[f'{kind}/{g}'] for g in groups} for kind in ('mean', 'scale'))),
                {name: _head_from_arrays(arrays, name) for name in spec.names},
                described['training'],
                _text_from_arrays(arrays, described['vocabulary'], spec) if 'vocabulary' in described else None,
            )
            fingerprint = described['fingerprint']
        except (KeyError, TypeError, ValueError, OSError, *_DAMAGED_ARCHIVE) as e:
            raise InputError(f'{path} is not a readable model: {e}') from e
        if model.fingerprint != fingerprint:
            raise InputError(f'{path} is damaged: its content does not match the fingerprint in {MODEL_FILE}')
        return model

    def check_backbone(self) -> None:
        """Load the backbone and compare its weights with those the model was fitted on.

        Raises:
            InputError: the installed weights are others; the codes would not fit.
        """
        if self.backbone_digest and self.extractor.backbone.digest != self.backbone_digest:
            raise InputError(
                f'the weights of {self.extractor.backbone_name} on this machine are not those the model was '
                f'fitted on: {self.extractor.backbone.digest[:12]} and {self.backbone_digest[:12]}'
            )

    def _description(self) -> dict[str, Any]:
        words = {'vocabulary': ' '.join(self.text.vocabulary.tokens)} if self.text else {}
        return {
            **words,
            'format_version': FORMAT_VERSION,
            'features_version': FEATURES_VERSION,
            'spec': self.spec.to_json(),
            'resizing': self.resizing.to_json(),
            'backbone': self._portable_backbone_name(),
            'backbone_digest': self.backbone_digest,
            'groups': list(self.extractor.groups),
        }

    def _portable_backbone_name(self) -> str:
        """The backbone's name without the path of a `.keras` file, so that it is the same on every machine.

        The model holds a copy of such a file.
        """
        name = self.extractor.backbone_name
        return SAVED if name.endswith('.keras') else name

    def _arrays(self) -> dict[str, NDArray[np.float32]]:
        arrays = {f'mean/{g}': self.fusion.mean[g] for g in self.extractor.groups}
        arrays |= {f'scale/{g}': self.fusion.scale[g] for g in self.extractor.groups}
        if self.text:
            arrays['vocabulary'] = self.text.vocabulary.weights
            for name, head in self.text.heads.items():
                arrays |= {f'text_weights/{name}': head.weights, f'text_offset/{name}': head.offset}
        for name, head in self.heads.items():
            arrays[f'weights/{name}'] = head.weights
            arrays[f'offset/{name}'] = head.offset
            for i, (weights, offset) in enumerate(head.hidden):
                arrays[f'weights/{name}/hidden{i}'] = weights
                arrays[f'offset/{name}/hidden{i}'] = offset
            if head.anchors:
                arrays[f'anchors/{name}/projection'] = head.anchors.projection
                arrays[f'anchors/{name}/points'] = head.anchors.points
        return arrays


@functools.cache
def _blas() -> ThreadpoolController:
    """The controller that sets the number of threads of numpy's matrix products."""
    return ThreadpoolController()


def _padded(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors [N, d] filled up with zeros to BLOCK_ROWS."""
    return np.pad(x, ((0, BLOCK_ROWS - len(x)), (0, 0))) if len(x) < BLOCK_ROWS else x


def _head_from_arrays(arrays: Mapping[str, NDArray[np.float32]], name: str) -> HashHead:
    """The head that `HashModel._arrays` took apart."""
    depth = sum(key.startswith(f'weights/{name}/hidden') for key in arrays)
    hidden = tuple((arrays[f'weights/{name}/hidden{i}'], arrays[f'offset/{name}/hidden{i}']) for i in range(depth))
    anchors = None
    if f'anchors/{name}/points' in arrays:
        anchors = Anchors(arrays[f'anchors/{name}/projection'], arrays[f'anchors/{name}/points'])
    return HashHead(arrays[f'weights/{name}'], arrays[f'offset/{name}'], hidden, anchors)


def _text_from_arrays(arrays: Mapping[str, NDArray], vocabulary: str, spec: CodeSpec) -> TextHead:
    heads = {name: HashHead(arrays[f'text_weights/{name}'], arrays[f'text_offset/{name}']) for name in spec.names}
    return TextHead(Vocabulary(tuple(vocabulary.split(' ')), arrays['vocabulary']), heads)


def check_model_folder(folder: Path) -> None:
    """Refuse to save a model over something that is not one.

    Raises:
        InputError: a file, or a folder that holds other things.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f'{folder} is a file; give a folder for the model')
    names = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    if names and not {ARRAYS_FILE, MODEL_FILE, CHECKPOINT_FILE, f'.{CHECKPOINT_FILE}'} & set(names):
        raise InputError(f'{folder} is not a model: it holds {", ".join(names[:3])}; give a new or empty folder')


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / MODEL_FILE
    if not path.is_file():
        raise InputError(f'{folder} is not a model: there is no {path}')
    try:
        described = json.loads(path.read_text(encoding='utf-8'))
        versions = described['format_version'], described['features_version']
    except (ValueError, KeyError, TypeError) as e:
        raise InputError(f'{path} is not a model description: {e}') from e
    if versions != (FORMAT_VERSION, FEATURES_VERSION):
        raise InputError(
            f'{folder} has model format {versions[0]} and features {versions[1]}; '
            f'this grainhash reads {FORMAT_VERSION} and {FEATURES_VERSION}: train it again'
        )
    return described
