"""`grainhash build`: the job that makes a version of an index."""
