"""Attention maps are the cross-attention's own probabilities: each word's share of each pixel,
found again from the steps of a finished picture, which stays what it was.
"""
import numpy as np
import pytest
from tiny import same, tiny_latent_pipeline, tiny_pipeline

from tinydiff.backends.table import mode
from tinydiff.models.transformer_blocks import ProjectedAttention
from tinydiff.pictures import resize
from tinydiff.pipelines import WordMaps, attention_maps, network_timestep
from tinydiff.pipelines.attention_maps import words_of
from tinydiff.text import Tokenizer
from tinydiff.viz import word_strip

PROMPT = "red heart"


def tiny_drawing():
    pipe = tiny_pipeline("tokenizer.max_length=16")
    return pipe, list(pipe.steps(PROMPT, steps=3, count=2))


def test_the_shares_of_all_words_and_of_the_rest_are_one_in_every_pixel():
    pipe, steps = tiny_drawing()
    maps = attention_maps(pipe, PROMPT, steps, picture=1)
    assert maps.words == ["red", "heart"]
    assert maps.maps.shape == (2, 16, 16) and maps.rest.shape == (16, 16)
    np.testing.assert_allclose(maps.maps.sum(axis=0) + maps.rest, 1, atol=1e-6)
    assert maps.maps.min() > 0 and maps.maps.std(axis=(1, 2)).min() > 0


def test_a_map_is_the_softmax_of_queries_and_keys(monkeypatch):
    """The definition: watch q and k of every cross-attention, and work the shares out by hand."""
    pipe, steps = tiny_drawing()
    got = attention_maps(pipe, PROMPT, steps[1:2])
    seen = []
    forward = ProjectedAttention.forward

    def watch(self, x, context=None, **options):
        return forward(self, x, context, **options)

    def watched(self, x, context=None, tape=None):
        if context is not None:
            seen.append((x @ self.to_q.weight.value.T, context @ self.to_k.weight.value.T,
                         self.attention.num_heads))
        return watch(self, x, context)

    monkeypatch.setattr(ProjectedAttention, "forward", watched)
    text, step = pipe.encode([PROMPT]), steps[1]
    pipe.unet.forward(step.x_t[:1], network_timestep(step.t), text.hidden, text.pooled)
    layers = []
    for q, k, h in seen:
        heads = []
        for q_i, k_i in zip(np.split(q[0], h, axis=1), np.split(k[0], h, axis=1), strict=True):
            scores = np.exp(q_i @ k_i.T / np.sqrt(q_i.shape[1]))      # (N, M)
            heads.append((scores / scores.sum(axis=1, keepdims=True)).T)
        mean = np.mean(heads, axis=0)                                 # (M, N)
        side = int(np.sqrt(mean.shape[1]))
        layers.append(resize(mean.reshape(1, -1, side, side), 16)[0])
    assert len(layers) >= 2
    by_token = np.mean(layers, axis=0)
    _, places = words_of(pipe.tokenizer, PROMPT, len(by_token))
    for share, place in zip(got.maps, places, strict=True):
        np.testing.assert_allclose(share, by_token[place].sum(axis=0), rtol=1e-4)


def test_looking_changes_neither_the_picture_nor_the_mode():
    pipe, steps = tiny_drawing()
    before, weights = mode(), {n: v.copy() for n, v in pipe.unet.state().items()}
    attention_maps(pipe, PROMPT, steps)
    assert mode() == before and same(weights, pipe.unet.state())
    again = list(pipe.steps(PROMPT, steps=3, count=2))
    np.testing.assert_array_equal(again[-1].x_s, steps[-1].x_s)


def test_a_latent_model_has_maps_of_its_latents_drawn_over_its_picture():
    pipe = tiny_latent_pipeline()
    steps = list(pipe.steps(PROMPT, steps=2))
    maps = attention_maps(pipe, PROMPT, steps)
    assert maps.maps.shape[1:] == steps[0].x_t.shape[2:]
    np.testing.assert_allclose(maps.maps.sum(axis=0) + maps.rest, 1, atol=1e-5)
    picture = pipe.decode(steps[-1].x_s)[0]
    assert picture.shape[-1] > maps.maps.shape[-1]
    assert word_strip(picture, maps, scale=4).size[1] > 4 * picture.shape[-1]


def test_steps_are_averaged():
    pipe, steps = tiny_drawing()
    one_by_one = [attention_maps(pipe, PROMPT, [step]).maps for step in steps]
    np.testing.assert_allclose(attention_maps(pipe, PROMPT, steps).maps,
                               np.mean(one_by_one, axis=0), atol=1e-6)
    np.testing.assert_allclose(attention_maps(pipe, PROMPT, steps, most=2).maps,
                               (one_by_one[0] + one_by_one[2]) / 2, atol=1e-6)


def test_words_are_put_together_from_their_tokens():
    tokenizer = Tokenizer.train(["red heart"] * 2, 600)
    words, places = words_of(tokenizer, "Red  hearts, né", 20)
    assert words == ["red", "hearts", ",", "né"]
    ids = tokenizer.encode_batch(["Red  hearts, né"], 20)[0]
    assert [tokenizer.decode(ids[place]) for place in places] == words
    end = list(ids).index(tokenizer.end_id)
    assert [p for place in places for p in place] == list(range(1, end))
    assert words_of(tokenizer, "red heart", 3) == (["red"], [[1]])    # what does not fit is cut


def test_what_has_no_maps_is_said_in_one_line():
    pipe, steps = tiny_drawing()
    with pytest.raises(ValueError, match="there are none"):
        attention_maps(pipe, PROMPT, [])
    with pytest.raises(ValueError, match="no words"):
        attention_maps(pipe, "", steps)
    deaf = tiny_pipeline("unet.mid_block_type=UNetMidBlock2D",
                         "unet.down_block_types=['DownBlock2D', 'DownBlock2D']",
                         "unet.up_block_types=['UpBlock2D', 'UpBlock2D']")
    with pytest.raises(ValueError, match="no cross-attention"):
        attention_maps(deaf, PROMPT, list(deaf.steps(PROMPT, steps=2)))


def test_the_strip_is_bright_where_the_word_was_heard():
    left = np.tile(np.linspace(1, 0, 8), (8, 1))
    maps = WordMaps(["left", "right"], np.stack([left, 1 - left]), np.zeros((8, 8)))
    strip = word_strip(np.full((3, 16, 16), 0.5), maps, scale=4)
    image = np.asarray(strip.convert("L")).astype(float)
    cell = (strip.size[0] - 10) // 3                                  # three cells, each with a gap
    picture, first, second = (image[10:74, 10 + k * cell:10 + k * cell + cell - 10]
                              for k in range(3))
    inner = slice((cell - 10 - 64) // 2 + 4, (cell - 10 + 64) // 2 - 4)
    assert np.ptp(picture[:, inner]) == 0
    first, second = first[:, inner].mean(axis=0), second[:, inner].mean(axis=0)
    assert first[0] > first[-1] + 100 and second[-1] > second[0] + 100
    grey = word_strip(np.zeros((1, 16, 16)), maps)
    assert grey.size == strip.size
    with pytest.raises(ValueError, match="square picture"):
        word_strip(np.zeros((2, 3, 8, 8)), maps)
