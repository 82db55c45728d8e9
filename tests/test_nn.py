"""Layers keep nothing of their own: what backward needs is on the tape, in turn, or refused."""
import numpy as np
import pytest
from gradients import assert_grad

from tinydiff import nn, ops
from tinydiff.nn import NO_TAPE, Linear, Module, Parameter, Tape
from tinydiff.nn.initialisers import normal, ones, uniform_fan_in, zeros


class Chain(Module):
    """Layers one after another."""

    def __init__(self, *layers):
        self.layers = list(layers)

    def forward(self, x, tape=NO_TAPE):
        for layer in self.layers:
            x = layer.forward(x, tape)
        return x

    def backward(self, dy, tape):
        for layer in reversed(self.layers):
            dy = layer.backward(dy, tape)
        return dy


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def filled(layer, dtype=np.float64):
    """Give every parameter random values: ones and zeros would hide mistakes."""
    layer.initialise(0, dtype)
    rng = np.random.default_rng(7)
    for _, p in layer.parameters():
        p.value = rng.normal(size=p.shape).astype(dtype)
    return layer


# ---- the tape ----

def test_a_layer_out_of_turn_is_told_whose_turn_it_is():
    chain = filled(Chain(Linear(3, 4), nn.GroupNorm(2, 4)))
    tape = Tape()
    chain.forward(draw(2, 3), tape)
    with pytest.raises(RuntimeError, match=r"layers\.0\.backward\(\).*turn: next is layers\.1$"):
        chain.layers[0].backward(draw(2, 4), tape)
    chain.backward(draw(2, 4), tape)                                  # nothing was lost by asking
    assert not tape.stack


def test_backward_without_forward_says_so():
    with pytest.raises(RuntimeError, match=r"Linear\.backward\(\) has no matching forward"):
        filled(Linear(3, 4)).backward(draw(2, 4), Tape())


def test_backward_without_a_tape_says_so():
    layer = filled(Linear(3, 4))
    layer.forward(draw(2, 3))
    with pytest.raises(RuntimeError, match=r"Linear.*needs the Tape"):
        layer.backward(draw(2, 4), NO_TAPE)


def test_the_tape_is_the_trace_of_the_forward_pass():
    chain = filled(Chain(Linear(3, 4), nn.activation("silu"), nn.LayerNorm(4)))
    tape = Tape()
    chain.forward(draw(2, 3), tape)
    assert [layer for layer, _ in tape.stack] == chain.layers
    assert [repr(layer) for layer, _ in tape.stack] == ["layers.0", "layers.1", "layers.2"]


def test_without_a_tape_nothing_is_kept():
    layer = filled(Linear(3, 4))
    before = set(vars(layer))
    layer.forward(draw(2, 3))
    assert set(vars(layer)) == before
    assert not vars(NO_TAPE)


def test_a_layer_used_twice_has_the_sum_of_both_gradients():
    layer = filled(Linear(3, 3))
    x, dy = draw(2, 3), draw(2, 3, seed=1)
    tape = Tape()
    layer.forward(layer.forward(x, tape), tape)
    dx = layer.backward(layer.backward(dy, tape), tape)
    w, b = layer.weight.value, layer.bias.value
    assert_grad(lambda: layer.forward(layer.forward(x)), {"x": x, "w": w, "b": b}, dy,
                x=dx, w=layer.weight.grad, b=layer.bias.grad)


def test_sampling_between_forward_and_backward_changes_nothing():
    chain = filled(Chain(Linear(3, 4), nn.activation("gelu"), nn.LayerNorm(4)))
    x, dy = draw(2, 3), draw(2, 4, seed=1)
    gradients = []
    for sample in (False, True):
        chain.zero_grad()
        tape = Tape()
        chain.forward(x, tape)
        if sample:
            chain.forward(draw(5, 3, seed=2))
        dx = chain.backward(dy, tape)
        gradients.append([dx, *(p.grad for _, p in chain.parameters())])
    for plain, interrupted in zip(*gradients, strict=True):
        np.testing.assert_array_equal(plain, interrupted)


# ---- every layer, against central differences ----

