"""Image shards and their records."""
