"""The command line: options in, one call into `simulator.commands`, an exit code out.

No logic lives here and nothing heavy is imported before a command runs. Exit codes: 0, 1 (a bug
in Headway), 2 (input that cannot be used), 3 (no plan can run), 130 (Ctrl-C).
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from simulator.commands import flags
from simulator.commands.flags import Flag
from simulator.errors import ConfigError, InfeasiblePlan, OutsideCalibration

BUG, BAD_INPUT, INFEASIBLE, INTERRUPTED, BROKEN_PIPE = 1, 2, 3, 130, 141
DEBUG = "HEADWAY_DEBUG"  # set to see the traceback of a bug

METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", bool: None}

app = typer.Typer(
    name="headway",
    help="A discrete-event simulator of LLM serving.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def simulate(experiment: str | None, **values: Any) -> None:
    """Simulate one experiment: a YAML file, flags, or a file with flags laid over it."""
    from simulator.commands.simulate import run

    run(experiment, values)


def search(experiment: str | None, **values: Any) -> int:
    """Find the best plan for a workload on a cluster."""
    from simulator.commands.search import run

    return run(experiment, values)


def compare(experiments: list[str] | None, **values: Any) -> int:
    """Run experiments side by side on equal requests: paired differences and their intervals."""
    from simulator.commands.compare import run

    return run(experiments or [], values)


def serve(experiment: str | None, **values: Any) -> None:
    """Serve an emulated model over HTTP, as OpenAI's API: tokens come when simulated ones would."""
    from simulator.commands.serve import run

    run(experiment, values)


def explain(experiment: str | None, **values: Any) -> None:
    """Show where the time of one iteration goes, op by op."""
    from simulator.commands.explain import run

    run(experiment, values)


def calibrate(action: str, target: str, paths: list[str] | None, **values: Any) -> None:
    """Cost tables from measured kernels, and engine profiles from benchmarks of your own."""
    from simulator.commands.calibrate import run

    run(action, target, paths, values)


def validate(runs: list[str], **values: Any) -> None:
    """Simulate measured runs of real servers and compare: errors by load, model, GPU and engine."""
    from simulator.commands.validate import run

    run(runs, values)


def reproduce(name: str | None, **values: Any) -> int:
    """Measure what published systems claim, and say whether it holds here."""
    from simulator.commands.reproduce import run

    return run(name, values)


def report(results: list[str], **values: Any) -> None:
    """Write results as one HTML page that opens offline: plans, why, frontier, latencies."""
    from simulator.commands.report import run

    run(results, values)


def models(*, json: bool) -> None:
    """List the bundled models."""
    from simulator.commands.catalogue import models

    models(json)


def hardware(*, json: bool) -> None:
    """List the bundled GPUs."""
    from simulator.commands.catalogue import hardware

    hardware(json)


def workloads(*, json: bool) -> None:
    """List the bundled workloads, with the statistics they follow."""
    from simulator.commands.catalogue import workloads

    workloads(json)


def schema() -> None:
    """Print the JSON Schema of an experiment file, for editors."""
    from simulator.commands.catalogue import schema

    schema()


def _option(flag: Flag) -> inspect.Parameter:
    """A flag as a parameter typer understands; not given = None, or False for a switch."""
    is_switch = flag.kind is bool
    # Numbers stay text here, so that a wrong one gets the same message as in a file.
    kind: Any = list[str] | None if flag.many else bool if is_switch else str | None
    names = [flag.name, flag.short] if flag.short else [flag.name]
    option = typer.Option(
        *names,
        help=flag.help,
        rich_help_panel=flag.panel,
        metavar=flag.metavar or METAVARS[flag.kind],
        show_default=False,
    )
    return inspect.Parameter(
        flag.parameter,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if is_switch else None,
        annotation=Annotated[kind, option],
    )


EXPERIMENT = inspect.Parameter(
    "experiment",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None,
        typer.Argument(metavar="[EXPERIMENT.yaml]", help="Experiment file.", show_default=False),
    ],
)


SYSTEM = inspect.Parameter(
    "name",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None,
        typer.Argument(metavar="[SYSTEM]", help="One system; none: list them.", show_default=False),
    ],
)


def _argument(name: str, metavar: str, help_text: str) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[str, typer.Argument(metavar=metavar, help=help_text)],
    )


CALIBRATION = (
    _argument("action", "import|fit|errors|report|transfer|from-bench", "What to do."),
    _argument(
        "target",
        "SOURCE|FOLDER|GPU|RESULT",
        "import: aiconfigurator, vidur, apex or vllm-forward; from-bench: a result of "
        "`vllm bench serve`, SGLang's bench_serving, guidellm or aiperf, or a runs.csv; else a "
        "folder, or a GPU.",
    ),
    inspect.Parameter(
        "paths",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            list[str] | None,
            typer.Argument(
                metavar="[PATH]...",
                help="import: file or folder; from-bench: further results.",
                show_default=False,
            ),
        ],
    ),
)


RUNS = (
    inspect.Parameter(
        "runs",
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[
            list[str],
            typer.Argument(
                metavar="RUNS.csv|RESULT...",
                help="Measured runs, one a row; or results of `vllm bench serve`, SGLang's "
                "bench_serving, guidellm or aiperf.",
            ),
        ],
    ),
)


RESULTS = (
    inspect.Parameter(
        "results",
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[
            list[str],
            typer.Argument(
                metavar="RESULT...", help="JSON of search, simulate, validate or --save-result."
            ),
        ],
    ),
)


