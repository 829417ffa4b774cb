"""Coming from other tools: their names, their files."""

from keras_dlopt import moved

__all__ = ["tfmot"]

__getattr__ = moved.names(__name__, modules=__all__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
