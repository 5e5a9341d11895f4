"""Peak arithmetic of accelerators, for model FLOP utilisation (MFU)."""

# Dense bfloat16 FLOPs per second by jax.Device.device_kind, from the manufacturers' data sheets.
PEAK = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(device_kind: str) -> float:
    """FLOPs per second of one device, or 0 for a kind that is not in the table."""
    return next((flops for name, flops in PEAK.items() if device_kind.startswith(name)), 0.0)
