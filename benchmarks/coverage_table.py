"""Writes the tables of docs/coverage.md from the results of the coverage benchmarks.

python benchmarks/coverage_table.py
"""

import json
import pathlib

from coverage_names import APPLICATIONS, METHODS, SMALL

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "coverage.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
HEADS = ("prune", "cluster 16", "QAT int8", "prune >> QAT")


def rows_of(name):
    path = RESULTS / name
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return {(row["network"], row["method"]): row for row in rows}


def cell(row, *, ours):
    """What a table says of one attempt."""
    if row is None:
        return "not run"
    if row["result"] != "ok":
        return "fails" if ours else f"no ({row['result'].split(':')[0]})"
    placement = row.get("placement", "")
    if placement.startswith(("simulated", "every output")):
        return "yes, simulated"
    return "yes"


def table(networks, ours, theirs):
    lines = [
        "| network | " + " | ".join(f"{h}, ours | TFMOT" for h in HEADS) + " |",
        "|---" * (1 + 2 * len(HEADS)) + "|",
    ]
    for name in networks:
        cells = []
        for method in METHODS:
            cells.append(cell(ours.get((name, method)), ours=True))
            cells.append(cell(theirs.get((name, method)), ours=False))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def removed(networks):
    """How much of each network leaves with 30 % of its channels."""
    rows = rows_of("coverage_pruning.json")
    lines = [
        "| network | groups of channels that may leave | parameters | MACs |",
        "|---|---|---|---|",
    ]
    for name in networks:
        row = rows.get((name, "prune_channels"))
        if row is None or row["result"] != "ok":
            why = "not run" if row is None else f"no ({row['result'].split(':')[0]})"
            lines.append(f"| {name} | {why} | | |")
            continue
        parts = [f"{a:,} -> {b:,}" for a, b in (row["parameters"], row["macs"])]
        free = f"{row['free']:,} of {row['groups']:,}"
        lines.append(f"| {name} | {free} | {' | '.join(parts)} |")
    return "\n".join(lines)


def kinds(found):
    """The operators of an island list, with their counts."""
    counted = (f"{count} {name}" for name, count in sorted(found.items()))
    return ", ".join(counted) or "none"


def files():
    """The table of int8 files, from what `coverage_int8.py` measured."""
    path = RESULTS / "coverage_int8.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    found = {row["network"]: row for row in rows}
    lines = [
        "| network | bytes, ours | converter's | in float, ours | converter's "
        "| off the float model, ours | converter's "
        "| same largest, ours | converter's |",
        "|---" * 9 + "|",
    ]
    for name in [*SMALL, *APPLICATIONS]:
        if name not in found:
            lines.append(f"| {name} | not run" + " |" * 8)
            continue
        pairs = [file_cells(found[name][who]) for who in ("ours", "converter")]
        cells = [cell for pair in zip(*pairs, strict=True) for cell in pair]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def file_cells(made):
    """Size, islands, and nearness of one file."""
    if "error" in made:
        return [f"fails: {made['error'].split(':')[0]}", "", "", ""]
    return [
        f"{made['bytes']:,}",
        kinds(made["islands"]),
        f"{made['off']:.3f}",
        f"{100 * made['top1']:.0f} %",
    ]


def main():
    ours, theirs = rows_of("coverage.json"), rows_of("tfmot_coverage.json")
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    parts = [
        BEGIN,
        "### Layers and kinds of models",
        table(SMALL, ours, theirs),
        "### keras.applications",
        table(APPLICATIONS, ours, theirs),
        "### Channels removed",
        "What is left where every layer loses 30 % of its channels (`surgery.opened`, "
        "then `prune_channels(..., normalized=True)`): each network trained on, was "
        "saved, loaded, and predicted the same to the last bit. Groups that stay are "
        "inputs and outputs. KerasHub's ViT has a layer that cannot be built from its "
        "own config. `python benchmarks/coverage_pruning.py`.",
        removed([*SMALL, *APPLICATIONS]),
        "### Int8 files",
        files(),
        END,
    ]
    PAGE.write_text(before + "\n\n".join(parts) + after)


if __name__ == "__main__":
    main()