COMPARED = (
    inspect.Parameter(
        "experiments",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            list[str] | None,
            typer.Argument(
                metavar="[EXPERIMENT.yaml|RESULT.json]...",
                help="Experiments, or results of vllm bench serve; the first is the baseline.",
                show_default=False,
            ),
        ],
    ),
)


def _add(
    command: Callable[..., int | None],
    options: Sequence[Flag],
    *examples: str,
    arguments: Sequence[inspect.Parameter] = (EXPERIMENT,),
) -> None:
    """Register a command with its arguments and the options of its table."""

    def guarded(**values: Any) -> None:
        raise typer.Exit(exit_code(lambda: command(**values)))

    parameters = [_option(flag) for flag in options]
    guarded.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*arguments, *parameters]
    )
    app.command(
        name=command.__name__,
        help=command.__doc__,
        epilog="\n\n".join(f"[bold]Example:[/bold] {example}" for example in examples),
    )(guarded)


_add(
    simulate,
    flags.SIMULATE,
    "headway simulate experiments/quickstart.yaml --uncertainty",
    "headway simulate --model llama-3.1-8b --cluster 1xH100-SXM --trace chat-1k --tp 1 --json",
)
_add(
    search,
    flags.SEARCH,
    "headway search experiments/plan_search.yaml",
    "headway search --model llama-3.1-70b --cluster 8xH100-SXM --trace chat-1k "
    "--objective goodput --slo ttft=1s --slo tpot=50ms",
)
_add(
    compare,
    flags.COMPARE,
    "headway compare experiments/quickstart.yaml --vary scheduler=vllm_v0 --vary scheduler=static",
    "headway compare experiments/prefix_cache.yaml --vary router=round_robin --seeds 8 --json",
    arguments=COMPARED,
)
_add(
    serve,
    flags.SERVE,
    "headway serve experiments/quickstart.yaml --port 8000",
    'curl localhost:8000/v1/completions -d \'{"prompt": "Hello", "max_tokens": 8}\'',
)
_add(
    explain,
    flags.EXPLAIN,
    "headway explain --model llama-3.1-70b --cluster 8xH100-SXM --tp 8 --prefill 2048 "
    "--decode 64@1024",
)
_add(
    calibrate,
    flags.CALIBRATE,
    "headway calibrate import aiconfigurator --system h200_sxm --engine vllm --out h200 --json",
    "headway calibrate import vidur profiling/compute/h100 --gpu H100-SXM --out h100",
    "headway calibrate fit h200",
    "headway calibrate errors h200",
    "headway calibrate report h200",
    "headway calibrate transfer H200-SXM --to H100-SXM --points few/gemm.csv --out h100",
    arguments=CALIBRATION,
)
_add(
    validate,
    flags.VALIDATE,
    "headway validate runs.csv",
    "headway validate runs.csv --where 'gpu.str.startswith(\"H100\") and tp == 1' --json",
    "headway validate runs.csv --explain RUN_ID",
    "headway validate result.json --gpu H100-SXM --engine-version 0.15.1",
    "headway validate result.json --against experiment.yaml",
    arguments=RUNS,
)
_add(
    reproduce,
    flags.REPRODUCE,
    "headway reproduce",
    "headway reproduce orca --quick",
    "headway reproduce --all --json",
    arguments=(SYSTEM,),
)
_add(
    report,
    flags.REPORT,
    "headway search experiments/plan_search.yaml --json > search.json",
    "headway report search.json -o report.html",
    arguments=RESULTS,
)
_add(models, (flags.JSON,), "headway models --json", arguments=())
_add(hardware, (flags.JSON,), "headway hardware --json", arguments=())
_add(workloads, (flags.JSON,), "headway workloads --json", arguments=())
_add(schema, (), "headway schema > experiment.schema.json", arguments=())


def exit_code(command: Callable[[], int | None]) -> int:
    """Run a command; every error becomes one line on stderr and an exit code."""
    try:
        code = command() or 0
        sys.stdout.flush()
        return code
    except (ConfigError, OutsideCalibration) as error:
        return _fail(error, BAD_INPUT)
    except InfeasiblePlan as error:
        return _fail(error, INFEASIBLE)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except MemoryError:
        return _fail("this machine has not enough memory for the experiment", BAD_INPUT)
    except OSError as error:
        return _fail(f"{error.filename or 'stdout'}: {error.strerror or error}", BAD_INPUT)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        name = type(error).__name__
        return _fail(f"bug in Headway: {name}: {error} ({DEBUG}=1 shows where)", BUG)


def _fail(message: object, code: int) -> int:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return code


def _with_draws(arguments: Sequence[str]) -> list[str]:
    """The words typed, with the number of draws after an --uncertainty that stands alone."""
    words = []
    for place, word in enumerate(arguments):
        following = "".join(arguments[place + 1 : place + 2])
        words.append(word)
        if word == "--uncertainty" and not re.fullmatch(r"[-+]?[\d.,]+", following):
            words.append(str(flags.DRAWS))
    return words


def run(arguments: Sequence[str]) -> int:
    """The exit code of a command line."""
    try:
        words = _with_draws(arguments) or ["--help"]
        code = app(args=words, prog_name="headway", standalone_mode=False)
    except typer.TyperException as error:  # a usage error
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "headway"
        return _fail(f"{error.format_message().rstrip('.')} ({command} --help)", BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED)
    return int(code or 0)


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
