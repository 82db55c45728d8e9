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
# # What would a perfect network answer?
#
# For data that is a mixture of Gaussians the best denoiser, the score and the density are known in
# closed form. So one can watch diffusion work with no network at all, and tell what a sampler does
# wrong from what a network does wrong. `tinydiff.oracle` is that perfect network.
#
# 1. the best guess of the picture and the score are the same thing;
# 2. the oracle of a *data set* shows what a network learns, and what learning by heart is;
# 3. noise follows the score to the data;
# 4. guidance with exact scores: what it distorts.
#
# A few seconds.

# %%
import matplotlib.pyplot as plt
import numpy as np

from tinydiff.datasets import load_digits
from tinydiff.diffusion import CLEAN
from tinydiff.grids import levels
from tinydiff.oracle import FiniteData, GaussianMixture, guided_oracle
from tinydiff.samplers import SAMPLERS
from tinydiff.schedules import Schedule

SEED = 0
rng = np.random.default_rng(SEED)
schedule = Schedule.make("linear")
data = GaussianMixture([[-1.2, 0.0], [0.8, 0.9], [0.8, -0.9]], [0.05, 0.08, 0.08],
                       weights=[0.5, 0.25, 0.25], labels=["left", "right", "right"])

# %% [markdown]
# ## 1. Why is denoising the same as climbing the density?
#
# The denoiser's best answer is the mean of all clean points that could have become $x_t$. The score
# is the gradient of the log density of noisy points. Tweedie's formula says that each gives the
# other:
#
# $$\mathbb E[x_0 \mid x_t] = \frac{x_t + \text{noise}^2\, \nabla \log p_t(x_t)}{\text{signal}},
# \qquad \mathbb E[\epsilon \mid x_t] = -\,\text{noise}\, \nabla \log p_t(x_t).$$

# %%
level = schedule.level(250)
x_t = rng.normal(size=(6, 2))
x0_hat, eps_hat = data(x_t, level)                                    # (6, 2), (6, 2)
h = 1e-5
slopes = [(data.log_density(x_t + h * e, level) - data.log_density(x_t - h * e, level)) / (2 * h)
          for e in np.eye(2)]
score = np.stack(slopes, axis=1)                                      # (6, 2)

# %%
np.testing.assert_allclose(x0_hat, (x_t + level.noise**2 * score) / level.signal, atol=1e-6)
np.testing.assert_allclose(eps_hat, -level.noise * score, atol=1e-6)

# %% [markdown]
# With much noise the score points to the middle of everything; with little, to the nearest mode.

# %%
figure, panels = plt.subplots(1, 3, figsize=(9, 3), sharex=True, sharey=True)
line = np.linspace(-2.5, 2.5, 80)
plane = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)     # (6400, 2)
sparse = plane.reshape(80, 80, 2)[::8, ::8].reshape(-1, 2)
for panel, t in zip(panels, (600, 250, 60), strict=True):
    at = schedule.level(t)
    density = np.exp(data.log_density(plane, at)).reshape(80, 80)
    panel.contourf(line, line, density, 12, cmap="Blues")
    arrows = -data(sparse, at)[1]
    panel.quiver(*sparse.T, *arrows.T, width=0.004)
    panel.set(title=f"t = {t}", aspect="equal")
plt.show()

# %%
far, near = schedule.level(900), schedule.level(20)
spread = lambda at: np.ptp(data(x_t, at)[0], axis=0).max()
assert spread(far) < 0.4                                              # all guesses: about the mean
assert spread(near) > 1.5                                             # each its own mode

# %% [markdown]
# ## 2. What does the perfect denoiser of a data set say?
#
# A network sees a finite data set. Its best answer is a weighted mean of the pictures, with weights
# that fall with the distance: blurred at high noise, and at low noise one picture of the set,
# *exactly*. A network that reached this would have learnt its pictures by heart; a good one stays
# short of it.

