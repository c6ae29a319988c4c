"""Students and teachers with a state: what they learn from is sequences."""

import pytest
import torch
from tensordict import TensorDict

from envs_gpu.vec_env import EnvSpec, StepResult
from pi_incubator.algorithms.distillation import encode
from pi_incubator.config import ExperimentConfig
from pi_incubator.distillation.buffer import LabelBuffer
from pi_incubator.distillation.collect import Collector
from pi_incubator.distillation.lessons import Lesson
from tests.distillation.toy import ToyDistillation, make_actor_critic, make_teacher
from tests.envs import ForgetfulEnv
from tests.learning import networks_with_a_state

CPU = torch.device("cpu")
NUM_ENVS, EPISODE, HORIZON = 16, 5, 7
every_network_with_a_state = pytest.mark.parametrize("network", networks_with_a_state())


class Recall(ForgetfulEnv):
    """A cue is shown at an episode's first step and asked for at all of them; the critic sees it always.

    The policy's observation is `[cue or 0, 1 at the first step]`. Episodes of world n are out of step by n.
    """

    def __init__(self):
        limits = ((-10.0,), (10.0,))
        groups = {"policy": 2, "critic": 1}
        self.spec = EnvSpec("recall", NUM_ENVS, groups, 1, *limits, ("hand",), 10.0, 1000, CPU)
        self.actions, self.distances = [], []
        self.reset(0)

    def reset(self, seed):
        self.time = torch.arange(NUM_ENVS) % EPISODE
        self.cue = torch.randint(2, (NUM_ENVS, 1)) * 2.0 - 1.0
        return self._observe()

    def _observe(self):
        first = (self.time == 0).float()[:, None]
        policy = torch.cat((self.cue * first, first), -1)
        self.obs = TensorDict({"policy": policy, "critic": self.cue.clone()}, batch_size=[NUM_ENVS])
        return self.obs

    def step(self, action):
        self.actions.append(action)
        distance = (action - self.cue).abs()[:, 0]
        self.distances.append(distance.mean().item())
        self.time = (self.time + 1) % EPISODE
        ends = self.time == 0
        self.cue = torch.where(ends[:, None], torch.randint(2, (NUM_ENVS, 1)) * 2.0 - 1.0, self.cue)
        no, obs = torch.zeros(NUM_ENVS, dtype=torch.bool), self._observe()
        return StepResult(obs, -distance, no, ends, obs, {}, no)


def config(network="gru", **distillation):
    settings = {"name": "distillation", "teachers": ["seer"], "horizon": HORIZON, "buffer_size": 2000}
    settings |= {"exploration": 0.0, "num_updates": 20, "minibatch_size": 140, "lr": 1e-2}
    return ExperimentConfig.model_validate(
        {
            "env": {"num_envs": NUM_ENVS},
            "network": {"name": network, "hidden_sizes": [16], "normalize_observations": False},
            "algorithm": settings | distillation,
            "training": {"total_steps": 40 * HORIZON * NUM_ENVS},
        }
    )


@pytest.fixture
def knows_the_cue(set_linear):
    """A teacher that acts on what the critic sees."""
    settings = {"hidden_sizes": [16], "activation": "relu", "normalize_observations": False}
    network = {"name": "encoders", "actor": {"critic": "identity"}, **settings}
    cfg = ExperimentConfig.model_validate({"network": network})
    teacher = make_teacher("seer", cfg.network, Recall().spec)
    set_linear(teacher.policy, [[1.0]])
    return teacher


def learn(cfg, teacher):
    """How far a student's actions are from the cue once it has learned, and what it learned from."""
    torch.manual_seed(0)
    env = Recall()
    distillation = ToyDistillation(cfg, env, teacher)
    for _ in range(distillation.num_iterations):
        distillation.collect()
        distillation.update()
    distillation.collect_with(0.0)
    return sum(env.distances[-HORIZON:]) / HORIZON, distillation.buffer


