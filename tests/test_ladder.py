"""The ladder's rungs compute what they claim, and its tables say what was measured."""
import numpy as np
import pytest

numba = pytest.importorskip("numba")

from tinydiff import ops  # noqa: E402
from tinydiff.backends.table import use  # noqa: E402
from tinydiff.bench import ladder  # noqa: E402
from tinydiff.jsonfile import read_json  # noqa: E402
from tinydiff.kernels.cpu import rungs  # noqa: E402
from tinydiff.kernels.cpu.conv2d import conv2d_backward  # noqa: E402
from tinydiff.kernels.cpu.simd import MR, NR  # noqa: E402


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


# ---- rungs ----

def test_all_products_are_the_product():
    M, N, K = 2 * MR, 3 * NR, 37
    a, b = normal(M, K), normal(K, N, seed=1)
    right = a.astype(np.float64) @ b
    for rung in (rungs.product_plain, rungs.product_rows):
        c = np.full((M, N), np.nan, np.float32)
        rung(a, b, c)
        np.testing.assert_allclose(c, right, atol=1e-5)
    c = np.full(M * N, np.nan, np.float32)
    rungs.product_tiles(a.ravel(), b.ravel(), c, M, N, K)
    np.testing.assert_allclose(c.reshape(M, N), right, atol=1e-5)


def test_the_loops_are_the_definition_and_its_derivative():
    x, weight, dy = normal(2, 3, 5, 4), normal(6, 3, 3, 3, seed=1), normal(2, 6, 5, 4, seed=2)
    x_padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y, dx_padded, dweight = np.empty_like(dy), np.zeros_like(x_padded), np.zeros_like(weight)
    rungs.convolve(x_padded, weight, y)
    rungs.convolve_backward_x(dy, weight, dx_padded)
    rungs.convolve_backward_weight(dy, x_padded, dweight)
    right, cache = ops.conv2d_forward.reference(x, weight)
    dx, dw, _ = ops.conv2d_backward.reference(dy, cache)
    for got, wanted in ((y, right), (dx_padded[:, :, 1:-1, 1:-1], dx), (dweight, dw)):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


# ---- what is measured ----

def test_steps_do_the_work_they_are_credited_with():
    """A convolution's flop count, against the products of the matrix that it amounts to."""
    plain, *_, blas = ladder.products([32, 64])
    assert blas.flops == [2 * M * -(-M // NR) * NR * M for M in (32, 64)]
    assert [f * ladder.PART for f in plain.flops] == blas.flops and not plain.shared
    loops, columns, *_ = ladder.convolutions(32, 8, 4)
    assert columns.flops == [2 * (32 * 4 * 4) * (8 * 9) * 8] * 3
    assert loops.flops == [flop // 16 for flop in columns.flops]


def test_each_pass_runs_in_the_mode_it_is_named_for():
    weight = normal(8, 8, 3, 3)
    kinds = {which: ladder.passes(which, "conv2d", normal(1, 8, 16, 16), weight)
             for which in ("reference", "precise", "fast")}
    with use("reference"):                                # whatever is in use outside
        caches = {which: run()[1] for which, (run, _) in kinds.items()}
    assert type(caches["reference"]) is tuple
    assert caches["fast"].backward is caches["precise"].backward is conv2d_backward
    assert [caches[which].arrays[-1] for which in ("precise", "fast")] == [False, True]
    dx, dweight, _ = ladder.passes("fast", "conv2d", normal(1, 8, 16, 16), weight,
                                   wanted=({"needs_dx": False},))[1]()
    assert dx is None and dweight.shape == weight.shape


def test_winograd_is_less_exact_and_direct_tiles_are_not():
    assert max(ladder.errors("precise", 2, 32, 16)) < 2 < min(ladder.errors("fast", 2, 32, 16))


def test_a_time_is_the_median_and_the_first_call_does_not_count(monkeypatch):
    clock = iter([0, 1, 10, 15, 20, 22])                  # calls of 1, 5 and 2 seconds
    monkeypatch.setattr(ladder.time, "perf_counter", lambda: next(clock))
    calls = []
    assert ladder.seconds(lambda: calls.append(1), 3, 0.0) == 2
    assert len(calls) == 4


def test_threads_are_set_and_set_back():
    before = numba.get_num_threads()
    with pytest.raises(KeyError), ladder.threads(1):
        assert numba.get_num_threads() == 1
        assert {lib["num_threads"] for lib in ladder.threadpool_info()
                if lib["user_api"] == "blas"} == {1}
        raise KeyError
    assert numba.get_num_threads() == before


# ---- tables ----

def test_the_command_prints_every_table_and_keeps_the_figures(capsys, tmp_path):
    ladder.main(["--quick", "--json", str(tmp_path / "ladder.json")])
    printed = capsys.readouterr().out
    kept = read_json(tmp_path / "ladder.json")
    assert len(kept["tables"]) == 5 and kept["facts"]["numba"] == numba.__version__
    for table in kept["tables"]:
        assert f"**{table['title']}**" in printed
        for name, figures in table["rows"]:
            assert f"| {name} |" in printed
            assert len(figures) == len(table["columns"])
            assert figures[0] > 0 and all(f is None or f > 0 for f in figures)


def test_without_numba_there_is_nothing_to_measure(capsys, monkeypatch):
    monkeypatch.setattr(ladder, "obstacle", lambda: "Numba is not installed; pip install it")
    with pytest.raises(SystemExit):
        ladder.main([])
    assert "nothing to measure: Numba is not installed" in capsys.readouterr().err
