"""Image bytes to binary codes. Imports neither Beam nor `pipelines`; importing it loads no TensorFlow."""
