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
# # How does a prompt become a picture?
#
# You type *red heart, noto style*; out of pure noise comes a red heart. This notebook takes the
# whole path of Stable Diffusion (arXiv:2112.10752), small, and stops at every number on the way:
#
# 1. words become vectors, and pictures become latents;
# 2. a latent drowns in noise (the forward process, which needs no learning);
# 3. a network learns to find the latent in the noise: one training step, gradients included;
# 4. pure noise becomes a latent, one step at a time, and the latent a picture;
# 5. the prompt is made to count for more (guidance).
#
# Everything is imported from `tinydiff`, where you can step into it with a debugger. Every claim is
# followed by a cell that asserts it. At the end there is an exercise. Under a minute on two cores.

# %%
import numpy as np

import tinydiff
from tinydiff.backends import normal
from tinydiff.datasets import caption, load_emoji
from tinydiff.pictures import sheet

SEED = 0
pipe = tinydiff.load("emoji")                                         # trained by this project
schedule = pipe.scheduler.schedule

pictures = load_emoji(size=64, styles="noto")
number = {record["label"]: i for i, record in enumerate(pictures.records)}
{part: getattr(pipe, part).count() for part in ("text_encoder", "vae", "unet")}

# %% [markdown]
# ## 1. What does the network read, and what does it draw?
#
# Neither letters nor pixels. A tokenizer cuts the prompt into pieces that it knows, and CLIP's text
# encoder turns each into a vector; [notebook 17](17_clip.py) trains one. All prompts are padded to
# the same length.

# %%
prompt = "red heart, noto style"
ids = pipe.tokenizer.encode_batch([prompt])                           # (1, N)
text = pipe.encode([prompt])
print(" ".join(pipe.tokenizer.tokens(prompt)))
ids.shape, text.hidden.shape

# %%
assert text.hidden.shape[:2] == ids.shape                             # a vector for each token
assert np.array_equal(text.hidden, pipe.text_encoder.forward(ids).hidden)

# %% [markdown]
# An autoencoder turns a picture into a twelfth as many numbers, its *latents*, and back;
# [notebook 19](19_autoencoder.py) says how. The diffusion happens among latents: the network draws
# what the decoder will make a picture of.

# %%
x = pictures.array([number[label] for label in ("red heart", "tiger face", "rocket", "pizza")])
z0 = pipe.latents(x)                                                  # (4, 16, 8, 8)
x_again = pipe.decode(z0)                                             # (4, 3, 64, 64)
sheet(np.concatenate([x, x_again]), columns=4, scale=2)

# %%
from tinydiff.metrics import psnr

assert z0.size * 12 == x.size
assert psnr(np.clip(x_again, -1, 1), x) > 25                          # decibel: 30 is hard to see
assert 0.5 < z0.std() < 2                                             # scaled to fit the noise

# %% [markdown]
# ## 2. How does a latent become noise?
#
# Mix a latent $x_0$ with Gaussian noise $\epsilon$, more of it as the time $t$ goes from 0 to
# $T = 1000$ (DDPM, arXiv:2006.11239, Eq. 4):
#
# $$x_t = \underbrace{\sqrt{\bar\alpha_t}}_{\text{signal}}\, x_0 +
# \underbrace{\sqrt{1 - \bar\alpha_t}}_{\text{noise}}\, \epsilon,
# \qquad \epsilon \sim \mathcal N(0, I).$$
#
# A `Level` carries these two numbers for one $t$. (The formulas do not care what is denoised, so
# they say $x$ where Stable Diffusion's paper says $z$.)

# %%
from tinydiff.diffusion import q_sample

x0 = z0[:1]                                                           # (1, 16, 8, 8)
eps = normal(x0.shape[1:], SEED, "notebook")                          # (1, 16, 8, 8)

level = schedule.level(500)
x_t = q_sample(x0, eps, level.signal, level.noise)                    # (1, 16, 8, 8)
print(level)
x0.shape, eps.shape, x_t.shape

