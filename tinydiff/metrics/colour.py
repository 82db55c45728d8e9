"""Colour and shape of what is drawn on white: CIELAB distance, and the overlap of two masks."""
import numpy as np

# sRGB (IEC 61966-2-1) to CIE XYZ under the white of daylight D65, in rows X, Y, Z.
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375],
                   [0.2126729, 0.7151522, 0.0721750],
                   [0.0193339, 0.1191920, 0.9503041]])
WHITE_XYZ = TO_XYZ.sum(axis=1)          # of sRGB's own white
PAPER = np.array([100.0, 0.0, 0.0])     # white in CIELAB
INK = 10.0                              # a pixel further from white than this is drawn


def to_lab(x):
    """Convert colours to CIELAB, in which distances are about as large as they look.

    Parameters
    ----------
    x : (..., 3, H, W) ndarray
        sRGB in [-1, 1]; what lies outside is clipped.

    Returns
    -------
    (..., 3, H, W) float64 ndarray
        L* from 0 (black) to 100 (white), a* (green to red), b* (blue to yellow).

    References
    ----------
    .. [1] CIE 15:2004, "Colorimetry", Section 8.2.1.

    Examples
    --------
    >>> to_lab(np.ones((3, 1, 1))).reshape(3).round(6) + 0.0
    array([100.,   0.,   0.])
    """
    rgb = np.clip(x.astype(np.float64) / 2 + 0.5, 0, 1)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.moveaxis(linear, -3, -1) @ TO_XYZ.T / WHITE_XYZ          # (..., H, W, 3)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    X, Y, Z = (f[..., i] for i in range(3))
    return np.stack([116 * Y - 16, 500 * (X - Y), 200 * (Y - Z)], axis=-3)


def drawn(x, ink=INK):
    """Tell which pixels of pictures (..., 3, H, W) are drawn on the white paper.

    Returns
    -------
    (..., H, W) bool ndarray
        True where a pixel's CIELAB distance from white is above `ink`.
    """
    from_paper = to_lab(x) - PAPER[:, None, None]
    return np.sqrt((from_paper ** 2).sum(axis=-3)) > ink


def mean_lab(x):
    """Return the mean CIELAB colour (..., 3) of the drawn pixels of pictures (..., 3, H, W).

    Where nothing is drawn that is the paper's white.
    """
    lab, mask = to_lab(x), drawn(x)
    area = mask.sum(axis=(-2, -1))[..., None]                         # (..., 1)
    total = (lab * mask[..., None, :, :]).sum(axis=(-2, -1))          # (..., 3)
    return np.where(area > 0, total / np.maximum(area, 1), PAPER)


def colour_distance(lab_a, lab_b):
    """Return the CIE 1976 colour difference of two CIELAB colours (..., 3).

    About 2 is just visible; colours of different names are 30 and more apart.

    Examples
    --------
    >>> float(colour_distance(np.array([50.0, 3.0, 0.0]), np.array([50.0, 0.0, 4.0])))
    5.0
    """
    return np.sqrt(((lab_a - lab_b) ** 2).sum(axis=-1))


def overlap(mask_a, mask_b):
    """Return intersection over union of masks (..., H, W): 1 for equal ones, 0 for none in common.

    Two empty masks are equal.

    Examples
    --------
    >>> float(overlap(np.array([[True, True]]), np.array([[True, False]])))
    0.5
    """
    both = (mask_a & mask_b).sum(axis=(-2, -1))
    either = (mask_a | mask_b).sum(axis=(-2, -1))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)
