"""Damaged images: listed by `python -m diffusion_jax.data.check`, and skipped by choice."""

import zipfile

import numpy as np
import PIL.Image
import pytest

from diffusion_jax import data
from diffusion_jax.data import check, images
from diffusion_jax.data.captions import texts_of


@pytest.fixture
def folder(tmp_path):
    """Six pictures of the value 10 i with the text i; 0, 3 and 4 cannot be read."""
    root = tmp_path / "d"
    for i in range(6):
        path = root / "ab"[i // 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("L", (4, 4), 10 * i).save(path)
        path.with_suffix(".txt").write_text(str(i))
    (root / "a" / "0.png").write_text("<html>")
    content = (root / "b" / "3.png").read_bytes()
    (root / "b" / "3.png").write_bytes(content[: len(content) // 2])
    (root / "b" / "4.png").write_bytes(b"")
    return root


def run(capsys, path):
    with pytest.raises(SystemExit) as exit:
        check.main([str(path)])
    printed = capsys.readouterr()
    return exit.value.code, printed.out, printed.err


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_every_damaged_image_is_listed(folder, tmp_path, capsys, form):
    PIL.Image.new("F", (4, 4), 0.5).save(folder / "a" / "floats.tiff")
    frames = [PIL.Image.new("L", (5, 4), value) for value in (10, 20)]
    frames[0].save(folder / "a" / "film.gif", save_all=True, append_images=frames[1:])
    path = folder
    if form == "zip":
        path = tmp_path / "d.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.rglob("*.*"):
                archive.write(file, file.relative_to(folder))
    code, out, _ = run(capsys, path)
    lines = out.splitlines()
    assert code == 1 and len(lines) == 6
    for line, name in zip(lines, ("a/0.png", "a/floats.tiff", "b/3.png", "b/4.png", "a/film.gif"), strict=False):
        assert name in line
    assert "2 pictures" in lines[4] and "8 images, 4 damaged; 4 x 4 (3), 5 x 4 (1)" in lines[5]


def test_all_splits_and_archives_of_a_folder_are_read(folder, tmp_path, capsys):
    for i in (0, 3, 4):
        (folder / "ab"[i // 3] / f"{i}.png").unlink()
    with zipfile.ZipFile(folder / "test.zip", "w") as archive:
        archive.write(folder / "a" / "1.png", "a/1.png")
        archive.writestr("a/bad.png", b"bad")
    code, out, _ = run(capsys, folder)
    assert code == 1 and "test.zip/a/bad.png" in out and "5 images, 1 damaged" in out
    (folder / "test.zip").unlink()
    code, out, _ = run(capsys, folder)
    assert code == 0 and out == "3 images, 0 damaged; 4 x 4 (3)\n"


def test_arrays(tmp_path, capsys):
    np.savez(tmp_path / "train.npz", images=np.zeros((3, 4, 5), np.uint8))
    assert run(capsys, tmp_path / "train.npz")[:2] == (0, "3 images, 0 damaged; 5 x 4 (3)\n")
    np.savez(tmp_path / "test.npz", images=np.full((3, 4, 5, 1), np.nan))
    code, out, _ = run(capsys, tmp_path)
    assert code == 1 and "test.npz, key 'images'" in out and "3 images, 1 damaged" in out


def test_what_is_no_data_set(tmp_path, capsys):
    (tmp_path / "a.tar").write_bytes(b"")
    for path, message in ((tmp_path / "none", "does not exist"), (tmp_path, "a.tar"), (tmp_path / "a.tar", "unpack")):
        code, _, err = run(capsys, path)
        assert code == 2 and message in err


def test_damaged_images_are_refused_unless_they_are_skipped(folder):
    """Each by the next one that can be read, with its class and text, whatever was read before."""
    options = dict(name="folder", path=str(folder), caption_key=".txt", max_tokens=1)
    with pytest.raises(images.Damaged, match=r"a/0\.png"):
        data.load(**options)
    expected = [1, 1, 2, 5, 5, 5]
    for cache_bytes in (0, 2**20):
        source = data.load(**options, skip_damaged=True, cache_bytes=cache_bytes)
        for order in (np.arange(6), np.array([4, 0, 0, 3, 5, 1])):
            batch = source.batch(order)
            found = np.round((batch["x"][:, 0, 0, 0] + 1) * 12.75).astype(int)
            assert found.tolist() == [expected[i] for i in order]
            assert batch["label"].tolist() == [found // 3 for found in found.tolist()]
            assert texts_of(batch["tokens"]) == [str(i) for i in found]
        assert {i: name.rsplit("/", 1)[1] for i, name in source.facts["skipped"].items()} == {
            0: "0.png",
            3: "3.png",
            4: "4.png",
        }


def test_batches_with_skipped_images_are_the_same_after_a_restart(folder):
    options = dict(name="folder", path=str(folder), skip_damaged=True)
    batches = data.batches(data.load(**options), batch_size=4, seed=0)
    expected = [next(batches)["x"] for _ in range(5)]
    resumed = data.batches(data.load(**options), batch_size=4, seed=0)
    resumed.set_state({"next_index": 3})
    for i in (3, 4):
        np.testing.assert_array_equal(next(resumed)["x"], expected[i])


def test_other_errors_are_not_skipped(folder):
    """Such as images of several sizes, or when nothing can be read."""
    PIL.Image.new("L", (5, 4)).save(folder / "a" / "1.png")
    with pytest.raises(ValueError, match=r"Set data\.image_size"):
        data.arrays(data.load(name="folder", path=str(folder), skip_damaged=True))
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="None of the 6 images"):
        data.load(name="folder", path=str(folder), skip_damaged=True)
