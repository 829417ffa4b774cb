"""A model in one small file, and the account of its bytes."""

from keras_dlopt.storage.ledger import Ledger, TensorRow, ledger_of
from keras_dlopt.storage.opened import CompressedFile
from keras_dlopt.storage.saving import load_compressed, save_compressed

__all__ = [
    "CompressedFile",
    "Ledger",
    "TensorRow",
    "ledger_of",
    "load_compressed",
    "save_compressed",
]
