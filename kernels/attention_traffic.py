"""What each version of attention asks of memory, counted by the emulator.

    python -m tinydiff.kernels.attention_traffic         # the table of kernels/README.md

One head, as many queries as keys.  Global memory answers in sectors of 32 bytes; what a cache would
hold back is not counted.  Shared memory answers a warp in passes, one if no two of its words are in
the same bank.
"""
import numpy as np

from tinydiff.kernels.attention import VERSIONS, attention_forward
from tinydiff.kernels.emulator import emulation


def traffic(N=256, D=40):
    """Yield ``(version, direction, bytes, passes, least)``.

    Parameters
    ----------
    N : int
        Queries, and keys.
    D : int
        Width of the head.

    Yields
    ------
    version : int
    direction : str
    bytes : int
        From and to global memory.
    passes, least : int
        Of shared memory; as few as would do for as many bytes.
    """
    q, k, v, do = np.random.default_rng(0).standard_normal((4, 1, N, D), dtype=np.float32)
    for version in VERSIONS:
        with emulation(count=True) as forward:
            _, cache = attention_forward(q, k, v, 1, version=version)
        with emulation(count=True) as backward:
            cache.backward(do, cache.arrays)
        for direction, run in ("forward", forward), ("backward", backward):
            moved = sum(line.moved for line in run.counts if line.space == "global")
            shared = [line for line in run.counts if line.space == "shared"]
            yield (version, direction, 32 * moved, sum(line.moved for line in shared),
                   sum(line.least for line in shared))


def main():
    """Print the table."""
    print("version  direction  MiB of global memory  passes of shared memory  least")
    for version, direction, total, passes, least in traffic():
        print(f"{version:7d}  {direction:9s}  {total / 2**20:20.2f}  {passes:23,d}  {least:9,d}")


if __name__ == "__main__":
    main()
