"""Pictures with zeros around them, split into phases: what convolutions read, stride or none."""
import numpy as np

from tinydiff.kernels.cpu.jit import serial
from tinydiff.kernels.cpu.rows import clear, copy, copy_every


@serial
def pad_phases(x, start, planes, g, G, C, H, W, stride, top, left, Hq, Wq):
    """Copy picture ``x[start:]``, (C, H, W), to place g of (C, stride, stride, G, Hq, Wq) phases.

    Row r of phase (u, v) is row ``stride * r + u - top`` of the picture, or zeros.
    """
    for plane in range(C * stride * stride):
        c, phase = plane // (stride * stride), plane % (stride * stride)
        u, v = phase // stride, phase % stride
        lo = min(max((left - v + stride - 1) // stride, 0), Wq)       # first column inside
        hi = min(max((W - 1 + left - v) // stride + 1, lo), Wq)       # first column beyond
        for r in range(Hq):
            line = planes[((plane * G + g) * Hq + r) * Wq:]
            h = stride * r + u - top
            if not 0 <= h < H:
                clear(line, Wq)
                continue
            clear(line, lo)
            source = x[start + (c * H + h) * W + v - left + stride * lo:]
            if stride == 1:
                copy(line[lo:], source, hi - lo)
            else:
                copy_every(line[lo:], source, stride, hi - lo)
            clear(line[hi:], Wq - hi)
    planes[C * stride * stride * G * Hq * Wq:] = np.float32(0)        # read beyond the last
