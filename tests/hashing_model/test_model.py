"""Hash models: encoding one by one or together, saving, loading, and a fingerprint of all that makes a code."""

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hashing_model.codes.bits import hamming, pack_bits, unpack_bits
from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.errors import InputError
from hashing_model.features.fusion import Fusion
from hashing_model.heads.head import Anchors, HashHead
from hashing_model.heads.text import Vocabulary
from hashing_model.images.decode import ImageError, Resizing
from hashing_model.labels import LabelLevel
from hashing_model.model import ARRAYS_FILE, CHECKPOINT_FILE, MODEL_FILE, HashModel, check_model_folder
from hashing_model.networks.loop import Training
from hashing_model.training.fit import fit
from tests.helpers.make_models import (
    LOOK,
    SIZE,
    catalogue_pixels,
    encoded_pictures,
    fit_look,
    look_model,
    small_network,
)


@pytest.fixture(scope='module')
def model():
    return look_model()


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def nudged(array):
    """A copy with one value moved to the next float."""
    array = np.array(array)
    array.flat[array.size // 2] = np.nextafter(array.flat[array.size // 2], np.float32(9))
    return array


def fit_on(images, spec, backbone):
    return fit(images, spec=spec, resizing=SIZE, backbone=str(backbone))[0]


def with_projection(model, **changes):
    heads = {n: dataclasses.replace(p, **changes) for n, p in model.heads.items()}
    return dataclasses.replace(model, heads=heads)


def test_a_picture_has_the_same_code_alone_and_in_a_batch(model):
    images = catalogue_pixels()
    codes = model.encode(images)
    assert codes.shape == (40, 4)
    assert len(np.unique(codes, axis=0)) > 35
    for i in (0, 17, 39):
        np.testing.assert_array_equal(model.encode(images[i : i + 1]), codes[i : i + 1])
        pixels = model.decode(encoded_pictures(i + 1)[i]).pixels
        np.testing.assert_array_equal(model.encode(pixels[None]), codes[i : i + 1])
    np.testing.assert_array_equal(model.encode(images[::-1]), codes[::-1])


@pytest.mark.parametrize('bits', [16, 32, 64, 128])
def test_a_bit_at_its_threshold_does_not_depend_on_images_beside(bits):
    """A product of matrices rounds by their shapes; with these offsets every bit of the first image hangs on that."""
    rng = np.random.default_rng(bits)
    x, weights = (rng.normal(size=size).astype(np.float32) for size in ((70, 700), (700, bits)))
    groups = {'color': x}
    fusion = Fusion({'color': np.zeros(700, np.float32)}, {'color': np.ones(700, np.float32)})
    spec = CodeSpec((Segment('look', bits, ('color',)),))
    head = HashHead(weights, np.zeros(bits, np.float32))
    fused = fusion.fuse(groups, ('color',))
    rounded = [(fused[:n] @ weights)[0] for n in (1, 2, 3, 32, 70)]
    assert len(np.unique(rounded, axis=0)) > 1
    for offset in rounded:
        at_threshold = {'look': dataclasses.replace(head, offset=-offset)}
        model = HashModel(spec, SIZE, None, '', fusion, at_threshold)
        codes = model.encode_features(groups)
        for first, last in [(0, 1), (0, 2), (0, 33), (0, 64), (1, 70), (31, 34), (69, 70)]:
            part = model.encode_features({'color': x[first:last]})
            np.testing.assert_array_equal(part, codes[first:last])
        order = rng.permutation(70)
        np.testing.assert_array_equal(model.encode_features({'color': x[order]}), codes[order])


@pytest.mark.process
@pytest.mark.parametrize(
    ('kernel', 'flag'), [('Nehalem', 'sse4_2'), ('Sandybridge', 'avx'), ('Haswell', 'avx2'), ('SkylakeX', 'avx512vl')]
)
def test_that_holds_for_the_kernels_of_other_processors(kernel, flag):
    """OpenBLAS has other inner loops for each; the flag tells whether this processor can run them."""
    if flag not in Path('/proc/cpuinfo').read_text().split():
        pytest.skip(f'this processor has no {flag}')
    test = f'{__file__}::{test_a_bit_at_its_threshold_does_not_depend_on_images_beside.__name__}'
    command = [sys.executable, '-m', 'pytest', test]
    done = subprocess.run(command, env={**os.environ, 'OPENBLAS_CORETYPE': kernel}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert '4 passed' in done.stdout


@pytest.mark.process
def test_codes_are_the_same_on_one_core_and_on_many():
    """In processes of their own: OpenBLAS chooses its threads when it loads. As above, bits hang on the rounding."""
    code = (
        'import numpy as np\n'
        'from hashing_model.codes.spec import CodeSpec, Segment\n'
        'from hashing_model.features.fusion import Fusion\n'
        'from hashing_model.heads.head import HashHead\n'
        'from hashing_model.images.decode import Resizing\n'
        'from hashing_model.model import HashModel\n'
        'rng = np.random.default_rng(0)\n'
        'x, weights = (rng.normal(size=size).astype(np.float32) for size in ((32, 3000), (3000, 128)))\n'
        'spec = CodeSpec((Segment("look", 128, ("color",)),))\n'
        'fusion = Fusion({{"color": np.zeros(3000, np.float32)}}, {{"color": np.ones(3000, np.float32)}})\n'
        'rounded = {rounded}\n'
        'codes = b""\n'
        'for row in rounded:\n'
        '    model = HashModel(spec, Resizing(64), None, "", fusion, {{"look": HashHead(weights, -row)}})\n'
        '    codes += model.encode_features({{"color": x}}).tobytes()\n'
        'print(rounded.tobytes().hex(), codes.hex())\n'
    )
    first = run_with_threads(code.format(rounded='fusion.fuse({"color": x}, ("color",)) @ weights'), 1)
    rounded = f'np.frombuffer(bytes.fromhex("{first[0]}"), np.float32).reshape(32, 128)'
    codes = [run_with_threads(code.format(rounded=rounded), threads)[1] for threads in (1, 2, 5)]
    assert codes[0] == codes[1] == codes[2]


def run_with_threads(code, threads):
    environment = {**os.environ, 'OPENBLAS_NUM_THREADS': str(threads)}
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bytes_that_are_no_picture_are_told_so(model):
    with pytest.raises(ImageError, match='not_an_image'):
        model.decode(b'no picture')


def test_a_saved_model_makes_the_same_codes(model, tmp_path):
    model.save(tmp_path / 'new' / 'model')
    assert files_of(tmp_path / 'new' / 'model') == [ARRAYS_FILE, MODEL_FILE]
    loaded = HashModel.load(str(tmp_path / 'new' / 'model'))
    np.testing.assert_array_equal(loaded.encode(catalogue_pixels()), model.encode(catalogue_pixels()))
    assert (loaded.fingerprint, loaded.spec, loaded.resizing) == (model.fingerprint, LOOK, SIZE)
    assert loaded.training == model.training
    loaded.save(tmp_path / 'copy')
    assert (tmp_path / 'copy' / MODEL_FILE).read_bytes() == (tmp_path / 'new' / 'model' / MODEL_FILE).read_bytes()


def test_a_model_may_replace_a_model_but_nothing_else(model, tmp_path):
    folder = tmp_path / 'model'
    look_model(seed=1).save(folder)
    model.save(folder)
    assert HashModel.load(folder).fingerprint == model.fingerprint
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'cat.jpg').write_bytes(b'x')
    with pytest.raises(InputError, match=r'photos is not a model: it holds cat\.jpg'):
        model.save(tmp_path / 'photos')
    assert files_of(tmp_path / 'photos') == ['cat.jpg']
    with pytest.raises(InputError, match='is a file; give a folder'):
        model.save(tmp_path / 'photos' / 'cat.jpg')


def test_a_training_that_was_stopped_leaves_a_folder_that_takes_the_model(model, tmp_path):
    for names in ((CHECKPOINT_FILE,), (f'.{CHECKPOINT_FILE}',), (CHECKPOINT_FILE, f'.{CHECKPOINT_FILE}')):
        folder = tmp_path / '-'.join(names)
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b'')
        check_model_folder(folder)
        model.save(folder)
        assert HashModel.load(folder).fingerprint == model.fingerprint


