"""Checkpoints: exact round trips, what is kept, what happens to damaged, foreign and unfinished ones."""

import dataclasses
import pathlib
import shutil
import subprocess
import sys

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from diffusion_jax.training import checkpoints as checkpoints_lib
from diffusion_jax.training import checksums as sums
from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.training.ema import init as ema_init
from diffusion_jax.training.optimizers import make_optimizer
from diffusion_jax.types import pytree
from tests.runs import with_devices

# Orbax leaves coroutines behind when it fails to read a damaged checkpoint.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytree
class _State:
    step: jax.Array
    params: dict
    ema: dict
    opt_state: tuple
    key: jax.Array


def _state(step, width=64):
    key = jax.random.key(step)
    params = {
        "net": {"w": jax.random.normal(key, (width, width)), "b": jnp.full(width, step, jnp.bfloat16)},
        "head": {"w": jax.random.normal(key, (3,))},
        "frozen": {"w": jnp.arange(4)},
    }
    trained = {group: params[group] for group in ("net", "head")}
    optimizer, _ = make_optimizer(learning_rate=1e-3, num_steps=10, clip_norm=1.0, groups={"head": {"name": "sgd"}})
    return _State(
        step=jnp.int32(step),
        params=params,
        ema=ema_init(params, (0.99, 0.9999)),
        opt_state=optimizer.init(trained),
        key=key,
    )


def _abstract(width=64):
    return jax.eval_shape(lambda: _state(0, width))


def _iterator():
    return iter(grain.MapDataset.range(1000).shuffle(seed=0).repeat().batch(4).to_iter_dataset())


def _save(directory, steps, **keywords):
    """Checkpoints of `steps`; the data iterator is `step` batches in."""
    data = _iterator()
    drawn = 0
    with Checkpoints(directory, **keywords) as checkpoints:
        for step in steps:
            for _ in range(step - drawn):
                next(data)
            drawn = step
            checkpoints.save(step, _state(step), data)


def _batch(index):
    data = _iterator()
    for _ in range(index):
        next(data)
    return next(data)


def _bits(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def _assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert _bits(a) == _bits(b)


def _on_disk(directory):
    return sorted(int(path.name) for path in pathlib.Path(directory).iterdir() if path.name.isdigit())


def test_state_and_iterator_round_trip_bit_for_bit(tmp_path):
    _save(tmp_path, [3, 5])
    data = _iterator()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 5
        state, step = checkpoints.restore(_abstract(), data)
        assert step == 5
        _assert_same(state, _state(5))
        np.testing.assert_array_equal(next(data), _batch(5))
        state, step = checkpoints.restore(_abstract(), data, step=3)
        assert step == 3
        _assert_same(state, _state(3))
        np.testing.assert_array_equal(next(data), _batch(3))


def test_the_state_may_be_donated_while_it_is_saved(tmp_path):
    state = _state(1, width=512)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, _iterator())
        jax.jit(lambda s: dataclasses.replace(s, params=jax.tree.map(jnp.zeros_like, s.params)), donate_argnums=0)(
            state
        )
        restored, _ = checkpoints.restore(_abstract(512), _iterator())
    _assert_same(restored, _state(1, width=512))


_ON_TWO_DEVICES = """
import sys, grain, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from diffusion_jax.training.checkpoints import Checkpoints
mesh = jax.make_mesh((2,), ("data",))
layout = {"whole": NamedSharding(mesh, P()), "parts": NamedSharding(mesh, P("data")), "key": NamedSharding(mesh, P())}
state = {"whole": np.arange(8.0), "parts": np.arange(6.0), "key": jax.random.key(3)}
state = jax.device_put(state, layout)
shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
data = iter(grain.MapDataset.range(9).to_iter_dataset())
with Checkpoints(sys.argv[1]) as checkpoints:
    for step in range(3):
        checkpoints.save(step, state, data)
        state = jax.jit(lambda s: {**s, "whole": s["whole"] + 1, "parts": s["parts"] + 1}, donate_argnums=0)(state)
    for step in (1, 2):
        found, _ = checkpoints.restore(shapes, data, step=step)
        np.testing.assert_array_equal(found["whole"], np.arange(8.0) + step)
        np.testing.assert_array_equal(found["parts"], np.arange(6.0) + step)
        np.testing.assert_array_equal(jax.random.key_data(found["key"]), jax.random.key_data(jax.random.key(3)))
"""


