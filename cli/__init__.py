"""The command line: `foveate demo`, `generate`, `maps`, `distill`, `bench`, `tune`, `info`, ...

The only place that prints. What is heavy loads inside the commands, so that --help comes at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from .bench import bench
from .calibrate import calibrate
from .demo import demo
from .distill import distill
from .generate import generate
from .info import info
from .maps import maps
from .options import console
from .tune import tune

__all__ = ["app", "main"]

app = typer.Typer(
    help="Attention that is sharp where it matters, for stock diffusers pipelines.",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (demo, generate, maps, calibrate, distill, bench, tune, info):
    app.command()(command)


def _say_version(asked: bool) -> None:
    if asked:
        console().print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what the user got wrong is one line on stderr and exit status 2."""
    # read when torch loads: on a busy CPU, threads that spin while they wait take ten times as long
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(arguments, prog_name="foveate")
    except (ValueError, NotImplementedError, OSError) as error:
        line = " ".join(str(error).split())
        console(stderr=True).print(f"foveate: {line}")
        sys.exit(2)
