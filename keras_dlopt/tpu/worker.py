"""The compiling process: `python -m keras_dlopt.tpu.worker JOB OUT`.

Reads a job, writes one line of JSON an event, so that what is done is known even if the
compiler ends the process or its time runs out.
"""

import importlib
import json
import pathlib
import sys
from typing import Any

from keras_dlopt.errors import DloptError, ModelError
from keras_dlopt.tpu.batches import Search
from keras_dlopt.tpu.chips import topology


def main(job_path: str, out_path: str) -> None:
    """Does one job."""
    job = json.loads(pathlib.Path(job_path).read_text())
    with open(out_path, "a", buffering=1) as out:

        def tell(event: str, **data: Any) -> None:
            out.write(json.dumps({"event": event, **data}) + "\n")

        try:
            _run(job, tell)
        except DloptError as error:
            tell("error", kind=type(error).__name__, text=str(error))


def _run(job: dict[str, Any], tell: Any) -> None:
    import keras

    from keras_dlopt.tpu import programs as making
    from keras_dlopt.tpu.compiling import Compiler
    from keras_dlopt.tpu.watching import Watched

    if keras.backend.backend() == "tensorflow":
        import jax

        jax.config.update("jax_enable_x64", True)  # its counters are int64
    for module in job["imports"]:
        importlib.import_module(module)
    tell("stage", name="loading the model")
    try:
        model = making.load_model(
            job["model"], policy=job["policy"], safe_mode=job["safe_mode"]
        )
    except DloptError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = " ".join(lines[:2]) or type(error).__name__
        raise ModelError(
            f"The model could not be loaded with the {keras.backend.backend()} backend "
            f"in the compiling process: {told} Layers of your own must be "
            "registered (keras.saving.register_keras_serializable) in a module that "
            "`imports` names."
        ) from error
    note = making.compile_if_needed(model)
    watched = Watched(model)
    where = topology(job["topology"])
    try:
        compiler = Compiler(where, watched)
    except RuntimeError as error:
        tell("topology", text=str(error).splitlines()[0])
        return
    tell("model", name=model.name, parameters=model.count_params(), note=note)

    def compiled(batch: int, name: str) -> dict[str, Any]:
        (program,) = making.programs(model, batch, (name,))
        return compiler.compile(program)

    first: dict[str, Any] | None = None
    for name in job["programs"]:
        tell("stage", name=f"compiling the {name} step, batch {job['batch']}")
        found = compiled(job["batch"], name)
        tell("program", name=name, batch=job["batch"], **found)
        if name == job["programs"][0]:
            tell("products", found=[vars(p) for p in watched.products()])
        if name == "train":
            first = found
    # Last: the time limit may end it, and then the rest of the report is there.
    if job["search"] and first is not None and first["compiles"]:
        _search(where, job["batch"], first, compiled, tell)


def _search(where: Any, batch: int, first: Any, compiled: Any, tell: Any) -> None:
    search = Search(devices=where.devices, memory=where.chip.memory)
    search.add(batch, first)
    while (candidate := search.next()) is not None:
        tell("stage", name=f"trying batch {candidate}")
        found = compiled(candidate, "train")
        search.add(candidate, found)
        tell("tried", batch=candidate, bytes=search.tried[candidate])
    tell("largest", batch=search.largest)


if __name__ == "__main__":
    main(*sys.argv[1:])
