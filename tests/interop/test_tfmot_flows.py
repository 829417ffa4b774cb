"""TFMOT's guides from end to end, against what TFMOT computes on tf_keras.

`support/guide_flows.py` is run here with Keras 3 and `keras_dlopt.interop.tfmot`, and
was run by `benchmarks/tfmot_guides.py` with tf_keras 2.21 and TFMOT 0.8.1.
"""

import pathlib

import keras
import numpy as np
import pytest

import keras_dlopt as dlopt
from keras_dlopt.interop import tfmot
from support import guide_flows

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tfmot" / "guides.npz"
# The activations' grids are from -6 to 6 at first and narrow slowly.
STEP = 12 / 255


@pytest.fixture(scope="module")
def ours():
    cluster = tfmot.clustering.keras.experimental.cluster_weights
    return guide_flows.every(keras, tfmot, cluster_with_zeros=cluster)


@pytest.fixture(scope="module")
def theirs():
    return dict(np.load(GOLDEN))


def test_both_ran_the_same_flows(ours, theirs):
    assert {n: v.shape for n, v in ours.items()} == {
        n: v.shape for n, v in theirs.items()
    }


@pytest.mark.parametrize("flow", ["pruning", "clustering", "sparse clustering"])
def test_weights_losses_and_outputs_are_those_of_tfmot(ours, theirs, flow):
    names = [n for n in theirs if n.startswith(f"{flow}/")]
    assert len(names) == 5
    for name in names:
        # Twelve steps in float32; sums of a cluster's gradients in another order.
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-6, err_msg=name)
    if "sparse" in flow or flow == "pruning":
        for name in names[2:]:
            np.testing.assert_array_equal(ours[name] == 0, theirs[name] == 0)
    if "clustering" in flow:
        for name in names[2:]:
            assert np.unique(ours[name]).size == np.unique(theirs[name]).size


@pytest.mark.parametrize("flow", ["quantization", "PQAT"])
def test_quantized_trainings_are_those_of_tfmot(ours, theirs, flow):
    losses, outputs = f"{flow}/losses", f"{flow}/outputs"
    np.testing.assert_allclose(ours[losses], theirs[losses], atol=2e-6)
    apart = np.abs(ours[outputs] - theirs[outputs])
    # TFMOT predicts with the kernels' ranges from before the last update.
    assert apart.max() < STEP
    assert (apart > 1e-5).mean() < 0.3


@pytest.mark.parametrize("flow", ["CQAT", "PCQAT"])
def test_shared_values_train_as_those_of_tfmot(ours, theirs, flow):
    """Sixteen steps; what TFMOT predicts is from before the last one."""
    losses = f"{flow}/losses"
    np.testing.assert_allclose(ours[losses], theirs[losses], rtol=0, atol=1e-6)


def test_the_flow_of_the_docs_ends_in_a_file(tmp_path):
    """quantize_model, fit, export: the trained codes and ranges, as in the docs."""
    model, _ = guide_flows.quantized(keras, tfmot)
    x, _ = guide_flows.data()
    report = dlopt.export.litert(model, tmp_path / "model.tflite", data=x)
    assert report.quantized
    assert report.verified
    assert report.codes == 36 + 128 + 24
    assert report.agreement.largest_lsb <= 1
    names = {p for s, t in model.recipe.entries for p in getattr(s, "paths", ())}
    assert "conv/output" in names  # before the pooling, as TFMOT has it
