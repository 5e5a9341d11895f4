"""Image folders and array files."""

import functools
import json

import numpy as np
import PIL.Image
import pytest

from diffusion_jax import data
from diffusion_jax.data import derived
from diffusion_jax.data.captions import texts_of
from diffusion_jax.data.sources import files


def save_gray(path, value, size=(4, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("L", size, value).save(path)


def pixel_values(source):
    return np.round((data.arrays(source)["x"][:, 0, 0, 0] + 1) * 127.5).astype(int).tolist()


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(["b/2.png", "a/10.bmp", "a/deep/x.PNG", "b/1.png"]):
        save_gray(tmp_path / name, 10 * i)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / ".hidden.png").write_text("no image")
    return tmp_path


def test_folder_is_sorted_and_its_sub_folders_are_classes(folder):
    source = data.load(name="folder", path=str(folder))
    assert (len(source), source.shape, source.num_classes) == (4, (4, 4, 1), 2)
    assert pixel_values(source) == [10, 20, 30, 0]
    np.testing.assert_array_equal(data.arrays(source)["label"], [0, 0, 1, 1])


def test_folder_with_images_at_the_top_has_no_labels(folder):
    save_gray(folder / "top.png", 50)
    source = data.load(name="folder", path=str(folder))
    assert source.num_classes == 0 and "label" not in data.arrays(source)


def test_folder_with_split_folders(tmp_path):
    save_gray(tmp_path / "train" / "0.png", 1)
    save_gray(tmp_path / "test" / "0.png", 2)
    options = {"name": "folder", "path": str(tmp_path)}
    assert pixel_values(data.load(**options)) == [1]
    assert pixel_values(data.load(**options, evaluation=True)) == [2]
    with pytest.raises(ValueError, match="Unknown split 'validation'"):
        data.load(**options, split="validation")


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_cache_does_not_change_the_batches(folder, cache_bytes):
    source = data.load(name="folder", path=str(folder), cache_bytes=cache_bytes, flip=True)
    reference = data.load(name="folder", path=str(folder), flip=True)
    iterator = data.batches(source, batch_size=3, seed=0)
    expected = data.batches(reference, batch_size=3, seed=0, num_workers=0)
    for _ in range(4):
        got, want = next(iterator), next(expected)
        np.testing.assert_array_equal(got["x"], want["x"])
        np.testing.assert_array_equal(got["label"], want["label"])


def test_cached_images_are_read_once(folder):
    source = data.load(name="folder", path=str(folder))
    before = data.arrays(source)
    for path in folder.rglob("*.png"):
        path.unlink()
    np.testing.assert_array_equal(before["x"], data.arrays(source)["x"])


def test_slices_are_disjoint_and_cover_everything():
    front, back = files.select("train[:30%]", 101), files.select("train[30%:]", 101)
    assert len(front) == 30 and sorted([*front, *back]) == list(range(101))
    assert not np.array_equal(front, np.arange(30))
    np.testing.assert_array_equal(files.select("train", 5), np.arange(5))
    assert len(files.select("train[-7:]", 101)) == 7


@pytest.mark.parametrize(
    "split", ["train[", "train[5]", "", "train[:0]", "train[:200]", "train[50%:50%]", "train[9:3]"]
)
def test_refuses_splits_it_cannot_take(split):
    with pytest.raises(ValueError, match="split"):
        files.select(split, 100)


def test_errors_name_the_path(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.*does not exist"):
        data.load(name="folder", path=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"No image file in .*"):
        data.load(name="folder", path=str(tmp_path))
    with pytest.raises(ValueError, match=r"data.path must be set"):
        data.load(name="folder")


def test_images_of_other_sizes_are_refused_without_and_resized_with_image_size(tmp_path):
    save_gray(tmp_path / "0.png", 10)
    save_gray(tmp_path / "1.png", 20, size=(6, 9))
    with pytest.raises(ValueError, match=r"1\.png has shape \(9, 6, 1\).*Set data\.image_size"):
        data.arrays(data.load(name="folder", path=str(tmp_path)))
    source = data.load(name="folder", path=str(tmp_path), image_size=5, channels=3)
    assert source.shape == (5, 5, 3) and pixel_values(source) == [10, 20]


def save_npz(path, **content):
    np.savez(path, **content)
    return {"name": "arrays", "path": str(path)}


@pytest.mark.parametrize("key", ["images", "samples", "x", "arr_0"])
@pytest.mark.parametrize("label_key", ["labels", "cond"])
def test_npz_with_labels(tmp_path, key, label_key):
    images = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3)
    source = data.load(**save_npz(tmp_path / "a.npz", **{key: images, label_key: np.array([1, 0])}))
    batch = data.arrays(source)
    assert (source.shape, source.num_classes) == ((3, 3, 3), 2)
    np.testing.assert_allclose(batch["x"], images / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(batch["label"], [1, 0])


def test_npy_of_gray_images_gets_a_channel(tmp_path):
    np.save(tmp_path / "a.npy", np.full((5, 4, 4), 255, np.uint8))
    source = data.load(name="arrays", path=str(tmp_path / "a.npy"), image_size=2, channels=3)
    np.testing.assert_array_equal(data.arrays(source)["x"], np.ones((5, 2, 2, 3)))


def test_float_arrays_are_taken_as_they_are(tmp_path):
    x = np.random.default_rng(0).uniform(-1, 1, (6, 4, 4, 1))
    options = save_npz(tmp_path / "a.npz", x=x)
    source = data.load(**options, image_size=4, channels=1, flip=True)
    np.testing.assert_array_equal(data.arrays(source)["x"], x.astype(np.float32))
    for wrong in ({"image_size": 8}, {"channels": 3}, {"crop": 2}, {"dequantize": True}):
        with pytest.raises(ValueError, match=rf"a\.npz.*{next(iter(wrong))}"):
            data.load(**options, **wrong)


def test_float_images_without_a_negative_value_need_a_range(tmp_path):
    """So do conditions that are images; numbers that are no images do not."""
    x = np.random.default_rng(0).uniform(0, 1, (6, 4, 4, 3)).astype(np.float32)
    options = save_npz(tmp_path / "a.npz", x=x)
    for split in ("train", "train[:1]"):
        with pytest.raises(ValueError, match=r"a\.npz, key 'x'.*data\.range='0\.\.1'"):
            data.load(**options, split=split)
    np.testing.assert_allclose(data.arrays(data.load(**options, range="0..1"))["x"], 2 * x - 1, atol=1e-6)
    np.testing.assert_array_equal(data.arrays(data.load(**options, range="-1..1"))["x"], x)
    x[0, 0, 0, 0] = -0.02
    with pytest.raises(ValueError, match=r"data\.range='0\.\.1'"):
        data.load(**save_npz(tmp_path / "resized.npz", x=x))
    x[0, 0, 0, 0] = -0.1
    mixed = save_npz(tmp_path / "b.npz", x=x)
    np.testing.assert_array_equal(data.arrays(data.load(**mixed))["x"], x)
    with pytest.raises(ValueError, match=r"b\.npz, key 'x'.*in \[0, 1\], got -0\.1"):
        data.load(**mixed, range="0..1")
    with pytest.raises(ValueError, match=r"data\.range='0, 1' must be one of"):
        data.load(**mixed, range="0, 1")
    points = save_npz(tmp_path / "c.npz", x=np.abs(x[:, 0, 0]))
    assert data.arrays(data.load(**points))["x"].min() >= 0
    with pytest.raises(ValueError, match=r"c\.npz.*data\.range='0\.\.1' is for images"):
        data.load(**points, range="0..1")
    control = save_npz(tmp_path / "d.npz", x=np.zeros((6, 4, 4, 3), np.uint8), control=np.abs(x))
    with pytest.raises(ValueError, match=r"d\.npz, key 'control'.*data\.range"):
        data.load(**control)
    batch = data.arrays(data.load(**control, range="0..1"))
    np.testing.assert_allclose(batch["control"], 2 * np.abs(x) - 1, atol=1e-6)


def test_latents_may_leave_the_range_of_images(tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 4, 4, 4)) * 3
    options = save_npz(tmp_path / "a.npz", x=x, label=np.arange(6))
    source = data.load(**options, image_size=4, channels=4)
    np.testing.assert_array_equal(data.arrays(source)["x"], x.astype(np.float32))
    with pytest.raises(ValueError, match=r"a\.npz.*must be finite"):
        data.load(**save_npz(tmp_path / "a.npz", x=np.full((6, 4, 4, 4), np.inf)))
    with pytest.raises(ValueError, match=r"data\.channels must be 1 or 3, got 4"):
        data.load(**save_npz(tmp_path / "a.npz", x=np.zeros((6, 4, 4, 4), np.uint8)), channels=4)


def test_array_splits(tmp_path):
    np.savez(tmp_path / "train.npz", x=np.zeros((9, 2)))
    np.savez(tmp_path / "test.npz", x=np.ones((3, 2)))
    options = {"name": "arrays", "path": str(tmp_path)}
    assert len(data.load(**options)) == 9 and len(data.load(**options, evaluation=True)) == 3
    assert len(data.load(**options, split="train[:4]")) == 4
    labelled = save_npz(tmp_path / "labelled.npz", x=np.zeros((9, 2)), labels=np.arange(9))
    assert data.load(**labelled, split="train[:2]").num_classes == 9
    with pytest.raises(ValueError, match="Unknown split 'test'"):
        data.load(name="arrays", path=str(tmp_path / "train.npz"), evaluation=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pictures": np.zeros((2, 2))}, r"a\.npz has the keys \['pictures'\]"),
        ({"x": np.zeros(3)}, r"a\.npz, key 'x'.*shape"),
        ({"x": np.zeros((0, 3))}, r"a\.npz, key 'x'.*n > 0"),
        ({"x": np.full((2, 2), 1.5)}, r"a\.npz, key 'x'.*\[-1, 1\], got 1\.5"),
        ({"x": np.full((2, 2), np.nan)}, r"a\.npz, key 'x'.*nan"),
        ({"x": np.zeros((2, 2), np.int32)}, r"a\.npz, key 'x'.*int32"),
        ({"x": np.zeros((2, 4, 4, 2), np.uint8)}, r"a\.npz.*\(2, 4, 4, 2\)"),
        ({"x": np.zeros((2, 2)), "labels": np.zeros(3, int)}, r"a\.npz, key 'labels'"),
        ({"x": np.zeros((2, 2)), "labels": np.array([0, -1])}, r"a\.npz, key 'labels'.*got -1;"),
        ({"x": np.array([{}, {}])}, r"a\.npz.*allow_pickle"),
    ],
)
def test_bad_arrays_name_the_file_and_the_key(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        data.load(**save_npz(tmp_path / "a.npz", **content))


def test_damaged_array_file_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((20, 20)))
    content = (tmp_path / "a.npz").read_bytes()
    for damaged in (b"", b"PK nonsense", content[: len(content) // 2]):
        (tmp_path / "b.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"Cannot read arrays from .*b\.npz"):
            data.load(name="arrays", path=str(tmp_path / "b.npz"))


def test_classes_and_captions_of_arrays_have_the_names_asked_for(tmp_path):
    """Transparent pixels are white, names are captions, groups are sorted into classes."""
    images = np.zeros((4, 2, 2, 4), np.uint8)
    images[2:, ..., 3] = 255
    options = save_npz(
        tmp_path / "a.npz", images=images, names=np.array(["red", "é", "red", ""]), groups=np.array(["b", "a", "", "b"])
    )
    keys = dict(caption_key="names", label_key="groups", image_size=2, channels=3)
    source = data.load(**options, **keys, max_tokens=3)
    batch = data.arrays(source)
    assert source.num_classes == 3 and batch["label"].tolist() == [2, 1, 0, 2]
    assert texts_of(batch["tokens"]) == ["red", "é", "red", ""]
    np.testing.assert_array_equal(batch["x"][:, 0, 0, 0], [1, 1, -1, -1])
    assert "tokens" not in data.arrays(data.load(**options, **keys))
    part = data.arrays(data.load(**options, **keys, max_tokens=3, split="train[:50%]"))
    chosen = files.select("train[:50%]", 4)
    np.testing.assert_array_equal(part["label"], batch["label"][chosen])
    np.testing.assert_array_equal(part["tokens"], batch["tokens"][chosen])
    upper = data.load(**options, **keys, max_tokens=1, tokenize=lambda texts: np.array([[len(text)] for text in texts]))
    assert data.arrays(upper)["tokens"].tolist() == [[3], [1], [3], [0]]
    for wrong, message in (
        (dict(caption_key="title"), "no 'title'"),
        (dict(caption_key="images"), "captions must be strings"),
        (dict(label_key="kind"), "no 'kind'"),
    ):
        with pytest.raises(ValueError, match=rf"a\.npz.*{message}"):
            data.load(**options, **wrong, max_tokens=3)


def test_folder_with_captions(tmp_path):
    for i, name in enumerate(["b.png", "sub/a.png"]):
        save_gray(tmp_path / name, 10 * i)
        (tmp_path / name).with_suffix(".txt").write_text(f"text {i}\nmore\n")
    lines = [
        '{"file_name": "sub/a.png", "text": "first", "kind": "y"}',
        "",
        '{"file_name": "b.png", "text": "second", "kind": "x", "extra": 1}',
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    options = dict(name="folder", path=str(tmp_path), max_tokens=8)
    found = data.arrays(data.load(**options, caption_key="text", label_key="kind"))
    assert texts_of(found["tokens"]) == ["second", "first"] and found["label"].tolist() == [0, 1]
    assert texts_of(data.arrays(data.load(**options, caption_key=".txt"))["tokens"]) == ["text 0", "text 1"]
    assert "tokens" not in data.arrays(data.load(**options))
    one = data.load(**options, caption_key="text", split="train[:1]")
    assert texts_of(data.arrays(one)["tokens"]) == [["second", "first"][files.select("train[:1]", 2)[0]]]

    for wrong, message in (
        (dict(caption_key="title"), r"no field 'title' for the image b\.png; it has extra, file_name, kind, text"),
        (dict(caption_key=".caption"), r"Cannot read .*b\.caption"),
        (
            dict(caption_key="text", name="digits", path=None),
            r"data\.caption_key='text': 'digits' takes no 'caption_key'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            data.load(**(options | wrong))
    for line, message in (
        ("{", r"metadata\.jsonl, line 1: "),
        ('["b.png"]', 'line 1: it must be an object with the string "file_name"'),
        ('{"file_name": "b.png", "text": 3}', r"no line for the image sub/a\.png"),
    ):
        (tmp_path / "metadata.jsonl").write_text(line)
        with pytest.raises(ValueError, match=message):
            data.load(**options, caption_key="text")
    (tmp_path / "sub" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"'text' of b\.png must be a string, got 3"):
        data.load(**options, caption_key="text")


def test_what_is_drawn_evenly_belongs_to_the_examples(tmp_path):
    """For 8-bit and float arrays and folders, slices of them too."""
    names, kinds = np.array(["x", "y", "x", "x"]), np.array(["k", "k", "l", "k"])
    images = np.zeros((4, 2, 2, 1), np.uint8)
    pixels = save_npz(tmp_path / "a.npz", images=images, names=names, kinds=kinds)
    floats = save_npz(tmp_path / "b.npz", images=images - np.float32(1), names=names, kinds=kinds)
    for i, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        save_gray(tmp_path / "folder" / kind / f"{i}.png", 0)
        (tmp_path / "folder" / kind / f"{i}.txt").write_text(str(name))
    arrays = dict(caption_key="names", label_key="kinds")
    folder = dict(name="folder", path=str(tmp_path / "folder"), caption_key=".txt")
    orders = {"arrays": np.arange(4), "folder": np.array([0, 1, 3, 2])}  # k/0, k/1, k/3, l/2
    for options in (pixels | arrays, floats | arrays, folder):
        for split in ("train", "train[1:]"):
            found = orders[options["name"]][files.select(split, 4)]
            load = functools.partial(data.load, **options, split=split)
            assert load().groups is None
            for balance, values in (("caption", names[found]), ("label", kinds[found])):
                groups = load(balance=balance).groups
                assert ((groups[:, None] == groups) == (values[:, None] == values)).all()
    bare = dict(name="arrays", path=str(tmp_path / "c.npz"))
    np.savez(tmp_path / "c.npz", images=images)
    for wrong, message in (
        (dict(balance="name"), "must be '', 'label' or 'caption', got 'name'"),
        (dict(balance="label"), r"no labels of their own, see data\.label_key"),
        (dict(balance="caption"), "no captions of their own"),
        (dict(balance="label", name="digits", path=None), "'digits' takes no 'balance'"),
    ):
        with pytest.raises(ValueError, match=f"data.balance.*{message}"):
            data.load(**(bare | wrong))


def test_image_conditions_of_8_bits_are_scaled_and_floats_are_not(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 1), np.uint8)
    maps, vector = np.full((4, 2, 2, 5), 3, np.float32), np.arange(4, dtype=np.uint8)[:, None]
    options = save_npz(tmp_path / "a.npz", images=images, control=images, image=maps, vector=vector)
    batch = data.arrays(data.load(**options))
    np.testing.assert_array_equal(batch["control"], batch["x"])
    np.testing.assert_array_equal(batch["image"], maps)
    np.testing.assert_array_equal(batch["vector"], vector)
    with pytest.raises(ValueError, match=r"data\.flip"):
        data.load(**options, flip=True)


def test_low_resolution_images_are_averages_of_what_is_drawn(tmp_path):
    """Also of images that are flipped; a side that does not divide the images' is refused."""
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", x=images)
    options = dict(name="arrays", path=str(tmp_path / "a.npz"), flip=True)
    batch = data.load(**options, derive=derived.averaged(2)).batch(np.arange(6), np.random.default_rng(1))
    assert batch["image"].shape == (6, 2, 2, 3)
    for i, j in np.ndindex(2, 2):
        corner = batch["x"][:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        np.testing.assert_allclose(batch["image"][:, i, j], corner.mean((1, 2)), atol=1e-6)
    assert "image" not in data.load(**options).batch(np.arange(6))
    with pytest.raises(ValueError, match="low_res=3 must divide"):
        data.load(**options, derive=derived.averaged(3))


def test_masks_are_boxes_fixed_by_the_index_unless_drawn(tmp_path):
    """A quarter covers everything, others have one to four boxes; the batch of a process is that of all."""
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "a.npz", x=images)
    source = data.load(name="arrays", path=str(tmp_path / "a.npz"), derive=derived.WITH_MASK, dequantize=True)
    held = data.arrays(source)
    np.testing.assert_array_equal(held["image"][..., :3], held["x"])
    np.testing.assert_array_equal(held["image"][5:9], source.batch(np.arange(5, 9))["image"])
    batches = data.batches(source, batch_size=400, seed=0)
    drawn = next(batches)
    np.testing.assert_array_equal(drawn["image"][..., :3], drawn["x"])
    mask = drawn["image"][..., 3]
    assert set(np.unique(mask)) == {-1, 1} and len(np.unique(mask, axis=0)) > 250
    assert abs((mask == 1).all((1, 2)).mean() - 0.25) < 0.07  # three standard deviations
    assert (mask == 1).any((1, 2)).all()
    part = mask[(mask == -1).any((1, 2))] == 1
    assert 0.1 < part.mean() < 0.5
    parts = [next(data.batches(source, batch_size=400, seed=0, process_index=i, process_count=2)) for i in range(2)]
    np.testing.assert_array_equal(drawn["image"], np.concatenate([part["image"] for part in parts]))
    np.savez(tmp_path / "b.npz", x=images.reshape(64, -1).astype(np.float32) / 255)
    with pytest.raises(ValueError, match="made of images, and examples have shape"):
        data.load(name="arrays", path=str(tmp_path / "b.npz"), derive=derived.WITH_MASK)


def test_one_box_of_a_mask_is_where_its_draws_say():
    u = np.zeros((1, derived.WITH_MASK.draws), np.float32)
    u[0, 0], u[0, 2:6] = 0.5, (0.8, 0.0, 0.5, 1 - 1e-6)  # of half the height in the middle, at the right
    found = derived.WITH_MASK.make(np.zeros((1, 10, 10, 1), np.float32), u)["image"][0, ..., 1]
    expected = np.full((10, 10), -1.0)
    expected[2:8, 9] = 1  # sides 0.1 + 0.5 u: rows from 0.25 to 0.75, columns from 0.9
    expected[[2, 7], 9] = found[[2, 7], 9]  # centres 0.25 and 0.75 lie on the edges
    np.testing.assert_array_equal(found, expected)


def test_folder_with_images_as_conditions(tmp_path):
    """Drawings and masks are files that metadata.jsonl names, cut and resized as images are, and no examples."""
    lines = []
    for i in range(3):
        save_gray(tmp_path / f"{i}.png", 10 * i, (8, 4))
        save_gray(tmp_path / "drawn" / f"{i}.png", 100 + i, (6, 6))
        save_gray(tmp_path / "masks" / f"{i}.png", 255 * (i % 2), (4, 4))
        drawing, mask = f"drawn/{i}.png", f"masks/{i}.png"
        row = {"file_name": f"{i}.png", "edges": drawing, "pair": [drawing, mask]}
        lines.append(json.dumps(row))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    options = dict(name="folder", path=str(tmp_path), control_key="edges", image_key="pair", image_size=4)
    shapes = {"control": (2, 2, 3), "image": (4, 4, 4)}
    for cache_bytes in (0, 2**20):
        source = data.load(**options, shapes=shapes, cache_bytes=cache_bytes)
        batch = data.arrays(source)
        assert np.round((batch["x"][:, 0, 0, 0] + 1) * 127.5).tolist() == [0, 10, 20]
        assert batch["control"].shape == (3, 2, 2, 3) and batch["image"].shape == (3, 4, 4, 4)
        expected = np.array([100, 101, 102]) / 127.5 - 1
        np.testing.assert_allclose(
            batch["control"], np.broadcast_to(expected[:, None, None, None], (3, 2, 2, 3)), atol=1e-6
        )
        np.testing.assert_allclose(
            batch["image"][..., :3], np.broadcast_to(expected[:, None, None, None], (3, 4, 4, 3)), atol=1e-6
        )
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 3], [-1, 1, -1])
        assert source.num_classes == 0
    chosen = files.select("train[1:]", 3)
    part = data.arrays(data.load(**options, shapes=shapes, split="train[1:]"))
    np.testing.assert_array_equal(part["control"], batch["control"][chosen])
    assert data.arrays(data.load(**options)).keys() == {"x"}  # a model without them
    grey = data.load(**options, shapes={"image": (4, 4, 2)}).batch(np.arange(2))["image"]
    np.testing.assert_allclose(grey[:, 0, 0], [[100 / 127.5 - 1, -1], [101 / 127.5 - 1, 1]], atol=1e-6)
    for wrong in (dict(flip=True), dict(crop=2)):
        with pytest.raises(ValueError, match="images as conditions, which are not changed"):
            data.load(**options, shapes=shapes, **wrong)
    with pytest.raises(ValueError, match=r"0\.png, its condition 'control': 'drawn/0\.png' must be 2 path\(s\)"):
        data.load(**options, shapes=shapes | {"control": (2, 2, 4)})
    with pytest.raises(ValueError, match=r"data\.control_key='edges': 'digits' takes no 'control_key'"):
        data.load(name="digits", control_key="edges")
    for value, message in (
        ("../x.png", r"'edges' of 2\.png must be the path of a file in the folder"),
        ("/x.png", "must be the path of a file in the folder"),
        (3, "must be the path of a file in the folder"),
        (None, r"no field 'edges' for the image 2\.png"),
        ("drawn/none.png", r"Cannot read the image .*none\.png"),
    ):
        row = {"file_name": "2.png", "pair": ["drawn/2.png", "masks/2.png"]} | (
            {} if value is None else {"edges": value}
        )
        (tmp_path / "metadata.jsonl").write_text("\n".join([*lines[:2], json.dumps(row)]))
        with pytest.raises(ValueError, match=message):
            data.arrays(data.load(**options, shapes=shapes))


def test_a_condition_with_a_line_of_its_own_is_an_example_too(tmp_path):
    """Each frame of a film with the one before it."""
    for i in range(4):
        save_gray(tmp_path / f"{i}.png", 10 * i)
    lines = [json.dumps({"file_name": f"{i}.png", "text": "x", "last": f"{max(i - 1, 0)}.png"}) for i in range(4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    batch = data.arrays(data.load(name="folder", path=str(tmp_path), image_key="last", shapes={"image": (4, 4, 1)}))
    assert [np.round((batch[name][:, 0, 0, 0] + 1) * 127.5).tolist() for name in ("x", "image")] == [
        [0, 10, 20, 30],
        [0, 0, 10, 20],
    ]


def test_conditions_of_arrays_have_the_names_asked_for(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 1), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, edges=255 - images)
    options = dict(name="arrays", path=str(tmp_path / "a.npz"))
    batch = data.arrays(data.load(**options, control_key="edges"))
    np.testing.assert_allclose(batch["control"], -batch["x"], atol=1e-6)
    with pytest.raises(ValueError, match="no 'lines'"):
        data.load(**options, control_key="lines")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (dict(images=np.zeros((2, 4, 4, 3), np.uint8), samples=np.ones((2, 4, 4, 3), np.uint8)), "images and samples"),
        (dict(x=np.zeros((2, 4, 4, 3), np.uint8), labels=np.zeros(2, int), cond=np.ones(2, int)), "label_key"),
        (dict(x=np.zeros((8, 8, 3), np.uint8)), r"\(8, 8, 3\) one image"),
    ],
)
def test_arrays_that_can_mean_two_things_are_refused(tmp_path, content, message):
    np.savez(tmp_path / "train.npz", **content)
    with pytest.raises(ValueError, match=message):
        data.load(name="arrays", path=str(tmp_path))
