"""Claims: step by step our samplers do what diffusers' schedulers do, from the same noise, within
1e-5 of the largest entry; where theirs departs from its paper the test says how it departs.

The schedulers' own sigmas make our levels, so this compares the methods; that our grids give the
same sigmas is compared apart.  The walks of `scheduler_walks.CASES` are in
tests/reference/schedulers.npz; where diffusers is installed, `ALL` are walked.
"""
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from museum.frame import flow_of_petals, petals
from scheduler_walks import ALL, CASES, SHAPE, START, Walk, network, walk

from tinydiff.diffusion import CLEAN, Level, Step
from tinydiff.grids import levels
from tinydiff.samplers import SAMPLERS, ddim_invert, dpmpp_multistep_sample, dpmpp_singlestep_sample
from tinydiff.samplers.dpm_solver_pp import derivatives, dpm_solver_pp_step
from tinydiff.schedules import Schedule
from tinydiff.targets import to_x0_eps

pytestmark = pytest.mark.filterwarnings("ignore")        # of diffusers
TABLE = Schedule.make("scaled_linear", 1000, 0.00085, 0.012)


def stored():
    """Read back what make_schedulers.py wrote: ``{case name: Walk or fault}``."""
    with np.load(Path(__file__).parent / "reference" / "schedulers.npz") as file:
        names, sizes = json.loads(str(file["names"])), file["sizes"]
        ends = np.cumsum(sizes, axis=0)
        parts = {field: np.split(file[field], ends[:-1, k]) for k, field in enumerate(Walk._fields)}
        faults = json.loads(str(file["faults"]))
    shaped = lambda a: a.reshape(-1, *SHAPE)
    walks = {name: Walk(parts["sigmas"][i], parts["timesteps"][i], shaped(parts["samples"][i]),
                        shaped(parts["noise"][i])) for i, name in enumerate(names)}
    return walks | faults


STORED = stored()


def published_3m(denoise, x_T, levels, *, noise=None, order=3, form="midpoint"):
    """(3M) as published code has it: with half of the term in D2 (test_convergence.py)."""
    nodes, x_t, steps = [], x_T, len(levels) - 1
    for k, (t, s) in enumerate(pairwise(levels)):
        x0_hat, eps_hat = denoise(x_t, t)
        nodes = [(t, x0_hat), *nodes][:order]
        use = min(order, steps - k) if steps < 15 else order
        D0, D1, D2 = derivatives(nodes[:use], s)
        x_s = dpm_solver_pp_step(x_t, t, s, D0, D1, None if D2 is None else D2 / 2, form)
        yield Step(t, s, x_t, x0_hat, eps_hat, x_s)
        x_t = x_s


def preserving(sigma):
    """The variance-preserving level of a sigma; its `t` is not looked at here."""
    return Level(float(sigma), float((1 + sigma**2) ** -0.5), float(sigma * (1 + sigma**2) ** -0.5))


def ours(case, theirs):
    """Walk our sampler over their levels; return the samples after each step, in their scale."""
    options = dict(case.options)
    grid = [preserving(sigma) if sigma else CLEAN for sigma in theirs.sigmas]
    x_T, noise = START, lambda k: theirs.noise[k]
    sampler = {"dpmpp_single": dpmpp_singlestep_sample, "dpmpp": dpmpp_multistep_sample,
               "dpmpp_2m": dpmpp_multistep_sample, "ddim_invert": None}.get(
        case.sampler) or SAMPLERS.get(case.sampler)
    if case.sampler == "dpmpp" and options["order"] == 3:
        sampler = published_3m
    if case.sampler == "flow":
        grid = [Level(float(s), 1 - float(s), float(s)) for s in theirs.sigmas]
    if case.sampler == "pndm":
        grid, options = _pndm(case, theirs)
    denoise = lambda x, t: to_x0_eps(network(x, case.kind), x, t, case.kind)
    if case.sampler == "ddim_invert":
        # Their first step starts on clean data, where a network that predicts anything but the
        # noise leaves theirs undefined, or dependent on what it was told: start above it.
        grid = [preserving(sigma) for sigma in theirs.sigmas[:-1]]
        return np.stack([theirs.samples[0], *(step.x_s for step in ddim_invert(
            denoise, theirs.samples[0], grid))])
    walked = list(sampler(denoise, x_T, grid, noise=noise, **options))
    in_sigma = case.scheduler.startswith(("Euler", "Heun", "LMS"))
    return np.stack([step.x_s / step.s.signal if in_sigma else step.x_s for step in walked])


def _pndm(case, theirs):
    """Levels of PNDM's outer steps, and the option that asks for its Runge-Kutta start."""
    stride = 1000 // case.steps
    times = [1 + stride * k for k in reversed(range(case.steps))]
    last = [] if theirs.sigmas[-1] else [CLEAN]
    prk = not dict(case.fields)["skip_prk_steps"]
    level = lambda t: TABLE.level(float(np.ceil(t)))   # theirs halves the stride in integers
    return [*(TABLE.level(t) for t in times), *last], {"level": level} if prk else {}


