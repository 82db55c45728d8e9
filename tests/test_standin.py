"""The stand-in for a device array refuses what CuPy refuses, and counts what crosses."""
import numpy as np
import pytest
from scipy import special
from standin import DeviceArray, cupy_has, put, signature, watched

x, ids = put(np.arange(6.0).reshape(2, 3)), put(np.array([0, 1, 1]))
HOST = np.ones(3)


@pytest.mark.parametrize("refused", [
    lambda: np.asarray(x), lambda: np.ascontiguousarray(x), lambda: np.block([x, x]),
    lambda: np.lib.stride_tricks.as_strided(x), lambda: x.tolist(),
    lambda: x + HOST, lambda: HOST * x, lambda: np.add(x, 1, out=HOST), lambda: [1.0, 2.0, 3.0] * x,
    lambda: np.concatenate([x, np.ones((1, 3))]), lambda: np.where(HOST > 0, x, x),
    lambda: x[np.array([0])], lambda: x[[0, 1]], lambda: x.__setitem__(0, HOST),
    lambda: np.add(x, 1, where=x > 0), lambda: x.sum(where=x > 0), lambda: x.max(initial=0.0),
    lambda: np.sum(x, initial=0.0), lambda: np.maximum.reduce(x), lambda: np.add.reduce(x),
    lambda: np.add.at(x, ([0], [1]), 1.0), lambda: np.add.at(x, [0], 1.0),
    lambda: special.softmax(x), lambda: special.logsumexp(x), lambda: np.linalg.vecdot(x, x),
    lambda: x.no_such_method(), lambda: range(ids[0]), lambda: x.mean(axis=0, where=x > 0),
])
def test_what_cupy_does_not_do_is_refused(refused):
    with pytest.raises((TypeError, AttributeError)):
        refused()


@pytest.mark.skipif(not hasattr(np, "vecdot"), reason="this NumPy has no vecdot")
def test_vecdot_is_refused():
    with pytest.raises(TypeError):
        np.vecdot(x, x)


@pytest.mark.parametrize("function", [
    lambda x, ids: np.pad(x, ((0, 0), (1, 1))), lambda x, ids: np.einsum("ij,kj->ik", x, x),
    lambda x, ids: np.where(x > 2, x, 0.0), lambda x, ids: np.concatenate([x, 2 * x], axis=1),
    lambda x, ids: np.take_along_axis(x, ids[None, :], axis=0), lambda x, ids: x @ x.T,
    lambda x, ids: np.lib.stride_tricks.sliding_window_view(x, 2, axis=1),
    lambda x, ids: special.erf(x), lambda x, ids: np.exp(x, out=x.copy()),
    lambda x, ids: x.reshape(3, -1).swapaxes(0, 1).sum(axis=(0, 1), keepdims=True),
    lambda x, ids: np.zeros((2, 2), np.float32, like=x), lambda x, ids: x.max(),
    lambda x, ids: np.split(x, [1], axis=1)[1], lambda x, ids: x[ids[:2]],
])
def test_what_cupy_does_gives_numpys_numbers_and_nothing_crosses(function):
    with watched() as seen:
        got = function(x, ids)
    want = function(x._host, ids._host)
    assert isinstance(got, DeviceArray) and got.dtype == want.dtype and got.shape == want.shape
    np.testing.assert_array_equal(got._host, want)
    assert not seen.moves and not seen.reads


def test_adding_at_an_array_of_indices_works():
    total = put(np.zeros(2))
    np.add.at(total, ids, put(np.ones(3)))
    np.testing.assert_array_equal(total._host, [1, 2])


def test_what_crosses_is_counted():
    with watched() as seen:
        y = np.array(HOST, like=x)
        y.get()
        assert float(y.sum()) == 3.0 and (y > 0).all()
    assert seen.moves == ["array", "get"] and seen.reads == ["item", "item"]
    assert isinstance(y, DeviceArray) and "sum" in seen.calls


def test_signatures_are_read_as_they_were_written():
    assert str(signature("a, b=, *, c=, **more")) == "(a, b=None, *, c=None, **more)"
    assert str(signature("*shape, order=")) == "(*shape, order=None)"
    assert str(signature("")) == "()"
    assert cupy_has()["cupy"].startswith("14.")
