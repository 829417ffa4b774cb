"""What a memory holds, against probabilities and a second writing of the papers."""

import numpy as np
import pytest

from keras_dlopt.errors import ConfigError
from keras_dlopt.online import ClassBalanced, Memory, Reservoir


def filled(memory, labels, seed=0):
    held, rng = memory.start(), np.random.default_rng(seed)
    for i, label in enumerate(labels):
        memory.add(
            held, [np.float32(i), np.int64(label)], arrived=i, label=label, rng=rng
        )
    return held


def test_each_item_of_a_stream_is_held_with_one_probability():
    counts, runs = np.zeros(40), 1500
    for seed in range(runs):
        held = filled(Reservoir(10), [0] * 40, seed)
        assert held.count == 10
        counts[held.arrived[:10]] += 1
    # Binomial of p = 1/4: five standard deviations.
    assert np.abs(counts / runs - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / runs)
    assert counts.sum() == 10 * runs


def test_rows_stay_together():
    held = filled(Reservoir(8), np.arange(50) % 5, seed=3)
    x, y = held.rows(np.arange(8))
    assert (x == held.arrived[:8]).all()
    assert (y == held.arrived[:8] % 5).all()
    assert (held.labels[:8] == y).all()


def chrysakis(labels, size, rng):
    """Algorithm 1 of the paper, on lists of (arrival, label)."""
    stored, seen, full = [], {}, set()
    for i, c in enumerate(labels):
        seen[c] = seen.get(c, 0) + 1
        if len(stored) < size:
            stored.append((i, c))
            continue
        sizes = {k: sum(1 for _, b in stored if b == k) for k in {b for _, b in stored}}
        largest = [k for k in sizes if sizes[k] == max(sizes.values())]
        full |= set(largest)
        if c not in full:
            own = [p for p, (_, b) in enumerate(stored) if b == min(largest)]
            stored[own[int(rng.integers(len(own)))]] = (i, c)
        elif c in sizes and rng.random() <= sizes[c] / seen[c]:
            own = [p for p, (_, b) in enumerate(stored) if b == c]
            stored[own[int(rng.integers(len(own)))]] = (i, c)
    return stored


@pytest.mark.parametrize("seed", range(5))
def test_class_balanced_is_the_published_algorithm(seed):
    draws = np.random.default_rng(100 + seed)
    labels = draws.choice(4, 400, p=[0.7, 0.2, 0.08, 0.02]).tolist()
    held = filled(ClassBalanced(24), labels, seed)
    wanted = chrysakis(labels, 24, np.random.default_rng(seed))
    assert held.arrived[:24].tolist() == [i for i, _ in wanted]
    assert held.labels[:24].tolist() == [c for _, c in wanted]


def test_classes_that_come_one_after_the_other_get_equal_shares():
    held = filled(ClassBalanced(100), np.repeat(np.arange(10), 300))
    assert held.classes()[1].tolist() == [10] * 10


def test_replay_is_balanced_where_the_memory_is_not():
    memory = ClassBalanced(50)
    held = filled(memory, [0] * 40 + [1] * 8 + [2] * 2)
    places = memory.draw(held, 31, np.random.default_rng(0))
    drawn = np.bincount(held.labels[places], minlength=3)
    assert drawn.max() - drawn.min() <= 1
    # Each item of a class is as likely.
    many = np.concatenate(
        [memory.draw(held, 30, np.random.default_rng(s)) for s in range(200)]
    )
    of_two = np.bincount(many)[held.labels[:50] == 2]
    assert abs(of_two[0] - of_two[1]) < 200


def test_a_reservoir_draws_none_twice_while_it_can():
    memory = Reservoir(20)
    held = filled(memory, [0] * 20)
    places = memory.draw(held, 20, np.random.default_rng(0))
    assert sorted(places) == list(range(20))
    assert len(memory.draw(held, 64, np.random.default_rng(0))) == 64


def test_what_is_stale_goes_and_what_comes_is_taken():
    memory = ClassBalanced(20)
    held = filled(memory, np.arange(200) % 2)
    kept = sorted(i for i in held.arrived[:20] if i >= 100)
    assert held.forget(100) == 20 - len(kept)
    assert sorted(held.arrived[: held.count]) == kept
    assert (held.rows(np.arange(held.count))[0] == held.arrived[: held.count]).all()
    assert held.seen.total() == len(kept)
    before = held.count
    memory.add(held, [0.0, 1], arrived=200, label=1, rng=np.random.default_rng(0))
    assert held.count == before + 1


def test_state_goes_there_and_back():
    memory = ClassBalanced(20)
    held = filled(memory, np.arange(90) % 7)
    again = memory.start()
    again.restore(*held.state())
    rngs = np.random.default_rng(1), np.random.default_rng(1)
    for i in range(90, 150):
        for one, rng in zip((held, again), rngs, strict=True):
            memory.add(one, [i, i % 7], arrived=i, label=i % 7, rng=rng)
    assert (held.arrived == again.arrived).all()
    assert held.seen == again.seen
    assert held.full == again.full


def test_config_and_refusals():
    for memory in (Reservoir(7), ClassBalanced(9)):
        assert type(memory).from_config(memory.get_config()) == memory
        with pytest.raises(ConfigError, match="size must be a whole number, 1 or"):
            type(memory)(0)
    with pytest.raises(TypeError, match="Memory must define place"):
        Memory().place(None, 0, None)
