"""AdamW and the moving average in one pass: each number is read once and written once.

The NumPy lines of `tinydiff.optim.adamw_update` are a score of operations, each of which sweeps
over whole arrays: 28 arrays read and 19 written, most of them fresh.  The processor waits for
memory all along.  Here one block of numbers goes through the whole formula while it is in the
cache: 5 arrays are read and 4 written, which is the least there can be.

The same block is swept twice, first for the update and then for the average, so that without an
average the second sweep is simply empty.
"""
import numpy as np
from numba import prange

from tinydiff.kernels.cpu.arrays import all_float32
from tinydiff.kernels.cpu.jit import parallel, serial

BLOCK = 1024                            # numbers; five arrays of them fit the first-level cache
NO_AVERAGE = np.empty(0, np.float32)


def adamw_update(value, grad, m, v, average=None, *, k, lr, betas, eps, weight_decay,
                 clip=1.0, share=0.0):
    """Fast twin of `tinydiff.optim.adamw_update`: same arguments, same result, in place."""
    arrays = (value, grad, m, v, NO_AVERAGE if average is None else average)
    if not all_float32(*arrays) or not all(a.ndim == 1 and a.flags.c_contiguous for a in arrays):
        return NotImplemented
    beta1, beta2 = betas
    _update(*arrays, *map(float, (
        clip, 1 - beta1, 1 - beta2, (1 - beta2**k) ** -0.5, eps, lr / (1 - beta1**k),
        lr * weight_decay, share)))
    return None


@parallel
def _update(value, grad, m, v, average, clip, to_m, to_v, root, eps, rate, shrink, share):
    """Update all blocks; see `_update_block`."""
    for block in prange((value.size + BLOCK - 1) // BLOCK):
        s = slice(block * BLOCK, (block + 1) * BLOCK)
        _update_block(value[s], grad[s], m[s], v[s], average[s], np.float32(clip),
                      np.float32(to_m), np.float32(to_v), np.float32(root), np.float32(eps),
                      np.float32(rate), np.float32(shrink), np.float32(share))


@serial
def _update_block(value, grad, m, v, average, clip, to_m, to_v, root, eps, rate, shrink, share):
    """Apply the formula of `tinydiff.optim.adamw_update` to numbers that fit the cache.

    Its constants come combined::

        to_m = 1 - beta1,   to_v = 1 - beta2,   root = 1 / sqrt(1 - beta2^k)
        rate = lr / (1 - beta1^k),   shrink = lr weight_decay
    """
    for i in range(value.size):
        g = clip * grad[i]
        m_i = m[i] + to_m * (g - m[i])
        v_i = v[i] + to_v * (g * g - v[i])
        m[i] = m_i
        v[i] = v_i
        value[i] -= rate * (m_i / (np.sqrt(v_i) * root + eps)) + shrink * value[i]
    for i in range(average.size):
        average[i] += share * (value[i] - average[i])