# Heads with hidden layers


def deep(model, layers=2, seed=0):
    """The model with random hidden layers before its bits."""
    rng = np.random.default_rng(seed)
    sizes = [len(model.heads['look'].weights), 7, 5][: layers + 1]
    hidden = tuple(
        (rng.standard_normal((a, b)).astype(np.float32), rng.standard_normal(b).astype(np.float32))
        for a, b in itertools.pairwise(sizes)
    )
    weights = rng.standard_normal((sizes[-1], 32)).astype(np.float32)
    return dataclasses.replace(
        model, heads={'look': HashHead(weights, rng.standard_normal(32).astype(np.float32), hidden)}
    )


@pytest.mark.parametrize('layers', [0, 1, 2])
def test_hidden_layers_come_back(model, tmp_path, layers):
    made = deep(model, layers)
    made.save(tmp_path)
    loaded = HashModel.load(tmp_path)
    assert len(loaded.heads['look'].hidden) == layers
    images = catalogue_pixels()
    np.testing.assert_array_equal(loaded.encode(images), made.encode(images))
    assert len(np.unique(made.encode(images), axis=0)) > 20
    assert loaded.fingerprint == made.fingerprint


def test_hidden_layers_are_in_the_fingerprint(model):
    made = deep(model)
    (a, b), (c, d) = made.heads['look'].hidden
    others = [
        ((nudged(a), b), (c, d)),
        ((a, nudged(b)), (c, d)),
        ((a, b), (nudged(c), d)),
        ((a, b), (c, nudged(d))),
        (),
    ]
    fingerprints = {with_projection(made, hidden=hidden).fingerprint for hidden in others}
    assert len(fingerprints | {made.fingerprint, deep(model, 1).fingerprint, model.fingerprint}) == 8
    assert deep(model).fingerprint == made.fingerprint


