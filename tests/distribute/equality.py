"""Trains cases on one device and on 2 and 4 replicas; prints a line for each.

    python distribute/equality.py catalogue:optimizers 2,4 [name ...] [--float64]

Run from the folder of the tests. Logical devices must be set before TensorFlow starts.
A line is `RESULT [name, replicas, difference, text]`; the difference is the largest
|a - b| / max(1, |a|) over all weights after 20 steps, the history and all logs.
"""

import json
import sys
import traceback
import warnings

FLOAT64 = "--float64" in sys.argv
GROUP, REPLICAS, *NAMES = [a for a in sys.argv[1:] if a != "--float64"]
STEPS = 20


def catalogue_cases(module):
    from catalogue import cases_of
    from contracts import building

    epochs = STEPS // building.STEPS
    for case in cases_of(module):
        if "replicas" in case.exempt or case.random:
            continue

        def train(replicas, case=case):
            import keras_dlopt as dlopt

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with dlopt.distribute.strategy(f"cpu:{replicas}").scope():
                    trial = building.trial(case)
                    dlopt.distribute.synchronize(trial.model)
                    trial.model.optimizer.build(trial.model.trainable_variables)
                    dlopt.distribute.data_parallel(trial.model)
            return trial.run(epochs=epochs)

        yield case.name, train


def cases():
    kind, _, module = GROUP.partition(":")
    if kind == "catalogue":
        return catalogue_cases(module)
    if kind == "models":
        from distribute import larger_models

        return larger_models.cases()
    from distribute import log_cases, own_cases

    return (log_cases if kind == "logs" else own_cases).cases(module)


def main():
    sys.path.insert(0, ".")
    from contracts.equality import difference
    from keras_dlopt.distribute.build import split_cpu

    if FLOAT64:
        import keras

        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")
    counts = [int(n) for n in REPLICAS.split(",")]
    split_cpu(max(counts))
    for name, train in cases():
        if NAMES and name not in NAMES:
            continue
        alone = None
        for count in counts:
            if name.startswith("apart_") and count != int(name[-1]):
                continue
            worst, text = -1.0, ""
            try:
                alone = train(1) if alone is None else alone
                worst = difference(alone, train(count))
            except Exception:
                text = traceback.format_exc()[-3000:]
            print("RESULT " + json.dumps([name, count, worst, text]), flush=True)


if __name__ == "__main__":
    main()
