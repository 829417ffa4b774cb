"""What other libraries call an argument, and what it is called here."""

import difflib
import inspect
from typing import Any, Self

from keras_dlopt.errors import UnknownArgumentError

_SCHEDULE = "sparsity=PolynomialSparsity(0.8, begin=0, end=1_000)"
# The first of them that a class has is proposed. What is behind `=` is an example.
WORDS: dict[str, tuple[str, ...]] = {
    # TFMOT
    "initial_sparsity": ("initial", _SCHEDULE),
    "final_sparsity": ("sparsity",),
    "target_sparsity": ("sparsity",),
    "pruning_schedule": ("sparsity",),
    "begin_step": ("begin", _SCHEDULE),
    "end_step": ("end", _SCHEDULE),
    "block_size": ("pattern=Blocks((1, 4))",),
    "block_pooling_type": ("pattern=Blocks((1, 4), pooling='max')",),
    "sparsity_m_by_n": ("pattern=NofM(2, 4)",),
    "number_of_clusters": ("clusters",),
    "cluster_centroids_init": ("initial",),
    "preserve_sparsity": ("preserve_zeros",),
    "cluster_per_channel": ("per_channel",),
    "cluster_gradient_aggregation": ("gradient",),
    "num_bits": ("bits",),
    "per_axis": ("per_channel",),
    "quant_delay": ("begin",),
    "ema_decay": ("momentum",),
    # Schedules for sparsity, given to what takes one
    "begin": (_SCHEDULE,),
    "end": (_SCHEDULE,),
    "frequency": (_SCHEDULE,),
    # PyTorch, scikit-learn, QKeras
    "amount": ("sparsity",),
    "n_clusters": ("clusters",),
    "n_bits": ("bits",),
    "lr": ("learning_rate",),
    "betas": ("beta_1",),
    "beta1": ("beta_1",),
    "beta2": ("beta_2",),
    "eps": ("epsilon",),
    "wd": ("weight_decay",),
    "clip_norm": ("clipnorm",),
    "clip_value": ("clipvalue",),
    "max_lr": ("max_rate", "high", "peak"),
    "base_lr": ("low",),
    "total_steps": ("steps",),
    "step_size": ("half_cycle",),
    "lora_alpha": ("alpha",),
    "r": ("rank",),
    # Keras
    "min_lr": ("min_rate", "low"),
    "initial_learning_rate": ("start", "peak", "rate"),
    "decay_steps": ("steps",),
    "warmup_steps": ("warmup", "steps"),
    "warmup_target": ("peak",),
    "first_decay_steps": ("first",),
    "t_mul": ("growth",),
    "m_mul": ("decay",),
    "num_heads": ("heads",),
    "mlp_dim": ("hidden",),
    "survival_probability": ("survival",),
    "drop_rate": ("survival",),
    "init_values": ("init",),
    "se_ratio": ("squeeze",),
}


def arguments_of(cls: type) -> tuple[list[str], bool]:
    """The names that a constructor takes, and whether it hands on any other."""
    names: dict[str, None] = {}
    for parent in cls.__mro__:
        if "__init__" in vars(parent):
            found = list(
                inspect.signature(vars(parent)["__init__"]).parameters.values()
            )
            names |= {p.name: None for p in found[1:] if p.kind not in _VARIABLE}
            if all(p.kind is not p.VAR_KEYWORD for p in found):
                return list(names), False
    return list(names), True


_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def meant(word: str, names: list[str]) -> str:
    """The argument of these names, maybe with an example, that a word means, or ""."""
    for own in WORDS.get(word, ()):
        if own.partition("=")[0] in names:
            return own
    return next(iter(difflib.get_close_matches(word, names, n=1, cutoff=0.75)), "")


class Worded:
    """A mix-in whose constructor answers an unknown keyword with what is meant."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuses keywords that the constructor does not take.

        Raises:
            UnknownArgumentError: with the argument that is meant.
        """
        if kwargs:
            names, is_open = arguments_of(cls)
            for word in [one for one in kwargs if one not in names]:
                own = meant(word, names)
                # What a parent of Keras takes or refuses is left to it.
                if own or not is_open:
                    hint = f" Did you mean {own}?" if own else ""
                    raise UnknownArgumentError(
                        f"{cls.__name__} has no argument {word!r}.{hint} It has: "
                        f"{', '.join(names) or 'none'}."
                    )
        new = super().__new__
        made: Self = new(cls) if new is object.__new__ else new(cls, *args, **kwargs)
        return made
