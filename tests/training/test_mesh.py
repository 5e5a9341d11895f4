"""Meshes and layouts on eight simulated devices, in a process of their own."""

import pathlib
import subprocess
import sys
import textwrap

import jax
import pytest

from diffusion_jax.training import mesh as mesh_lib
from tests.runs import with_devices

PRELUDE = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import PartitionSpec as P
    from diffusion_jax.training import mesh as mesh_lib
    from diffusion_jax.types import pytree

    @pytree
    class State:
        step: jax.Array
        params: dict
        ema: dict
        opt_state: tuple
        key: jax.Array

    def refused(call):
        try:
            call()
        except ValueError as error:
            return str(error)
        raise AssertionError("accepted")
"""


def _on_eight_devices(body):
    program = textwrap.dedent(PRELUDE) + textwrap.dedent(body)
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], env=with_devices(8), cwd=root, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_shapes_and_refusals():
    _on_eight_devices("""
        sizes = lambda **keywords: tuple(mesh_lib.make_mesh(**keywords).shape.values())
        assert sizes() == (8, 1, 1)
        assert sizes(fsdp=4) == (2, 4, 1)
        assert sizes(data=1, fsdp=-1, tensor=2) == (1, 4, 2)
        assert sizes(data=2, fsdp=2, tensor=2) == (2, 2, 2)
        mesh = mesh_lib.make_mesh(fsdp=4)
        assert mesh.axis_names == ("data", "fsdp", "tensor")
        assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
        assert "multiply to the 8 devices" in refused(lambda: mesh_lib.make_mesh(fsdp=3))
        assert "multiply to the 8 devices" in refused(lambda: mesh_lib.make_mesh(data=2, fsdp=2))
        assert "multiply to the 8 devices" in refused(lambda: mesh_lib.make_mesh(data=16))
        assert "only one size" in refused(lambda: mesh_lib.make_mesh(data=-1, fsdp=-1))
        assert "mesh tensor=0" in refused(lambda: mesh_lib.make_mesh(tensor=0))
        mesh_lib.check_batch(mesh, 16)
        assert "batch_size=12: must be a positive multiple of 8" in refused(lambda: mesh_lib.check_batch(mesh, 12))
        mesh_lib.check_batch(mesh_lib.make_mesh(tensor=2), 12)  # tensor does not split the batch
        x = jax.device_put(jnp.arange(16.0).reshape(16, 1), mesh_lib.batch_sharding(mesh))
        assert x.addressable_shards[0].data.shape == (2, 1)
    """)


def test_layouts_follow_rules_and_parameters():
    _on_eight_devices("""
        import optax
        from diffusion_jax.training import ema, optimizers

        def init():
            params = {
                "net": {
                    "conv": {"kernel": jnp.zeros((3, 3, 64, 128)), "bias": jnp.zeros(128)},
                    "attention": {"kernel": jnp.zeros((256, 96))},
                    "odd": jnp.zeros((301, 303)),
                    "half": jnp.zeros((302, 303)),
                },
                "disc": {"conv": {"kernel": jnp.zeros((3, 3, 64, 128))}},
                "frozen": {"kernel": jnp.zeros((512, 256))},
            }
            trained = {group: params[group] for group in ("net", "disc")}
            optimizer, _ = optimizers.make_optimizer(learning_rate=1e-3, num_steps=10, groups={"disc": {}})
            return State(step=jnp.int32(0), params=params, ema=ema.init(params, (0.9999,)),
                         opt_state=optimizer.init(trained), key=jax.random.key(0))

        mesh = mesh_lib.make_mesh(data=1, fsdp=4, tensor=2)
        abstract = jax.eval_shape(init)
        rules = [("attention/kernel", ("tensor", None)), (r"^disc/.*kernel", (None, "fsdp"))]
        layout = mesh_lib.state_sharding(mesh, abstract, rules)
        assert jax.tree.structure(layout) == jax.tree.structure(abstract)

        net = jax.tree.map(lambda s: s.spec, layout.params["net"])
        assert net["conv"]["kernel"] == P(None, None, "tensor", "fsdp")  # the largest dimension, and the next
        assert net["conv"]["bias"] == P()  # small
        assert net["attention"]["kernel"] == P("tensor")
        assert net["odd"] == P()  # nothing divides
        assert net["half"] == P("tensor")  # 2 divides 302, and 4 does not
        assert layout.params["disc"]["conv"]["kernel"].spec == P(None, None, None, "fsdp")
        assert layout.params["frozen"]["kernel"].spec == P("fsdp", "tensor")

        same = lambda a, b: jax.tree.map(lambda x, y: x.spec == y.spec, a, b)
        assert jax.tree.all(same(layout.ema["0.9999"]["net"], layout.params["net"]))
        moments = {jax.tree_util.keystr(k, simple=True, separator="/"): s.spec
                   for k, s in jax.tree.leaves_with_path(layout.opt_state)}
        find = lambda *parts: [spec for path, spec in moments.items() if all(part in path for part in parts)]
        assert find("/mu/net/conv/kernel") == find("/nu/net/conv/kernel") == [P(None, None, "tensor", "fsdp")]
        assert find("/mu/net/attention/kernel") == [P("tensor")]
        assert find("/mu/disc/conv/kernel") == [P(None, None, None, "fsdp")]
        assert set(find("count")) == {P()}
        assert layout.step.spec == layout.key.spec == P()

        state = jax.jit(init, out_shardings=layout)()
        assert state.params["net"]["conv"]["kernel"].addressable_shards[0].data.shape == (3, 3, 32, 32)
        assert state.ema["0.9999"]["net"]["attention"]["kernel"].addressable_shards[0].data.shape == (128, 96)

        whole = mesh_lib.state_sharding(mesh_lib.make_mesh(), abstract)
        assert all(s.spec == P() for s in jax.tree.leaves(whole))

        bad = lambda *rule: refused(lambda: mesh_lib.state_sharding(mesh, abstract, [rule]))
        assert "for net/odd of shape (301, 303): at most 2 axes fit" in bad("odd", ("fsdp", None, None))
        assert "unknown axis 'model', allowed are data, fsdp, tensor" in bad("odd", ("model",))

        planned = mesh_lib.state_sharding(mesh_lib.make_mesh(data=1, fsdp=4, tensor=2, devices=8), abstract, rules)
        assert jax.tree.all(same(planned, layout))
        assert mesh_lib.make_mesh(fsdp=16, devices=1024).shape == {"data": 64, "fsdp": 16, "tensor": 1}
        assert "multiply to the 12 devices" in refused(lambda: mesh_lib.make_mesh(fsdp=8, devices=12))
        assert mesh_lib.process_share(mesh_lib.batch_sharding(mesh), 16) == (0, 1)
    """)


def test_a_checkpoint_moves_between_meshes(tmp_path):
    _on_eight_devices(f"""
        import grain
        from diffusion_jax.training.checkpoints import Checkpoints

        data = iter(grain.MapDataset.range(10).to_iter_dataset())
        init = lambda: State(step=jnp.int32(3), params={{"net": {{"w": jnp.arange(2.0**16).reshape(256, 256)}}}},
                             ema={{}}, opt_state=(), key=jax.random.key(1))
        abstract = jax.eval_shape(init)
        meshes = [dict(fsdp=8), dict(fsdp=2), dict(fsdp=2, tensor=4)]
        layouts = [mesh_lib.state_sharding(mesh_lib.make_mesh(**sizes), abstract) for sizes in meshes]
        place = lambda layout: jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, layout)
        with Checkpoints({str(tmp_path)!r}) as checkpoints:
            checkpoints.save(3, jax.jit(init, out_shardings=layouts[0])(), data)
            for layout, shape in zip(layouts, ((32, 256), (128, 256), (128, 64))):
                state, _ = checkpoints.restore(place(layout), data)
                assert state.params["net"]["w"].addressable_shards[0].data.shape == shape
                np.testing.assert_array_equal(state.params["net"]["w"], init().params["net"]["w"])
    """)
    # Back on however many devices this process has, without naming a layout.
    from diffusion_jax.training.checkpoints import Checkpoints

    with Checkpoints(tmp_path) as checkpoints:
        part, step = checkpoints.restore_state({"params": {"net": {"w": jax.ShapeDtypeStruct((256, 256), "float32")}}})
    assert step == 3
    assert part["params"]["net"]["w"].is_fully_replicated
    assert part["params"]["net"]["w"][255, 255] == 2.0**16 - 1


def test_one_device():
    mesh = mesh_lib.make_mesh()
    assert mesh.size == jax.device_count()
    mesh_lib.check_batch(mesh, jax.device_count())
    with pytest.raises(ValueError, match="batch_size=0"):
        mesh_lib.check_batch(mesh, 0)
