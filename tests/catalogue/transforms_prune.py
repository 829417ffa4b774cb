"""Pruning: scores, patterns, distributions, schedules, learned sparsity."""

import keras_dlopt as dlopt
from catalogue import Case
from keras_dlopt import prune
from keras_dlopt.schedules import (
    LotterySparsity,
    OneShotSparsity,
    PolynomialSparsity,
    RegrowSparsity,
)

# Every update falls on an even step, so that two steps an execution see the same.
POLYNOMIAL = PolynomialSparsity(0.5, begin=2, end=6, frequency=2)


def _prune(name, *args, **kwargs):
    return Case(f"Prune-{name}", "transform", lambda: dlopt.Prune(*args, **kwargs))


CASES = [
    _prune("taylor-global", 0.5, score=prune.Taylor(), distribution=prune.Global()),
    _prune(
        "hessian-columns", 0.5, score=prune.HessianDiagonal(), pattern=prune.Columns()
    ),
    _prune("movement", POLYNOMIAL, score=prune.Movement()),
    _prune("random-erk", 0.5, score=prune.Random(1), distribution=prune.ERK()),
    _prune("lamp", POLYNOMIAL, score=prune.Lamp(), distribution=prune.Global(0.9)),
    _prune("n-of-m", pattern=prune.NofM(1, 2)),
    _prune("blocks", 0.5, pattern=prune.Blocks((2, 1), pooling="max")),
    _prune("filters", 0.5, pattern=prune.Filters()),
    _prune(
        "sensitivity",
        OneShotSparsity(0.4, at=2),
        distribution=prune.BySensitivity({"kernel": 0.5}),
    ),
    _prune("rigl", RegrowSparsity(0.5, end=6, frequency=2), distribution=prune.ERK()),
    _prune("lottery", LotterySparsity(0.75, rounds=2, every=2, begin=2)),
    _prune("regrow", POLYNOMIAL, regrow=True),
    Case("OneShotSparsity", "schedule", lambda: OneShotSparsity(0.05, at=2)),
    Case("RegrowSparsity", "schedule", lambda: RegrowSparsity(0.05, end=4)),
    Case(
        "LotterySparsity",
        "schedule",
        lambda: LotterySparsity(0.1, rounds=2, every=2, begin=1),
    ),
    Case(
        "VariationalDropout",
        "transform",
        lambda: dlopt.VariationalDropout(100, warm_up=4, frequency=2),
        random=True,
    ),
    Case(
        "MinimalRandomCode",
        "transform",
        lambda: dlopt.MinimalRandomCode(50, end=6, frequency=2, bits=6),
        random=True,
    ),
    Case("RateAware", "transform", lambda: dlopt.RateAware(50, end=6, frequency=2)),
    Case(
        "L0", "transform", lambda: dlopt.L0(1e-3, pattern=prune.Filters()), random=True
    ),
]
