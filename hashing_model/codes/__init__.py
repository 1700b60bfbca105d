"""Binary codes: their segments, packed bits, Hamming distances."""
