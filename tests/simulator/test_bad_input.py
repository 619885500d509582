"""Whatever is wrong with the input: one clear line on stderr, an exit code, no files left."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import pytest

from simulator.cli import run

GOOD = """\
model: llama-3.1-8b
cluster: 1xH100-SXM
plan: {tp: 1}
workload: {kind: synthetic, num_prompts: 4, input_len: 64, output_len: 4}
"""
TRACE = "arrival_s,input_tokens,output_tokens\n0.0,100,10\n0.5,200,20\n"
FLAGS = ("--model", "llama-3.1-8b", "--cluster", "1xH100-SXM", "--num-prompts", "2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A file or a command line that cannot work, and what the message must say."""

    name: str
    says: tuple[str, ...]  # every part must be in the message
    yaml: str | bytes | None = None  # experiment.yaml
    args: tuple[str, ...] | None = None  # default: simulate experiment.yaml
    code: int = 2


def changed(old: str, new: str) -> str:
    """GOOD with one thing wrong."""
    assert old in GOOD
    return GOOD.replace(old, new)


def of_yaml(name: str, yaml: str | bytes, *says: str, code: int = 2) -> Case:
    return Case(name=name, yaml=yaml, says=says, code=code)


def of_args(name: str, args: str | tuple[str, ...], *says: str, code: int = 2) -> Case:
    split = tuple(args.split()) if isinstance(args, str) else args
    return Case(name=name, args=split, says=says, code=code)


def with_flags(name: str, flags: str, *says: str, code: int = 2) -> Case:
    return Case(name=name, args=("simulate", *FLAGS, *flags.split()), says=says, code=code)


def traced(name: str, file: str, *says: str) -> Case:
    args = ("simulate", *FLAGS[:4], "--trace", file)
    return Case(name=name, args=args, says=says)


