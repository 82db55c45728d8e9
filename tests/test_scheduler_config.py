"""Claims: a published scheduler_config.json alone makes the walk that diffusers makes of it: the
same levels, the same timesteps for the network, the same samples after each step; what is not
supported, or does not go together, is one line.

The walks of `published_walks.CASES` are in tests/reference/published.npz; where diffusers is
installed they are walked again.
"""
from dataclasses import replace

import numpy as np
import pytest
from published_walks import CASES, START, network, noise_of, stored, walk

from tinydiff.pipelines import Denoiser
from tinydiff.pipelines.denoiser import timestep_of
from tinydiff.samplers import SAMPLERS
from tinydiff.scheduler_config import SchedulerConfig
from tinydiff.schedules import Flow, Schedule

STORED, ALPHA_BAR = stored()


def ours(case):
    """Return our config, on the very table of diffusers, and the steps of its walk."""
    config = SchedulerConfig.from_config(case.config())
    if not isinstance(config.schedule, Flow):
        table = Schedule(np.append(1.0, ALPHA_BAR), config.schedule.published)
        config = replace(config, schedule=table)
    denoise = Denoiser(lambda x, timestep: network(x, timestep, case.kind), config.prediction_type,
                       clip=1.0 if config.clip_sample else None, threshold=config.threshold,
                       timestep=timestep_of(config.schedule))
    noise = noise_of(case)
    return config, list(SAMPLERS[config.sampler](denoise, START, config.levels(case.steps),
                                                 noise=lambda k: noise[k], **config.options))


def outer(case, values, first=0):
    """Leave out what lies within a step of several calls."""
    if case.scheduler.startswith("Heun") and case.steps > 1:
        return np.concatenate([values[:1], values[1::2]]) if first == 0 else np.concatenate(
            [values[1:-1:2], values[-1:]])
    if case.scheduler.startswith("PNDM"):
        skip = dict(case.fields).get("skip_prk_steps", False)
        few = values[2:] if skip else values[12:]
        return np.concatenate([values[:1] if skip else values[0:12:4], few]) if first == 0 else (
            values[1:] if skip else np.concatenate([values[3:12:4], few]))
    return values


def compare(case, theirs):
    config, steps = ours(case)
    scale = np.abs(theirs.samples).max()
    if theirs.sigmas.size and not isinstance(config.schedule, Flow):
        sigmas = [step.t.noise / step.t.signal for step in steps]
        want = theirs.sigmas[:-1]
        want = np.append(want[:1], want[1::2]) if case.scheduler.startswith("Heun") else want
        np.testing.assert_allclose(sigmas, want, rtol=2e-6)
    timesteps = [timestep_of(config.schedule)(step.t) for step in steps]
    np.testing.assert_allclose(timesteps, outer(case, theirs.timesteps), rtol=0, atol=2e-4)
    np.testing.assert_allclose(np.stack([step.x_s for step in steps]),
                               outer(case, theirs.samples, 1), rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name())
def test_a_published_file_makes_the_published_walk(case):
    compare(case, STORED[case.name()])


@pytest.mark.filterwarnings("ignore")                   # of diffusers
def test_the_stored_walks_are_those_of_diffusers():
    pytest.importorskip("diffusers")
    for case in CASES:
        for a, b in zip(walk(case), STORED[case.name()], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=case.name())


# ---- files ----

KARRAS = {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}
CLASSES = sorted({case.scheduler: case for case in CASES}.values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name())
def test_a_file_read_and_written_is_the_same_config(case):
    config = SchedulerConfig.from_config(case.config())
    written = config.to_config()
    again = SchedulerConfig.from_config(written)
    assert again.to_config() == written and again.own == config.own
    assert (again.sampler, again.threshold) == (config.sampler, config.threshold)
    assert again.levels(case.steps) == config.levels(case.steps)
    assert {name: written[name] for name, value in case.fields if name in written} == {
        name: value for name, value in case.fields if name in written}


@pytest.mark.filterwarnings("ignore")                   # of diffusers
@pytest.mark.parametrize("case", CLASSES, ids=lambda case: case.scheduler)
def test_diffusers_reads_what_we_write_and_we_what_it_writes(case):
    diffusers = pytest.importorskip("diffusers")
    written = SchedulerConfig.from_config(case.config()).to_config()
    theirs = getattr(diffusers, case.scheduler).from_config(written)
    back = {**theirs.config, "_class_name": case.scheduler}
    assert SchedulerConfig.from_config(back).to_config() == written
    bare = getattr(diffusers, case.scheduler)()          # every field at its default
    SchedulerConfig.from_config({**bare.config, "_class_name": case.scheduler})


