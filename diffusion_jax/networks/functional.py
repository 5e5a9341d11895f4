"""From NNX modules to pure functions of a plain nested dict of parameters."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, Num, PyTree

from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.networks.streams import streams
from diffusion_jax.types import Apply, Cond, Params


def init_apply(
    make: Callable[[nnx.Rngs], nnx.Module], dtype: str = "float32"
) -> tuple[Callable[[Key[Array, ""]], Params], Apply]:
    """The pair `init(key) -> params` and `apply(params, x, c_noise, cond=None, *, key=None) -> array` of a network.

    `params` is a nested dict with string keys (entries of a list get "0", "1", ...) and float32 leaves, which survives
    checkpoints. Both functions work under `jit`, `grad`, `vmap` and `eval_shape`; call `init` inside `jit`.
    With `key`, dropout is active. Parameters and x are cast to `dtype` for the computation, except parameters marked
    `full_precision`, and the output is cast back to the dtype of x. An x of integers, such as the ids of tokens, is
    not cast, and the output is float32 then.

    Args:
        make: builds the module, e.g. `lambda rngs: UNet(in_channels=3, image_size=32, rngs=rngs)`.
        dtype: of the computation: "float32", "bfloat16", or in JAX's 64-bit mode "float64".

    Raises:
        ValueError: what `check_dtype` raises.
    """
    init, merge = _init_merge(make, dtype)
    return init, _apply(merge, dtype)


def init_methods(
    make: Callable[[nnx.Rngs], nnx.Module], names: tuple[str, ...], dtype: str = "float32"
) -> tuple[Callable[[Key[Array, ""]], Params], tuple[Callable[..., PyTree[Array]], ...]]:
    """`init` as in `init_apply`, and for each of `names` the method of the module as a function of params and arrays.

    For modules that are not denoisers, such as autoencoders with the methods "encode" and "decode", or text encoders
    with "__call__". The result of a method has the dtype of the first array, or float32 if that holds integers, which
    are not cast. With `key`, dropout is active in a method that takes `rngs`.
    """
    init, merge = _init_merge(make, dtype)

    def method(name: str) -> Callable[..., PyTree[Array]]:
        def call(params: Params, x: Array, *others: PyTree[Array], key: Key[Array, ""] | None = None) -> PyTree[Array]:
            target = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else "float32"
            options = {} if key is None else {"rngs": streams(dropout=key)}
            return _cast(getattr(merge(params), name)(*_cast((x, *others), dtype), **options), target)

        return call

    return init, tuple(method(name) for name in names)


def featurizer(make: Callable[[nnx.Rngs], nnx.Module], dtype: str = "float32") -> Callable[..., list[Array]]:
    """`features(params, x, c_noise, cond=None)` of a denoising network, see `DenoisingNetwork.features`.

    The module is built when it is called: few systems ask for features. `key` is that of dropout, which is not active.
    """

    def features(
        params: Params,
        x: Float[Array, "batch *shape"],
        c_noise: Float[Array, "batch *times"],
        cond: Cond = None,
        *,
        key: None = None,
    ) -> list[Float[Array, "batch _ _ _"]]:
        _, merge = _init_merge(make, dtype)
        return _cast(merge(params).features(_cast(x, dtype), c_noise, _cast(cond, dtype)), x.dtype)

    return features


def embedder(make: Callable[[nnx.Rngs], nnx.Module], dtype: str = "float32") -> Callable[[Params, Cond], Any]:
    """`embed(params, cond)`, whose result `apply` of the same network takes instead of cond.

    It is the method `embed` of the network, the part that depends on the conditions alone, or cond itself for a network
    without one. A text is encoded once per sample then, not once per step.
    """
    _, merge = _init_merge(make, dtype)

    def embed(params: Params, cond: Cond) -> Any:
        module = merge(params)
        return module.embed(_cast(cond, dtype)) if cond is not None and hasattr(module, "embed") else cond

    return embed


def conditions_of(make: Callable[[nnx.Rngs], nnx.Module]) -> Conditions:
    """The conditions that a network reads, from its attribute `conditions`; nothing is allocated."""
    return nnx.eval_shape(lambda: make(streams(default=0))).conditions


def fourier_features(apply: Apply, exponents: tuple[int, ...]) -> Apply:
    """`apply` of a network whose input has sin(2^n pi x) and cos(2^n pi x), n in `exponents`, as further channels.

    For C channels of x the network takes C (1 + 2 len(exponents)). They separate neighbouring grey
    levels at noise below their distance (arXiv:2107.00630, section 4.2 and appendix C): n = 7, 8 for 256 levels,
    whose distance is about one period of n = 8.
    """

    def with_features(
        params: Params,
        x: Float[Array, "batch *shape"],
        c_noise: Float[Array, "batch *times"],
        cond: Cond = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch *out"]:
        angles = [2.0**n * jnp.pi * x for n in exponents]
        features = [f(angle) for angle in angles for f in (jnp.sin, jnp.cos)]
        return apply(params, jnp.concatenate([x, *features], axis=-1), c_noise, cond, key=key)

    return with_features


def functional(module: nnx.Module) -> tuple[Apply, Params]:
    """The pair (apply, params) of a module that exists, computing in float32; see `init_apply`.

    The parameters share their buffers with the module: donating them deletes those of the module.
    """
    graphdef, keep = _abstract(module)
    apply = _apply(functools.partial(_merge, graphdef, keep, "float32"), "float32")
    return apply, _with_string_keys(nnx.to_pure_dict(nnx.state(module)))


def count_parameters(params: PyTree[Array | jax.ShapeDtypeStruct]) -> int:
    """The number of entries of all arrays (or abstract arrays) in `params`."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def check_dtype(dtype: str) -> None:
    """Raises ValueError for a dtype of the computation that is unknown or cannot be honoured.

    float16 is not supported: losses are not scaled, so small gradients would vanish. float64 needs JAX's 64-bit mode.
    """
    if dtype == "float16":
        raise ValueError(
            "dtype='float16' is not supported: gradients below 6e-8 would vanish, as losses are not scaled. bfloat16 "
            "has the range of float32"
        )
    if dtype == "float64" and not jax.config.jax_enable_x64:
        raise ValueError("dtype='float64' needs JAX's 64-bit mode, the environment variable JAX_ENABLE_X64=1")
    if dtype not in ("float32", "bfloat16", "float64"):
        raise ValueError(f"dtype={dtype!r} is unknown; choose float32, bfloat16 or float64")


