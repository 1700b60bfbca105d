"""Losses that train the hash layer, of Keras tensors, and the straight-through sign.

N is the number of images, K of bits, C of classes. Targets are float [N, C], with rows y / sum(y), or zero where an
image has no label; such rows count neither in sums nor in means. Every loss is a scalar. For finite input, it and its
gradient are finite. Tensors may be given as numpy arrays. The target codes come from `heads/target_codes.py`; the
caller chooses what a loss trains.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Tensor = Any  # a tensor of Keras's backend

_LEAST = 1e-7  # of a probability in a logarithm; float32 resolves about as much


def ortho_loss(v: Tensor, centers: Tensor, targets: Tensor, margin: float, scale: float) -> Tensor:
    """OrthoHash with a cosine margin (Hoe et al. 2021): cross-entropy of the cosines between v and all centres.

    Logits scale (cos(v, o_c) - margin [class c is the image's]); several classes of an image share its target.

    Args:
        v: [N, K], the hash layer's output after batch normalisation, before the sign.
        centers: [C, K] of -1 and +1.
        targets: [N, C].
        margin: 0.2 to 0.4, of a cosine.
        scale: of the logits, such as sqrt(K).
    """
    from keras import ops

    squares = ops.maximum(ops.sum(v**2, axis=1, keepdims=True), _LEAST**2)  # a norm has no gradient at 0
    centers = ops.transpose(ops.cast(centers, v.dtype)) / math.sqrt(centers.shape[1])
    cosines = ops.matmul(v * ops.rsqrt(squares), centers)
    logits = scale * (cosines - margin * ops.cast(targets > 0, cosines.dtype))
    return _labelled_mean(_cross_entropy(logits, targets), targets)


def image_centers(targets: Tensor, centers: Tensor) -> Tensor:
    """The code that each image is pulled to: the sign of the sum of its classes' centres (Yuan et al. 2020).

    Where centres cancel, all images take the sign of one fixed random code.

    Args:
        targets: [N, C].
        centers: [C, K] of -1 and +1.

    Returns:
        [N, K] of -1 and +1, also for images without a label.
    """
    from keras import ops

    tie = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), centers.shape[1])
    present = ops.cast(targets > 0, 'float32')  # whole numbers cancel exactly, shares of a third need not
    return ops.sign(2 * ops.matmul(present, ops.cast(centers, 'float32')) + tie)


def csq_loss(u: Tensor, centers: Tensor, targets: Tensor, quantization: float = 1e-4) -> Tensor:
    """CSQ (Yuan et al. 2020): binary cross-entropy of u with each image's centre c, and how far |u| is from 1.

    mean BCE((1 + u) / 2, (1 + c) / 2) + quantization mean (|u| - 1)^2, where c comes from `image_centers`. As it is -1
    or +1, the first is -log((1 + c u) / 2). The paper's second term is log cosh(|u| - 1), half as much near 0.

    Args:
        u: [N, K] in [-1, 1], the tanh of the hash layer's output.
        centers: [C, K] of -1 and +1.
        targets: [N, C].
        quantization: weight of the second term.
    """
    from keras import ops

    agreement = (1 + ops.cast(image_centers(targets, centers), u.dtype) * u) / 2
    central = -ops.log(ops.maximum(agreement, _LEAST))
    return _labelled_mean(ops.mean(central + quantization * (ops.abs(u) - 1) ** 2, axis=1), targets)


def greedy_sign(h: Tensor) -> Tensor:
    """The sign of h, +1 for 0, whose gradient is passed on as if it were h itself (Su et al. 2018)."""
    from keras import ops

    signs = ops.where(h >= 0, ops.ones_like(h), -ops.ones_like(h))
    # Not h + stop_gradient(sign(h) - h): in float32 that is 0 for h = 1e9, and near +-1 only otherwise.
    return ops.stop_gradient(signs) + (h - ops.stop_gradient(h))


def greedy_loss(logits: Tensor, targets: Tensor, h: Tensor, alpha: float = 0.1) -> Tensor:
    """GreedyHash (Su et al. 2018): cross-entropy + alpha mean | |h| - 1 |^3.

    Args:
        logits: [N, C], a linear layer on `greedy_sign(h)`.
        targets: [N, C].
        h: [N, K], the hash layer's output.
        alpha: weight of the second term, 0.1 to 1.
    """
    from keras import ops

    penalty = ops.mean(ops.abs(ops.abs(h) - 1) ** 3, axis=1)
    return _labelled_mean(_cross_entropy(logits, targets) + alpha * penalty, targets)


def contrastive_loss(logits_a: Tensor, logits_b: Tensor, temperature: float = 0.3, beta: float = 1e-3) -> Tensor:
    """CIBHash (Qiu et al. 2021): NT-Xent of the codes of two views, and an information bottleneck.

    p = sigmoid(logits), z = `greedy_sign`(p - 1/2), z / sqrt(K) of length 1. Each of the 2 N codes is to be nearest to
    its other view's; + beta / 2 [KL(p_a | p_b) + KL(p_b | p_a)], Bernoulli, summed over bits, averaged over images,
    without gradient to the second of each.

    Args:
        logits_a, logits_b: [N, K], row i of both is made from image i.
        temperature: of the softmax over cosines.
        beta: weight of the divergence.
    """
    from keras import ops

    logits = ops.concatenate([logits_a, logits_b])
    images, bits = logits_a.shape[0] or ops.shape(logits_a)[0], logits_a.shape[1]
    z = greedy_sign(ops.sigmoid(logits) - 0.5) / math.sqrt(bits)
    similar = ops.matmul(z, ops.transpose(z)) / temperature
    itself = ops.eye(2 * images, dtype=similar.dtype)
    partner = ops.roll(itself, images, axis=1)
    contrast = ops.logsumexp(similar - 1e9 * itself, axis=1) - ops.sum(similar * partner, axis=1)
    divergence = _bernoulli_divergence(logits_a, logits_b) + _bernoulli_divergence(logits_b, logits_a)
    return ops.mean(contrast) + beta / 2 * divergence


def balance_loss(u: Tensor) -> Tensor:
    """How uneven the bits are: the mean over bits of (mean over images of u)^2, for u [N, K] in [-1, 1]."""
    from keras import ops

    return ops.mean(ops.mean(u, axis=0) ** 2)


def decorrelation_loss(u: Tensor) -> Tensor:
    """How much bits tell of each other: the mean square off the diagonal of U^T U / N, for u [N, K] in [-1, 1]."""
    from keras import ops

    bits = u.shape[1]
    products = ops.matmul(ops.transpose(u), u) / ops.cast(ops.shape(u)[0], u.dtype)
    return ops.sum((products * (1 - ops.eye(bits, dtype=products.dtype))) ** 2) / max(bits * (bits - 1), 1)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum over classes of y log softmax(logits), [N]."""
    from keras import ops

    return -ops.sum(targets * ops.log_softmax(logits, axis=1), axis=1)


def _labelled_mean(values: Tensor, targets: Tensor) -> Tensor:
    """The mean of values [N] over the images with a label; 0 if there are none."""
    from keras import ops

    labelled = ops.any(targets > 0, axis=1)
    count = ops.sum(ops.cast(labelled, values.dtype))
    return ops.sum(ops.where(labelled, values, ops.zeros_like(values))) / ops.maximum(count, 1)


def _bernoulli_divergence(logits: Tensor, fixed: Tensor) -> Tensor:
    """KL(sigmoid(logits) | sigmoid(fixed)), summed over bits, averaged over images, without gradient to `fixed`."""
    from keras import ops

    p, fixed = ops.sigmoid(logits), ops.stop_gradient(fixed)
    ones = p * (ops.log_sigmoid(logits) - ops.log_sigmoid(fixed))
    zeros = (1 - p) * (ops.log_sigmoid(-logits) - ops.log_sigmoid(-fixed))
    return ops.mean(ops.sum(ones + zeros, axis=1))
