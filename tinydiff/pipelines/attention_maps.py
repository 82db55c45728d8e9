"""Which word drew which pixels: the probabilities of cross-attention, looked up afterwards.

In cross-attention every pixel of a feature map asks the caption's tokens, and what it takes
from each adds up to one.  Seen from the token, these shares are a picture: where it was heard.

R. Tang et al., "What the DAAM: Interpreting Stable Diffusion Using Cross Attention", 2022,
arXiv:2210.04885.  There the maps of several layers are summed too; here they are averaged, so
that all tokens' maps together are 1 in every pixel.
"""
from typing import NamedTuple

import numpy as np

from tinydiff.backends.device import to_host
from tinydiff.backends.table import use
from tinydiff.nn import Tape
from tinydiff.pictures import resize
from tinydiff.pipelines.denoiser import timestep_of
from tinydiff.text.words import WORD_END, to_bytes

ANSWERED = "attn2.attention"            # the published name of the layer that asks the text


class WordMaps(NamedTuple):
    """What `attention_maps` returns.

    Fields: the prompt's `words`, in order; `maps` (words, H, W), the share of a pixel's attention
    that went to each word; and `rest` (H, W), what went to the start, the end and the padding.
    All together are 1 in every pixel.
    """

    words: list
    maps: object
    rest: object


def attention_maps(pipe, prompt, steps, picture=0, most=16):
    """Ask the network again what it attended to in one picture's steps.

    Nothing is recorded while a picture is drawn: a step holds what the network was shown, so the
    same question can be put to it once more, with a tape.

    Parameters
    ----------
    pipe : TextToImage
    prompt : str
        The one that the picture was drawn from.
    steps : iterable of Step
        All steps of its sampling, as ``pipe.steps`` yields them.
    picture : int, default 0
        Its place in the batch.
    most : int, default 16
        Average over at most so many of the steps, evenly chosen.

    Returns
    -------
    WordMaps
        Averaged over steps, layers and heads; H and W are those of what was denoised.

    Raises
    ------
    ValueError
        If there are no steps, or the network never attends to its text.
    """
    steps = list(steps)
    if not steps:
        raise ValueError("attention maps need the steps of a sampler, and there are none")
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int))
    with use("reference"):              # the readable attention keeps its probabilities
        text = pipe.encode([prompt])
        maps = to_host(sum(_token_maps(pipe, text, steps[k], picture) for k in chosen))
    maps = maps / len(chosen)                                         # (M, H, W)
    words, places = words_of(pipe.tokenizer, prompt, len(maps))
    if not words:
        raise ValueError(f"the prompt {prompt!r} has no words to draw maps of")
    by_word = np.stack([maps[place].sum(axis=0) for place in places])
    return WordMaps(words, by_word, maps.sum(axis=0) - by_word.sum(axis=0))


def _token_maps(pipe, text, step, picture):
    """Return (M, H, W): each token's share of the attention of each pixel, in one step."""
    x_t = step.x_t[picture:picture + 1]                               # (1, C, H, W)
    tape = Tape()
    timestep = timestep_of(pipe.scheduler.schedule)(step.t)
    pipe.unet.forward(x_t, timestep, text.hidden, text.pooled, tape=tape)
    maps = [_layer_maps(cache.probabilities, x_t.shape[-1]) for layer, cache in tape.stack
            if repr(layer).endswith(ANSWERED)]
    if not maps:
        raise ValueError("this network has no cross-attention: no word draws any pixel of its own")
    return sum(maps) / len(maps)


def _layer_maps(probabilities, side):
    """Average (1, h, N, M) over the heads; return (M, side, side), the pixels N in their places."""
    p = probabilities.mean(axis=(0, 1)).T                             # (M, N)
    M, N = p.shape
    own = round(N ** 0.5)
    return resize(p.reshape(1, M, own, own), side)[0]


def words_of(tokenizer, prompt, length):
    """Return the words of a prompt, and for each the places of its tokens in the row of ids.

    A word that does not fit into `length` tokens is not in the row, nor here.

    Examples
    --------
    >>> from tinydiff.text import Tokenizer
    >>> words_of(Tokenizer.train(["red heart", "red"], 518), "red heart", 8)
    (['red', 'heart'], [[1], [2, 3, 4, 5, 6]])
    """
    words, places, spelled, place = [], [], b"", []
    for i, token in enumerate(tokenizer.tokens(prompt)[:length - 2]):
        spelled += to_bytes(token.removesuffix(WORD_END))
        place.append(1 + i)                                           # the start token is place 0
        if token.endswith(WORD_END):
            words.append(spelled.decode("utf-8", "replace"))
            places.append(place)
            spelled, place = b"", []
    return words, places
