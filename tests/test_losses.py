"""Claims: the gradient is the derivative of the value; min-SNR is one loss in x0 whatever the
network predicts, finite from SNR 0 to infinity; the KL term is the divergence; dtypes are kept.
"""
import numpy as np
import pytest
from gradients import assert_grad

from tinydiff.losses import hinge, image_gradient, kl_to_normal, l1, min_snr_weight, mse
from tinydiff.schedules import Schedule
from tinydiff.targets import KINDS, target

RNG = np.random.default_rng(0)
P, Q, W = RNG.normal(size=(3, 2, 4, 5)), RNG.normal(size=(3, 2, 4, 5)), RNG.uniform(0.1, 2, 3)


@pytest.mark.parametrize("weight", [None, W])
def test_the_gradient_matches_central_differences(weight):
    _, dprediction = mse(P, Q, weight)
    h = 1e-5
    for i in np.ndindex(P.shape):
        nudge = np.zeros_like(P)
        nudge[i] = h
        difference = (mse(P + nudge, Q, weight)[0] - mse(P - nudge, Q, weight)[0]) / (2 * h)
        assert difference == pytest.approx(dprediction[i], abs=1e-6 * np.abs(dprediction).max())


def test_the_value_is_the_mean_of_the_squares():
    assert mse(P, Q)[0] == pytest.approx(((P - Q) ** 2).mean(), rel=1e-14)
    expected = sum(w * ((p - q) ** 2).sum() for w, p, q in zip(W, P, Q, strict=True)) / P.size
    assert mse(P, Q, W)[0] == pytest.approx(expected, rel=1e-14)
    assert mse(P, Q, np.ones(3))[0] == pytest.approx(mse(P, Q)[0], rel=1e-14)
    assert mse(P, P)[0] == 0
    assert type(mse(P, Q)[0]) is float


def test_l_simple_of_predicting_nothing_is_the_variance_of_the_noise():
    eps = RNG.normal(size=(64, 3, 32, 32))
    assert mse(np.zeros_like(eps), eps)[0] == pytest.approx(1, abs=4 * np.sqrt(2 / eps.size))


def test_a_weight_of_zero_silences_a_picture():
    value, dprediction = mse(P, Q, np.array([0.0, 1.0, 0.0]))
    assert value == pytest.approx(mse(P[1:2], Q[1:2])[0] / 3, rel=1e-14)
    assert not dprediction[[0, 2]].any() and dprediction[1].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_losses_keep_the_dtype(kind, dtype):
    p, q = P.astype(dtype), Q.astype(dtype)
    level = Schedule.make("linear").batch([1, 500, 1000], p)
    weight = min_snr_weight(level.signal, level.noise, kind)
    assert weight.shape == (3,) and weight.dtype == dtype
    assert mse(p, q, weight)[1].dtype == dtype
    assert mse(p, q, W)[1].dtype == dtype              # a float64 weight does not promote


@pytest.mark.parametrize("kind, formula", [
    ("sample", lambda snr: min(snr, 5)),
    ("epsilon", lambda snr: min(snr, 5) / snr),
    ("v_prediction", lambda snr: min(snr, 5) / (snr + 1)),
])
def test_min_snr_is_the_published_formula(kind, formula):
    schedule = Schedule.make("linear")
    levels = [schedule.level(t) for t in range(1, 1001)]
    signal, noise = (np.array([getattr(level, name) for level in levels])
                     for name in ("signal", "noise"))
    expected = [formula((level.signal / level.noise) ** 2) for level in levels]
    np.testing.assert_allclose(min_snr_weight(signal, noise, kind), expected, rtol=1e-12)


@pytest.mark.parametrize("kind, at_zero, at_infinity", [
    ("sample", 0, 5), ("epsilon", 1, 0), ("v_prediction", 0, 0), ("flow_prediction", 0, 0),
    ("score", 1, 0)])
def test_min_snr_is_finite_at_both_ends(kind, at_zero, at_infinity):
    weight = min_snr_weight(np.array([0.0, 1.0]), np.array([1.0, 0.0]), kind)
    assert weight == pytest.approx([at_zero, at_infinity])


