"""Which settings work together, and on which devices; everything else is refused before a job starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sdjob.model.pipeline import PipelineFolder
from sdjob.problems import Problem, bad_setting, no_hardware
from sdjob.settings.choices import DEVICES
from sdjob.settings.recipes import with_subjects
from sdjob.settings.run_spec import RunSpec

_LOW_FOR_PRODIGY = 0.1
_POLYNOMIAL_END = 1e-7  # where diffusers' polynomial schedule ends

_ANY_DEVICE = tuple(name for name in DEVICES if name != "auto")
_COLOSSAL_DEVICES = ("cuda", "npu")


@dataclass(frozen=True)
class PluginFacts:
    """What a parallel strategy can do. Launcher, worker and documents all read this one table."""

    module: str  # of sdtrain.strategies
    devices: tuple[str, ...] = _ANY_DEVICE
    precisions: tuple[str, ...] = ("no", "bf16", "fp16")
    settings: tuple[str, ...] = ()  # those that no other plugin knows
    package: str = ""  # what has to be installed besides torch

    @property
    def shards(self) -> bool:
        """Whether each process holds a share, and computes with weights in the type of the run. The others hold
        all of it in fp32, and autocast chooses the type of each operation."""
        return self.module != "ddp"


PLUGINS: dict[str, PluginFacts] = {
    "none": PluginFacts("ddp"),
    "torch_ddp": PluginFacts("ddp"),
    "torch_ddp_fp16": PluginFacts("ddp", precisions=("fp16",)),
    "fsdp": PluginFacts(
        "fsdp",
        tuple(name for name in _ANY_DEVICE if name != "mps"),  # torch.distributed has no backend for it
        settings=("reshard_after_forward", "cpu_offload"),
    ),
    "low_level_zero": PluginFacts(
        "colossalai",
        _COLOSSAL_DEVICES,
        settings=("zero_stage", "cpu_offload"),
        package="colossalai",
    ),
    "gemini": PluginFacts(
        "colossalai",
        _COLOSSAL_DEVICES,
        precisions=("bf16", "fp16"),
        settings=("placement",),
        package="colossalai",
    ),
}
_OF_PLUGINS = tuple(dict.fromkeys(name for facts in PLUGINS.values() for name in facts.settings))


@dataclass(frozen=True)
class DeviceFacts:
    """What a kind of device computes in besides fp32, as far as that does not depend on the very device."""

    precisions: tuple[str, ...] = ("bf16", "fp16")
    auto_mixes: bool = True  # whether mixed_precision=auto takes one of them where it can


DEVICE_FACTS: dict[str, DeviceFacts] = {
    **dict.fromkeys(_ANY_DEVICE, DeviceFacts()),
    "cpu": DeviceFacts(("bf16",), auto_mixes=False),  # fp16 runs, slower than fp32; bf16 is fast on few
    "mps": DeviceFacts(auto_mixes=False),  # bf16 from macOS 14 on, and emulated by the older chips
}


@dataclass(frozen=True)
class Topology:
    """Where a job runs: the kind of device, and the number of processes over all nodes."""

    device: str  # cuda, cpu, …; never "auto"
    world_size: int
    bf16: bool | None = None  # whether this very device computes in it at speed; None: not known yet
    fp16: bool | None = None


def resolve_precision(spec: RunSpec, topology: Topology) -> str:
    """The type of the computation for `mixed_precision=auto`: no, fp16 or bf16; else what was asked for."""
    if spec.plugin == "torch_ddp_fp16":
        return "fp16"
    if spec.mixed_precision != "auto":
        return spec.mixed_precision
    if not DEVICE_FACTS[topology.device].auto_mixes:
        return "no"
    if topology.bf16 is None:
        return "auto"
    if topology.bf16:
        return "bf16"
    return "fp16" if PLUGINS[spec.plugin].package and topology.fp16 is not False else "no"


def problems(spec: RunSpec, topology: Topology) -> list[Problem]:
    """Every reason why this spec cannot run there."""
    checks = (
        _strategy(spec, topology),
        _precision(spec, topology),
        _recipe(spec),
        _numbers(spec),
        _caches(spec),
        _optimizer(spec, topology),
    )
    return [problem for found in checks for problem in found]


def model_problems(spec: RunSpec, model: PipelineFolder) -> list[Problem]:
    """Every reason why this spec cannot run with that model."""
    found = _of_folder(spec, model)
    if not spec.rescale_betas_zero_snr or model.prediction_type == "v_prediction":
        return found
    return [
        *found,
        bad_setting(
            "rescale_betas_zero_snr",
            f"on, with a model that predicts {model.prediction_type}",
            "Where only noise is left, a model that predicts the noise learns nothing: "
            "leave it off, or use a model of v-prediction.",
        ),
    ]


def _of_folder(spec: RunSpec, model: PipelineFolder) -> list[Problem]:
    """Settings that tell what one file does not say; a folder says it itself."""
    found = []
    if not model.single and spec.prediction_type not in ("auto", model.prediction_type):
        found.append(
            bad_setting(
                "prediction_type",
                f"{spec.prediction_type}, with a folder whose scheduler says {model.prediction_type}",
                "Leave it at auto; if the folder is wrong, fix its scheduler/scheduler_config.json.",
            )
        )
    if not model.single and spec.single_file_config:
        found.append(
            bad_setting(
                "single_file_config",
                f"{spec.single_file_config}, with a model that is a folder",
                "Unset it: the folder has its own configurations.",
            )
        )
    return found


def _strategy(spec: RunSpec, topology: Topology) -> list[Problem]:
    found = [*_plugin(spec, topology)]
    if topology.device == "cpu" and spec.attention in ("xformers", "cudnn"):
        found.append(
            bad_setting(
                "attention",
                f"{spec.attention} on a CPU",
                "Use attention=auto; that backend needs an NVIDIA device.",
            )
        )
    if (
        topology.device == "cuda"
        and spec.attention in ("flash", "cudnn")
        and resolve_precision(spec, topology) == "no"
    ):
        found.append(
            bad_setting(
                "attention",
                f"{spec.attention} in fp32",
                "That backend computes in half precision only: use attention=auto, or mixed_precision=bf16 or fp16.",
            )
        )
    return found


def _plugin(spec: RunSpec, topology: Topology) -> Iterator[Problem]:
    facts = PLUGINS[spec.plugin]
    if spec.plugin == "none" and topology.world_size > 1:
        yield bad_setting(
            "plugin",
            f"none with {topology.world_size} processes",
            "Use plugin=torch_ddp, or NPROC_PER_NODE=1 on one node.",
        )
    if topology.device not in facts.devices:
        other = "fsdp, which shards the same states on a CPU too" if facts.package else "torch_ddp"
        yield no_hardware(
            "plugin",
            f"{spec.plugin} on device={topology.device}",
            f"It runs on {', '.join(facts.devices)}: use plugin={other}.",
        )
    for name in _OF_PLUGINS:
        value = getattr(spec, name)
        if name not in facts.settings and value != RunSpec.model_fields[name].default:
            yield bad_setting(
                name,
                f"{_shown(value)} with plugin={spec.plugin}",
                f"Leave {name}={_shown(RunSpec.model_fields[name].default)}, or use a plugin that knows it: "
                f"{', '.join(plugin for plugin in PLUGINS if name in PLUGINS[plugin].settings)}.",
            )
    if topology.device == "mps" and topology.world_size > 1:
        yield no_hardware(
            "NPROC_PER_NODE",
            f"{topology.world_size} processes on device=mps",
            "PyTorch has no collectives for it: use NPROC_PER_NODE=1.",
        )
    if spec.plugin == "gemini" and spec.placement == "auto" and topology.device == "npu":
        yield bad_setting(
            "placement", "auto on npu", "Gemini decides on cuda only: use placement=cuda or cpu."
        )


def _shown(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _precision(spec: RunSpec, topology: Topology) -> list[Problem]:
    if spec.plugin == "torch_ddp_fp16" and spec.mixed_precision not in ("auto", "fp16"):
        return [
            bad_setting(
                "mixed_precision",
                f"{spec.mixed_precision} with plugin=torch_ddp_fp16",
                "That plugin is fp16: leave mixed_precision=auto, or use plugin=torch_ddp.",
            )
        ]
    precision = resolve_precision(spec, topology)
    facts = PLUGINS[spec.plugin]
    if topology.device in facts.devices and precision not in ("auto", *facts.precisions):
        return [
            bad_setting(
                "mixed_precision",
                f"{precision} with plugin={spec.plugin}",
                f"Use mixed_precision={' or '.join(facts.precisions)}, or plugin=fsdp.",
            )
        ]
    if precision == "auto" or _computes_in(topology, precision):
        return []
    fits = [other for other in facts.precisions if _computes_in(topology, other)]
    cause = f"mixed_precision={precision}" if fits else f"plugin={spec.plugin}"
    if not fits:
        others = PLUGINS["torch_ddp"].precisions
        fits = [f"{other} with plugin=torch_ddp" for other in others if _computes_in(topology, other)]
    kind = (
        "CPU, which has no fast fp16" if topology.device == "cpu" else f"{topology.device} device without it"
    )
    return [
        bad_setting("mixed_precision", f"{cause} on a {kind}", f"Use mixed_precision={' or '.join(fits)}.")
    ]


def _computes_in(topology: Topology, precision: str) -> bool:
    """As far as is known."""
    if precision == "no":
        return True
    known = topology.bf16 if precision == "bf16" else topology.fp16
    return precision in DEVICE_FACTS[topology.device].precisions and known is not False


def _recipe(spec: RunSpec) -> list[Problem]:
    found = []
    if not spec.recipe_facts.has_subjects and spec.with_prior_preservation:
        found.append(
            bad_setting(
                "with_prior_preservation",
                f"on with recipe={spec.recipe}",
                f"Prior preservation belongs to {with_subjects()}: remove one of them.",
            )
        )
    if not spec.recipe_facts.has_subjects and spec.concepts_list:
        found.append(
            bad_setting(
                "concepts_list",
                f"given with recipe={spec.recipe}",
                f"Subjects belong to {with_subjects()}: remove one of them.",
            )
        )
    has_class = spec.class_prompt or spec.concepts_list  # which is read and checked when there is one
    if spec.recipe_facts.has_subjects and spec.with_prior_preservation and not has_class:
        found.append(
            bad_setting(
                "class_prompt",
                "empty, with with_prior_preservation on",
                "Name the class of the subject, such as class_prompt=a photo of a dog.",
            )
        )
    return found


def _optimizer(spec: RunSpec, topology: Topology) -> list[Problem]:
    """Strategies that shard have an Adam of their own, or shards whose statistics are not those of a tensor."""
    found = []
    if spec.optimizer != "adamw" and PLUGINS[spec.plugin].shards:
        found.append(
            bad_setting(
                "optimizer",
                f"{spec.optimizer} with plugin={spec.plugin}",
                "That plugin updates shards with AdamW: use optimizer=adamw, or plugin=torch_ddp.",
            )
        )
    if spec.optimizer == "prodigy":
        rates = {"lr": spec.learning_rate, "text_encoder_lr": spec.text_encoder_lr or spec.learning_rate}
        found += [
            bad_setting(
                name,
                f"{rate:g} with optimizer=prodigy",
                "Prodigy finds the rate itself, one for all, and scales it by this: set lr=1, and no other.",
            )
            for name, rate in rates.items()
            if rate < _LOW_FOR_PRODIGY or rate != spec.learning_rate
        ][:1]
    return found


def _caches(spec: RunSpec) -> list[Problem]:
    found = []
    if spec.cache_latents != "no" and not spec.center_crop:
        found.append(
            bad_setting(
                "cache_latents",
                f"{spec.cache_latents}, with random crops",
                "Latents are kept of one crop, so crops could not be random: "
                "set center_crop=1, or leave cache_latents=no.",
            )
        )
    if spec.cache_text_embeddings != "no" and spec.train_text_encoder:
        found.append(
            bad_setting(
                "cache_text_embeddings",
                f"{spec.cache_text_embeddings}, with train_text_encoder on",
                "What is trained changes in every step: leave cache_text_embeddings=no.",
            )
        )
    return found


def _numbers(spec: RunSpec) -> list[Problem]:
    found = []
    if spec.validation_split and spec.validation_data_dir:
        found.append(
            bad_setting(
                "validation_split",
                f"{spec.validation_split:g} with validation_data_dir={spec.validation_data_dir}",
                "The held-out images are those of the folder or a share of the dataset: remove one of them.",
            )
        )
    if spec.aspect_ratio_buckets and spec.resolution % spec.bucket_reso_steps:
        found.append(
            bad_setting(
                "resolution",
                f"{spec.resolution} with bucket_reso_steps={spec.bucket_reso_steps}",
                "The sides of all buckets are multiples of bucket_reso_steps: make the resolution one.",
            )
        )
    if spec.lr_warmup_steps >= spec.max_train_steps:
        found.append(
            bad_setting(
                "lr_warmup_steps",
                f"{spec.lr_warmup_steps} with num_train_step={spec.max_train_steps}",
                "The learning rate would never be reached: warm up for fewer steps than the run has.",
            )
        )
    if spec.lr_warmup_steps and spec.lr_scheduler == "constant":
        found.append(
            bad_setting(
                "lr_warmup_steps",
                f"{spec.lr_warmup_steps} with lr_scheduler=constant",
                "That schedule has no warm-up: use lr_scheduler=constant_with_warmup.",
            )
        )
    if spec.lr_scheduler == "polynomial" and spec.learning_rate <= _POLYNOMIAL_END:
        found.append(
            bad_setting(
                "lr_scheduler",
                f"polynomial with lr={spec.learning_rate:g}",
                f"That schedule ends at {_POLYNOMIAL_END:g}: use linear, or a larger lr.",
            )
        )
    return found
