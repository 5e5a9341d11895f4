"""Point clouds from files and of solids."""

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.data import ply
from diffusion_jax.data.sources import clouds, solids

RNG = np.random.default_rng(0)
ASCII = """ply
format ascii 1.0
comment by hand
element vertex 2
property uchar red
property float x
property float y
property double z
element face 1
property list uchar int vertex_indices
end_header
255 1 2 3
0 -1.5 0 0.25
2 0 1
"""


def cube(n=40, scale=1.0, shift=0.0):
    return (scale * RNG.uniform(-1, 1, (n, 3)) + shift).astype(np.float32)


def test_ply_files_are_read_back_and_read_as_others_write_them(tmp_path):
    points = cube(7)
    ply.write(tmp_path / "a.ply", points)
    np.testing.assert_array_equal(ply.read(tmp_path / "a.ply"), points)
    for newline in ("\n", "\r\n"):
        (tmp_path / "b.ply").write_bytes(ASCII.replace("\n", newline).encode())
        np.testing.assert_array_equal(ply.read(tmp_path / "b.ply"), [[1, 2, 3], [-1.5, 0, 0.25]])
    head = b"ply\nformat binary_little_endian 1.0\nelement vertex 2\nproperty double z\nproperty short x\n"
    rows = np.array([(0.5, 1, 9), (2.5, -3, 8)], [("z", "<f8"), ("x", "<i2"), ("y", "<f4")])
    (tmp_path / "c.ply").write_bytes(head + b"property float y\nend_header\n" + rows.tobytes() + b"faces")
    np.testing.assert_array_equal(ply.read(tmp_path / "c.ply"), [[1, 9, 0.5], [-3, 8, 2.5]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing", "does not begin with the header"),
        (ASCII.replace("ascii", "binary_big_endian"), "its format is binary_big_endian"),
        (ASCII.replace("property float y\n", ""), "no property y"),
        (ASCII.replace("float x", "quad x"), "unknown type quad"),
        (ASCII.replace("vertex 2", "edge 2"), "first element must be 'vertex'"),
        (ASCII.replace("element vertex 2\n", ""), "first element must be 'vertex'"),
        (ASCII.replace("uchar red", "list uchar int red"), "lists of values"),
        (ASCII.replace("ascii", "binary_little_endian").replace("vertex 2", "vertex 99"), "buffer is smaller"),
    ],
)
def test_a_ply_file_that_cannot_be_read_is_named(tmp_path, text, words):
    (tmp_path / "bad.ply").write_bytes(text.encode())
    with pytest.raises(ValueError, match=rf"bad\.ply cannot be read as a \.ply file: .*{words}"):
        ply.read(tmp_path / "bad.ply")


def test_a_folder_of_files_has_its_folders_as_classes(tmp_path):
    for split, kinds in (("train", "abc"), ("test", "ca")):
        for kind in kinds:
            (tmp_path / split / kind).mkdir(parents=True)
            ply.write(tmp_path / split / kind / "1.ply", cube())
            np.save(tmp_path / split / kind / "2.npy", cube())
    np.savez(tmp_path / "train" / "b" / "3.npz", points=cube(50))
    train = data.load(name="clouds", path=str(tmp_path), points=30)
    test = data.load(name="clouds", path=str(tmp_path), points=30, evaluation=True)
    assert len(train) == 7 and train.num_classes == 3 and train.facts["classes"] == ("a", "b", "c")
    assert test.batch(np.arange(4))["label"].tolist() == [0, 0, 2, 2]
    assert train.batch(np.arange(7))["x"].shape == (7, 30, 3)
    with pytest.raises(ValueError, match=r"cloud 0 of the split 'train' .* has 40 points; data\.points=41"):
        data.load(name="clouds", path=str(tmp_path), points=41)
    with pytest.raises(ValueError, match=r"data\.label_key='kind' names an array of an \.npz file"):
        data.load(name="clouds", path=str(tmp_path), points=30, label_key="kind")
    ply.write(tmp_path / "train" / "loose.ply", cube())
    with pytest.raises(ValueError, match=r"loose\.ply lies beside the folders"):
        data.load(name="clouds", path=str(tmp_path), points=30)


