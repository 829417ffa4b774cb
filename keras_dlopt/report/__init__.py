"""What compressing changed: measured, kept as data, rendered."""

from keras_dlopt.measure.latency import Latency, latency
from keras_dlopt.report.comparison import Comparison, Variant, compare
from keras_dlopt.report.document import Document, Figure, Table
from keras_dlopt.report.html import to_html, write_html
from keras_dlopt.report.quality import Changes, Quality, changes, quality
from keras_dlopt.report.terminal import rich_table
from keras_dlopt.report.weights import WeightHistogram, sparsity

__all__ = [
    "Changes",
    "Comparison",
    "Document",
    "Figure",
    "Latency",
    "Quality",
    "Table",
    "Variant",
    "WeightHistogram",
    "changes",
    "compare",
    "latency",
    "quality",
    "rich_table",
    "sparsity",
    "to_html",
    "write_html",
]
