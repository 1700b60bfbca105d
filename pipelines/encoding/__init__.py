"""Records to codes: the work of one unit."""
