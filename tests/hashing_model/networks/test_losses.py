"""Losses against plain numpy written from the papers' formulas, their gradients against differences."""

import subprocess
import sys

import numpy as np
import pytest

from hashing_model.networks.losses import (
    balance_loss,
    contrastive_loss,
    csq_loss,
    decorrelation_loss,
    greedy_loss,
    greedy_sign,
    image_centers,
    ortho_loss,
)

pytestmark = pytest.mark.tf

N, C, K = 7, 5, 12


@pytest.fixture(scope='module', autouse=True)
def tensorflow():
    """Loaded when the first test asks for it, not when tests are collected."""
    global tf
    import tensorflow as tf


def rng(seed=0):
    return np.random.default_rng(seed)


def signs(*shape, seed=0):
    return rng(seed).choice(np.array([-1, 1], np.int8), shape)


def normal(*shape, seed=0):
    return rng(seed).standard_normal(shape).astype(np.float32)


def targets_of(*labels):
    """Rows y / sum(y) for tuples of classes; zeros for the empty tuple."""
    out = np.zeros((len(labels), C), np.float32)
    for row, classes in zip(out, labels, strict=True):
        for c in classes:
            row[c] = 1 / len(classes)
    return out


MIXED = targets_of((0,), (), (1, 3), (4,), (0, 1, 2), (), (2,))


def gradient(loss, x):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(x)
    return tape.gradient(value, x).numpy()


def slopes(loss, x, step=1e-4):
    """The gradient of a plain function of a float64 array, by central differences."""
    out = np.zeros(x.shape)
    for i in np.ndindex(*x.shape):
        up, down = x.astype(np.float64), x.astype(np.float64)
        up[i] += step
        down[i] -= step
        out[i] = (loss(up) - loss(down)) / (2 * step)
    return out


# Plain references: loops over images, each formula as its paper has it


def plain_cross_entropy(logits, y):
    return sum(-p * (z - np.log(np.exp(logits).sum())) for p, z in zip(y, logits, strict=True))


def plain_ortho(v, centers, targets, margin, scale):
    losses = []
    for x, y in zip(v.astype(np.float64), targets, strict=True):
        if y.any():
            cosines = [x @ o / np.linalg.norm(x) / np.linalg.norm(o) for o in centers.astype(float)]
            losses.append(
                plain_cross_entropy([scale * (c - margin * (p > 0)) for c, p in zip(cosines, y, strict=True)], y)
            )
    return np.mean(losses)


def plain_csq(u, own, targets, quantization):
    losses = []
    for x, c, y in zip(u.astype(np.float64), own, targets, strict=True):
        if y.any():
            p, t = (1 + x) / 2, (1 + c) / 2
            losses.append(np.mean(-t * np.log(p) - (1 - t) * np.log(1 - p)) + quantization * np.mean((abs(x) - 1) ** 2))
    return np.mean(losses)


def plain_greedy(logits, targets, h, alpha):
    losses = []
    for z, y, x in zip(logits.astype(np.float64), targets, h.astype(np.float64), strict=True):
        if y.any():
            losses.append(plain_cross_entropy(z, y) + alpha * np.mean(abs(abs(x) - 1) ** 3))
    return np.mean(losses)


def plain_contrast(z_a, z_b, temperature):
    z = np.concatenate([z_a, z_b])
    n, losses = len(z_a), []
    for i in range(2 * n):
        cosines = [z[i] @ z[j] / np.linalg.norm(z[i]) / np.linalg.norm(z[j]) for j in range(2 * n)]
        others = sum(np.exp(cosines[j] / temperature) for j in range(2 * n) if j != i)
        losses.append(-np.log(np.exp(cosines[(i + n) % (2 * n)] / temperature) / others))
    return np.mean(losses)


def plain_kl(p, q):
    return np.mean(np.sum(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)), axis=1))


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


# OrthoHash


@pytest.mark.parametrize(('margin', 'scale'), [(0.3, 3.4), (0.0, 1.0), (0.4, 12.0)])
def test_ortho_is_the_papers_formula(margin, scale):
    v, centers = normal(N, K), signs(C, K)
    got = float(ortho_loss(v, centers, MIXED, margin, scale))
    assert got == pytest.approx(plain_ortho(v, centers, MIXED, margin, scale), rel=1e-5)
    np.testing.assert_allclose(
        gradient(lambda x: ortho_loss(x, centers, MIXED, margin, scale), v),
        slopes(lambda x: plain_ortho(x, centers, MIXED, margin, scale), v),
        atol=1e-5,
    )