def _abstract(module: nnx.Module) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """The static structure of a module, and for each parameter whether it must not be cast."""
    graphdef, state = nnx.split(module)
    keep = jax.tree.map(
        lambda variable: variable.get_metadata().get("full_precision", False),
        state,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
    return graphdef, _with_string_keys(nnx.to_pure_dict(keep))


def _init_merge(
    make: Callable[[nnx.Rngs], nnx.Module], dtype: str
) -> tuple[Callable[[Key[Array, ""]], Params], Callable[[Params], nnx.Module]]:
    """(init, merge) with merge(params) -> the module with its parameters cast to `dtype`."""
    check_dtype(dtype)
    graphdef, keep = _abstract(nnx.eval_shape(lambda: make(streams(default=0))))

    def init(key: Key[Array, ""]) -> Params:
        return _with_string_keys(nnx.to_pure_dict(nnx.state(make(streams(default=key)))))

    return init, functools.partial(_merge, graphdef, keep, dtype)


def _merge(graphdef: nnx.GraphDef, keep: dict[str, Any], dtype: str, params: Params) -> nnx.Module:
    cast = jax.tree.map(lambda fixed, leaf: leaf if fixed else leaf.astype(dtype), keep, params)
    return nnx.merge(graphdef, _with_integer_keys(cast))


def _apply(merge: Callable[[Params], nnx.Module], dtype: str) -> Apply:
    def apply(
        params: Params,
        x: Num[Array, "batch *shape"],
        c_noise: Float[Array, "batch *times"],
        cond: Cond = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch *out"]:
        rngs = None if key is None else streams(dropout=key)
        out = merge(params)(_cast(x, dtype), c_noise, _cast(cond, dtype), rngs=rngs)
        return _cast(out, x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32)

    return apply


def _cast(tree: PyTree[Array], dtype: str | jnp.dtype) -> PyTree[Array]:
    """The floating-point arrays of `tree` in `dtype`."""
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def _with_string_keys(tree: Any) -> Any:
    return {str(k): _with_string_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _with_integer_keys(tree: Any) -> Any:
    # NNX assigns the leaves in the order of the sorted keys: as strings, "10" would come before "2".
    if not isinstance(tree, dict):
        return tree
    return {int(k) if k.isdigit() else k: _with_integer_keys(v) for k, v in tree.items()}
