"""From a source to batches whose content is a pure function of (seed, step), whatever the number of processes."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from concurrent import futures

import jax
import numpy as np
from jaxtyping import Int64

from diffusion_jax.data.images import Damaged
from diffusion_jax.data.source import Source
from diffusion_jax.training.faults import Fault, in_time

_NUM_STEPS = 2**62  # "infinite" for Grain, which wants a length
_READ_CHUNK = 256  # examples per task when a whole split is read


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> Int64[np.ndarray, "num_examples"]:
    permutation = np.random.default_rng((seed, epoch)).permutation(num_examples)
    permutation.flags.writeable = False  # the cache shares it between callers
    return permutation


def epoch_indices(seed: int, step: int, num_examples: int, batch_size: int) -> Int64[np.ndarray, "batch_size"]:
    """Indices of the examples in the global batch number `step`.

    Concatenate one random permutation of the data set per epoch, permutation e drawn from the seed (seed, e); batch
    `step` takes positions step * batch_size ... (step + 1) * batch_size - 1 of that infinite sequence. A batch may
    straddle epochs, so nothing is dropped and `batch_size` may exceed `num_examples`.
    """
    positions = step * batch_size + np.arange(batch_size, dtype=np.int64)
    epochs, offsets = np.divmod(positions, num_examples)
    indices = np.empty(batch_size, np.int64)
    for epoch in range(epochs[0], epochs[-1] + 1):
        here = epochs == epoch
        indices[here] = _permutation(seed, epoch, num_examples)[offsets[here]]
    return indices


def balanced_indices(
    seed: int, step: int, members: Sequence[Int64[np.ndarray, "_"]], batch_size: int
) -> Int64[np.ndarray, "batch_size"]:
    """As `epoch_indices`, of the groups of examples `members`, and of each group one of its examples at random.

    Every group is drawn once per epoch, however many examples it has.
    """
    groups = epoch_indices(seed, step, len(members), batch_size)
    u = np.random.default_rng((seed, step, 2)).random(batch_size)
    return np.array([members[group][int(u[row] * len(members[group]))] for row, group in enumerate(groups)])


def _members(groups: Int64[np.ndarray, "n"]) -> list[Int64[np.ndarray, "_"]]:
    """The examples of each group."""
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return np.split(np.argsort(group, kind="stable"), np.cumsum(counts)[:-1])


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    num_workers: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 4,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless shuffled, augmented batches of this process: its contiguous rows of every global batch.

    Every example comes once per epoch, or every one of `source.groups`, see `balanced_indices`.

    Args:
        source: what to read.
        batch_size: size of the global batch, a multiple of `process_count`.
        seed: of the order and the augmentation. Both depend on (seed, step) and the row in the global batch only.
        num_workers: threads that read ahead; 0 reads in the calling thread. `None` takes the source's own number.
        process_index, process_count: which slice of the global batch to return.
        prefetch: how many batches the threads may be ahead.

    Returns:
        A Grain iterator. Its state (`get_state`, `set_state`; checkpoints store it with the train state) is
        {"next_index": the number of batches it has returned}, the same on every process.

    Raises:
        ValueError: a number is out of range or `batch_size` does not divide by `process_count`.
    """
    import grain

    num_workers = source.num_workers if num_workers is None else num_workers
    if batch_size <= 0:
        raise ValueError(f"batch_size must be positive, got {batch_size}.")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be in 0..{process_count - 1} (process_count - 1), got {process_index}.")
    if batch_size % process_count:
        raise ValueError(f"batch_size = {batch_size} must be a multiple of process_count = {process_count}.")
    if seed < 0 or num_workers < 0 or prefetch < 0:
        raise ValueError(f"Neither may be negative: {seed=}, {num_workers=}, {prefetch=}.")
    local_size = batch_size // process_count
    start = process_index * local_size
    members = () if source.groups is None else _members(source.groups)

    def read(step: int) -> dict[str, np.ndarray]:
        if members:
            indices = balanced_indices(seed, step, members, batch_size)
        else:
            indices = epoch_indices(seed, step, len(source), batch_size)
        indices = indices[start : start + local_size]
        rng = np.random.default_rng((seed, step, 1))
        # Two float32 numbers come out of one 64-bit draw: skip what belongs to the rows of earlier processes.
        rng.bit_generator.advance(start * source.draws // 2)
        return source.batch(indices, rng)

    options = grain.ReadOptions(num_threads=num_workers, prefetch_buffer_size=max(prefetch, num_workers))
    return iter(grain.MapDataset.range(_NUM_STEPS).map(read).to_iter_dataset(options))


def arrays(source: Source, max_examples: int | None = None) -> dict[str, np.ndarray]:
    """The whole split (or its first `max_examples`) in order and without randomness, for evaluation.

    Returns:
        {"x": float32 [n, *shape], "label": int32 [n] if there are labels}.

    Raises:
        ValueError: `max_examples` is not positive.
    """
    if max_examples is not None and max_examples <= 0:
        raise ValueError(f"max_examples must be positive, got {max_examples}.")
    return _read(source, np.arange(len(source))[:max_examples])


def shuffled(source: Source, max_examples: int) -> dict[str, np.ndarray]:
    """At most `max_examples` of one fixed shuffle of the split, otherwise as `arrays`: files are often sorted by class.

    More of them begin with the fewer. Raises ValueError: `max_examples` is not positive.
    """
    if max_examples <= 0:
        raise ValueError(f"max_examples must be positive, got {max_examples}.")
    return _read(source, np.random.default_rng(0).permutation(len(source))[:max_examples])


def _read(source: Source, indices: Int64[np.ndarray, "n"]) -> dict[str, np.ndarray]:
    chunks = [indices[i : i + _READ_CHUNK] for i in range(0, len(indices), _READ_CHUNK)]
    with futures.ThreadPoolExecutor() as pool:
        parts = list(pool.map(source.batch, chunks))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def device_batches(
    iterator: Iterator[dict[str, np.ndarray]],
    sharding: jax.sharding.Sharding,
    timeout: float = 0.0,
    names: Collection[str] | None = None,
) -> Iterator[dict[str, jax.Array]]:
    """Lay this process's batches out as global arrays over all devices, e.g. with NamedSharding(mesh, P("data")).

    Entries that are not among `names` (None: all are) stay on the host; a transfer can cost as much as a small network.
    It takes a batch from `iterator` only when asked for one, so the checkpointable state of `iterator` always counts
    exactly the batches that were received. Transfers still overlap with computation: both are dispatched
    asynchronously, and Grain's threads read ahead.

    Raises:
        Fault: a batch cannot be read, or does not come within `timeout` seconds (0: no limit).
    """
    batches = in_time(iterator, timeout, "the next batch of data")
    while True:
        try:
            batch = next(batches, None)
        except (ValueError, OSError) as error:
            damaged = isinstance(error, Damaged)
            hint = "; python -m diffusion_jax.data.check lists such files, data.skip_damaged=True skips them"
            raise Fault(f"the data cannot be read: {str(error).rstrip('.')}{hint if damaged else ''}") from error
        if batch is None:
            return
        yield {
            name: jax.make_array_from_process_local_data(sharding, batch[name])
            for name in (batch if names is None else names)
        }
