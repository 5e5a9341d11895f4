"""Default config, and the functions with which a config file changes it."""

import importlib.machinery
import importlib.util
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def defaults() -> ConfigDict:
    """Returns the default config with all keys: a small DDPM-like model of the digits of scikit-learn."""
    return ConfigDict(
        dict(
            seed=0,
            system=dict(name="diffusion"),
            process=dict(name="vp"),
            parameterization=dict(name="eps", label="time"),
            weighting=dict(name="simple"),
            times=dict(name="uniform"),
            loss=dict(name="denoising"),
            network=dict(name="unet"),
            solver=dict(name="ancestral"),
            guidance=dict(name="none"),
            editing=dict(name="none"),
            data=dict(name="digits", split="train", eval_split="test", image_size=8, channels=1, path=""),
            training=dict(
                num_steps=2000,
                batch_size=128,
                log_every=50,
                checkpoint_every=1000,
                keep_last=2,
                keep_every=0,
                sample_every=1000,
                accumulate=1,
                dtype="float32",
                loggers=("jsonl",),
                data_timeout=600.0,  # seconds in which a batch must be read; 0: no limit
            ),
            optimizer=dict(name="adam", learning_rate=2e-4, warmup_steps=0, schedule="constant", clip_norm=1.0),
            ema=dict(rates=(0.9999,), warmup=True, rampup=0.0),
            sampling=dict(
                num_samples=100,
                steps=1000,
                batch_size=128,
                grid=dict(name="uniform"),
                threshold=dict(name="none"),
                cond="",  # classes "3" or "0,1,cat", captions "a cat|a dog", or a file of conditions
                samples_per_condition=1,
                denoise=False,
                seed=0,
                file="samples",
                format="",  # png: also each sample as a file of its own
                ema_rate=0.0,
            ),
            evaluation=dict(
                num_samples=500,
                samples_per_condition=1,  # samples of each held-out condition, such as a measurement
                metrics=("auto",),  # the usual ones of the kind of data
                after_training=True,
                inception="",  # a file of the PyTorch weights of FID's network
                vgg="",  # files of the PyTorch weights of LPIPS: VGG-16 of torchvision,
                lpips="",  # and the linear layers of the lpips package
                resize="pytorch",
                reference="",  # images, or a file of their statistics, instead of the training split
                likelihood=dict(name="none"),
            ),
            # LoRA: train low-rank updates of a frozen network (rank 0: train the network; alpha 0: the same as rank) in
            # the layers that match `modules`, and in those of text encoders that match `text_modules` ("": in none).
            # `weights` is a file of updates to start from or, with rank 0, to add.
            lora=dict(
                rank=0,
                alpha=0.0,
                modules=r"(to_[qkv]|to_out|qkv|attn\.proj)$",
                text_modules="",
                weights="",
                scale=1.0,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            profile=dict(after=10, steps=0),  # trace `steps` steps, from step `after` of this start on
            weights="",
        )
    )


def replace(config: ConfigDict, **sections: Any) -> ConfigDict:
    """Set sections of `config` in place and return it.

    A mapping with a `name` replaces its section, since the other keys are arguments of the former name. Other mappings
    update their section. Raises ValueError for an unknown section.
    """
    for key, value in sections.items():
        if key not in config:
            raise ValueError(f"config has no section {key!r}; it has {', '.join(config)}")
        if not isinstance(value, Mapping):
            config[key] = value
        elif "name" in value:
            config[key] = ConfigDict(value)
        else:
            for name, entry in value.items():
                config[key][name] = ConfigDict(entry) if isinstance(entry, Mapping) else entry
    return config


def choose(variant: str | None, variants: Mapping[str, Any], default: str) -> Any:
    """Returns variants[variant], or variants[default] without a variant. Raises ValueError that lists the variants."""
    name = variant or default
    if name not in variants:
        raise ValueError(f"variant {name!r} is unknown; choose one of {', '.join(variants)}")
    return variants[name]


def from_file(filename: str) -> ConfigDict:
    """Loads the config of "FILE.py" or "FILE.py:VARIANT" by calling its `get_config`."""
    path, _, variant = filename.partition(":")
    loader = importlib.machinery.SourceFileLoader("config", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("config", loader))
    loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()
