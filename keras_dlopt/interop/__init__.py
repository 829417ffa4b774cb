"""Coming from other tools: their names, their files."""

from keras_dlopt import moved

__all__ = ["load", "tfmot"]

__getattr__ = moved.names(__name__, modules=("tfmot",), homes={"load": "files"})


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
