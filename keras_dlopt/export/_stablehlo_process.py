"""A process that turns StableHLO into a .tflite file: `_stablehlo_process.py FOLDER`.

It imports nothing else: the converter's libraries clash with TensorFlow's and JAX's.
"""

import json
import pathlib
import sys


def convert(folder: pathlib.Path) -> None:
    """Reads `twin.mlir` and `ends.json` in the folder, and writes `twin.tflite`."""
    from litert_converter import converter_api_ext as api
    from litert_converter.mlir import ir, passmanager

    names = json.loads((folder / "ends.json").read_text())
    context = ir.Context()
    api.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse((folder / "twin.mlir").read_text())
        api.set_signature(
            module.operation, "serving_default", names["inputs"], names["outputs"]
        )
        config = api.ConvertToTFLConfig()
        config.strict_qdq_mode = True  # a pair for each mark, and nothing derived
        api.run_convert_to_tfl_passes(module, passmanager.PassManager(), config)
        written = api.export_flatbuffer_to_bytes(module.operation)
    (folder / "twin.tflite").write_bytes(written)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules have names of packages
    convert(pathlib.Path(sys.argv[1]))
