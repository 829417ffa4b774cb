"""What compressing changed: measured, kept as data, rendered."""

from keras_dlopt.measure.latency import Latency, latency
from keras_dlopt.report.comparison import Comparison, compare, plain
from keras_dlopt.report.delivery import Delivery
from keras_dlopt.report.document import Document, Figure
from keras_dlopt.report.figures import pareto_figure
from keras_dlopt.report.flips import Flip
from keras_dlopt.report.fresh import check_equal, predict_elsewhere
from keras_dlopt.report.health import Examination, Finding, doctor
from keras_dlopt.report.html import to_html, write_html
from keras_dlopt.report.measuring import (
    Measured,
    Measurements,
    limit_threads,
    load,
    measure,
)
from keras_dlopt.report.pages import (
    bytes_figure,
    histogram_figure,
    variants_table,
)
from keras_dlopt.report.quality import (
    Changes,
    Quality,
    Reliability,
    changes,
    quality,
)
from keras_dlopt.report.robustness import Corrupted
from keras_dlopt.report.saliency import Saliency
from keras_dlopt.report.tasks import TASKS
from keras_dlopt.report.training import (
    Progress,
    Recorder,
    Recording,
    Silent,
    training_figure,
)
from keras_dlopt.report.variants import Variant, variant, versions
from keras_dlopt.report.weights import WeightHistogram, histograms, sparsity
from keras_dlopt.tables import Table, rich_table, to_markdown, to_text

__all__ = [
    "TASKS",
    "Changes",
    "Comparison",
    "Corrupted",
    "Delivery",
    "Document",
    "Examination",
    "Figure",
    "Finding",
    "Flip",
    "Latency",
    "Measured",
    "Measurements",
    "Progress",
    "Quality",
    "Recorder",
    "Recording",
    "Reliability",
    "Saliency",
    "Silent",
    "Table",
    "Variant",
    "WeightHistogram",
    "bytes_figure",
    "changes",
    "check_equal",
    "compare",
    "doctor",
    "histogram_figure",
    "histograms",
    "latency",
    "limit_threads",
    "load",
    "measure",
    "pareto_figure",
    "plain",
    "predict_elsewhere",
    "quality",
    "rich_table",
    "sparsity",
    "to_html",
    "to_markdown",
    "to_text",
    "training_figure",
    "variant",
    "variants_table",
    "versions",
    "write_html",
]
