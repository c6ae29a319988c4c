"""Off-policy algorithms learn the same compiled and not."""

from pathlib import Path

import pytest
import torch

from envs_gpu.make import make_env
from pi_incubator.config import load_config
from tests.learning import make_algorithm, state_of

CONFIGS = Path(__file__).parents[2] / "configs"
CPU = torch.device("cpu")
SETTINGS = ["env.name=cartpole_balance", "env.num_envs=8", "algorithm.learning_starts=16"]
SETTINGS += ["algorithm.batch_size=32", "algorithm.buffer_size=256", "algorithm.updates_per_step=0.5"]
SETTINGS += ["compute.autocast=none"]
NARROW = "network.hidden_sizes=[16]"
FLASH = ["network.actor_width=8", "network.critic_width=8", "network.num_blocks=1"]
WINDOWS = [
    "network.name=gru",
    "network.hidden_sizes=[16, 16]",
    "algorithm.replay=sequences",
    "algorithm.sequence_length=2",
    "algorithm.burn_in=1",
]
PRIORITIZED = ["algorithm.replay=prioritized"]
# A shift before a normalization has a gradient of zero but for rounding, of which Adam makes steps. They
# are short here, and the gradients are compared through Adam's moments.
CROSSQ = ["network.hidden_sizes=[16]", "network.critic_sizes=[16]", "algorithm.lr=3e-6"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folder", "own"),
    [
        ("sac", "sac", [NARROW, *PRIORITIZED]),
        ("td3", "sac", [NARROW, *PRIORITIZED]),
        ("flash_sac", "flash_sac", [*FLASH, *PRIORITIZED]),
        ("crossq", "crossq", [*CROSSQ, *PRIORITIZED]),
        ("sac", "sac", WINDOWS),
        ("td3", "sac", WINDOWS),
    ],
    ids=["sac", "td3", "flash_sac", "crossq", "sac_gru", "td3_gru"],
)
def test_compiled_steps_learn_what_eager_ones_learn(name, folder, own):
    """Twelve updates from the same steps, priorities included, to the rounding of float32."""
    config = str(CONFIGS / folder / "half_cheetah.yaml")
    cfg = load_config(config, [*SETTINGS, *own, f"algorithm.name={name}"])
    states = []
    for compiled in (False, True):
        torch.manual_seed(0)
        env = make_env("cartpole_balance", num_envs=8, device=CPU, seed=0)
        algorithm = make_algorithm(cfg, env, compiled)
        for _ in range(5):
            algorithm.collect()
            algorithm.update()
        states.append(state_of(algorithm))
        env.close()
    eager, compiled = states
    for key, value in eager.items():
        if value.is_floating_point():
            torch.testing.assert_close(compiled[key], value, rtol=1e-3, atol=1e-4, msg=key)
