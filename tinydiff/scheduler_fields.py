"""The fields of a published scheduler_config.json: which there are, and what they may say."""
from typing import NamedTuple

from tinydiff.schedules import Flow

# Fields read here, with what a file that leaves them out means to diffusers' own classes.
TABLE = {
    "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02,
    "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 0,
    "clip_sample": False, "set_alpha_to_one": True, "rescale_betas_zero_snr": False,
}
LINE = {"num_train_timesteps": 1000, "shift": 1.0}       # of flow matching
SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False}
SQUEEZE = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}


class Published(NamedTuple):
    """A class of diffusers: the sampler here, its own fields, and where it differs from `TABLE`."""

    sampler: str
    own: dict                          # field: default
    differs: dict = {}                                   # noqa: RUF012 - is not changed
    drops_last: bool = False           # N steps are the first N of N + 1 levels
    fractions: bool = False            # "linspace" is not rounded to rows


LINSPACE = {"timestep_spacing": "linspace"}
CLASSES = {
    "DDIMScheduler": Published("ddim", SQUEEZE, {"clip_sample": True}),
    "DDPMScheduler": Published("ddpm", SQUEEZE, {"clip_sample": True}),
    "PNDMScheduler": Published("pndm", {"skip_prk_steps": False}, {"set_alpha_to_one": False}),
    "LMSDiscreteScheduler": Published("lms", SIGMAS, LINSPACE, fractions=True),
    "EulerDiscreteScheduler": Published("euler", SIGMAS, LINSPACE, fractions=True),
    "EulerAncestralDiscreteScheduler": Published("euler_ancestral", {}, LINSPACE, fractions=True),
    "HeunDiscreteScheduler": Published(
        "heun", SIGMAS, {**LINSPACE, "beta_start": 0.00085, "beta_end": 0.012}, fractions=True),
    "DPMSolverMultistepScheduler": Published("dpmpp_2m", {
        **SIGMAS, **SQUEEZE, "solver_order": 2, "solver_type": "midpoint",
        "algorithm_type": "dpmsolver++", "lower_order_final": True}, LINSPACE, drops_last=True),
    "UniPCMultistepScheduler": Published("unipc", {
        **SIGMAS, **SQUEEZE, "solver_order": 2, "solver_type": "bh2", "lower_order_final": True},
        LINSPACE, drops_last=True),
    "FlowMatchEulerDiscreteScheduler": Published("flow", {}),
}
FLOW = "FlowMatchEulerDiscreteScheduler"
CHOICES = {                            # of a class's own fields
    "skip_prk_steps": (False, True), "use_karras_sigmas": (False, True),
    "use_exponential_sigmas": (False, True), "thresholding": (False, True),
    "solver_order": (1, 2, 3), "lower_order_final": (False, True),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "solver_type": ("midpoint", "heun", "bh1", "bh2"),
}

# Fields supported at one value: any other would compute something else than is computed here.
ONLY = {
    "trained_betas": None, "clip_sample_range": 1.0, "interpolation_type": "linear",
    "timestep_type": "discrete", "final_sigmas_type": "zero", "sigma_min": None, "sigma_max": None,
    "use_beta_sigmas": False, "use_lu_lambdas": False, "use_flow_sigmas": False,
    "euler_at_final": False, "lambda_min_clipped": float("-inf"), "predict_x0": True,
    "disable_corrector": [], "solver_p": None, "use_dynamic_shifting": False,
    "invert_sigmas": False, "shift_terminal": None, "stochastic_sampling": False,
}
VARIANCES = (None, "fixed_small")                        # of variance_type

# Fields without effect: they tune what is not used, or another class's sampler.
IDLE = {"flow_shift", "time_shift_type", "base_shift", "max_shift", "base_image_seq_len",
        "max_image_seq_len", "dynamic_thresholding_ratio", "sample_max_value", "skip_prk_steps",
        "solver_order", "solver_type", "algorithm_type", "lower_order_final"}
SWITCHES = {**SIGMAS, "thresholding": False, "shift": 1.0}     # off, they are any class's


def line_of(given):
    """Return the straight line of a flow matching config."""
    T, shift = given["num_train_timesteps"], given["shift"]
    if type(T) is not int or T < 1:
        raise ValueError(f"scheduler config: num_train_timesteps={T!r} is not supported: a whole "
                         "number from 1 is needed")
    if type(shift) not in (int, float) or not 0 < shift < float("inf"):
        raise ValueError(f"scheduler config: shift={shift!r} is not supported: a positive number "
                         "is needed")
    return Flow(T, float(shift))


def check_own(class_name, own):
    """Refuse a value, or a combination, of a class's own fields."""
    for name, value in own.items():
        if name in CHOICES:
            check_choice(name, value, CHOICES[name])
    form = own.get("solver_type", "midpoint")
    forms = ("bh1", "bh2") if class_name == "UniPCMultistepScheduler" else ("midpoint", "heun")
    check_choice("solver_type", form, forms)
    if own.get("algorithm_type") == "sde-dpmsolver++" and (
            form != "midpoint" or own["solver_order"] > 2):
        raise ValueError(f"scheduler config: algorithm_type='sde-dpmsolver++' with solver_order="
                         f"{own['solver_order']} and solver_type={form!r} is not supported: order "
                         "1 or 2, and 'midpoint'")
    if own.get("use_karras_sigmas") and own.get("use_exponential_sigmas"):
        raise ValueError("scheduler config: use_karras_sigmas and use_exponential_sigmas are both "
                         "true: only one can choose the levels")
    if own.get("thresholding"):
        ratio, most = own["dynamic_thresholding_ratio"], own["sample_max_value"]
        numbers = all(type(value) in (int, float) for value in (ratio, most))
        if not (numbers and 0 < ratio <= 1 <= most):
            raise ValueError(f"scheduler config: thresholding=True with dynamic_thresholding_ratio="
                             f"{ratio!r} and sample_max_value={most!r} is not supported: a share "
                             "in (0, 1] and a number from 1")


def check_choice(name, value, choices):
    """Refuse a value that is none of the choices."""
    if value not in list(choices):                       # a list: compares what cannot be hashed
        listed = ", ".join(map(str, choices))
        raise ValueError(f"scheduler config: {name}={value!r} is not supported: one of {listed}")
