"""Errors of prices, drawn: what `--uncertainty` scales each op's price by.

A curve's errors are those of points it never saw (`calibration.errors`): a row is one shape family
(a weight matrix, an expert layer), a column an octave of tokens or payload. Residuals of a GEMM
hardly agree between octaves of one family, those of experts do; whole rows keep either. A draw
gives each shape of a model a row at random, the same wherever that shape is used, so an error
that all plans share moves them together and errors of shapes that only one plan has do not. Errors
at the token counts of one octave do not average out: CUDA graphs run one or two sizes of it.
Attention is priced by one affine form a head configuration, and all-reduce was measured for three
sizes of group only: they have no axis, a row is one point, and holds at every size.

On top, all measured ops of a GPU share the error of its card and session. An op no table covers
errs like the roofline did on a GPU with tables, taken at random: two of the four set its shares.
Host time, memory and traffic are not drawn: nobody measured how wrong they are.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from simulator.costs.fitted import EMBEDDED, fitted_folder
from simulator.costs.form_base import Array
from simulator.costs.tables import CostTables
from simulator.errors import ConfigError
from simulator.spec import EngineSettings, GpuSpec, PriceDraw
from simulator.work import AttentionWork, Collective, ExpertGemm, Gemm, Op, Tokens

ERRORS = "errors.json"
FORMAT = 1
UNIT = "0.01 % of log(measured / priced)"
# Ops whose roofline was held against no measurement, and the op whose errors stand for theirs.
STANDS_FOR = {
    "collective": "all_reduce",
    "mla_decode_block": "decode_attention",
    "mla_prefill_block": "prefill_attention",
}
AXES = {"gemm": "num_tokens", "moe": "num_tokens"}  # columns of a profile; other ops have one
# The same bf16 GEMMs timed by two other engines (trtllm, sglang) against vllm on one kind of GPU,
# median log ratio over 8,800 to 35,742 shapes (aiconfigurator 0.12): A100 0.2, 3.6; H100 2.2, 4.2;
# H200 1.6, 3.4; B200 1.4, 2.5 %. Their rms, as a standard deviation.
SESSION = 0.027


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Profile:
    """Errors of one op as log(measured / priced): a row a shape family."""

    first_octave: int  # of the first column: sizes from 2**first_octave on
    rows: Array  # [families, octaves]

    def at(self, row: int, sizes: Array) -> Array:
        """Errors of one family at each size."""
        octave = np.floor(np.log2(np.maximum(sizes, 1.0))).astype(np.int64) - self.first_octave
        found: Array = self.rows[row, np.clip(octave, 0, self.rows.shape[1] - 1)]
        return found

    def to_json(self) -> dict[str, object]:
        """Whole numbers of `UNIT`."""
        return {
            "first_octave": self.first_octave,
            "rows": np.rint(1e4 * self.rows).astype(int).tolist(),
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ErrorTables:
    """Errors of the curves of one GPU, and of the roofline on its measurements, by op."""

    path: Path
    ops: Mapping[str, Profile]  # "gemm bf16"
    roofline: Mapping[str, Profile]  # "gemm"

    def profile(self, op: str, label: str) -> Profile:
        """Errors of a curve.

        Raises:
            ConfigError: the file is of other curves.
        """
        name = f"{op} {label}".strip()
        if name not in self.ops:
            raise ConfigError(f"{self.path}: ops: {name}: missing; errors of other curves?")
        return self.ops[name]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PriceError:
    """One draw of the errors of one GPU's prices."""

    draw: PriceDraw
    gpu: str
    session: float  # log, common to all measured ops
    tables: ErrorTables | None  # of the curves; None = the roofline prices everything
    roofline: Mapping[str, Profile]

    def op_factor(self, op: Op, tokens: Tokens, tables: CostTables | None) -> Tokens:
        """What to multiply the price of an op by; `tables` where they priced it."""
        name, fmt, sizes = "gemm", "", tokens
        family: tuple[object, ...]
        if isinstance(op, Gemm):
            family, fmt = (op.out_size, op.in_size), op.format
        elif isinstance(op, ExpertGemm):  # both GEMMs of a layer were measured as one
            name, fmt = "moe", op.format
            family = (op.num_experts, op.local_experts, op.experts_per_token, *op.layer_sizes)
        elif isinstance(op, Collective):
            name, fmt = ("all_reduce", "graph")
            if op.kind != "all_reduce":
                name, fmt = "collective", op.kind
            sizes = op.bytes_per_token * tokens
            family = (op.kind, op.num_gpus, op.local_gpus)
        else:  # no table has a pass over memory
            family, tables = (op.name, op.bytes_per_token), None
        return self.factor((name, fmt), family, sizes, tables)

    def attention_factor(self, name: str, work: AttentionWork, tables: CostTables | None) -> float:
        """Of `decode_attention` or `prefill_attention`, as one number a head configuration."""
        family = (work.kv_format, work.num_q_heads, work.num_kv_heads, work.prefill_flops_per_pair)
        if work.mla:
            name = {"decode_attention": "mla_decode_block"}.get(name, "mla_prefill_block")
        return float(self.factor((name, ""), family, np.ones(1), tables)[0])

    def factor(
        self,
        op: tuple[str, str],
        family: tuple[object, ...],
        sizes: Array,
        tables: CostTables | None,
    ) -> Array:
        """exp(error) of an (op, format) and shape family at each size."""
        name, fmt = op
        label = fmt
        profile, shared = self.roofline[STANDS_FOR.get(name, name)], 0.0
        curve = tables.curve(name, fmt) if tables else None
        if curve is not None and self.tables is not None:
            label, shared = curve.label, self.session
            profile = self.tables.profile(name, label)
        row = _rng(self.draw, self.gpu, name, label, *family).integers(len(profile.rows))
        factors: Array = np.exp(shared + profile.at(int(row), sizes))
        return factors


