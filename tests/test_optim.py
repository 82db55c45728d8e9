"""AdamW is its paper's algorithm, the learning rate ends where it should, EMA averages."""
from math import isclose

import numpy as np
import pytest

from tinydiff.ema import EMA
from tinydiff.nn import GroupNorm, Linear, Module
from tinydiff.nn.initialisers import normal
from tinydiff.optim import AdamW, clip_grad_norm, warm_up_cosine


class Model(Module):
    """One matrix and three vectors."""

    def __init__(self):
        self.linear = Linear(4, 6, fill=normal(1.0))
        self.norm = GroupNorm(2, 6)


def model(dtype=np.float64):
    """Return a model away from zero everywhere, so that decay would show."""
    new = Model().initialise(0, dtype)
    for _, p in new.parameters():
        p.value = (p.value + 0.5).astype(dtype)
    return new


def give_gradients(parameters, k, scale=1.0):
    rng = np.random.default_rng(k)
    for _, p in parameters:
        p.grad = (scale * rng.normal(size=p.shape)).astype(p.value.dtype)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_first_step_moves_by_lr_in_the_sign_of_the_gradient(scale):
    net = model()
    before = {n: p.value.copy() for n, p in net.parameters()}
    give_gradients(net.parameters(), 0, scale)
    AdamW(net.parameters(), weight_decay=0.0).step(lr=0.01)
    for name, p in net.parameters():
        np.testing.assert_allclose(p.value - before[name], -0.01 * np.sign(p.grad), rtol=1e-3)


def test_the_update_is_the_algorithm_of_the_paper():
    net = model()
    optimiser = AdamW(net.parameters(), betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)
    want = {n: (p.value.copy(), 0.0, 0.0) for n, p in net.parameters()}
    for k in range(1, 6):
        give_gradients(net.parameters(), k)
        for name, p in net.parameters():
            value, m, v = want[name]
            m = 0.8 * m + 0.2 * p.grad
            v = 0.95 * v + 0.05 * p.grad**2
            adam = (m / (1 - 0.8**k)) / (np.sqrt(v / (1 - 0.95**k)) + 1e-3)
            decay = 0.1 * value if value.ndim > 1 else 0.0
            want[name] = value - 0.02 * (adam + decay), m, v
        optimiser.step(0.02)
    for name, p in net.parameters():
        np.testing.assert_allclose(p.value, want[name][0], rtol=1e-12)


