"""The losses of offline algorithms are those of TorchRL where all steps are valid, and else of the papers.

Gradients are compared in float64, with networks that disagree with their targets.
"""

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import nn
from torch.distributions import Independent, Normal
from torchrl.objectives import BCLoss, CQLLoss, IQLLoss, TD3BCLoss

from pi_incubator.algorithms.cql import CANDIDATES
from pi_incubator.policies.squashed_gaussian import SquashedGaussian
from tests import off_policy
from tests.off_policy import A, B, D, assert_close, squash, unit_action
from tests.offline import make_episode, make_offline, write_dataset

GAMMA = 0.9
LEARN = {"gamma": GAMMA}
SETTINGS = {
    "bc": {},
    "iql": LEARN | {"expectile": 0.8, "inverse_temperature": 0.7, "reward_scale": 2.0},
    "td3_bc": LEARN | {"value_weight": 1.7},
    "cql": LEARN | {"conservative_weight": 3.0, "num_actions": 4},
}


@pytest.fixture(autouse=True)
def _in_float64():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture
def make(tmp_path):
    """Function that makes an algorithm with weights that are not the initial ones."""

    def make_one(name, **settings):
        folder = write_dataset(tmp_path / name, [make_episode(40, seed=1)])
        algorithm = make_offline(folder, {"name": name} | SETTINGS[name] | settings)
        with torch.no_grad():
            algorithm.policy.head[-1].weight.mul_(60.0)
            for name_of_targets in ("target_weights", "targets"):
                for target in getattr(algorithm, name_of_targets, ()):
                    target.add_(0.3 * torch.randn_like(target))
        return algorithm

    return make_one


def make_minibatch(num_steps=1, broken=False):
    steps = off_policy.make_minibatch()
    if num_steps == 1:
        steps["num_steps"] = torch.ones(B, dtype=torch.int64)
    if broken:
        steps["valid"] = torch.arange(B) % 8 != 3
    return steps


def normalized(algorithm, steps, moment):
    return algorithm.policy.normalizer["policy"](steps[f"{moment}.policy"])


def for_torchrl(algorithm, steps, reward_scale=1.0):
    """The minibatch under TorchRL's names."""
    following = {
        "observation": normalized(algorithm, steps, "next"),
        "reward": reward_scale * steps["reward"].unsqueeze(-1),
        "terminated": steps["terminated"].unsqueeze(-1),
        "done": (steps["terminated"] | steps["truncated"]).unsqueeze(-1),
    }
    now = {"observation": normalized(algorithm, steps, "obs"), "action": unit_action(steps)}
    return TensorDict(now | {"next": TensorDict(following, [B])}, [B])


class Gaussian(nn.Module):
    """Mean and standard deviation of the policy's Gaussian in (-1, 1)."""

    def __init__(self, policy):
        super().__init__()
        self.head, self.log_std = policy.head, policy.log_std

    def forward(self, observation):
        mean = self.head(observation).tanh()
        return mean, self.log_std.exp().expand_as(mean)


def gaussian_actor(policy):
    module = TensorDictModule(Gaussian(policy), in_keys=["observation"], out_keys=["loc", "scale"])
    return ProbabilisticTensorDictSequential(
        module,
        ProbabilisticTensorDictModule(
            in_keys=["loc", "scale"],
            out_keys=["action"],
            distribution_class=lambda loc, scale: Independent(Normal(loc, scale), 1),
        ),
    )


class Critic(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, observation, action):
        return self.head(torch.cat((observation, action), -1))


def critic_module(head):
    return TensorDictModule(Critic(head), in_keys=["observation", "action"], out_keys=["state_action_value"])


def gradients_of(loss, weights):
    return torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)


def test_bc_is_torchrls_likelihood(make):
    bc, steps = make("bc"), make_minibatch()
    loss = BCLoss(gaussian_actor(bc.policy))
    theirs = loss(for_torchrl(bc, steps))["loss_bc"]
    ours, report = bc._gradients(steps)
    assert report.item() == pytest.approx(theirs.item())
    by_name = dict(zip(dict(bc.policy.named_parameters()), ours, strict=True))
    stored = loss.actor_network_params.flatten_keys(".")
    for name, gradient in by_name.items():
        (weight,) = (value for key, value in stored.items() if key.endswith(name))
        assert_close([gradient], gradients_of(theirs, [weight]))
        theirs = loss(for_torchrl(bc, steps))["loss_bc"]


