"""The field's scheduler_config.json: the noise schedule, what the network predicts, the grid."""
from dataclasses import dataclass

from tinydiff.grids import SPACINGS, levels
from tinydiff.schedules import Schedule
from tinydiff.targets import KINDS

# Fields read here, with what a file that leaves them out means to diffusers' own classes.
READ = {
    "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02,
    "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 0,
    "clip_sample": False, "set_alpha_to_one": True, "rescale_betas_zero_snr": False,
}
CLASSES = {                                              # where a class differs from that
    "DDIMScheduler": {"clip_sample": True},
    "DDPMScheduler": {"clip_sample": True},
    "PNDMScheduler": {"set_alpha_to_one": False},
    "LMSDiscreteScheduler": {"timestep_spacing": "linspace"},
    "EulerDiscreteScheduler": {"timestep_spacing": "linspace"},
    "EulerAncestralDiscreteScheduler": {"timestep_spacing": "linspace"},
}

# Fields supported at one value: any other would compute something else than is computed here.
ONLY = {
    "trained_betas": None, "thresholding": False,
    "clip_sample_range": 1.0, "variance_type": "fixed_small", "interpolation_type": "linear",
    "timestep_type": "discrete", "final_sigmas_type": "zero", "sigma_min": None, "sigma_max": None,
    "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
}

# Fields without effect: they tune thresholding, or the warm-up of one published sampler.
IDLE = {"dynamic_thresholding_ratio", "sample_max_value", "skip_prk_steps"}


@dataclass(frozen=True, eq=False)
class SchedulerConfig:
    """What a model was trained with: the schedule, the prediction, and the published grid.

    The file's class names a sampler; here the user chooses one, on the same schedule.

    Attributes
    ----------
    schedule : Schedule
    prediction_type : {"epsilon", "sample", "v_prediction"}
    timestep_spacing : {"trailing", "leading", "linspace"}
    steps_offset : int, default 0
        Moves a "leading" grid up by so many t.
    clip_sample : bool, default False
        Whether the denoiser clips x0_hat to [-1, 1].
    set_alpha_to_one : bool, default True
        Whether the published sampler's last step lands on clean data (else on level 1).  Kept and
        written back; grids here always end at clean data.

    Examples
    --------
    >>> config = SchedulerConfig.from_config({
    ...     "_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear",
    ...     "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1})
    >>> [level.t for level in config.levels(4)]
    [752.0, 502.0, 252.0, 2.0, 0.0]
    >>> config.to_config()["prediction_type"]
    'epsilon'
    """

    schedule: Schedule
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    clip_sample: bool = False
    set_alpha_to_one: bool = True

    def __post_init__(self):
        _check_choice("prediction_type", self.prediction_type, KINDS[:3])      # as published
        _check_choice("timestep_spacing", self.timestep_spacing, SPACINGS)
        _check_choice("clip_sample", self.clip_sample, (False, True))
        _check_choice("set_alpha_to_one", self.set_alpha_to_one, (False, True))
        if type(self.steps_offset) is not int or self.steps_offset < 0:
            raise ValueError(f"scheduler config: steps_offset={self.steps_offset!r} is not "
                             "supported: a whole number, 0 or more, is needed")

    @classmethod
    def from_config(cls, config):
        """Read the fields of a published scheduler_config.json.

        Parameters
        ----------
        config : dict
            Fields that begin with an underscore are not read, but for the class's name, which
            decides what the fields left out mean.

        Returns
        -------
        config : SchedulerConfig

        Raises
        ------
        ValueError
            Naming the first field, or value, that is not supported.
        """
        class_name = config.get("_class_name", "DDIMScheduler")
        _check_choice("_class_name", class_name, CLASSES)
        for name, value in config.items():
            if name in ONLY and value != ONLY[name]:
                raise ValueError(f"scheduler config: {name}={value!r} is not supported, "
                                 f"only {ONLY[name]!r}")
            if not (name in READ or name in ONLY or name in IDLE or name.startswith("_")):
                raise ValueError(f"scheduler config: unknown field {name!r} (value {value!r})")

        given = {**READ, **CLASSES[class_name],
                 **{name: value for name, value in config.items() if name in READ}}
        own = {name: given[name] for name in cls.__dataclass_fields__ if name != "schedule"}
        return cls(Schedule.from_config(given), **own)

    def to_config(self):
        """Return the published fields, for a scheduler_config.json that diffusers reads."""
        return {
            "_class_name": "DDIMScheduler",
            **self.schedule.to_config(),
            "prediction_type": self.prediction_type,
            "timestep_spacing": self.timestep_spacing,
            "steps_offset": self.steps_offset,
            "clip_sample": self.clip_sample,
            "set_alpha_to_one": self.set_alpha_to_one,
        }

    def levels(self, steps, spacing=None):
        """Choose the levels of a sampler's walk, on this model's own grid unless another is named.

        Parameters
        ----------
        steps : int
        spacing : str, optional
            See `tinydiff.grids.levels`.

        Returns
        -------
        levels : list of steps + 1 Level
        """
        return levels(self.schedule, steps, spacing or self.timestep_spacing, self.steps_offset)


def _check_choice(name, value, choices):
    if value not in list(choices):                       # a list: compares what cannot be hashed
        listed = ", ".join(map(str, choices))
        raise ValueError(f"scheduler config: {name}={value!r} is not supported: one of {listed}")
