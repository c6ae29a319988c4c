"""Mirror images in minibatches and in PPO's loss are what the task's mirror says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from envs_gpu.errors import SettingError
from envs_gpu.make import make_env
from envs_gpu.mirror import EnvMirror, Mirror, signs
from pi_incubator.config import ConfigError, ExperimentConfig, load_config
from pi_incubator.run import run
from pi_incubator.training.symmetry import mirror_half
from tests.learning import make_algorithm

CPU = torch.device("cpu")
CONFIGS = Path(__file__).parents[2] / "configs"
ANT = {"name": "ant", "num_envs": 4}
OFF_POLICY = {"batch_size": 8, "learning_starts": 8, "buffer_size": 64, "symmetry": True}
FLASH = {"name": "flash", "actor_width": 8, "critic_width": 8, "num_blocks": 1, "expansion": 2}


@pytest.mark.parametrize("num_shards", [1, 2])
def test_every_second_sample_of_a_shard_is_mirrored(num_shards: int) -> None:
    """Observations before and after and the action alone, wherever the shard is."""
    swap = Mirror(torch.tensor([1, 0]), torch.tensor([-1.0, -1.0]))
    mirror = EnvMirror({"policy": swap}, signs(-1))
    rows = torch.arange(12.0).view(6, 2)
    contents = {"obs.policy": rows, "next.policy": 100 + rows, "action": rows[:, :1], "reward": rows[:, 0]}
    before = TensorDict(contents, batch_size=[6])
    after = before.clone()
    mirror_half(after, mirror, num_shards)
    mirrored = [1, 3, 5] if num_shards == 1 else [1, 4]
    for row in range(6):
        for name, reflect in (("obs.policy", swap), ("next.policy", swap), ("action", signs(-1))):
            expected = reflect(before[name][row]) if row in mirrored else before[name][row]
            assert torch.equal(after[name][row], expected)
    assert torch.equal(after["reward"], before["reward"])


@pytest.mark.parametrize("name", ["sac", "td3", "flash_sac"])
def test_off_policy_minibatches_hold_mirror_images(name: str) -> None:
    """The same steps are sampled as without it; half of them are images by the env's mirror."""
    minibatches = []
    for symmetry in (False, True):
        torch.manual_seed(0)
        network = FLASH if name == "flash_sac" else {"hidden_sizes": [8]}
        settings = {"name": name, **OFF_POLICY, "symmetry": symmetry}
        cfg = ExperimentConfig.model_validate({"env": ANT, "network": network, "algorithm": settings})
        env = make_env("ant", num_envs=4, device=CPU)
        algorithm = make_algorithm(cfg, env)
        for _ in range(4):
            algorithm.collect()
        minibatches.append(algorithm.minibatch(8))
        metrics = algorithm.update()
        assert all(value.isfinite() for value in metrics.values())
        mirror = env.mirror(("policy",))
        env.close()
    plain, half = minibatches
    for key, reflect in (("obs.policy", mirror.groups["policy"]), ("action", mirror.action)):
        assert torch.equal(half[key][::2], plain[key][::2])
        assert torch.equal(half[key][1::2], reflect(plain[key][1::2]))
        assert not torch.equal(half[key][1::2], plain[key][1::2])
    assert torch.equal(half["reward"], plain["reward"])