# %%
digits = load_digits().array().astype(np.float64)[:500]               # (500, 1, 8, 8)
oracle = FiniteData(digits)
x0, eps = digits[7:8], rng.normal(size=(1, 1, 8, 8))
guesses = []
for t in (950, 600, 400, 200, 50):
    at = schedule.level(t)
    guesses.append(oracle(at.signal * x0 + at.noise * eps, at)[0][0, 0])
figure, panels = plt.subplots(1, 5, figsize=(8, 2))
for panel, guess in zip(panels, guesses, strict=True):
    panel.imshow(guess, cmap="gray", vmin=-1, vmax=1)
    panel.axis("off")
plt.show()

# %%
distance = [np.sqrt(((guess - x0[0, 0]) ** 2).mean()) for guess in guesses]
blurred = np.sqrt(((guesses[0] - digits.mean(axis=0)[0]) ** 2).mean())
assert distance[-1] < 1e-6                                            # the picture itself
assert blurred < 0.5 * distance[0]                                    # nearly the mean of all

# %% [markdown]
# ## 3. Does noise follow the score to the data?
#
# Start two thousand points in pure noise, and let a sampler walk down with the exact denoiser.

# %%
grid = levels(schedule, 40, "logsnr")
start = rng.normal(size=(2000, 2))
*_, last = SAMPLERS["dpmpp_2m"](data, start, grid)
mean, covariance = data.moments(CLEAN)
print("drawn:", last.x_s.mean(axis=0).round(3), np.cov(last.x_s.T).round(3).tolist())
print("exact:", mean.round(3), covariance.round(3).tolist())

# %%
assert np.abs(last.x_s.mean(axis=0) - mean).max() < 5 * np.sqrt(covariance.max() / 2000)
np.testing.assert_allclose(np.cov(last.x_s.T), covariance, atol=0.08)
left = (data.shares(last.x_s, schedule.level(1))[:, 0] > 0.5).mean()
assert abs(left - 0.5) < 5 * np.sqrt(0.25 / 2000)                     # half of them, as in the data

# %% [markdown]
# ## 4. What does guidance distort?
#
# Classifier-free guidance extrapolates: $(1 - w)\,\epsilon(x) + w\,\epsilon(x \mid c)$. At $w = 1$
# it samples the class exactly. Above, it samples *no* distribution that anyone wrote down: points
# are pushed away from the other classes, and they crowd.

# %%
right = data.of_class("right")
drawn = {}
for w in (1.0, 3.0, 8.0):
    *_, last = SAMPLERS["dpmpp_2m"](guided_oracle(right, data, w), start, grid)
    drawn[w] = last.x_s
    print(f"w = {w}: mean x {last.x_s[:, 0].mean():.3f}, spread {last.x_s[:, 0].std():.3f}")
print(f"exact: mean x {right.moments(CLEAN)[0][0]:.3f}, "
      f"spread {right.moments(CLEAN)[1][0, 0] ** 0.5:.3f}")

# %%
assert abs(drawn[1.0][:, 0].mean() - 0.8) < 0.03
assert drawn[8.0][:, 0].mean() > drawn[3.0][:, 0].mean() > drawn[1.0][:, 0].mean()
assert drawn[8.0][:, 0].std() < drawn[1.0][:, 0].std()

# %% [markdown]
# ## Exercise: Tweedie's formula
#
# Turn a score into the best guess of the clean point, and into that of the noise.

# %%
def my_tweedie(x_t, score, level):
    """Return (x0_hat, eps_hat) for the score of the noisy density at x_t."""
    raise NotImplementedError("two lines: the formulas of part 1")


# %%
def check_my_tweedie():
    """Compare with the oracle at levels from little noise to much."""
    for t in (20, 250, 900):
        at = schedule.level(t)
        got = my_tweedie(x_t, data.score(x_t, at), at)
        np.testing.assert_allclose(got, data(x_t, at), atol=1e-6)


try:
    check_my_tweedie()
    print("right: a score network is a denoiser")
except NotImplementedError as missing:
    print(f"not solved yet ({missing}): fill in my_tweedie, run its cell again, then this one")