def test_min_snr_is_the_same_loss_whatever_the_network_predicts():
    """Errors of one x0_hat, written as errors of x0, eps and v, weigh the same."""
    schedule = Schedule.make("linear")
    x0, x0_hat = P, Q
    level = schedule.batch([5, 300, 950], x0)
    x_t = RNG.normal(size=x0.shape)
    values = []
    for kind in KINDS:
        eps, eps_hat = ((x_t - level.signal * x) / level.noise for x in (x0, x0_hat))
        weight = min_snr_weight(level.signal, level.noise, kind)
        values.append(mse(target(kind, x0_hat, eps_hat, level), target(kind, x0, eps, level),
                          weight)[0])
    assert values == pytest.approx([values[0]] * len(KINDS), rel=1e-9)


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match=r"\(3, 2, 4, 5\), target \(1, 2, 4, 5\)"):
        mse(P, Q[:1])                                  # broadcasting would hide it
    with pytest.raises(ValueError, match=r"weight has shape \(3, 1\)"):
        mse(P, Q, W[:, None])
    with pytest.raises(ValueError, match="'eps'"):
        min_snr_weight(W, W, "eps")
    for gamma in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="gamma"):
            min_snr_weight(W, W, "epsilon", gamma)


# ---- the autoencoder's terms ----

ONE = np.ones(())


@pytest.mark.parametrize("loss", [l1, image_gradient])
def test_gradients_of_absolute_errors(loss):
    value, dprediction = loss(P, Q)
    assert type(value) is float
    assert_grad(lambda: np.array(loss(P, Q)[0]), {"P": P}, ONE, P=dprediction)


def test_kl_gradients():
    mean, logvar = P.copy(), Q.copy()
    value, dmean, dlogvar = kl_to_normal(mean, logvar)
    assert type(value) is float
    assert_grad(lambda: np.array(kl_to_normal(mean, logvar)[0]),
                {"mean": mean, "logvar": logvar}, ONE, mean=dmean, logvar=dlogvar)


def test_hinge_gradients():
    real, fake = 2 * P, 2 * Q                              # of either side of 1 and of -1
    value, dreal, dfake = hinge(real, fake)
    assert type(value) is float and dreal.any() and dfake.any()
    assert (dreal == 0).any() and (dfake == 0).any()
    assert_grad(lambda: np.array(hinge(real, fake)[0]), {"real": real, "fake": fake}, ONE,
                real=dreal, fake=dfake)


def test_l1_is_the_mean_absolute_error():
    assert l1(P, Q)[0] == pytest.approx(np.abs(P - Q).mean(), rel=1e-14)
    assert l1(P, P)[0] == 0 and not l1(P, P)[1].any()


def test_image_gradient_sees_edges_and_no_brightness():
    assert image_gradient(P + 3, P)[0] == pytest.approx(0, abs=1e-14)
    step = np.zeros((1, 1, 4, 6))
    step[..., 3:] = 2                                  # one edge of height 2 in each of 4 rows
    assert image_gradient(step, np.zeros_like(step))[0] == pytest.approx(2 / 5)
    ddown = image_gradient(step.swapaxes(2, 3), np.zeros((1, 1, 6, 4)))
    assert ddown[0] == pytest.approx(2 / 5)


def test_kl_is_the_divergence():
    """Against the integral of p log(p / q), and zero for the standard normal alone."""
    x, dx = np.linspace(-30, 30, 60_001, retstep=True)
    for mean, logvar in ((0.7, -1.2), (-2.0, 0.9)):
        log_p = -((x - mean) ** 2) / (2 * np.exp(logvar)) - (logvar + np.log(2 * np.pi)) / 2
        log_q = -(x**2) / 2 - np.log(2 * np.pi) / 2
        integral = (np.exp(log_p) * (log_p - log_q)).sum() * dx
        assert kl_to_normal(np.array([mean]), np.array([logvar]))[0] == pytest.approx(integral)
    value, dmean, dlogvar = kl_to_normal(np.zeros(3), np.zeros(3))
    assert value == 0 and not dmean.any() and not dlogvar.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_autoencoders_terms_keep_the_dtype(dtype):
    p, q = P.astype(dtype), Q.astype(dtype)
    for loss in (l1, image_gradient, kl_to_normal, hinge):
        assert all(gradient.dtype == dtype for gradient in loss(p, q)[1:])


def test_shapes_that_differ_are_refused():
    for loss in (l1, image_gradient):
        with pytest.raises(ValueError, match=r"\(3, 2, 4, 5\), target \(1, 2, 4, 5\)"):
            loss(P, Q[:1])
    with pytest.raises(ValueError, match="logvar"):
        kl_to_normal(P, Q[:1])
    with pytest.raises(ValueError, match="1 x 5"):
        image_gradient(P[:, :, :1], Q[:, :, :1])