@pytest.mark.parametrize("loss", ["torchrl", "fused"])
def test_the_symmetry_loss_is_its_formula(loss: str) -> None:
    """coef * mean (mu(M o) - M mu(o))^2 on raw observations, with a fixed second term (float64); the other
    losses are unchanged. It falls when it is minimized."""
    torch.manual_seed(0)
    algorithm = {"horizon": 8, "minibatch_size": 32, "loss": loss, "symmetry_coef": 0.25}
    sections = {"env": ANT, "network": {"hidden_sizes": [8]}, "algorithm": algorithm}
    env = make_env("ant", num_envs=4, device=CPU)
    ppo = make_algorithm(ExperimentConfig.model_validate(sections), env)
    with torch.no_grad():
        ppo.policy.head[-1].weight.mul_(100.0)  # means of a trained policy
    for _ in range(2):  # the normalizer has seen data, which is not symmetric
        ppo.collect()
        metrics = ppo.update()
    assert metrics["loss/symmetry"] > 0
    ppo.collect()
    ppo.advantage(ppo.rollout.data)
    (minibatch,) = ppo._minibatches(ppo.rollout.data).shuffled(ppo.order)
    mirror = env.mirror(("policy",))
    raw = ppo.policy.normalizer["policy"].inverse(minibatch["policy"])
    assert raw.abs().max() > 0.1
    normalizer = ppo.policy.normalizer["policy"]
    seen = (mirror.groups["policy"](raw), raw)
    means = [ppo.policy.head(normalizer(observation)).double() for observation in seen]
    expected = (means[0] - mirror.action(means[1].detach())).square().mean()
    total, report = ppo._losses(minibatch)
    torch.testing.assert_close(report[-1].double(), expected.detach(), rtol=1e-4, atol=1e-6)
    gradients = torch.autograd.grad(total, ppo.parameters, retain_graph=True)
    ppo.mirror = None
    plain, plain_report = ppo._losses(minibatch)
    assert torch.equal(plain_report, report[:-1])
    torch.testing.assert_close((total - plain).double(), 0.25 * expected, rtol=1e-3, atol=1e-5)
    without = torch.autograd.grad(plain, ppo.parameters)
    alone = torch.autograd.grad(0.25 * expected, ppo.parameters, materialize_grads=True)
    for with_loss, other, own in zip(gradients, without, alone, strict=True):
        torch.testing.assert_close(with_loss, other + own, rtol=1e-3, atol=1e-4)
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_compiled_update_learns_what_an_eager_one_learns(optimizer: str) -> None:
    """One update with the symmetry loss from the same rollout, to the rounding of the matrix products."""
    algorithm = {"horizon": 8, "minibatch_size": 16, "symmetry_coef": 0.25, "optimizer": optimizer}
    sections = {"env": ANT, "network": {"hidden_sizes": [8]}, "algorithm": algorithm}
    weights = []
    for compiled in (False, True):
        torch.manual_seed(0)
        env = make_env("ant", num_envs=4, device=CPU)
        ppo = make_algorithm(ExperimentConfig.model_validate(sections), env, compiled)
        ppo.collect()
        ppo.update()
        weights.append({name: weight.detach() for name, weight in ppo.policy.named_parameters()})
        env.close()
    for name, weight in weights[0].items():
        tolerance = 1e-3 if optimizer == "muon" else 1e-5  # 10 steps of at most 3e-4 * 1
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=tolerance, msg=name)


@pytest.mark.parametrize(
    ("setting", "others"),
    [
        ("algorithm.symmetry_coef=0.25", ["algorithm.minibatch_size=16", "algorithm.horizon=8"]),
        ("algorithm.symmetry=true", ["algorithm.name=sac", "algorithm.learning_starts=8"]),
    ],
)
def test_symmetry_on_a_task_without_a_mirror_is_refused(
    tmp_path: Path, setting: str, others: list[str]
) -> None:
    """In one line, with field, value, problem and fix, before anything is written."""
    path = tmp_path / "a.yaml"
    path.write_text("env: {name: cartpole_balance, num_envs: 2}")
    brief = [f"experiment.output_dir={tmp_path}/runs", "tracking.backend=none", "training.total_steps=64"]
    with pytest.raises(ConfigError) as caught:
        run(path, [*brief, setting, *others])
    message, (field, _, _) = str(caught.value), setting.partition("=")
    assert f"{field} = " in message
    assert "cartpole_balance declares no mirror; remove it, or name a task whose" in message
    assert len(message.splitlines()) == 1
    assert not list(tmp_path.rglob("*.safetensors"))


def test_symmetry_of_a_network_with_a_state_is_refused(tmp_path: Path) -> None:
    """The mirror image of a recurrent state is not known."""
    path = tmp_path / "a.yaml"
    path.write_text("network: {name: gru}")
    with pytest.raises(ConfigError, match=r"algorithm\.symmetry_coef = 0\.25.*gru has a state"):
        load_config(path, ["algorithm.symmetry_coef=0.25"])
    assert load_config(path, [])


def test_shards_with_one_sample_each_are_refused() -> None:
    """Every second sample of one is none."""
    settings = {"name": "sac", **OFF_POLICY, "batch_size": 4}
    cfg = ExperimentConfig.model_validate({"env": ANT, "algorithm": settings, "compute": {"shards": 4}})
    env = make_env("ant", num_envs=4, device=CPU)
    with pytest.raises(SettingError, match="has no effect on shards with one sample"):
        make_algorithm(cfg, env)
    env.close()
