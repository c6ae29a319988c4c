"""Off-policy collection and learning beside each other."""

import pytest
import torch

from envs_gpu.make import make_env
from pi_incubator.config import ExperimentConfig
from tests.learning import assert_same_tensors, make_algorithm, state_of

SETTINGS = {"name": "td3", "batch_size": 8, "buffer_size": 64, "learning_starts": 8, "updates_per_step": 0.5}


class Inline:
    """A background that runs a call at once, as if the worlds had been quicker than the updates."""

    runs = False

    def start(self, call, *arguments):
        self.result = call(*arguments)

    def finish(self):
        return self.result


@pytest.fixture
def make():
    """Function that makes an algorithm on four worlds."""
    envs = []

    def make(overlap, background=None, **settings):
        torch.manual_seed(0)
        envs.append(make_env("cartpole_balance", num_envs=4, device=torch.device("cpu"), seed=0))
        sections = {"env": {"name": "cartpole_balance", "num_envs": 4}, "network": {"hidden_sizes": [8]}}
        sections |= {"algorithm": SETTINGS | settings, "training": {"overlap": overlap}}
        algorithm = make_algorithm(ExperimentConfig.model_validate(sections), envs[-1])
        algorithm.background = background or algorithm.background
        return algorithm

    yield make
    for env in envs:
        env.close()


def train(algorithm, num_iterations=12):
    for _ in range(num_iterations):
        algorithm.collect()
        algorithm.update()
    return state_of(algorithm)


def test_worlds_beside_an_update_give_the_bits_of_worlds_before_it(make):
    """The two share nothing, so it does not matter which one is quicker."""
    assert_same_tensors(train(make(overlap=True)), train(make(overlap=True, background=Inline())))


def test_an_overlapped_training_can_learn_from_its_first_step(make):
    """The first update has nothing to learn from yet."""
    state = train(make(overlap=True, learning_starts=0), 2)
    assert state["critic_optimizer.0.step"] == 2


def test_an_overlapped_update_learns_from_the_steps_before(make):
    """The steps and their number are those of a run without overlap; what is learned from them is not."""
    overlapped, plain = train(make(overlap=True)), train(make(overlap=False))
    assert overlapped["replay.count"] == plain["replay.count"] == 12
    first = slice(0, 2)  # random actions, before anything is learned
    assert torch.equal(overlapped["replay.action"][first], plain["replay.action"][first])
    assert not torch.equal(overlapped["critics.critic.0"], plain["critics.critic.0"])


def test_an_overlapped_training_continues_bit_for_bit(make):
    """Nothing is under way between two iterations."""
    expected, first, second = train(make(overlap=True)), make(overlap=True), make(overlap=True)
    train(first, 5)
    for name, part in second.parts().items():
        state = first.parts()[name].value.state_dict()
        part.value.load_state_dict({key: value.clone() for key, value in state.items()})
    assert_same_tensors(train(second, 7), expected)


def fail(*_):
    raise RuntimeError("the physics failed")


def test_a_failed_step_of_the_worlds_is_raised_once_and_the_worlds_are_released(make, monkeypatch):
    algorithm, released = make(overlap=True), []
    train(algorithm, 3)
    monkeypatch.setattr(algorithm.env, "step", fail)
    monkeypatch.setattr(algorithm.env, "close", lambda: released.append(True))
    algorithm.collect()
    with pytest.raises(RuntimeError, match="the physics failed"):
        algorithm.update()
    algorithm.close()
    assert released == [True]


def test_a_step_that_fails_beside_a_failed_update_does_not_hide_it(make, monkeypatch):
    algorithm, released = make(overlap=True), []
    monkeypatch.setattr(algorithm.env, "step", fail)
    monkeypatch.setattr(algorithm.env, "close", lambda: released.append(True))
    algorithm.collect()
    algorithm.close()
    assert released == [True]