def test_a_state_on_several_devices_of_the_host_may_be_donated_too(tmp_path):
    """A replica on the device that a copy is made on is copied."""
    program = [sys.executable, "-c", _ON_TWO_DEVICES, str(tmp_path)]
    done = subprocess.run(program, env=with_devices(2), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_save_does_not_wait_for_the_steps_before_it(tmp_path):
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 600, lambda _, x: x @ x / len(x), x))
    x = slow(jnp.ones((512, 512)))
    with Checkpoints(tmp_path) as checkpoints:
        jax.block_until_ready(x)
        checkpoints.save(1, {"x": x}, _iterator(), wait=True)  # the first one imports what it needs
        x = slow(x)
        checkpoints.save(2, {"x": x}, _iterator())
        assert not x.is_ready()
        x = jax.jit(jnp.zeros_like, donate_argnums=0)(x)
        assert checkpoints.latest_step() == 2
        state, _ = checkpoints.restore_state({"x": jax.ShapeDtypeStruct(x.shape, x.dtype)})
    np.testing.assert_array_equal(state["x"], np.ones(x.shape))


def test_saves_where_the_host_is_no_device_of_jax(tmp_path, monkeypatch):
    def none(backend=None, **options):
        raise RuntimeError("Unknown backend cpu")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints_lib.jax, "local_devices", none)
        assert checkpoints_lib._host() is None
    monkeypatch.setattr(checkpoints_lib, "_host", lambda: None)
    _save(tmp_path, [2])
    with Checkpoints(tmp_path) as checkpoints:
        _assert_same(checkpoints.restore(_abstract(), _iterator())[0], _state(2))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int8", "bool", "complex64", "uint32"])
def test_checksums_are_the_same_on_host_and_device(monkeypatch, dtype):
    with jax.enable_x64(dtype == "float64"):
        x = (50 * jax.random.normal(jax.random.key(0), (3, 7, 5))).astype(dtype)
        tree = {"x": x, "none": x[:0], "one": x[1, 2, 3], "key": jax.random.key(3)}
        monkeypatch.setattr(sums, "_CHUNK", 16)
        host = sums.checksums(tree)
        monkeypatch.setattr(sums, "_on_host", lambda x: False)
        assert host == sums.checksums(tree)
    assert host["x"] != host["one"] != 0


def test_part_of_the_state_without_the_iterator(tmp_path):
    _save(tmp_path, [2])
    abstract = _abstract()
    with Checkpoints(tmp_path) as checkpoints:
        part, step = checkpoints.restore_state({"params": abstract.params, "ema": {"0.99": abstract.ema["0.99"]}})
        whole, _ = checkpoints.restore_state(abstract)
    expected = _state(2)
    assert step == 2
    _assert_same(part, {"params": expected.params, "ema": {"0.99": expected.ema["0.99"]}})
    _assert_same(whole, expected)


@pytest.mark.parametrize(
    ("keywords", "kept"),
    [
        (dict(), [4, 5]),
        (dict(keep_last=1), [5]),
        (dict(keep_last=1, keep_every=2), [2, 4, 5]),
        (dict(keep_last=9), [1, 2, 3, 4, 5]),
    ],
)
def test_keeps_the_last_and_every_nth(tmp_path, keywords, kept):
    _save(tmp_path, range(1, 6), **keywords)
    assert _on_disk(tmp_path) == kept


def test_saving_a_step_again_changes_nothing(tmp_path):
    _save(tmp_path, [1, 1])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(_abstract(), _iterator())
        checkpoints.save(1, _state(7), _iterator(), wait=True)
        state, _ = checkpoints.restore(_abstract(), _iterator())
    _assert_same(state, _state(1))