def anchored(model, seed=0):
    """The model with a kernel before its bits."""
    rng = np.random.default_rng(seed)
    d = len(model.heads['look'].weights)
    projection, points, weights = (rng.standard_normal(shape, np.float32) for shape in ((d, 6), (9, 6), (9, 32)))
    head = HashHead(weights, np.zeros(32, np.float32), anchors=Anchors(projection / 3, points / 3))
    return dataclasses.replace(model, heads={'look': head})


def test_anchors_come_back_and_are_in_the_fingerprint(model, tmp_path):
    made, images = anchored(model), catalogue_pixels()
    made.save(tmp_path)
    loaded = HashModel.load(tmp_path)
    np.testing.assert_array_equal(loaded.encode(images), made.encode(images))
    np.testing.assert_array_equal(made.encode(images[5:6]), made.encode(images)[5:6])
    assert len(np.unique(made.encode(images), axis=0)) > 20
    projection, points = made.heads['look'].anchors.projection, made.heads['look'].anchors.points
    others = [Anchors(nudged(projection), points), Anchors(projection, nudged(points))]
    fingerprints = {with_projection(made, anchors=anchors).fingerprint for anchors in others}
    assert len(fingerprints | {made.fingerprint, model.fingerprint}) == 4
    assert loaded.fingerprint == made.fingerprint


@pytest.mark.parametrize('layers', [0, 2])
def test_a_model_calibrated_on_a_catalogue_has_balanced_bits_and_another_fingerprint(model, layers):
    made, images = deep(model, layers), catalogue_pixels()
    groups = made.extractor.features(images)
    activations = made.activations(groups)
    np.testing.assert_array_equal(pack_bits(activations['look'] >= 0), made.encode(images))
    calibrated = made.calibrated({'look': np.median(activations['look'], axis=0)})
    shares = unpack_bits(calibrated.encode(images), 32).mean(axis=0)
    np.testing.assert_allclose(shares, 0.5, atol=0.03)
    assert np.abs(unpack_bits(made.encode(images), 32).mean(axis=0) - 0.5).max() > 0.1
    assert calibrated.fingerprint != made.fingerprint


# Texts


