"""The tape: what the forward pass saved, for the backward pass to take back in reverse."""


class Tape:
    """A stack of what the forward pass saved: forward pushes, backward pops.

    The backward pass therefore visits the layers in exactly the reverse order
    of the forward pass.  A layer that pops out of turn is told whose turn it is.

    Parameters
    ----------
    generator : numpy.random.Generator, optional
        Where dropout takes its random numbers from.  None (the default)
        switches dropout off: a tape alone does not mean training.

    Attributes
    ----------
    stack : list of (Module, cache)
        What ran, in order: also the trace of the forward pass.

    Examples
    --------
    >>> tape = Tape()
    >>> tape.save("conv1", "what conv1 will need")
    >>> tape.load("norm1")
    Traceback (most recent call last):
    RuntimeError: 'norm1'.backward() called out of turn: next is 'conv1'
    """

    def __init__(self, generator=None):
        self.stack = []
        self.generator = generator

    def save(self, layer, cache):
        """Push what `layer` will need in its backward pass."""
        self.stack.append((layer, cache))

    def load(self, layer):
        """Pop what `layer` saved; it must have been the last to save.

        Raises
        ------
        RuntimeError
            If nothing is left, or if another layer's turn comes first.
        """
        if not self.stack:
            raise RuntimeError(f"{layer!r}.backward() has no matching forward()")
        owner, cache = self.stack[-1]
        if owner is not layer:
            raise RuntimeError(f"{layer!r}.backward() called out of turn: next is {owner!r}")
        self.stack.pop()
        return cache


class _NoTape:
    """Inference: nothing is saved, so nothing is kept alive."""

    generator = None

    def save(self, layer, cache):
        pass

    def load(self, layer):
        raise RuntimeError(f"{layer!r}.backward() needs the Tape that forward() was given")


NO_TAPE = _NoTape()
