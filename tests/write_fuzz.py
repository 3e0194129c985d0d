"""Runs many random combinations and writes what came of them into docs/compatibility.md.

`make fuzz`; `ARGS='--seeds 1000 1500'` takes others. Exits with 1 where one ends badly; its seed is
printed, and `tests/test_fuzz.py` can run it alone.
"""

import argparse
import collections
import os
import sys
import traceback
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import tqdm

import conformance
import fuzz
from foveate.pipelines.page import markdown_table, put_on_page

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
FAILED = "**ended badly**"
ENDS = (fuzz.RIGHT, fuzz.DENSE, "clear error", fuzz.STOCK, FAILED)


def outcome(seed):
    try:
        return fuzz.run(fuzz.combination(seed))
    except Exception:
        tqdm.tqdm.write(f"{seed}: {fuzz.combination(seed)}\n{traceback.format_exc()}")
        return FAILED


def report(seeds, results):
    """Both tables: ends by operator, and the errors."""
    counts = collections.Counter()
    for seed, end in results.items():
        counts[fuzz.combination(seed).operator, end if end in ENDS else "clear error"] += 1
    rows = [
        [f"`{name}AttnProcessor`", *(str(counts[name, end]) for end in ENDS)]
        for name in fuzz.OPTIONS
    ]
    total = ["all", *(str(sum(counts[name, end] for name in fuzz.OPTIONS)) for end in ENDS)]
    errors = collections.Counter(end for end in results.values() if end not in ENDS)
    told = [[str(n), text.replace("|", "\\|")] for text, n in errors.most_common()]
    return "\n\n".join(
        (
            f"Seeds {seeds[0]} to {seeds[-1]}, {len(results)} combinations.",
            markdown_table(["operator", *ENDS], [*rows, total]),
            "The errors, names of layers and numbers left out:",
            markdown_table(["times", "error"], told),
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 500), metavar=("FROM", "TO"))
    seeds = range(*parser.parse_args().seeds)
    warnings.simplefilter("ignore")
    conformance.quiet()
    results = {seed: outcome(seed) for seed in tqdm.tqdm(seeds)}
    put_on_page(PAGE, "fuzz", report(seeds, results))
    return FAILED in results.values()


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
