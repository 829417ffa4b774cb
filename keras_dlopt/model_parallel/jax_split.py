"""A split model on the JAX backend, by Keras' own distribution."""

from typing import Any

import keras

from keras_dlopt.errors import ConfigError, ModelError
from keras_dlopt.graph.live import carry_settings
from keras_dlopt.model_parallel.layout import BATCH, Layout


def keras_distribution(model: keras.Model, layout: Layout) -> Any:
    """The `keras.distribution.ModelParallel` of a layout, for a model of this build.

    Args:
        model: built; its layer names give the paths. A model made anew from the same
            code or config has the same.
        layout: which weight is split how.

    Raises:
        ConfigError: on another backend than JAX, where Keras accepts a distribution and
            splits nothing, or with fewer devices than the mesh has.
    """
    backend = keras.backend.backend()
    if backend != "jax":
        raise ConfigError(
            f"keras.distribution splits nothing on the {backend} backend, without "
            "saying so. On TensorFlow use SplitTrainer or Pipeline; or set "
            "KERAS_BACKEND=jax."
        )
    devices = keras.distribution.list_devices()
    if len(devices) < layout.devices:
        raise ConfigError(
            f"The mesh {dict(layout.mesh)} has {layout.devices} devices, and there are "
            f"{len(devices)}. For a trial on a CPU set XLA_FLAGS="
            f"--xla_force_host_platform_device_count={layout.devices} before JAX "
            "starts."
        )
    mesh = keras.distribution.DeviceMesh(
        shape=tuple(layout.mesh.values()),
        axis_names=tuple(layout.mesh),
        devices=devices[: layout.devices],
    )
    layouts = keras.distribution.LayoutMap(mesh)
    for path, axes in layout.axes_of(model).items():
        layouts[path] = axes
    return keras.distribution.ModelParallel(
        layout_map=layouts, batch_dim_name=BATCH, auto_shard_dataset=False
    )


def split_model(model: keras.Model, layout: Layout) -> keras.Model:
    """A copy of a model whose weights are split over devices; trains with `fit`.

    Sets the distribution for the whole process, as Keras wants it while the model
    trains: `keras.distribution.set_distribution(None)` ends it.

    Args:
        model: built, on the JAX backend, with a config. If it is compiled, so is the
            copy, with a new optimizer.
        layout: which weight is split how.

    Raises:
        ConfigError: on another backend, or for a layout that does not fit.
        ModelError: for a model that cannot be made from its config.
    """
    distribution = keras_distribution(model, layout)
    keras.distribution.set_distribution(distribution)
    try:
        copy = type(model).from_config(model.get_config())
        if not copy.built:
            copy.build_from_config(model.get_build_config())
        for new, old in zip(copy.variables, model.variables, strict=True):
            if new.path != old.path:
                raise ValueError(f"{new.path} came out where {old.path} was")
            new.assign(keras.ops.convert_to_numpy(old))
        carry_settings(model, copy)
    except Exception as error:
        keras.distribution.set_distribution(None)
        raise ModelError(
            f"The model {model.name!r} could not be made anew from its config: {error} "
            "Build it under keras.distribution.set_distribution("
            "keras_distribution(model, layout)) yourself."
        ) from error
    if getattr(model, "optimizer", None) is not None:
        copy.compile_from_config(model.get_compile_config())
    return copy
