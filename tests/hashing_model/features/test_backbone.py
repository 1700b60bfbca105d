"""The backbone: what its taps are, that a batch changes nothing, and how other networks take its place."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import skimage.data

from hashing_model.errors import InputError
from hashing_model.features import BACKBONE_FEATURES
from hashing_model.features.backbone import SAVED, load_backbone
from hashing_model.features.efficientnet_lite import efficientnet_lite, load_tensors
from hashing_model.features.keras_model import choose_taps
from hashing_model.features.torch_file import tensors_digest
from hashing_model.keras_runtime import import_keras

pytestmark = pytest.mark.tf

LITE0 = 'efficientnet_lite0'
SIDE = 64


@pytest.fixture(scope='module')
def lite0():
    return load_backbone(LITE0, SIDE)


@pytest.fixture(scope='module')
def images():
    """Forty different cuts of four photographs, uint8 [40, 64, 64, 3]."""
    photographs = [getattr(skimage.data, name)() for name in ('astronaut', 'chelsea', 'coffee', 'rocket')]
    cuts = [photo[i * 9 :, i * 11 :] for i in range(10) for photo in photographs]
    return np.stack([cv2.resize(cut, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for cut in cuts])


def small_model(side=32, seed=0):
    """A network of four sizes with random weights."""
    keras = import_keras()
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Conv2D(4 + i, 3, 2, 'same', activation='relu', name=f'conv{i}') for i in range(4)]
    return keras.Sequential([keras.Input((side, side, 3)), keras.layers.Rescaling(1 / 255), *layers])


def small_images(count=5, side=32):
    return np.random.default_rng(1).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def assert_same_taps(a, b, images):
    for tap, values in a.taps(images).items():
        np.testing.assert_array_equal(values, b.taps(images)[tap])


def test_taps_have_their_shapes(lite0, images):
    taps = lite0.taps(images)
    assert lite0.dims == {'low': 48, 'mid': 224, 'high': 384, 'top': 1280}
    assert tuple(taps) == BACKBONE_FEATURES
    for tap, values in taps.items():
        assert values.shape == (40, lite0.dims[tap])
        assert values.dtype == np.float32
        assert np.isfinite(values).all()


def test_taps_equal_means_and_deviations_of_the_activations(lite0, images):
    keras = import_keras()
    network = efficientnet_lite(LITE0, load_tensors(LITE0), include_top=False, input_size=SIDE)
    layers = {'low': 'stage1', 'mid': 'stage4', 'high': 'stage5', 'top': 'head_relu6'}
    tapped = keras.Model(network.input, {tap: network.get_layer(layer).output for tap, layer in layers.items()})
    activations = {tap: np.asarray(x) for tap, x in tapped(images[:6].astype(np.float32)).items()}
    assert [activations[tap].shape[1] for tap in BACKBONE_FEATURES] == [16, 4, 2, 2]
    taps = lite0.taps(images[:6])
    np.testing.assert_allclose(taps['top'], activations['top'].mean((1, 2)), atol=1e-4)
    for tap in ('low', 'mid', 'high'):
        statistics = np.concatenate([activations[tap].mean((1, 2)), activations[tap].std((1, 2))], axis=1)
        np.testing.assert_allclose(taps[tap], statistics, rtol=1e-4, atol=1e-3)


def test_an_image_has_the_same_taps_in_any_batch(lite0, images):
    together = lite0.taps(images)
    assert all(len(np.unique(values, axis=0)) == len(images) for values in together.values())  # not trivial
    for count in (1, 2, 3, 8, 31, 33):
        for tap, values in lite0.taps(images[:count]).items():
            np.testing.assert_array_equal(values, together[tap][:count])
    for tap, values in lite0.taps(images[::-1]).items():
        np.testing.assert_array_equal(values, together[tap][::-1])
    for i in (0, 17, 39):
        for tap, values in lite0.taps(images[i : i + 1]).items():
            np.testing.assert_array_equal(values[0], together[tap][i])


def test_no_images_and_flat_images(lite0):
    none = lite0.taps(np.empty((0, SIDE, SIDE, 3), np.uint8))
    assert {tap: values.shape for tap, values in none.items()} == {tap: (0, d) for tap, d in lite0.dims.items()}
    for value in (0, 255):
        taps = lite0.taps(np.full((1, SIDE, SIDE, 3), value, np.uint8))
        assert all(np.isfinite(values).all() for values in taps.values())


def test_a_copy_is_nearer_than_another_photograph(lite0, images):
    originals = images[:4]
    copies = np.stack([cv2.GaussianBlur(image, (3, 3), 0) for image in originals])
    for tap, values in lite0.taps(originals).items():
        distances = np.linalg.norm(values[:, None] - lite0.taps(copies)[tap], axis=2)
        np.testing.assert_array_equal(distances.argmin(axis=1), np.arange(4), err_msg=tap)


def test_other_images_are_refused(lite0):
    with pytest.raises(InputError, match='32 x 48 px; the backbone efficientnet_lite0 reads 64 x 64 px'):
        lite0.taps(np.zeros((1, 48, 32, 3), np.uint8))
    with pytest.raises(InputError, match='float32'):
        lite0.taps(np.zeros((1, SIDE, SIDE, 3), np.float32))


def test_lite0_is_known_by_its_weights_and_saves_nothing(lite0, tmp_path):
    assert lite0.name == LITE0
    assert lite0.input_size == SIDE
    assert lite0.digest == tensors_digest(load_tensors(LITE0))
    lite0.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


# Other networks.


def test_a_keras_file_is_loaded_saved_and_loaded_again(tmp_path):
    small_model().save(tmp_path / 'mine.keras')
    loaded = load_backbone(str(tmp_path / 'mine.keras'), 32)
    assert loaded.name == 'mine.keras'
    assert loaded.dims == {'low': 2 * 5, 'mid': 2 * 5, 'high': 2 * 6, 'top': 7}
    loaded.save(tmp_path / 'model')
    assert [path.name for path in (tmp_path / 'model').iterdir()] == [SAVED]
    (tmp_path / 'mine.keras').unlink()
    again = load_backbone(loaded.name, 32, folder=tmp_path / 'model')  # the model folder is all a worker needs
    assert (again.name, again.dims, again.digest) == (loaded.name, loaded.dims, loaded.digest)
    assert_same_taps(loaded, again, small_images())


def test_the_digest_follows_the_weights(tmp_path):
    digests = []
    for seed in (0, 0, 1):
        small_model(seed=seed).save(tmp_path / 'mine.keras')
        digests.append(load_backbone(str(tmp_path / 'mine.keras'), 32).digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_model_for_any_size_takes_the_size_asked_for(tmp_path):
    small_model(side=None).save(tmp_path / 'any.keras')
    small_model(side=48).save(tmp_path / 'fixed.keras')
    any_size, fixed = (load_backbone(str(tmp_path / name), 48) for name in ('any.keras', 'fixed.keras'))
    assert any_size.digest == fixed.digest
    assert_same_taps(any_size, fixed, small_images(3, 48))
    with pytest.raises(InputError, match=r'takes images \[48, 48, 3\], not \[32, 32, 3\]'):
        load_backbone(str(tmp_path / 'fixed.keras'), 32)


def test_unfit_keras_files_are_refused(tmp_path):
    keras = import_keras()
    path = tmp_path / 'bad.keras'
    with pytest.raises(InputError, match='there is no backbone'):
        load_backbone(str(path), 32)
    path.write_bytes(b'PK nothing')
    with pytest.raises(InputError, match='cannot be loaded as a Keras model'):
        load_backbone(str(path), 32)
    image = keras.Input((32, 32, 3))
    keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(image))).save(path)
    with pytest.raises(InputError, match='no convolutional activation'):
        load_backbone(str(path), 32)
    other = keras.Input((32, 32, 3))
    keras.Model([image, other], keras.layers.Add()([image, other])).save(path)
    with pytest.raises(InputError, match='one input'):
        load_backbone(str(path), 32)
    keras.Sequential([image, keras.layers.Lambda(lambda x: x * 2)]).save(path)
    with pytest.raises(InputError, match='cannot be loaded'):  # it would run code out of the file
        load_backbone(str(path), 32)


def test_taps_of_an_application_lie_at_a_quarter_an_eighth_and_a_sixteenth():
    make = import_keras().applications.MobileNetV3Small
    headless = choose_taps(make(weights=None, include_top=False, input_shape=(96, 96, 3)), 'x')
    assert [tuple(headless[tap].shape[1:]) for tap in BACKBONE_FEATURES] == [
        (24, 24, 72),
        (12, 12, 96),
        (6, 6, 288),
        (3, 3, 576),
    ]
    whole = choose_taps(make(weights=None, include_top=True, input_shape=(96, 96, 3)), 'x')
    assert whole['top'].shape[1:3] == (3, 3)  # neither the squeeze layers' nor the classifier's 1 x 1


def test_an_application_is_preprocessed_saved_and_needs_no_second_download(tmp_path, monkeypatch):
    applications = import_keras().applications

    def untrained(weights, **options):
        assert weights == 'imagenet'
        return mobile_net(weights=None, alpha=0.25, **options)

    mobile_net = applications.MobileNet
    untrained.__module__ = mobile_net.__module__  # where its preprocess_input is found
    monkeypatch.setattr(applications, 'MobileNet', untrained)
    downloaded = load_backbone('MobileNet', 32)
    downloaded.save(tmp_path)
    tapped = import_keras().Model(downloaded.model.input, downloaded.model.output)
    scaled = small_images().astype(np.float32) / 127.5 - 1  # MobileNet wants -1 to 1
    expected = np.asarray(tapped(scaled)).mean((1, 2))
    np.testing.assert_allclose(downloaded.taps(small_images())['top'], expected, atol=1e-5)

    def offline(**options):
        raise Exception('URL fetch failure')  # as Keras does

    monkeypatch.setattr(applications, 'MobileNet', offline)
    offline.__module__ = mobile_net.__module__
    with pytest.raises(InputError, match=r'could not be downloaded; efficientnet_lite0 needs no network.*URL fetch'):
        load_backbone('MobileNet', 32)
    again = load_backbone('MobileNet', 32, folder=tmp_path)
    assert again.digest == downloaded.digest
    assert_same_taps(downloaded, again, small_images())


def test_unknown_names_sizes_and_threads_are_refused():
    with pytest.raises(InputError, match=r"unknown backbone 'VGG99'; there are efficientnet_lite0.*MobileNetV3Small"):
        load_backbone('VGG99', 96)
    with pytest.raises(InputError, match='unknown backbone'):
        load_backbone('resnet', 96)  # a module of keras.applications, no model
    with pytest.raises(InputError, match='32 px is the smallest'):
        load_backbone(LITE0, 16)
    with pytest.raises(InputError, match='threads is 0'):
        load_backbone(LITE0, 96, threads=0)


def test_threads_come_too_late_in_a_process_that_has_begun(lite0, images, tmp_path, caplog):
    lite0.taps(images[:1])
    small_model().save(tmp_path / 'mine.keras')
    load_backbone(str(tmp_path / 'mine.keras'), 32, threads=61)
    assert '61 asked for' in caplog.text


@pytest.mark.process
def test_a_new_process_starts_quietly_with_the_threads_asked_for(tmp_path):
    small_model().save(tmp_path / 'mine.keras')
    code = (
        'import sys, numpy as np\n'
        'from hashing_model.features.backbone import load_backbone\n'
        f'load_backbone({str(tmp_path / "mine.keras")!r}, 32, threads=1).taps(np.zeros((1, 32, 32, 3), np.uint8))\n'
        'import tensorflow as tf\n'
        'print(tf.config.threading.get_intra_op_parallelism_threads())\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == '1\n'
    assert done.stderr == ''
