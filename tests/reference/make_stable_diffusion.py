"""Write what diffusers' StableDiffusionPipeline makes of the tiny latent model of tests/tiny.py.

    PYTHONPATH=tests python tests/reference/make_stable_diffusion.py

Needs torch, diffusers and transformers; made with 2.13.0, 0.42.1 and 5.23.
"""
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from test_stable_diffusion import own, published
from tiny import tiny_latent_pipeline


def make():
    """Draw once with both, and keep what diffusers drew."""
    pipe = tiny_latent_pipeline()
    x_T, *_ = own(pipe)
    with TemporaryDirectory() as folder:
        pipe.save_pretrained(Path(folder) / "model", dtype="float32")
        latents, pictures = published(Path(folder) / "model", x_T)
    np.savez_compressed(Path(__file__).parent / "stable_diffusion.npz", x_T=x_T, latents=latents,
                        pictures=pictures)


if __name__ == "__main__":
    make()