def iql_of_torchrl(iql):
    critics = [critic_module(critic.head) for critic in iql.critics]
    value = TensorDictModule(iql.value, in_keys=["observation"], out_keys=["state_value"])
    loss = IQLLoss(
        gaussian_actor(iql.policy),
        critics,
        value,
        loss_function="l2",
        temperature=0.7,
        expectile=0.8,
    )
    loss.make_value_estimator(gamma=GAMMA)
    names = [name for name, _ in iql.critics[0].head.named_parameters()]
    targets = [dict(critic.head.named_parameters()) for critic in iql.target_critics]
    for key, stacked in loss.target_qvalue_network_params.flatten_keys(".").items():
        for name in names:
            if key.endswith(f"head.{name}"):
                stacked.data.copy_(torch.stack([target[name] for target in targets]))
    return loss


def test_iql_is_torchrls(make):
    iql, steps = make("iql"), make_minibatch()
    theirs, inputs = iql_of_torchrl(iql), for_torchrl(iql, steps, reward_scale=2.0)
    losses = {
        "value": theirs.value_loss(inputs.clone())[0],
        "actor": theirs.actor_loss(inputs.clone())[0],
        "critic": theirs.qvalue_loss(inputs.clone())[0],
    }
    value_gradients, value_report = iql._value_gradients(steps)
    actor_gradients, actor_report = iql._actor_gradients(steps)
    critic_gradients, critic_report = iql._critic_gradients(steps)
    reports = {"value": value_report[0], "actor": actor_report[0], "critic": critic_report[0]}
    for name, report in reports.items():
        torch.testing.assert_close(report, losses[name].detach(), rtol=1e-10, atol=0, msg=name)
    for ours, name, weights in (
        (value_gradients, "value", theirs.value_network_params),
        (actor_gradients, "actor", theirs.actor_network_params),
    ):
        assert_same(ours, gradients_of(losses[name], list(weights.flatten_keys(".").values())))
    stacked = list(theirs.qvalue_network_params.flatten_keys(".").values())
    assert_same(critic_gradients, [p for g in gradients_of(losses["critic"], stacked) for p in g])


def assert_same(ours, theirs):
    """The same gradients in any order: by a number that tells those of different weights apart."""
    numbers = [
        sorted(gradient.square().sum() + 0.1 * gradient.sum() for gradient in gradients)
        for gradients in (ours, theirs)
    ]
    assert_close(*numbers)


def test_iql_bootstraps_over_the_steps_of_a_return(make):
    """With the discount of each of its steps, which TorchRL's critics' loss leaves out."""
    iql, steps = make("iql"), make_minibatch(num_steps=3)
    following = iql.value(normalized(iql, steps, "next")).squeeze(-1)
    discount = torch.where(steps["terminated"], 0.0, GAMMA ** steps["num_steps"])
    target = (2.0 * steps["reward"] + discount * following).detach()
    now = torch.cat((normalized(iql, steps, "obs"), unit_action(steps)), -1)
    loss = sum((critic.head(now).squeeze(-1) - target).square().mean() for critic in iql.critics)
    gradients, report = iql._critic_gradients(steps)
    torch.testing.assert_close(report[0], loss.detach())
    assert_close(gradients, gradients_of(loss, list(iql.critics.parameters())))


def test_the_targets_of_iql_follow_by_tau(make):
    iql, steps = make("iql", tau=0.25), make_minibatch()
    before = [target.clone() for target in iql.target_weights]
    iql.step(steps)
    for old, target, weight in zip(before, iql.target_weights, iql.critic_weights, strict=True):
        torch.testing.assert_close(target, 0.75 * old + 0.25 * weight.detach())


def test_the_policy_of_td3_bc_is_torchrls(make):
    td3_bc, steps = make("td3_bc"), make_minibatch()
    actor = TensorDictModule(
        nn.Sequential(td3_bc.policy.head, nn.Tanh()), in_keys=["observation"], out_keys=["action"]
    )
    heads = heads_of(td3_bc.loss.qvalue_network_params, td3_bc)
    one = torch.ones(A)
    theirs = TD3BCLoss(actor, [critic_module(head) for head in heads], bounds=(-one, one), alpha=1.7)
    loss, _ = theirs.actor_loss(for_torchrl(td3_bc, steps))
    gradients, report = td3_bc._actor_gradients(steps)
    torch.testing.assert_close(report[0], loss.detach())
    weights = list(theirs.actor_network_params.flatten_keys(".").values())
    assert_same(gradients, gradients_of(loss, weights))


def heads_of(stacked, algorithm):
    """The critics' heads as modules of their own."""
    heads = []
    for index in range(2):
        head = algorithm.network.head(D + A, 1, 1.0).double()
        named = {
            name.partition("head.")[2]: w for name, w in stacked.flatten_keys(".").items() if "head." in name
        }
        head.load_state_dict({name: weight[index].detach() for name, weight in named.items()})
        heads.append(head)
    return heads