# %%
assert abs(level.signal**2 + level.noise**2 - 1) < 1e-12              # the variance is preserved
assert schedule.level(0) == (0, 1, 0)                                 # t = 0: the latent itself
assert schedule.level(1000).signal < 1e-4                             # t = T: nothing of it is left
np.testing.assert_allclose((x_t - level.signal * x0) / level.noise, eps, atol=1e-5)

# %% [markdown]
# What the decoder makes of it: a latent in noise is no picture in noise, but a picture of
# something else.

# %%
times = range(0, 1001, 125)
noisy = np.concatenate([q_sample(x0, eps, *schedule.level(t)[1:]) for t in times])
sheet(pipe.decode(noisy), columns=len(times))

# %%
far = [np.abs(x - noisy[0]).mean() for x in noisy]
assert far == sorted(far)                                             # further with every step

# %% [markdown]
# How fast the latent goes is the schedule's choice. This model's, a cosine, keeps some of it for
# longer than DDPM's own, where the last third of the way is noise alone:

# %%
from tinydiff.viz import schedule_curves

ddpm = tinydiff.Schedule.make("linear")
schedule_curves({"this model": schedule, "DDPM": ddpm})

# %%
assert abs(schedule.level(500).lam) < 0.05                            # as much latent as noise
assert ddpm.level(500).lam < -1                                       # three times as much noise

# %% [markdown]
# ### The same, one small step after another
#
# The process is defined as a chain: each step keeps a little less of the picture and adds a little
# noise (Eq. 2),
#
# $$x_t = \sqrt{1 - \beta_t}\; x_{t-1} + \sqrt{\beta_t}\; z, \qquad z \sim \mathcal N(0, I).$$
#
# A sum of independent Gaussians is a Gaussian, so 500 such steps are *one* step with another signal
# and variance. We follow those two numbers up the chain.

# %%
from tinydiff.diffusion import transition

signal, variance = 1.0, 0.0                                           # x_0: all latent, no noise
for t in range(1, 501):
    ratio, beta_t = transition(schedule.level(t - 1), schedule.level(t))
    signal = ratio * signal
    variance = ratio**2 * variance + beta_t                           # variances add

print(f"after 500 steps: signal {signal:.6f}, noise {variance**0.5:.6f}")
print(f"in one shot:     signal {level.signal:.6f}, noise {level.noise:.6f}")

# %%
assert abs(signal - level.signal) < 1e-10
assert abs(variance**0.5 - level.noise) < 1e-10

# %% [markdown]
# ## 3. How does the network learn?
#
# The network gets the noisy latent $x_t$, the time $t$ and the caption's vectors. It could answer
# with the noise, or with the latent; this one answers with a mixture of both that is well scaled at
# every $t$ (arXiv:2202.00512, Sec. 4):
#
# $$v = \text{signal} \cdot \epsilon - \text{noise} \cdot x_0.$$
#
# A training step begins with some latents, one time for each, and noise. The autoencoder and the
# text encoder are at rest. We work in float64, on a copy of the U-Net, so that the gradients below
# can be checked to many digits.

# %%
from tinydiff.targets import target

unet = pipe.unet.replica()
unet.load_state(unet.state(), np.float64)                             # now a copy

x0 = z0.astype(np.float64)                                            # (B, 16, 8, 8)
batch = [number[label] for label in ("red heart", "tiger face", "rocket", "pizza")]
hidden = pipe.encode([caption(pictures.records[i]) for i in batch]).hidden.astype(np.float64)
levels = schedule.batch([100, 350, 600, 850], x0)                     # signal, noise (B, 1, 1, 1)
eps = normal(x0.shape[1:], SEED, "notebook", 1, range(len(x0)), x0.dtype)
x_t = q_sample(x0, eps, levels.signal, levels.noise)                  # (B, 16, 8, 8)
v = target("v_prediction", x0, eps, levels)                           # (B, 16, 8, 8)
x0.shape, hidden.shape, levels.t.shape, x_t.shape, v.shape

# %% [markdown]
# With $x_t$ given, $v$ says as much as the latent and the noise together: `to_x0_eps` turns it
# back into both.

# %%
from tinydiff.targets import to_x0_eps

