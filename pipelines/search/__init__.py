"""Exact search in an index: plans, kernels, `LocalIndex`. No Beam, no TensorFlow."""