@every_network_with_a_state
def test_a_state_recalls_what_one_observation_does_not_say(knows_the_cue, network):
    recalled, buffer = learn(config(network), knows_the_cue)
    assert buffer.tensors["mean"].shape == (2000 // HORIZON, HORIZON, 1)
    assert recalled < 0.1


def test_without_a_state_one_observation_does_not_say_it(knows_the_cue):
    """Such a student can only guess the mean of both cues, in four of five steps."""
    guessed, _ = learn(config("mlp"), knows_the_cue)
    assert guessed > 0.5


def test_sequences_are_what_the_student_did(knows_the_cue):
    """Across the ends of episodes, from the state it had: the actions it took are the ones it learns at."""
    torch.manual_seed(0)
    cfg, env = config(), Recall()
    student = make_actor_critic(cfg.network, env.spec)
    buffer = LabelBuffer(2 * NUM_ENVS, CPU)
    collector = Collector(cfg.algorithm, Lesson(cfg, knows_the_cue, env), student)
    for _ in range(2):
        collector.collect(buffer, 0.0)
    with torch.no_grad():
        (features, _), labels = encode(student, buffer.held())
        mean, _ = student.policy.moments_of(features)
    taken = torch.stack(env.actions).unflatten(0, (2, HORIZON)).transpose(1, 2).flatten(0, 2)
    torch.testing.assert_close(mean, taken)
    assert labels["mean"].shape == taken.shape
    assert buffer.held()["starts"].sum() > NUM_ENVS
    assert buffer.held()["first_state"].abs().sum() > 0


@every_network_with_a_state
def test_a_teacher_carries_its_state_whoever_acts(network):
    """What a recurrent teacher says is what it would do itself after the same observations."""
    torch.manual_seed(0)
    cfg, env = config("mlp"), Recall()
    teacher = make_teacher("elder", config(network).network, env.spec)
    torch.nn.init.normal_(teacher.policy.head[-1].weight)
    buffer = LabelBuffer(HORIZON * NUM_ENVS, CPU)
    student = make_actor_critic(cfg.network, env.spec)
    Collector(cfg.algorithm, Lesson(cfg, teacher, env), student).collect(buffer, 0.0)
    held = {name: rows.unflatten(0, (HORIZON, NUM_ENVS)) for name, rows in buffer.held().items()}
    seen = {group: held["observation." + group] for group in ("policy", "critic")}
    starts, policy, critic = seen["policy"][..., 1].bool(), teacher.policy, teacher.critic
    with torch.no_grad():
        features = policy.sequence(seen, policy.initial_state(NUM_ENVS), starts)
        mean, _ = policy.moments_of(features)
        first = torch.zeros(NUM_ENVS, critic.state_width)
        value = critic.head(critic.encoder.sequence(seen["critic"], first, starts)).squeeze(-1)
    torch.testing.assert_close(held["mean"], mean)
    torch.testing.assert_close(held["value"], value)
    assert held["mean"].std() > 0.01


def test_value_and_feature_terms_of_sequences(knows_the_cue):
    torch.manual_seed(0)
    distillation = ToyDistillation(config(value_coef=1.0, feature_coef=1.0), Recall(), knows_the_cue)
    reports = []
    for _ in range(20):
        distillation.collect_with(1.0)
        reports.append(distillation.update())
    assert reports[-1]["loss/features"] < 0.2 < reports[0]["loss/features"]
    assert reports[-1]["loss/value"] < 0.05 < reports[0]["loss/value"]


def test_states_continue_where_they_were_saved():
    """The next sequence begins with the states of student and teacher, in a collector of a continued run."""
    torch.manual_seed(0)
    cfg, env = config(), Recall()
    student, teacher = make_actor_critic(cfg.network, env.spec), make_teacher("elder", cfg.network, env.spec)
    torch.nn.init.normal_(teacher.policy.head[-1].weight)
    lesson = Lesson(cfg, teacher, env)
    collector = Collector(cfg.algorithm, lesson, student)
    collector.collect(LabelBuffer(NUM_ENVS, CPU), 0.0)
    state = {name: value.clone() for name, value in collector.state_dict().items()}
    assert all(value.any() for value in state.values())
    time, cue, obs = env.time, env.cue, env.obs
    one, other = LabelBuffer(NUM_ENVS, CPU), LabelBuffer(NUM_ENVS, CPU)
    random = torch.get_rng_state()
    collector.collect(one, 0.0)
    env.time, env.cue, env.obs = time, cue, obs
    torch.set_rng_state(random)
    continued = Collector(cfg.algorithm, lesson, student)
    continued.load_state_dict(state)
    continued.collect(other, 0.0)
    for name, value in one.held().items():
        assert torch.equal(value, other.held()[name]), name


def test_a_minibatch_shorter_than_a_sequence_is_one_sequence(knows_the_cue, monkeypatch):
    distillation = ToyDistillation(config(minibatch_size=HORIZON - 1), Recall(), knows_the_cue)
    distillation.collect()
    sizes, sample = [], distillation.buffer.sample
    monkeypatch.setattr(distillation.buffer, "sample", lambda size: sizes.append(size) or sample(size))
    distillation.update()
    assert set(sizes) == {1}
