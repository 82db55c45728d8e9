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
# # Which word drew which pixels?
#
# The text reaches the picture in one place: *cross-attention*. There every pixel of a feature map
# asks every token of the caption a question, and takes a weighted mean of what they say. The
# weights are probabilities; kept, they are a picture of where each word was heard.
#
# 1. the formula, once with loops and once as it is used;
# 2. its gradient, and what the text encoder gets from it;
# 3. the layers of a trained U-Net that ask the text;
# 4. maps of a finished picture, word by word.

# %%
import numpy as np

import tinydiff
from tinydiff.ops import attention_backward, attention_forward

SEED = 0
rng = np.random.default_rng(SEED)
N, M, D, h = 6, 4, 8, 2                                               # pixels, tokens, width, heads
q, k, v = rng.normal(size=(1, N, D)), rng.normal(size=(1, M, D)), rng.normal(size=(1, M, D))
q.shape, k.shape, v.shape

# %% [markdown]
# ## 1. What does a pixel take from the words?
#
# Pixel $n$ has a query $q_n$, token $m$ a key $k_m$ and a value $v_m$ (arXiv:1706.03762, Eq. 1):
#
# $$p_{nm} = \frac{e^{q_n \cdot k_m / \sqrt d}}{\sum_{m'} e^{q_n \cdot k_{m'} / \sqrt d}}, \qquad
# o_n = \sum_m p_{nm}\, v_m.$$
#
# With $h$ heads this happens $h$ times, each on its own $d = D / h$ of the numbers.

# %%
def attend(q, k, v, h):
    """The definition, one head and one pixel at a time: o (N, D) and p (h, N, M)."""
    (N, D), M = q.shape, len(k)
    d, o, p = D // h, np.zeros_like(q), np.zeros((h, N, M))
    for i in range(h):
        own = slice(i * d, (i + 1) * d)
        for n in range(N):
            score = np.array([q[n, own] @ k[m, own] / np.sqrt(d) for m in range(M)])
            p[i, n] = np.exp(score) / np.exp(score).sum()
            o[n, own] = sum(p[i, n, m] * v[m, own] for m in range(M))
    return o, p


# %%
with tinydiff.use("reference"):                                       # keeps the probabilities
    o, cache = attention_forward(q, k, v, h)
o_slow, p_slow = attend(q[0], k[0], v[0], h)
o.shape, cache.probabilities.shape

# %%
np.testing.assert_allclose(o[0], o_slow, atol=1e-12)
np.testing.assert_allclose(cache.probabilities[0], p_slow, atol=1e-12)
np.testing.assert_allclose(cache.probabilities.sum(axis=-1), 1)       # a pixel's shares

# %% [markdown]
# A mean cannot leave the range of what it averages; and nobody asks in which order the tokens
# stand. (That a word comes before another is known to the text encoder, not to the U-Net.)

# %%
order = rng.permutation(M)
shuffled, _ = attention_forward(q, k[:, order], v[:, order], h)
np.testing.assert_allclose(shuffled, o, atol=1e-12)
assert (o <= v.max(axis=1) + 1e-12).all() and (o >= v.min(axis=1) - 1e-12).all()

# %% [markdown]
# ## 2. How does the picture teach the words?
#
# The three lines above, read from the bottom up. Given $\partial L / \partial o$, written $do$:
#
# $$dv = p^\top do, \qquad dp = do\, v^\top, \qquad
# ds_{nm} = p_{nm} \Big( dp_{nm} - \sum_{m'} p_{nm'}\, dp_{nm'} \Big),$$
#
# $$dq = \frac{1}{\sqrt d}\, ds\, k, \qquad dk = \frac{1}{\sqrt d}\, ds^\top q.$$
#
# $dk$ and $dv$ are what the caption's tokens get: a word learns from every pixel that listened to
# it, as much as it listened.

# %%
do = rng.normal(size=o.shape)
p, d = cache.probabilities[:, 0], D // h                              # of head 0: (1, N, M)
do_0, v_0, k_0, q_0 = (a[..., :d] for a in (do, v, k, q))

dv_0 = p.swapaxes(1, 2) @ do_0                                        # (1, M, d)
dp = do_0 @ v_0.swapaxes(1, 2)                                        # (1, N, M)
ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True))                  # (1, N, M)
dq_0, dk_0 = ds @ k_0 / np.sqrt(d), ds.swapaxes(1, 2) @ q_0 / np.sqrt(d)
dq_0.shape, dk_0.shape, dv_0.shape

# %%
dq, dk, dv = attention_backward(do, cache)
for by_hand, whole in ((dq_0, dq), (dk_0, dk), (dv_0, dv)):
    np.testing.assert_allclose(by_hand, whole[..., :d], atol=1e-12)
np.testing.assert_allclose(ds.sum(axis=-1), 0, atol=1e-12)            # shares only change hands

# %% [markdown]
# And is that the derivative? Nudge everything at once, in a random direction $r$:
#
# $$\Big\langle do, \frac{o(x + \varepsilon r) - o(x - \varepsilon r)}{2 \varepsilon} \Big\rangle =
# \langle dq, r_q \rangle + \langle dk, r_k \rangle + \langle dv, r_v \rangle.$$

