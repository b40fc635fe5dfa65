"""Hours on devices are converted to FLOPs."""

import pytest

from slicefine_pl.scaling.devices import DEVICES, device_flops


def test_hours_are_flops_of_the_device():
    assert device_flops(2, "a100", 8, 0.5) == pytest.approx(2 * 3600 * 312e12 * 8 * 0.5)
    assert all(device.peak > 0 and device.source for device in DEVICES.values())
