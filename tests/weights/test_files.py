"""Files of weights: what is read and written, and what is refused."""

import argparse
import collections
import json
import pathlib
import pickle
import struct
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest

from diffusion_jax.weights.files import open_weights, write_weights
from diffusion_jax.weights.layout import Layout, import_params
from diffusion_jax.weights.torch_file import read_torch_file
from tests.weights import state_dict, tensor_of_bytes, text, write_legacy, write_zip

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.weight": RNG.standard_normal((3, 4)).astype(np.float32),
    "b.weight": RNG.standard_normal((2, 3)).astype(ml_dtypes.bfloat16),
    "c.bias": RNG.standard_normal(5).astype(np.float16),
    "d.ids": np.arange(6),
    "e": np.zeros((), np.float32),
}


def same(found, expected=ARRAYS):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert tuple(found[name].shape) == array.shape and found[name].dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(found[name]), array)


def test_every_format(tmp_path):
    (file,) = write_weights(tmp_path, ARRAYS)
    assert file == tmp_path / "diffusion_pytorch_model.safetensors"
    same(open_weights(file))
    same(open_weights(write_zip(tmp_path / "weights.bin", ARRAYS)))
    same(open_weights(write_legacy(tmp_path / "weights.pth", ARRAYS)))


def test_transposed_arrays_are_written_as_what_they_hold(tmp_path):
    arrays = {"a": ARRAYS["a.weight"].T, "b": ARRAYS["a.weight"][:, ::2]}
    same(open_weights(*write_weights(tmp_path, arrays)), arrays)


def test_large_models_are_written_as_several_files_and_their_index(tmp_path):
    files = write_weights(tmp_path, ARRAYS, stem="model", max_bytes=60)
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [file.name for file in files] == [*shards, "model.safetensors.index.json"]
    assert all(len(open_weights(file)) for file in files)
    same(open_weights(files[-1]))
    assert not list(tmp_path.glob(".*"))
    index = json.loads(files[-1].read_text())
    assert set(index["weight_map"]) == set(ARRAYS)
    assert set(index["weight_map"].values()) == {file.name for file in files[:-1]}


def test_index_of_files_of_torch(tmp_path):
    names = list(ARRAYS)
    for i, part in enumerate((names[:2], names[2:])):
        write_zip(tmp_path / f"{i}.bin", {name: ARRAYS[name] for name in part})
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {name: f"{int(i > 1)}.bin" for i, name in enumerate(names)}}))
    same(open_weights(index))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../up.safetensors"}}, r"names '\.\./up\.safetensors'"),
        ({"weight_map": {"a": "/etc/passwd"}}, "names '/etc/passwd'"),
        ({"weight_map": {"a": "sub/x.safetensors"}}, r"names 'sub/x\.safetensors'"),
        ({"weight_map": {"a": ""}}, "'', which is no|which is missing"),
        ({"weight_map": {"a": "model.safetensors.index.json"}}, "names the index"),
        ({"weight_map": {"a": "x.safetensors", "zz": "x.safetensors"}}, r"places 1 tensors in .* lacks: 'zz'"),
        ({"weight_map": {"a": 3}}, "no weight_map"),
        ({"weight_map": {}}, "no weight_map"),
        ({}, "no weight_map"),
        ([1], "holds a list, not a JSON object"),
    ],
)
def test_indices_that_are_refused(tmp_path, index, message):
    write_weights(tmp_path, {"a": np.ones(2, np.float32)}, stem="x")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_weights(path)


def test_an_index_whose_file_is_missing(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"names 'gone\.safetensors', which is missing"):
        open_weights(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        open_weights(path)


def header(entries):
    content = json.dumps(entries).encode()
    return struct.pack("<Q", len(content)) + content


LIES = {
    "empty": b"",
    "no header": b"\x00" * 4,
    "long header": struct.pack("<Q", 2**62) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"oops",
    "another size": header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}) + bytes(8),
    "beyond the end": header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}) + bytes(8),
    "overlap": header(
        {n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"}
    ) + bytes(8),
    "negative": header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}) + bytes(8),
    "huge": header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}) + bytes(8),
    "more behind": header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}) + bytes(80),
}  # fmt: skip


@pytest.mark.parametrize("case", LIES)
def test_headers_that_lie(tmp_path, case):
    path = tmp_path / "x.safetensors"
    path.write_bytes(LIES[case])
    with pytest.raises(ValueError, match=r"x\.safetensors is cut off, damaged or not a file of safetensors"):
        open_weights(path)


def test_files_that_are_cut_off(tmp_path):
    (file,) = write_weights(tmp_path, ARRAYS)
    content = file.read_bytes()
    for length in (4, 100, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is cut off, damaged"):
            open_weights(file)


def test_files_without_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist or is not a file"):
        open_weights(tmp_path / "x.safetensors")
    pointer = tmp_path / "x.bin"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        open_weights(pointer)
    nothing = write_zip(tmp_path / "y.pt", {}, pickled=pickle.dumps({"epoch": 3, "best": 0.5}, protocol=2))
    with pytest.raises(ValueError, match=r"no state dict .* dictionary of epoch, best"):
        open_weights(nothing)


class Code:
    def __reduce__(self):
        return (print, ("run",))


def test_code_in_a_pickle_is_quoted_and_not_run(tmp_path, capsys):
    path = write_zip(tmp_path / "x.ckpt", {}, pickled=pickle.dumps({"state_dict": Code()}, protocol=2))
    with pytest.raises(ValueError, match=r"x\.ckpt: it names \S*builtin\S*print"):
        open_weights(path)
    assert "run" not in capsys.readouterr().out


def test_the_weights_of_a_training_checkpoint(tmp_path):
    inner = state_dict({"a": ARRAYS["a.weight"]})[2:-1]  # without the version before it and the end behind it
    path = tmp_path / "x.pt"
    for wrapper in ("state_dict", "model", "ema"):
        pickled = b"\x80\x02}(" + text("epoch") + b"K\x05" + text(wrapper) + inner + b"u."
        same(open_weights(write_zip(path, {"a": ARRAYS["a.weight"]}, pickled)), {"a": ARRAYS["a.weight"]})


def test_public_checkpoints_hold_other_things_next_to_weights(tmp_path):
    """A score of NumPy's and the name of a class, as training by PyTorch Lightning leaves them."""
    inner = state_dict({"a": ARRAYS["a.weight"]})[2:-1]
    score = pickle.dumps(np.float64(0.5), protocol=2)[2:-1]
    callback = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n}"
    pickled = b"\x80\x02}(" + text("best") + score + text("callbacks") + b"}(" + callback + b"u" + text("state_dict")
    path = write_zip(tmp_path / "x.ckpt", {"a": ARRAYS["a.weight"]}, pickled + inner + b"u.")
    same(open_weights(path), {"a": ARRAYS["a.weight"]})


