"""Random numbers by name: every draw is keyed by (seed, purpose, step, picture).

J. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011: Philox turns a counter
and a key into random words, with no state to carry from one draw to the next.  So picture k of
a seed is the same picture whatever the batch size, the rank or the number of threads.

How the four names fill Philox's 64-bit words, so that no two streams ever meet::

    key     = [seed, hash(purpose)]            another seed or purpose is another bijection
    counter = [0, 0, picture, step]            drawing counts up from the left: a stream would
                                               need 2^128 blocks to reach its neighbour's words
"""
import hashlib
import operator

import numpy as np

from tinydiff.backends.device import follow, namespace


def generator(seed, purpose, step=0, picture=0):
    """Open the stream of one purpose, step and picture.  Nothing else in the package makes one.

    Parameters
    ----------
    seed : int
        ``0 <= seed < 2**64``.
    purpose : str
        What is drawn: "x_T", "caption", "dropout", a tensor's name.
    step, picture : int, default 0
        ``0 <= step, picture < 2**64``.

    Returns
    -------
    generator : numpy.random.Generator
        Two calls with the same four names give the same numbers from the start.

    Raises
    ------
    ValueError
        If one of the numbers is not an integer in that range.

    Examples
    --------
    >>> generator(0, "x_T").random() == generator(0, "x_T").random()
    True
    >>> generator(0, "x_T").random() == generator(0, "x_T", picture=1).random()
    False
    """
    key = [_word("seed", seed), _hash(purpose)]
    counter = [0, 0, _word("picture", picture), _word("step", step)]
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64),
                                                counter=np.array(counter, np.uint64)))


def normal(shape, seed, purpose, step=0, pictures=(0,), dtype=np.float32, like=None):
    """Draw standard normal noise, one stream per picture.

    Parameters
    ----------
    shape : tuple of int
        The shape of one picture's noise, such as (C, H, W).
    seed, purpose, step
        As in `generator`.
    pictures : iterable of int, default (0,)
        The pictures' numbers; their order is the batch's.
    dtype : dtype, default float32
        Drawn as float32 whatever this is, then cast: a float64 run sees the same noise.
    like : ndarray, optional
        The result lives where this array lives: the host draws, and the same seed is the same
        noise on a device.

    Returns
    -------
    noise : (B, *shape) ndarray
        Bitwise the same for a picture alone and in any batch.

    Raises
    ------
    ValueError
        If seed, step or a picture's number is not an integer in [0, 2**64).

    Examples
    --------
    >>> alone = normal((3, 2, 2), 0, "x_T", pictures=[5])
    >>> batch = normal((3, 2, 2), 0, "x_T", pictures=range(8))
    >>> bool((alone[0] == batch[5]).all())
    True
    """
    pictures = list(pictures)
    noise = np.empty((len(pictures), *shape), np.float32)
    for row, picture in enumerate(pictures):
        stream = generator(seed, purpose, step, picture)
        noise[row] = stream.standard_normal(shape, dtype=np.float32)
    noise = noise.astype(dtype, copy=False)
    return noise if like is None else follow(noise, like)


def normal_there(shape, seed, purpose, step, like):
    """Draw standard normal noise where the array `like` lives, by that place's own generator.

    For training by an explicit option: nothing is drawn on the host and nothing travels, but the
    numbers are others than `normal` draws, on each kind of device, and belong to the whole batch.

    Parameters
    ----------
    shape : tuple of int
        Of the whole batch.
    seed, purpose, step
        As in `generator`; no state is carried from one draw to the next here either.
    like : ndarray
        Its dtype, float32 or float64, and its place are followed.

    Returns
    -------
    noise : ndarray
    """
    random = namespace(like).random
    bits = getattr(random, "Philox4x3210", None) or random.Philox     # CuPy's name, or NumPy's
    key = _hash(f"{_word('seed', seed)} {purpose} {_word('step', step)}")
    return random.Generator(bits(key)).standard_normal(shape, dtype=like.dtype)


def _word(name, value):
    """Return `value` as a 64-bit word, or say what is wrong with it."""
    try:
        word = operator.index(value)
    except TypeError:
        word = -1
    if not 0 <= word < 2**64:
        raise ValueError(f"{name}={value!r}: an integer from 0 to 2**64 - 1 is needed")
    return word


def _hash(purpose):
    """Turn a name into 64 bits, the same on every machine and in every run."""
    return int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
