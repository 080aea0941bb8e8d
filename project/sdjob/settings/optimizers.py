"""Facts of each optimizer, for settings, estimates and checks; sdtrain.optim.optimizers has a builder for each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerFacts:
    """What an optimizer needs, and which settings mean what with it."""

    help: str
    state_bytes: int  # bytes of optimizer state per trainable parameter
    package: str = ""  # imported and installed under this name; "": comes with the packages of every run
    # Updates each value by itself, with a state of exactly torch.optim.AdamW's `exp_avg`, `exp_avg_sq` and `step`. All
    # strategies that shard create and save that state themselves.
    adam_state: bool = False
    uses_betas: bool = True  # adam_beta1 and adam_beta2 apply
    uses_epsilon: bool = True  # adam_epsilon applies
    adamw_rates: bool = True  # lr means what it means with AdamW: the warning about high rates applies
    learning_rate: float | None = None  # preset; None: that of the recipe
    rate_is_scale: bool = False  # finds the rate itself, one for all groups, and multiplies it by lr
    spellings: tuple[str, ...] = ()  # other names that users write


OPTIMIZERS: dict[str, OptimizerFacts] = {
    "adamw": OptimizerFacts("", 8, adam_state=True),
    "adamw8bit": OptimizerFacts(
        "bitsandbytes, less memory", 2, "bitsandbytes", spellings=("adamw_8bit", "8bit", "adam8bit")
    ),
    # A row and a column of each matrix, which is next to nothing.
    "adafactor": OptimizerFacts("still less", 0, uses_betas=False, uses_epsilon=False, adamw_rates=False),
    "prodigy": OptimizerFacts(
        "finds its rate, with lr=1",
        16,
        "prodigyopt",
        adamw_rates=False,
        learning_rate=1.0,
        rate_is_scale=True,
    ),
}

HELP = "; ".join(f"{name} ({facts.help})" if facts.help else name for name, facts in OPTIMIZERS.items())
