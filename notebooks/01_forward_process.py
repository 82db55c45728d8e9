# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What happens to a picture as noise is added?
#
# The forward process needs no network and no training: it is a recipe for mixing a picture with
# noise, and everything about it can be computed exactly. This notebook computes it:
#
# 1. many small steps are one large step;
# 2. schedules differ in how fast the picture goes, and in whether all of it goes;
# 3. if the picture is known, a step *back* is a Gaussian that can be written down.
#
# The pictures are 8x8 digits, which need no download. A few seconds.

# %%
import matplotlib.pyplot as plt
import numpy as np

from tinydiff.datasets import load_digits
from tinydiff.diffusion import posterior, q_sample, q_step, transition
from tinydiff.schedules import EDM, Flow, Schedule

SEED = 0
rng = np.random.default_rng(SEED)
digits = load_digits().array().astype(np.float64)                     # (1797, 1, 8, 8), in [-1, 1]
schedule = Schedule.make("linear")                                    # DDPM's own, T = 1000
digits.shape, schedule.T

# %% [markdown]
# ## 1. Are a thousand small steps one large one?
#
# Each step of the chain keeps a little less of the picture and adds a little noise
# (DDPM, arXiv:2006.11239, Eq. 2):
#
# $$x_t = \sqrt{1 - \beta_t}\; x_{t-1} + \sqrt{\beta_t}\; z_t, \qquad z_t \sim \mathcal N(0, I).$$
#
# We walk 300 of them with a digit, two thousand times over, and look at the mean and the spread.

# %%
x0 = digits[:1]                                                       # a zero
x = np.repeat(x0, 2000, axis=0)                                       # (2000, 1, 8, 8)
for t in range(1, 301):
    x = q_step(x, rng.normal(size=x.shape), schedule.level(t - 1), schedule.level(t))

level = schedule.level(300)
print(f"walked:   mean {x.mean(axis=0).min():+.3f} to {x.mean(axis=0).max():+.3f}, "
      f"spread {x.std(axis=0).mean():.3f}")
print(f"one shot: mean {-level.signal:+.3f} to {level.signal:+.3f}, spread {level.noise:.3f}")

# %% [markdown]
# A sum of independent Gaussians is Gaussian, so the walk has a closed form (Eq. 4), with *two*
# numbers: how much signal is left, and how much noise has come:
#
# $$x_t = \text{signal}_t\; x_0 + \text{noise}_t\; \epsilon, \qquad
# \text{signal}_t^2 = \prod_{r \le t} (1 - \beta_r), \quad
# \text{noise}_t^2 = 1 - \text{signal}_t^2.$$
#
# Training needs only this: a noisy picture at any $t$, without the walk.

# %%
standard_error = level.noise / np.sqrt(len(x))
assert np.abs(x.mean(axis=0) - level.signal * x0[0]).max() < 5 * standard_error
assert abs(x.std(axis=0).mean() - level.noise) < 0.01

# %%
signal, variance = 1.0, 0.0
for t in range(1, 301):
    ratio, beta = transition(schedule.level(t - 1), schedule.level(t))
    signal, variance = ratio * signal, ratio**2 * variance + beta     # variances add
assert abs(signal - level.signal) < 1e-12
assert abs(variance - level.noise**2) < 1e-12

# %% [markdown]
# ## 2. How fast does the picture go, and does all of it go?
#
# What counts is the ratio of the two numbers. Half its logarithm, $\lambda = \log(\text{signal} /
# \text{noise})$, falls along every schedule; they differ in where they spend their time.

# %%
schedules = {"linear (DDPM)": schedule,
             "Stable Diffusion": Schedule.make("scaled_linear", 1000, 0.00085, 0.012),
             "cosine": Schedule.make("squaredcos_cap_v2"),
             "flow matching": Flow(), "EDM": EDM()}
figure, panel = plt.subplots(figsize=(6, 3.5))
share = np.linspace(0.005, 0.995, 200)
for name, each in schedules.items():
    panel.plot(share, [each.level(u * each.T).lam for u in share], label=name)
panel.set(xlabel="t / T", ylabel="half log-SNR", ylim=(-6, 6))
panel.legend(fontsize=7)
plt.show()

# %%
for each in schedules.values():
    lams = [each.level(u * each.T).lam for u in share]
    assert (np.diff(lams) < 0).all()                                  # more noise at every step

# %% [markdown]
# Sampling starts from pure noise. But at the end of Stable Diffusion's schedule a little of the
# picture is still there, 7 % of its amplitude, so the network has learnt to rely on it: it cannot
# draw very dark or very bright pictures (arXiv:2305.08891). The cure stretches the schedule until
# nothing is left, *zero terminal SNR*.

# %%
flawed = schedules["Stable Diffusion"]
cured = Schedule.make("scaled_linear", 1000, 0.00085, 0.012, zero_snr=True)
white, noise = np.ones((500, 1, 8, 8)), rng.normal(size=(500, 1, 8, 8))
found = {}
for name, each in (("flawed", flawed), ("cured", cured)):
    x_T = q_sample(white, noise, each.level(1000).signal, each.level(1000).noise)
    found[name] = x_T.mean()
    print(f"{name}: signal {each.level(1000).signal:.4f}; at T a white picture has the mean "
          f"brightness {found[name]:+.4f}")

# %%
assert flawed.level(1000).signal > 0.06 and cured.level(1000).signal == 0
assert found["flawed"] > 0.05 and abs(found["cured"]) < 5 / np.sqrt(noise.size)

# %% [markdown]
# ## 3. What is a step back, if the picture is known?
#
# By Bayes' rule $q(x_s \mid x_t, x_0)$ is a product of two Gaussians in $x_s$, and so a Gaussian
# (Eqs. 6-7). `posterior` has its mean and variance. The check: make many pairs $(x_s, x_t)$
# forwards, keep those whose $x_t$ is near one value, and look at their $x_s$.

# %%
s, t = schedule.level(60), schedule.level(100)
pixel = 0.7
x_s = q_sample(pixel, rng.normal(size=400_000), s.signal, s.noise)
x_t = q_step(x_s, rng.normal(size=400_000), s, t)
near = np.abs(x_t - 0.9) < 0.01
mean, variance = posterior(0.9, pixel, t, s)
print(f"{near.sum()} pairs: mean {x_s[near].mean():.4f}, variance {x_s[near].var():.5f}")
print(f"the formula:  mean {mean:.4f}, variance {variance:.5f}")

# %%
assert abs(x_s[near].mean() - mean) < 5 * np.sqrt(variance / near.sum())
assert abs(x_s[near].var() / variance - 1) < 0.1

# %% [markdown]
# A sampler does not know the picture. It puts the network's guess in its place: that is DDPM.
#
# ## Exercise: from beta to signal
#
# The chain is given as a table of $\beta_1 \dots \beta_T$. Return the signal left after each step.

# %%
def my_signal(beta):
    """Return signal_1 ... signal_T, (T,), for beta_1 ... beta_T, (T,)."""
    raise NotImplementedError("multiply up what each step keeps")


# %%
def check_my_signal():
    """Compare with the schedule at a few rows."""
    got = my_signal(np.linspace(1e-4, 0.02, 1000))
    for t in (1, 2, 300, 1000):
        np.testing.assert_allclose(got[t - 1], schedule.level(t).signal, rtol=1e-9)


try:
    check_my_signal()
    print("right: that is the whole forward process")
except NotImplementedError as missing:
    print(f"not solved yet ({missing}): fill in my_signal, run its cell again, then this one")
