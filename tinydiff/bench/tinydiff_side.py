"""tinydiff's half of the measurements; `torch_side` is the other, job for job."""
import platform
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from tinydiff import ops
from tinydiff.backends import blas_info
from tinydiff.backends.device import follow, to_host
from tinydiff.bench.fill import values, weight
from tinydiff.models import Autoencoder, UNet
from tinydiff.nn import Tape


def hello():
    """Return what runs here."""
    from tinydiff.backends.table import mode

    blas = blas_info()
    try:
        numba = version("numba")
    except PackageNotFoundError:
        numba = None
    return {"python": platform.python_version(), "numpy": np.__version__, "numba": numba,
            "mode": mode(), "blas": f"{blas.name}, {blas.kernel} kernel", "threads": blas.threads,
            "missing": None}


class TrainStep:
    """One update of the emoji U-Net by the package's own `tinydiff.train`.

    Forward, mean squared error, backward, clipping, AdamW, moving average.
    """

    def __init__(self, spec):
        from tinydiff.train import TrainConfig, Trainer, train

        self.model = self.build(spec)
        numbers = {name: values(name, shape) for name, shape in spec["inputs"].items()}
        self.size = len(next(iter(numbers.values())))
        if "timestep" in spec:
            numbers["timestep"] = np.array(spec["timestep"], np.float32)
        self.arrays = {name: follow(x, self.model.like()) for name, x in numbers.items()}
        config = TrainConfig(steps=10**9, batch_size=self.size, warm_up=0, **spec["train"])
        self.trainer = Trainer(self, config, graph=spec.get("graph", False))
        self.steps = train(self.trainer)

    def build(self, spec):
        """Return the network."""
        return UNet.from_pretrained(spec["unet"]).to(spec.get("device", "cpu"))

    def shard(self, model, step, pictures, share):
        """Forward and backward on some of the batch, as `tinydiff.train.Trainer` asks."""
        return self.compute(model, *self.inputs(model, step, pictures), share, Tape())

    def inputs(self, model, step, pictures):
        """Return the arrays that belong to some of the batch."""
        first, last = pictures[0][0], pictures[-1][0] + 1
        return tuple(self.arrays[name][first:last]
                     for name in ("x_t", "timestep", "context", "target"))

    def compute(self, model, x_t, timestep, context, target, share, tape):
        """Forward and backward on arrays alone."""
        from tinydiff.losses import mse

        y = model.forward(x_t, timestep, context, tape=tape)
        loss, dy = mse(y, target)
        model.backward(share * dy, tape)
        return loss

    def __call__(self):
        """Make one update."""
        next(self.steps)

    def check(self):
        """Return the loss and all gradients, in the order of the tensors' names."""
        self.model.zero_grad()
        loss = self.shard(self.model, 0, [(0, 0), (self.size - 1, 0)], 1.0)
        grads = {name: to_host(p.grad) for name, p in self.model.parameters()}
        self.model.zero_grad()
        flat = np.concatenate([grads[name].ravel() for name in sorted(grads)])
        return {"loss": np.array(float(loss)), "gradients": flat,
                "gradient norm": np.linalg.norm(flat)}


class AutoencoderStep(TrainStep):
    """One update of an autoencoder with made-up weights, by its recipe's loss."""

    def build(self, spec):
        """Return the network."""
        self.weights = spec["loss"]
        model = Autoencoder(**spec["config"])
        for name, p in model.parameters():
            p.value = weight(name, p.shape)
        return model

    def inputs(self, model, step, pictures):
        """Return the pictures and the noise that belong to some of the batch."""
        first, last = pictures[0][0], pictures[-1][0] + 1
        return self.arrays["x"][first:last], self.arrays["eps"][first:last]

    def compute(self, model, x, eps, share, tape):
        """Forward and backward on arrays alone."""
        from tinydiff.recipes.autoencoder import autoencoder_loss

        loss, *gradients = autoencoder_loss(model.forward(x, eps, tape), x, self.weights)
        model.backward(*(share * gradient for gradient in gradients), tape, needs_dx=False)
        return loss


class Sample:
    """One prompt to one picture, by the shipped pipeline."""

    def __init__(self, spec):
        from tinydiff.pipelines import load

        self.pipe = load(spec["model"])
        self.prompt = spec["prompt"]
        self.options = {"steps": len(spec["levels"]) - 1, "guidance": spec["guidance"],
                        "seed": spec["seed"]}

    def __call__(self):
        """Draw the picture."""
        *_, last = self.pipe.steps(self.prompt, **self.options)
        self.x = self.pipe.decode(last.x_s)

    def check(self):
        """Return the picture, in [-1, 1]."""
        self()
        return {"picture": self.x}


class Forward:
    """One forward pass of a large U-Net with made-up weights."""

    def __init__(self, spec):
        self.model = UNet(**spec["config"])
        for name, p in self.model.parameters():
            p.value = weight(name, p.shape)
        self.x_t = values("x_t", spec["x_t"])
        self.context = values("context", spec["context"])
        self.timestep = spec["timestep"]

    def __call__(self):
        """Run the network."""
        self.y = self.model.forward(self.x_t, self.timestep, self.context)

    def check(self):
        """Return the output."""
        self()
        return {"output": self.y}


class Operation:
    """One op of `tinydiff.ops`, forward or backward."""

    def __init__(self, spec):
        self.forward = getattr(ops, f"{spec['op']}_forward")
        self.backward = getattr(ops, f"{spec['op']}_backward")
        self.inputs = [(weight if name in ("weight", "bias") else values)(name, shape)
                       for name, shape in spec["inputs"].items()]
        self.names = list(spec["inputs"])
        self.options = spec["options"]
        self.dy = values("dy", self.forward(*self.inputs, **self.options)[0].shape)
        self.backwards = spec["direction"] == "backward"
        self.y = self.cache = self.grads = None

    def before(self):
        """Free the last result; before a backward pass, run forward."""
        self.y = self.cache = self.grads = None
        if self.backwards:
            self.y, self.cache = self.forward(*self.inputs, **self.options)

    def __call__(self):
        """Run the op."""
        if self.backwards:
            self.grads = self.backward(self.dy, self.cache)
        else:
            self.y, self.cache = self.forward(*self.inputs, **self.options)

    def check(self):
        """Return the output, and after a backward pass all gradients."""
        self.before()
        self()
        if not self.backwards:
            return {"y": self.y}
        grads = self.grads if isinstance(self.grads, tuple) else (self.grads,)
        assert all(grad is None for grad in grads[len(self.names):])  # of inputs not given
        return {f"d{name}": grad for name, grad in zip(self.names, grads, strict=False)}


JOBS = {"train": TrainStep, "autoencoder": AutoencoderStep, "sample": Sample, "forward": Forward,
        "op": Operation}