def test_ortho_of_perfect_codes_is_near_zero_and_the_margin_makes_it_harder():
    centers = 2 * np.eye(K)[:C] - 1
    v = (5 * centers[[0, 1, 4]]).astype(np.float32)
    targets = targets_of((0,), (1,), (4,))
    easy, hard = (float(ortho_loss(v, centers, targets, m, 60.0)) for m in (0.0, 0.3))
    assert easy < 1e-6
    assert hard > 10 * easy
    assert float(ortho_loss(-v, centers, targets, 0.0, 60.0)) > 1


# CSQ


def test_the_centre_of_an_image_is_the_sign_of_the_sum_of_its_classes():
    centers = signs(C, 400)
    got = np.asarray(image_centers(MIXED, centers))
    assert got.shape == (N, 400)
    assert set(np.unique(got)) == {-1, 1}
    np.testing.assert_array_equal(got[[0, 3, 6]], centers[[0, 4, 2]])
    np.testing.assert_array_equal(got[4], np.sign(centers[[0, 1, 2]].astype(int).sum(axis=0)))
    agree = centers[1] == centers[3]
    np.testing.assert_array_equal(got[2][agree], centers[1][agree])


def test_ties_are_broken_by_one_random_code():
    centers = np.repeat(np.array([[1], [-1], [1], [-1], [1]], np.int8), 2000, axis=1)
    tied = np.asarray(image_centers(targets_of((0, 1), (2, 3), (0, 1, 2, 3), (0, 1, 4)), centers))
    np.testing.assert_array_equal(tied[0], tied[1])
    np.testing.assert_array_equal(tied[0], tied[2])
    assert abs(tied[0].mean()) < 0.1
    assert tied[3].min() == 1
    np.testing.assert_array_equal(tied[0], np.asarray(image_centers(targets_of((0, 3)), centers))[0])


def test_csq_by_hand():
    """Two bits: -(log .75 + log .75) / 2 + .1 (.25 + .25) / 2, and the same with a wrong bit."""
    centers = np.array([[1, -1], [1, 1], [1, 1], [1, 1], [1, 1]], np.int8)
    right = float(csq_loss(np.array([[0.5, -0.5]], np.float32), centers, targets_of((0,)), 0.1))
    assert right == pytest.approx(0.28768207 + 0.025, rel=1e-5)
    wrong = float(csq_loss(np.array([[0.5, 0.5]], np.float32), centers, targets_of((0,)), 0.1))
    assert wrong == pytest.approx((0.28768207 + 1.38629436) / 2 + 0.025, rel=1e-5)


@pytest.mark.parametrize('quantization', [0.0, 1e-4, 0.5])
def test_csq_is_the_papers_formula(quantization):
    u, centers = np.tanh(normal(N, K)), signs(C, K)
    own = np.asarray(image_centers(MIXED, centers), np.float64)
    got = float(csq_loss(u, centers, MIXED, quantization))
    assert got == pytest.approx(plain_csq(u, own, MIXED, quantization), rel=1e-5)
    np.testing.assert_allclose(
        gradient(lambda x: csq_loss(x, centers, MIXED, quantization), u),
        slopes(lambda x: plain_csq(x, own, MIXED, quantization), u, 1e-6),
        rtol=1e-3,
        atol=1e-5,
    )


def test_csq_of_perfect_codes_is_zero_and_of_wrong_ones_finite():
    centers = signs(C, K)
    targets = targets_of((0,), (3,))
    perfect = centers[[0, 3]].astype(np.float32)
    assert float(csq_loss(perfect, centers, targets)) == 0
    assert 10 < float(csq_loss(-perfect, centers, targets)) < 20


# GreedyHash


def test_the_greedy_sign_is_exact_and_its_gradient_that_of_its_input():
    h = np.array([-1e9, -3, -0.3, -1e-30, -0.0, 0, 1e-30, 0.7, 3, 1e9], np.float32)
    np.testing.assert_array_equal(greedy_sign(h), [-1, -1, -1, -1, 1, 1, 1, 1, 1, 1])
    weights = normal(len(h))
    np.testing.assert_array_equal(gradient(lambda x: tf.reduce_sum(greedy_sign(x) * weights), h), weights)


