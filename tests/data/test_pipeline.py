"""Order, augmentation and resumption of batches."""

import dataclasses

import grain
import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from diffusion_jax import data
from diffusion_jax.data.source import in_memory
from diffusion_jax.data.sources import images


def counting_source(num_examples=10, **options):
    """8-bit 2 x 2 images whose every pixel is the index of the example."""

    def read(indices):
        return {
            "x": np.tile(indices.astype(np.uint8)[:, None, None, None], (1, 2, 2, 1)),
            "label": indices.astype("i4"),
        }

    return images.source(read, size=num_examples, shape=(2, 2, 1), num_classes=num_examples, **options)


def random_source(**options):
    x = np.random.default_rng(0).integers(256, size=(10, 3, 4, 1), dtype=np.uint8)
    return images.source(in_memory({"x": x}), size=10, shape=(3, 4, 1), **options)


def assert_batches_equal(left, right):
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key])


@pytest.mark.parametrize("batch_size", [1, 4, 10, 25])
def test_every_epoch_visits_every_example_once(batch_size):
    steps = 3 * 10 * batch_size // np.gcd(10, batch_size) // batch_size
    sequence = np.concatenate([data.epoch_indices(7, step, 10, batch_size) for step in range(steps)])
    epochs = sequence[: len(sequence) // 10 * 10].reshape(-1, 10)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (len(epochs), 1)))
    assert len(np.unique(epochs, axis=0)) > 1
    np.testing.assert_array_equal(epochs[1], np.random.default_rng((7, 1)).permutation(10))


def test_order_does_not_depend_on_what_was_read_before():
    far = data.epoch_indices(3, 12345, 10, 4)
    for step in (0, 99, 5):
        data.epoch_indices(3, step, 10, 4)
    np.testing.assert_array_equal(far, data.epoch_indices(3, 12345, 10, 4))
    assert not np.array_equal(data.epoch_indices(4, 0, 1000, 4), data.epoch_indices(3, 0, 1000, 4))


GROUPS = np.array([0] * 7 + [1] + [2] * 2)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 25])
def test_balanced_batches_hold_every_group_once_per_epoch(batch_size):
    batches = data.batches(dataclasses.replace(counting_source(), groups=GROUPS), batch_size=batch_size, seed=2)
    labels = np.concatenate([next(batches)["label"] for _ in range(-(-900 // batch_size))])[:900]
    epochs = GROUPS[labels].reshape(-1, 3)
    assert {tuple(sorted(epoch)) for epoch in epochs} == {(0, 1, 2)}
    assert len(np.unique(epochs, axis=0)) == 6  # in any order
    counts = np.bincount(labels, minlength=10)
    assert counts[7] == 300
    # Each of seven is drawn 300/7 = 43 times on average with a standard deviation of 6, each of two 150 and 9.
    assert counts[:7].min() > 18 and counts[:7].max() < 68 and abs(counts[8] - 150) < 40


def test_balanced_batches_are_shared_out_and_resumed():
    source = dataclasses.replace(counting_source(), groups=GROUPS)
    whole, resumed = (data.batches(source, batch_size=6, seed=1) for _ in range(2))
    first = next(whole)
    state = whole.get_state()
    parts = [next(data.batches(source, batch_size=6, seed=1, process_index=i, process_count=3)) for i in range(3)]
    np.testing.assert_array_equal(first["label"], np.concatenate([part["label"] for part in parts]))
    resumed.set_state(state)
    assert_batches_equal(next(whole), next(resumed))


@pytest.mark.parametrize("process_count", [2, 3, 6])
@pytest.mark.parametrize("options", [{}, {"flip": True}, {"dequantize": True}, {"flip": True, "dequantize": True}])
def test_processes_share_out_the_global_batch(process_count, options):
    source = random_source(**options)
    whole = data.batches(source, batch_size=12, seed=1)
    parts = [
        data.batches(source, batch_size=12, seed=1, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    for _ in range(3):
        joined = np.concatenate([next(part)["x"] for part in parts])
        np.testing.assert_array_equal(joined, next(whole)["x"])


@pytest.mark.parametrize("num_workers", [1, 3])
def test_threads_do_not_change_the_batches(num_workers):
    source = random_source(flip=True, dequantize=True)
    threaded = data.batches(source, batch_size=4, seed=1, num_workers=num_workers)
    inline = data.batches(source, batch_size=4, seed=1, num_workers=0)
    for _ in range(20):
        assert_batches_equal(next(threaded), next(inline))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_state_counts_the_batches_received_and_resumes(num_workers):
    source = random_source(flip=True)
    iterator = data.batches(source, batch_size=4, seed=1, num_workers=num_workers)
    for _ in range(5):
        next(iterator)
    state = iterator.get_state()
    assert state == {"next_index": 5}
    expected = [next(iterator) for _ in range(3)]
    resumed = data.batches(source, batch_size=4, seed=1, num_workers=num_workers)
    resumed.set_state(state)
    for batch in expected:
        assert_batches_equal(batch, next(resumed))


def test_resumes_from_an_orbax_checkpoint_through_device_batches(tmp_path):
    source = counting_source()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    iterator = data.batches(source, batch_size=4, seed=1, num_workers=1)
    on_device = data.device_batches(iterator, sharding)
    for _ in range(3):
        next(on_device)
    with ocp.training.Checkpointer(tmp_path / "checkpoints") as checkpointer:
        checkpointer.save_checkpointables(3, {"data": iterator})
    expected = next(on_device)
    resumed = data.batches(source, batch_size=4, seed=1)
    with ocp.training.Checkpointer(tmp_path / "checkpoints") as checkpointer:
        checkpointer.load_checkpointables(3, {"data": resumed})
    assert_batches_equal(expected, next(data.device_batches(resumed, sharding)))


def test_device_batches_are_global_arrays():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    batch = next(data.device_batches(data.batches(counting_source(), batch_size=4, seed=1), sharding))
    assert {key: value.sharding for key, value in batch.items()} == {"x": sharding, "label": sharding}
    np.testing.assert_array_equal(batch["label"], data.epoch_indices(1, 0, 10, 4))


def test_device_batches_hold_what_is_named():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    both, x = (
        next(data.device_batches(data.batches(counting_source(), batch_size=4, seed=1), sharding, names=names))
        for names in (None, ("x",))
    )
    assert list(x) == ["x"]
    np.testing.assert_array_equal(x["x"], both["x"])


def test_batches_is_a_checkpointable_grain_iterator():
    assert isinstance(data.batches(counting_source(), batch_size=4, seed=1), grain.DatasetIterator)


def test_flip_mirrors_half_of_the_images_left_to_right():
    source = random_source(flip=True)
    plain = data.arrays(source)["x"]
    batch = data.batches(source, batch_size=1000, seed=0)
    x, indices = next(batch)["x"], data.epoch_indices(0, 0, 10, 1000)
    same = np.all(x == plain[indices], axis=(1, 2, 3))
    mirrored = np.all(x == plain[indices][:, :, ::-1], axis=(1, 2, 3))
    assert np.all(same ^ mirrored)
    assert abs(mirrored.mean() - 0.5) < 0.08  # five standard deviations


def test_dequantization_is_uniform_in_the_bin_of_its_value():
    source = counting_source(dequantize=True)
    batch = next(data.batches(source, batch_size=4000, seed=0))
    offset = (batch["x"] + 1) * 128 - batch["label"][:, None, None, None]
    assert offset.min() >= 0 and offset.max() <= 1
    np.testing.assert_allclose(np.quantile(offset, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.02)


def test_nothing_is_random_in_evaluation():
    source, plain = random_source(flip=True, dequantize=True), random_source()
    assert_batches_equal(source.batch(np.arange(10)), plain.batch(np.arange(10)))
    x = random_source(dequantize=True).batch(np.arange(10), np.random.default_rng(0))["x"]
    assert np.all(np.abs(x - data.arrays(source)["x"]) <= 1 / 64) and (x != data.arrays(source)["x"]).any()
    with pytest.raises(ValueError, match="draws must be even, got 3"):
        dataclasses.replace(source, draws=3)


def test_arrays_are_in_order_and_scaled_to_the_unit_interval():
    source = counting_source(256, flip=True, dequantize=True)
    whole = data.arrays(source)
    np.testing.assert_array_equal(whole["label"], np.arange(256))
    np.testing.assert_allclose(whole["x"][:, 0, 0, 0], np.linspace(-1, 1, 256), atol=1e-6)
    assert whole["x"].dtype == np.float32 and whole["x"].min() == -1 and whole["x"].max() == 1
    assert len(data.arrays(source, 7)["x"]) == 7
    some, more = data.shuffled(source, 7)["x"], data.shuffled(source, 2 * len(source))["x"]
    np.testing.assert_array_equal(some, more[:7])
    np.testing.assert_array_equal(np.sort(more, axis=0), np.sort(whole["x"], axis=0))
    for few in (data.arrays, data.shuffled):
        with pytest.raises(ValueError, match="max_examples"):
            few(source, 0)


def test_few_examples_of_a_sorted_file_are_of_all_classes(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((1000, 2, 2, 1), np.uint8), labels=np.repeat(np.arange(10), 100))
    source = data.load(name="arrays", path=str(tmp_path / "a.npz"))
    assert np.bincount(data.shuffled(source, 200)["label"], minlength=10).min() >= 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"batch_size": -4}, "batch_size must be positive"),
        ({"process_count": 3}, "batch_size = 4 must be a multiple of process_count = 3"),
        ({"process_index": 1}, "process_index"),
        ({"seed": -1}, "seed=-1"),
        ({"num_workers": -1}, "num_workers=-1"),
    ],
)
def test_refuses_impossible_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        data.batches(counting_source(), **{"batch_size": 4, "seed": 0} | options)
