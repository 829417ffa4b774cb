"""The doctor: what ails a model, and the calls that mend it."""

from keras_dlopt.report.health.doctor import doctor
from keras_dlopt.report.health.findings import Examination, Finding

__all__ = ["Examination", "Finding", "doctor"]