@pytest.mark.parametrize('alpha', [0.0, 0.1, 1.0])
def test_greedy_is_the_papers_formula(alpha):
    logits, h = normal(N, C), 2 * normal(N, K, seed=1)
    got = float(greedy_loss(logits, MIXED, h, alpha))
    assert got == pytest.approx(plain_greedy(logits, MIXED, h, alpha), rel=1e-5)
    np.testing.assert_allclose(
        gradient(lambda x: greedy_loss(logits, MIXED, x, alpha), h),
        slopes(lambda x: plain_greedy(logits, MIXED, x, alpha), h),
        atol=1e-5,
    )


def test_greedy_of_perfect_codes_is_near_zero():
    targets = targets_of((2,), (4,))
    assert float(greedy_loss(100 * targets, targets, signs(2, K).astype(np.float32))) < 1e-6


def test_a_classifier_learns_through_the_greedy_sign():
    """d/dh of CE(sign(h) W): the gradient at the codes, passed to h."""
    h, weights = normal(N, K), normal(K, C, seed=1)
    got = gradient(lambda x: greedy_loss(greedy_sign(x) @ weights, MIXED, x, 0.0), h)
    codes = np.where(h >= 0, 1.0, -1.0)
    at_codes = slopes(lambda b: plain_greedy(b @ weights, MIXED, b, 0.0), codes)
    np.testing.assert_allclose(got, at_codes, atol=1e-4)


# CIBHash


@pytest.mark.parametrize(('temperature', 'beta'), [(0.3, 1e-3), (1.0, 0.0), (0.3, 2.0)])
def test_contrastive_is_the_papers_formula(temperature, beta):
    a, b = 2 * normal(N, K), 2 * normal(N, K, seed=1)
    p, q = sigmoid(a), sigmoid(b)
    z_a, z_b = (np.where(x >= 0.5, 1.0, -1.0) for x in (p, q))
    expected = plain_contrast(z_a, z_b, temperature) + beta / 2 * (plain_kl(p, q) + plain_kl(q, p))
    assert float(contrastive_loss(a, b, temperature, beta)) == pytest.approx(expected, rel=1e-5)


def test_the_divergence_moves_each_view_only_as_the_first():
    a, b = normal(N, K), normal(N, K, seed=1)
    with_it = gradient(lambda x: contrastive_loss(x, b, 0.3, 2.0), a)
    without = gradient(lambda x: contrastive_loss(x, b, 0.3, 0.0), a)
    expected = slopes(lambda x: plain_kl(sigmoid(x), sigmoid(b)), a)  # and nothing of KL(b | a)
    np.testing.assert_allclose(with_it - without, expected, atol=1e-5)


def test_the_contrast_reaches_the_logits_through_sign_and_sigmoid():
    a, b = normal(4, 6), normal(4, 6, seed=1)
    z_a, z_b = (np.where(x >= 0, 1.0, -1.0) for x in (a, b))

    def inner(z):  # z / sqrt(K) as the unit code: its own length is not differentiated
        codes = np.concatenate([z, z_b]) / np.sqrt(6)
        similar = codes @ codes.T / 0.3
        np.fill_diagonal(similar, -np.inf)
        return np.mean(np.log(np.exp(similar).sum(axis=1)) - similar[np.arange(8), np.arange(8) ^ 4])

    expected = slopes(inner, z_a) * sigmoid(a) * (1 - sigmoid(a))
    np.testing.assert_allclose(gradient(lambda x: contrastive_loss(x, b, 0.3, 0.0), a), expected, atol=1e-5)


def test_contrastive_of_perfect_views_is_near_zero_and_symmetric():
    codes = 10 * (2 * np.eye(K, dtype=np.float32)[:4] - 1) * signs(1, K)
    assert float(contrastive_loss(codes, codes, 0.02, 1e-3)) < 1e-5
    a, b = normal(N, K), normal(N, K, seed=1)
    assert float(contrastive_loss(a, b)) == pytest.approx(float(contrastive_loss(b, a)), rel=1e-5)
    assert float(contrastive_loss(a[:1], b[:1], beta=0.0)) == pytest.approx(0, abs=1e-6)  # nothing to confuse


# Balance and decorrelation


