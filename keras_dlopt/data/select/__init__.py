"""Less data at the same accuracy: which examples of a training set to keep.

Every choice returns indices in ascending order, so `x[chosen], y[chosen]` keeps the
order of the data. Scores are one number an example; higher ones are harder.
"""

from keras_dlopt.data.select.covering import k_center, near_duplicates
from keras_dlopt.data.select.history import ExampleHistory
from keras_dlopt.data.select.outputs import features, margins, scores_el2n
from keras_dlopt.data.select.ranked import balanced, hardest, moderate, stratified

__all__ = [
    "ExampleHistory",
    "balanced",
    "features",
    "hardest",
    "k_center",
    "margins",
    "moderate",
    "near_duplicates",
    "scores_el2n",
    "stratified",
]
