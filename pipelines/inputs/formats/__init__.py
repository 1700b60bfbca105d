"""The formats of image shards, a module each."""
