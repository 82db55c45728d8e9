"""Exponential moving average of a model's weights: what is sampled from and shipped."""
import copy


class EMA:
    """A second model whose weights trail the first one's.

    Parameters
    ----------
    model : Module
        The model that is trained.
    decay : float, default 0.999
        Share of the old average that is kept at each update; early on less is
        kept, ``(1 + k) / (10 + k)`` after k updates, so that the random start is forgotten.

    Attributes
    ----------
    model : Module
        The averaged twin.
    """

    def __init__(self, model, decay=0.999):
        self.model = copy.deepcopy(model)
        self.model.zero_grad()
        self.decay = decay
        self.pairs = [(average, p) for (_, average), (_, p)
                      in zip(self.model.parameters(), model.parameters(), strict=True)]

    def update(self, k):
        """Move the average towards the model after its `k`-th update, k = 1, 2, ..."""
        decay = min(self.decay, (1 + k) / (10 + k))
        for average, p in self.pairs:
            average.value += (1 - decay) * (p.value - average.value)
