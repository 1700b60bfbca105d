"""Readers of image shards, one module per format. What lists files and picks the reader is `pipelines.inputs.shards`."""
