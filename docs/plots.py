"""Draws the pictures of the pages that are made from `benchmarks/results/*.json`.

python docs/plots.py
"""

import collections
import pathlib
import statistics
from typing import Any

import matplotlib
from tables import result

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DOCS = pathlib.Path(__file__).parent
COLORS = {"lenet_300_100": "tab:blue", "lenet5": "tab:orange"}
NAMES = {"lenet_300_100": "LeNet-300-100", "lenet5": "LeNet-5"}


def records() -> Any:
    """Bytes against error of the rows of `records.py` on MNIST, and what was asked."""
    settings: dict[tuple[Any, ...], list[Any]] = collections.defaultdict(list)
    bars = collections.defaultdict(set)
    for row in result("records"):
        network = row.get("network", row["row"])
        if "fashion" in row["row"]:
            continue
        copies = row.get("copies", 1) > 1
        epochs = row["epochs"][1] if "epochs" in row else row["then"]
        key = (network, copies, row["judged on"], row["goal"], epochs, row.get("moves"))
        settings[key].append(row)
        bars[network].add(tuple(row["bar"]))
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    shown = set()
    for (network, copies, judged, *_), rows in settings.items():
        label = f"{NAMES[network]}{', moved copies' if copies else ''}, {judged}"
        axes.scatter(
            statistics.fmean(row["bytes"] for row in rows),
            statistics.fmean(row["error"] for row in rows),
            s=14 + 10 * len(rows),
            marker="s" if copies else "o",
            facecolor=COLORS[network] if judged == "test" else "none",
            edgecolor=COLORS[network],
            label=None if label in shown else label,
        )
        shown.add(label)
    for network, asked in bars.items():
        x, y = zip(*sorted(asked), strict=True)
        axes.scatter(x, y, marker="x", color=COLORS[network], s=60)
        axes.scatter([], [], marker="x", color=COLORS[network], label="asked for")
    axes.set_xlabel("file, bytes")
    axes.set_ylabel("error, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    records().savefig(DOCS / "records.png", dpi=110)