CAPTIONS = [f'{"red" if i % 2 else "green"} {["car", "house", "tree"][i % 3]}' for i in range(39)] + [None]


@pytest.fixture(scope='module')
def worded():
    return fit(catalogue_pixels(), None, Training('itq'), LOOK, SIZE, captions=CAPTIONS)[0]


def test_a_text_has_the_same_code_alone_and_among_others(worded):
    codes, known = worded.encode_text(['red car', 'nothing', '?', 'HOUSE, green', ''])
    assert codes.dtype == np.uint8
    assert codes.shape == (5, 4)
    assert known.tolist() == [True, False, False, True, False]
    np.testing.assert_array_equal(worded.encode_text(['green house'])[0][0], codes[3])
    np.testing.assert_array_equal(codes[2], codes[4])
    assert worded.encode_text([])[0].shape == (0, 4)
    assert worded.training['text'] == {'images': 39, 'words': 5}


def test_texts_are_near_to_the_images_they_describe(worded):
    codes, images = worded.encode_text(CAPTIONS[:6])[0], worded.encode(catalogue_pixels())
    distances = np.array([[hamming(images[i : i + 1], code)[0] for i in range(39)] for code in codes])
    described = np.array([[CAPTIONS[i] == caption for i in range(39)] for caption in CAPTIONS[:6]])
    assert distances[described].mean() < distances[~described].mean() - 1


