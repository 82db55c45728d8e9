"""AdamW is its paper's algorithm, the learning rate ends where it should, EMA averages."""
from math import isclose

import numpy as np
import pytest

from tinydiff.ema import EMA
from tinydiff.nn import GroupNorm, Linear, Module
from tinydiff.nn.flat import FlatParameters
from tinydiff.nn.initialisers import normal
from tinydiff.optim import AdamW, adamw_update, clip_factor, warm_up_cosine


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
    optimiser = AdamW(net.parameters())
    twin, before = net.replica(), net.linear.weight.value.copy()
    give_gradients(net.parameters(), 0)
    optimiser.step(0.1)
    assert (twin.linear.weight.value != before).all()
    assert all(p.value is twin.state()[n] for n, p in net.parameters())


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
    assert not optimiser.m["norm.bias"].any()


# ---- one flat array ----

def test_values_moments_and_gradients_are_cut_from_one_array_each():
    net = model()
    before = {n: p.value.copy() for n, p in net.parameters()}
    optimiser = AdamW(net.parameters())
    for name, p in net.parameters():
        np.testing.assert_array_equal(p.value, before[name])
        p.accumulate(np.ones(p.shape))
    for arrays in (net.state(), optimiser.m, optimiser.v,
                   {n: p.grad for n, p in net.parameters()}):
        whole, = {id(a.base): a.base for a in arrays.values()}.values()
        assert arrays.keys() == before.keys() and whole.shape == (net.count(),)
    assert next(iter(optimiser.flat.parameters)) == "linear.weight"   # the only matrix


def test_an_update_is_two_passes_however_many_tensors_there_are(monkeypatch):
    class Deep(Module):
        def __init__(self):
            self.layers = [Linear(3, 3) for _ in range(9)]

    passes = []
    monkeypatch.setattr("tinydiff.optim.adamw_update", lambda value, *arrays, weight_decay, **rest:
                        passes.append((value.size, weight_decay)))
    net = Deep().initialise(0)
    optimiser = AdamW(net.parameters(), weight_decay=0.5)
    give_gradients(net.parameters(), 0)
    optimiser.step(0.1)
    assert passes == [(9 * 9, 0.5), (9 * 3, 0.0)]                     # matrices, then vectors


def test_gradients_add_up_in_place_and_are_gone_when_forgotten():
    net = model()
    AdamW(net.parameters())
    p = net.linear.bias
    assert p.grad is None                                             # there is room, but no number
    first = np.full(6, 3.0)
    for contribution in (first, np.ones(6), np.ones(6)):
        p.accumulate(contribution)
        assert p.grad is p.grad_out and p.grad is not contribution
    np.testing.assert_array_equal(p.grad, np.full(6, 5.0))
    np.testing.assert_array_equal(first, np.full(6, 3.0))
    net.zero_grad()
    assert p.grad is None
    p.accumulate(np.ones(6))                                          # nothing is left of the five
    np.testing.assert_array_equal(p.grad, np.ones(6))


def test_a_replicas_gradients_are_not_the_optimisers():
    net = model()
    AdamW(net.parameters())
    twin = net.replica()
    assert all(p.grad_out is None for _, p in twin.parameters())      # no idle room
    for _, p in (*net.parameters(), *twin.parameters()):
        p.accumulate(np.ones(p.shape))
    for (_, own), (_, p) in zip(net.parameters(), twin.parameters(), strict=True):
        assert not np.shares_memory(own.grad, p.grad) and own.value is p.value


def test_a_value_replaced_behind_the_optimisers_back_is_an_error():
    net = model()
    ema = EMA(net)
    optimiser = AdamW(net.parameters(), ema=ema)
    net.load_state({n: a + 1 for n, a in net.state().items()}, np.float64)  # in place: well
    optimiser.step(0.1)
    for where in (ema.model, net):
        where.norm.bias.value = np.zeros(6)
        with pytest.raises(RuntimeError, match=r"norm\.bias: its value was replaced") as error:
            optimiser.step(0.1)
        assert "\n" not in str(error.value)
        where.norm.bias.value = (ema if where is ema.model else optimiser).flat._views["norm.bias"]


def test_a_model_that_is_all_frozen_is_refused():
    with pytest.raises(ValueError, match="nothing to train: every parameter is frozen"):
        FlatParameters(model().freeze().parameters())


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

def test_the_norm_is_that_of_all_gradients_together():
    net = model()
    optimiser = AdamW(net.parameters())
    give_gradients(net.parameters(), 0)
    net.norm.weight.grad = None                                       # not every one has one
    optimiser._grad[-12:] = 1e9                                       # what a place holds is not it
    squares = sum((p.grad**2).sum() for _, p in net.parameters() if p.grad is not None)
    assert isinstance(optimiser.grad_norm(), float)
    assert isclose(optimiser.grad_norm(), np.sqrt(squares), rel_tol=1e-12)


