"""Tests of the profiler run kernels: on the interpreter where there is no GPU."""

import tests.interpreter  # noqa: F401
