"""Texts that a deflated header may refer back to: each is part of the format.

Configs of common layers, so that a model's own description costs tens of bytes; after
them some without what is in those (`short.py`), for the headers of small files.
"""

import importlib.resources

_HERE = importlib.resources.files("keras_dlopt.storage")
DICTIONARY = _HERE.joinpath("dictionary.txt").read_bytes()
SHORT_DICTIONARY = DICTIONARY + _HERE.joinpath("short.txt").read_bytes()