def conservative(cql, heads, steps):
    """Eq. 4 and appendix F, sample by sample and critic by critic."""
    outputs = [cql.policy.head(normalized(cql, steps, moment)).detach() for moment in ("obs", "next")]
    uniform, now, following = steps[CANDIDATES].unbind(1)
    total = torch.zeros(())
    for head in heads:
        differences = []
        for index in steps["valid"].nonzero().flatten():
            observation = normalized(cql, steps, "obs")[index]
            spread = 2.0 * Normal(0.0, 1.0).cdf(uniform[index]) - 1.0
            terms = [head(torch.cat((observation, action))) + A * math.log(2.0) for action in spread]
            for output, noises in zip(outputs, (now[index], following[index]), strict=True):
                for noise in noises:
                    action, log_density = squash(output[index : index + 1], noise.unsqueeze(0), -5.0)
                    terms.append(head(torch.cat((observation, action[0]))) - log_density[0])
            recorded = head(torch.cat((observation, unit_action(steps)[index])))
            differences.append(torch.stack(terms).exp().mean().log() - recorded)
        total = total + torch.stack(differences).mean()
    return total


def test_the_conservative_term_is_that_of_the_paper(make):
    cql, steps = make("cql"), make_minibatch(broken=True)
    steps[CANDIDATES] = torch.randn(B, 3, 4, A, generator=torch.Generator().manual_seed(1))
    heads = heads_of(cql.loss.qvalue_network_params, cql)
    expected = conservative(cql, heads, steps)
    ours = cql.conservative_loss(steps)
    torch.testing.assert_close(ours, expected.detach().squeeze())
    gradients = torch.autograd.grad(ours, cql.critic_weights)
    theirs = gradients_of(expected, [weight for head in heads for weight in head.parameters()])
    parts = [part for gradient in gradients for part in gradient]
    assert_same(parts, theirs)


def test_one_action_of_each_kind_is_torchrls_conservative_term(make, monkeypatch):
    """Where a state follows itself: there TorchRL values the next state's actions too."""
    cql, steps = make("cql", num_actions=1), make_minibatch()
    steps["next.policy"] = steps["obs.policy"].clone()
    steps[CANDIDATES] = torch.randn(B, 3, 1, A, generator=torch.Generator().manual_seed(1))
    uniform, now, following = steps[CANDIDATES].squeeze(2).unbind(1)
    inputs = for_torchrl(cql, steps)
    inputs["noise"], inputs["next", "noise"] = now, following

    class Squashed(nn.Module):
        def __init__(self, policy):
            super().__init__()
            self.head, self._policy = policy.head, [policy]

        def forward(self, observation):
            return self._policy[0].before_tanh(observation)

    module = TensorDictModule(Squashed(cql.policy), in_keys=["observation"], out_keys=["loc", "scale"])
    actor = ProbabilisticTensorDictSequential(
        TensorDictSequential(
            module, TensorDictModule(lambda noise: noise, in_keys=["noise"], out_keys=["noise"])
        ),
        ProbabilisticTensorDictModule(
            in_keys=["loc", "scale", "noise"],
            out_keys=["action"],
            distribution_class=SquashedGaussian,
            return_log_prob=True,
        ),
    )
    heads = heads_of(cql.loss.qvalue_network_params, cql)
    theirs = CQLLoss(actor, [critic_module(head) for head in heads], num_random=1, target_entropy=-2.0)
    theirs.make_value_estimator(gamma=GAMMA)
    spread = 2.0 * Normal(0.0, 1.0).cdf(uniform) - 1.0
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, low, high: self.copy_(spread))
    theirs.q_loss(inputs)
    # TorchRL gives the mean over both critics' pairs of samples; ours also divides by the number of actions.
    expected = theirs.cql_loss(inputs)[0].detach()
    ours = cql.conservative_loss(steps).detach() + 2.0 * math.log(3.0)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("name", SETTINGS)
def test_broken_steps_are_not_learned_from(make, name):
    algorithm, steps = make(name), make_minibatch(broken=True)
    if name == "cql":
        steps[CANDIDATES] = torch.randn(B, 3, 4, A, generator=torch.Generator().manual_seed(1))
    spoiled = steps.clone()
    for field in ("obs.policy", "next.policy", "action", "reward", "noise"):
        spoiled[field][~steps["valid"]] = 100.0
    losses = [getattr(algorithm, f"_{kind}_gradients", None) for kind in ("value", "actor", "critic")]
    found = [loss for loss in (*losses, getattr(algorithm, "_gradients", None)) if loss]
    assert found
    for differentiate in found:
        assert_close(differentiate(steps)[0], differentiate(spoiled)[0])
