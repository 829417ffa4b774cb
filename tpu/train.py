"""Trains a model on a TPU VM, and resumes after the machine was taken away.

    python train.py --strategy tpu --model resnet20 --data mnist --checkpoint runs/a
    python train.py --strategy jax --model mymodels:build --checkpoint runs/b
    python train.py --strategy cpu:2 --smoke          # here, without a TPU

`--strategy` is `tpu` (tf.distribute.TPUStrategy), `jax` (Keras on JAX, data parallel
over all local devices), `cpu:N` (N logical devices, to try the script) or `one`. The
exported train step has a script of its own: run_step.py.

Everything is saved in `--checkpoint` after each epoch, or every `--save-every` steps;
the same command goes on from there, at the start of the epoch it was in. SIGTERM, which
a machine gets before it is taken away, ends the run with code 143.
"""

import argparse
import importlib
import json
import os
import pathlib
import signal
import sys
import time


def arguments():
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--model",
        default="textbook_cnn",
        help="in keras_dlopt.models, file, module:function",
    )
    add(
        "--data",
        default="digits",
        help="digits, mnist, fashion_mnist, a file or folder",
    )
    add("--strategy", default="tpu", help="tpu, jax, cpu:N or one")
    add("--epochs", type=int, default=10)
    add("--batch", type=int, default=256, help="over all devices together")
    add("--rate", type=float, default=1e-3)
    add("--policy", default=None, help="dtype policy; mixed_bfloat16 on TPUs")
    add("--steps-per-execution", type=int, default=None)
    add("--save-every", type=int, default=0, help="steps; 0 saves after each epoch")
    add("--hosts", type=int, default=1, help="machines of the slice, JAX only")
    add("--checkpoint", type=pathlib.Path, default=pathlib.Path("tpu-run"))
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="digits, two epochs")
    add("--dry-run", action="store_true", help="say what would be done, and end")
    args = parser.parse_args()
    kind, _, count = args.strategy.partition(":")
    good = kind in ("tpu", "jax", "one") and not count
    good |= kind == "cpu" and count.isdigit() and int(count) > 0
    if not good:
        parser.error(
            f"--strategy must be tpu, jax, cpu:N or one, not {args.strategy!r}"
        )
    if args.hosts > 1 and kind != "jax":
        parser.error("--hosts above 1 needs --strategy jax")
    if min(args.epochs, args.batch) < 1 or args.save_every < 0:
        parser.error("--epochs and --batch must be 1 or more, --save-every 0 or more")
    if args.checkpoint.exists() and not args.checkpoint.is_dir():
        parser.error(f"--checkpoint must be a folder; {args.checkpoint} is a file")
    if args.smoke:
        args.data, args.epochs = "digits", min(args.epochs, 2)
    on_tpu = kind in ("tpu", "jax")
    args.policy = args.policy or ("mixed_bfloat16" if on_tpu else "float32")
    args.steps_per_execution = args.steps_per_execution or (50 if kind == "tpu" else 1)
    args.kind, args.devices = kind, int(count or 0)
    return args


def scope(args):
    """Makes the devices ready; returns what models are built in, and their number."""
    import contextlib

    import keras

    if args.kind == "jax":
        import jax

        if args.hosts > 1:
            keras.distribution.initialize(num_processes=args.hosts)
        if len(jax.devices()) > 1:
            keras.distribution.set_distribution(keras.distribution.DataParallel())
        return contextlib.nullcontext(), len(jax.devices())
    import tensorflow as tf

    if args.kind == "tpu":
        # The resolver is content without a TPU; only initializing tells.
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu="local")
            tf.config.experimental_connect_to_cluster(resolver)
            tf.tpu.experimental.initialize_tpu_system(resolver)
        except (ValueError, RuntimeError, tf.errors.OpError) as error:
            sys.exit(
                f"No TPU could be initialized: {str(error).splitlines()[0]}\n"
                "On a TPU VM run setup.sh --kind tensorflow first, and end other "
                "processes that hold the TPU. To try the script: --strategy cpu:2."
            )
        strategy = tf.distribute.TPUStrategy(resolver)
    elif args.kind == "cpu":
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * args.devices,
        )
        strategy = tf.distribute.MirroredStrategy(
            [f"CPU:{i}" for i in range(args.devices)],
            cross_device_ops=tf.distribute.HierarchicalCopyAllReduce(),
        )
    else:
        return contextlib.nullcontext(), 1
    return strategy.scope(), strategy.num_replicas_in_sync


