"""`grainhash query` and `grainhash duplicates`: the jobs that ask an index."""
