"""Images and masks of config.editing on the command line: what samples are made of, and what is refused."""

import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict

from diffusion_jax import data, modalities
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.run import requests
from diffusion_jax.run.job import prepare
from tests.runs import digits


def job(editing: dict, **changes):
    return prepare(digits(editing=ConfigDict(editing), network__hidden=8, sampling__steps=8, **changes))


def photo(folder, name="photo.png", size=(30, 20), value=200) -> str:
    PIL.Image.new("RGB", size, (value, value, value)).save(folder / name)
    return str(folder / name)


def mask_of(folder, size=(30, 20), name="mask.png") -> str:
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[: size[1] // 2] = 255
    PIL.Image.fromarray(pixels).save(folder / name)
    return str(folder / name)


def test_an_image_and_a_mask_of_the_user(tmp_path):
    made = job(dict(name="replacement", image=photo(tmp_path), mask=mask_of(tmp_path)))
    cond = requests.conditions(made, 3)
    assert cond["image"].shape == cond["mask"].shape == (3, 8, 8, 1)
    np.testing.assert_allclose(cond["image"], 200 / 127.5 - 1, atol=1e-6)
    assert (cond["mask"][:, :4] == 1).all() and (cond["mask"][:, 4:] == -1).all()


def test_held_out_images_with_a_named_region_and_several_samples_of_each():
    made = job(dict(name="repaint", length=2, repeats=2, mask="box"), sampling__samples_per_condition=3)
    cond = requests.conditions(made, 8)
    assert (cond["image"][0] == cond["image"][2]).all() and (cond["image"][6] == cond["image"][7]).all()
    assert (cond["image"][2] != cond["image"][3]).any()
    assert (cond["mask"][0, 2:6, 2:6] == 1).all() and cond["mask"].shape == (8, 8, 8, 1)


def test_images_and_masks_of_a_file(tmp_path):
    image, mask = np.full((2, 8, 8, 1), -0.5, np.float32), np.ones((2, 8, 8, 1), np.float32)
    np.savez(tmp_path / "cond.npz", image=image, mask=mask)
    made = job(dict(name="replacement"), sampling__cond=str(tmp_path / "cond.npz"))
    cond = requests.conditions(made, 4)
    np.testing.assert_array_equal(cond["mask"], 1)
    np.testing.assert_array_equal(cond["image"], -0.5)
    half = np.arange(8)[:, None, None] >= 4
    for given in (half, 255 * np.uint8(half), 2.0 * half - 1):
        np.savez(tmp_path / "cond.npz", image=image, mask=np.broadcast_to(given, mask.shape))
        cond = requests.conditions(made, 2)
        np.testing.assert_array_equal(cond["mask"], np.broadcast_to(2.0 * half - 1, mask.shape))
    np.savez(tmp_path / "cond.npz", image=image, mask=np.broadcast_to(1.0 * half, mask.shape))
    with pytest.raises(ConfigError, match="mask: values from 0 to 1; give a bool array, or -1 and 1"):
        requests.conditions(made, 2)


def test_classes_go_with_held_out_images_and_those_are_encoded_under_their_own():
    options = dict(network__num_classes=10, sampling__grid=ConfigDict(dict(name="uniform")))
    options["solver"] = ConfigDict(dict(name="ddim"))
    made = job(dict(name="inversion"), sampling__cond="7,3", **options)
    cond = requests.conditions(made, 4)
    np.testing.assert_array_equal(cond["label"], [7, 3, 7, 3])
    held_out = data.arrays(made.held_out)
    classes = {bytes(x): label for x, label in zip(held_out["x"], held_out["label"], strict=True)}
    assert [classes[bytes(x)] for x in cond["image"]] == cond["source_label"].tolist()
    cond = requests.conditions(job(dict(name="inversion"), **options), 4)
    np.testing.assert_array_equal(cond["label"], cond["source_label"])


def test_an_image_of_the_user_is_encoded_under_the_class_that_the_user_gives(tmp_path):
    """Not under that of a held-out image, which says nothing of it."""
    options = dict(network__num_classes=10, sampling__grid=ConfigDict(dict(name="uniform")))
    options["solver"] = ConfigDict(dict(name="ddim"))
    editing = dict(name="inversion", image=photo(tmp_path))
    with pytest.raises(ConfigError, match=r"config\.editing\.image=.* source_label, its own; give label, source_label"):
        requests.conditions(job(editing, sampling__cond="7", **options), 2)
    asked = tmp_path / "asked.json"
    asked.write_text('[{"label": 7, "source_label": 3}]')
    cond = requests.conditions(job(editing, sampling__cond=str(asked), **options), 2)
    assert cond["label"].tolist() == [7, 7] and cond["source_label"].tolist() == [3, 3]
    np.testing.assert_allclose(cond["image"], 200 / 127.5 - 1, atol=1e-6)


def test_pairs_of_held_out_images_and_the_points_between_them():
    made = job(dict(name="between"), sampling__grid=ConfigDict(dict(name="uniform")), sampling__samples_per_condition=5)
    cond = requests.conditions(made, 10)
    np.testing.assert_allclose(cond["weight"], [0, 0.25, 0.5, 0.75, 1] * 2)
    assert (cond["image"][4] == cond["image"][0]).all() and (cond["other"][0] == cond["image"][5]).all()


@pytest.mark.parametrize(
    ("editing", "words"),
    [
        (dict(name="replacement"), ["config.editing.mask is empty", "lower_half"]),
        (dict(name="replacement", mask="boxx"), ["config.editing.mask='boxx'", "box"]),
        (dict(name="sdedit", image="nowhere.png"), ["config.editing.image='nowhere.png'", "must be an image file"]),
    ],
)
def test_missing_files_are_refused_by_name(editing, words):
    with pytest.raises(ConfigError) as refusal:
        requests.conditions(job(editing), 2)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_a_mask_of_another_size_than_the_image_and_a_class_that_is_missing_are_refused(tmp_path):
    made = job(dict(name="replacement", image=photo(tmp_path), mask=mask_of(tmp_path, (20, 20))))
    with pytest.raises(ConfigError, match=r"config\.editing\.mask=.*20 x 20 pixels; .*30 x 20"):
        requests.conditions(made, 2)
    editing = dict(name="replacement", image=photo(tmp_path), mask="box")
    with pytest.raises(ConfigError, match="give labels"):
        requests.conditions(job(editing, network__num_classes=10), 2)
    with pytest.raises(ConfigError, match="none takes no 'image'"):
        job(dict(name="none", image="photo.png"))


def test_the_picture_of_inpainting_has_a_row_for_each_image(tmp_path):
    """Rows truth | known | two samples | mean: five tiles and six gaps wide, two rows high."""
    image, samples = (np.float32(np.random.default_rng(i).uniform(-1, 1, (4, 8, 8, 1))) for i in range(2))
    image = np.repeat(image[:2], 2, axis=0)
    mask = np.ones_like(image)
    drawn = {"samples": samples, "image": image, "mask": mask}
    sheet = modalities.MODALITIES["image"].picture(drawn, None, {})
    side = (sheet.shape[0] - 3) // 2 - 3
    assert sheet.shape[1] == 5 * (side + 3) + 3
    tile = lambda row, column: sheet[3 + row * (side + 3) :, 3 + column * (side + 3) :][:side, :side]
    shown = lambda row, column: tile(row, column)[:: side // 8, :: side // 8, :1] / 127.5 - 1
    np.testing.assert_allclose(shown(1, 0), image[2], atol=0.01)
    np.testing.assert_allclose(shown(0, 3), samples[1], atol=0.01)
    np.testing.assert_allclose(shown(1, 4), samples[2:].mean(0), atol=0.01)
    assert set(np.unique(shown(0, 1).round(1))) <= {-0.3, -0.2, 0.2, 0.3}
