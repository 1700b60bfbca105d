"""The trainable side of a hash model: feature groups -> gates -> a projection and batch normalisation per segment.

Written in `keras.ops`; tested with TensorFlow. What is trained becomes `HashHead`s, which need no Keras.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashing_model.codes.spec import Segment
from hashing_model.heads.head import HashHead
from hashing_model.keras_runtime import import_keras

BN_MOMENTUM = 0.9  # statistics of about the last ten batches: the layers before them move
# Of activations before normalisation: weights as large as Keras's first ones, which Adam's steps suit.
START_VARIANCE = 1e-3


def head_outputs(inputs: Mapping[str, Any], segments: Sequence[Segment], gated: bool, seed: int) -> dict[str, Any]:
    """The activations of each segment, as symbolic outputs [N, bits] of symbolic inputs, group name -> [N, d].

    Each feature group is weighed by a gate, a softmax over the groups that a segment reads, scaled so that the weights
    add up to the number of groups. The batch normalisation has neither scale nor offset: as a bit is a sign, its mean
    is the threshold, which `HashModel.calibrated` can move.

    Args:
        inputs: standardised feature groups.
        segments: what to make outputs for.
        gated: train the gates; else all groups weigh 1.
        seed: of the first weights.
    """
    keras = import_keras()
    outputs = {}
    for i, segment in enumerate(segments):
        x = _gates()(gated, name=f'{segment.name}_gates')([inputs[name] for name in segment.features])
        start = keras.initializers.GlorotUniform(seed=seed + i)
        x = keras.layers.Dense(
            segment.bits, use_bias=False, kernel_initializer=start, name=f'{segment.name}_projection'
        )(x)
        outputs[segment.name] = keras.layers.BatchNormalization(
            center=False, scale=False, momentum=BN_MOMENTUM, name=f'{segment.name}_bn'
        )(x)
    return outputs


def start_from(network: Any, segment: Segment, head: HashHead, x: NDArray[np.float32]) -> None:
    """Give a segment's projection and normalisation the weights of a linear head.

    Args:
        network: a network over `head_outputs`.
        segment: whose projection it is.
        head: without hidden layers or anchors.
        x: what the head reads, of some images: float32 [N, d].
    """
    deviation = head.activations(x).std(axis=0, dtype=np.float64)
    head = head.scaled(START_VARIANCE**0.5 / np.maximum(deviation, 1e-6))
    network.get_layer(f'{segment.name}_projection').set_weights([head.weights])
    network.get_layer(f'{segment.name}_bn').set_weights([-head.offset, np.full(segment.bits, START_VARIANCE)])


def trained_head(network: Any, segment: Segment) -> tuple[HashHead, dict[str, float]]:
    """A segment's projection with its gates multiplied in, and the gate of each group.

    The offset is zero: set it to the mean of the activations by `HashHead.shifted`.
    """
    layer = network.get_layer(f'{segment.name}_gates')
    gates = np.asarray(layer.gates())
    weights = np.array(network.get_layer(f'{segment.name}_projection').get_weights()[0])
    weights *= np.repeat(gates, layer.dims)[:, None]
    named = dict(zip(segment.features, gates.astype(float).round(4).tolist(), strict=True))
    return HashHead(weights.astype(np.float32), np.zeros(segment.bits, np.float32)), named


def _gates() -> Any:
    """The layer class `Gates`; a function, since Keras loads late."""
    keras = import_keras()

    class Gates(keras.layers.Layer):  # type: ignore[name-defined]
        """Weighs a list of [N, d] and joins them: [N, sum of d]."""

        def __init__(self, trained: bool, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.trained = trained

        def build(self, shapes: Any) -> None:
            self.dims = [int(shape[-1]) for shape in shapes]
            self.logits = self.add_weight(
                shape=(len(shapes),), initializer='zeros', trainable=self.trained, name='logits'
            )

        def gates(self) -> Any:
            """The weight of each group; the weights are positive and add up to the number of groups."""
            e = keras.ops.exp(self.logits)  # Keras warns of a softmax over one
            return e / keras.ops.mean(e)

        def call(self, groups: Any) -> Any:
            gates = self.gates()
            return keras.ops.concatenate([x * gates[i] for i, x in enumerate(groups)], axis=-1)

    return Gates


def standardised(x: Any, mean: NDArray[np.float32], scale: NDArray[np.float32]) -> Any:
    """A symbolic feature group [N, d] brought to the scale of `hashing_model.features.fusion.Fusion`."""
    return (x - mean) / scale
