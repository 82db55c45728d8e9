"""A model's parameters as one long array: what an optimiser goes through in one pass."""
import numpy as np


class FlatParameters:
    """Parameters whose values are views of one array.

    The numbers stay where each layer looks for them, in ``Parameter.value``; but an update of all
    of them is one operation on one array, where hundreds of small ones would cost more in calls
    than in arithmetic.

    Parameters
    ----------
    parameters : iterable of (str, Parameter)
        As `Module.parameters` yields them; frozen ones are left alone.  The others' values move
        into the array here, so a replica is made afterwards, to share them.

    Attributes
    ----------
    parameters : dict of str to Parameter
        In the order of their numbers: all matrices and convolutions, then all vectors, so that
        what is treated alike lies side by side.
    values : (n,) ndarray
        All their numbers.

    Raises
    ------
    ValueError
        If there is none.
    """

    def __init__(self, parameters):
        trainable = [(name, p) for name, p in parameters if not p.frozen]
        if not trainable:
            raise ValueError("nothing to train: every parameter is frozen")
        self.parameters = dict(sorted(trainable, key=lambda item: item[1].value.ndim < 2))
        self.values = np.concatenate([p.value.reshape(-1) for p in self.parameters.values()])
        self._views = self.views(self.values)
        for name, p in self.parameters.items():
            p.value = self._views[name]

    def views(self, flat):
        """Cut another array of n numbers as `values` is cut.

        Returns
        -------
        dict of str to ndarray
            Views of `flat` in the parameters' shapes.
        """
        views, start = {}, 0
        for name, p in self.parameters.items():
            stop = start + p.value.size
            views[name] = flat[start:stop].reshape(p.value.shape)
            start = stop
        return views

    def check(self):
        """See that every value is still a view: another array would miss all updates.

        Raises
        ------
        RuntimeError
            Naming the parameter whose value was replaced.
        """
        for name, p in self.parameters.items():
            if p.value is not self._views[name]:
                raise RuntimeError(f"{name}: its value was replaced by another array after it was "
                                   "packed; write into it, value[...] = new")
