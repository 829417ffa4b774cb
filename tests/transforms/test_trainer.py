"""A model's own training methods: run as they were written, or refused by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_dlopt as dlopt
from keras_dlopt.errors import ModelError
from keras_dlopt.transforms import LSQ, trainer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 4)).astype("float32")
Y = RNG.normal(size=(8, 2)).astype("float32")
HALF = dlopt.Recipe([(dlopt.named("kernel"), dlopt.Prune(0.5))])


class Net(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1))
        self.head = layers.Dense(2)
        self.total = keras.metrics.Mean(name="total")

    def call(self, x):
        return self.head(self.body(x))


class OwnLoss(Net):
    """Reads a weight, the losses and the predictions; takes no `training`."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        loss = ops.mean(y_pred**2) * 10 + sum(self.losses)
        return loss + ops.sum(self.head.kernel**2)


class OwnStep(Net):
    """A step that calls layers, and a metric of its own, as keras.io's VAE does."""

    @property
    def metrics(self):
        return [self.total]

    def train_step(self, data):
        x, y = data[:2]
        with tf.GradientTape() as tape:
            loss = ops.mean((self.head(self.body(x)) - y) ** 2) + sum(self.losses)
        weights = self.trainable_weights
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, weights), weights, strict=True)
        )
        self.total.update_state(loss)
        return {"total": self.total.result()}


class AroundKeras(Net):
    """Calls its parent's methods, and calls itself."""

    def train_step(self, data):
        logs = super().train_step(data)
        return {**logs, "twice": 2 * logs["loss"]}

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        return {**logs, "mean": ops.mean(y_pred)}

    def predict_step(self, data):
        return 2 * super().predict_step(data)


class OwnTest(Net):
    def test_step(self, data):
        x, y = data[:2]
        return {"error": ops.mean(ops.abs(self(x, training=False) - y))}


class InSequential(keras.Sequential):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        return 3 * super().compute_loss(x, y, y_pred, sample_weight, **kwargs)


def _model(cls):
    keras.utils.set_random_seed(0)
    if cls is InSequential:
        return cls([keras.Input((4,)), layers.Dense(2)])
    model = cls()
    model(X)
    return model


def _history(model):
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"], run_eagerly=True)
    data = {"validation_data": (X, Y), "verbose": 0, "shuffle": False}
    return model.fit(X, Y, batch_size=4, epochs=2, **data).history


CLASSES = [OwnLoss, OwnStep, AroundKeras, OwnTest, InSequential]


@pytest.mark.parametrize("cls", CLASSES)
def test_an_empty_recipe_runs_them_bit_for_bit(cls):
    plain = _model(cls)
    small = dlopt.transform(plain, dlopt.Recipe())
    assert _history(plain) == _history(small)
    for ours, theirs in zip(small.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    np.testing.assert_array_equal(
        small.predict(X, verbose=0), plain.predict(X, verbose=0)
    )
    names = [[m.name for m in model.metrics] for model in (plain, small)]
    assert names[0] == names[1]


@pytest.mark.parametrize("cls", CLASSES)
def test_the_first_step_is_that_of_the_finalized_model(cls):
    small = dlopt.transform(_model(cls), HALF)
    plain = dlopt.finalize(small)
    assert (plain.weights[0].numpy() == 0).sum() * 2 == plain.weights[0].numpy().size
    logs = []
    for model in (small, plain):
        model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
        logs.append(model.train_on_batch(X, Y, return_dict=True))
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)


def test_a_step_of_its_own_trains_what_the_transforms_train():
    recipe = dlopt.Recipe([(dlopt.named("kernel"), LSQ(bits=4))])
    small = dlopt.transform(_model(OwnStep), recipe)
    before = [v.numpy().copy() for v in small.trainable_variables]
    assert len(before) == 6  # two scales beside kernels and biases
    _history(small)
    moved = [
        not np.array_equal(v.numpy(), b)
        for v, b in zip(small.trainable_variables, before, strict=True)
    ]
    assert all(moved)


def test_in_a_graph_they_are_the_same():
    plain = _model(AroundKeras)
    small = dlopt.transform(plain, dlopt.Recipe())
    logs = []
    for model in (plain, small):
        model.compile(keras.optimizers.SGD(0.1), "mse")
        logs.append(model.fit(X, Y, verbose=0).history)
    assert logs[0] == logs[1]


@pytest.mark.parametrize("name", trainer.REFUSED)
def test_what_cannot_be_forwarded_is_refused_by_name(name):
    def own(self, *args, **kwargs):
        return getattr(keras.Model, name)(self, *args, **kwargs)

    small = dlopt.transform(_model(type("Own", (Net,), {name: own})), HALF)
    with pytest.raises(ModelError, match=rf"Own has its own {name}\(\), which would"):
        getattr(small, name)()


def test_a_method_of_one_instance_is_refused():
    model = _model(Net)
    object.__setattr__(model, "train_step", lambda data: {})
    small = dlopt.transform(model, HALF, copy=False)
    small.compile("sgd", "mse", run_eagerly=True)
    with pytest.raises(ModelError, match="has its own train_step"):
        small.fit(X, Y, verbose=0)