def test_training_draws_other_points_of_a_cloud_and_evaluation_the_same(tmp_path):
    x = np.stack([cube(64) for _ in range(3)])
    np.save(tmp_path / "x.npy", x)
    source = data.load(name="clouds", path=str(tmp_path / "x.npy"), points=32, normalize="none")
    rng = np.random.default_rng(1)
    first, second = (source.batch(np.arange(3), rng)["x"] for _ in range(2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(source.batch(np.arange(3))["x"], source.batch(np.arange(3))["x"])
    for drawn in (first, second, source.batch(np.arange(3))["x"]):
        for cloud, whole in zip(drawn, x, strict=True):
            assert len({row.tobytes() for row in cloud} & {row.tobytes() for row in whole}) == 32
    fixed = data.load(name="clouds", path=str(tmp_path / "x.npy"), points=32, normalize="none", resample=False)
    np.testing.assert_array_equal(fixed.batch(np.arange(3), rng)["x"], source.batch(np.arange(3))["x"])


def test_normalisation(tmp_path):
    x = np.stack([cube(64, scale, shift) for scale, shift in ((1, 0), (3, 5), (0.1, -2), (2, 1))])
    np.savez(tmp_path / "x.npz", points=x, kind=np.array(list("bbab")))
    load = lambda how, **options: data.load(
        name="clouds", path=str(tmp_path / "x.npz"), points=64, normalize=how, **options
    )
    box = data.arrays(load("box"))["x"]
    np.testing.assert_allclose(box.max(1) + box.min(1), 0, atol=1e-6)
    np.testing.assert_allclose(np.ptp(box, 1).max(1), 2, rtol=1e-6)
    unit = data.arrays(load("unit"))["x"]
    np.testing.assert_allclose(unit.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(unit.std((1, 2)), 1, rtol=1e-5)
    splits = dict(split="train[:50%]", eval_split="train[50%:]")
    train, test = load("global", **splits), load("global", evaluation=True, **splits)
    both = data.arrays(train)["x"]
    np.testing.assert_allclose(both.mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(both.std(), 1, rtol=1e-5)
    assert test.facts["std"] == train.facts["std"]
    assert data.arrays(load("none", label_key="kind"))["label"].tolist() == [1, 1, 0, 1]
    kept = load("none", label_key="kind", largest=1)
    assert len(kept) == 3 and kept.facts["classes"] == ("b",)
    with pytest.raises(ValueError, match=r"no array 'sort', data\.label_key; it has points, kind"):
        load("none", label_key="sort")
    with pytest.raises(ValueError, match=r"data\.normalize is 'sphere'; choose box, unit, global or none"):
        load("sphere")


def test_twins_are_left_out_before_a_split_is_cut(tmp_path):
    """Of three solids in two draws each one is kept, so that none is in both parts."""
    drawn = []
    for kind in (solids._torus, solids._box, solids._cone):
        drawn += [kind(np.random.default_rng(3), 400) for _ in range(1)]
        drawn += [kind(np.random.default_rng(3), 800)[400:]]
    np.savez(tmp_path / "x.npz", points=np.stack([clouds.normalized(x, "box") for x in drawn]))
    load = lambda **options: data.load(name="clouds", path=str(tmp_path / "x.npz"), points=64, **options)
    assert len(load()) == 6
    parts = [load(deduplicate=1.4, split=split) for split in ("train[:2]", "train[2:]")]
    assert [len(part) for part in parts] == [2, 1]


@pytest.mark.parametrize("kind", solids.KINDS)
def test_points_of_a_solid_lie_on_its_surface_uniformly(kind):
    """The mean of the outward flux of x through the surface is 3 V / A, which is exact for each solid."""
    n = 200_000
    rng = np.random.default_rng(7)
    points = solids.KINDS[kind](rng, n)
    sizes = np.random.default_rng(7)
    if kind == "box":
        half = sizes.uniform(0.4, 1.0, 3)
        assert np.isclose(np.abs(points / half).max(1), 1).all()
        faces = np.isclose(np.abs(points / half), 1).mean(0)
        areas = half.prod() / half
        np.testing.assert_allclose(faces, areas / areas.sum(), atol=0.01)
    elif kind == "ellipsoid":
        half = sizes.uniform(0.4, 1.0, 3)
        np.testing.assert_allclose(np.square(points / half).sum(1), 1, rtol=1e-6)
        support = 1 / np.linalg.norm(points / half**2, axis=1)  # of the tangent plane: dV = support dA / 3
        area = 4 * np.pi * half.prod() / support.mean()
        p = 1.6075  # Thomsen's formula, within 1.1 percent
        pairs = (half[[0, 0, 1]] * half[[1, 2, 2]]) ** p
        np.testing.assert_allclose(area, 4 * np.pi * pairs.mean() ** (1 / p), rtol=0.012)
    elif kind == "torus":
        R, r = sizes.uniform(0.6, 1.0), sizes.uniform(0.15, 0.45)
        radius = np.hypot(points[:, 0], points[:, 1])
        np.testing.assert_allclose(np.hypot(radius - R, points[:, 2]), r, rtol=1e-6)
        np.testing.assert_allclose(((radius - R) / r).mean(), r / (2 * R), atol=0.01)
    else:
        r, h = sizes.uniform(0.4, 1.0, 2)
        radius = np.hypot(points[:, 0], points[:, 1])
        end = np.isclose(points[:, 2], -h)
        slant = np.hypot(r, 2 * h)
        expected = r / (2 * (2 * h + r)) if kind == "cylinder" else r / (slant + r)
        np.testing.assert_allclose(end.mean(), expected, atol=0.01)
        np.testing.assert_allclose(np.square(radius[end]).mean(), r**2 / 2, rtol=0.02)
        if kind == "cone":
            np.testing.assert_allclose(radius[~end], r * (h - points[~end, 2]) / (2 * h), atol=1e-6)


def test_the_synthetic_set_needs_no_files():
    train = data.load(name="clouds", num_examples=20, points=64)
    test = data.load(name="clouds", num_examples=20, points=64, evaluation=True)
    assert train.num_classes == 5 and train.facts["classes"][0] == "box" and train.shape == (64, 3)
    assert not np.array_equal(data.arrays(train)["x"], data.arrays(test)["x"])
    with pytest.raises(ValueError, match="Unknown split 'valid' of the synthetic set"):
        data.load(name="clouds", split="valid")
    with pytest.raises(ValueError, match=r"data\.largest=3 needs splits that are slices of one set"):
        data.load(name="clouds", points=64, split="train", eval_split="test", evaluation=True, largest=3)
