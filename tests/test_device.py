"""The array decides: everything runs on device arrays, and nothing crosses unasked.

Each test runs on the strict stand-in of tests/standin.py, and under ``make test-gpu`` on CuPy
arrays.  On the stand-in the results are NumPy's to the bit, since the very same lines ran.
"""
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import standin
from test_dtype import LAYERS
from test_ops_dtype import ARGUMENTS
from tiny import (
    tiny_class_objective,
    tiny_class_pipeline,
    tiny_classifier_objective,
    tiny_judged_objective,
    tiny_latent_pipeline,
    tiny_objective,
    tiny_pipeline,
    tiny_trainer,
    wake,
)

import tinydiff
from tinydiff import models, nn, ops
from tinydiff.backends import device, normal
from tinydiff.diffusion import Level
from tinydiff.losses import min_snr_weight, mse
from tinydiff.nn import Tape
from tinydiff.pictures import sheet
from tinydiff.pipelines import Denoiser
from tinydiff.samplers import SAMPLERS
from tinydiff.train import TrainConfig, Trainer, train

WORLDS = ["standin", pytest.param("cupy", marks=pytest.mark.gpu)]
CLOSE = {"standin": 0, "cupy": 2e-4}              # of the largest entry: sums in another order


@pytest.fixture(params=WORLDS)
def world(request, monkeypatch):
    """Give ``put(host)``, ``get(array)``, ``same(got, want)`` and ``watched()`` of one device."""
    if request.param == "cupy":
        if device.obstacle():
            pytest.skip(device.obstacle())
        put, get = (lambda x: device.move(x, "cuda")), device.to_host
    else:
        put, get = standin.put, lambda x: x._host
        monkeypatch.setattr(device, "obstacle", lambda: None)
        monkeypatch.setattr("tinydiff.nn.module.move",
                            lambda x, to: standin.put(x) if to == "cuda" else device.to_host(x))
    bound = CLOSE[request.param]

    def same(got, want, scale=1e-30):
        assert type(got) is type(put(np.zeros(1))), f"{type(got)} is not on the device"
        assert got.dtype == want.dtype and got.shape == want.shape
        scale = max(float(np.abs(want).max(initial=0.0)), scale)
        np.testing.assert_allclose(get(got), want, rtol=0, atol=bound * scale)

    # On CuPy the kernels run unless another mode was asked for; the host stays as it is.
    with tinydiff.use("reference") if request.param == "standin" else nullcontext():
        yield SimpleNamespace(put=put, get=get, same=same, watched=standin.watched)


def each(results):
    """Return arrays, whether there was one, several, or some with none."""
    return [a for a in (results if isinstance(results, tuple) else (results,)) if a is not None]


# ---- ops and layers: the tables of test_ops_dtype.py and test_dtype.py, which miss none ----

@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_op_runs_forward_and_backward_on_device_arrays(name, world):
    rng = np.random.default_rng(0)
    shapes, forward = ARGUMENTS[name]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    backward = getattr(ops, f"{name.split()[0]}_backward")
    with tinydiff.use("reference"):
        want, cache = forward(*arrays)
        dy = rng.normal(size=want.shape).astype(np.float32)
        gradients = each(backward(dy, cache))

    on_device, dy = list(map(world.put, arrays)), world.put(dy)
    with world.watched() as seen:
        y, cache = forward(*on_device)
        got = each(backward(dy, cache))
    world.same(y, want)
    for dx, dx_want in zip(got, gradients, strict=True):
        world.same(dx, dx_want)
    assert not seen.reads and set(seen.moves) <= {"array"}           # the test's own constants


