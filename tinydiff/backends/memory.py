"""Keeping freed memory: the arrays of a step go into the room that the last step's arrays left."""
import ctypes
from functools import cache

# Options of mallopt, from <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4

OPTIONS = {
    M_MMAP_MAX: 0,                      # no array comes straight from the system,
    M_TRIM_THRESHOLD: 2**31 - 1,        # nothing that is free goes back to it (bytes, a C int),
    M_TOP_PAD: 64 * 2**20,              # and the heap grows by that much at once (bytes)
}


@cache
def keep_freed_memory():
    """Ask the C library to keep what is freed, instead of handing it back to the system.

    glibc takes a large array straight from the system and gives it back when it is freed; and the
    system zeroes each page of the next one again, when it is first touched.  That costs about
    3 ms for 1000 pages of 4 KiB, more than many an operation takes on them.  After this call large
    arrays come from the heap, as small ones do, and freed room waits there for the next array: the
    process keeps the memory that it needed at most, and no more than that.

    For where steps repeat; once is enough, for the whole process.  Elsewhere than on glibc (macOS,
    Windows, musl) it does nothing.

    Returns
    -------
    bool
        Whether the C library has these options and took them.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all([mallopt(option, value) == 1 for option, value in OPTIONS.items()])
