"""Runs one LiteRT interpreter over a part of an array; started by `interpreters`."""

import sys

import numpy as np


def main(path, inputs, output, low, high, batch_size):
    """Writes the outputs of examples `low` to `high` to the file `output`."""
    from ai_edge_litert.interpreter import Interpreter

    data = np.load(inputs, mmap_mode="r")[int(low) : int(high)]
    interpreter = Interpreter(path, num_threads=1)
    counts = len(interpreter.get_input_details()), len(interpreter.get_output_details())
    if counts != (1, 1):
        raise ValueError(
            f"the file has {counts[0]} inputs and {counts[1]} outputs; predict_litert "
            "runs files with one of each"
        )
    size, made = None, []
    for start in range(0, len(data), int(batch_size)):
        batch = np.ascontiguousarray(data[start : start + int(batch_size)])
        if len(batch) != size:
            size = len(batch)
            index = interpreter.get_input_details()[0]["index"]
            interpreter.resize_tensor_input(index, batch.shape, strict=False)
            interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], batch)
        interpreter.invoke()
        made.append(
            interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).copy()
        )
    np.save(output, np.concatenate(made))


if __name__ == "__main__":
    main(*sys.argv[1:])
