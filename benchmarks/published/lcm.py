"""Published values of latent consistency models and LCM-LoRA."""

from __future__ import annotations

from typing import Any

from benchmarks.published.entry import Published

_FOLDER = "luosiallen/latent-consistency-model LCM_Training_Script/consistency_distillation"
_BOUNDARY = {"parameterization.sigma_data": 0.5, "parameterization.timestep_scaling": 10.0}
_COMMAND = {
    "loss.name": "huber",
    "optimizer.weight_decay": 0.0,
    "training.num_steps": 1000,
    "training.batch_size": 12,
}
_DEFAULTS = {
    "loss.c": 0.001,
    "loss.entrywise": True,
    "optimizer.name": "adamw",
    "optimizer.warmup_steps": 500,
    "optimizer.clip_norm": 1.0,
    "system.schedule.points": 51,
    "system.schedule.spacing": "uniform",
    "system.solver": "ddim",
    "sampling.grid.original_steps": 50,
}
_DATA = (
    "Their batch of 12 is that of one process. Their data, texts and images of LAION, is a folder of your own here, "
    "and their Adam has states of 8 bits."
)


def _student(
    script: str, readme: str, commands: str, lines: str, boundary: int, **values: Any
) -> dict[str, dict[str, Any]]:
    """One variant: its script with the lines of its defaults, and the command of its README."""
    given = {name.replace("__", "."): value for name, value in values.items()}
    rate = {name: given.pop(name) for name in ("optimizer.learning_rate", "system.target.mu") if name in given}
    from_command = {} if "lora.rank" in given else rate
    return {
        f"{_FOLDER}/{script}:{lines}": _DEFAULTS | given | ({} if from_command else rate),
        f"{_FOLDER}/{script}:{boundary}": _BOUNDARY,
        f"{_FOLDER}/{readme}:{commands}": _COMMAND | from_command,
    }


def _whole(
    variant: str, script: str, readme: str, lines: str, boundary: int, guidance: tuple[float, float]
) -> Published:
    return Published(
        paper="Latent consistency models (arXiv:2310.04378)",
        variants=(f"lcm:{variant}",),
        values=_student(
            script,
            readme,
            "57-76",
            lines,
            boundary,
            system__guidance=guidance,
            network__time_cond_proj_dim=256,
            optimizer__learning_rate=1e-6,
            system__target__mu=0.95,
        ),
        differences=(
            "Ranges of guidance are scales: theirs, of w, are less by 1.",
            "The embedding of the scale starts at zero, as in the paper; in their code at random.",
            _DATA,
        ),
    )


def _lora(
    variant: str, script: str, readme: str, lines: str, boundary: int, guidance: tuple[float, float]
) -> Published:
    return Published(
        paper="LCM-LoRA (arXiv:2311.05556)",
        variants=(f"lcm:{variant}",),
        values=_student(
            script,
            readme,
            "88-108",
            lines,
            boundary,
            system__guidance=guidance,
            lora__rank=64,
            optimizer__learning_rate=1e-4,
        ),
        differences=(
            "Ranges of guidance are scales: theirs, of w, are less by 1.",
            "The learning rate is the default of their script; the command of their README has 1e-6.",
            "alpha = 8 is peft's default, which their script leaves.",
            _DATA,
        ),
    )


TABLE: tuple[Published, ...] = (
    _whole("sd15", "train_lcm_distill_sd_wds.py", "README.md", "575-664", 332, (6.0, 16.0)),
    _whole("sdxl", "train_lcm_distill_sdxl_wds.py", "README_sdxl.md", "595-684", 315, (4.0, 16.0)),
    _lora("sd15_lora", "train_lcm_distill_lora_sd_wds.py", "README.md", "598-686", 355, (6.0, 16.0)),
    _lora("sdxl_lora", "train_lcm_distill_lora_sdxl_wds.py", "README_sdxl.md", "573-661", 337, (4.0, 16.0)),
)
