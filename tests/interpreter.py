"""Importing this makes Triton's kernels run on the CPU interpreter where there is no GPU.

TRITON_INTERPRET is read when a kernel is decorated, so each conftest whose tests import `kernels`
imports this first.
"""

import importlib.util
import os
import sys

import pytest

HAS_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "triton"))
if HAS_TORCH:
    import torch

    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        if "triton.language" in sys.modules:
            raise pytest.UsageError("triton was imported before tests/interpreter.py")
        os.environ["TRITON_INTERPRET"] = "1"
