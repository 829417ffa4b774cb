"""The entropy coders. A new one is a file beside this one and a row here."""

import numpy as np

from keras_dlopt.codecs.coder import SymbolCoder
from keras_dlopt.codecs.entropy import entropy_bits
from keras_dlopt.codecs.huffman import Huffman
from keras_dlopt.codecs.rans import Rans

# The position is the number in the file (docs/format.md): append only.
CODERS: tuple[SymbolCoder, ...] = (Huffman(), Rans())
FIRST = 1  # the coders of versions 1 and 2
ENOUGH = 1.0005  # of the entropy: no other coder need be tried


def cheapest(counts: np.ndarray) -> tuple[int, int]:
    """Number of the coder for symbols that occur so often, and its bits."""
    bound = entropy_bits(counts)
    best = 0, 1 << 62
    for number in reversed(range(len(CODERS))):
        bits = CODERS[number].cost(counts)
        best = min(best, (number, bits), key=lambda offer: offer[1])
        if best[1] <= ENOUGH * bound + 64:
            break
    return best
