"""Exponential moving average of a model's weights: what is sampled from and shipped."""
import copy

from tinydiff.nn.flat import FlatParameters


class EMA:
    """A second model whose weights trail the first one's.

    `tinydiff.optim.AdamW` moves it: in the pass that updates the weights, while they are at hand.

    Parameters
    ----------
    model : Module
        The model that is trained.
    decay : float, default 0.999
        Share of the old average that is kept at each update; early on less is
        kept, ``(1 + k) / (10 + k)`` at update k, so that the random start is forgotten.

    Attributes
    ----------
    model : Module
        The averaged twin.
    flat : FlatParameters
        Its values.
    """

    def __init__(self, model, decay=0.999):
        self.model = copy.deepcopy(model)
        self.model.zero_grad()
        self.decay = decay
        self.flat = FlatParameters(self.model.parameters())

    def share(self, k):
        """Return how far the average moves towards the model after its `k`-th update, k = 1, ..."""
        return 1 - min(self.decay, (1 + k) / (10 + k))


def move_average(average, value, share):
    """Move `average` towards `value` by a `share` of the way, in place."""
    average += share * (value - average)