def test_words_are_saved_and_are_in_the_fingerprint(worded, tmp_path):
    worded.save(tmp_path / 'model')
    loaded = HashModel.load(tmp_path / 'model')
    assert loaded.fingerprint == worded.fingerprint
    assert loaded.text.vocabulary.tokens == worded.text.vocabulary.tokens
    for found, expected in zip(
        loaded.encode_text(['red', 'a tree']), worded.encode_text(['red', 'a tree']), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    vocabulary, head = worded.text.vocabulary, worded.text.heads['look']
    others = [
        None,
        dataclasses.replace(
            worded.text, vocabulary=dataclasses.replace(vocabulary, weights=nudged(vocabulary.weights))
        ),
        dataclasses.replace(worded.text, vocabulary=Vocabulary(vocabulary.tokens[::-1], vocabulary.weights)),
        dataclasses.replace(worded.text, heads={'look': dataclasses.replace(head, weights=nudged(head.weights))}),
        dataclasses.replace(worded.text, heads={'look': dataclasses.replace(head, offset=nudged(head.offset))}),
    ]
    fingerprints = {dataclasses.replace(worded, text=text).fingerprint for text in others}
    assert len(fingerprints) == 5
    assert worded.fingerprint not in fingerprints
    path = tmp_path / 'model' / MODEL_FILE
    path.write_text(path.read_text().replace(' tree ', ' bush '))
    with pytest.raises(InputError, match='is damaged'):
        HashModel.load(tmp_path / 'model')


def test_a_model_without_texts_says_so(model, worded):
    with pytest.raises(InputError, match='has learned no words'):
        model.encode_text(['red'])
    with pytest.raises(InputError, match='takes a list of texts'):
        worded.encode_text('red')


def test_captions_must_be_those_of_the_pictures():
    with pytest.raises(InputError, match='there are captions of 3 images; there are 40'):
        fit(catalogue_pixels(), None, Training('itq'), LOOK, SIZE, captions=['a', 'b', 'c'])


@pytest.mark.tf
@pytest.mark.parametrize('method', ['ridge', 'lda', 'csq'])
def test_texts_have_the_codes_that_heads_of_any_method_give(method):
    kinds = [['red', 'green', 'blue', 'gray'][i % 4] for i in range(40)]
    images = np.stack(
        [
            np.full((64, 64, 3), {'red': (200, 9, 9), 'green': (9, 200, 9), 'blue': (9, 9, 200)}.get(k, 99))
            for k in kinds
        ]
    )
    images = np.clip(images + np.random.default_rng(4).normal(0, 20, images.shape), 0, 255).astype(np.uint8)
    spec = CodeSpec(
        (Segment('kind', 16, ('color',)), Segment('text', 8, ('color', 'edges')), Segment('hidden', 8, ('color',)))
    )
    labels = {'kind': LabelLevel.from_values([[k] for k in kinds])}
    model, _ = fit(images, labels, Training(method, epochs=5, views=1), spec, SIZE)
    codes, found = model.encode_text(kinds[:4])[0], model.encode(images)
    for kind, code in zip(kinds[:4], codes, strict=True):
        distances = hamming(found, code)
        own = np.array([k == kind for k in kinds])
        assert distances[own].mean() < distances[~own].mean() - 4


def test_segments_of_any_name_keep_their_words(tmp_path):
    spec = CodeSpec((Segment('text', 8, ('color',)), Segment('hidden0', 8, ('color',))))
    model, _ = fit(catalogue_pixels(), None, Training('itq'), spec, SIZE, captions=CAPTIONS)
    model.save(tmp_path / 'model')
    loaded = HashModel.load(tmp_path / 'model')
    np.testing.assert_array_equal(loaded.encode(catalogue_pixels(3)), model.encode(catalogue_pixels(3)))
    np.testing.assert_array_equal(loaded.encode_text(['red'])[0], model.encode_text(['red'])[0])


def test_texts_keep_to_the_images_of_a_calibrated_model(worded):
    moved = {'look': np.full(32, 100, np.float32)}
    assert not worded.calibrated(moved).encode(catalogue_pixels(1)).any()
    assert not worded.calibrated(moved).encode_text(['red'])[0].any()


# The fingerprint


def test_everything_that_makes_a_code_is_in_the_fingerprint(model):
    projection, fusion = model.heads['look'], model.fusion
    extractor = dataclasses.replace(model.extractor, backbone_name='MobileNetV3Small')
    others = [
        with_projection(model, weights=nudged(projection.weights)),
        with_projection(model, offset=nudged(projection.offset)),
        with_projection(model, weights=projection.weights[:, ::-1]),
        with_projection(model, weights=projection.weights.reshape(32, -1)),  # the same bytes
        dataclasses.replace(model, fusion=Fusion({**fusion.mean, 'color': nudged(fusion.mean['color'])}, fusion.scale)),
        dataclasses.replace(model, fusion=Fusion(fusion.mean, {**fusion.scale, 'edges': fusion.scale['edges'] * 2})),
        dataclasses.replace(model, spec=CodeSpec((Segment('look', 32, ('color', 'edges')),))),
        dataclasses.replace(model, spec=CodeSpec((Segment('look', 31, ('edges', 'color')),))),
        dataclasses.replace(model, resizing=Resizing(64, 'pad')),
        dataclasses.replace(model, resizing=Resizing(65)),
        dataclasses.replace(model, backbone_digest='0' * 64),
        dataclasses.replace(model, extractor=extractor),
    ]
    fingerprints = [other.fingerprint for other in [model, *others]]
    assert len(set(fingerprints)) == len(fingerprints)
    assert all(len(f) == 64 and int(f, 16) >= 0 for f in fingerprints)


def test_names_of_segments_are_in_the_fingerprint(model):
    named = CodeSpec((Segment('other', 32, LOOK.segments[0].features),))
    renamed = dataclasses.replace(model, spec=named, heads={'other': model.heads['look']})
    np.testing.assert_array_equal(renamed.encode(catalogue_pixels(5)), model.encode(catalogue_pixels(5)))
    assert renamed.fingerprint != model.fingerprint


def test_what_makes_no_difference_to_a_code_is_not_in_the_fingerprint(model):
    other = dataclasses.replace(
        model,
        training={'images': 7, 'note': 'other'},
        extractor=dataclasses.replace(model.extractor, threads=1),
        heads=dict(reversed(model.heads.items())),
    )
    assert other.fingerprint == model.fingerprint
    fortran = with_projection(model, weights=np.asfortranarray(model.heads['look'].weights))
    assert fortran.fingerprint == model.fingerprint


@pytest.mark.process
def test_another_process_finds_the_same_fingerprint(model, tmp_path):
    model.save(tmp_path / 'model')
    code = (
        'import sys\n'
        'from hashing_model.model import HashModel\n'
        'model = HashModel.load(sys.argv[1])\n'
        'print(hash("grainhash"), model.fingerprint, model.encode_features is None)\n'
        'assert not {"tensorflow", "keras", "apache_beam"} & set(sys.modules)\n'
    )
    found = {}
    for seed, locale in (('1', 'C'), ('2', 'tr_TR.UTF-8')):
        environment = {**os.environ, 'PYTHONHASHSEED': seed, 'LC_ALL': locale, 'LANG': locale, 'PYTHONUTF8': '0'}
        command = [sys.executable, '-c', code, str(tmp_path / 'model')]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        hashed, found[seed] = done.stdout.split()[:2]
        found[f'hash {seed}'] = hashed
    assert found['1'] == found['2'] == model.fingerprint
    assert found['hash 1'] != found['hash 2']


# Damage


def test_an_array_file_that_is_cut_short_does_not_load(model, tmp_path):
    model.save(tmp_path)
    path = tmp_path / ARRAYS_FILE
    content = path.read_bytes()
    for length in [*range(0, 40, 7), len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r'is not a readable model|is damaged'):
            HashModel.load(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match='is not a readable model'):
        HashModel.load(tmp_path)


def test_an_array_file_with_a_flipped_bit_does_not_load_as_another_model(tmp_path):
    model = fit_look(catalogue_pixels(3), 'random', CodeSpec((Segment('look', 2, ('shape',)),)))
    model.save(tmp_path)
    path = tmp_path / ARRAYS_FILE
    content = path.read_bytes()
    data = content.index(model.heads['look'].weights.tobytes())
    refused = []
    for place in {*range(0, len(content), 5), data, data + 7}:
        damaged = bytearray(content)
        damaged[place] ^= 0x11
        path.write_bytes(damaged)
        try:
            assert HashModel.load(tmp_path).fingerprint == model.fingerprint  # a byte that the archive never reads
        except InputError:
            refused.append(place)
    assert {data, data + 7} <= set(refused)
    assert len(refused) > 0.6 * len(content) / 5


def test_arrays_of_another_model_do_not_load(model, tmp_path):
    model.save(tmp_path / 'a')
    look_model(seed=1).save(tmp_path / 'b')
    shutil.copy(tmp_path / 'b' / ARRAYS_FILE, tmp_path / 'a')
    with pytest.raises(InputError, match='is damaged: its content does not match the fingerprint'):
        HashModel.load(tmp_path / 'a')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'format_version': 2}, 'has model format 2 and features 2; this grainhash reads 1 and 2: train it again'),
        ({'features_version': 0}, 'has model format 1 and features 0'),
        ({'resizing': {'size': 64, 'rule': 'crop'}}, 'is damaged'),
        ({'resizing': {'size': 64, 'rule': 'stretch'}}, "not a readable model: resizing rule 'stretch'"),
        ({'resizing': None}, 'not a readable model'),
        ({'spec': 7}, 'not a readable model'),
        ({'spec': []}, 'not a readable model'),
        ({'groups': ['color']}, 'is damaged'),
        ({'spec': [{'name': 'look', 'bits': 'many', 'features': []}]}, 'not a readable model'),
        ({'spec': [{'name': 'coarse', 'bits': 32, 'features': ['edges', 'color']}]}, 'not a readable model'),
        ({'spec': [{'name': 'look', 'bits': 31, 'features': ['edges', 'color']}]}, 'is damaged'),
        ({'backbone_digest': 'x'}, 'is damaged'),
        ({'fingerprint': '0' * 64}, 'is damaged'),
    ],
)
def test_a_changed_description_does_not_load(model, tmp_path, change, message):
    model.save(tmp_path)
    described = json.loads((tmp_path / MODEL_FILE).read_text())
    assert described.keys() >= change.keys()
    (tmp_path / MODEL_FILE).write_text(json.dumps({**described, **change}))
    with pytest.raises(InputError, match=message):
        HashModel.load(tmp_path)