def _truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _replace(file, old, new):
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def _largest(directory):
    return max((file for file in directory.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


DAMAGE = {
    "array cut off": lambda path: _truncate(_largest(path)),
    "array gone": lambda path: _largest(path).unlink(),
    "manifest cut off": lambda path: _truncate(path / "state" / "manifest.ocdbt"),
    "structure cut off": lambda path: _truncate(path / "state" / "_METADATA"),
    "structure gone": lambda path: (path / "state" / "_METADATA").unlink(),
    "record gone": lambda path: (path / "_CHECKPOINT_METADATA").unlink(),
    "record cut off": lambda path: _truncate(path / "_CHECKPOINT_METADATA"),
    "another position": lambda path: _replace(path / "_CHECKPOINT_METADATA", '"next_index": 4', '"next_index": 5'),
    "empty folder": lambda path: [shutil.rmtree(path), path.mkdir()],
}


@pytest.mark.few(4)
@pytest.mark.parametrize("damage", DAMAGE)
def test_falls_back_to_the_previous_checkpoint(tmp_path, damage, capfd):
    _save(tmp_path, [2, 4])
    DAMAGE[damage](tmp_path / "4")
    data = _iterator()
    with Checkpoints(tmp_path) as checkpoints:
        state, step = checkpoints.restore(_abstract(), data)
        assert checkpoints.latest_step() == 2
    assert step == 2
    _assert_same(state, _state(2))
    np.testing.assert_array_equal(next(data), _batch(2))
    assert f"checkpoint {tmp_path}/4 cannot be read and is skipped: " in capfd.readouterr().err
    assert _on_disk(tmp_path) == [2, 4]


def _flip_bits_of_a_restored_array(monkeypatch, name, word, bit):
    """Orbax has compressed the arrays on disk; a flip there may make them unreadable, so flip after reading."""
    load = ocp.load_checkpointables

    def flipped(path, abstract):
        loaded = load(path, abstract)
        if path.name == "4":
            node = loaded["state"].params["net"]
            bits = np.asarray(node[name]).reshape(-1).copy()
            bits.view(np.uint16 if bits.itemsize == 2 else np.uint32)[word] ^= 1 << bit
            node[name] = jnp.asarray(bits).reshape(node[name].shape)
        return loaded

    monkeypatch.setattr(ocp, "load_checkpointables", flipped)


@pytest.mark.parametrize(("name", "word", "bit"), [("w", 0, 0), ("w", 4095, 31), ("b", 17, 15)])
def test_a_single_flipped_bit_is_noticed(tmp_path, monkeypatch, capfd, name, word, bit):
    _save(tmp_path, [2, 4])
    _flip_bits_of_a_restored_array(monkeypatch, name, word, bit)
    with Checkpoints(tmp_path) as checkpoints:
        state, step = checkpoints.restore(_abstract(), _iterator())
    assert step == 2
    _assert_same(state, _state(2))
    assert f"its bytes are not those that were saved: params/net/{name}" in capfd.readouterr().err


def test_flips_anywhere_in_the_files_are_noticed_or_harmless(tmp_path):
    """One byte of every file of the newest checkpoint, in turn: what is restored is exact, whichever step it is of."""
    _save(tmp_path / "whole", [2, 4])
    files = [file.relative_to(tmp_path / "whole") for file in (tmp_path / "whole" / "4").rglob("*") if file.is_file()]
    assert len(files) > 5
    for i, file in enumerate(files):
        copy = shutil.copytree(tmp_path / "whole", tmp_path / str(i))
        content = bytearray((copy / file).read_bytes())
        content[len(content) // 2] ^= 0x10
        (copy / file).write_bytes(content)
        data = _iterator()
        with Checkpoints(copy) as checkpoints:
            state, step = checkpoints.restore(_abstract(), data)
        _assert_same(state, _state(step))
        np.testing.assert_array_equal(next(data), _batch(step), err_msg=str(file))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_orbax_alone_misses_a_flipped_bit_in_a_file_of_arrays(tmp_path, part):
    """Why checkpoints have checksums: Orbax reads other arrays than were saved, without an error."""
    _save(tmp_path, [2, 4])
    file = _largest(tmp_path / "4")
    content = bytearray(file.read_bytes())
    content[int(part * len(content))] ^= 0x10
    file.write_bytes(content)
    abstract = checkpoints_lib._with_sharding(_abstract())
    read = ocp.load_checkpointables(tmp_path / "4", {"state": abstract})["state"]
    changed = [_bits(a) != _bits(b) for a, b in zip(*map(jax.tree.leaves, (read, _state(4))), strict=True)]
    assert any(changed)
    with Checkpoints(tmp_path) as checkpoints:
        state, step = checkpoints.restore(_abstract(), _iterator())
    assert step == 2
    _assert_same(state, _state(2))


def test_training_goes_on_after_a_fall_back(tmp_path):
    _save(tmp_path, [2, 6])
    _truncate(_largest(tmp_path / "6"))
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.restore(_abstract(), _iterator())
        checkpoints.save(4, _state(4), _iterator(), wait=True)
        assert checkpoints.latest_step() == 4
        assert _on_disk(tmp_path) == [4, 6]  # the damaged one is not mistaken for the last
        checkpoints.save(6, _state(6), _iterator(), wait=True)
        assert _on_disk(tmp_path) == [6]
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = checkpoints.restore(_abstract(), _iterator())
    _assert_same(state, _state(6))


def test_an_unfinished_save_is_invisible_and_its_step_can_be_saved(tmp_path):
    _save(tmp_path, [2, 4])
    (tmp_path / "4").rename(tmp_path / "4.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 2
        _, step = checkpoints.restore(_abstract(), _iterator())
        assert step == 2
        checkpoints.save(4, _state(4), _iterator(), wait=True)
        assert checkpoints.latest_step() == 4
        state, _ = checkpoints.restore(_abstract(), _iterator())
    _assert_same(state, _state(4))


def test_what_a_kill_left_behind_is_removed(tmp_path):
    _save(tmp_path, [2, 4])
    (tmp_path / "4").rename(tmp_path / "4.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.remove_unfinished()
        assert [path.name for path in tmp_path.iterdir()] == ["2"]
        assert checkpoints.restore(_abstract(), _iterator())[1] == 2


def test_nothing_readable_is_one_error(tmp_path):
    _save(tmp_path, [2, 4])
    for step in ("2", "4"):
        _truncate(tmp_path / step / "state" / "_METADATA")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=r"can be read \(step 4: .*; step 2: "):
        checkpoints.restore(_abstract(), _iterator())


@pytest.mark.parametrize("method", ["restore", "restore_state"])
def test_differences_are_listed_and_nothing_is_loaded(tmp_path, method):
    _save(tmp_path, [2, 4])
    abstract = _abstract()
    net = dict(abstract.params["net"])
    net["scale"] = net.pop("b")
    net["w"] = jax.ShapeDtypeStruct((64, 32), jnp.float32)
    abstract = dataclasses.replace(abstract, params=abstract.params | {"net": net})
    data = _iterator()
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError) as error:
        checkpoints.restore(abstract, data) if method == "restore" else checkpoints.restore_state(abstract)
    text = str(error.value)
    assert f"checkpoint {tmp_path}/4 does not fit" in text
    assert "missing in the checkpoint: params/net/scale" in text
    assert ("only in the checkpoint: params/net/b" in text) == (method == "restore")
    assert "params/net/w (float32[64, 64] saved, float32[64, 32] expected)" in text
    np.testing.assert_array_equal(next(data), _batch(0))


def test_a_type_mismatch_is_refused_rather_than_cast(tmp_path):
    _save(tmp_path, [2])
    abstract = {"params": {"net": {"w": jax.ShapeDtypeStruct((64, 64), jnp.bfloat16)}}}
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=r"float32\[64, 64\] saved, bfloat16"):
        checkpoints.restore_state(abstract)


def test_missing_checkpoints(tmp_path):
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(FileNotFoundError, match="no checkpoint in "):
            checkpoints.restore(_abstract(), _iterator())
    assert not (tmp_path / "none").exists()
    _save(tmp_path / "run", [2])
    with (
        Checkpoints(tmp_path / "run") as checkpoints,
        pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3 .*steps there: \[2\]"),
    ):
        checkpoints.restore_state(_abstract(), step=3)


@pytest.mark.parametrize("keywords", [dict(keep_last=0), dict(keep_every=-1)])
def test_refuses_bad_numbers(tmp_path, keywords):
    with pytest.raises(ValueError, match=next(iter(keywords))):
        Checkpoints(tmp_path, **keywords)
