"""Series as windows: no step is lost, splits do not leak, missing values are kept, bad files are refused by name."""

import gzip

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.data.sources import series


def open_series(path, **arguments):
    return data.load(name="series", path=str(path), **arguments)


@pytest.fixture
def table(tmp_path):
    """100 steps of two channels that count their steps, with dates and one missing value."""
    lines = ["date,a,b", *(f"day {i},{i},{'' if i == 7 else -i}" for i in range(100))]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def steps(source) -> np.ndarray:
    """The steps of each window, from the first channel."""
    x = data.arrays(source)["x"][..., 0]
    return np.rint(x * source.facts["std"][0] + source.facts["mean"][0]).astype(int)


def test_held_out_targets_follow_each_other_and_cover_their_split(table):
    options = dict(length=20, channels=2, horizon=6, ends=(60, 80, 100))
    found = steps(open_series(table, split="test", **options))
    assert (np.diff(found) == 1).all()
    assert sorted(set(found[:, -6:].ravel())) == list(range(80, 100))  # the last window ends with the split
    assert found[0, -6] == 80 and found[0, 0] == 66  # the history reaches back into the validation split
    assert list(found[:, -1]) == [85, 91, 97, 99]
    found = steps(open_series(table, split="validation", stride=1, **options))
    assert len(found) == 15 and found[:, -6:].min() == 60 and found.max() == 79


def test_training_windows_stay_within_their_split(table):
    found = steps(open_series(table, length=20, channels=2, horizon=6, ends=(60, 80, 100)))
    assert len(found) == 41 and found.max() == 59 and found.min() == 0
    whole = steps(open_series(table, split="test", length=8, channels=2, ends=(0.6, 0.8, 1.0)))
    assert list(whole[:, 0]) == [80, 88, 92] and whole.min() == 80
    assert len(open_series(table, split="train[:10]", length=20, channels=2)) == 10


def test_moments_are_those_of_the_present_training_values(table):
    source = open_series(table, length=20, channels=2, ends=(60, 80, 100))
    present = [i for i in range(60) if i != 7]
    assert source.facts["mean"] == pytest.approx([29.5, -np.mean(present)])
    assert source.facts["std"] == pytest.approx([np.std(np.arange(60)), np.std(present)])
    x = data.arrays(source)["x"]
    assert np.isnan(x[0, 7, 1]) and np.isfinite(x[0, 7, 0]) and np.isnan(x).sum() == 8
    raw = open_series(table, length=20, channels=2, standardize=False)
    np.testing.assert_array_equal(data.arrays(raw)["x"][0, :, 0], np.arange(20))


def test_channels_can_be_series_of_their_own(table):
    both, each = (open_series(table, length=20, channels=2, univariate=u, split="test") for u in (False, True))
    x, y = (data.arrays(source)["x"] for source in (both, each))
    assert y.shape == (2 * len(x), 20, 1)
    np.testing.assert_array_equal(y[::2, :, 0], x[..., 0])
    np.testing.assert_array_equal(y[1::2, :, 0], x[..., 1])


def test_arrays_and_separate_series(tmp_path, table):
    x = np.random.default_rng(0).standard_normal((10, 6, 3))
    x[2, 1, 0] = np.nan
    np.savez(tmp_path / "a.npz", x=x)
    test = open_series(tmp_path / "a.npz", length=6, channels=3, split="test", standardize=False)
    np.testing.assert_array_equal(data.arrays(test)["x"], x[8:].astype(np.float32))
    np.save(tmp_path / "a.npy", np.arange(30.0))
    assert open_series(tmp_path / "a.npy", length=5, channels=1).shape == (5, 1)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(table.read_bytes()))
    np.testing.assert_array_equal(
        *(data.arrays(open_series(tmp_path / f"a.csv{end}", length=9, channels=2))["x"] for end in ("", ".gz"))
    )


def test_the_embedded_recording_is_there():
    source = data.load(name="series")
    x = data.arrays(source)["x"]
    assert x.shape == (481, 80, 4) and np.isfinite(x).all()
    z = x[:, 1:] * x[:, :-1]
    assert z[..., 0].mean() > 0.7  # it is no noise


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        ("a,b\n1,2\n3\n", {}, "row 2 has 1 values for 2 columns"),
        ("a,b\n1,2\nx,3\n", {}, "row 2 of column 'a' is 'x'"),
        ("a,b\nx,y\n", {}, "no column of numbers"),
        ("a,b\n", {}, "no rows below"),
        ("a,b\n" + "1,2\n" * 9, dict(channels=3), "data.channels=3, and .* has 2"),
        ("a,b\n" + "1,2\n" * 9, dict(length=9), "'train' of .* has 6 steps, too few for data.length=9"),
        ("a,b\n" + "1,2\n" * 9, dict(ends=(8, 4, 9)), "data.ends is .*rising"),
        ("a,b\n" + "1,2\n" * 9, dict(ends=(3, 6, 10)), "data.ends is .*9 steps"),
        ("a,b\n" + "1,2\n" * 9, dict(horizon=4), "data.horizon is 4.*less than data.length=4"),
        ("a,b\n" + "1,2\n" * 9, dict(split="dev"), "'dev' of a series: there are train, validation, test"),
        ("a,b\n" + "1,2\n" * 9, dict(length=1), "data.length is 1"),
    ],
)
def test_bad_input_is_refused(tmp_path, content, arguments, words):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=words):
        open_series(tmp_path / "a.csv", **dict(length=4, channels=2) | arguments)


def test_a_missing_file_says_where_there_is_one(tmp_path):
    with pytest.raises(ValueError, match=r"ETTh1\.csv.* https://github\.com/zhouhaoyi/ETDataset"):
        open_series(tmp_path / "none.csv", length=4, channels=2)


def test_a_csv_without_names_or_with_text_among_numbers_is_refused(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("1.0,2.0\n3.0,4.0\n")
    with pytest.raises(ValueError, match="must hold the names of the columns"):
        series._table(file)
    file.write_text("date,load\nmonday,low\ntuesday,4.0\n")
    with pytest.raises(ValueError, match=r"row 1 of column 'load' is .low."):
        series._table(file)
    file.write_text("date,load\nmonday,\ntuesday,4.0\n")
    np.testing.assert_array_equal(series._table(file), [[np.nan], [4.0]])
