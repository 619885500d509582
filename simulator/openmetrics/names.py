"""The metrics vLLM exports (0.11 and later), as `headway serve` and `--metrics-out` name them.

Each under the prefix `vllm:`, with the labels model_name and engine (the attention rank), times in
seconds. The buckets are vLLM's.
"""

from __future__ import annotations

LABELS = ("model_name", "engine")
FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
    *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
HISTOGRAMS = {  # name: upper ends, what it holds
    "time_to_first_token_seconds": (FIRST_TOKEN_S, "Time to first token."),
    "inter_token_latency_seconds": (TOKEN_S, "Time between two tokens of a request."),
    "request_time_per_output_token_seconds": (TOKEN_S, "Mean time a token after the first."),
    "e2e_request_latency_seconds": (REQUEST_S, "Arrival to last token."),
    "request_queue_time_seconds": (REQUEST_S, "Time waiting."),
    "request_inference_time_seconds": (REQUEST_S, "Time running."),
    "request_prefill_time_seconds": (REQUEST_S, "Time from admission to first token."),
    "request_decode_time_seconds": (REQUEST_S, "Time from first to last token."),
}
TOKEN_HISTOGRAMS = {  # their buckets are `token_buckets`
    "request_prompt_tokens": "Prompt tokens.",
    "request_generation_tokens": "Tokens generated.",
}
GAUGES = {
    "num_requests_running": "Requests in the batch.",
    "num_requests_waiting": "Requests waiting.",
    "kv_cache_usage_perc": "KV pages in use; 1 is all of them.",
}
COUNTERS = {
    "num_preemptions": "Preemptions.",
    "prompt_tokens": "Prompt tokens computed.",
    "generation_tokens": "Tokens generated.",
    "prefix_cache_queries": "Prompt tokens looked up in the prefix cache.",
    "prefix_cache_hits": "Of those, found.",
}
SUCCESS = ("request_success", "Requests that ended, by reason.")
REASONS = ("stop", "length", "abort")


def token_buckets(most: int) -> list[int]:
    """1, 2, 5, 10, ... up to the longest context."""
    ends = [m * 10**e for e in range(12) for m in (1, 2, 5)]
    return [end for end in ends if end <= most]