x0_again, eps_again = to_x0_eps(v, x_t, levels, "v_prediction")
np.testing.assert_allclose(x0_again, x0, atol=1e-12)
np.testing.assert_allclose(eps_again, eps, atol=1e-12)

# %% [markdown]
# ### Forward: the tape remembers
#
# Each layer pushes onto a `Tape` what its backward pass will need. (Row $t$ of the schedule is
# called $t - 1$ by the network, as in all published ones; `network_timestep` translates.)

# %%
from tinydiff.nn import Tape
from tinydiff.pipelines import network_timestep

tape, timestep = Tape(), network_timestep(levels)                     # (B,)
v_hat = unet.forward(x_t, timestep, hidden, tape=tape)                # (B, 16, 8, 8)

print(len(tape.stack), "layers ran; the first two and the last two:")
for layer, _ in tape.stack[:2] + tape.stack[-2:]:
    print("   ", layer)
v_hat.shape

# %%
assert np.array_equal(v_hat, unet.forward(x_t, timestep, hidden))     # it only watches

# %% [markdown]
# ### The loss, and its gradient
#
# $$L = \frac1N \sum_i (\hat v_i - v_i)^2, \qquad
# \frac{\partial L}{\partial \hat v_i} = \frac2N (\hat v_i - v_i).$$

# %%
from tinydiff.losses import mse

loss, dv_hat = mse(v_hat, v)
print(f"loss {loss:.4f}")
dv_hat.shape

# %%
np.testing.assert_allclose(loss, np.mean((v_hat - v) ** 2))
np.testing.assert_allclose(dv_hat, 2 * (v_hat - v) / v.size)

# %% [markdown]
# ### Backward: the tape, read from its end
#
# `backward` visits the layers in the opposite order. Each takes from the tape what it saved, turns
# the gradient of its output into the gradient of its input, and adds to the gradients of its own
# parameters. By way of the cross-attention the gradient reaches the words' vectors too.

# %%
unet.zero_grad()
gradients = unet.backward(dv_hat, tape)
gradients.sample.shape, gradients.context.shape

# %%
assert tape.stack == []                                               # every layer had its turn
assert all(p.grad.shape == p.value.shape for _, p in unet.parameters())
assert np.all(np.abs(gradients.context).max(axis=2) > 0)              # every word was listened to

# %% [markdown]
# ### Is it the derivative?
#
# Nudge a single number $\theta$ of the network up and down, and look at the loss:
#
# $$\frac{\partial L}{\partial \theta} \approx \frac{L(\theta + h) - L(\theta - h)}{2h}.$$
#
# We do it for one entry each in the first convolution, in the attention to the text, and in the
# embedding of the time.

# %%
def loss_at(p, i, theta):
    """The loss when entry `i` of the parameter `p` is `theta`."""
    p.value[i], before = theta, p.value[i]
    loss, _ = mse(unet.forward(x_t, timestep, hidden), v)
    p.value[i] = before
    return loss


def central_difference(p, i, h=1e-5):
    """The slope of the loss in entry `i` of the parameter `p`."""
    return (loss_at(p, i, p.value[i] + h) - loss_at(p, i, p.value[i] - h)) / (2 * h)


# %%
names = [next(n for n, _ in unet.parameters() if n.endswith(end)) for end in (
    "conv_in.weight", "attn2.to_v.weight", "time_embedding.linear_1.weight")]
for name in names:
    p = dict(unet.parameters())[name]
    i = np.unravel_index(np.abs(p.grad).argmax(), p.shape)            # the entry that matters most
    by_hand, numerical = p.grad[i], central_difference(p, i)
    print(f"{by_hand:+.9e}  {numerical:+.9e}  {name}{list(map(int, i))}")
    assert abs(by_hand - numerical) < 1e-6 * abs(by_hand)

# %% [markdown]
# ### The step
#
# All gradients are known; AdamW moves every parameter a little against its own. On these latents,
# with this noise, the loss must fall. That was one of the thousands of steps that trained this
# model.

# %%
from tinydiff.optim import AdamW

