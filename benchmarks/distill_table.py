"""Writes the tables of docs/distillation.md from what `distill_bars.py` measured.

python benchmarks/distill_table.py
"""

import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "distill_bars.json"
PAGE = ROOT / "docs" / "distillation.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
HEADS = {
    "hinton": "MNIST, perceptrons of Hinton 2015",
    "fashion": "Fashion-MNIST, LeNet-5 with a ResNet-20 as teacher",
}
NAMES = {
    "teacher": "teacher",
    "teacher_trained_on": "teacher, trained on",
    "alone": "student alone",
    "alone_moved": "student alone, moved images",
    "alone_plain": "student alone, images as they are",
    "distilled": "student with its teacher",
    "distilled_moved": "student with its teacher, moved images",
    "distilled_plain": "student with its teacher, images as they are",
    "narrowed": "student that starts as the strongest units of the teacher trained on",
}


BASES = {"distilled_plain": "alone_plain"}


def closed(kind, part):
    """How much of the gap from the student alone to the best teacher is closed."""
    means = part["test_error_percent"]
    alone = means.get(BASES.get(kind, "alone"), {}).get("mean")
    known = (found for name, found in part.items() if name.startswith("teacher"))
    teachers = [found["test_error"] for found in known]
    if alone is None or not teachers or kind.startswith("alone"):
        return ""
    teacher = min(teachers)
    return f"{100 * (alone - means[kind]['mean']) / (alone - teacher):.0f} %"


def rows(part):
    """Errors of teachers, then of each kind of student."""
    for name, found in part.items():
        if name.startswith("teacher"):
            yield NAMES[name], "1", found["test_error"], "", "", ""
    for kind, found in part["test_error_percent"].items():
        values = (found[name] for name in ("seeds", "mean", "spread", "worst"))
        yield NAMES[kind], *values, closed(kind, part)


def table(part):
    lines = [
        "| network | seeds | test errors, % | spread | worst | gap closed |",
        "|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows(part)]
    return "\n".join(lines)


def settings(part):
    """How it was trained, in a line."""
    found = part["settings"]
    return ", ".join(f"{name.replace('_', ' ')} {v:g}" for name, v in found.items())


def parts(known):
    for name, head in HEADS.items():
        if name in known:
            yield f"{head} ({settings(known[name])}):"
            yield table(known[name])
    if "cached" in known:
        ratio = known["cached"]["ratio"]
        yield (
            "An epoch of LeNet-5, processor time as a multiple of the student alone: "
            f"{ratio['cached']} with the outputs of a ResNet-20 in the data, "
            f"{ratio['in_step']} with the ResNet-20 in the step."
        )


def main():
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    made = [BEGIN, *parts(json.loads(RESULTS.read_text())), END]
    PAGE.write_text(before + "\n\n".join(made) + after)


if __name__ == "__main__":
    main()
