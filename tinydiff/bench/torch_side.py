"""PyTorch's half of the measurements, as fast as plain eager PyTorch goes; see `tinydiff_side`.

The networks are diffusers' and transformers' own, with the same weights.  ``layout`` in a job's
spec is PyTorch's memory format: "default" (NCHW) or "channels_last" (NHWC).  The choices are
PyTorch's best: fused AdamW, gradients set to None, the moving average in one ``_foreach`` call,
scaled dot-product attention, ``inference_mode`` for sampling.
"""
import platform
from importlib.util import find_spec
from itertools import pairwise

import numpy as np

from tinydiff.bench.fill import values, weight

try:
    import torch
    from torch.nn import functional as F  # noqa: N812 - its usual name
except ImportError:
    torch = None


def hello():
    """Return what runs here, and which of the libraries are missing."""
    missing = [name for name in ("torch", "diffusers", "transformers")
               if (torch if name == "torch" else find_spec(name)) is None]
    if torch is None:
        return {"missing": missing}
    build = [line.strip(" -") for line in torch.__config__.show().splitlines()]
    libraries = [line.partition(" (Git")[0].partition("-Product")[0] for line in build
                 if line.startswith(("Intel(R) oneAPI", "Intel(R) MKL-DNN", "OpenBLAS"))]
    return {"python": platform.python_version(), "torch": torch.__version__,
            "diffusers": _version("diffusers"), "transformers": _version("transformers"),
            "blas": "; ".join([*libraries, torch.backends.cpu.get_cpu_capability()]),
            "threads": torch.get_num_threads(), "missing": missing}


def _version(package):
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _format(spec):
    return torch.channels_last if spec["layout"] == "channels_last" else torch.contiguous_format


def _tensor(x, memory_format, device="cpu"):
    """Make a tensor of an array; a layout is for pictures, four axes."""
    x = torch.from_numpy(x).to(device)
    return x.contiguous(memory_format=memory_format) if x.ndim == 4 else x


def _unet(spec):
    """Open the U-Net of a job: diffusers' network, or where a device is named our own."""
    if "device" in spec:
        from tinydiff.bench import torch_unet

        return torch_unet.load(spec["unet"]).to(spec["device"])
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(spec["unet"], torch_dtype=torch.float32)