def price_error(gpu: GpuSpec, settings: EngineSettings) -> PriceError | None:
    """The errors of one draw; None where the settings ask for none: prices as they are.

    Raises:
        ConfigError: a calibration folder without errors, or a file that is not one.
    """
    draw = settings.draw
    if draw is None:
        return None
    folder = fitted_folder(gpu, settings)
    tables = None if folder is None else read_errors(folder / ERRORS)
    measured = [read_errors(path) for path in sorted(EMBEDDED.glob(f"*/{ERRORS}"))]
    if not measured:
        raise ConfigError(f"{EMBEDDED}: no {ERRORS}: errors of the roofline are not known")
    roofline: dict[str, Profile] = {}
    for place in _rng(draw, gpu.name, "roofline").permutation(len(measured)):
        # The others stand in where one GPU has no measurement of an op.
        roofline = {**measured[int(place)].roofline, **roofline}
    return PriceError(
        draw=draw,
        gpu=gpu.name,
        session=SESSION * float(_rng(draw, gpu.name, "session").standard_normal()),
        tables=tables,
        roofline=roofline,
    )


def _rng(draw: PriceDraw, *key: object) -> np.random.Generator:
    """A stream of its own for each thing drawn: plans that share it see the same error."""
    text = " ".join(map(str, key))
    return np.random.default_rng([draw.seed, draw.number, zlib.crc32(text.encode())])


def read_errors(path: Path) -> ErrorTables:
    """errors.json of a folder of curves.

    Raises:
        ConfigError: it does not exist, or is not such a file.
    """
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        raise ConfigError(
            f"{path}: does not exist; `headway calibrate errors {path.parent}` writes it"
        ) from None
    return _read(path, changed)


@lru_cache(maxsize=64)
def _read(path: Path, changed: int) -> ErrorTables:
    try:
        data = json.loads(path.read_bytes())
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}")
        ops, roofline = (
            {str(name): _profile(entry) for name, entry in data[key].items()}
            for key in ("ops", "roofline")
        )
    except (OSError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(
            f"{path}: not errors of prices ({type(error).__name__}: {error})"
        ) from None
    return ErrorTables(path=path, ops=ops, roofline=roofline)


def _profile(entry: Mapping[str, Any]) -> Profile:
    rows = np.array(entry["rows"], dtype=np.float64) / 1e4
    if rows.ndim != 2 or not rows.size or not np.isfinite(rows).all():
        raise ValueError("rows: expected a table of numbers")
    return Profile(first_octave=int(entry["first_octave"]), rows=rows)