def of_whole_steps(case, samples):
    """Leave out the samples within a step of several calls."""
    if case.scheduler.startswith("Heun"):
        return np.concatenate([samples[1:-1:2], samples[-1:]])
    if case.scheduler == "PNDMScheduler" and case.steps > 1:
        prk = not dict(case.fields)["skip_prk_steps"]
        return np.concatenate([samples[3:12:4], samples[12:]]) if prk else samples[1:]
    return samples


def compare(case, theirs):
    want = of_whole_steps(case, theirs.samples)
    if case.sampler == "pndm" and theirs.sigmas[-1]:
        # Theirs ends with a step from level 1 to level 1, which is none.
        before = want[-2] if case.steps > 1 else START
        np.testing.assert_allclose(want[-1], before, atol=1e-5)
        want = want[:-1]
        if case.steps == 1:
            return
    got = ours(case, theirs)
    assert got.shape == want.shape
    if dict(case.options).get("scale") == "bh1":       # theirs multiplies 0 by B(inf) at the end
        assert np.isnan(want[-1]).all() and np.isfinite(got).all()
        got, want = got[:-1], want[:-1]
    if len(want) == 0:
        return
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name())
def test_steps_are_those_of_diffusers(case):
    theirs = STORED[case.name()]
    if isinstance(theirs, str):
        assert cannot(case)
        pytest.skip(f"diffusers itself raises: {theirs}")
    compare(case, theirs)


def test_steps_are_those_of_diffusers_over_all_fields():
    pytest.importorskip("diffusers")
    raised = []
    for case in ALL:
        theirs = walk(case)
        if isinstance(theirs, str) or (cannot(case) and np.isnan(theirs.samples[-1]).all()):
            raised.append(case)
            continue
        if case.steps == 1000 and (np.diff(theirs.sigmas) == 0).any():
            # A step of no size, which our grids refuse.
            continue
        try:
            compare(case, theirs)
        except AssertionError as fault:
            raise AssertionError(f"{case.name()}: {fault}") from fault
    assert set(raised) == {case for case in ALL if cannot(case)}


def cannot(case):
    """Say whether diffusers 0.42.1 raises.

    PNDM's Runge-Kutta start wants more than 3 steps; UniPC-3's equations are singular where 1000
    steps repeat a level, and by the machine's rounding they raise or give NaN.
    """
    return (case.steps <= 3 and ("skip_prk_steps", False) in case.fields) or (
        case.steps == 1000 and case.sampler == "unipc" and ("order", 3) in case.options
        and ("timestep_spacing", "linspace") in case.fields)


@pytest.mark.parametrize("scheduler, misses", [("HeunDiscrete", 5.1), ("EulerDiscrete", 0.06)])
def test_their_heun_goes_astray_from_a_cosine_tables_pure_noise(scheduler, misses):
    """What the museum says of them, on its own points: ours leaves pure noise by Euler's step."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    theirs = getattr(diffusers, f"{scheduler}Scheduler")(
        beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    theirs.set_timesteps(10)
    table = Schedule.make("squaredcos_cap_v2")
    truth, x_T = flow_of_petals(table.level(1000))
    x = torch.from_numpy(x_T / table.level(1000).signal)           # they walk in sigma
    for timestep in theirs.timesteps:
        scaled = theirs.scale_model_input(x, timestep)
        _, eps_hat = petals()(scaled.numpy(), table.level(float(timestep) + 1))
        x = theirs.step(torch.from_numpy(eps_hat), timestep, x).prev_sample
    error = np.sqrt(((x.numpy() - truth) ** 2).sum(axis=1)).mean()
    assert error == pytest.approx(misses, rel=0.1)


# ---- grids ----


@pytest.mark.parametrize("steps", [2, 3, 10, 40])
def test_karras_and_exponential_sigmas_are_those_of_diffusers(steps):
    diffusers = pytest.importorskip("diffusers")
    fields = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    for spacing, field in (("karras", "use_karras_sigmas"), ("logsnr", "use_exponential_sigmas")):
        theirs = diffusers.EulerDiscreteScheduler(**fields, **{field: True})
        theirs.set_timesteps(steps)
        grid = levels(TABLE, steps, spacing)
        sigmas = [level.noise / level.signal for level in grid]
        np.testing.assert_allclose(sigmas, theirs.sigmas.numpy(), rtol=2e-4)
        # They find t by a line in log sigma between rows, we by one in log alpha_bar.
        times = [level.t - 1 for level in grid[:-1]]
        np.testing.assert_allclose(times, theirs.timesteps.numpy(), atol=0.2)
