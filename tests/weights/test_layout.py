"""Names and shapes of PyTorch's state dicts to parameters and back: every option, refusals, memory, shardings."""

import tracemalloc
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from diffusion_jax.weights.layout import Layout, export_params, import_params, tensors


def arrays(**shapes):
    rng = np.random.default_rng(0)
    return {name.replace("__", "."): rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def abstract(tree, dtype=np.float32):
    """Shapes instead of leaves."""
    if isinstance(tree, dict):
        return {key: abstract(value, dtype) for key, value in tree.items()}
    return jax.ShapeDtypeStruct(tree, dtype)


PLAIN = abstract(
    {
        "conv": {"kernel": (3, 3, 2, 5), "bias": (5,)},
        "dense": {"0": {"kernel": (4, 6)}},
        "norm": {"scale": (5,), "bias": (5,)},
        "table": {"embedding": (7, 4)},
        "time": {"weight": (3,)},
    }
)
PLAIN_FILE = arrays(
    conv__weight=(5, 2, 3, 3),
    conv__bias=5,
    layers__0__weight=(6, 4),
    norm__weight=5,
    norm__bias=5,
    table__weight=(7, 4),
) | arrays(time__weight=3)
PLAIN_LAYOUT = Layout(rename=((r"^dense\.", "layers."),))


def test_kinds_follow_from_leaf_and_rank():
    params = import_params(PLAIN_LAYOUT, PLAIN_FILE, PLAIN)
    x = np.random.default_rng(1).standard_normal((1, 3, 3, 2)).astype(np.float32)
    # The definition of PyTorch's convolution and dense layer, with their weights.
    expected = np.einsum("oihw,hwi->o", PLAIN_FILE["conv.weight"], x[0]) + PLAIN_FILE["conv.bias"]
    found = jax.lax.conv_general_dilated(
        x, params["conv"]["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(found[0, 0, 0] + params["conv"]["bias"], expected, rtol=1e-5)
    np.testing.assert_array_equal(params["dense"]["0"]["kernel"], PLAIN_FILE["layers.0.weight"].T)
    np.testing.assert_array_equal(params["norm"]["scale"], PLAIN_FILE["norm.weight"])
    np.testing.assert_array_equal(params["table"]["embedding"], PLAIN_FILE["table.weight"])
    np.testing.assert_array_equal(params["time"]["weight"], PLAIN_FILE["time.weight"])


FUSED = abstract({"attn": {"qkv": {"kernel": (4, 12), "bias": (12,)}}, "emb": {"kernel": (4, 6)}})
APART = abstract({"attn": {name: {"kernel": (4, 4), "bias": (4,)} for name in ("q", "k", "v")}})
SAME = (
    Layout(),
    FUSED,
    arrays(attn__qkv__weight=(12, 4), attn__qkv__bias=12, emb__weight=(6, 4)),
)
CASES = {
    "plain": (PLAIN_LAYOUT, PLAIN, PLAIN_FILE),
    "same": SAME,
    "split": (
        Layout(split=((r"(.*)\.qkv$", (r"\1.to_q", r"\1.to_k", r"\1.to_v")),)),
        FUSED,
        arrays(**{f"attn__to_{n}__weight": (4, 4) for n in "qkv"}, emb__weight=(6, 4))
        | arrays(**{f"attn__to_{n}__bias": 4 for n in "qkv"}),
    ),
    "join": (
        Layout(
            join=tuple((rf"(.*)\.{n}$", r"\1.in_proj", i, 3) for i, n in enumerate("qkv")),
            names=((r"in_proj\.", "in_proj_"),),
        ),
        APART,
        arrays(attn__in_proj_weight=(12, 4), attn__in_proj_bias=12),
    ),
    "kinds": (
        Layout(
            kinds=(
                (r"^a\.", "dense_as_conv1d"),
                (r"^b\.", "dense_as_conv2d"),
                (r"^c\.", "conv2d_as_dense"),
                (r"^d$", "same"),
                (r"^e$", "with_first_axis"),
            )
        ),
        abstract(
            {"a": {"kernel": (2, 3)}, "b": {"kernel": (2, 3)}, "c": {"kernel": (1, 1, 2, 3)}, "d": (2, 3), "e": (5,)}
        ),
        arrays(a__weight=(3, 2, 1), b__weight=(3, 2, 1, 1), c__weight=(3, 2), d=(2, 3), e=(1, 5)),
    ),
    "prefix": (
        Layout(prefix="model.diffusion_model."),
        abstract({"a": {"kernel": (2, 3)}}),
        {"model.diffusion_model.a.weight": np.ones((3, 2), np.float32)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_import_export_import_is_the_identity(case):
    layout, shapes, file = CASES[case]
    params = import_params(layout, file, shapes)
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda s: s.shape, shapes)
    exported = export_params(layout, params)
    assert exported.keys() == file.keys() == tensors(layout, shapes).keys()
    for name, array in file.items():
        np.testing.assert_array_equal(exported[name], array)
    jax.tree.map(np.testing.assert_array_equal, import_params(layout, exported, shapes), params)


def test_layers_that_are_several_of_theirs_lie_side_by_side():
    layout, shapes, file = CASES["split"]
    params = import_params(layout, file, shapes)
    x = np.arange(4, dtype=np.float32)
    expected = np.concatenate([file[f"attn.to_{n}.weight"] @ x + file[f"attn.to_{n}.bias"] for n in "qkv"])
    np.testing.assert_allclose(x @ params["attn"]["qkv"]["kernel"] + params["attn"]["qkv"]["bias"], expected, rtol=1e-5)
    layout, shapes, file = CASES["join"]
    params = import_params(layout, file, shapes)["attn"]
    found = np.concatenate([x @ params[n]["kernel"] + params[n]["bias"] for n in "qkv"])
    np.testing.assert_allclose(found, file["attn.in_proj_weight"] @ x + file["attn.in_proj_bias"], rtol=1e-5)


COPIES = Layout(copies=((r"blocks\.0\.emb\.(.*)", (r"blocks.*.emb.\1",)), (r"shared\.weight", ("enc.table.weight",))))
COPIED = abstract(
    {
        "blocks": {str(i): {"fc": {"bias": (2,)}} | ({"emb": {"bias": (3,)}} if i == 0 else {}) for i in range(11)},
        "shared": {"embedding": (4, 2)},
    }
)


def test_copies():
    file = arrays(**{f"blocks__{i}__fc__bias": 2 for i in range(11)}, shared__weight=(4, 2))
    file |= {f"blocks.{i}.emb.bias": np.arange(3, dtype=np.float32) for i in range(11)}
    file["enc.table.weight"] = file["shared.weight"]
    params = import_params(COPIES, file, COPIED)
    assert export_params(COPIES, params).keys() == file.keys()
    without = {name: array for name, array in file.items() if name not in ("shared.weight", "blocks.0.emb.bias")}
    jax.tree.map(np.testing.assert_array_equal, import_params(COPIES, without, COPIED), params)
    with pytest.raises(ValueError, match=r"blocks\.0\.emb\.bias and blocks\.10\.emb\.bias must be equal"):
        import_params(COPIES, file | {"blocks.10.emb.bias": np.zeros(3, np.float32)}, COPIED)
    for name in ("shared.weight", "enc.table.weight"):
        del file[name]
    with pytest.raises(ValueError, match=r"1 missing: shared\.weight"):
        import_params(COPIES, file, COPIED)


def test_names_of_old_files_and_what_carries_nothing():
    layout = Layout(aliases=((r"\.proj_attn\.", ".to_out.0."), (r"^key\.", "to_k.")), ignored=(r"\.position_ids$",))
    shapes = abstract({"attn": {"to_out": {"0": {"kernel": (2, 3)}}}, "key": {"kernel": (2, 2)}})
    file = {"attn.proj_attn.weight": np.ones((3, 2)), "key.weight": np.eye(2), "x.position_ids": np.arange(3)}
    params = import_params(layout, file, shapes)
    np.testing.assert_array_equal(params["attn"]["to_out"]["0"]["kernel"], np.ones((2, 3)))
    np.testing.assert_array_equal(params["key"]["kernel"], np.eye(2))  # a name that is expected is no alias
    with pytest.raises(ValueError, match=r"1 unexpected: attn\.proj_attn\.weight"):
        import_params(layout, file | {"attn.to_out.0.weight": np.ones((3, 2))}, shapes)


def test_everything_wrong_is_said_at_once():
    file = {
        "conv.weight": np.zeros((5, 2, 1, 1), np.float32),
        "table.weight": np.zeros((7, 4), np.int8),
        **{f"more.{i}.weight": np.zeros(1) for i in range(12)},
    }
    with pytest.raises(ValueError) as error:
        import_params(PLAIN_LAYOUT, file, PLAIN, what="FILE")
    text = str(error.value)
    assert text.startswith("FILE does not hold the weights of this network")
    assert "5 missing: conv.bias, layers.0.weight, norm.bias, norm.weight, time.weight" in text
    assert "12 unexpected: more.0.weight" in text and "..." in text and text.count("more.") == 8
    assert "1 of another shape: conv.weight (5, 2, 1, 1) for (5, 2, 3, 3)" in text
    assert "1 not of floating-point numbers: table.weight int8" in text


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(rename=((r"^norm$", "conv"),)), "the same name 'conv.weight'|the same name 'conv.bias'"),
        (Layout(join=((r"norm$", "n", 0, 2),)), "'n.weight' of 1 of 2 parts"),
        (Layout(split=((r"dense\.0$", ("a", "b", "c", "d")),)), "6 outputs, which are not 4 equal parts"),
    ],
)
def test_tables_that_cannot_work(layout, message):
    with pytest.raises(ValueError, match=message):
        tensors(layout, PLAIN)


def test_numbers_of_any_precision_become_those_of_the_parameters():
    shapes = abstract({"a": {"bias": (3,)}, "b": {"bias": (3,)}}, jnp.bfloat16)
    file = {"a.bias": np.array([1.0, 0.3, 70000.0]), "b.bias": np.array([1.0, 0.3, 3.0], ml_dtypes.bfloat16)}
    params = import_params(Layout(), file, shapes)
    assert params["a"]["bias"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(params["b"]["bias"], file["b.bias"])
    np.testing.assert_array_equal(params["a"]["bias"], file["a.bias"].astype(ml_dtypes.bfloat16))


class Tracked(Mapping):
    """Arrays that are made when they are read, as those of a file are."""

    class Entry:
        def __init__(self, shape):
            self.shape, self.dtype = shape, np.dtype(np.float16)

        def __array__(self, dtype=None, copy=None):
            return np.ones(self.shape, self.dtype)

    def __init__(self, shapes):
        self.shapes = shapes

    def __getitem__(self, name):
        return self.Entry(self.shapes[name])

    def __iter__(self):
        return iter(self.shapes)

    def __len__(self):
        return len(self.shapes)


def test_host_memory_is_the_model_and_one_tensor():
    count, side = 24, 256
    shapes = abstract({str(i): {"kernel": (side, side)} for i in range(count)})
    source = Tracked({f"{i}.weight": (side, side) for i in range(count)})
    model, largest = 4 * count * side**2, 6 * side**2  # float32, and the float16 that it comes from
    import_params(Layout(), source, shapes)  # what JAX makes once
    tracemalloc.start()
    try:
        params = import_params(Layout(), source, shapes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(params) == count
    # Read at once, the whole file would take half as much memory again next to the model.
    assert peak < model + 2 * largest < model + 2 * count * side**2


def test_leaves_go_to_their_sharding():
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    shapes = {"a": {"kernel": jax.ShapeDtypeStruct((4, 2), np.float32, sharding=sharding)}}
    params = import_params(Layout(), {"a.weight": np.ones((2, 4))}, shapes)
    assert params["a"]["kernel"].sharding == sharding
