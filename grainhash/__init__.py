"""Exact image search with binary codes, rebuilt by batch jobs."""
