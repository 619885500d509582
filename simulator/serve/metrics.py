"""Prometheus metrics under the names of vLLM (0.11 and later), in seconds of simulated time."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from simulator.live.ticket import Ticket
from simulator.openmetrics.names import (
    COUNTERS,
    GAUGES,
    HISTOGRAMS,
    LABELS,
    REASONS,
    SUCCESS,
    TOKEN_HISTOGRAMS,
    token_buckets,
)
from simulator.rank import Rank

LATE_S = (*(1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05), *(0.1, 0.2, 0.5, 1.0))


class Metrics:
    """What has happened, and what is so now."""

    def __init__(self, model: str, ranks: tuple[Rank, ...], most_tokens: int) -> None:
        self.registry = CollectorRegistry()
        self._model = model
        self._ranks = ranks
        kwargs = {"labelnames": LABELS, "registry": self.registry}
        self._gauges = {n: Gauge(f"vllm:{n}", text, **kwargs) for n, text in GAUGES.items()}  # type: ignore[arg-type]
        self._counters = {n: Counter(f"vllm:{n}", text, **kwargs) for n, text in COUNTERS.items()}  # type: ignore[arg-type]
        tables = {
            **HISTOGRAMS,
            **{n: (token_buckets(most_tokens), text) for n, text in TOKEN_HISTOGRAMS.items()},
        }
        self._histograms = {
            name: Histogram(f"vllm:{name}", text, buckets=ends, **kwargs)  # type: ignore[arg-type]
            for name, (ends, text) in tables.items()
        }
        self._success = Counter(
            f"vllm:{SUCCESS[0]}",
            SUCCESS[1],
            (*LABELS, "finished_reason"),
            registry=self.registry,
        )
        self._lag = Gauge("headway:lag_seconds", "Wall time behind.", registry=self.registry)
        self._late = Histogram(
            "headway:token_lateness_seconds",
            "Wall time from when a token was due to when it was written.",
            buckets=LATE_S,
            registry=self.registry,
        )
        cache = Gauge(
            "vllm:cache_config_info",
            "The KV pool.",
            ("block_size", "num_gpu_blocks", "engine"),
            registry=self.registry,
        )
        for i, rank in enumerate(ranks):
            tokens, pages = rank.layout.block_tokens, rank.allocator.num_pages
            cache.labels(str(tokens), str(pages), str(i)).set(1)
            for metric in (*self._counters.values(), *self._histograms.values()):
                metric.labels(model, str(i))
            for reason in REASONS:
                self._success.labels(model, str(i), reason)

    def late(self, wall_s: float) -> None:
        """A token is written so long after it was due."""
        self._late.observe(wall_s)

    def token(self, ticket: Ticket, gap_ns: int) -> None:
        """A request has been given a token, so long after the one before it; -1 = its first."""
        labels = (self._model, str(ticket.rank))
        self._counters["generation_tokens"].labels(*labels).inc()
        if gap_ns >= 0:
            self._observe("inter_token_latency_seconds", labels, gap_ns)
            return
        self._observe("time_to_first_token_seconds", labels, ticket.first_ns - ticket.sent_ns)
        for name in ("prompt_tokens", "prefix_cache_queries"):
            self._counters[name].labels(*labels).inc(ticket.prompt_tokens)

    def ended(self, ticket: Ticket, reason: str) -> None:
        """A request is over: `reason` is stop, length or abort."""
        labels = (self._model, str(ticket.rank))
        self._success.labels(*labels, reason).inc()
        self._counters["num_preemptions"].labels(*labels).inc(ticket.preemptions)
        if ticket.finish_ns < 0:
            return
        first, last = ticket.first_ns, ticket.finish_ns
        if ticket.given > 1:
            per_token = (last - first) / (ticket.given - 1)
            self._observe("request_time_per_output_token_seconds", labels, per_token)
        self._observe("e2e_request_latency_seconds", labels, last - ticket.sent_ns)
        self._observe("request_queue_time_seconds", labels, ticket.scheduled_ns - ticket.sent_ns)
        self._observe("request_inference_time_seconds", labels, last - ticket.scheduled_ns)
        self._observe("request_prefill_time_seconds", labels, first - ticket.scheduled_ns)
        self._observe("request_decode_time_seconds", labels, last - first)
        self._histograms["request_prompt_tokens"].labels(*labels).observe(ticket.prompt_tokens)
        self._histograms["request_generation_tokens"].labels(*labels).observe(ticket.given)

    def _observe(self, name: str, labels: tuple[str, str], ns: float) -> None:
        self._histograms[name].labels(*labels).observe(ns / 1e9)

    def page(self, lag_s: float) -> bytes:
        """The text that Prometheus scrapes."""
        self._lag.set(lag_s)
        for i, rank in enumerate(self._ranks):
            pages, free = rank.allocator.num_pages, rank.allocator.free_pages
            values = (rank.num_running, rank.num_waiting, 1 - free / pages)
            for gauge, value in zip(self._gauges.values(), values, strict=True):
                gauge.labels(self._model, str(i)).set(value)
        return generate_latest(self.registry)
