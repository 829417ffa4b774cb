"""Online learning: a compiled model goes on learning from a stream."""

from keras_dlopt.online.anchors import EWC, SnapshotDistillation
from keras_dlopt.online.drift import ADWIN, DDM, Detector, PageHinkley
from keras_dlopt.online.fisher import fisher_diagonal
from keras_dlopt.online.learner import Learned, OnlineLearner
from keras_dlopt.online.memory import ClassBalanced, Memory, Reservoir
from keras_dlopt.online.prequential import Prequential
from keras_dlopt.online.reaction import OnDrift
from keras_dlopt.online.replay import Replay
from keras_dlopt.online.terms import DarkExperience, LearningTerm

__all__ = [
    "ADWIN",
    "DDM",
    "EWC",
    "ClassBalanced",
    "DarkExperience",
    "Detector",
    "Learned",
    "LearningTerm",
    "Memory",
    "OnDrift",
    "OnlineLearner",
    "PageHinkley",
    "Prequential",
    "Replay",
    "Reservoir",
    "SnapshotDistillation",
    "fisher_diagonal",
]