CASES = [
    # The file itself.
    of_yaml("broken YAML", "model: [llama\n", "experiment.yaml:2:"),
    of_yaml("tab in YAML", "plan:\n\ttp: 1\n", "experiment.yaml:2:"),
    of_yaml("duplicate key", GOOD + "model: llama-3-8b\n", "yaml:5:", "'model' comes twice"),
    of_yaml("duplicate nested key", changed("{tp: 1}", "{tp: 1, tp: 2}"), "yaml:3:", "'tp'"),
    of_yaml("empty file", "", "experiment.yaml", "an empty file"),
    of_yaml("only comments", "# nothing\n", "an empty file"),
    of_yaml("a list", "- model\n", "expected a mapping"),
    of_yaml("plain text", "llama\n", "expected a mapping"),
    of_yaml("two documents", GOOD + "---\n" + GOOD, "experiment.yaml"),
    of_yaml("a tag that runs code", "model: !!python/object/apply:os.getcwd []\n", "yaml:1:"),
    of_yaml("binary file", b"\xff\xfe\x00model", "UTF-8"),
    of_yaml("nested too deep", "model: " + "[" * 5000, "experiment.yaml"),
    of_yaml("unhashable key", "? [a, b]\n: 1\n", "experiment.yaml"),
    of_yaml("number as key", GOOD + "1: 2\n", "experiment.yaml"),
    of_args("missing file", "simulate absent.yaml", "absent.yaml", "No such file"),
    of_args("folder as file", "simulate .", "folder"),
    # Keys and values.
    of_yaml("unknown key", GOOD + "modle: x\n", "unknown key 'modle'; did you mean 'model'?"),
    of_yaml("unknown plan key", changed("tp: 1", "tpp: 1"), "plan.tpp", "did you mean 'tp'?"),
    of_yaml("unknown engine key", GOOD + "engine: {max_seqs: 4}\n", "'max_num_seqs'"),
    of_yaml("missing model", changed("model: llama-3.1-8b\n", ""), "model", "required", "--model"),
    of_yaml("null", changed("{tp: 1}", "{tp: }"), "plan.tp: expected an int (got nothing)"),
    of_yaml("bool as int", changed("tp: 1", "tp: true"), "plan.tp: expected an int (got true)"),
    of_yaml("text as int", changed("tp: 1", "tp: one"), "plan.tp", "(got 'one')"),
    of_yaml("float as int", changed("tp: 1", "tp: 1.5"), "plan.tp: expected an int (got 1.5)"),
    of_yaml("zero", changed("tp: 1", "tp: 0"), "plan.tp: expected an int >= 1 (got 0)"),
    of_yaml("negative", changed("tp: 1", "tp: -2"), "plan.tp", "(got -2)"),
    of_yaml("huge int", changed("tp: 1", f"tp: {10**40}"), "plan.tp", "<="),
    of_yaml("int of 5,000 digits", changed("tp: 1", "tp: " + "9" * 5000), "experiment.yaml"),
    of_yaml("plan is text", changed("{tp: 1}", "tp1"), "plan: expected a mapping"),
    of_yaml("int as text", changed("llama-3.1-8b", "8"), "model: expected text (got 8)"),
    of_yaml("text as bool", GOOD + "coalesce: maybe\n", "coalesce: expected true or false"),
    of_yaml("bare number for a time", GOOD + "slo: {ttft: 200}\n", "slo.ttft", "'200 ms'"),
    of_yaml("wrong unit", GOOD + "slo: {ttft: 200 MB}\n", "slo.ttft", "with a unit", "200 MB"),
    of_yaml("negative time", GOOD + "horizon: -5 s\n", "horizon", ">= 0"),
    of_yaml("infinite time", GOOD + "horizon: 1e999 s\n", "horizon", "finite"),
    of_yaml("NaN", GOOD + "engine: {gpu_memory_utilization: .nan}\n", "finite number"),
    of_yaml("share above one", GOOD + "engine: {gpu_memory_utilization: 1.5}\n", "<= 1.0"),
    of_yaml("attainment of zero", GOOD + "slo: {ttft: 1 s, attainment: 0}\n", "attainment"),
    of_yaml("negative seed", GOOD + "seed: -1\n", "seed: expected an int >= 0"),
    of_yaml("NaN in a policy", GOOD + "router: {kind: least_loaded, waiting_weight: .nan}", "nan"),
    of_yaml("host overhead", GOOD + "engine: {host_overhead: {iter_s: 1 ms}}\n", "iteration_s"),
    # Names.
    of_yaml("unknown model", changed("llama-3.1-8b", "lama-3.1-8b"), "model: unknown", "llama-3.1"),
    of_yaml("unknown GPU", changed("H100-SXM", "H1000"), "cluster", "unknown GPU"),
    of_yaml("zero GPUs", changed("1xH100", "0xH100"), "cluster"),
    of_yaml("negative GPUs", changed("1xH100", "-1xH100"), "cluster"),
    of_yaml("too many GPUs", changed("1xH100", f"{10**12}xH100"), "cluster"),
    of_yaml("no count", changed("1xH100-SXM", "H100-SXM"), "cluster", "8xH100-SXM"),
    of_yaml("unknown weight format", GOOD + "weight_format: fp9\n", "weight_format", "'fp8'"),
    of_yaml("unknown KV format", GOOD + "kv_format: fp9\n", "kv_format", "'fp8'"),
    of_yaml("unknown scheduler", GOOD + "scheduler: vllm\n", "scheduler.kind", "vllm_v1"),
    of_yaml("unknown router", GOOD + "router: {kind: robin}\n", "router.kind", "round_robin"),
    of_yaml("unknown workload", changed("synthetic", "syntetic"), "workload.kind", "'synthetic'"),
    of_yaml("no kind", changed("kind: synthetic, ", ""), "workload.kind", "(got nothing)"),
    of_yaml("kind is a number", GOOD + "scheduler: {kind: 3}\n", "scheduler.kind", "(got 3)"),
    of_yaml("module not there", GOOD + "router: 'no_such:Thing'\n", "cannot import", "PYTHONPATH"),
    of_yaml("class not there", GOOD + "router: 'math:Thing'\n", "cannot import"),
    of_yaml("not a dataclass", GOOD + "router: 'decimal:Decimal'\n", "frozen dataclass"),
    of_yaml("unknown policy key", GOOD + "scheduler: {kind: vllm_v1, polcy: x}\n", "'policy'"),
    of_yaml("wrong policy value", GOOD + "scheduler: {kind: vllm_v1, policy: lifo}\n", "'fcfs'"),
    of_yaml("policy of bools", GOOD + "scheduler: {kind: vllm_v1, chunked_prefill: 1}\n", "true"),
    # Workloads.
    of_yaml("negative rate", changed("num_prompts: 4", "request_rate: -1"), "request_rate", "-1"),
    of_yaml("zero prompts", changed("num_prompts: 4", "num_prompts: 0"), "workload.num_prompts"),
    of_yaml("far too many", changed("num_prompts: 4", "num_prompts: 1000000000000"), "num_prompts"),
    of_yaml("rate_scale of zero", changed("num_prompts: 4", "rate_scale: 0"), "rate_scale", "> 0"),
    of_yaml("window of nothing", changed("num_prompts: 4", "start: 9 h"), "no requests"),
    of_yaml("bare window", changed("num_prompts: 4", "start: 9"), "workload.start", "unit"),
    of_yaml("length of zero", changed("input_len: 64", "input_len: 0"), "yaml: workload.input_len"),
    traced("bad line", "bad_line.csv", "bad_line.csv:3", "input_tokens"),
    traced("empty trace", "empty.csv", "empty.csv", "empty"),
    traced("header only", "header.csv", "header.csv", "no requests"),
    traced("truncated gzip", "truncated.csv.gz", "truncated.csv.gz", "gzip"),
    traced("missing trace", "absent.csv", "absent.csv", "no such file"),
    traced("folder as trace", ".", "directory"),
    traced("unknown format", "words.txt", "words.txt", "unknown trace format"),
    traced("lengths without times", "lengths.csv", "lengths.csv", "arrival"),
    # Plans.
    with_flags("plan that does not divide", "--tp 3", "3", code=3),
    with_flags("more GPUs than the cluster", "--tp 8", "8", code=3),
    with_flags("experts that do not spread", "--ep 4", "ep=4", code=3),
    with_flags("model that does not fit", "--model llama-3.1-405b", "GB", code=3),
    with_flags("budget below sequences", "--max-num-batched-tokens 64 --max-num-seqs 128", "128"),
    with_flags("whole prompts in a small budget",
        "--max-num-batched-tokens 2048 --set scheduler.chunked_prefill=false", "chunked"),
    with_flags("context beyond the model", "--max-model-len 999999", "--max-model-len", "131072"),
    with_flags("no GPU memory", "--gpu-memory-utilization 0.01", "GB", code=3),
    # Flags.
    with_flags("flag of a wrong type", "--tp two", "--tp: expected an int (got 'two')"),
    with_flags("flag out of range", "--tp 0", "--tp: expected an int >= 1 (got 0)"),
    with_flags("huge flag", "--tp " + "9" * 30, "--tp"),
    with_flags("NaN flag", "--rate-scale nan", "--rate-scale"),
    with_flags("unknown flag", "--modell x", "--modell"),
    with_flags("SLO without a name", "--slo 1s", "--slo", "ttft=1s"),
    with_flags("unknown SLO", "--slo tbt=1s", "--slo", "tpot"),
    with_flags("SLO without a unit", "--slo ttft=1", "--slo ttft", "unit"),
    with_flags("SLO twice over", "--slo ttft=1s=2s", "--slo ttft"),
    with_flags("attainment as a word", "--slo attainment=all", "--slo attainment"),
    with_flags("bare horizon", "--horizon 5", "--horizon", "unit"),
    with_flags("set without a value", "--set seed", "--set", "KEY=VALUE"),
    with_flags("set of an unknown key", "--set engine.max_seqs=3", "--set engine.max_seqs"),
    with_flags("set below a value", "--set model.name=x", "model"),
    with_flags("unknown scheduler flag", "--scheduler vllm_v11", "--scheduler", "vllm_v1"),
    with_flags("trace and synthetic load", "--trace trace.csv", "--num-prompts", "synthetic"),
    with_flags("rate as a word", "--request-rate fast", "--request-rate", "fast"),
    with_flags("output is a folder", "--save-result folder.json", "folder.json"),
    with_flags("output inside a file", "--save-result trace.csv/result.json", "trace.csv"),
    with_flags("output of unknown kind", "--requests-out requests.xls", "requests.xls", ".csv"),
    with_flags("detail without a result", "--save-detailed", "--save-result"),
    with_flags("figures into a file", "--figures trace.csv", "--figures", "trace.csv"),
    of_args("nothing to simulate", "simulate", "model", "--model"),
    of_args("no workload", ("simulate", *FLAGS[:4]), "workload", "--trace"),
    of_args("no such command", "simulat", "simulat"),
    of_args("two files", "simulate a.yaml b.yaml", "b.yaml"),
    of_args("file and flag", "simulate traced.yaml --input-len 5", "--input-len", "synthetic"),
    of_args("explain nothing", ("explain", *FLAGS[:4]), "--prefill"),
    of_args("bad decode", ("explain", *FLAGS[:4], "--decode", "64"), "--decode", "64@1024"),
    of_args("bad prefill", ("explain", *FLAGS[:4], "--prefill", "0"), "--prefill"),
    of_args("huge iteration", ("explain", *FLAGS[:4], "--prefill", "99999999"), "8192"),
    # Searches.
    of_args("goodput without an SLO", ("search", *FLAGS, "--objective", "goodput"), "slo"),
    of_args("unknown objective", ("search", *FLAGS, "--objective", "speed"), "unknown objective"),
    of_args("degrees as words", ("search", *FLAGS, "--tp", "1,two"), "--tp", "1,2,4"),
    of_args("unknown format tried", ("search", *FLAGS, "--weight-format", "fp9"), "fp9"),
    of_args("simulate a search", "simulate search.yaml", "plan", "headway search"),
    of_args(
        "no feasible plan",
        ("search", "--model", "llama-3.1-405b", *FLAGS[2:], "--jobs", "1"),
        "no feasible plan",
        code=3,
    ),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with good and bad files."""
    monkeypatch.chdir(tmp_path)
    Path("trace.csv").write_text(TRACE)
    Path("bad_line.csv").write_text(TRACE.replace("200", "two hundred"))
    Path("empty.csv").write_text("")
    Path("header.csv").write_text(TRACE.split("\n")[0] + "\n")
    Path("truncated.csv.gz").write_bytes(gzip.compress(TRACE.encode() * 500)[:80])
    Path("words.txt").write_text("once upon a time\n")
    Path("lengths.csv").write_text("input_tokens,output_tokens\n100,10\n")
    Path("folder.json").mkdir()
    Path("traced.yaml").write_text(
        GOOD.replace("{kind: synthetic", "{file: trace.csv").split(", n")[0] + "}\n"
    )
    Path("search.yaml").write_text(changed("plan: {tp: 1}", "search: {tp: [1]}"))
    return tmp_path


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input_is_one_clear_line(
    case: Case, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if case.yaml is not None:
        raw = case.yaml.encode() if isinstance(case.yaml, str) else case.yaml
        Path("experiment.yaml").write_bytes(raw)
    before = files_of(folder)
    code = run(case.args or ("simulate", "experiment.yaml", "--save-result", "result.json"))
    out, err = capsys.readouterr()
    assert (code, err.count("\n")) == (case.code, 1), err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for part in case.says:
        assert part in err, err
    assert len(err) < 700, err
    assert out == "" or case.name == "no feasible plan"
    assert files_of(folder) == before


def test_the_good_file_is_good(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("experiment.yaml").write_text(GOOD)
    assert run(["simulate", "experiment.yaml", "--json"]) == 0
    assert capsys.readouterr().err == ""


def test_names_of_cases_are_distinct() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 30
