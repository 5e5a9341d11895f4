"""What is refused before anything is built: missing keys, values of another type, averages that are not there."""

import pytest
from ml_collections import ConfigDict

from diffusion_jax.config import checks, data, defaults
from diffusion_jax.config.sections import ConfigError
from tests.runs import toy


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("training", 3, "config.training=3 must be a section"),
        ("training.num_steps", 2.5, "config.training.num_steps=2.5 must be an integer"),
        ("training.num_steps", True, "config.training.num_steps=True must be an integer"),
        ("ema.rates", 0.999, "config.ema.rates=0.999 must be a tuple"),
        ("ema.warmup", "no", "config.ema.warmup='no' must be true or false"),
        ("ema.rampup", -0.1, "config.ema.rampup=-0.1 must be at least 0"),
        ("training.dtype", "float16", "config.training.dtype: .*'float16' is not supported.* bfloat16"),
        ("training.dtype", "float64", "config.training.dtype: .*'float64' needs .* JAX_ENABLE_X64"),
        ("training.dtype", "bf16", "config.training.dtype: .*'bf16' .* bfloat16"),
        ("weights", 3, "config.weights=3 must be"),
        ("lora.scale", float("nan"), "config.lora.scale=nan must be a finite number"),
        ("lora.alpha", -1.0, "config.lora.alpha=-1.0 must be finite and at least 0"),
        ("seed", 2**32, "config.seed=4294967296 must be less than 2.32"),
        ("sampling.seed", 2**40, "config.sampling.seed=1099511627776 must be less than 2.32"),
        ("data.image_size", "8", "config.data.image_size='8' must be a positive integer"),
    ],
)
def test_values_of_the_wrong_type_in_a_config_file(key, value, words):
    config = ConfigDict(defaults().to_dict(), type_safe=False)
    *section, last = key.split(".")
    target = config[section[0]] if section else config
    target[last] = value
    with pytest.raises(ConfigError, match=words):
        checks.check_keys(config)
        data.spec(config)


@pytest.mark.parametrize(
    "key", ["weights", "data.path", "system.first_stage", "guidance.path", "lora.weights", "sampling.cond"]
)
@pytest.mark.parametrize("url", ["gs://bucket/run.npz", "s3://b/c.npz", "hdfs:///d.npz", "file:/e.npz"])
def test_urls_are_refused(key, url):
    config = toy()
    section, _, last = key.rpartition(".")
    (config[section] if section else config)[last] = url
    with pytest.raises(ConfigError, match=rf"config\.{key}='{url}' must be a path .*{url.partition(':')[0]}.*docs/"):
        checks.check_keys(config)


def test_texts_that_are_no_urls():
    checks.check_keys(toy(weights="C:/runs/a", sampling__cond="https://example.com on a screen"))


@pytest.mark.parametrize("key", ["guidance", "sampling.steps"])
def test_missing_keys(key):
    config = defaults()
    section, _, last = key.rpartition(".")
    del (config[section] if section else config)[last]
    with pytest.raises(ConfigError, match=rf"config\.{key} is missing"):
        checks.check_keys(config)


def test_the_average_that_is_sampled():
    config = toy(ema__rates=(0.9, 0.99))
    assert checks.ema_rate(config) == "0.9"
    config.sampling.ema_rate = 0.99
    assert checks.ema_rate(config) == "0.99"
