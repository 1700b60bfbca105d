"""Beam jobs that build and query an index of binary codes, and the index itself (`pipelines.index`)."""
