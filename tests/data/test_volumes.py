"""Slices of NIfTI volumes: windows, axes, pairs, splits by volume, and what is refused by name."""

import gzip
import struct
import sys

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.data.sources import volumes


def nifti(values: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> bytes:
    """A NIfTI-1 file of float32 values: the header of 348 bytes, no extensions, the values in Fortran's order."""
    header = bytearray(348)
    struct.pack_into("<i", header, 0, 348)
    shape = [values.ndim, *values.shape] + [1] * (7 - values.ndim)
    struct.pack_into("<8h", header, 40, *shape)
    struct.pack_into("<2h", header, 70, 16, 32)  # float32, 32 bits
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<3f", header, 108, 352.0, slope, intercept)
    header[344:348] = b"n+1\0"
    return bytes(header) + bytes(4) + np.asarray(values, "<f4").tobytes(order="F")


# Volumes of 6 x 8 x 4 voxels whose intensity says which volume and slice they are of.
SCANS = {f"patient_{i}": np.full((6, 8, 4), 100.0 * i) + 10 * np.arange(4) for i in range(4)}


@pytest.fixture
def folder(tmp_path):
    for kind, scale in (("ct", 1.0), ("mr", -1.0)):
        (tmp_path / kind).mkdir()
        for i, (name, scan) in enumerate(SCANS.items()):
            content = nifti(scale * scan)
            file = tmp_path / kind / f"{name}.nii{'.gz' if i % 2 else ''}"
            file.write_bytes(gzip.compress(content) if i % 2 else content)
    return tmp_path


def opened(folder, **options):
    return data.load(name="volumes", path=str(folder / "ct"), image_size=6, **options)


def test_slices_are_windowed(folder):
    source = opened(folder, window=(0.0, 300.0))
    x = source.batch(np.arange(len(source)))["x"]
    assert x.shape == (4 * 4, 6, 6, 1) and source.entries["x"].modality == "image"
    expected = np.clip(np.concatenate([scan[0, 0] for scan in SCANS.values()]) / 300, 0, 1) * 2 - 1
    np.testing.assert_allclose(x[:, 0, 0, 0], expected, atol=1e-5)
    whole = opened(folder)
    assert whole.batch(np.arange(4))["x"].min() == -1 and whole.batch(np.arange(4))["x"].max() == 1


def test_an_axis_is_chosen_and_slices_are_squares(folder):
    source = opened(folder, axis=0, window=(0.0, 30.0))
    x = source.batch(np.arange(6))["x"]
    assert len(source) == 4 * 6 and x.shape[1:] == (6, 6, 1)  # of 8 x 4 voxels the centre 4 x 4, enlarged
    assert (np.diff(x[0, 0, :, 0]) >= 0).all() and np.ptp(x[0, :, 0, 0]) < 1e-5


def test_pairs_are_slices_of_the_same_place(folder):
    options = dict(window=(0.0, 400.0), image_path=str(folder / "mr"), image_window=(-400.0, 0.0))
    source = opened(folder, shapes={"image": (6, 6, 1)}, **options)
    batch = source.batch(np.arange(len(source)))
    np.testing.assert_allclose(batch["image"], -batch["x"], atol=1e-5)


def test_a_slice_of_a_split_takes_whole_volumes(folder):
    parts = [opened(folder, split=f"train[{part}]", window=(0.0, 400.0)) for part in (":75%", "75%:")]
    patients = [set(np.round((part.batch(np.arange(len(part)))["x"][:, 0, 0, 0] + 1) * 2).tolist()) for part in parts]
    assert [len(part) for part in parts] == [12, 4] and not patients[0] & patients[1]


def test_the_header_scales_intensities(tmp_path):
    (tmp_path / "one.nii").write_bytes(nifti(SCANS["patient_1"], slope=2.0, intercept=-1024.0))
    found = volumes.read_volume(tmp_path / "one.nii")
    np.testing.assert_allclose(found, 2 * SCANS["patient_1"] - 1024)


def test_a_missing_nibabel_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ValueError, match=r"pip install diffusion_jax\[medical\]"):
        data.load(name="volumes", path=str(folder / "ct"), image_size=6)


def test_what_is_no_pair_is_refused(folder):
    (folder / "mr" / "patient_2.nii").write_bytes(nifti(np.zeros((6, 8, 5))))
    with pytest.raises(ValueError, match=r"'patient_2' have the shapes \(6, 8, 4\) and \(6, 8, 5\)"):
        opened(folder, image_path=str(folder / "mr"))
    (folder / "mr" / "patient_2.nii").unlink()
    with pytest.raises(ValueError, match="has no volume 'patient_2'"):
        opened(folder, image_path=str(folder / "mr"))
    with pytest.raises(ValueError, match=r"data\.image_path is empty"):
        opened(folder, shapes={"image": (6, 6, 1)})


def test_broken_files_are_refused_by_name(folder):
    (folder / "ct" / "patient_0.nii").write_bytes(b"no volume")
    with pytest.raises(ValueError, match=r"patient_0\.nii cannot be read as a NIfTI file"):
        opened(folder)
    (folder / "ct" / "patient_0.nii").write_bytes(nifti(np.full((6, 8), 1.0)))
    with pytest.raises(ValueError, match="three dimensions"):
        opened(folder)
    (folder / "ct" / "patient_0.nii").write_bytes(nifti(np.full((6, 8, 4), np.nan)))
    with pytest.raises(ValueError, match="finite"):
        opened(folder)
    (folder / "ct" / "patient_0.nii").write_bytes(nifti(np.full((6, 8, 4), 3.0)))
    with pytest.raises(ValueError, match=r"has the value 3\.0 everywhere"):
        opened(folder)


def test_two_volumes_of_one_name_are_refused(folder):
    (folder / "ct" / "patient_0.nii.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="two volumes with the name of patient_0"):
        opened(folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(path=""), "data.path must be set"),
        (dict(path=".", axis=3), "data.axis is 3; it must be 0, 1 or 2"),
        (dict(path=".", window=(2.0, 1.0)), "data.window is"),
        (dict(path=".", channels=3), "data.channels is 3; it must be 1"),
        (dict(path="."), r"has no \.nii or \.nii\.gz files"),
        (dict(path="nowhere"), "does not exist"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        volumes.open_source(image_size=8, **options)
