"""The values of settings with a fixed choice, and other spellings of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from sdjob.settings.fields import OFF, ON, any_case
from sdjob.settings.optimizers import OPTIMIZERS
from sdjob.settings.plugins import DEVICE_FACTS, PLUGINS
from sdjob.settings.recipes import RECIPES

DEVICES = ("auto", *DEVICE_FACTS)

if TYPE_CHECKING:  # a type checker cannot read the tables
    Recipe = str
    Plugin = str
    Optimizer = str
    Device = str
else:
    Recipe = Literal[tuple(RECIPES)]
    Plugin = Literal[tuple(PLUGINS)]
    Optimizer = Literal[tuple(OPTIMIZERS)]
    Device = Literal[DEVICES]

Precision = Literal["auto", "no", "fp16", "bf16"]
Attention = Literal["auto", "sdpa", "flash", "cudnn", "efficient", "xformers", "math"]
PRECISIONS = any_case(
    *get_args(Precision),
    fp16=("16", "float16", "half", "16-mixed"),
    bf16=("bfloat16", "bf16-mixed"),
    no=("32", "fp32", "float32", "32-true", "none"),
)
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
# Trackers that are packages, imported and installed under these names; TensorBoard comes with every run.
TRACKERS = ("wandb", "mlflow", "swanlab")
Destination = Literal["tensorboard", "wandb", "mlflow", "swanlab", "all", "none"]
Schedule = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]
