"""Codecs: `encode`, `decode`, `config`, in NumPy, without Keras.

Each loads when its name is first used: a model that trains needs the hints alone.
"""

from typing import Any

from keras_dlopt import moved
from keras_dlopt.errors import ConfigError

_HOME = {
    "Codebook": "hints",
    "Deflate": "deflate",
    "Gaps": "gaps",
    "Grid": "hints",
    "Hint": "hints",
    "Huffman": "huffman",
    "Rans": "rans",
    "Tensor": "tensor",
    "find_grid": "lattice",
}
_CODECS = {
    name.lower(): name for name in ("Deflate", "Gaps", "Huffman", "Rans", "Tensor")
}

__all__ = ["get", *_HOME]

__getattr__ = moved.names(__name__, homes=_HOME)


def get(config: dict[str, Any]) -> Any:
    """The codec that `config()` described.

    >>> get({"codec": "huffman", "limit": 12})
    Huffman(limit=12)
    """
    options = dict(config)
    name = options.pop("codec", None)
    if name not in _CODECS:
        raise ConfigError(
            f"codec must be one of {sorted(_CODECS)}. Received: {name!r}. Pass what "
            "the config() of a codec returned."
        )
    return __getattr__(_CODECS[name])(**options)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