ACTIVATIONS = {name: (nn.activation(name), [(2, 5)], {}) for name in nn.ACTIVATIONS}
LAYERS = {                            # name: (layer, shapes of its inputs, other arguments)
    "linear": (Linear(3, 4), [(2, 5, 3)], {}),
    "linear without bias": (Linear(3, 4, bias=False), [(5, 3)], {}),
    "conv": (nn.Conv2d(3, 4, 3, padding=1), [(2, 3, 5, 4)], {}),
    "conv strided": (nn.Conv2d(2, 3, 3, 2, ((0, 1), (1, 0))), [(2, 2, 5, 6)], {}),
    "group norm": (nn.GroupNorm(2, 4), [(2, 4, 3, 2)], {}),
    "group norm eps": (nn.GroupNorm(2, 4, eps=0.3), [(2, 4, 3)], {}),
    **{f"group norm, {act}": (nn.GroupNormAct(2, 4, 1e-5, act), [(2, 4, 3, 2)], {})
       for act in ("silu", "gelu")},
    **{f"group norm, scaled and shifted, {act}":
       (nn.GroupNormAct(2, 4, 1e-5, act), [(2, 4, 3, 2), (2, 4), (2, 4)], {})
       for act in ("silu", "mish")},
    "layer norm": (nn.LayerNorm(4), [(2, 3, 4)], {}),
    "layer norm eps": (nn.LayerNorm(4, eps=0.3), [(2, 4)], {}),
    "geglu": (nn.Pointwise(ops.geglu_forward, ops.geglu_backward), [(2, 3, 6)], {}),
    "attention": (nn.Attention(2), [(2, 3, 4), (2, 5, 4), (2, 5, 6)], {}),
    "attention masked": (nn.Attention(2), [(2, 3, 4), (2, 3, 4), (2, 3, 4)],
                         {"mask": ops.causal_mask(3, np.float64)}),
    "concat": (nn.Concat(), [(2, 3, 4), (2, 2, 4)], {}),
    "upsample": (nn.UpsampleNearest(), [(2, 3, 2, 3)], {}),
    "upsample to a size": (nn.UpsampleNearest(), [(1, 2, 2, 3)], {"size": (5, 4)}),
    "dropout": (nn.Dropout(0.4), [(4, 6)], {}),
    **ACTIVATIONS,
}


def test_no_layer_is_forgotten():
    checked = {type(layer) for layer, _, _ in LAYERS.values()} | {nn.Embedding}
    layers = {value for name, value in vars(nn).items() if name in nn.__all__
              and isinstance(value, type) and issubclass(value, Module) and value is not Module}
    assert checked == layers


@pytest.mark.parametrize("name", LAYERS)
def test_the_gradients_of_a_layer_are_its_derivatives(name):
    layer, shapes, options = LAYERS[name]
    filled(layer)
    inputs = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]

    def forward(tape):
        return layer.forward(*inputs, **options, tape=tape)

    def new_tape():                                                   # dropout: the same draw
        return Tape(np.random.default_rng(3))

    tape = new_tape()
    dy = draw(*forward(tape).shape, seed=9)
    dxs = layer.backward(dy, tape)
    assert not tape.stack
    got = {f"x{i}": dx for i, dx in enumerate(dxs if isinstance(dxs, tuple) else (dxs,))
           if i < len(inputs)}
    got |= {n: p.grad for n, p in layer.parameters()}
    wrt = {f"x{i}": x for i, x in enumerate(inputs)} | layer.state()
    layer.zero_grad()
    assert_grad(lambda: forward(new_tape()), wrt, dy, **got)


def test_the_gradient_of_an_embedding_is_its_derivative():
    table, ids, dy = filled(nn.Embedding(5, 3)), np.array([[4, 1], [1, 1]]), draw(2, 2, 3)
    tape = Tape()
    table.forward(ids, tape)
    assert table.backward(dy, tape) is None                           # integers have no gradient
    assert_grad(lambda: table.forward(ids), {"w": table.weight.value}, dy, w=table.weight.grad)


def test_two_backward_passes_add_up():
    layer, x, dy = filled(Linear(3, 4)), draw(2, 3), draw(2, 4)
    grads = []
    for _ in range(2):
        tape = Tape()
        layer.forward(x, tape)
        layer.backward(dy, tape)
        grads.append(layer.weight.grad.copy())
    np.testing.assert_allclose(grads[1], 2 * grads[0])


# ---- dropout ----

