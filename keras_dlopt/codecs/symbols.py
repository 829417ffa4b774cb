"""The entropy coders. A new one is a file beside this one and a row here."""

from keras_dlopt.codecs.coder import SymbolCoder
from keras_dlopt.codecs.huffman import Huffman
from keras_dlopt.codecs.rans import Rans

# The position is the number in the file (docs/format.md): append only.
CODERS: tuple[SymbolCoder, ...] = (Huffman(), Rans())
FIRST = 1  # the coders of versions 1 and 2
