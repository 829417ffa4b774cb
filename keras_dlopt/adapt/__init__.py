"""A trained model on another task: heads, unfreezing, rates, LoRA, what moved."""

from keras_dlopt.adapt.head import new_head
from keras_dlopt.adapt.labels import Labels, check_labels
from keras_dlopt.adapt.lora import enable_lora, lora_recipe, merge_lora
from keras_dlopt.adapt.moved import Move, Moves, moved
from keras_dlopt.adapt.normalization import adapt_statistics
from keras_dlopt.adapt.rates import layer_rates
from keras_dlopt.adapt.unfreezing import GradualUnfreezing, top_down
from keras_dlopt.transforms import L2SP, Frozen, LowRankDelta

__all__ = [
    "L2SP",
    "Frozen",
    "GradualUnfreezing",
    "Labels",
    "LowRankDelta",
    "Move",
    "Moves",
    "adapt_statistics",
    "check_labels",
    "enable_lora",
    "layer_rates",
    "lora_recipe",
    "merge_lora",
    "moved",
    "new_head",
    "top_down",
]