def build(args, data):
    """The model that --model names, for the data, compiled."""
    import inspect

    import keras

    from keras_dlopt import models, optimizers

    keras.config.set_dtype_policy(args.policy)
    module, _, name = args.model.partition(":")
    if pathlib.Path(args.model).is_file():
        model = keras.saving.load_model(args.model)
    elif name:
        model = getattr(importlib.import_module(module), name)()
    elif args.model in models.__all__:
        make = getattr(models, args.model)
        shape = data.x_train.shape[1:]
        known = inspect.signature(make).parameters
        given = {"input_shape": shape, "classes": len(data.class_names)}
        model = make(**{k: v for k, v in given.items() if k in known})
    else:
        names = ", ".join(sorted(models.__all__))
        sys.exit(f"No model {args.model!r}: give a file, module:function, or: {names}")
    if getattr(model, "optimizer", None) is None:
        model.compile(
            optimizers.AdamW(args.rate, weight_decay=1e-4, global_clipnorm=1.0),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            steps_per_execution=args.steps_per_execution,
            jit_compile=args.kind == "jax",
        )
    return model


def datasets(args, data):
    """Training and validation data in batches of one size, which TPUs need."""
    import tensorflow as tf

    def made(x, y, *, shuffle):
        found = tf.data.Dataset.from_tensor_slices((x, y))
        if shuffle:
            found = found.shuffle(min(len(x), 50_000), seed=args.seed)
        found = found.batch(args.batch, drop_remainder=True)
        options = tf.data.Options()
        options.autotune.enabled = False
        return found.with_options(options).prefetch(2)

    return (
        made(data.x_train, data.y_train, shuffle=True),
        made(data.x_val, data.y_val, shuffle=False),
    )


def resuming(args):
    """Callbacks that save, and that end the run in order on SIGTERM."""
    import keras

    class Preempted(keras.callbacks.Callback):
        """On SIGTERM: end after the step with code 143."""

        told = False

        def on_train_begin(self, logs=None):
            signal.signal(signal.SIGTERM, self.tell)

        def tell(self, *_):
            self.told = True

        def on_train_batch_end(self, batch, logs=None):
            if self.told:
                sys.exit(143)

    # Restores weights, optimizer, epoch and batch. Kept after the end, so that a
    # second call has nothing left to do.
    backup = keras.callbacks.BackupAndRestore(
        str(args.checkpoint / "backup"),
        save_freq=args.save_every or "epoch",
        delete_checkpoint=False,
    )
    return [backup, Preempted()]


def main():
    """Trains, or says what it would do."""
    args = arguments()
    os.environ["KERAS_BACKEND"] = "jax" if args.kind == "jax" else "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    plan = {
        k: str(v) if isinstance(v, pathlib.Path) else v for k, v in vars(args).items()
    }
    print(json.dumps(plan), flush=True)
    if args.dry_run:
        return
    import keras

    keras.utils.set_random_seed(args.seed)
    from keras_dlopt import data as loading

    built_in, replicas = scope(args)
    if args.batch % replicas:
        sys.exit(
            f"--batch {args.batch} cannot be split over {replicas} devices. "
            f"Use {max(args.batch // replicas, 1) * replicas}."
        )
    data = loading.load(args.data)
    if len(data.x_train) < args.batch:
        sys.exit(
            f"--batch {args.batch} is more than the {len(data.x_train)} examples of "
            f"{args.data}."
        )
    with built_in:
        model = build(args, data)
    train, validation = datasets(args, data)
    args.checkpoint.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    history = model.fit(
        train,
        validation_data=validation if len(data.x_val) >= args.batch else None,
        epochs=args.epochs,
        shuffle=False,  # the data set does it
        verbose=2,
        callbacks=resuming(args),
    ).history
    model.save(args.checkpoint / "model.keras")
    if not history:
        print(f"All {args.epochs} epochs were done before.", flush=True)
        return
    last = {name: values[-1] for name, values in history.items()}
    told = {"devices": replicas, "seconds": time.perf_counter() - start, **last}
    (args.checkpoint / "result.json").write_text(json.dumps(told, indent=1))
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