optimiser = AdamW(unet.parameters())
optimiser.step(lr=1e-5)
loss_after, _ = mse(unet.forward(x_t, timestep, hidden), v)
print(f"loss {loss:.5f} -> {loss_after:.5f}")
x_t.shape, v.shape

# %%
assert loss_after < loss

# %% [markdown]
# ## 4. How does noise become a picture?
#
# The trained network finds the latent in the noise. It is not asked once, since at $t = 1000$ it
# can only guess what is hidden there, but many times: each answer takes the sample to a slightly
# lower noise level, and there it is asked again. `pipe.steps` is a generator, and `next` is one
# step of it.

# %%
steps = pipe.steps(prompt, steps=25, guidance=3.0, seed=SEED)
step = next(steps)

print("from", step.t)
print("to  ", step.s)
step.x_t.shape, step.x0_hat.shape, step.eps_hat.shape, step.x_s.shape

# %% [markdown]
# From left to right, decoded: the sample at the higher level $t$; the latent that the model sees in
# it; the sample at the lower level $s$. After the first step little can be seen:

# %%
sheet(pipe.decode(np.concatenate([step.x_t, step.x0_hat, step.x_s])), columns=3, scale=2)

# %%
np.testing.assert_allclose(
    step.t.signal * step.x0_hat + step.t.noise * step.eps_hat, step.x_t, atol=1e-5)

# %% [markdown]
# ### One step by hand
#
# First the model's view. The network predicts $v$, once with the prompt and once with the empty
# prompt; *guidance* (section 5) combines the two. `to_x0_eps` parts the answer into the latent and
# the noise.

# %%
from tinydiff.guidance import classifier_free

t, s, x_t = step.t, step.s, step.x_t
timestep, null = network_timestep(t), pipe.encode([""])
v_text = pipe.unet.forward(x_t, timestep, text.hidden)                # (1, 16, 8, 8)
v_null = pipe.unet.forward(x_t, timestep, null.hidden)                # (1, 16, 8, 8)

v_hat = classifier_free(v_null, v_text, 3.0)                          # (1, 16, 8, 8)
x0_hat, eps_hat = to_x0_eps(v_hat, x_t, t, "v_prediction")            # (1, 16, 8, 8) each
text.hidden.shape, v_text.shape, x0_hat.shape, eps_hat.shape

# %%
np.testing.assert_allclose(x0_hat, step.x0_hat, atol=1e-4)
np.testing.assert_allclose(eps_hat, step.eps_hat, atol=1e-4)

# %% [markdown]
# Then the update. DDIM (arXiv:2010.02502, Eq. 12, with $\sigma = 0$) mixes the same two parts
# again, at the lower level:
#
# $$x_s = \text{signal}_s\, \hat x_0 + \text{noise}_s\, \hat\epsilon.$$

# %%
from tinydiff.samplers import ddim_step

x_s = s.signal * x0_hat + s.noise * eps_hat                           # (1, 16, 8, 8)
x_s.shape

# %%
np.testing.assert_allclose(x_s, ddim_step(x_t, x0_hat, eps_hat, t, s), atol=1e-6)
np.testing.assert_allclose(x_s, step.x_s, atol=1e-4)

# %% [markdown]
# ### All steps
#
# The generator goes on from where we stopped. Each step starts where the one before has ended, and
# the last one ends at the model's latent itself: at $t = 0$ there is no noise to mix in.

# %%
from itertools import pairwise

seen = [step, *steps]
last = seen[-1]
print(len(seen), "steps, t =", ", ".join(f"{step.t.t:g}" for step in seen), "and", last.s.t)
last.x_s.shape

# %%
assert len(seen) == 25
assert all(before.x_s is after.x_t for before, after in pairwise(seen))
assert last.s == (0, 1, 0)
assert np.array_equal(last.x_s, last.x0_hat)

# %% [markdown]
# Above, the samples; below, what the model sees in each, both decoded: at first a blur of all the
# hearts it could become, soon this one.

# %%
from tinydiff.viz import denoising_strip

denoising_strip([pipe.decoded(step) for step in seen])

