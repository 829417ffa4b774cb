"""The networks and methods of the coverage table; no Keras in here."""

CLASSES = 10
METHODS = ("prune", "cluster", "qat", "prune_qat")
# Name -> smallest side that the architecture takes.
APPLICATIONS = {
    "VGG16": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "Xception": 71,
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "DenseNet121": 32,
    "NASNetMobile": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "ConvNeXtTiny": 32,
}
SMALL = (
    "subclassed, nested",
    "LSTM",
    "Bidirectional GRU",
    "Conv1D",
    "Conv3D",
    "Embedding",
    "MultiHeadAttention",
    "LayerNormalization",
    "PReLU",
    "Multiply",
    "KerasHub ViT backbone",
)
