"""Compressed files that swell, and files that ask for code to be run."""

import gzip
import io
import json
import tarfile
import tracemalloc
import zipfile

import numpy as np
import PIL.Image
import pytest

from diffusion_jax import data
from diffusion_jax.data import images, prepare
from diffusion_jax.data.sources import archives, tfds
from diffusion_jax.evaluation.reference import read_statistics
from tests.data.test_builders import write_mnist


@pytest.fixture
def peak():
    """The most bytes that Python held at one time since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def _npz_bomb(path, announced=3 * 2**30):
    """An .npz file whose member `x` announces 3 GiB; the directory of the archive says so too."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (announced,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue())
        archive.infolist()[0].file_size = announced + len(header.getvalue())
    return path


def test_an_npz_file_that_swells_is_refused(tmp_path, peak):
    path = _npz_bomb(tmp_path / "bomb.npz")
    with pytest.raises(ValueError, match=r"bomb\.npz.*bytes announce 3,221,"):
        data.load(name="arrays", path=str(path))
    with pytest.raises(ValueError, match=r"bomb\.npz.*bytes announce 3,221,"):
        read_statistics(path)
    assert peak() < 2**24


def test_an_npy_header_that_announces_too_much_is_an_error(tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (2**60, 2)})
        file.write(b"short")
    with pytest.raises(ValueError, match=r"Cannot read arrays from .*a\.npy"):
        data.load(name="arrays", path=str(tmp_path / "a.npy"))


def test_arrays_that_are_not_asked_for_are_not_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 2)), other=np.array([{}], object))
    assert len(data.load(name="arrays", path=str(tmp_path / "a.npz"))) == 2


def test_a_member_that_is_no_array_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 2)))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("labels", b"1, 2")
    with pytest.raises(ValueError, match=r"a\.npz: its member 'labels' is not an array"):
        data.load(name="arrays", path=str(tmp_path / "a.npz"))


def test_notes_in_statistics_are_one_number_and_one_text(tmp_path):
    impossible = np.array(["ab"]).view("u4").copy()
    impossible[0] = 2**31
    for name, value, message in [
        ("num", np.arange(3), "num must be one integer"),
        ("num", np.float32(3), "num must be one integer"),
        ("extractor", np.arange(3), "extractor must be one str_"),
        ("extractor", impossible.view("U2"), "characters that do not exist"),
    ]:
        np.savez(tmp_path / "a.npz", mu=np.zeros(2), sigma=np.eye(2), **{name: value})
        with pytest.raises(ValueError, match=rf"a\.npz.*{message}"):
            read_statistics(tmp_path / "a.npz")


def test_a_gzip_file_that_swells_is_refused(tmp_path, peak):
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb") as file:
        for _ in range(64):
            file.write(bytes(2**20))
    with pytest.raises(ValueError, match=r"train-images.*more than 1,000 bytes"):
        archives.gunzip(tmp_path / "train-images-idx3-ubyte.gz", limit=1000)
    assert peak() < 2**24


def test_a_member_of_a_tar_file_that_swells_is_refused(tmp_path, peak):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("large")
        member.size = 2**26
        archive.addfile(member, io.BytesIO(bytes(2**26)))
        tracemalloc.reset_peak()
    with pytest.raises(ValueError, match=r"large from .*a\.tar\.gz: it holds more than 1,000 bytes"):
        archives.read_tar(tmp_path / "a.tar.gz", "large", limit=1000)


@pytest.mark.parametrize("shape", [(-1, -4), (2**31 - 1, 2**31 - 1), (3,)])
def test_the_shape_in_an_idx_file_must_be_that_of_its_data(tmp_path, shape):
    sides = b"".join(side.to_bytes(4, "big", signed=True) for side in shape)
    with gzip.open(tmp_path / "a.gz", "wb") as file:
        file.write(bytes([0, 0, 8, len(shape)]) + sides + b"four")
    with pytest.raises(ValueError, match=r"a\.gz announces shape"):
        prepare.read_idx(tmp_path / "a.gz")


def test_programs_in_postscript_are_not_run(tmp_path, monkeypatch):
    """PIL would hand them to Ghostscript, whatever the name of the file."""
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "program.eps")
    assert PIL.Image.open(tmp_path / "program.eps").format == "EPS"
    (tmp_path / "program.eps").rename(tmp_path / "picture.png")
    with pytest.raises(ValueError, match=r"Cannot read the image .*picture\.png"):
        images.read_image(tmp_path / "picture.png")
    assert ".eps" not in images.readable_suffixes() and ".ps" not in images.readable_suffixes()


@pytest.mark.parametrize("key", ["pythonClassName", "type"])
def test_a_prepared_data_set_cannot_name_modules_to_import(tmp_path, key):
    write_mnist(tmp_path)
    folder = prepare.prepare("mnist", tmp_path, tmp_path)
    features = folder / "features.json"
    content = json.loads(features.read_text())
    content["featuresDict"]["features"]["label"] = {key: "antigravity.Feature", "content": {}}
    features.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"features\.json names antigravity\.Feature, which is not part of"):
        tfds.tfds_images("mnist", "train", str(tmp_path))
    features.write_text("[" * 10**5)
    with pytest.raises(ValueError, match=r"Cannot read .*features\.json"):
        tfds.tfds_images("mnist", "train", str(tmp_path))
