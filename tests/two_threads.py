"""The same computation on one thread of the kernels and on two."""
import pytest


def on_one_and_two_threads(run):
    """Return ``[run() on one thread, run() on two]``; skip where the process has only one."""
    numba = pytest.importorskip("numba")
    before = numba.get_num_threads()
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one thread only, by OMP_NUM_THREADS or NUMBA_NUM_THREADS: nothing to compare")
    results = []
    try:
        for threads in (1, 2):
            numba.set_num_threads(threads)
            results.append(run())
    finally:
        numba.set_num_threads(before)
    return results