def test_every_layer_is_tried():
    layers = {layer for name in nn.__all__ if isinstance(layer := getattr(nn, name), type)
              and issubclass(layer, nn.Module)} - {nn.Module}
    tried = {type(layer) for layer, _ in LAYERS.values()}
    assert layers - tried <= {nn.Embedding, nn.GroupNormAct}          # which models below run


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_runs_on_the_device_its_weights_are_on(name, world):
    def run(layer, put):
        rng, tape = np.random.default_rng(1), Tape(np.random.default_rng(0))
        inputs = [put(rng.normal(size=shape).astype(np.float32)) for shape in LAYERS[name][1]]
        y = layer.forward(*inputs, tape=tape)
        dy = put(rng.normal(size=y.shape).astype(np.float32))
        return [y, *each(layer.backward(dy, tape)), *(p.grad for _, p in layer.parameters())]

    layer = LAYERS[name][0].replica().initialise(0)
    with tinydiff.use("reference"):
        want = run(layer, lambda x: x)
    for a, b in zip(run(layer.to("cuda"), world.put), want, strict=True):
        world.same(a, b)


# ---- models ----

def unet():
    """Cross-attention, an odd size, a pooled text beside the time."""
    model = models.UNet(
        in_channels=3, out_channels=3, block_out_channels=[8, 16], layers_per_block=1,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"], norm_num_groups=4,
        cross_attention_dim=8, attention_head_dim=2, class_embed_type="projection",
        projection_class_embeddings_input_dim=8, resnet_time_scale_shift="scale_shift")
    return model, [(2, 3, 9, 9), np.array([3.0, 999.0], np.float32), (2, 5, 8), (2, 8)]


def clip_text():
    """With a projection; ids come from the host, as the tokenizer gives them."""
    model = models.CLIPText(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=2, projection_dim=6,
        num_attention_heads=2, eos_token_id=19, architectures=["CLIPTextModelWithProjection"])
    return model, [np.array([[18, 3, 19, 19], [18, 4, 5, 19]])]


VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "projection_dim": 6,
          "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
PROJECTED = ["CLIPVisionModelWithProjection"]


def clip_vision():
    """With a projection."""
    return models.CLIPVision(**VISION, architectures=PROJECTED), [(2, 3, 8, 8)]


def clip():
    """Both halves of CLIP."""
    half = {n: v for n, v in VISION.items() if n not in ("projection_dim", "image_size",
                                                         "patch_size")}
    model = models.CLIP(text_config={**half, "vocab_size": 20, "eos_token_id": 19},
                        vision_config={**half, "image_size": 8, "patch_size": 4}, projection_dim=6)
    return model, [(2, 3, 8, 8), np.array([[18, 3, 19, 19], [18, 4, 5, 19]])]


def autoencoder():
    """Two levels, attention in the middle; pictures and the noise of the draw."""
    return models.Autoencoder(block_out_channels=[8, 16], norm_num_groups=4), [
        (2, 3, 8, 8), (2, 4, 4, 4)]


def dit():
    """Learned variance, a size that it was not made for; labels come from the host."""
    model = models.DiT(num_attention_heads=2, attention_head_dim=4, num_layers=2, in_channels=3,
                       out_channels=6, sample_size=8, num_embeds_ada_norm=5)
    return model, [(2, 3, 6, 6), np.array([3.0, 999.0], np.float32), np.array([5, 2])]


def classifier():
    """Two resolutions, an odd size."""
    return models.Classifier(block_out_channels=[8, 16], norm_num_groups=4), [
        (2, 1, 9, 9), np.array([3.0, 999.0], np.float32)]


def discriminator():
    """Two halvings."""
    return models.PatchDiscriminator(3, [8, 16], norm_num_groups=4), [(2, 3, 8, 8)]


MODELS = {"Autoencoder": autoencoder, "UNet": unet, "CLIPText": clip_text,
          "CLIPVision": clip_vision, "CLIP": clip, "DiT": dit, "Classifier": classifier,
          "PatchDiscriminator": discriminator}