@pytest.mark.parametrize("config, message", [
    ({**KARRAS, "use_exponential_sigmas": True}, "use_karras_sigmas and use_exponential_sigmas"),
    ({"_class_name": "DDIMScheduler", "use_karras_sigmas": True},
     "use_karras_sigmas=True is not supported by DDIMScheduler"),
    ({"_class_name": "EulerDiscreteScheduler", "thresholding": True},
     "thresholding=True is not supported by EulerDiscreteScheduler"),
    ({"thresholding": True, "dynamic_thresholding_ratio": 1.5}, "dynamic_thresholding_ratio=1.5"),
    ({"thresholding": True, "sample_max_value": 0.5}, "sample_max_value=0.5"),
    ({"thresholding": True, "sample_max_value": "1"}, "sample_max_value='1'"),
    ({"thresholding": 1.5}, "thresholding=1.5"), ({**KARRAS, "use_karras_sigmas": "yes"}, "'yes'"),
    ({**KARRAS, "solver_order": 4}, "solver_order=4"),
    ({**KARRAS, "solver_type": "bh2"}, "solver_type='bh2'"),
    ({**KARRAS, "algorithm_type": "dpmsolver"}, "algorithm_type='dpmsolver'"),
    ({**KARRAS, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, "solver_type='heun'"),
    ({**KARRAS, "use_flow_sigmas": True}, "use_flow_sigmas=True"),
    ({**KARRAS, "prediction_type": "flow_prediction"}, "prediction_type='flow_prediction'"),
    ({**KARRAS, "use_beta_sigmas": True}, "use_beta_sigmas=True"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0}, "shift=0"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": "3"}, "shift='3'"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 0},
     "num_train_timesteps=0"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "beta_end": 0.1},
     "beta_end=0.1 is not supported by FlowMatch"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_karras_sigmas": True},
     "use_karras_sigmas=True is not supported by FlowMatch"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
     "use_dynamic_shifting=True"),
    ({"shift": 3.0}, "shift=3.0 is not supported by DDIMScheduler"),
])
def test_what_does_not_go_together_is_one_line(config, message):
    with pytest.raises(ValueError, match=message) as error:
        SchedulerConfig.from_config(config)
    assert "\n" not in str(error.value)


def test_a_config_made_by_hand_is_checked_too():
    flow = SchedulerConfig(Flow(shift=3.0), "flow_prediction",
                           class_name="FlowMatchEulerDiscreteScheduler")
    assert flow.sampler == "flow" and flow.levels(2)[0].signal == 0
    for config in ({"schedule": Flow()}, {"schedule": Schedule.make("linear"),
                                          "class_name": "FlowMatchEulerDiscreteScheduler"}):
        with pytest.raises(ValueError, match="goes with the schedule Flow"):
            SchedulerConfig(**config)
    with pytest.raises(ValueError, match="rho=1 is no field of DDIMScheduler"):
        SchedulerConfig(Schedule.make("linear"), own={"rho": 1})


@pytest.mark.parametrize("config", [KARRAS, {"_class_name": "HeunDiscreteScheduler"}, {},
                                    {"_class_name": "EulerDiscreteScheduler",
                                     "use_exponential_sigmas": True}])
@pytest.mark.parametrize("steps", [0, 1001, 2.5])
def test_steps_out_of_range_are_one_line(config, steps):
    with pytest.raises(ValueError, match=f"steps={steps}: an integer from 1 to 1000"):
        SchedulerConfig.from_config(config).levels(steps)


@pytest.mark.parametrize("config", [case.config() for case in CLASSES], ids=lambda c: c[
    "_class_name"])
@pytest.mark.parametrize("steps", [1, 2, 3, 999, 1000])
def test_steps_asked_are_steps_done(config, steps):
    grid = SchedulerConfig.from_config(config).levels(steps)
    assert len(grid) == steps + 1 and grid[-1].noise == 0
    assert (np.diff([level.noise for level in grid]) < 0).all()


def test_pure_noise_has_no_sigma_to_space_by():
    config = SchedulerConfig.from_config({**KARRAS, "rescale_betas_zero_snr": True})
    with pytest.raises(ValueError, match="begins at pure noise"):
        config.levels(10)