def test_a_norm_of_many_numbers_keeps_its_digits():
    class Wide(Module):
        def __init__(self):
            self.table = Linear(1000, 101)

    net = Wide().initialise(0)
    optimiser = AdamW(net.parameters())
    give_gradients(net.parameters(), 0)
    want = np.sqrt(sum((p.grad.astype(float)**2).sum() for _, p in net.parameters()))
    assert isclose(optimiser.grad_norm(), want, rel_tol=1e-7)


def test_clipping_scales_down_to_the_largest_norm_and_never_up():
    assert clip_factor(8.0, 2.0) == 0.25
    assert clip_factor(2.0, 2.0) == clip_factor(1.0, 2.0) == clip_factor(0.0, 2.0) == 1.0


def test_a_clipped_step_is_the_step_of_the_scaled_gradients():
    nets = [model(np.float32), model(np.float32)]
    for net, clip in zip(nets, (0.25, 1.0), strict=True):
        optimiser = AdamW(net.parameters(), eps=1.0)                  # else the scale cancels
        give_gradients(net.parameters(), 0, scale=1.0 if clip < 1 else 0.25)
        optimiser.step(0.1, clip)
        assert clip == 1 or isclose(optimiser.m["norm.bias"][0], 0.1 * 0.25 * net.norm.bias.grad[0],
                                    rel_tol=1e-6)
    for (name, a), (_, b) in zip(*(net.parameters() for net in nets), strict=True):
        np.testing.assert_allclose(a.value, b.value, rtol=1e-6, err_msg=name)


# ---- the moving average ----

def test_the_average_of_a_constant_is_the_constant():
    net = model()
    ema = EMA(net, decay=0.9)
    optimiser = AdamW(net.parameters(), ema=ema)
    for _ in range(50):
        optimiser.step(0.1)                                           # no gradients: nothing moves
    for (name, average), (_, p) in zip(ema.model.parameters(), net.parameters(), strict=True):
        np.testing.assert_array_equal(average.value, p.value, err_msg=name)
        assert average.value is not p.value and average.grad is None


def test_the_average_forgets_its_start_and_follows_with_its_decay():
    net = model()
    ema = EMA(net, decay=0.9)
    optimiser = AdamW(net.parameters(), ema=ema)
    start = net.linear.weight.value.copy()
    net.linear.weight.value += 1.0
    want = 0.0                                                        # of the way, so far
    for k in range(1, 200):
        net.linear.bias.grad = np.zeros(6)                            # one with, all others without
        optimiser.step(0.0)
        want += (1 - min(0.9, (1 + k) / (10 + k))) * (1 - want)
        np.testing.assert_allclose(ema.model.linear.weight.value, start + want)
        if k == 1:
            assert isclose(want, 9 / 11)                              # early on it hardly keeps
    assert want > 1 - 1e-8


def test_the_average_moves_towards_the_new_values_in_the_same_step():
    net = model()
    ema = EMA(net, decay=0.5)
    optimiser = AdamW(net.parameters(), ema=ema)
    want = {n: p.value.copy() for n, p in net.parameters()}
    for k in range(1, 12):
        give_gradients(net.parameters(), k)
        optimiser.step(0.1)
        for name, p in net.parameters():
            want[name] += (1 - min(0.5, (1 + k) / (10 + k))) * (p.value - want[name])
    for name, average in ema.model.parameters():
        np.testing.assert_allclose(average.value, want[name], rtol=1e-12, err_msg=name)


def test_an_update_in_pieces_is_the_update_of_the_whole():
    rng = np.random.default_rng(0)
    whole = [rng.random(33) for _ in range(5)]
    pieces = [a.copy() for a in whole]
    options = {"k": 3, "lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1,
               "clip": 0.5, "share": 0.25}
    adamw_update(*whole, **options)
    for piece in (slice(0, 7), slice(7, 33)):
        adamw_update(*(a[piece] for a in pieces), **options)
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(a, b)


def test_float32_weights_and_their_average_stay_float32():
    net = model(np.float32)
    ema = EMA(net)
    optimiser = AdamW(net.parameters(), ema=ema)
    give_gradients(net.parameters(), 0)
    assert type(optimiser.grad_norm()) is float
    optimiser.step(0.01, clip=0.5)
    assert {a.dtype for arrays in (net.state(), ema.model.state(), optimiser.m, optimiser.v)
            for a in arrays.values()} == {np.dtype(np.float32)}
