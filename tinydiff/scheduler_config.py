"""The field's scheduler_config.json: the noise schedule, what the network predicts, the walk.

The published class says which sampler walks over which levels; see `tinydiff.scheduler_fields`.
"""
from dataclasses import dataclass, field
from math import ceil, inf

import numpy as np

from tinydiff.diffusion import CLEAN, Level
from tinydiff.grids import SPACINGS, by_noise, levels
from tinydiff.scheduler_fields import (
    CLASSES,
    FLOW,
    IDLE,
    LINE,
    ONLY,
    SWITCHES,
    TABLE,
    VARIANCES,
    check_choice,
    check_own,
    line_of,
)
from tinydiff.schedules import Flow, Schedule
from tinydiff.targets import KINDS


@dataclass(frozen=True, eq=False)
class SchedulerConfig:
    """What a model was trained with: the schedule, the prediction, and the published walk.

    Attributes
    ----------
    schedule : Schedule or Flow
    prediction_type : {"epsilon", "sample", "v_prediction", "flow_prediction"}
        The last of a `Flow`, the others of a `Schedule`.
    timestep_spacing : {"trailing", "leading", "linspace"}
    steps_offset : int, default 0
        Moves a "leading" grid up by so many t.
    clip_sample : bool, default False
        Whether the denoiser clips x0_hat to [-1, 1].
    set_alpha_to_one : bool, default True
        Whether the published sampler's last step lands on clean data (else on level 1).  Kept and
        written back; grids here always end at clean data.
    class_name : str, default "DDIMScheduler"
        A name of `CLASSES`.
    own : dict, optional
        The class's own fields; those left out take the published defaults.

    Raises
    ------
    ValueError
        Naming the first value, or combination, that is not supported.

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

    schedule: Schedule | Flow
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    clip_sample: bool = False
    set_alpha_to_one: bool = True
    class_name: str = "DDIMScheduler"
    own: dict = field(default_factory=dict)

    def __post_init__(self):
        check_choice("_class_name", self.class_name, CLASSES)
        straight = self.class_name == FLOW
        if straight != isinstance(self.schedule, Flow):
            raise ValueError(f"scheduler config: {FLOW} goes with the schedule Flow, and no other "
                             f"class does; here {self.class_name} has a "
                             f"{type(self.schedule).__name__}")
        check_choice("prediction_type", self.prediction_type,
                      ("flow_prediction",) if straight else KINDS[:3])         # as published
        check_choice("timestep_spacing", self.timestep_spacing, SPACINGS)
        check_choice("clip_sample", self.clip_sample, (False, True))
        check_choice("set_alpha_to_one", self.set_alpha_to_one, (False, True))
        if type(self.steps_offset) is not int or self.steps_offset < 0:
            raise ValueError(f"scheduler config: steps_offset={self.steps_offset!r} is not "
                             "supported: a whole number, 0 or more, is needed")
        known = CLASSES[self.class_name].own
        for name, value in self.own.items():
            if name not in known:
                raise ValueError(f"scheduler config: {name}={value!r} is no field of "
                                 f"{self.class_name}")
        object.__setattr__(self, "own", {**known, **self.own})
        check_own(self.class_name, self.own)

    @property
    def sampler(self):
        """The name in `tinydiff.samplers.SAMPLERS` of the method that the class publishes."""
        if self.own.get("algorithm_type") == "sde-dpmsolver++":
            return "dpmpp_sde"
        order = self.own.get("solver_order")
        if self.class_name == "DPMSolverMultistepScheduler" and order != 2:
            return {1: "ddim", 3: "dpmpp_3m"}[order]     # of order 1 it is DDIM
        return CLASSES[self.class_name].sampler

    @property
    def options(self):
        """The options of `sampler` that the class's own fields ask for, a dict."""
        own, sampler = self.own, self.sampler
        if sampler == "dpmpp_sde":
            return {"order": own["solver_order"]}
        if sampler in ("dpmpp_2m", "dpmpp_3m"):
            return {"form": own["solver_type"], "lower_order_final": own["lower_order_final"]}
        if sampler == "unipc":
            return {"order": own["solver_order"], "scale": own["solver_type"],
                    "lower_order_final": own["lower_order_final"]}
        if sampler == "pndm" and not own["skip_prk_steps"]:
            return {"level": lambda t: self.schedule.level(ceil(t))}           # between two rows
        return {}

    @property
    def threshold(self):
        """``(ratio, largest)`` of `tinydiff.guidance.dynamic_threshold`, or None where it is off.

        As published, squeezing takes the place of clipping.
        """
        own = self.own
        on = own.get("thresholding")
        return (own["dynamic_thresholding_ratio"], own["sample_max_value"]) if on else None

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
        check_choice("_class_name", class_name, CLASSES)
        published, straight = CLASSES[class_name], class_name == FLOW
        read, foreign = (LINE, TABLE) if straight else (TABLE, {})
        own = {}
        for name, value in config.items():
            if name in ONLY and value != ONLY[name]:
                raise ValueError(f"scheduler config: {name}={value!r} is not supported, "
                                 f"only {ONLY[name]!r}")
            if name == "variance_type":
                check_choice(name, value, VARIANCES)
            elif name in published.own:
                own[name] = value
            elif name not in read and (name in foreign or name in SWITCHES):
                if name in foreign or value != SWITCHES[name]:
                    raise ValueError(f"scheduler config: {name}={value!r} is not supported by "
                                     f"{class_name}, which has no such field")
            elif not (name in read or name in ONLY or name in IDLE or name.startswith("_")):
                raise ValueError(f"scheduler config: unknown field {name!r} (value {value!r})")

        given = {**read, **published.differs, **{n: v for n, v in config.items() if n in read}}
        if straight:
            return cls(line_of(given), "flow_prediction", class_name=class_name)
        parts = {name: given[name] for name in cls.__dataclass_fields__ if name in TABLE}
        return cls(Schedule.from_config(given), **parts, class_name=class_name, own=own)

    def to_config(self):
        """Return the published fields, for a scheduler_config.json that diffusers reads."""
        if self.class_name == FLOW:
            return {"_class_name": FLOW, "num_train_timesteps": self.schedule.T,
                    "shift": self.schedule.shift}
        known = CLASSES[self.class_name].own
        return {
            "_class_name": self.class_name,
            **self.schedule.to_config(),
            "prediction_type": self.prediction_type,
            "timestep_spacing": self.timestep_spacing,
            "steps_offset": self.steps_offset,
            "clip_sample": self.clip_sample,
            "set_alpha_to_one": self.set_alpha_to_one,
            **{name: value for name, value in self.own.items() if value != known[name]},
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
            With the times that the published class tells the network.
        """
        if spacing is not None:
            return levels(self.schedule, steps, spacing, self.steps_offset)
        if self.class_name == FLOW:                      # down to row 1 of its own table, as there
            return levels(self.schedule, steps, "linspace", end=self.schedule.level(1).t)
        if not (self.own.get("use_karras_sigmas") or self.own.get("use_exponential_sigmas")):
            return self._by_time(steps)

        grid = self._by_time(steps)
        first, last = grid[0], grid[-2]
        if CLASSES[self.class_name].drops_last:          # these look at the whole table
            first, last = (self.schedule.level(t) for t in (self.schedule.T, 1))
        chosen = "karras" if self.own["use_karras_sigmas"] else "logsnr"
        return [*map(self._told, by_noise(self.schedule, first, last, int(steps), chosen)), CLEAN]

    def _by_time(self, steps):
        """Return the levels of `timestep_spacing`, as the class counts them."""
        grid = levels(self.schedule, steps, self.timestep_spacing, self.steps_offset)
        published, T = CLASSES[self.class_name], self.schedule.T
        if published.fractions and self.timestep_spacing == "linspace":
            times, sigmas = np.linspace(1, T, steps)[::-1], self._sigmas()
            found = [_of_sigma(t, s) if s < inf else self.schedule.level(t) for t, s in zip(
                times.tolist(), np.interp(times, np.arange(1, T + 1), sigmas).tolist(),
                strict=True)]
            return [*found, CLEAN]
        if steps == T:                                   # every row, where theirs repeat some
            return grid
        if published.drops_last and self.timestep_spacing == "linspace":
            return [*levels(self.schedule, steps, "linspace", clean=False)[:-1], CLEAN]
        if published.drops_last and self.timestep_spacing == "leading":
            return [*levels(self.schedule, steps + 1, "leading", self.steps_offset)[:-2], CLEAN]
        return grid

    def _sigmas(self):
        """Return noise / signal of the rows 1 to T, rising; inf where no signal is left."""
        with np.errstate(divide="ignore"):
            return np.sqrt(1 / self.schedule.alpha_bar[1:] - 1)

    def _told(self, level):
        """Return a level with the time that goes to the network: by a line in log sigma."""
        sigmas = self._sigmas()
        rows = np.arange(1, len(sigmas) + 1)[sigmas < inf]
        t = float(np.interp(-level.lam, np.log(sigmas[sigmas < inf]), rows))
        if CLASSES[self.class_name].drops_last:          # these tell it whole numbers
            unipc = self.class_name == "UniPCMultistepScheduler"
            cosine = self.schedule.published.get("beta_schedule") == "squaredcos_cap_v2"
            rounds = self.own["use_karras_sigmas"] and (unipc or not cosine)
            t = 1.0 + (round(t - 1) if rounds else int(t - 1))
        return level._replace(t=t)


def _of_sigma(t, sigma):
    """Return the variance-preserving level of a sigma."""
    signal = (1 + sigma**2) ** -0.5
    return Level(t, signal, sigma * signal)
