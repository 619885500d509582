"""The same trace through the continuous batching of Hugging Face transformers, where installed.

Another engine on the same GPU, with kernels and scheduling that are not ours: its requests are
logged, its iterations are not known. Written for transformers 5.23; its manager has changed between
versions, and a version without what is used here is refused.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calibration.engine.executor import Limits
from calibration.engine.results import (
    Cell,
    Conditions,
    Times,
    run_row,
    tpot_ms,
    write_config,
    write_row,
)
from calibration.engine.serve import Say, Settings, affordable, prompts
from calibration.engine.shapes import Shape
from calibration.engine.trace import CannotServe, Trace
from calibration.measure import torch_module
from calibration.system import Device

CPU_BLOCKS = 64


def serve_transformers(
    shape: Shape, trace: Trace, settings: Settings, out: Path, run_id: str, *,
    device: Device | None, deadline_ns: int, say: Say,
) -> dict[str, Cell]:  # fmt: skip
    """As `serve.serve`, without iterations.

    Raises:
        CannotServe: transformers is absent, or another version's interface.
    """
    library = _library()
    model = _random_model(library, shape, device)
    config = library.ContinuousBatchingConfig(
        max_batch_tokens=settings.max_num_tokens,
        allow_block_sharing=False,
        num_blocks=settings.num_blocks or (None if device else CPU_BLOCKS),
    )
    greedy = library.GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=1)
    manager = model.init_continuous_batching(greedy, config)
    say(f"{shape.name}: transformers {library.__version__}, warming up")
    manager.warmup()
    cache = manager.batch_processor.cache
    sent = affordable(trace, deadline_ns - time.perf_counter_ns())
    tokens = prompts(sent, shape.vocab_size, settings.seed)
    times, duration_s = _replay(manager, sent, tokens, deadline_ns)
    about = Conditions(
        run_id=run_id, shape=shape, trace=sent, gpu=device.name if device else "cpu",
        limits=Limits(
            num_blocks=int(cache.num_blocks), block_tokens=int(config.page_size),
            max_num_tokens=settings.max_num_tokens, max_num_seqs=settings.max_num_seqs,
        ),
        version=library.__version__, seed=settings.seed, max_model_len=trace.longest,
        engine="transformers", dtype="bf16" if device else "fp32",
        cuda_graph="default" if device else "enforce-eager",
    )  # fmt: skip
    flags = ["engine_side_timing", "random_weights", "max_num_seqs_not_enforced"]
    flags += [] if times.finished.all() else ["cut_by_budget"]
    row = run_row(about, times, duration_s, flags)
    write_config(out / run_id, shape)
    write_row(out, about, times, row)
    return row


def _library() -> Any:
    try:
        library = importlib.import_module("transformers")
        for name in ("ContinuousBatchingConfig", "GenerationConfig", "AutoModelForCausalLM"):
            getattr(library, name)
    except ImportError as error:
        raise CannotServe(f"--engine transformers: not installed here ({error})") from None
    except AttributeError as error:
        raise CannotServe(f"--engine transformers: another version's interface: {error}") from None
    return library


def _random_model(library: Any, shape: Shape, device: Device | None) -> Any:
    torch = torch_module()
    config = shape.hf_config()
    kind = config.pop("model_type")
    for name in ("architectures", "torch_dtype"):
        config.pop(name)
    with torch.device("cuda" if device else "cpu"):
        model = library.AutoModelForCausalLM.from_config(
            library.AutoConfig.for_model(kind, **config),
            dtype=torch.bfloat16 if device else torch.float32,
        )
    return model.eval()


def _replay(manager: Any, trace: Trace, tokens: list[Any], deadline_ns: int) -> tuple[Times, float]:
    """Times of the requests, and how long it took in seconds."""
    manager.start()
    start_s = time.perf_counter()
    try:
        _send(manager, trace, tokens, start_s)
        outputs = _gather(manager, len(trace), deadline_ns)
    finally:
        manager.stop(block=True, hard_stop=True)
    return _times(trace, outputs, start_s)


def _send(manager: Any, trace: Trace, tokens: list[Any], start_s: float) -> None:
    """Each request when its time has come."""
    for i, prompt in enumerate(tokens):
        wait_s = start_s + trace.arrival_ns[i] / 1e9 - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        manager.add_request(prompt.tolist(), request_id=str(i), record_timestamps=True,
                            max_new_tokens=int(trace.output_tokens[i]))  # fmt: skip


def _gather(manager: Any, num: int, deadline_ns: int) -> dict[int, Any]:
    found: dict[int, Any] = {}
    while len(found) < num and time.perf_counter_ns() < deadline_ns:
        output = manager.get_result(timeout=0.5)
        if output is not None and output.is_finished():
            found[int(output.request_id)] = output
        elif output is None and not manager.is_running():
            break
    return found


def _times(trace: Trace, outputs: Mapping[int, Any], start_s: float) -> tuple[Times, float]:
    """From the stamps of the tokens, which are on the clock of `time.perf_counter`."""
    columns = np.full((3, len(trace)), np.nan)
    gaps, last_s = [np.empty(0)], start_s
    for i, output in outputs.items():
        stamps = np.array(output.timestamps or [])
        if output.error is not None or len(stamps) != trace.output_tokens[i]:
            continue
        sent_s = start_s + trace.arrival_ns[i] / 1e9
        columns[:, i] = output.lifespan[0] - sent_s, stamps[0] - sent_s, stamps[-1] - sent_s
        gaps.append(np.diff(stamps))
        last_s = max(last_s, float(stamps[-1]))
    if last_s == start_s:
        raise CannotServe("transformers finished no request within the budget")
    queued, ttft, e2e = columns * 1e3
    itl = np.concatenate(gaps) * 1e3
    times = Times(queued=queued, ttft=ttft, e2e=e2e, tpot=tpot_ms(trace, ttft, e2e), itl=itl)
    return times, last_s - start_s
