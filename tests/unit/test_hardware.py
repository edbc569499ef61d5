"""Which arithmetic a device gets, and which device is refused."""

from __future__ import annotations

import pytest
import torch

from taumerge.errors import JobFailed
from workers.hardware import Precision, check_kernels, choose_hardware

IN_THE_LOCK = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


def pretend(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], architectures: list[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: architectures)


@pytest.mark.parametrize(
    ("capability", "precision", "dtype"),
    [
        ((7, 0), "auto", torch.float16),
        ((7, 5), "auto", torch.float16),
        ((8, 0), "auto", torch.bfloat16),
        ((9, 0), "auto", torch.bfloat16),
        ((7, 0), "float32", torch.float32),
        ((8, 0), "float16", torch.float16),
    ],
)
def test_precision_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: Precision, dtype: torch.dtype
) -> None:
    pretend(monkeypatch, capability, IN_THE_LOCK)
    hardware = choose_hardware(precision)
    assert (hardware.device, hardware.dtype) == (torch.device("cuda", 0), dtype)


def test_volta_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (7, 0), IN_THE_LOCK)
    with pytest.raises(JobFailed, match="no bfloat16 units; use precision: auto") as caught:
        choose_hardware("bfloat16")
    assert caught.value.code == "unsupported_device"


def test_a_cpu_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_hardware("auto").dtype is torch.float32
    assert choose_hardware("bfloat16").dtype is torch.bfloat16
    with pytest.raises(JobFailed, match="float16 training needs a GPU"):
        choose_hardware("float16")


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((7, 0), IN_THE_LOCK, True),
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False),
        ((8, 9), ["sm_80", "sm_86"], True),  # binary code runs on later minor versions
        ((9, 0), ["sm_80", "sm_86"], False),
        ((9, 0), ["sm_80", "compute_80"], True),  # PTX runs on every later version
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_90a"], True),
        ((12, 0), ["sm_120"], True),
    ],
)
def test_kernels_for_the_device(capability: tuple[int, int], architectures: list[str], runs: bool) -> None:
    if runs:
        check_kernels(capability, architectures)
    else:
        with pytest.raises(JobFailed, match="install a torch built for it") as caught:
            check_kernels(capability, architectures)
        assert caught.value.code == "unsupported_device"
