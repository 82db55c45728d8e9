"""The shipped classifier keeps what its page promises: size, features, accuracy on noise too."""
import numpy as np
import pytest

from tinydiff.backends import normal
from tinydiff.datasets import data_folder, load_fashion_mnist
from tinydiff.diffusion import CLEAN, q_sample
from tinydiff.models import Classifier
from tinydiff.pipelines import network_timestep
from tinydiff.recipes import load_recipe
from tinydiff.scheduler_config import SchedulerConfig

FOLDER = data_folder() / "models" / "fashion-classifier"


@pytest.fixture(scope="module")
def classifier():
    return Classifier.from_pretrained(FOLDER).freeze()


def accuracy(classifier, indices, level=CLEAN):
    """The share of some test pictures, as noisy as `level` says, whose class it tells."""
    pictures = load_fashion_mnist("test")
    right = 0
    for some in np.array_split(indices, len(indices) // 250):
        x0 = pictures.array(some)
        x_t = q_sample(x0, normal(x0.shape[1:], 0, "noisy", pictures=some),
                       level.signal, level.noise)
        found = classifier.forward(x_t, network_timestep(level)).logits.argmax(axis=1)
        right += sum(pictures.records[i]["class"] == k for i, k in zip(some, found, strict=True))
    return right / len(indices)


def test_it_has_128_features_in_under_a_megabyte_and_a_page(classifier):
    assert classifier.config["block_out_channels"][-1] == 128
    assert (FOLDER / "diffusion_pytorch_model.safetensors").stat().st_size < 1e6
    assert "tinydiff train fashion-classifier" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_it_is_of_the_recipe(classifier):
    assert classifier.config == Classifier(**load_recipe("fashion-classifier")["model"]).config


def test_it_tells_what_pictures_show_and_what_noisy_ones_do(classifier):
    schedule = SchedulerConfig.from_config(load_recipe("fashion-classifier")["scheduler"]).schedule
    assert accuracy(classifier, np.arange(1000)) > 0.9
    assert accuracy(classifier, np.arange(500), schedule.level(500)) > 0.7
    assert accuracy(classifier, np.arange(500), schedule.level(1000)) < 0.2           # all is noise


@pytest.mark.slow
def test_it_is_right_for_92_percent_of_the_test_split(classifier):
    assert accuracy(classifier, np.arange(10_000)) >= 0.92