def test_dropout_acts_only_with_a_generator_on_the_tape():
    x, layer = draw(20, 30), nn.Dropout(0.5)
    for tape in (NO_TAPE, Tape()):
        np.testing.assert_array_equal(layer.forward(x, tape), x)
    tape = Tape()
    layer.forward(x, tape)
    np.testing.assert_array_equal(layer.backward(x, tape), x)

    y = layer.forward(x, Tape(np.random.default_rng(0)))
    dropped = y == 0
    assert 0.4 < dropped.mean() < 0.6
    np.testing.assert_allclose(y[~dropped], 2 * x[~dropped])          # the mean is kept


def test_dropout_pulls_back_through_the_mask_it_drew():
    x, layer, tape = draw(20, 30), nn.Dropout(0.25), Tape(np.random.default_rng(0))
    y = layer.forward(x, tape)
    dy = draw(20, 30, seed=1)
    np.testing.assert_allclose(layer.backward(dy, tape), dy * np.where(y == 0, 0, 1 / 0.75))


def test_dropout_at_rate_zero_draws_nothing():
    generator = np.random.default_rng(0)
    x = draw(3, 4)
    np.testing.assert_array_equal(nn.Dropout(0).forward(x, Tape(generator)), x)
    assert generator.random() == np.random.default_rng(0).random()


# ---- parameters ----

FROZEN = {                            # the op behind each layer that owns parameters
    "linear_backward": (Linear(3, 4), (2, 3)),
    "conv2d_backward": (nn.Conv2d(3, 4, 3), (2, 3, 5, 5)),
    "group_norm_backward": (nn.GroupNorm(2, 4), (2, 4, 3)),
    "layer_norm_backward": (nn.LayerNorm(4), (2, 4)),
}


@pytest.mark.parametrize("op", FROZEN)
@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_parameters_get_no_gradient_and_no_work(op, frozen, monkeypatch):
    layer, shape = FROZEN[op]
    layer = filled(layer.replica())
    original, asked = getattr(ops, op), []

    def spy(dy, cache, needs_dx=True, needs_dweight=True):
        asked.append((needs_dx, needs_dweight))
        return original(dy, cache, needs_dweight=needs_dweight)

    monkeypatch.setattr(ops, op, spy)
    if frozen:
        layer.weight.grad = draw(*layer.weight.shape)
        layer.freeze()
    tape = Tape()
    y = layer.forward(draw(*shape), tape)
    assert layer.backward(draw(*y.shape), tape).shape == shape        # the input's gradient is
    assert asked == [(True, not frozen)]
    assert [p.grad is None for _, p in layer.parameters()] == [frozen, frozen]


def test_a_bias_learns_beside_a_frozen_weight():
    layer, tape = filled(Linear(3, 4)), Tape()
    layer.weight.frozen = True
    dy = draw(2, 4)
    layer.forward(draw(2, 3), tape)
    layer.backward(dy, tape)
    assert layer.weight.grad is None
    np.testing.assert_allclose(layer.bias.grad, dy.sum(axis=0))


def test_a_frozen_embedding_does_no_work(monkeypatch):
    monkeypatch.setattr(ops, "embedding_backward", None)              # calling it would raise
    table, tape = filled(nn.Embedding(5, 3)).freeze(), Tape()
    y = table.forward(np.array([1, 2]), tape)
    table.backward(y, tape)
    assert table.weight.grad is None and not tape.stack


def test_parameters_are_named_by_attribute_and_index():
    chain = Chain(Linear(3, 4), Chain(nn.Embedding(5, 2)))
    chain.final = nn.LayerNorm(4)
    assert [name for name, _ in chain.parameters()] == [
        "layers.0.weight", "layers.0.bias", "layers.1.layers.0.weight",
        "final.weight", "final.bias"]
    assert chain.count() == 12 + 4 + 10 + 4 + 4


def test_a_fresh_model_holds_no_array_and_draws_no_number():
    def never(shape, generator):
        raise AssertionError("drew a random number")

    layer = Linear(3, 4, fill=never)
    assert layer.weight.value is None and layer.weight.grad is None
    layer.load_state({"weight": draw(4, 3), "bias": draw(4)})


def test_a_start_depends_on_the_seed_and_the_name_alone():
    small, large = Chain(Linear(4, 4)), Chain(Linear(4, 4), Linear(4, 4))
    a, b = small.initialise(5).state(), large.initialise(5).state()
    np.testing.assert_array_equal(a["layers.0.weight"], b["layers.0.weight"])
    assert not np.array_equal(b["layers.1.weight"], b["layers.0.weight"])
    assert not np.array_equal(small.initialise(6).state()["layers.0.weight"],
                              a["layers.0.weight"])


