"""Peak throughput of common devices, to convert hours into FLOPs.

Units:  FLOP/s
"""

from typing import NamedTuple


class Device(NamedTuple):
    """Throughput of one device.

    Attributes:
        peak: FLOP/s of dense 16-bit matrix products with 32-bit accumulation.
        two_four: Whether it can multiply 2:4 matrices.
        source: Source of the number.
    """

    peak: float
    two_four: bool
    source: str


DEVICES = {
    "v100": Device(125e12, False, "NVIDIA V100 datasheet, 2020 (SXM2, fp16)"),
    "t4": Device(65e12, False, "NVIDIA T4 datasheet, 2019 (fp16)"),
    "a100": Device(312e12, True, "NVIDIA A100 datasheet, 2021 (bf16)"),
    "l4": Device(121e12, True, "NVIDIA L4 datasheet, 2023 (half of the 242 TFLOP/s given with sparsity)"),
    "rtx3090": Device(71e12, True, "NVIDIA GA102 white paper, 2020 (fp16, sums in fp32)"),
    "rtx4090": Device(165.2e12, True, "NVIDIA Ada white paper, 2022 (fp16, sums in fp32)"),
    "h100": Device(989.4e12, True, "NVIDIA H100 datasheet, 2023 (SXM5, half of the 1,979 given with sparsity)"),
    "h200": Device(989.4e12, True, "NVIDIA H200 datasheet, 2024 (as H100)"),
    "tpu-v4": Device(275e12, False, "Jouppi et al., arXiv:2304.01433 (bf16)"),
    "cpu-core": Device(96e9, False, "3 GHz, two fused multiply-adds of eight fp32 numbers a cycle (AVX2)"),
}


def device_flops(hours: float, device: str, devices: int, utilization: float) -> float:
    """Return the FLOPs of a training run.

    Args:
        hours: Duration.
        device: Name in ``DEVICES``.
        devices: Number of devices.
        utilization: Fraction of the peak that training reaches, in (0, 1].

    Raises:
        ValueError: The device is unknown, ``devices`` is below 1, or ``utilization`` is out of range.
    """
    if device not in DEVICES:
        raise ValueError(
            f"device={device!r} is unknown; choose one of {', '.join(DEVICES)}, or give --compute in FLOPs."
        )
    if devices < 1 or not 0 < utilization <= 1:
        raise ValueError(
            f"devices={devices}, utilization={utilization} are out of range; give at least 1, and a share in (0, 1]."
        )
    return hours * 3600 * DEVICES[device].peak * devices * utilization
