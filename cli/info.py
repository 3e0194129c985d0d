"""`foveate info`: what is installed, what runs here and is right, and why the rest does not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from .models import devices, quieten
from .options import console

if TYPE_CHECKING:
    from ..pipelines.bench.probe import Probe

__all__ = ["info"]

_MISSING = "weights missing"


def info(
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object instead of tables.")
    ] = False,
) -> None:
    """Show versions and devices, and try every operator by every implementation.

    Each is called once on a few random tokens and compared with its reference
    in float64. Exit status 1 where one that should run fails or is wrong.
    """
    import torch

    quieten()
    from ..pipelines.bench.machine import hardware, versions
    from ..pipelines.bench.probe import WRONG, probe

    present, threads = devices(), torch.get_num_threads()
    probes = [one for device in present for one in probe(device)]
    models = _models()
    faults = [f"{p.operator} ({p.impl}) on {p.device}" for p in probes if p.state == WRONG]
    faults += [f"{name}: {_MISSING}" for name, what in models.items() if what == _MISSING]
    about = {
        "versions": versions(),
        "devices": {device: hardware(device, threads) for device in present},
        "probes": [asdict(one) for one in probes],
        "tiles": _tiles(present[0]),
        "processors": _processors(),
        "models": models,
        "faults": faults,
    }
    if as_json:
        console().print(json.dumps(about, indent=1))
    else:
        _show(about, probes)
    if faults:
        raise typer.Exit(1)


def _show(about: Mapping[str, Mapping], probes: Sequence[Probe]) -> None:
    out = console()
    out.print(_two_columns(("package", "version"), about["versions"]))
    named = {device: _words(fields) for device, fields in about["devices"].items()}
    out.print(_two_columns(("device", "what it is"), named))
    out.print(f"tiles of the Triton kernels: {about['tiles']}")
    for device in named:
        here = [one for one in probes if one.device == device]
        out.print(_probe_table(device, here))
        for line in _reasons(here):
            out.print(f"  {line}")
    out.print(_two_columns(("processor", "what a query sees"), about["processors"]))
    out.print(
        _two_columns(("embedded model", "base size, captions that read back"), about["models"])
    )
    faults = about["faults"]
    out.print(f"wrong: {'; '.join(faults)}" if faults else "everything that should run here does")


def _two_columns(header: tuple[str, str], rows: Mapping[str, str]) -> Table:
    table = Table(*header, box=box.SIMPLE_HEAD)
    for row in rows.items():
        table.add_row(*row)
    return table


def _words(fields: Mapping[str, object]) -> str:
    return ", ".join(str(v) if k == "device" else f"{k} {v}" for k, v in fields.items())


def _probe_table(device: str, probes: Sequence[Probe]) -> Table:
    """A row for each operator, a column for each implementation: its error, or its state."""
    impls = list(dict.fromkeys(one.impl for one in probes))
    table = Table(f"tried on {device}", box=box.SIMPLE_HEAD)
    for impl in impls:
        table.add_column(impl, justify="right")
    cells = {(one.operator, one.impl): _cell(one) for one in probes}
    for operator in dict.fromkeys(one.operator for one in probes):
        table.add_row(operator, *(cells.get((operator, impl), "") for impl in impls))
    return table


def _cell(one: Probe) -> str:
    return one.state if one.error is None or one.reason else f"ok {one.error:.0e}"


def _reasons(probes: Sequence[Probe]) -> list[str]:
    """One line for each reason, with all that it holds for."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for one in probes:
        if one.reason:
            names = found.setdefault((one.impl, one.state, one.reason), [])
            names.append(one.operator.removesuffix("_attention"))
    return [
        f"{impl}: {state}: {reason} ({', '.join(names)})"
        for (impl, state, reason), names in found.items()
    ]


def _tiles(device: str) -> str:
    """Which tiles the kernels take on a device."""
    import torch

    from ..kernels.inputs import HAS_TRITON

    if not HAS_TRITON:
        return "none: Triton is not installed"
    from ..kernels.triton.device import target, why_not_device
    from ..kernels.triton.tuned import summary

    where = torch.device(device)  # without an index: the current one
    reason = why_not_device(where)
    return f"none are used: {reason}" if reason else summary(target(where))


def _processors() -> dict[str, str]:
    """Name -> the first sentence of what it says of itself."""
    from .. import attn_processors

    names = [name for name in attn_processors.__all__ if name.endswith("AttnProcessor")]
    docs = {name: getattr(attn_processors, name).__doc__ for name in names}
    return {name: " ".join(doc.partition("\n\n")[0].split()) for name, doc in docs.items()}


def _models() -> dict[str, str]:
    """Name -> base size and the means of the model card."""
    from ..pipelines.shapes.load import ALL_MODELS, weights_folder

    return {
        f"shapes-{short}": _card(weights_folder(short), model.base_size)
        for short, model in ALL_MODELS.items()
    }


def _card(folder: Path, base_size: int) -> str:
    """The means of a model card, one line."""
    card = folder / "card.json"
    if not card.is_file():
        return _MISSING
    figures = json.loads(card.read_text())["figures"]
    is_of_pictures = "BIND 1" in figures
    shown = ("BIND 1", "BIND 2", "BIND 3", "REL 2") if is_of_pictures else ("BIND", "DIRECTION")
    means = [f"{key} {figures[key]['mean']:.0%}" for key in shown if key in figures]
    return ", ".join([f"{base_size} px", *means])
