"""Files of latents: what is written is read, and damage is named."""

import json

import numpy as np
import pytest

from diffusion_jax.data import load
from diffusion_jax.data.sources import latents

MADE = dict(image_shape=(8, 12, 3), num_classes=5, first_stage="0123456789abcdef")


def _rows(n=10, seed=0):
    random = np.random.default_rng(seed)
    return {
        "x": np.float32(random.standard_normal((n, 2, 3, 4))),
        "label": np.int32(random.integers(5, size=n)),
        "tokens": np.int32(random.integers(9, size=(n, 3))),
        "mask": random.integers(2, size=(n, 3)).astype(bool),
    }


def test_what_is_written_is_read(tmp_path):
    rows = _rows()
    parts = [{name: value[i : i + 4] for name, value in rows.items()} for i in (0, 4, 8)]
    header = latents.write(tmp_path, "train", parts, **MADE)
    assert header.num == 10 and latents.read_header(tmp_path, "train[:5]") == header
    source = load(name="latents", path=str(tmp_path), split="train", image_size=8, channels=3)
    assert (len(source), source.shape, source.num_classes) == (10, (2, 3, 4), 5)
    found = source.batch(np.array([7, 0, 7]))
    assert found.keys() == rows.keys()
    for name, value in rows.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value[[7, 0, 7]])
    half, rest = (latents.source(tmp_path, split) for split in ("train[:50%]", "train[50%:]"))
    both = np.concatenate([part.batch(np.arange(5))["x"] for part in (half, rest)])
    np.testing.assert_array_equal(np.sort(both.ravel()), np.sort(rows["x"].ravel()))
    assert not [path for path in tmp_path.iterdir() if path.name not in ("train.array_record", "train.json")]


def test_without_labels(tmp_path):
    latents.write(tmp_path, "test", [{"x": _rows()["x"]}], **{**MADE, "num_classes": 0})
    assert set(latents.source(tmp_path, "test").batch(np.arange(2))) == {"x"}


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"train\.json does not describe latents .*FileNotFound"):
        latents.source(tmp_path, "train")
    with pytest.raises(ValueError, match=r"split '\.\./up' must be a name"):
        latents.write(tmp_path, "../up", [_rows()], **MADE)
    latents.write(tmp_path, "train", [_rows()], **MADE)
    with pytest.raises(ValueError, match="nothing to write"):
        latents.write(tmp_path, "empty", [], **MADE)
    found = json.loads((tmp_path / "train.json").read_text())
    assert sum(np.dtype(kind).itemsize * np.prod(shape) for kind, shape in found["fields"].values()) == 115
    for change, match in (
        (dict(num=9), "holds 10 latents; 9 are announced"),
        (dict(fields={"x": ["<f4", [2, 3, 5]]}), "records of another size than 120 bytes"),
        (dict(fields={"x": ["<f4", [2, 3]]}), "are out of range"),
        (dict(fields={"x": ["O", [2, 3, 4]]}), "are out of range"),
        (dict(fields={"x": ["<f4", [2, 3, -4]]}), "are out of range"),
        (dict(fields={}), "does not describe latents"),
        (dict(num_classes=-1), "are out of range"),
    ):
        (tmp_path / "train.json").write_text(json.dumps({**found, **change}))
        with pytest.raises(ValueError, match=match):
            latents.source(tmp_path, "train").batch(np.arange(2))
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(ValueError, match="JSONDecodeError"):
        latents.source(tmp_path, "train")


def test_names_of_classes_are_kept(tmp_path):
    """Files without them are those of classes without names."""
    latents.write(tmp_path, "train", [_rows()], **MADE, classes=tuple("abcde"))
    assert latents.source(tmp_path, "train").facts["classes"] == tuple("abcde")
    header = json.loads((tmp_path / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps({k: v for k, v in header.items() if k != "classes"}))
    assert latents.source(tmp_path, "train").facts == {}
    (tmp_path / "train.json").write_text(json.dumps(header | {"classes": [1]}))
    with pytest.raises(ValueError, match=r"train\.json.*names of classes must be strings"):
        latents.read_header(tmp_path, "train")
