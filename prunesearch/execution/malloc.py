"""A setting of the C library's allocator: keep freed memory for the next forward pass."""

import ctypes
import functools
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_BYTES = 2**30


@functools.cache
def keep_freed_memory() -> bool:
    """Make glibc reuse the memory of large activations instead of returning it to the system at
    once.

    A block of more than 32 MiB is otherwise mapped every time and faulted in page by page. With
    batches of 2,048 tokens, SmolLM2's blocks took 16.8 s instead of 11.8 s on 2 cores.

    Returns:
        True if the C library is glibc and accepted the settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _BYTES))
