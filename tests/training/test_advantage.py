"""KernelGAE against the estimator that it stands in for: TorchRL's own GAE."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import NormalParamExtractor, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from pi_incubator.training.advantage import KernelGAE

DISCOUNTS = {"gamma": 0.97, "lmbda": 0.9}


def make_rollout(*batch, with_values=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    terminated = torch.rand(*batch, 1, generator=generator) < 0.1
    truncated = torch.rand(*batch, 1, generator=generator) < 0.1
    following = {
        "obs": torch.randn(*batch, 3, generator=generator),
        "reward": torch.randn(*batch, 1, generator=generator),
        "terminated": terminated,
        "done": terminated | truncated,
    }
    rollout = {"obs": torch.randn(*batch, 3, generator=generator), "next": following}
    if with_values:
        rollout["state_value"] = torch.randn(*batch, 1, generator=generator)
        following["state_value"] = torch.randn(*batch, 1, generator=generator)
    return TensorDict(rollout, batch_size=batch)


def make_loss():
    torch.manual_seed(0)
    actor = ProbabilisticActor(
        TensorDictModule(nn.Sequential(nn.Linear(3, 4), NormalParamExtractor()), ["obs"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        return_log_prob=True,
    )
    return ClipPPOLoss(actor, ValueOperator(nn.Linear(3, 1), in_keys=["obs"])), actor


def assert_same_estimate(ours, theirs):
    for key in ("advantage", "value_target"):
        assert ours[key].shape == theirs[key].shape
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("average_gae", [False, True])
@pytest.mark.parametrize(
    ("batch", "time_dim"), [((7, 5), 0), ((5, 7), 1), ((5, 7), None), ((2, 7, 3), -2), ((9,), 0)]
)
def test_equals_torchrl_in_every_layout(batch, time_dim, average_gae):
    options = {**DISCOUNTS, "value_network": None, "time_dim": time_dim, "average_gae": average_gae}
    ours, theirs = make_rollout(*batch), make_rollout(*batch)
    KernelGAE(**options)(ours)
    GAE(**options, vectorized=False)(theirs)
    assert_same_estimate(ours, theirs)


def test_clip_ppo_reads_the_values_of_the_rollout():
    loss, _ = make_loss()
    loss.make_value_estimator(KernelGAE, **DISCOUNTS, time_dim=0)
    ours, theirs = make_rollout(7, 5), make_rollout(7, 5)
    before = ours["state_value"].clone()
    loss.value_estimator(ours)
    GAE(**DISCOUNTS, value_network=None, time_dim=0)(theirs)
    assert_same_estimate(ours, theirs)
    assert torch.equal(ours["state_value"], before)


def test_clip_ppo_computes_the_values_where_they_are_missing():
    loss, actor = make_loss()
    with torch.no_grad():
        rollout = actor(make_rollout(5, 7, with_values=False))
    network = loss.critic_network
    results = []
    for estimator in (KernelGAE, GAE):
        loss.make_value_estimator(estimator, **DISCOUNTS, value_network=network)
        torch.manual_seed(0)
        results.append((loss(rollout.clone()), loss.value_estimator(rollout.clone())))
    (our_loss, ours), (their_loss, theirs) = results
    assert_same_estimate(ours, theirs)
    torch.testing.assert_close(our_loss, their_loss)


def test_normalizes_what_the_mask_keeps():
    ours, theirs = make_rollout(7, 5), make_rollout(7, 5)
    valid = torch.rand(7, 5, 1, generator=torch.Generator().manual_seed(1)) < 0.7
    KernelGAE(**DISCOUNTS, time_dim=0, normalize=True, mask_key="valid")(ours.set("valid", valid))
    GAE(**DISCOUNTS, value_network=None, time_dim=0, vectorized=False)(theirs)
    kept = theirs["advantage"][valid]
    expected = torch.where(valid, (theirs["advantage"] - kept.mean()) / kept.std(), 0.0)
    torch.testing.assert_close(ours["advantage"], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours["value_target"], theirs["value_target"], rtol=1e-5, atol=1e-5)


def test_normalizing_twice_is_refused():
    with pytest.raises(ValueError, match="normalize and average_gae"):
        KernelGAE(**DISCOUNTS, normalize=True, average_gae=True)


@pytest.mark.parametrize("skip", [None, True])
def test_skip_existing_decides_whether_the_network_runs(skip):
    calls = []

    class Counted(nn.Linear):
        def forward(self, x):
            calls.append(x)
            return super().forward(x)

    network = ValueOperator(Counted(3, 1), in_keys=["obs"])
    KernelGAE(**DISCOUNTS, value_network=network, skip_existing=skip)(make_rollout(5, 7))
    assert bool(calls) is (skip is None)


def test_time_first_entries_are_not_copied(monkeypatch):
    rollout, seen = make_rollout(7, 5), []

    def spy(*args, **kwargs):
        seen.extend(args[:5])
        return args[0], args[1], None

    monkeypatch.setattr("pi_incubator.training.advantage.gae", spy)
    KernelGAE(**DISCOUNTS, time_dim=0)(rollout)
    following = rollout["next"]
    entries = [following["reward"], rollout["state_value"]]
    entries += [following[key] for key in ("state_value", "terminated", "done")]
    assert [tensor.data_ptr() for tensor in seen] == [tensor.data_ptr() for tensor in entries]
    assert all(tensor.is_contiguous() and tensor.shape == (7, 5) for tensor in seen)


def test_keys_can_be_renamed():
    rollout = (
        make_rollout(7, 5).rename_key_("state_value", "v").rename_key_(("next", "state_value"), ("next", "v"))
    )
    estimator = KernelGAE(**DISCOUNTS, time_dim=0)
    estimator.set_keys(value="v", advantage="adv")
    assert "adv" in estimator(rollout)


def test_loaded_discounts_are_used():
    estimator = KernelGAE(gamma=0.5, lmbda=0.5, time_dim=0)
    estimator(make_rollout(7, 5))
    estimator.load_state_dict(KernelGAE(**DISCOUNTS).state_dict())
    theirs = GAE(**DISCOUNTS, value_network=None, time_dim=0)(make_rollout(7, 5))
    assert_same_estimate(estimator(make_rollout(7, 5)), theirs)


def test_missing_values_are_an_error():
    with pytest.raises(KeyError, match="state_value"):
        KernelGAE(**DISCOUNTS)(make_rollout(7, 5, with_values=False))


@pytest.mark.parametrize("option", ["differentiable", "shifted", "auto_reset_env", "vectorized"])
def test_options_outside_the_kernel_are_refused(option):
    with pytest.raises(ValueError, match=option):
        KernelGAE(**DISCOUNTS, **{option: True})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_equals_torchrl_on_cuda_without_a_synchronization():
    rollout, estimator = make_rollout(7, 5).cuda(), KernelGAE(**DISCOUNTS, time_dim=0, device="cuda")
    estimator(rollout)  # builds the kernel and reads the discounts
    torch.cuda.set_sync_debug_mode("error")
    try:
        estimator(rollout)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    theirs = GAE(**DISCOUNTS, value_network=None, time_dim=0)(make_rollout(7, 5).cuda())
    assert_same_estimate(rollout, theirs)
