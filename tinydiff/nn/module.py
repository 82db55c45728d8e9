"""Parameters, and the modules that own them."""
import copy

import numpy as np

from tinydiff.backends.device import choose, follow, move
from tinydiff.backends.random import generator


class Parameter:
    """An array the optimiser may change, and the gradient of the loss in it.

    `grad` is None until the first backward pass, and stays None where
    `frozen`: a model that only samples, or guides another, owns no gradients.

    Parameters
    ----------
    shape : tuple of int
    fill : callable
        ``fill(shape, generator) -> ndarray``, used by `Module.initialise` only:
        a model that is loaded from a file never draws a random number.

    Attributes
    ----------
    value : ndarray or None
        None until initialised or loaded.
    grad : ndarray or None
    grad_out : ndarray or None
        Where the gradient adds up; an optimiser sets this to have them all in one array.
    frozen : bool
    """

    def __init__(self, shape, fill):
        self.shape = tuple(shape)
        self.fill = fill
        self.value = None
        self.grad = None
        self.grad_out = None
        self.frozen = False

    def accumulate(self, dvalue):
        """Add one path's contribution; a value used twice has two.

        With a `grad_out` the first is written there and the others are added in place; without,
        `dvalue` itself is the gradient until a second one comes, and nothing is copied.
        """
        if self.frozen or dvalue is None:
            return
        if self.grad is not None:
            self.grad = np.add(self.grad, dvalue, out=self.grad_out)
        elif self.grad_out is not None:
            self.grad_out[...] = dvalue
            self.grad = self.grad_out
        else:
            self.grad = dvalue


class Module:
    """Anything that owns parameters, directly or through its members."""

    def members(self):
        """Yield ``(name, member)``, in the order they were set; a list adds its indices."""
        for name, member in vars(self).items():
            if isinstance(member, list):
                yield from ((f"{name}.{i}", m) for i, m in enumerate(member))
            else:
                yield name, member

    def parameters(self, prefix=""):
        """Yield ``(name, Parameter)``, depth first: the names of the published files."""
        for name, member in self.members():
            if isinstance(member, Parameter):
                yield prefix + name, member
            elif isinstance(member, Module):
                yield from member.parameters(f"{prefix}{name}.")

    def modules(self, prefix=""):
        """Yield ``(path, Module)``, depth first, this one first."""
        yield prefix, self
        for name, member in self.members():
            if isinstance(member, Module):
                yield from member.modules(f"{prefix}.{name}" if prefix else name)

    def initialise(self, seed=0, dtype=np.float32):
        """Fill every parameter at random; each draw is keyed by the seed and the name.

        A tensor's start therefore does not depend on what else the model has.

        Returns
        -------
        Module
            `self`, so that ``UNet(...).initialise(seed=0)`` reads in one line.
        """
        for name, p in self.parameters():
            p.value = p.fill(p.shape, generator(seed, f"initialise {name}")).astype(dtype)
        return self._named()

    def state(self):
        """Return ``{name: value}``, the very arrays and not copies."""
        return {name: p.value for name, p in self.parameters()}

    def load_state(self, state, dtype=np.float32):
        """Take every parameter's value from `state`; nothing may be missing, extra or misshapen.

        A value of the same dtype is overwritten in place: replicas and optimisers, which share
        it, see the new numbers.

        Parameters
        ----------
        state : dict of str to ndarray
        dtype : numpy dtype, default float32
            What the values are converted to.

        Raises
        ------
        ValueError
            Naming the tensors that do not fit; no parameter is changed then.
        """
        own = dict(self.parameters())
        who = type(self).__name__
        _refuse(f"{who}: missing tensors", [n for n in own if n not in state])
        _refuse(f"{who}: unexpected tensors", [n for n in state if n not in own])
        _refuse(f"{who}: tensors of the wrong shape",
                [f"{n} {tuple(state[n].shape)}, expected {p.shape}"
                 for n, p in own.items() if tuple(state[n].shape) != p.shape])
        for name, p in own.items():
            if p.value is not None and p.value.dtype == dtype:
                p.value[...] = follow(state[name], p.value)
            else:
                p.value = state[name].astype(dtype)
        return self._named()

    def to(self, device):
        """Move every parameter's value; forget the gradients.  Do it before an optimiser is made.

        Parameters
        ----------
        device : {"cpu", "cuda"}

        Returns
        -------
        Module
            `self`.

        Raises
        ------
        ValueError
            If there is no such device, or nothing to run on it: in one line, what to install.
        """
        device, _ = choose(device)
        self.zero_grad()
        for _, p in self.parameters():
            if p.value is not None:
                p.value = move(p.value, device)
        return self

    def like(self):
        """Return an array that lives where this module's parameters do, in their dtype."""
        return next(p.value for _, p in self.parameters())

    def replica(self):
        """Return a twin that shares this module's values and has gradients of its own.

        Two threads may then run two halves of a batch at once.
        """
        shared = {id(p.value): p.value for _, p in self.parameters()}
        gradients = {id(a): None for _, p in self.parameters() for a in (p.grad, p.grad_out)}
        return copy.deepcopy(self, {**gradients, **shared})

    def freeze(self):
        """Stop all gradients: backward passes then skip the work as well as the memory."""
        for _, p in self.parameters():
            p.frozen = True
            p.grad = None
        return self

    def zero_grad(self):
        """Forget all gradients."""
        for _, p in self.parameters():
            p.grad = None

    def count(self):
        """Return the number of trainable numbers."""
        return sum(int(np.prod(p.shape)) for _, p in self.parameters())

    def _named(self):
        """Tell each module its path, for the messages of the tape."""
        for path, module in self.modules():
            module.path = path or type(self).__name__
        return self

    def __repr__(self):
        return getattr(self, "path", type(self).__name__)


def _refuse(what, names, most=5):
    """Raise a one-line error if `names` has entries; a long list is cut and counted."""
    if names:
        more = f" and {len(names) - most} more" if len(names) > most else ""
        raise ValueError(f"{what}: {'; '.join(names[:most])}{more}")
