"""Which sequences are scattered over which ranks of a replica, for every step. Knows no torch."""
