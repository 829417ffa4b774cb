"""The main job, end to end: train, compress, save, reload, export, report."""

from keras_dlopt.demo.job import FILES, run
from keras_dlopt.demo.progress import Progress, Silent
from keras_dlopt.demo.result import Result
from keras_dlopt.demo.settings import Plan, Settings, plan

__all__ = ["FILES", "Plan", "Progress", "Result", "Settings", "Silent", "plan", "run"]
