"""The gate of a version, and `grainhash evaluate`."""
