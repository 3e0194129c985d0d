"""`foveate distill`: train a student of a model's attention, from a YAML file, flags, or both."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ..pipelines.distill.config import DistillConfig, read_config
from .models import load_model, quieten
from .options import console

__all__ = ["distill"]

_METAVARS = {bool: None, int: "N", float: "X", str: "TEXT"}


# the flags are made from the fields of DistillConfig, which gather in `given`
def distill(config: Path | None = None, **given: object) -> None:
    """Train a student of a model's attention, from a YAML file, flags, or both.

    The model draws the pictures to train on. A stopped run goes on where it was.

    On several GPUs or machines: accelerate launch -m foveate distill ...
    """
    asked = {name: value for name, value in given.items() if value is not None}
    options = read_config(config, asked)

    quieten()
    from accelerate import PartialState

    from ..pipelines.distill.train import distill as train

    # the student is in float32; its teacher need not be, where half precision is fast
    is_half = PartialState().device.type != "cpu" and options.mixed_precision != "no"
    half = {"bf16": "bfloat16", "fp16": "float16"}
    dtype = half[options.mixed_precision] if is_half else "float32"
    loaded = load_model(options.model, "cpu", dtype)
    folder = train(loaded.pipe, options, call=loaded.call, base_size=loaded.base_size)
    if not PartialState().is_main_process:
        return
    plotted = find_spec("matplotlib") is not None
    plot = f"losses {folder.parent / 'loss.png'}" if plotted else "no plot: matplotlib is missing"
    console().print(f"student {folder}, log {folder.parent / 'log.jsonl'}, {plot}")
    console().print(
        f'foveate.apply(pipe, foveate.load_student("{folder}")) puts it on the pipeline'
    )


def _flag(option: dataclasses.Field, kind: object) -> inspect.Parameter:
    """The flag of an option, under its name; None where it is not given."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    (wanted,) = (k for k in kinds if k is not type(None))
    text, default = option.metadata["help"], option.default
    if typing.get_origin(wanted) is tuple:
        wanted, text = list[str], f"{text} May be given several times."
    elif default is not None and default is not dataclasses.MISSING:
        text = f"{text} [dim]\\[default: {default}][/dim]"
    flag = typer.Option(
        help=text,
        metavar=_METAVARS.get(wanted, "TEXT"),
        rich_help_panel=option.metadata["panel"],
        show_default=False,
    )
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[wanted | None, flag],
    )


def _signature() -> inspect.Signature:
    file = typer.Option(help="YAML file of the options below.", metavar="FILE", show_default=False)
    first = inspect.Parameter(
        "config",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Path | None, file],
    )
    kinds = typing.get_type_hints(DistillConfig)
    flags = (_flag(option, kinds[option.name]) for option in dataclasses.fields(DistillConfig))
    return inspect.Signature([first, *flags])


distill.__signature__ = _signature()
distill.__annotations__ = {p.name: p.annotation for p in distill.__signature__.parameters.values()}