def test_every_model_is_tried():
    known = {name for name in models.__all__ if isinstance(getattr(models, name), type)
             and issubclass(getattr(models, name), nn.Module)}
    assert known == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_every_model_runs_forward_and_backward_and_nothing_but_its_inputs_crosses(name, world):
    model, inputs = MODELS[name]()
    wake(model)

    def run(put):
        rng, tape = np.random.default_rng(1), Tape()
        arrays = [put(rng.normal(size=a).astype(np.float32)) if isinstance(a, tuple)
                  else put(a) if a.dtype == np.float32 else a for a in inputs]
        y = each(model.forward(*arrays, tape=tape))
        dy = [put(rng.normal(size=part.shape).astype(np.float32)) for part in y]
        model.zero_grad()
        gradients = model.backward(*dy, tape=tape)
        gradients = [] if gradients is None else each(gradients)
        grads = [p.grad for _, p in model.parameters() if p.grad is not None]
        return [*y, *gradients, *grads]

    with tinydiff.use("reference"):
        want = run(lambda x: x)
    model.to("cuda")
    with world.watched() as seen:
        got = run(world.put)
    scale = 0.01 * max(float(np.abs(b).max()) for b in want)          # a key's bias has gradient 0
    for a, b in zip(got, want, strict=True):
        world.same(a, b, scale)
    assert not seen.reads
    assert seen.moves in ([], ["asarray"])                            # ids, if it takes them


# ---- sampling ----

@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_keeps_its_arrays_on_the_device(sampler, world):
    from tinydiff.grids import levels
    from tinydiff.schedules import Schedule

    grid = levels(Schedule.make("squaredcos_cap_v2"), 4)
    if sampler == "flow":                                             # walks a straight line only
        grid = [Level(t, 1 - t, t) for t in (1.0, 0.75, 0.5, 0.25, 0.0)]
    denoise = Denoiser(lambda x_t, timestep: 0.5 * x_t, "v_prediction", clip=1.0)

    def run(like):
        noise = lambda k: normal((3, 4, 4), 0, "z", k, like=like)
        x_T = normal((3, 4, 4), 0, "x_T", like=like)
        return list(SAMPLERS[sampler](denoise, x_T, grid, noise=noise))

    want, like = run(None), world.put(np.zeros(1, np.float32))
    with world.watched() as seen:
        got = run(like)
    for a, b in zip(got, want, strict=True):
        for field in ("x_t", "x0_hat", "eps_hat", "x_s"):
            world.same(getattr(a, field), getattr(b, field))
    assert not seen.reads and set(seen.moves) <= {"asarray"}          # the noise


def test_a_picture_is_drawn_in_three_steps_and_only_inputs_and_outputs_cross(world):
    pipe = tiny_pipeline()
    options = {"steps": 3, "guidance": 2.0, "seed": 5, "count": 2}
    want = list(pipe.steps("red heart", **options))
    pipe.to("cuda", graph=False)                          # a graph is told the timesteps, too
    with world.watched() as seen:
        got = list(pipe.steps("red heart", **options))
    world.same(got[-1].x_s, want[-1].x_s)
    assert not seen.reads
    if world.get is not device.to_host:                               # CuPy counts none
        assert seen.moves == ["asarray"] * 3                          # x_T, two batches of ids
    assert sheet(got[-1].x_s, 2).tobytes() == sheet(want[-1].x_s, 2).tobytes() or CLOSE["cupy"]
    assert pipe("red heart", steps=1).size == (16, 16)


def test_guidance_by_clip_and_squeezing_stay_on_the_device(world):
    pipe = tiny_latent_pipeline()
    options = {"steps": 3, "guidance": 1.0, "count": 2, "clip_guidance": 20.0, "threshold": 0.9}
    want = list(pipe.steps("red heart", **options))
    pipe.to("cuda")
    walk = pipe.steps("red heart", **options)            # encodes the prompts, and puts x_T there
    with world.watched() as seen:
        got = list(walk)
    world.same(got[-1].x_s, want[-1].x_s)
    assert not seen.reads