def test_balance_is_the_mean_square_of_the_bits_means():
    u = np.tanh(normal(N, K))
    assert float(balance_loss(u)) == pytest.approx(np.mean([u[:, k].mean() ** 2 for k in range(K)]), rel=1e-5)
    assert float(balance_loss(np.concatenate([u, -u]))) == pytest.approx(0, abs=1e-12)
    assert float(balance_loss(np.ones((3, K), np.float32))) == 1


def test_decorrelation_is_the_mean_square_off_the_diagonal():
    u = np.tanh(normal(N, K))
    pairs = [np.mean(u[:, j] * u[:, k]) ** 2 for j in range(K) for k in range(K) if j != k]
    assert float(decorrelation_loss(u)) == pytest.approx(np.mean(pairs), rel=1e-5)
    hadamard = np.array([[1, 1], [1, -1]], np.float32)
    assert float(decorrelation_loss(np.kron(hadamard, hadamard))) == 0
    assert float(decorrelation_loss(np.ones((3, K), np.float32))) == pytest.approx(1)
    assert float(decorrelation_loss(u[:, :1])) == 0  # one bit has no pair


# All


LOSSES = {
    'ortho': lambda x, y: ortho_loss(x, signs(C, K), y, 0.3, 3.5),
    'csq': lambda x, y: csq_loss(tf.tanh(x), signs(C, K), y),
    'greedy': lambda x, y: greedy_loss(x[:, :C], y, x),
}


@pytest.mark.parametrize('name', LOSSES)
def test_images_without_a_label_change_nothing(name):
    x = normal(N, K)
    labelled = MIXED.any(axis=1)
    alone = float(LOSSES[name](x[labelled], MIXED[labelled]))
    moved = np.where(labelled[:, None], x, 50)
    assert float(LOSSES[name](x, MIXED)) == pytest.approx(alone, rel=1e-6)
    assert float(LOSSES[name](moved, MIXED)) == pytest.approx(alone, rel=1e-6)
    slope = gradient(lambda v: LOSSES[name](v, MIXED), x)
    assert not slope[~labelled].any()
    assert slope[labelled].any(axis=1).all()


@pytest.mark.parametrize('name', LOSSES)
def test_a_batch_without_labels_costs_nothing(name):
    x = normal(N, K)
    assert float(LOSSES[name](x, np.zeros_like(MIXED))) == 0
    assert not gradient(lambda v: LOSSES[name](v, np.zeros_like(MIXED)), x).any()


@pytest.mark.parametrize(
    'loss',
    [
        *(lambda x, f=f: f(x, MIXED) for f in LOSSES.values()),
        lambda x: csq_loss(tf.sign(x) + 0 * x, signs(C, K), MIXED),
        lambda x: csq_loss(greedy_sign(x), signs(C, K), MIXED),
        lambda x: contrastive_loss(x, tf.reverse(x, [0])),
        lambda x: contrastive_loss(x, -x),
        lambda x: balance_loss(tf.tanh(x)),
        lambda x: decorrelation_loss(tf.tanh(x)),
    ],
)
@pytest.mark.parametrize('size', [0.0, 1e-12, 100.0, 1e4])
def test_saturated_and_vanishing_input_gives_numbers(loss, size):
    x = (size * normal(N, K)).astype(np.float32)
    assert np.isfinite(float(loss(tf.constant(x))))
    assert np.isfinite(gradient(loss, x)).all()


@pytest.mark.parametrize('name', [*LOSSES, 'contrastive', 'balance', 'decorrelation'])
def test_losses_run_in_a_graph_whose_batch_is_not_known(name):
    others = {
        'contrastive': lambda x, y: contrastive_loss(x, 2 * x + 1),
        'balance': lambda x, y: balance_loss(tf.tanh(x)),
        'decorrelation': lambda x, y: decorrelation_loss(tf.tanh(x)),
    }
    loss = {**LOSSES, **others}[name]
    shapes = [tf.TensorSpec([None, K], tf.float32), tf.TensorSpec([None, C], tf.float32)]
    for jit in (False, True):
        compiled = tf.function(loss, input_signature=shapes, jit_compile=jit)
        assert float(compiled(normal(N, K), MIXED)) == pytest.approx(float(loss(normal(N, K), MIXED)), rel=1e-4)


@pytest.mark.process
def test_importing_the_losses_loads_no_keras():
    code = 'import sys, hashing_model.networks.losses; assert not {"keras", "tensorflow"} & set(sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True)