# %%
x = pipe.decode(last.x_s)                                             # (1, 3, 64, 64)
red, green, blue = x[0, :, 24:36, 24:40].mean(axis=(1, 2))            # the middle of the picture
assert red > green + 0.5 and red > blue + 0.5                         # a red heart is red

# %% [markdown]
# ## 5. How is the prompt made to count for more?
#
# Ask the network with the prompt and without it, and go further in the direction in which they
# differ (classifier-free guidance, arXiv:2207.12598):
#
# $$\hat v = \hat v_\text{null} + w\, (\hat v_\text{text} - \hat v_\text{null}).$$
#
# $w = 0$ ignores the prompt, 1 follows it, more exaggerates it.

# %%
v_hat = {w: classifier_free(v_null, v_text, w) for w in (0, 1, 3)}
v_hat[3].shape

# %%
assert np.array_equal(v_hat[0], v_null)
assert np.array_equal(v_hat[1], v_text)
np.testing.assert_allclose(v_hat[3] - v_hat[0], 3 * (v_hat[1] - v_hat[0]), atol=1e-5)

# %% [markdown]
# Two prompts, one a row; along a row the noise stays the same and $w$ is 0, 1, 3 and 6:

# %%
prompts = ["red heart, noto style", "green apple, noto style"]
rows = []
for w in (0, 1, 3, 6):
    *_, last = pipe.steps(prompts, steps=15, guidance=w, seed=SEED)
    rows.append(last.x_s)                                             # (2, 16, 8, 8)
z = np.stack(rows, axis=1)                                            # (2, 4, 16, 8, 8)
z.shape

# %%
sheet(pipe.decode(z.reshape(-1, *z.shape[2:])), columns=4, scale=2)

# %% [markdown]
# The two rows start from different noise (picture 0 and picture 1 of the seed). Alone, each is the
# same picture as here: the noise is keyed by seed and picture, not by what else is drawn.

# %%
*_, last = pipe.steps(prompts[0], steps=15, guidance=3, seed=SEED)
np.testing.assert_allclose(last.x_s[0], z[0, 2], atol=1e-2)
assert np.abs(z[0, 2] - z[0, 0]).max() > 0.1                          # the prompt matters

# %% [markdown]
# ## Exercise: DDPM
#
# DDIM adds no noise of its own. DDPM does: it draws $x_s$ from what is known about it when $x_t$
# and $x_0$ are, with $\hat x_0$ in place of $x_0$ (arXiv:2006.11239, Eqs. 6-7, here for any two
# levels $s < t$):
#
# $$x_s = \frac{r\,\text{noise}_s^2}{\text{noise}_t^2}\, x_t +
# \frac{\text{signal}_s\, \beta}{\text{noise}_t^2}\, \hat x_0 +
# \sqrt{\frac{\beta\,\text{noise}_s^2}{\text{noise}_t^2}}\; z,$$
#
# $$r = \frac{\text{signal}_t}{\text{signal}_s}, \qquad
# \beta = \text{noise}_t^2 - r^2\, \text{noise}_s^2.$$
#
# Write it. The test compares it with DDIM at $\eta = 1$, which claims to be the same.

# %%
def my_ddpm_step(x_t, x0_hat, t, s, z):
    """Draw x_s from q(x_s | x_t, x0_hat), with the standard normal draw `z`."""
    raise NotImplementedError("write the three terms of the formula above")


# %%
def check_my_ddpm_step(step):
    """Compare with DDIM at eta = 1, for the two levels of `step`."""
    t, s, x_t, x0_hat, eps_hat, _ = step
    z = normal(x_t.shape[1:], SEED, "exercise")
    got = my_ddpm_step(x_t, x0_hat, t, s, z)
    np.testing.assert_allclose(got, ddim_step(x_t, x0_hat, eps_hat, t, s, 1.0, z), atol=1e-4)


try:
    for step in seen[5:]:
        check_my_ddpm_step(step)
    print("right: DDIM with eta = 1 is DDPM")
except NotImplementedError as missing:
    print(f"not solved yet ({missing}): fill in my_ddpm_step, run its cell again, then this one")
