"""Turns the study's files into the tables of its page and the plot beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...page import markdown_table, put_on_page
from ..metrics import paired_bootstrap
from .methods import slug

__all__ = ["paired", "read_files", "write_report"]

COLOURS = {
    "local": "tab:red",
    "local, equal cost": "tab:orange",
    "pooled, no mass": "tab:gray",
    "foveated": "tab:blue",
}


def write_report(folder: Path, page: Path) -> None:
    """Put the tables between the markers of `page` and the plot `errors.png` into `folder`."""
    fidelity, pictures = read_files(folder, "fidelity"), read_files(folder, "pictures")
    tables = [_fidelity_table(fidelity), _picture_table(pictures)]
    put_on_page(page, "study", "\n\n".join(tables))
    _plot(fidelity, folder / "errors.png")


def read_files(folder: Path, kind: str) -> dict[tuple[str, ...], dict]:
    """{(model, side, ...): content} of the files `kind-model-side[-method].json`."""
    paths = sorted(folder.glob(f"{kind}-*.json"))
    return {tuple(path.stem.split("-", 3)[1:]): json.loads(path.read_text()) for path in paths}


def _fidelity_table(fidelity: dict) -> str:
    """Error of the attention output, mean over layers, steps and prompts, and the worst call."""
    rows = []
    for (model, side), content in sorted(fidelity.items(), key=_by_size):
        for method in COLOURS:
            errors = np.array([layer[method] for layer in content["errors"].values()])
            layer = max(content["errors"], key=lambda n: np.mean(content["errors"][n][method]))
            rows.append(
                [f"shapes-{model}", side, method, f"{errors.mean():.3f}", f"{errors.max():.3f}"]
                + [f"`{layer}`"]
            )
    header = ["model", "px", "method", "mean error", "worst call", "worst layer"]
    return markdown_table(header, rows)


def _picture_table(pictures: dict) -> str:
    rows = []
    for (model, side, name), content in sorted(pictures.items(), key=_by_size):
        values = content["rows"]
        bind = np.mean([row["bind"] for row in values])
        cells = [f"shapes-{model}", side, content["method"], f"{bind:.1%}"]
        if name == "dense":
            rows.append([*cells, "", ""])
            continue
        dense = pictures[model, side, "dense"]["rows"]
        decibels = np.median([row["psnr"] for row in values])
        rows.append([*cells, paired(values, dense, "bind"), f"{decibels:.1f}"])
    header = ["model", "px", "method", "BIND", "BIND - dense [95 %]", "PSNR to dense, dB (median)"]
    return markdown_table(header, rows)


def paired(rows: Sequence[dict], dense: Sequence[dict], metric: str) -> str:
    """Mean change of a metric from `dense`, same captions and seeds, with its 95 % interval."""
    change = paired_bootstrap([row[metric] for row in rows], [row[metric] for row in dense])
    return f"{change.mean:+.1%} [{change.low:+.1%}, {change.high:+.1%}]"


def _by_size(item: tuple[tuple[str, ...], dict]) -> tuple:
    model, side, *method = item[0]
    order = ["dense", *map(slug, COLOURS)]
    return model != "sd", int(side), order.index(method[0]) if method else 0


def _plot(fidelity: dict, path: Path) -> None:
    """Error by step, mean over layers, one panel a model and size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    items = sorted(fidelity.items(), key=_by_size)
    models = list(dict.fromkeys(model for (model, _), _ in items))
    sides = list(dict.fromkeys(side for (_, side), _ in items))
    figure, panels = plt.subplots(
        len(models),
        len(sides),
        figsize=(4 * len(sides), 3 * len(models)),
        squeeze=False,
        sharey=True,
    )
    for (model, side), content in items:
        panel = panels[models.index(model)][sides.index(side)]
        for method, colour in COLOURS.items():
            calls = np.array([layer[method] for layer in content["errors"].values()]).mean(0)
            by_step = calls.reshape(content["prompts"], content["steps"], -1).mean((0, 2))
            panel.plot(range(1, content["steps"] + 1), by_step, color=colour, label=method)
        panel.set(title=f"shapes-{model}, {side} px", xlabel="step")
    panels[0][0].set_ylim(bottom=0)  # shared, so only once every curve is there
    panels[0][0].legend(fontsize=8)
    for row in panels:
        row[0].set_ylabel("relative error to dense")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
