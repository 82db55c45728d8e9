"""What a worker of `make test` does first; a single process of pytest needs nothing of it."""
import os
from importlib.util import find_spec


def pytest_configure(config):
    """Let the kernels have two threads, for tests that compare, and use one, as a worker a core."""
    if "PYTEST_XDIST_WORKER" in os.environ and find_spec("numba"):
        os.environ["NUMBA_NUM_THREADS"] = "2"
        import numba

        numba.set_num_threads(1)
        del os.environ["NUMBA_NUM_THREADS"]               # not for the programs that tests start
