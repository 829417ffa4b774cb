"""Clustering, low rank and sharing."""

import keras_dlopt as dlopt
from catalogue import Case

CASES = [
    Case("Cluster", "transform", lambda: dlopt.Cluster(4)),
    Case(
        "Cluster-later",
        "transform",
        lambda: dlopt.Cluster(4, begin=2, initial="kmeans++", seed=1),
    ),
    Case(
        "Cluster-reassigned",
        "transform",
        lambda: dlopt.Cluster(4, begin=2, reassign=2, gradient="mean"),
    ),
    Case(
        "Cluster-per-channel",
        "transform",
        lambda: dlopt.Cluster(4, per_channel=True, initial="density"),
    ),
    Case(
        "SoftWeightSharing",
        "transform",
        lambda: dlopt.SoftWeightSharing(4, strength=1e-4),
    ),
    Case("LowRank", "transform", lambda: dlopt.LowRank(2)),
    Case(
        "LowRank-tucker",
        "transform",
        lambda: dlopt.LowRank(ratio=0.5, method="tucker"),
    ),
    Case("HashedWeights", "transform", lambda: dlopt.HashedWeights(0.25)),
    Case("HashedKernel", "layer", lambda: dlopt.HashedKernel("Dense", 4, buckets=6)),
]
