"""The samplers that images can be generated with: diffusers' schedulers, by the short names of `--scheduler`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdjob.problems import JobError, bad_setting


@dataclass(frozen=True)
class Sampler:
    """A scheduler class of diffusers with its options, and how WebUI names the same."""

    class_name: str
    webui: str
    options: Mapping[str, Any] = field(default_factory=dict)


_KARRAS = {"use_karras_sigmas": True}  # Karras et al. 2022, arXiv:2206.00364, equation 5
SAMPLERS: Mapping[str, Sampler] = {
    "ddim": Sampler("DDIMScheduler", "DDIM"),
    "ddpm": Sampler("DDPMScheduler", "DDPM"),
    "pndm": Sampler("PNDMScheduler", "PLMS", {"skip_prk_steps": True}),
    "euler": Sampler("EulerDiscreteScheduler", "Euler"),
    "euler_a": Sampler("EulerAncestralDiscreteScheduler", "Euler a"),
    "heun": Sampler("HeunDiscreteScheduler", "Heun"),
    "dpm2": Sampler("KDPM2DiscreteScheduler", "DPM2"),
    "dpmpp_2m": Sampler("DPMSolverMultistepScheduler", "DPM++ 2M"),
    "dpmpp_2m_karras": Sampler("DPMSolverMultistepScheduler", "DPM++ 2M Karras", _KARRAS),
    "unipc": Sampler("UniPCMultistepScheduler", "UniPC"),
    "lcm": Sampler("LCMScheduler", "LCM"),
}


def created(name: str, own: Any, steps: int) -> Any:
    """The sampler of this name, with the noise schedule and the prediction type of the model's own.

    Raises JobError (64) where its first timestep occurs twice, as with Karras' sigmas if the schedule ends in almost
    pure noise: diffusers would start at the second one, and end beyond the last.
    """
    import diffusers  # not while the command line is read

    sampler = SAMPLERS[name]
    scheduler = getattr(diffusers, sampler.class_name).from_config(own.config, **sampler.options)
    if sampler.options == _KARRAS and steps > 1:
        scheduler.set_timesteps(steps)
        first, second, *_ = scheduler.timesteps.tolist()
        if first == second:
            found = f"{name}, and the noise schedule of this model ends in almost pure noise"
            remedy = "Use another one, such as dpmpp_2m or ddim."
            raise JobError(bad_setting("--scheduler", found, remedy))
    return scheduler


def webui_name(scheduler: Any) -> str:
    """WebUI's name of a scheduler, else that of its class."""
    class_name, own = type(scheduler).__name__, scheduler.config
    of_class = [each for each in SAMPLERS.values() if each.class_name == class_name]
    equal = [each for each in of_class if all(own.get(key) == value for key, value in each.options.items())]
    return max(equal, key=lambda each: len(each.options)).webui if equal else class_name
