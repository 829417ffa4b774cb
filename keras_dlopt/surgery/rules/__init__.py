"""One rule for each kind of layer, and the tables of them."""

from keras_dlopt.surgery.rules.table import NORMALIZED_RULES, RULES

__all__ = ["NORMALIZED_RULES", "RULES"]
