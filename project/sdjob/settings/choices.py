"""The values of settings with a fixed choice, and other spellings of them."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from sdjob.settings.fields import OFF, ON, any_case, comma_list
from sdjob.settings.optimizers import OPTIMIZERS
from sdjob.settings.plugins import DEVICE_FACTS, PLUGINS
from sdjob.settings.recipes import RECIPES


@dataclass(frozen=True)
class TrackerFacts:
    """A tracker that is a package; TensorBoard, which is none of them, comes with every run."""

    module: str  # imported under this name
    package: str  # installed under this one
    prefix: str  # of its variables


TRACKERS: dict[str, TrackerFacts] = {
    "wandb": TrackerFacts("wandb", "wandb", "WANDB_"),
    "mlflow": TrackerFacts("mlflow", "mlflow", "MLFLOW_"),
    "swanlab": TrackerFacts("swanlab", "swanlab", "SWANLAB_"),
}

DEVICES = ("auto", *DEVICE_FACTS)

if TYPE_CHECKING:  # a type checker cannot read the tables
    Recipe = str
    Plugin = str
    Optimizer = str
    Device = str
    Destination = str
else:
    Recipe = Literal[tuple(RECIPES)]
    Plugin = Literal[tuple(PLUGINS)]
    Optimizer = Literal[tuple(OPTIMIZERS)]
    Device = Literal[DEVICES]
    Destination = Literal[("tensorboard", *TRACKERS, "all", "none")]

Precision = Literal["auto", "no", "fp16", "bf16"]
ATTENTION_ALONE = ("auto", "sdpa", "xformers")  # not within a list of priorities
ATTENTION_LISTED = ("cudnn", "flash", "efficient", "math", "fa4")  # of PyTorch, one or several
PRECISIONS = any_case(
    *get_args(Precision),
    fp16=("16", "float16", "half", "16-mixed"),
    bf16=("bfloat16", "bf16-mixed"),
    no=("32", "fp32", "float32", "32-true", "none"),
)


def attention(value: Any) -> Any:
    """One backend, or several in the order of their priority: their names with commas, without spaces."""
    if not isinstance(value, str):
        return value
    names = [name.lower() for name in comma_list(value)]
    if len(names) == 1 and names[0] in ATTENTION_ALONE:
        return names[0]
    if names and len(set(names)) == len(names) and set(names) <= set(ATTENTION_LISTED):
        return ",".join(names)
    alone, listed = ", ".join(ATTENTION_ALONE), ", ".join(ATTENTION_LISTED)
    remedy = f"Write one of {alone}, or one or more of {listed}, each once, with commas"
    known = (*ATTENTION_ALONE, *ATTENTION_LISTED)
    unknown = [name for name in names if name not in known]
    if meant := [each for name in unknown for each in get_close_matches(name, known, n=1)]:
        remedy = f"Did you mean {', '.join(meant)}? {remedy}"
    raise PydanticCustomError("attention", remedy)


Attention = Annotated[str, BeforeValidator(attention)]
Compile = Literal["auto", "off", "whole", "blocks"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
Prediction = Literal["auto", "epsilon", "v_prediction"]
PREDICTIONS = any_case(
    *get_args(Prediction), epsilon=("eps",), v_prediction=("v", "v-prediction", "v_pred", "vpred")
)
Caching = Literal["auto", "no", "memory", "disk"]
CACHED = ("memory", "disk")  # what is encoded once
CACHING = any_case("auto", "no", "memory", "disk", no=OFF, memory=ON)
EXPORTED = any_case(
    "fp32",
    "fp16",
    "bf16",
    fp32=("float32", "float", "32"),
    fp16=("float16", "half", "16"),
    bf16=("bfloat16",),
)
WeightsDtype = Literal["auto", "fp32", "bf16"]
WEIGHTS_DTYPES = any_case(*get_args(WeightsDtype), fp32=("float32",), bf16=("bfloat16",))
ReduceDtype = Literal["fp32", "bf16"]
REDUCE_DTYPES = any_case(*get_args(ReduceDtype), fp32=("float32",), bf16=("bfloat16",))
Schedule = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]
