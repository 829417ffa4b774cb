"""What TFMOT on tf_keras computes in its guides, for the tests to compare.

    TF_USE_LEGACY_KERAS=1 python benchmarks/tfmot_guides.py [file.npz]

Writes `tests/golden/tfmot/guides.npz`: the flows of `tests/support/guide_flows.py`, run
with tf_keras and TFMOT where the test runs them with Keras 3 and this package.
"""

import os
import pathlib
import sys

os.environ["TF_USE_LEGACY_KERAS"] = "1"
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "support"))

import guide_flows
import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from tensorflow_model_optimization.python.core.clustering.keras.experimental import (
    cluster,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "tests" / "golden" / "tfmot"

if __name__ == "__main__":
    out = sys.argv[1] if len(sys.argv) > 1 else GOLDEN / "guides.npz"
    found = guide_flows.every(keras, tfmot, cluster_with_zeros=cluster.cluster_weights)
    np.savez_compressed(out, **found)
    for name, value in found.items():
        print(f"{name}: {value.shape} {value.dtype}")
