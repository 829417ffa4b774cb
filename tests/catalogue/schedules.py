"""Schedules, each short enough to reach its end within a contract's few steps."""

from catalogue import Case
from keras_dlopt import schedules

CASES = [
    Case("Constant", "schedule", lambda: schedules.Constant(0.05)),
    Case("Scaled", "schedule", lambda: schedules.Scaled(0.1, factor=0.5)),
    Case("Warmup", "schedule", lambda: schedules.Warmup(0.1, steps=3)),
    Case("OneCycle", "schedule", lambda: schedules.OneCycle(0.1, steps=7)),
    Case(
        "WarmupStableDecay",
        "schedule",
        lambda: schedules.WarmupStableDecay(0.1, steps=7, warmup=0.3, decay=0.3),
    ),
    Case(
        "PowerCooldown",
        "schedule",
        lambda: schedules.PowerCooldown(0.1, steps=7, knee=2, cooldown=0.3),
    ),
    Case(
        "Cyclical",
        "schedule",
        lambda: schedules.Cyclical(0.01, 0.1, half_cycle=2, mode="exp_range"),
    ),
    Case("CosineRestarts", "schedule", lambda: schedules.CosineRestarts(0.1, first=2)),
    Case(
        "Join",
        "schedule",
        lambda: schedules.Join([0.1, schedules.OneCycle(0.1, steps=4)], boundaries=[2]),
    ),
    Case(
        "ConstantSparsity",
        "schedule",
        lambda: schedules.ConstantSparsity(0.05, begin=2),
    ),
    Case(
        "PolynomialSparsity",
        "schedule",
        lambda: schedules.PolynomialSparsity(0.1, end=5),
    ),
]
