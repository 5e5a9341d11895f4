"""TFDS data sets without TensorFlow: the embedded digits, any image set, and sets prepared from official files."""

import concurrent.futures
import gzip
import io
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds
from tensorflow_datasets.core import hashing

from diffusion_jax import data
from diffusion_jax.data import prepare
from diffusion_jax.data.sources import tfds as source_tfds


def test_digits_have_a_fixed_balanced_split():
    from sklearn import datasets

    train = data.load(name="digits")
    test = data.load(name="digits", evaluation=True)
    assert (len(train), len(test), train.shape, train.num_classes) == (1297, 500, (8, 8, 1), 10)
    train, test = data.arrays(train), data.arrays(test)
    np.testing.assert_array_equal(np.bincount(test["label"]), np.full(10, 50))

    original = datasets.load_digits()
    expected = np.concatenate([original.images.reshape(-1, 64), original.target[:, None]], axis=1)
    levels = [np.round((part["x"].reshape(-1, 64) + 1) * 8) for part in (train, test)]
    stored = np.concatenate([np.c_[x, part["label"]] for x, part in zip(levels, (train, test), strict=True)])
    np.testing.assert_array_equal(stored[np.lexsort(stored.T)], expected[np.lexsort(expected.T)])


def test_digits_have_tfds_slices_and_can_be_enlarged():
    source = data.load(name="digits", split="train[:100]", image_size=16, channels=3)
    assert len(source) == 100 and source.shape == (16, 16, 3)
    first = data.load(name="digits", split="train[:1]")
    np.testing.assert_array_equal(data.arrays(first)["x"], data.arrays(data.load(name="digits"), 1)["x"])


def test_digits_write_nothing(tmp_path):
    """Nor is a place for them taken: what is there would not be read."""
    program = "from diffusion_jax import data; data.arrays(data.load(name='digits'))"
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "HOME": str(tmp_path)})
    assert not (tmp_path / "tensorflow_datasets").exists()
    with pytest.raises(ValueError, match=r"data\.path=.*'digits' takes no 'path'"):
        data.load(name="digits", path=str(tmp_path))


def test_the_order_of_digits_is_that_of_tfds(tmp_path):
    """As TensorFlow Datasets writes them, so runs that read them from its files go on with the same batches."""
    splits = {}
    for split in ("train", "test"):
        batch = data.arrays(data.load(name="digits", split=split))
        splits[split] = np.round((batch["x"] + 1) * 127.5).astype(np.uint8), batch["label"]
    digits = sklearn.datasets.load_digits()
    rows = {pixels.tobytes(): i for i, pixels in enumerate(np.round(digits.images * 255 / 16).astype(np.uint8))}
    keys = {split: [rows[row.tobytes()] for row in x] for split, (x, _) in splits.items()}
    for split, found in keys.items():
        assert found == sorted(found, key=hashing.Hasher(split).hash_key)


def _prepare_mnist(folder):
    return source_tfds.write(source_tfds.offline(tfds.image_classification.MNIST, _MNIST), pathlib.Path(folder)).name


def _few():
    yield from ((i, {"image": PIL.Image.new("L", (28, 28), i), "label": i}) for i in range(3))


_MNIST = {"train": _few, "test": _few}


@pytest.mark.slow
def test_processes_that_start_together_all_write_whole_files(tmp_path):
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        assert len(set(pool.map(_prepare_mnist, [str(tmp_path)] * 2))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mnist"]
    assert len(data.load(name="mnist", path=str(tmp_path))) == 3


def test_an_interrupted_preparation_does_no_harm(tmp_path):
    def interrupted():
        yield 0, {"image": PIL.Image.new("L", (28, 28)), "label": 0}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source_tfds.write(source_tfds.offline(tfds.image_classification.MNIST, {"train": interrupted}), tmp_path)
    assert not list(tmp_path.glob("**/*.array_record*"))
    _prepare_mnist(tmp_path)
    assert len(data.load(name="mnist", path=str(tmp_path))) == 3


def test_data_directory_follows_path_then_environment(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/somewhere")
    assert source_tfds.data_directory("/else") == pathlib.Path("/else")
    assert source_tfds.data_directory(None) == pathlib.Path("/somewhere")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert source_tfds.data_directory(None) == pathlib.Path.home() / "tensorflow_datasets"


@pytest.mark.parametrize(
    ("name", "options", "shape", "num_classes"),
    [
        ("fashion_mnist", {}, (28, 28, 1), 10),
        ("cifar10", {}, (32, 32, 3), 10),
        ("celeb_a", {"crop": 140, "image_size": 64}, (64, 64, 3), 0),
        ("lsun/church_outdoor", {"image_size": 32}, (32, 32, 3), 0),
    ],
)
def test_any_tfds_image_set(name, options, shape, num_classes):
    with tfds.testing.mock_data(num_examples=5):
        source = data.load(name=name, path="/nowhere", **options)
        batch = next(data.batches(source, batch_size=4, seed=0))
    assert (len(source), source.shape, source.num_classes) == (5, shape, num_classes)
    assert batch["x"].shape == (4, *shape) and np.abs(batch["x"]).max() <= 1
    assert ("label" in batch) == bool(num_classes)


def test_tfds_sets_without_images_are_refused():
    with tfds.testing.mock_data(num_examples=5), pytest.raises(ValueError, match="has no feature 'image', only"):
        data.load(name="imdb_reviews", path="/nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cifar10"}, r"'cifar10' is not prepared .*nowhere.*data\.prepare cifar10 --from"),
        ({"name": "cifar11"}, r"Unknown data set 'cifar11'.*nowhere"),
    ],
)
def test_what_is_not_prepared_is_explained(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        data.load(path=str(tmp_path / "nowhere"), **options)


@pytest.mark.parametrize("split", ["validation", "train[:99999]", "train[:0]", "train["])
def test_unknown_and_empty_splits_are_refused(split):
    with pytest.raises(ValueError, match="split"):
        data.load(name="digits", split=split)


def test_importing_and_reading_needs_neither_tensorflow_nor_eager_imports():
    program = (
        "import sys; from diffusion_jax import data\n"
        "eager = {'tensorflow_datasets', 'sklearn', 'grain', 'orbax'} & set(sys.modules); assert not eager, eager\n"
        "next(data.batches(data.load(name='digits'), batch_size=2, seed=0))\n"
        "assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def idx(array):
    header = b"\x00\x00\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


def write_mnist(folder, num_train=7, num_test=3):
    rng = np.random.default_rng(0)
    content = {}
    for prefix, n in {"train": num_train, "t10k": num_test}.items():
        content[prefix] = rng.integers(256, size=(n, 28, 28)), rng.integers(10, size=n)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(content[prefix][0]))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(content[prefix][1]))
    return content


