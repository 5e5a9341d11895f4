"""From config.data to a source that gives what a system reads."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax.config import data as config_data
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.types import Spec

DIGITS = dict(name="digits", split="train", eval_split="test", image_size=8, channels=1, path="")
LABEL = Spec((), "int32", values=10)


def _config(section=()):
    return ConfigDict(dict(data=DIGITS | dict(section)))


def _source(section=(), wanted=None, **options):
    return config_data.source(_config(section), dict(x=Spec((8, 8, 1), modality="image")) | (wanted or {}), **options)


def test_the_splits():
    assert len(_source()) == 1297 and len(_source(evaluation=True)) == 500
    assert len(_source(dict(split="train[:9]"))) == 9


@pytest.mark.parametrize(
    ("section", "wanted", "message"),
    [
        (dict(kind="rings"), {}, r"config\.data\.kind='rings': 'digits' takes no 'kind'"),
        (dict(chanels=1), {}, r"config\.data\.chanels=1: .*did you mean 'channels'"),
        (dict(derive=1), {}, r"config\.data\.derive=1"),
        (dict(flip=3), {}, r"config\.data\.flip=3 must be true or false"),
        (dict(split=3), {}, r"config\.data\.split=3 must be a string"),
        (dict(name=3), {}, r"config\.data\.name=3 must be a string"),
        (dict(levels=300), {}, r"config\.data \(digits\): data\.levels must be in 2\.\.256, got 300"),
        ({}, dict(label=LABEL._replace(values=4)), r"config\.network\.num_classes=4 .*10 classes of digits"),
        ({}, dict(x=Spec((4, 4, 1))), r"config\.data: digits holds examples of \(8, 8, 1\), not \(4, 4, 1\)"),
        ({}, dict(vector=Spec((3,))), r"'vector' of shape \(3,\), which config\.data\.name='digits' does not give"),
        (
            dict(captions=tuple("0123456789")),
            dict(tokens=Spec((4,), "int32"), image=Spec((8, 8, 1))),
            r"'image' of shape \(8, 8, 1\)",
        ),
        (dict(name="toy"), {}, r"config\.data\.\w+=\w+: 'toy' takes no '\w+'; it takes kind, num_examples, seed"),
    ],
)
def test_refusals(section, wanted, message):
    with pytest.raises(ConfigError, match=message):
        _source(section, wanted)


def test_wanted_conditions():
    words = dict(captions=tuple("0123456789"))
    wanted = dict(x=Spec((8, 8, 1), modality="image"), label=LABEL, tokens=Spec((4,), "int32", values=257))
    batch = _source(words, wanted).batch(np.arange(3))
    np.testing.assert_array_equal(batch["tokens"][:, 0], batch["label"] + ord("0") + 1)
    lengths = _source(words, wanted, tokenize=lambda texts: np.full((len(texts), 4), len(texts[0])))
    assert (lengths.batch(np.arange(3))["tokens"] == 1).all()


def test_the_kind_of_data_is_known_without_opening_it():
    nowhere = dict(name="folder", path="/nowhere", image_size=16, channels=3, levels=17)
    assert config_data.spec(_config(nowhere)) == Spec((16, 16, 3), modality="image")
    assert config_data.facts(_config(nowhere)) == {"levels": 17}
    for section, message in (
        (dict(image_size="8"), r"config\.data\.image_size='8' must be a positive integer"),
        (dict(name=3), r"config\.data\.name=3 must be a string"),
        (dict(name="latents", path="/nowhere"), r"config\.data: /nowhere/train\.json does not describe latents"),
    ):
        with pytest.raises(ConfigError, match=message):
            config_data.spec(_config(section))


def test_arguments_of_the_former_data_are_dropped_unless_a_flag_set_them():
    original = ConfigDict(dict(data=DIGITS | dict(flip=True, levels=17, captions=("a",))))
    config = original.copy_and_resolve_references()
    config.data.name, config.data.levels = "latents", 16
    config_data.drop_replaced(config, original)
    assert config.data.to_dict() == DIGITS | dict(name="latents", levels=16)
    same = original.copy_and_resolve_references()
    config_data.drop_replaced(same, original)
    assert same == original