def test_a_class_is_drawn_in_three_steps_and_only_inputs_and_outputs_cross(world):
    pipe = tiny_class_pipeline()
    options = {"steps": 3, "guidance": 2.0, "seed": 5}
    want = list(pipe.steps([2, 0], **options))
    pipe.to("cuda", graph=False)
    with world.watched() as seen:
        got = list(pipe.steps([2, 0], **options))
    world.same(got[-1].x_s, want[-1].x_s)
    assert not seen.reads
    if world.get is not device.to_host:                               # CuPy counts none
        assert seen.moves == ["asarray"] * 2                          # the classes, x_T


def test_a_moved_model_comes_back_to_the_bit_and_can_be_saved_from_there(world, tmp_path):
    pipe = tiny_pipeline()
    before = {name: value.copy() for name, value in pipe.unet.state().items()}
    pipe.to("cuda").save_pretrained(tmp_path / "model", "float32")
    saved = tinydiff.load(tmp_path / "model").unet.state()
    pipe.to("cpu")
    for name, value in pipe.unet.state().items():
        np.testing.assert_array_equal(value, before[name])
        np.testing.assert_array_equal(saved[name], before[name])


# ---- training ----

def test_losses_leave_their_value_on_the_device(world):
    a, b = (normal((3, 4, 4), 0, name, pictures=range(2)) for name in "ab")
    level = Level(1.0, *(np.full((2, 1, 1, 1), x, np.float32) for x in (0.6, 0.8)))
    value, gradient = mse(a, b, min_snr_weight(level.signal, level.noise, "v_prediction"))
    a, b, signal, noise = map(world.put, (a, b, level.signal, level.noise))
    with world.watched() as seen:
        got, dx = mse(a, b, min_snr_weight(signal, noise, "v_prediction"))
    assert not seen.reads and not seen.moves
    assert float(got) == pytest.approx(value, rel=1e-6)
    world.same(dx, gradient)


def test_training_takes_the_same_steps_and_reads_only_loss_and_norm(world):
    trainer, there = tiny_trainer("train.warm_up=2"), tiny_trainer("train.warm_up=2")
    want = list(train(trainer))
    objective = tiny_objective("train.warm_up=2")
    objective.model.to("cuda")
    there = type(trainer)(objective, trainer.config)
    with world.watched() as seen:
        got = list(train(there))
    for a, b in zip(got, want, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)
    for (name, p), (_, q) in zip(there.ema.model.parameters(), trainer.ema.model.parameters(),
                                 strict=True):
        np.testing.assert_allclose(world.get(p.value), q.value, rtol=0, atol=1e-5, err_msg=name)
    assert set(seen.moves) <= {"asarray", "array"}                    # pictures, ids, noise, levels
    assert len(seen.reads) <= len(got) * 3                            # the loss, two for the norm


@pytest.mark.parametrize("make", [tiny_class_objective, tiny_classifier_objective,
                                  tiny_judged_objective])
def test_an_update_is_the_same_on_the_device(make, world):
    config = TrainConfig(steps=2, batch_size=4, shards=1, warm_up=1)
    here, there = make(), make()
    want = list(train(Trainer(here, config)))
    there.model.to("cuda")
    if getattr(there, "vision", None):
        there.vision.to("cuda")
    with world.watched() as seen:
        got = list(train(Trainer(there, config)))
    assert [a.loss for a in got] == pytest.approx([b.loss for b in want], rel=1e-5)
    assert set(seen.moves) <= {"asarray", "array"} and len(seen.reads) <= len(got) * 3


def test_a_checkpoint_from_the_device_goes_on_there_and_on_the_host(world):
    objective = tiny_objective()
    objective.model.to("cuda")
    trainer = tiny_trainer()
    there = type(trainer)(objective, trainer.config)
    steps = train(there)
    next(steps)
    arrays, step = there.state()
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    trainer.load_state(arrays, step)
    there.load_state(arrays, step)
    assert next(steps).loss == pytest.approx(next(train(trainer)).loss, rel=1e-5)


