"""Bytes of parameters, averages and optimizer on each device, for full-size networks on 1 to 1024 devices.

    python -m benchmarks.sharding

Sizes are found by abstract evaluation: nothing is allocated. For every number of devices the table shows the mesh
(fsdp, tensor) with the fewest bytes per device, among those that use all devices. An axis splits an array only if it
divides a dimension.
"""

import argparse

import jax

from diffusion_jax.config import from_file
from diffusion_jax.run.job import Job, prepare
from diffusion_jax.training import mesh as meshes
from diffusion_jax.training import summary

DEVICES = (1, 8, 64, 256, 1024)


def layouts(job: Job) -> list[tuple[int, dict[str, int], dict[str, tuple[int, int]]]]:
    """(devices, mesh, `state_bytes`) of the mesh with the fewest bytes per device, for every number of `DEVICES`."""
    plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), job.state)
    found = []
    for devices in DEVICES:
        choices = []
        for tensor in (2**k for k in range(devices.bit_length())):
            mesh = meshes.make_mesh(data=1, fsdp=devices // tensor, tensor=tensor, devices=devices)
            state = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                plain,
                meshes.state_sharding(mesh, plain),
            )
            sizes = summary.state_bytes(state)
            choices.append((sum(one for _, one in sizes.values()), tensor, dict(mesh.shape), sizes))
        _, _, sizes_of_mesh, sizes = min(choices, key=lambda choice: choice[:2])
        found.append((devices, sizes_of_mesh, sizes))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="", help="only those with this in their name")
    args = parser.parse_args()
    configs = {
        "DiT-XL/2": from_file("configs/dit.py:imagenet256_xl2"),
        "Stable Diffusion 1.5": from_file("configs/stable_diffusion.py:sd15"),
    }
    print("| network | devices | fsdp x tensor | parameters, MiB | averages, MiB | optimizer, MiB | of all |")
    print("|---|---|---|---|---|---|---|")
    for name, config in configs.items():
        if args.network and args.network not in name:
            continue
        config.training.batch_size = 1024
        job = prepare(config, 1)
        count = sum(x.size for x in jax.tree.leaves(job.state.params))
        for devices, mesh, sizes in layouts(job):
            parts = [one for _, one in sizes.values()]
            share = sum(parts) / sum(whole for whole, _ in sizes.values())
            title = f"{name}, {count / 1e6:.0f} M" if devices == 1 else ""
            columns = " | ".join(f"{size / 2**20:,.1f}" for size in parts)
            print(f"| {title} | {devices} | {mesh['fsdp']} x {mesh['tensor']} | {columns} | 1/{1 / share:.0f} |")


if __name__ == "__main__":
    main()