def test_ten_steps_are_those_of_torch():
    torch = pytest.importorskip("torch")
    net = model()
    optimiser = AdamW(net.parameters(), betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    theirs = {n: torch.nn.Parameter(torch.tensor(p.value)) for n, p in net.parameters()}
    matrices = [p for p in theirs.values() if p.ndim > 1]
    vectors = [p for p in theirs.values() if p.ndim == 1]
    reference = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    for k in range(10):
        lr = 0.01 * (k + 1)
        give_gradients(net.parameters(), k)
        for name, p in net.parameters():
            theirs[name].grad = torch.tensor(p.grad)
        for group in reference.param_groups:
            group["lr"] = lr
        optimiser.step(lr)
        reference.step()
    for name, p in net.parameters():
        np.testing.assert_allclose(p.value, theirs[name].detach().numpy(), rtol=1e-12)


def test_decay_shrinks_matrices_and_spares_vectors():
    net = model()
    before = {n: p.value.copy() for n, p in net.parameters()}
    for _, p in net.parameters():
        p.grad = np.zeros_like(p.value)
    AdamW(net.parameters(), weight_decay=0.5).step(lr=0.1)
    for name, p in net.parameters():
        factor = 1 - 0.1 * 0.5 if p.value.ndim > 1 else 1
        np.testing.assert_allclose(p.value, factor * before[name], err_msg=name)


def test_values_change_in_place_so_that_replicas_see_them():
    net = model()
    arrays = {n: p.value for n, p in net.parameters()}
    give_gradients(net.parameters(), 0)
    AdamW(net.parameters()).step(0.1)
    assert all(p.value is arrays[n] for n, p in net.parameters())


def test_frozen_parameters_and_those_without_gradient_stay():
    net = model()
    net.linear.freeze()
    optimiser = AdamW(net.parameters())
    assert set(optimiser.m) == {"norm.weight", "norm.bias"}
    before = {n: p.value.copy() for n, p in net.parameters()}
    net.norm.weight.grad = np.ones(6)
    optimiser.step(0.1)
    changed = {n for n, p in net.parameters() if (p.value != before[n]).any()}
    assert changed == {"norm.weight"}


def test_a_saved_optimiser_goes_on_as_if_it_had_never_stopped():
    nets, finals = [model(), model()], []
    for net, stop in zip(nets, (None, 3), strict=True):
        optimiser = AdamW(net.parameters())
        for k in range(6):
            if k == stop:
                state = {n: a.copy() for n, a in optimiser.state().items()}
                optimiser = AdamW(net.parameters())
                optimiser.load_state(state, steps=k)
            give_gradients(net.parameters(), k)
            optimiser.step(0.01)
        finals.append(net.state())
    for name in finals[0]:
        np.testing.assert_array_equal(finals[0][name], finals[1][name])


@pytest.mark.parametrize("change, message", [
    (lambda s: s.pop("v.norm.bias"), "does not fit the model: v.norm.bias"),
    (lambda s: s.update(extra=np.ones(1)), "does not fit the model: extra"),
    (lambda s: s.update({"m.norm.bias": np.ones(7)}), r"m\.norm\.bias has shape \(7,\), expected"),
])
def test_an_optimiser_state_that_does_not_fit_is_named(change, message):
    optimiser = AdamW(model().parameters())
    state = dict(optimiser.state())
    change(state)
    with pytest.raises(ValueError, match=message):
        optimiser.load_state(state, 3)


# ---- the learning rate ----

def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_end():
    rates = [warm_up_cosine(k, 1000, 0.5, warm_up=10, lr_end=0.1) for k in range(1000)]
    np.testing.assert_allclose(rates[:10], 0.05 * np.arange(1, 11))   # the first is not zero
    assert rates[9] == max(rates) == rates[10] == 0.5
    assert (np.diff(rates[10:]) < 0).all()
    assert isclose(rates[505], 0.3, rel_tol=1e-9)                     # half-way: the mean
    assert 0.1 < rates[-1] < 0.1001
    assert warm_up_cosine(1000, 1000, 0.5, 10, 0.1) == 0.1


def test_a_run_no_longer_than_its_warm_up_is_only_a_rise():
    assert [warm_up_cosine(k, 3, 1.0, warm_up=4) for k in range(3)] == [0.25, 0.5, 0.75]
    assert [warm_up_cosine(k, 2, 1.0, warm_up=0) for k in range(2)] == [1.0, 0.5]


# ---- clipping ----

def test_clipping_returns_the_joint_norm_and_keeps_the_direction():
    net = model()
    give_gradients(net.parameters(), 0)
    before = {n: p.grad.copy() for n, p in net.parameters()}
    norm = np.sqrt(sum((g**2).sum() for g in before.values()))
    assert norm > 2
    returned = clip_grad_norm(net.parameters(), 2.0)
    assert isinstance(returned, float) and isclose(returned, norm)
    for name, p in net.parameters():
        np.testing.assert_allclose(p.grad, before[name] * (2.0 / norm))
    assert isclose(clip_grad_norm(net.parameters(), 10.0), 2.0)


def test_small_gradients_are_not_touched():
    net = model()
    give_gradients(net.parameters(), 0)
    net.norm.bias.grad = None                                         # not every one has one
    before = {n: p.grad for n, p in net.parameters()}
    clip_grad_norm(net.parameters(), 1e6)
    assert all(p.grad is before[n] for n, p in net.parameters())


# ---- the moving average ----

def test_the_average_of_a_constant_is_the_constant():
    net = model()
    ema = EMA(net, decay=0.9)
    for k in range(1, 50):
        ema.update(k)
    for (name, average), (_, p) in zip(ema.model.parameters(), net.parameters(), strict=True):
        np.testing.assert_array_equal(average.value, p.value, err_msg=name)
        assert average.value is not p.value and average.grad is None


def test_the_average_forgets_its_start_and_follows_with_its_decay():
    net = model()
    ema = EMA(net, decay=0.9)
    start = net.linear.weight.value.copy()
    net.linear.weight.value = start + 1.0
    want = 0.0                                                        # of the way, so far
    for k in range(1, 200):
        ema.update(k)
        want += (1 - min(0.9, (1 + k) / (10 + k))) * (1 - want)
        np.testing.assert_allclose(ema.model.linear.weight.value, start + want)
        if k == 1:
            assert isclose(want, 9 / 11)                              # early on it hardly keeps
    assert want > 1 - 1e-8


def test_float32_weights_and_their_average_stay_float32():
    net = model(np.float32)
    ema = EMA(net)
    give_gradients(net.parameters(), 0)
    AdamW(net.parameters()).step(0.01)
    ema.update(1)
    assert {p.value.dtype for m in (net, ema.model) for _, p in m.parameters()} == {
        np.dtype(np.float32)}
