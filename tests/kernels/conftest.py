"""Kernels run on the CPU interpreter where there is no GPU; the same tests run on a GPU otherwise.

`tests.interpreter` sees to that, before any test module imports `kernels`. Ahead-of-time tests go
through `kernels.compile.compile_all`, whose processes drop the variable again. A kernel test module
starts with `torch = pytest.importorskip("torch")`.
"""

import os

import pytest

from tests.interpreter import HAS_TORCH

if HAS_TORCH:
    import torch


@pytest.fixture(scope="session")
def device():
    """Where the kernels run: a GPU if there is one, else the CPU through the interpreter."""
    return torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


@pytest.fixture
def generator(device):
    """A seeded random generator on the test's device."""
    return torch.Generator(device=device).manual_seed(0)


@pytest.fixture
def poisoned(monkeypatch):
    """Every `torch.empty` and `torch.empty_like` is filled with NaN (or the largest integer), so
    an element that a kernel forgets to write cannot pass for a plausible one."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(tensor):
        if tensor.dtype.is_floating_point:
            one_byte = tensor.element_size() == 1  # NaN of e4m3, which fill_ does not know on CPU
            return (
                tensor.view(torch.uint8).fill_(0x7F).view(tensor.dtype)
                if one_byte
                else (tensor.fill_(float("nan")))
            )
        return tensor.fill_(torch.iinfo(tensor.dtype).max if tensor.dtype != torch.bool else True)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` are skipped, with a reason, where there is none."""
    if HAS_TORCH and torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