def by_content(x, label):
    rows = np.c_[np.round((x.reshape(len(x), -1) + 1) * 127.5).astype(int), label]
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_prepares_idx_files_under_the_official_name(tmp_path, name):
    content = write_mnist(tmp_path)
    prepare.main([name, "--from", str(tmp_path), "--data_dir", str(tmp_path / "tfds")])
    for split, prefix in {"train": "train", "test": "t10k"}.items():
        source = data.load(name=name, split=split, path=str(tmp_path / "tfds"))
        images, labels = content[prefix]
        assert (source.shape, source.num_classes) == ((28, 28, 1), 10)
        batch = data.arrays(source)
        np.testing.assert_array_equal(by_content(**batch), by_content(images / 127.5 - 1, labels))


@pytest.mark.parametrize("packed", [True, False])
def test_prepares_binary_cifar10(tmp_path, packed):
    rng = np.random.default_rng(0)
    files = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    labels, images = rng.integers(10, size=(6, 2)), rng.integers(256, size=(6, 2, 32, 32, 3))
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for file, label, image in zip(files, labels, images, strict=True):
        records = np.concatenate([label[:, None], image.transpose(0, 3, 1, 2).reshape(2, -1)], axis=1)
        (folder / file).write_bytes(records.astype(np.uint8).tobytes())
    if packed:
        with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
            for file in files:
                tar.add(folder / file, f"cifar-10-batches-bin/{file}")
                (folder / file).unlink()
    prepare.main(["cifar10", "--from", str(tmp_path), "--data_dir", str(tmp_path / "tfds")])
    source = data.load(name="cifar10", path=str(tmp_path / "tfds"))
    expected = by_content(images[:5].reshape(10, 32, 32, 3) / 127.5 - 1, labels[:5].ravel())
    np.testing.assert_array_equal(by_content(**data.arrays(source)), expected)
    test = data.arrays(data.load(name="cifar10", path=str(tmp_path / "tfds"), evaluation=True))
    np.testing.assert_array_equal(np.sort(test["label"]), np.sort(labels[5]))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train-images-idx3-ubyte.gz", None, "Cannot read .*train-images"),
        ("train-images-idx3-ubyte.gz", b"not gzip", "Cannot read .*train-images"),
        ("train-images-idx3-ubyte.gz", idx(np.zeros((7, 28, 28)))[:-20], "Cannot read .*train-images"),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"\x00\x00\x0d\x01", mtime=0), "not an IDX file"),
        ("train-images-idx3-ubyte.gz", idx(np.zeros((7, 8, 8))), r"must be \[n, 28, 28\]"),
        ("t10k-labels-idx1-ubyte.gz", idx(np.zeros(4)), "t10k-labels"),
        ("t10k-labels-idx1-ubyte.gz", idx(np.full(3, 12)), "values 0..9"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(gzip.decompress(idx(np.zeros(3))) + b"0", mtime=0), "announces"),
    ],
)
def test_damaged_idx_files_are_named_and_nothing_is_written(tmp_path, capsys, file, content, message):
    write_mnist(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        prepare.main(["mnist", "--from", str(tmp_path), "--data_dir", str(tmp_path / "tfds")])
    assert capsys.readouterr().err and not (tmp_path / "tfds").exists()
    with pytest.raises(ValueError, match=message):
        prepare.prepare("mnist", tmp_path, tmp_path / "tfds")


def test_cifar10_archive_errors_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"neither data_batch_1\.bin nor"):
        prepare.prepare("cifar10", tmp_path, tmp_path / "tfds")
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(io.BytesIO(b"no tar").read()))
    with pytest.raises(ValueError, match=r"Cannot read data_batch_1\.bin"):
        prepare.prepare("cifar10", tmp_path, tmp_path / "tfds")
    (tmp_path / "data_batch_1.bin").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"data_batch_1\.bin .* 5 bytes"):
        prepare.prepare("cifar10", tmp_path, tmp_path / "tfds")


def test_official_mnist_files(tmp_path):
    root = os.environ.get("DIFFUSION_JAX_TEST_DATA")
    if not root or not pathlib.Path(root, "mnist").exists():
        pytest.skip("DIFFUSION_JAX_TEST_DATA names no folder with mnist/*.gz")
    images, labels = prepare.mnist_examples(pathlib.Path(root, "mnist"), "train")
    assert images.shape == (60000, 28, 28)
    np.testing.assert_array_equal(np.bincount(labels), [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])
    with pytest.raises(ValueError, match="are those of mnist, not of fashion_mnist"):
        prepare.prepare("fashion_mnist", pathlib.Path(root, "mnist"), tmp_path)