# ---- the table's second column ----

@pytest.fixture
def column(monkeypatch):
    """Let the stand-in be what CUDA kernels are for; return a function that puts one in place."""
    from tinydiff.backends import table

    monkeypatch.setattr(device, "column", lambda x: "cuda" if hasattr(x, "_host") else "cpu")
    monkeypatch.setattr(table, "_loaded", dict(table._loaded))
    monkeypatch.setattr(table, "_mode", None)
    monkeypatch.setattr(table, "_default", "reference")
    monkeypatch.setattr(table, "_wish", None)

    def put(op, **functions):
        name = f"kernels_of_{op}"
        monkeypatch.setitem(table.TABLE, op, table.Twins(None, name))
        monkeypatch.setattr(table, "find_spec", lambda module: module if module == name else None)
        monkeypatch.setattr(table, "import_module", lambda module: SimpleNamespace(**functions))
        for function in functions:
            table._loaded.pop((function, "cuda"), None)
    return put


def test_a_cuda_kernel_runs_for_device_arrays_and_no_other(column):
    column("silu", silu_forward=lambda x: (2 * x, "saved"))
    x = np.ones(3, np.float32)
    on_device = standin.put(x)
    assert ops.silu_forward(on_device)[1] == "saved"
    assert ops.silu_forward(x)[0][0] < 1
    with tinydiff.use("reference"):
        assert ops.silu_forward(on_device)[1] != "saved"
    column("silu", silu_forward=lambda x: NotImplemented)
    assert ops.silu_forward(on_device)[1] != "saved"
    column("silu")                                                    # no such kernel yet
    assert ops.silu_forward(on_device)[1] != "saved"


def test_a_cuda_kernel_is_told_the_precision_if_it_asks_for_it(column, monkeypatch):
    from tinydiff.backends import table

    told = []

    def linear_forward(x, weight, bias=None, *, precision="float32", version=None):
        told.append((precision, version))
        return x, None

    column("linear", linear_forward=linear_forward)
    monkeypatch.setattr(table, "precision", lambda: "float16")
    x = standin.put(np.ones((1, 3), np.float32))
    ops.linear_forward(x, x)
    assert told == [("float16", None)]


def test_info_says_what_runs_on_the_device_and_what_has_no_kernel(column, monkeypatch):
    from tinydiff.backends import table

    column("silu", silu_forward=None)
    monkeypatch.setattr(device, "obstacle", lambda: None)
    monkeypatch.setattr(device, "facts", lambda: {"device": "NVIDIA Fake"})
    facts = table.facts()
    assert facts["device"] == "NVIDIA Fake" and facts["mode on the device"] == "fast"
    assert facts["precision on the device"] == "float32"
    assert facts["silu"].endswith("on the device: CUDA, kernels_of_silu")
    assert facts["geglu"].endswith("on the device: CuPy, the readable definition in tinydiff/ops")
    assert "tinydiff.kernels.conv2d is missing" in facts["conv2d"]


def test_a_contrastive_loss_leaves_its_numbers_on_the_device(world):
    from tinydiff.cross_entropy import contrastive

    image, text = (normal((5,), 0, name, pictures=range(4)) for name in "ab")
    alike = np.eye(4, dtype=bool)
    alike[0, 1] = alike[1, 0] = True
    for same_caption in (None, alike):
        want = contrastive(image, text, 1.5, same_caption)
        a, b = world.put(image), world.put(text)
        pairs = None if same_caption is None else world.put(same_caption)
        with world.watched() as seen:
            value, dimage, dtext, dscale = contrastive(a, b, 1.5, pairs)
        assert not seen.reads and not seen.moves
        assert float(value) == pytest.approx(want[0], rel=1e-5)
        assert float(dscale) == pytest.approx(want[3], rel=1e-4)
        world.same(dimage, want[1])
        world.same(dtext, want[2])
