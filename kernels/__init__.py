"""The hot loops, from naive to fast; installed as `tinydiff.kernels`.  See README.md here."""
