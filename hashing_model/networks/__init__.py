"""Heads and backbones that gradients train. TensorFlow is imported when they run."""
