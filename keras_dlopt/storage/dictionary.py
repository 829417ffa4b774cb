"""Text that the deflated header of version 1 may refer back to.

Configs of common layers, so that a model's own description costs tens of bytes. It is
part of the format: it never changes within version 1.
"""

import importlib.resources

DICTIONARY = (
    importlib.resources.files("keras_dlopt.storage")
    .joinpath("dictionary.txt")
    .read_bytes()
)
