"""A small serving engine on a real GPU, to see whether Headway prices whole iterations rightly.

Kernel tables say what each kernel takes alone. `python -m calibration engine-check` runs them as
an engine does: vLLM V1's scheduling (the simulator's own `VllmV1` decides), a paged KV cache, CUDA
graphs for decodes, requests that arrive in real time. It logs every iteration. `compare` prices the
logged iterations with Headway's cost model and says how far off they are, kind by kind.

    shapes      what is served: random weights in the shape of a model
    trace       arrivals and lengths
    lane        the books of the KV blocks; what the scheduler sees and does
    inputs      a batch as one block of integers for the device
    operations  the kernels, or their naive torch references
    model       the forward pass
    executor    weights, cache, CUDA graphs, warm-up; one batch at a time
    replay      the loop, in real time
    results     iterations.csv, requests.csv, the workload file and the row of runs.csv
    compare     logged iterations against Headway's price
    command     the command line
    huggingface the same trace through transformers' continuous batching

Everything but `compare` runs with torch, triton and numpy alone.
"""
