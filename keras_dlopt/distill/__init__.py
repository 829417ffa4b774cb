"""Knowledge distillation in `fit`: a student learns from one teacher or several."""

from keras_dlopt.distill.cache import taught, teacher_outputs
from keras_dlopt.distill.distilling import distill
from keras_dlopt.distill.features import (
    AttentionTransfer,
    FeatureDistillation,
    RelationalDistillation,
)
from keras_dlopt.distill.logits import (
    DIST,
    DecoupledDistillation,
    LogitsDistillation,
    OutputDistillation,
)
from keras_dlopt.distill.model import DistilledModel
from keras_dlopt.distill.teachers import MeanTeacher
from keras_dlopt.distill.term import Term

__all__ = [
    "DIST",
    "AttentionTransfer",
    "DecoupledDistillation",
    "DistilledModel",
    "FeatureDistillation",
    "LogitsDistillation",
    "MeanTeacher",
    "OutputDistillation",
    "RelationalDistillation",
    "Term",
    "distill",
    "taught",
    "teacher_outputs",
]