# %%
r_q, r_k, r_v = (rng.normal(size=a.shape) for a in (q, k, v))
step = 1e-6
up, _ = attention_forward(q + step * r_q, k + step * r_k, v + step * r_v, h)
down, _ = attention_forward(q - step * r_q, k - step * r_k, v - step * r_v, h)
numerical = np.vdot(do, up - down) / (2 * step)
by_hand = np.vdot(dq, r_q) + np.vdot(dk, r_k) + np.vdot(dv, r_v)
print(f"by hand {by_hand:+.9e}, by nudging {numerical:+.9e}")

# %%
assert abs(by_hand - numerical) < 1e-7 * (np.linalg.norm(dq) + np.linalg.norm(dk))

# %% [markdown]
# ## 3. Where does a trained network ask?
#
# The U-Net's transformer blocks have two attentions: `attn1` among the pixels, `attn2` from the
# pixels to the text. We let it look at pure noise, and read the tape: what ran, in order, and what
# it kept.

# %%
from tinydiff.nn import Tape
from tinydiff.pipelines import network_timestep

pipe = tinydiff.load("emoji")
prompt = "red heart, noto style"
seen = list(pipe.steps(prompt, steps=20, seed=SEED))
text, tape = pipe.encode([prompt]), Tape()
with tinydiff.use("reference"):
    pipe.unet.forward(seen[0].x_t, network_timestep(seen[0].t), text.hidden, text.pooled, tape=tape)

asking = [(layer, cache.probabilities) for layer, cache in tape.stack
          if repr(layer).endswith("attn2.attention")]
for layer, p in asking:
    print(f"{p.shape[1]} heads, {p.shape[2]} pixels, {p.shape[3]} tokens: {layer}")

# %%
assert asking and all(p.shape[3] == text.hidden.shape[1] for _, p in asking)
assert all(np.allclose(p.sum(axis=-1), 1, atol=1e-5) for _, p in asking)

# %% [markdown]
# ## 4. Which word drew which pixels?
#
# Nothing was recorded while the picture was drawn. But a step holds what the network was shown,
# and the same question can be put to it again: `attention_maps` does that, and averages over
# heads, layers and steps (after arXiv:2210.04885). A word of several tokens has their sum.

# %%
from tinydiff.pipelines import attention_maps
from tinydiff.viz import word_strip

maps = attention_maps(pipe, prompt, seen)
for word, share in zip(maps.words, maps.maps, strict=True):
    print(f"{share.mean():5.1%}  {word}")
print(f"{maps.rest.mean():5.1%}  start, end and padding")
maps.maps.shape, maps.rest.shape

# %%
np.testing.assert_allclose(maps.maps.sum(axis=0) + maps.rest, 1, atol=1e-5)
assert maps.words == ["red", "heart", ",", "noto", "style"]

# %% [markdown]
# The colours of a word run from its least share to its largest: compare places, not words. Much
# goes to the start token and the padding, which say nothing new: a pixel that needs no word listens
# there, since its shares must add up to one.

# %%
word_strip(pipe.decode(seen[-1].x_s)[0], maps)

# %% [markdown]
# ### Is it the word that is heard there?
#
# A map shows where a word was listened to, not what came of it. A stricter question is to take the
# word away. We swap the vector of *red* for that of *green*, in the text and in nothing else, and
# let the network look once more at the same half-drawn picture.

# %%
def x0_hat_given(hidden, pooled, step):
    """The picture that the network sees at `step`, given these vectors for the text."""
    from tinydiff.targets import to_x0_eps
    v = pipe.unet.forward(step.x_t, network_timestep(step.t), hidden, pooled)
    x0_hat, _ = to_x0_eps(v, step.x_t, step.t, "v_prediction")        # (1, 16, 8, 8)
    return pipe.decode(x0_hat)[0]                                     # (3, 64, 64)


green = pipe.encode(["green heart, noto style"])
step = seen[5]
with_red = x0_hat_given(text.hidden, text.pooled, step)
with_green = x0_hat_given(green.hidden, green.pooled, step)
change = (with_green - with_red)[:, 20:40, 20:44].mean(axis=(1, 2))   # inside the heart
print("red, green, blue:", " ".join(f"{c:+.2f}" for c in change))

# %%
assert change[1] > 0 and change[1] > change[0]                        # the heart turned greener

# %% [markdown]
# ## Exercise: the shares, without a tape
#
# Fast attention never stores the probabilities; it can afford not to, because they follow from the
# queries and keys. Write them, (B, h, N, M), for arrays $q$ (B, N, D), $k$ (B, M, D) and `h` heads.

# %%
def my_shares(q, k, h):
    """Each pixel's shares of attention: softmax over tokens, in each head apart."""
    raise NotImplementedError("split D into h heads, multiply, scale, exponentiate, normalise")


# %%
def check_my_shares():
    """Compare with what the readable attention kept."""
    for heads in (1, 2, 4):
        with tinydiff.use("reference"):
            _, kept = attention_forward(q, k, v, heads)
        np.testing.assert_allclose(my_shares(q, k, heads), kept.probabilities, atol=1e-12)


try:
    check_my_shares()
    print("right: what attention looked at follows from its queries and keys")
except NotImplementedError as missing:
    print(f"not solved yet ({missing}): fill in my_shares, run its cell again, then this one")