@pytest.mark.parametrize('missing', ['format_version', 'spec', 'resizing', 'backbone', 'fingerprint', 'training'])
def test_a_description_with_a_gap_does_not_load(model, tmp_path, missing):
    model.save(tmp_path)
    described = json.loads((tmp_path / MODEL_FILE).read_text())
    del described[missing]
    (tmp_path / MODEL_FILE).write_text(json.dumps(described))
    with pytest.raises(InputError, match=f"is not a (readable model|model description): '{missing}'"):
        HashModel.load(tmp_path)


@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'null', b'\xff\xfe', b'7'])
def test_a_description_of_another_kind_does_not_load(model, tmp_path, content):
    model.save(tmp_path)
    (tmp_path / MODEL_FILE).write_bytes(content)
    with pytest.raises(InputError, match=r'model\.json is not a model description'):
        HashModel.load(tmp_path)


def test_a_folder_without_a_model_is_told_so(tmp_path):
    for folder in (tmp_path, tmp_path / 'none'):
        with pytest.raises(InputError, match=r'is not a model: there is no .*model\.json'):
            HashModel.load(folder)


# With a network


@pytest.mark.tf
def test_a_model_with_its_own_network_is_self_contained(tmp_path):
    path = small_network(tmp_path / 'here' / 'mine.keras')
    elsewhere = tmp_path / 'there' / 'below' / 'other-name.keras'
    elsewhere.parent.mkdir(parents=True)
    shutil.copy(path, elsewhere)
    spec = CodeSpec((Segment('coarse', 6, ('top',)), Segment('look', 8, ('low', 'color'))))
    images = catalogue_pixels(20)
    model, moved = (fit_on(images, spec, p) for p in (path, elsewhere))
    assert model.fingerprint == moved.fingerprint
    other = fit_on(images, spec, small_network(tmp_path / 'other' / 'mine.keras', seed=1))
    assert other.backbone_digest != model.backbone_digest
    codes = model.encode(images)
    model.save(tmp_path / 'model')
    for folder in ('here', 'there', 'other'):
        shutil.rmtree(tmp_path / folder)
    (tmp_path / 'model').rename(tmp_path / 'renamed')
    loaded = HashModel.load(tmp_path / 'renamed')
    loaded.check_backbone()
    np.testing.assert_array_equal(loaded.encode(images), codes)
    assert loaded.fingerprint == model.fingerprint
    loaded.save(tmp_path / 'copy')
    loaded.save(tmp_path / 'renamed')  # over itself
    for folder in ('copy', 'renamed'):
        again = HashModel.load(tmp_path / folder)
        assert again.fingerprint == model.fingerprint
        np.testing.assert_array_equal(again.encode(images), codes)


