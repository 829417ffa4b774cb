"""Quantizers of weights and activations."""

import keras_dlopt as dlopt
from catalogue import Case
from keras_dlopt import transforms as t
from keras_dlopt.transforms import quantize as q


def _case(name, make, **kwargs):
    return Case(name, "transform", make, **kwargs)


# What begins or freezes does so at step 2, an even one: with two steps per execution
# updates run after every other step.
CASES = [
    _case(
        "FakeQuant-asymmetric",
        lambda: dlopt.FakeQuant(bits=3, symmetric=False, clip_gradient=0.5),
    ),
    _case("FakeQuant-groups", lambda: dlopt.FakeQuant(bits=4, group_size=2)),
    _case(
        "FakeQuant-mse", lambda: dlopt.FakeQuant(bits=3, observer="mse", frequency=2)
    ),
    _case(
        "FakeQuant-moving",
        lambda: dlopt.FakeQuant(
            bits=4, observer=t.MovingAverage(0.5), begin=2, freeze=4
        ),
    ),
    _case(
        "FakeQuant-stochastic",
        lambda: dlopt.FakeQuant(bits=4, stochastic=True),
        random=True,
    ),
    _case("LSQ", lambda: t.LSQ(bits=3, per_channel=True)),
    _case("Binary", lambda: t.Binary()),
    _case("Ternary", lambda: t.Ternary()),
    _case("TrainedTernary", lambda: t.TrainedTernary()),
    _case("PowerOfTwo", lambda: t.PowerOfTwo(bits=4)),
    _case("MinMaxInteger", lambda: t.MinMaxInteger(bits=4)),
    _case(
        "SoftRounding",
        lambda: t.SoftRounding(dlopt.FakeQuant(bits=3), steps=4, strength=1e-3),
    ),
    _case("IntegerCodes", lambda: t.IntegerCodes(dlopt.FakeQuant(bits=4))),
    _case(
        "FakeQuantActivation-phases",
        lambda: dlopt.FakeQuantActivation(bits=4, symmetric=True, begin=2, freeze=4),
    ),
    _case(
        "FakeQuantActivation-min-max",
        lambda: dlopt.FakeQuantActivation(observer="min_max"),
    ),
    _case(
        "FakeQuantActivation-percentile",
        lambda: dlopt.FakeQuantActivation(observer=t.Percentile(99.0)),
    ),
    _case(
        "FakeQuantActivation-mse",
        lambda: dlopt.FakeQuantActivation(bits=4, observer="mse"),
    ),
    _case(
        "FakeQuantActivation-peak-hold",
        lambda: dlopt.FakeQuantActivation(bits=4, observer="peak_hold", momentum=0.5),
    ),
    _case("LSQActivation", lambda: t.LSQActivation(bits=3, begin=2)),
    _case("LSQPlusActivation", lambda: t.LSQPlusActivation(bits=3, begin=2)),
    _case("PACT", lambda: t.PACT(bits=4, initial=2.0, decay=1e-3)),
    # Combined by hand.
    _case("Quantizer", lambda: t.Quantizer()),
    _case(
        "Quantizer-learned-from-mse",
        lambda: t.Quantizer(
            q.IntegerGrid(3),
            gradient=q.LearnedStep(offset=True, clip_gradient=0.5),
            start=q.FromRange(),
            observer="mse",
            begin=2,
        ),
    ),
    _case(
        "Quantizer-clipped",
        lambda: t.Quantizer(
            q.IntegerGrid(4), gradient=q.LearnedLevel(decay=1e-3), group_size=2
        ),
    ),
    _case(
        "Quantizer-powers-frozen",
        lambda: t.Quantizer(
            q.PowerOfTwoGrid(4), observer=q.PeakHold(0.5), begin=2, freeze=4
        ),
    ),
    _case(
        "Quantizer-three-levels-a-channel",
        lambda: t.Quantizer(q.TernaryGrid(0.5), gradient=q.LearnedLevels()),
    ),
    _case("ActivationQuantizer", lambda: t.ActivationQuantizer(begin=2, freeze=4)),
    _case(
        "ActivationQuantizer-powers",
        lambda: t.ActivationQuantizer(
            q.PowerOfTwoGrid(4),
            gradient=q.StraightThrough(clip_gradient=0.5),
            start=q.GivenRange(0.0, 2.0),
            observer="mse",
        ),
    ),
    _case(
        "ActivationQuantizer-clipped",
        lambda: t.ActivationQuantizer(
            q.IntegerGrid(4),
            gradient=q.LearnedLevel(decay=1e-3),
            observer=q.Percentile(99.0),
            begin=2,
        ),
    ),
]