def test_every_method_of_the_trainer_is_in_a_table():
    kept = {
        *("compile_from_config", "get_compile_config", "metrics_names"),  # state
        *("jit_compile", "run_eagerly", "distribute_strategy"),
        *("distribute_reduction_method", "compiled_loss", "compiled_metrics", "loss"),
    }
    base = next(c for c in keras.Model.__mro__ if c.__name__ == "TensorFlowTrainer")
    public = {
        name
        for cls in (base, *base.__bases__)
        for name in vars(cls)
        if not name.startswith("_")
    }
    assert public - kept - set(trainer.FORWARDED) - set(trainer.REFUSED) == set()


class Penalized(OwnStep):
    """A step that adds a penalty on a weight that it reads by itself."""

    reads = staticmethod(lambda kernel: ops.sum(ops.abs(kernel)))

    def train_step(self, data):
        x, y = data[:2]
        with tf.GradientTape() as tape:
            loss = ops.mean((self(x) - y) ** 2) + self.reads(self.head.kernel)
        weights = self.trainable_weights
        gradients = tape.gradient(loss, weights)
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return {"loss": loss}


@pytest.mark.parametrize(
    "reads",
    [
        lambda kernel: ops.sum(ops.abs(kernel)),
        lambda kernel: tf.reduce_sum(tf.abs(kernel)),
        lambda kernel: tf.reduce_sum(kernel.value**2),
        lambda kernel: tf.norm(kernel * 2.0),
    ],
)
@pytest.mark.parametrize("eager", [False, True])
def test_a_step_that_reads_a_transformed_weight_by_itself_is_told(reads, eager):
    class Other(Penalized):
        pass

    Other.reads = staticmethod(reads)
    keras.utils.set_random_seed(0)
    net = Other()
    net(X)
    small = dlopt.transform(net, HALF, copy=False)
    small.compile("sgd", run_eagerly=eager)
    kind = type(net.head.kernel)
    with pytest.warns(UserWarning, match=r"train_step\(\).*'.*head.*|.*reads") as found:
        small.fit(X, Y, batch_size=8, verbose=0)
    texts = {str(w.message) for w in found if "reads" in str(w.message)}
    assert texts
    assert all(net.head.kernel.path in text for text in texts)
    assert "read it in compute_loss()" in texts.pop()
    assert type(net.head.kernel) is kind


class Advised(Penalized):
    """The same penalty where the warning says it should be."""

    def train_step(self, data):
        return keras.Model.train_step(self, data)

    @property
    def metrics(self):
        return keras.Model.metrics.fget(self)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return ops.mean((y_pred - y) ** 2) + self.reads(self.head.kernel)


def test_the_advice_gives_the_penalty_of_the_weight_that_layers_use():
    keras.utils.set_random_seed(0)
    net = Advised()
    net(X)
    small = dlopt.transform(net, HALF, copy=False)
    small.compile(keras.optimizers.SGD(0.0), loss="mse")
    small.fit(X, Y, batch_size=8, verbose=0)
    kernel = net.head.kernel.numpy()
    kept = np.abs(kernel) > np.median(np.abs(kernel))
    wanted = np.abs(kernel * kept).sum()
    found = small.evaluate(X, Y, batch_size=8, verbose=0)
    data = np.mean((small.predict(X, verbose=0) - Y) ** 2)
    assert found[0] == pytest.approx(data + wanted, rel=1e-5)


def test_what_a_step_does_with_weights_beside_reading_is_no_matter():
    """Gradients, assignments and optimizers: the trained value is meant."""

    class Own(OwnStep):
        def train_step(self, data):
            logs = super().train_step(data)
            self.head.kernel.assign_sub(ops.zeros((3, 2)))
            self.head.kernel.assign(ops.ones((3, 2)))
            return logs

    net = Own()
    net(X)
    small = dlopt.transform(net, HALF, copy=False)
    for optimizer in (keras.optimizers.Adam(), dlopt.optimizers.Adam()):
        small.compile(optimizer)
        small.fit(X, Y, batch_size=8, verbose=0)  # warnings are errors here
    np.testing.assert_array_equal(net.head.kernel, np.ones((3, 2)))


@pytest.mark.parametrize("eager", [False, True])
def test_own_metrics_see_transformed_weights_beside_compiled_ones(eager):
    """Keras makes the state of compiled metrics in the first step, inside of it."""

    class Own(Net):
        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            logs = super().compute_metrics(x, y, y_pred, sample_weight)
            return {**logs, "size": ops.sum(ops.abs(self.head.kernel))}

    keras.utils.set_random_seed(0)
    net = Own()
    net(X)
    small = dlopt.transform(net, HALF, copy=False)
    small.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mae"], run_eagerly=eager)
    logs = small.train_on_batch(X, Y, return_dict=True)
    small.reset_metrics()
    logs = small.train_on_batch(X, Y, return_dict=True)
    kernel = np.abs(net.head.kernel.numpy())
    assert logs["size"] == pytest.approx(kernel[kernel > np.median(kernel)].sum())
    errors = np.abs(small.predict(X, verbose=0) - Y)
    assert logs["mae"] == pytest.approx(errors.mean(), rel=1e-5)
