"""The one pass over a flat buffer is the NumPy definition, to rounding and on any threads."""
import numpy as np
import pytest
from two_threads import on_one_and_two_threads

import tinydiff
from tinydiff.ema import EMA
from tinydiff.kernels.accuracy import assert_as_accurate_as
from tinydiff.nn import Conv2d
from tinydiff.optim import AdamW, adamw_update

numba = pytest.importorskip("numba")
adamw = pytest.importorskip("tinydiff.kernels.cpu.adamw")

DEFINITION = adamw_update.reference
OPTIONS = {"k": 3, "lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.01,
           "clip": 0.3, "share": 0.02}
NAMES = ("value", "grad", "m", "v", "average")
SIZES = (1, 7, adamw.BLOCK - 1, adamw.BLOCK, adamw.BLOCK + 1, 5 * adamw.BLOCK + 33)


def buffers(n, dtype=np.float32, seed=0):
    """Return value, grad, m, v and average, as they might stand in the middle of a run."""
    rng = np.random.default_rng(seed)
    value, grad, m, average = rng.standard_normal((4, n))
    return [a.astype(np.float32).astype(dtype) for a in (value, grad, m, rng.random(n), average)]


def updated(function, arrays, **changes):
    """Return copies of `arrays` after one update."""
    copies = [a.copy() for a in arrays]
    assert function(*copies, **{**OPTIONS, **changes}) is not NotImplemented
    return copies


@pytest.mark.parametrize("changes", [
    {}, {"k": 1}, {"k": 5000}, {"weight_decay": 0.0}, {"clip": 1.0}, {"eps": 0.1},
    {"betas": (0.5, 0.999)}, {"share": 1.0}, {"lr": 0.0}], ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_every_array_is_as_accurate_as_the_definitions(n, changes):
    got = updated(adamw.adamw_update, buffers(n), **changes)
    reference32 = updated(DEFINITION, buffers(n), **changes)
    reference64 = updated(DEFINITION, buffers(n, np.float64), **changes)
    for name, *arrays in zip(NAMES, got, reference32, reference64, strict=True):
        assert_as_accurate_as(*arrays)
        assert name != "grad" or (arrays[0] == arrays[1]).all()       # it is only read


def test_without_an_average_the_rest_is_the_same():
    arrays = buffers(3000)
    alone, together = updated(adamw.adamw_update, arrays[:4]), updated(adamw.adamw_update, arrays)
    for a, b in zip(alone, together, strict=False):
        np.testing.assert_array_equal(a, b)


def test_a_part_of_a_longer_buffer_is_updated_and_nothing_beside_it():
    whole = buffers(4000)
    got = [a.copy() for a in whole]
    part = slice(101, 3334)                                           # no multiple of any register
    adamw.adamw_update(*(a[part] for a in got), **OPTIONS)
    want = updated(adamw.adamw_update, [a[part] for a in whole])
    for before, after, alone in zip(whole, got, want, strict=True):
        np.testing.assert_allclose(after[part], alone, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(after[:101], before[:101])
        np.testing.assert_array_equal(after[3334:], before[3334:])


def test_the_number_of_threads_changes_no_bit():
    results = on_one_and_two_threads(
        lambda: updated(adamw.adamw_update, buffers(50 * adamw.BLOCK + 5)))
    for one, two in zip(*results, strict=True):
        assert one.tobytes() == two.tobytes()


def test_a_gradient_that_is_no_number_stays_one():
    arrays = buffers(64)
    arrays[1][[3, 60]] = np.nan, np.inf
    value = updated(adamw.adamw_update, arrays)[0]
    assert not np.isfinite(value[[3, 60]]).any() and np.isfinite(np.delete(value, [3, 60])).all()


def test_whole_numbers_are_floats_to_the_kernel_or_it_would_be_compiled_again(monkeypatch):
    given = []
    monkeypatch.setattr(adamw, "_update", lambda *arguments: given.extend(arguments[5:]))
    adamw.adamw_update(*buffers(8), k=1, lr=1, betas=(0, 0), eps=1, weight_decay=1, clip=1, share=1)
    assert len(given) == 8 and {*map(type, given)} == {float}


def test_the_optimiser_takes_the_same_steps_by_kernel_and_by_definition():
    states = []
    for mode in ("fast", "reference"):
        with tinydiff.use(mode):
            layer = Conv2d(9, 40, 3).initialise(0)
            ema = EMA(layer)
            optimiser = AdamW(layer.parameters(), ema=ema)
            rng = np.random.default_rng(0)
            for _ in range(5):
                for _, p in layer.parameters():
                    p.accumulate(rng.standard_normal(p.shape, np.float32))
                optimiser.step(0.01, clip=0.5)
                layer.zero_grad()
            states.append(layer.state() | {f"ema.{n}": a for n, a in ema.model.state().items()}
                          | optimiser.state())
    assert len(states[0]) == 8
    for name, fast in states[0].items():
        np.testing.assert_allclose(fast, states[1][name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("change", [
    lambda arrays: [a.astype(np.float64) for a in arrays],
    lambda arrays: [*arrays[:4], arrays[4].astype(np.float64)],
    lambda arrays: [a[::2] for a in arrays],
    lambda arrays: [a.reshape(8, 8) for a in arrays],
    lambda arrays: [a.view(np.ma.MaskedArray) for a in arrays],
], ids=["float64", "float64 average", "strided", "two axes", "another kind of array"])
def test_what_the_kernel_does_not_know_is_left_to_the_definition(change):
    arrays = change(buffers(64))
    before = [a.copy() for a in arrays]
    assert adamw.adamw_update(*arrays, **OPTIONS) is NotImplemented
    for a, b in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(a, b)
