"""Runs a .tflite file in TFLM's interpreter; a process of its own for `micro`.

TFLM's kernels check with assertions that end the process.
"""

import os
import sys

import numpy as np


def main(path: str, folder: str, arena: str) -> None:
    """Runs every batch of `inputs.npz` and writes `outputs.npz`, both in `folder`.

    `tensors.npz` has what each operation made of the first batch.
    """
    from tflite_micro import runtime

    whole = runtime.InterpreterConfig.kPreserveAllTensors
    run = runtime.Interpreter.from_file(path, arena_size=int(arena))
    kept = runtime.Interpreter.from_file(
        path, arena_size=int(arena), intrepreter_config=whole
    )
    outputs: dict[str, np.ndarray] = {}
    with np.load(os.path.join(folder, "inputs.npz")) as given:
        batches, ends = (int(n) for n in given["counts"])
        for batch in range(batches):
            for one in (run, kept) if batch == 0 else (run,):
                n = 0
                while f"{batch}_{n}" in given:
                    one.set_input(given[f"{batch}_{n}"], n)
                    n += 1
                one.invoke()
            for end in range(ends):
                outputs[f"{batch}_{end}"] = run.get_output(end)
        found = ((i, kept.GetTensor(int(i), 0)) for i in given["tensors"])
        tensors = {str(i): tensor["tensor_data"] for i, tensor in found}
    run.print_allocations()
    np.savez(os.path.join(folder, "tensors.npz"), **tensors)
    np.savez(os.path.join(folder, "outputs.npz"), **outputs)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
