"""Optimizers for `model.compile`: the classics made fast, and methods Keras lacks."""

from keras_dlopt.optimizers.adabelief import AdaBelief
from keras_dlopt.optimizers.adagrad import Adagrad
from keras_dlopt.optimizers.adam import Adam, AdamW
from keras_dlopt.optimizers.adam8bit import Adam8bit
from keras_dlopt.optimizers.adan import Adan
from keras_dlopt.optimizers.ademamix import AdEMAMix
from keras_dlopt.optimizers.adopt import ADOPT
from keras_dlopt.optimizers.base import Optimizer
from keras_dlopt.optimizers.gradient_descent import GradientDescent
from keras_dlopt.optimizers.lars import LARS
from keras_dlopt.optimizers.lbfgs import LBFGS
from keras_dlopt.optimizers.lookahead import Lookahead
from keras_dlopt.optimizers.mars import MARS
from keras_dlopt.optimizers.prodigy import Prodigy
from keras_dlopt.optimizers.radam import RAdam
from keras_dlopt.optimizers.rmsprop import RMSprop
from keras_dlopt.optimizers.sam import ASAM, SAM
from keras_dlopt.optimizers.schedule_free import ScheduleFree
from keras_dlopt.optimizers.sgd import SGD
from keras_dlopt.optimizers.soap import SOAP

__all__ = [
    "ADOPT",
    "ASAM",
    "LARS",
    "LBFGS",
    "MARS",
    "SAM",
    "SGD",
    "SOAP",
    "AdEMAMix",
    "AdaBelief",
    "Adagrad",
    "Adam",
    "Adam8bit",
    "AdamW",
    "Adan",
    "GradientDescent",
    "Lookahead",
    "Optimizer",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "ScheduleFree",
]
