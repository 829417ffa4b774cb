"""A process on JAX that exports a model as StableHLO: `_trace_process FOLDER`."""

import pathlib
import sys

from keras_dlopt.export.stablehlo import from_folder

if __name__ == "__main__":
    from_folder(pathlib.Path(sys.argv[1]))
