"""Triton kernels of a transformer layer: measured by `calibration`, unknown to `simulator`.

Each op is a matched set: a kernel (`gemm.py`), a naive torch reference (`reference_linear.py`), a
test on the CPU interpreter, tile configurations as data (`tiles_linear.json`), ahead-of-time
compile jobs (`aot_jobs`) and benchmark cases (`benchmark_cases`).

`HEADWAY` tells this package from Hugging Face's distribution of the same name; import submodules
(`from kernels.gemm import gemm`) and check the marker first.
"""

HEADWAY = True
