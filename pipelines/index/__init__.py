"""The index on disk: layout, manifest, versions, tables. No Beam, no TensorFlow, no search."""
