"""How good codes are: retrieval metrics, health of the bits, all figures of a measurement."""