def pickled(value):
    """The part of a pickle between its version and its end."""
    return pickle.dumps(value, protocol=2)[2:-1]


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_training_checkpoints_hold_values_of_any_class(tmp_path, write):
    """As `train.py` of DiT and SiT writes them: model, ema, opt, args."""
    arrays = {"a": ARRAYS["a.weight"], "b": ARRAYS["a.weight"] + 1}
    view = b"N" if write is write_legacy else b""
    whole = state_dict(arrays, view=view)[2:-1]
    first, second = (whole.replace(text("a"), text(x)).replace(text("b"), text(y)) for x, y in (("w", "_"), ("_", "w")))
    others = {
        "args": argparse.Namespace(
            model="DiT-XL/2", path=pathlib.PurePosixPath("x"), sizes=[1], more=argparse.Namespace()
        ),
        "opt": collections.defaultdict(dict, {"state": {0: {"step": np.float64(3)}}}),
        "seen": {1, 2},
        "kinds": {list: 1, 0.5: 2, None: 3, ("a", 1): 4},
        "raw": b"bytes",
        "list": collections.deque([1, 2]),
        "counts": collections.Counter("abc"),
    }
    device = text("device") + b"ctorch\ndevice\n" + pickled(("cuda", 0)) + b"R"
    items = b"".join(text(name) + pickled(value) for name, value in others.items())
    content = b"\x80\x02}(" + device + items + text("model") + first + text("ema") + second + b"u."
    same(open_weights(write(tmp_path / "x.pt", arrays, content)), {"w": arrays["b"], "_": arrays["a"]})


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_sets_and_objects_of_newer_protocols(tmp_path, protocol):
    others = {"kinds": {1, 2}, "fixed": frozenset("ab"), "args": argparse.Namespace(a=1), "raw": b"x" * 300, "epoch": 3}
    found = read_torch_file(write_zip(tmp_path / "x.pt", {}, pickle.dumps(others, protocol=protocol)))
    assert found.keys() == others.keys() and found["epoch"] == 3


def test_averages_that_cannot_be_read_are_not_passed_over(tmp_path):
    inner = state_dict({"a": ARRAYS["a.weight"]})[2:-1]
    content = b"\x80\x02}(" + text("ema") + pickled(argparse.Namespace()) + text("model") + inner + b"u."
    with pytest.raises(ValueError, match=r"x\.pt: .*'ema'.*argparse\.Namespace"):
        open_weights(write_zip(tmp_path / "x.pt", {"a": ARRAYS["a.weight"]}, content))
    content = b"\x80\x02}" + text("model") + pickled(argparse.Namespace(a=1)) + b"s."
    with pytest.raises(ValueError, match=r"x\.pt: it names argparse\.Namespace"):
        open_weights(write_zip(tmp_path / "x.pt", {}, content))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_8_bit_floats(tmp_path, name):
    values = np.array([[0.5, -2.0, 448.0], [1.0, 0.0, 0.015625]], np.float32)
    array = values.astype(getattr(ml_dtypes, name))
    (safe,) = write_weights(tmp_path, {"a.weight": array, "b.weight": np.ones(5, np.float32)})
    content = b"\x80\x02}" + text("a.weight") + tensor_of_bytes("0", 6, (2, 3), name) + b"s."
    file = write_zip(tmp_path / "x.pt", {"a": array.view(np.uint8)}, content)
    for path in (safe, file):
        found = open_weights(path)["a.weight"]
        assert found.shape == (2, 3) and str(found.dtype) == name
        np.testing.assert_array_equal(np.asarray(found), array)
    shapes = {"a": {"kernel": jax.ShapeDtypeStruct((3, 2), np.float32)}}
    found = import_params(Layout(), open_weights(file), shapes)["a"]["kernel"]
    np.testing.assert_array_equal(found, array.astype(np.float32).T)


def test_host_memory_of_a_file_is_the_model_and_one_tensor(tmp_path):
    count, side = 16, 256
    arrays = {f"{i}.weight": np.full((side, side), i, np.float16) for i in range(count)}
    shapes = {str(i): {"kernel": jax.ShapeDtypeStruct((side, side), np.float32)} for i in range(count)}
    model, file_size, largest = 4 * count * side**2, 2 * count * side**2, 6 * side**2
    for path in (*write_weights(tmp_path, arrays), write_zip(tmp_path / "x.bin", arrays)):
        import_params(Layout(), open_weights(path), shapes)  # what is made once
        tracemalloc.start()
        try:
            params = import_params(Layout(), open_weights(path), shapes)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        np.testing.assert_array_equal(params["7"]["kernel"], 7)
        assert peak < model + 2 * largest < model + file_size