@pytest.mark.tf
def test_other_weights_than_those_it_was_fitted_on_are_refused(tmp_path):
    spec = CodeSpec((Segment('coarse', 6, ('top',)),))
    small_network(tmp_path / 'mine.keras')
    fit_on(catalogue_pixels(10), spec, tmp_path / 'mine.keras').save(tmp_path / 'model')
    shutil.copy(small_network(tmp_path / 'other.keras', seed=1), tmp_path / 'model' / 'backbone.keras')
    with pytest.raises(InputError, match=r'the weights of backbone\.keras on this machine are not those'):
        HashModel.load(tmp_path / 'model').check_backbone()


@pytest.mark.tf
def test_a_model_with_the_built_in_network_comes_back(tmp_path):
    spec = CodeSpec((Segment('coarse', 8, ('top',)),))
    images = catalogue_pixels(12)
    model = fit_look(images, spec=spec)
    model.save(tmp_path)
    assert files_of(tmp_path) == [ARRAYS_FILE, MODEL_FILE]  # the weights come with a package
    loaded = HashModel.load(tmp_path, threads=2)
    loaded.check_backbone()
    codes = loaded.encode(images)
    np.testing.assert_array_equal(codes, model.encode(images))
    np.testing.assert_array_equal(loaded.encode(images[5:6]), codes[5:6])
    wrong = dataclasses.replace(model, backbone_digest='0' * 64)
    with pytest.raises(InputError, match='the weights of efficientnet_lite0 on this machine are not those'):
        wrong.check_backbone()