def test_initialise_gives_the_dtype_that_was_asked_for():
    assert all(p.value.dtype == np.float32 for _, p in Linear(3, 4).initialise().parameters())
    double = Linear(3, 4).initialise(0, np.float64).state()
    single = Linear(3, 4).initialise(0).state()
    assert all(double[n].dtype == np.float64 for n in double)
    np.testing.assert_array_equal(double["weight"].astype(np.float32), single["weight"])


def test_initialisers_have_the_spread_they_name():
    rng = np.random.default_rng(0)
    assert not zeros()((3, 4), rng).any() and (ones()((3, 4), rng) == 1).all()
    assert abs(normal(0.02)((200, 200), rng).std() - 0.02) < 2e-4
    w = uniform_fan_in()((64, 16, 3, 3), rng)
    assert 0.99 / 12 < abs(w).max() <= 1 / 12                         # fan_in = 16 * 9 = 12^2
    assert abs(uniform_fan_in(4)((999,), rng)).max() <= 1 / 2


@pytest.mark.parametrize("change, message", [
    (lambda s: s.pop("layers.0.bias"), r"Chain: missing tensors: layers\.0\.bias"),
    (lambda s: s.update(extra=np.ones(1)), "Chain: unexpected tensors: extra"),
    (lambda s: s.update({"layers.1.weight": np.ones((2, 9))}),
     r"Chain: tensors of the wrong shape: layers\.1\.weight \(2, 9\), expected \(4, 4\)"),
])
def test_a_state_that_does_not_fit_is_named_and_changes_nothing(change, message):
    chain = Chain(Linear(3, 4), Linear(4, 4)).initialise(0)
    before = {n: (p.value, p.value.copy()) for n, p in chain.parameters()}
    state = {n: v + 1 for n, v in chain.state().items()}
    change(state)
    with pytest.raises(ValueError, match=message) as error:
        chain.load_state(state)
    assert "\n" not in str(error.value)
    for name, p in chain.parameters():
        assert p.value is before[name][0]
        np.testing.assert_array_equal(p.value, before[name][1])


def test_a_long_list_of_tensors_is_cut_and_counted():
    chain = Chain(*(Linear(1, 1) for _ in range(9)))
    with pytest.raises(ValueError, match=r"layers\.2\.weight and 13 more$"):
        chain.load_state({})


def test_a_loaded_state_is_a_copy_in_the_dtype_asked_for():
    layer, state = Linear(3, 4), {"weight": draw(4, 3), "bias": draw(4)}
    assert layer.load_state(state).weight.value.dtype == np.float32
    layer.load_state(state, np.float64)
    state["weight"][:] = 0
    assert layer.weight.value.all() and layer.weight.value.dtype == np.float64


def test_a_replica_shares_values_and_has_its_own_gradients():
    chain = filled(Chain(Linear(3, 4), nn.activation("silu"), Linear(4, 2)))
    chain.layers[0].weight.grad = draw(4, 3)
    twin = chain.replica()
    assert all(p.grad is None for _, p in twin.parameters())
    tape = Tape()
    twin.forward(draw(2, 3), tape)
    twin.backward(draw(2, 2), tape)
    for (_, own), (_, p) in zip(chain.parameters(), twin.parameters(), strict=True):
        assert own is not p and own.value is p.value and p.grad is not None
    assert chain.layers[0].bias.grad is None
    np.testing.assert_array_equal(chain.layers[0].weight.grad, draw(4, 3))
    assert twin.layers[0] is not chain.layers[0]                      # two threads, two tapes


def test_a_gradient_is_not_shared_with_what_it_was_made_of():
    p = Parameter((2,), zeros())
    first = np.ones(2)
    p.accumulate(first)
    p.accumulate(np.ones(2))
    assert p.grad.tolist() == [2, 2] and first.tolist() == [1, 1]
    p.accumulate(None)
    assert p.grad.tolist() == [2, 2]


def test_an_unknown_activation_and_groups_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="unknown activation 'tanh'; known: silu"):
        nn.activation("tanh")
    with pytest.raises(ValueError, match="norm_num_groups=3 does not divide 8 channels"):
        nn.GroupNorm(3, 8)
