"""How runners end an epoch's data; which strategy one device gets."""

import threading

import tensorflow as tf

from keras_dlopt import distribute
from keras_dlopt.distribute.functions import Runner


class Data:
    """Tells in which thread it ends."""

    def __init__(self, ended, done):
        self.ended, self.done = ended, done

    def __del__(self):
        self.ended.append(threading.current_thread())
        self.done.set()


def test_an_epochs_data_end_in_a_thread_of_their_own():
    runner, ended, done = Runner.__new__(Runner), [], threading.Event()
    runner._iterator = Data(ended, done)
    runner.let_go()
    assert done.wait(20)
    assert ended[0] is not threading.current_thread()
    runner.let_go()  # nothing held any more
    assert runner._iterator is None


def test_one_device_that_tensorflow_uses_anyway_needs_no_strategy_of_its_own():
    assert distribute.strategy("one_device") is tf.distribute.get_strategy()
