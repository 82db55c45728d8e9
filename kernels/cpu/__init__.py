"""The fast path on a processor: Numba kernels behind the table of `tinydiff.backends`."""
