"""An experiment whose requests are drawn, and variations of it, for tests of comparisons."""

from __future__ import annotations

from simulator.config import Document
from simulator.config.document import parse_yaml

DRAWN = """\
name: chat
seed: 4
model: llama-3.1-8b
cluster: 1xH100-SXM
plan: {tp: 1}
workload:
  kind: synthetic
  num_prompts: 60
  input_len: {kind: uniform, low: 100, high: 3000}
  output_len: {kind: uniform, low: 10, high: 100}
  request_rate: 10 /s
slo: {ttft: 300 ms, tpot: 15 ms}
"""
POLICIES = {
    "vllm_v0": "scheduler=vllm_v0",
    "small chunks": "scheduler=sarathi; scheduler.token_budget=256",
    "static": "scheduler=static; allocator={kind: reserved, reserve: max}",
}


def drawn(**keys: object) -> Document:
    document = Document(data=parse_yaml(DRAWN, "chat"), source="chat.yaml")
    for key, value in keys.items():
        document = document.override(key.replace("__", "."), value, key)
    return document
