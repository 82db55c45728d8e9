"""Whether the compiled kernels can run here, and on how many threads."""
import os
import sys
from functools import cache
from importlib.util import find_spec

REMEDY = "pip install 'tinydiff[cpu]'"


@cache
def obstacle():
    """Import Numba (0.3 s, once); return None, or the line that says why it cannot be used.

    OMP_NUM_THREADS sets the number of threads of the kernels, as it does for NumPy's BLAS and for
    PyTorch; without it they use every core that the process may run on.
    """
    wish = os.environ.get("OMP_NUM_THREADS", "")
    if wish.isdigit() and int(wish) and "numba" not in sys.modules:
        os.environ.setdefault("NUMBA_NUM_THREADS", wish)
    try:
        import numba  # noqa: F401
    except ImportError as fault:
        if fault.name == "numba":
            return f"Numba is not installed; {REMEDY}"
        return f"Numba cannot be imported ({' '.join(str(fault).split())}); {REMEDY}"
    if find_spec("tinydiff.kernels") is None:
        return f"tinydiff was installed without its kernels; {REMEDY}"
    return None
