"""What every Beam job shares: running it, threads, counts, blocks of arrays."""
