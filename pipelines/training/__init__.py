"""`grainhash train`, `features`, `calibrate`: models from image shards."""
