"""The findings of slicefine doctor, on this machine and on simulated ones."""

import json
import shutil
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed

from slicefine_pl.cli.doctor import command, devices, packages, places, processes, video
from slicefine_pl.cli.doctor.devices import Driver
from slicefine_pl.cli.doctor.finding import Finding, Verdict
from slicefine_pl.cli.main import main
from slicefine_pl.optional import OPTIONAL

TOO_OLD = "The NVIDIA driver on your system is too old (found version 12040).\nPlease update your GPU driver."


@pytest.fixture
def foreign_package(tmp_path, monkeypatch):
    """An installed package ``gaudy`` 1.2 whose code is the file that is returned."""
    monkeypatch.syspath_prepend(tmp_path)
    info = tmp_path / "gaudy-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gaudy\nVersion: 1.2\n")
    yield tmp_path / "gaudy.py"
    sys.modules.pop("gaudy", None)


def test_packages_are_those_of_pyproject():
    """A dependency that is not checked would only be missed by a run."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]

    def names(requirements):
        return {requirement.split(">")[0].split("[")[0] for requirement in requirements}

    assert set(packages.REQUIRED) == names(project["dependencies"])
    extras = {extra: names(required) for extra, required in project["optional-dependencies"].items()}
    assert set(OPTIONAL) == set().union(*extras.values()) - {"slicefine-pl"}
    assert all(name in extras[extra] for name, extra in OPTIONAL.items())


def test_an_absent_package_breaks_a_run_only_where_every_run_needs_it():
    needed, optional = packages.check_package("no-such-thing"), packages.check_package("no-such-thing", "video")
    assert (needed.verdict, optional.verdict) == (Verdict.BROKEN, Verdict.ABSENT)
    assert "slicefine-pl[video]" in optional.remedy


def test_a_package_that_is_installed_has_to_be_importable(foreign_package):
    """torchvision that was built for another torch is installed, and raises this error when it is imported."""
    foreign_package.write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    found = packages.check_package("gaudy")
    assert found.verdict is Verdict.BROKEN
    assert found.found == "1.2 cannot be imported: operator torchvision::nms does not exist"
    assert packages.check_package("gaudy", "image").verdict is Verdict.WARNING
    foreign_package.write_text("fine = 1")
    assert packages.check_package("gaudy") == Finding("versions", "gaudy", "1.2")


def test_a_training_step_is_right_here():
    assert devices.training_step("cpu").verdict is Verdict.FINE


@pytest.mark.parametrize("wrong", [1.02, float("nan")])
def test_wrong_gradients_are_seen(wrong, monkeypatch):
    right = devices.gradients
    scale = {torch.float32: wrong, torch.float64: 1.0}
    monkeypatch.setattr(devices, "gradients", lambda device, dtype: scale[dtype] * right(device, dtype))
    assert devices.training_step("cpu").verdict is Verdict.BROKEN


def test_a_device_that_torch_does_not_have_is_broken():
    assert devices.training_step("cuda:99").verdict is Verdict.BROKEN


def test_gradients_leave_the_random_numbers_alone():
    before = torch.random.get_rng_state()
    devices.training_step("cpu")
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("built", "driver", "available", "verdict"),
    [
        ("13.2", Driver("13.2", True), True, Verdict.FINE),
        ("13.2", None, False, Verdict.ABSENT),
        ("13.2", Driver("13.2", False), False, Verdict.ABSENT),  # a login node, or CUDA_VISIBLE_DEVICES=""
        ("13.2", Driver("12.4", True), False, Verdict.BROKEN),  # a run would take the CPU without a word
        (None, Driver("13.2", True), False, Verdict.WARNING),  # the CPU build of torch was chosen
        (None, None, False, Verdict.ABSENT),
    ],
)
def test_cuda_of_torch_against_the_driver(built, driver, available, verdict, monkeypatch):
    def init():
        raise RuntimeError(TOO_OLD)

    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(devices, "nvidia_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "init", init)
    found = devices.check_cuda()
    assert found.verdict is verdict
    assert built is None or f"built for {built}" in found.found
    assert driver is None or f"driver for {driver.cuda}" in found.found
    assert ("too old (found version 12040)." in found.found) == (verdict is Verdict.BROKEN)
    assert "Please" not in found.found


@pytest.mark.parametrize(
    ("code", "shows_gpu"), [(0, True), (100, False), (803, True)]
)  # 803: driver and library differ
def test_the_driver_is_asked_for_its_cuda_version_and_gpus(code, shows_gpu, monkeypatch):
    def library(name):
        assert name == "libcuda.so.1"

        def answer(pointer):
            pointer._obj.value = 13020
            return 0

        return SimpleNamespace(cuDriverGetVersion=answer, cuInit=lambda flags: code)

    monkeypatch.setattr(devices.ctypes, "CDLL", library)
    assert devices.nvidia_driver() == Driver("13.2", shows_gpu)


def test_no_driver_is_no_error(monkeypatch):
    def library(name):
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(devices.ctypes, "CDLL", library)
    assert devices.nvidia_driver() is None


@pytest.mark.parametrize(("capability", "able"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_every_gpu_is_described_and_tested(capability, able, monkeypatch):
    card = SimpleNamespace(name="Tesla", total_memory=80 * 2**30, major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(devices, "training_step", lambda device: Finding("devices", f"step {device}", "correct"))
    found = {finding.name: finding for finding in devices.check_devices()}
    assert {"cuda:0", "cuda:1", "step cpu", "step cuda:0", "step cuda:1"} <= set(found)
    assert "80 GiB" in found["cuda:1"].found
    assert found["cuda:1"].found.endswith(": bfloat16, 2:4 products") == able


def test_gloo_works_here_and_leaves_no_group():
    assert processes.check_gloo().found == "works"
    assert not distributed.is_initialized()


def test_gloo_without_an_interface_warns_and_leaves_no_group(monkeypatch):
    def refuse(tensor):
        raise RuntimeError("Unable to find interface for: eth9\nException raised from ...")

    monkeypatch.setattr(distributed, "all_reduce", refuse)
    found = processes.check_gloo()
    assert found.verdict is Verdict.WARNING
    assert found.found == "failed: Unable to find interface for: eth9"
    assert not distributed.is_initialized()


def test_a_running_group_is_left_alone(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        assert processes.check_gloo().verdict is Verdict.FINE
        assert distributed.is_initialized()
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize(("built", "reason"), [(None, "built without CUDA"), ("13.2", "not in this torch")])
def test_why_nccl_is_absent(built, reason, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(distributed, "is_nccl_available", lambda: False)
    assert processes.check_nccl().verdict is Verdict.ABSENT
    assert reason in processes.check_nccl().found


def test_the_clip_comes_back_frame_by_frame():
    pytest.importorskip("av")
    assert video.decoded_levels() == pytest.approx([20 + 25 * index for index in range(8)], abs=16)  # studio range
    assert video.check_video().verdict is Verdict.FINE


@pytest.mark.parametrize("levels", [[20.0] * 7, [20.0, 70, 45, 95, 120, 145, 170, 195], []])
def test_lost_and_swapped_frames_are_seen(levels, monkeypatch):
    monkeypatch.setattr(video, "decoded_levels", lambda: levels)
    assert video.check_video().verdict is Verdict.WARNING


def test_no_video_library_is_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    found = video.check_video()
    assert found.verdict is Verdict.ABSENT
    assert "slicefine-pl[video]" in found.remedy


@pytest.mark.parametrize(("size", "verdict"), [(64 * 2**20, Verdict.WARNING), (8 * 2**30, Verdict.FINE)])
def test_the_shared_memory_of_a_container_is_small(size, verdict, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=size, free=size))
    found = places.check_shared_memory(tmp_path)
    assert found.verdict is verdict
    assert ("--shm-size" in found.remedy) == (verdict is Verdict.WARNING)


def test_no_shared_memory_is_no_error(tmp_path):
    assert places.check_shared_memory(tmp_path / "none").verdict is Verdict.ABSENT


def test_a_folder_is_tried_and_left_as_it_was(tmp_path):
    runs = tmp_path / "deep" / "runs"
    assert places.check_writable(runs).verdict is Verdict.FINE
    assert list(tmp_path.iterdir()) == []
    runs.mkdir(parents=True)
    assert "created by" not in places.check_writable(runs).found
    assert list(runs.iterdir()) == []


def test_where_no_folder_can_be_made_training_is_broken(tmp_path):
    (tmp_path / "file").write_text("no folder")
    for runs in (tmp_path / "file", tmp_path / "file" / "runs"):
        found = places.check_writable(runs)
        assert found.verdict is Verdict.BROKEN
        assert str(tmp_path / "file") in found.remedy


@pytest.mark.parametrize("verdict", list(Verdict))
def test_only_what_is_broken_fails(verdict, monkeypatch, capsys):
    findings = [Finding("places", "folder runs", "output", verdict, "do that"), Finding("video", "decoding", "seen")]
    monkeypatch.setattr(command, "examine", lambda runs: findings)
    broken = verdict is Verdict.BROKEN
    assert main(["doctor"]) == int(broken)
    shown = capsys.readouterr()
    assert all(cell in shown.out for cell in ("places", "folder runs", "do that", "decoding"))
    assert shown.err == ("Training will not work here. folder runs: output.\n" if broken else "")
    assert main(["doctor", "--json"]) == int(broken)
    output = json.loads(capsys.readouterr().out)
    assert output["works"] is not broken
    assert output["places"]["folder runs"] == {"found": "output", "verdict": str(verdict), "remedy": "do that"}


def test_brackets_of_an_extra_are_shown_not_taken_for_a_style(monkeypatch, capsys):
    monkeypatch.setattr(
        command, "examine", lambda runs: [Finding("a", "b", "c", Verdict.ABSENT, "slicefine-pl[video]")]
    )
    main(["doctor"])
    assert "slicefine-pl[video]" in capsys.readouterr().out


def test_this_machine_can_train(tmp_path, capsys):
    """Every check, on the machine that runs the tests."""
    assert main(["doctor", "--json", "--runs", str(tmp_path / "runs")]) == 0
    output = json.loads(capsys.readouterr().out)
    assert set(output) == {"works", "versions", "devices", "processes", "video", "places"}
    assert output["versions"]["torchmetrics"]["found"] == __import__("torchmetrics").__version__