class TrainStep:
    """One update of the emoji U-Net."""

    def __init__(self, spec):
        to = _format(spec)
        config, device = spec["train"], spec.get("device", "cpu")
        self.spec, self.model = spec, self.build(spec)
        self.model.to(memory_format=to).train()
        self.inputs = {name: _tensor(values(name, shape), to, device)
                       for name, shape in spec["inputs"].items()}
        if "timestep" in spec:
            self.inputs["timestep"] = torch.tensor(spec["timestep"], device=device)
        self.parameters = list(self.model.parameters())
        self.optimiser = torch.optim.AdamW(
            [{"params": [p for p in self.parameters if p.ndim > 1],
              "weight_decay": config["weight_decay"]},
             {"params": [p for p in self.parameters if p.ndim == 1], "weight_decay": 0.0}],
            lr=config["lr"], betas=tuple(config["betas"]), eps=1e-8, fused=True)
        self.clip_norm, self.ema_decay = config["clip_norm"], config["ema_decay"]
        self.average = [p.detach().clone() for p in self.parameters]
        self.updates = 0

    def build(self, spec):
        """Return the network."""
        return _unet(spec)

    def loss(self):
        """Forward and the mean squared error."""
        of = self.inputs
        y = self.model(of["x_t"], of["timestep"], encoder_hidden_states=of["context"],
                       return_dict=False)[0]
        return F.mse_loss(y, of["target"])

    def __call__(self):
        """Make one update; return its loss."""
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimiser.step()
        self.updates += 1
        decay = min(self.ema_decay, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        return loss.item()

    def check(self):
        """Return the loss and all gradients, in the order of the tensors' names."""
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        grads = {name: p.grad.contiguous().cpu().numpy()
                 for name, p in self.model.named_parameters()}
        flat = np.concatenate([grads[name].ravel() for name in sorted(grads)])
        return {"loss": loss.detach().cpu().numpy(), "gradients": flat,
                "gradient norm": np.linalg.norm(flat)}


class AutoencoderStep(TrainStep):
    """One update of an autoencoder with made-up weights."""

    def build(self, spec):
        """Return the network."""
        from diffusers import AutoencoderKL

        return _made_up(AutoencoderKL, spec["config"])

    def loss(self):
        """Forward, the mean squared error, and the nats of a latent."""
        x, weights = self.inputs["x"], self.spec["loss"]
        latents = self.model.encode(x).latent_dist
        x_hat = self.model.decode(latents.mean + latents.std * self.inputs["eps"]).sample
        nats = 0.5 * (latents.mean**2 + latents.var - 1 - latents.logvar).mean()
        return weights["mse"] * F.mse_loss(x_hat, x) + weights["kl"] * nats


def _made_up(model_class, config):
    """Return a model of diffusers with the weights that tinydiff's side makes too."""
    with torch.device("meta"):                                        # nothing is drawn, or held
        model = model_class.from_config(config)
    model.load_state_dict({name: torch.from_numpy(weight(name, tuple(p.shape)))
                           for name, p in model.state_dict().items()}, assign=True)
    return model


class Sample:
    """One prompt to one picture: text encoder, DDIM with guidance, decoder.

    Tokens and noise are given.

    The two predictions of guidance are one batch of two.
    """

    def __init__(self, spec):
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel

        to = _format(spec)
        self.unet, self.vae = (
            of.from_pretrained(spec[part], torch_dtype=torch.float32).to(memory_format=to).eval()
            for of, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")))
        self.text_encoder = CLIPTextModel.from_pretrained(
            spec["text_encoder"], dtype=torch.float32).eval()
        self.ids = torch.tensor(spec["ids"])                          # (2, N): "" and the prompt
        self.x_T = _tensor(np.load(spec["x_T"]), to)
        self.levels, self.guidance = spec["levels"], spec["guidance"]

    def __call__(self):
        """Draw the picture."""
        with torch.inference_mode():
            text = self.text_encoder(self.ids)
            x = self.x_T
            for (t, signal, noise), (_, s_signal, s_noise) in pairwise(self.levels):
                null, own = self.unet(
                    torch.cat([x, x]), t - 1, encoder_hidden_states=text.last_hidden_state,
                    return_dict=False)[0].chunk(2)
                v = null + self.guidance * (own - null)
                x0_hat, eps_hat = signal * x - noise * v, noise * x + signal * v
                x = s_signal * x0_hat + s_noise * eps_hat
            self.x = self.vae.decode(x / self.vae.config.scaling_factor, return_dict=False)[0]

    def check(self):
        """Return the picture, in [-1, 1]."""
        self()
        return {"picture": self.x.contiguous().numpy()}


class Forward:
    """One forward pass of a large U-Net with made-up weights."""

    def __init__(self, spec):
        from diffusers import UNet2DConditionModel

        to = _format(spec)
        self.model = _made_up(UNet2DConditionModel, spec["config"])
        self.model.to(memory_format=to).eval()
        self.x_t = _tensor(values("x_t", spec["x_t"]), to)
        self.context = torch.from_numpy(values("context", spec["context"]))
        self.timestep = spec["timestep"]

    def __call__(self):
        """Run the network."""
        with torch.inference_mode():
            self.y = self.model(self.x_t, self.timestep, self.context, return_dict=False)[0]

    def check(self):
        """Return the output."""
        self()
        return {"output": self.y.contiguous().numpy()}


class Operation:
    """One op of ``torch.nn.functional``, forward or, by autograd, backward."""

    def __init__(self, spec):
        self.function = OPS[spec["op"]]
        to = _format(spec)
        self.inputs = {
            name: _tensor((weight if name in ("weight", "bias") else values)(name, shape),
                          to).requires_grad_() for name, shape in spec["inputs"].items()}
        self.options = spec["options"]
        shape = tuple(self.function(**self.inputs, **self.options).shape)
        self.dy = _tensor(values("dy", shape), to)
        self.backwards = spec["direction"] == "backward"
        self.y = self.grads = None

    def before(self):
        """Free the last result; before a backward pass, run forward."""
        self.y = self.grads = None
        if self.backwards:
            self.y = self.function(**self.inputs, **self.options)

    def __call__(self):
        """Run the op."""
        if self.backwards:
            self.grads = torch.autograd.grad(self.y, tuple(self.inputs.values()), self.dy)
        else:
            self.y = self.function(**self.inputs, **self.options)

    def check(self):
        """Return the output, or all gradients."""
        self.before()
        self()
        if not self.backwards:
            return {"y": self.y.detach().contiguous().numpy()}
        return {f"d{name}": grad.contiguous().numpy()
                for name, grad in zip(self.inputs, self.grads, strict=True)}


def _group_norm_silu(x, weight, bias, num_groups):
    return F.silu(F.group_norm(x, num_groups, weight, bias))


def _geglu(x):
    hidden, gate = x.chunk(2, dim=-1)
    return hidden * F.gelu(gate)


def _attention(q, k, v, num_heads):
    """As diffusers does it: split into heads, attend, join."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


OPS = {
    "conv2d": lambda x, weight, bias, **options: F.conv2d(x, weight, bias, **options),
    "group_norm_silu": _group_norm_silu,
    "layer_norm": lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias),
    "geglu": _geglu,
    "attention": _attention,
    "linear": lambda x, weight, bias: F.linear(x, weight, bias),
}
JOBS = {"train": TrainStep, "autoencoder": AutoencoderStep, "sample": Sample, "forward": Forward,
        "op": Operation}
