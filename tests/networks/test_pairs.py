"""Every pair of an algorithm and a network trains, or is refused with a reason, as docs/zoo.md says."""

from itertools import dropwhile, takewhile
from pathlib import Path

import pytest
import torch

from envs_gpu.make import make_env
from pi_incubator.config import ConfigError, load_config
from pi_incubator.config.models import ALGORITHMS, NETWORKS
from pi_incubator.envs import pixel_options
from tests.distillation.toy import ToyDistillation, make_teacher
from tests.learning import make_algorithm
from tests.offline import make_episode, write_dataset

ENV = ["env.name=cartpole_balance", "env.num_envs=4"]
OFF_POLICY = [
    "algorithm.horizon=4",
    "algorithm.batch_size=16",
    "algorithm.learning_starts=32",
    "algorithm.updates_per_step=0.25",
    "algorithm.buffer_size=256",
]
ON_POLICY = ["algorithm.horizon=16", "algorithm.minibatch_size=32"]
OF_ALGORITHM = {
    "ppo": ON_POLICY,
    "a2c": ON_POLICY,
    "grpo": [*ON_POLICY, "algorithm.group_size=2"],
    "world_model_gradient": [*OFF_POLICY, "algorithm.sequence_length=4", "algorithm.imagined_steps=2"],
    "dreamer": [*OFF_POLICY, "algorithm.sequence_length=4", "algorithm.imagined_steps=2"],
    "distillation": [
        "algorithm.horizon=4",
        "algorithm.num_updates=2",
        "algorithm.minibatch_size=16",
        "algorithm.teachers=[seer]",
    ],
}
WINDOWS = ["algorithm.replay=sequences", "algorithm.sequence_length=4", "algorithm.burn_in=2"]
RSSM = ["network.hidden_sizes=[8]", "network.recurrent_size=8", "network.num_latents=2"]
OF_NETWORK = {
    "rssm": RSSM,
    "rssm_pixels": [*RSSM, "network.channels=[4]", "env.pixels={width: 16, height: 16, frames: 1}"],
    "batch_norm": ["network.hidden_sizes=[8]", "network.critic_sizes=[8]"],
    "flash": ["network.actor_width=8", "network.critic_width=8", "network.num_blocks=1"],
    "cnn": ["network.hidden_sizes=[8]", "network.channels=[4]", "env.pixels={width: 16, height: 16}"],
}
OFFLINE = {name for name, member in ALGORITHMS.members.items() if member.reads_dataset}
OFFLINE_BATCHES = [
    "algorithm.batch_size=16",
    "algorithm.offline_updates=1",
    "algorithm.updates_per_iteration=1",
    "training.total_steps=0",
]
ZOO = (Path(__file__).parents[2] / "docs" / "zoo.md").read_text()


def rows_of(heading):
    """The cells of the first table behind a line that begins with `heading`."""
    lines = ZOO[ZOO.index(heading) :].splitlines()
    rows = list(takewhile(lambda line: line.startswith("|"), dropwhile(lambda line: line[:1] != "|", lines)))
    return [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows]


def table():
    """(algorithm, network) -> "yes" or the letter of a reason."""
    (_, *networks), _, *rows = rows_of("## Algorithms and networks")
    return {
        (name, network): cell for name, *cells in rows for network, cell in zip(networks, cells, strict=True)
    }


TABLE = table()
REASONS = {letter: phrase for letter, _, phrase in rows_of("| letter |")[2:]}
"""Letter -> what the message says."""
PAIRS = [(name, network) for name in ALGORITHMS.members for network in NETWORKS.members]


def config_of(tmp_path, name, network):
    path = tmp_path / "pair.yaml"
    path.write_text("{}")
    own = OF_ALGORITHM.get(name, OFF_POLICY)
    if name in OFFLINE:
        own = [f"dataset.path={tmp_path / 'recorded'}", *OFFLINE_BATCHES]
    windows = WINDOWS if own is OFF_POLICY and NETWORKS.members[network].has_state else []
    sizes = OF_NETWORK.get(network, ["network.hidden_sizes=[8, 8]"])
    return load_config(
        path, [f"algorithm.name={name}", f"network.name={network}", *ENV, *own, *windows, *sizes]
    )


def test_the_table_of_the_docs_is_complete():
    assert set(TABLE) == set(PAIRS)


@pytest.mark.parametrize(("name", "network"), PAIRS)
def test_a_pair_trains_one_iteration_or_is_refused(tmp_path, name, network):
    if TABLE[name, network] != "yes":
        with pytest.raises(ConfigError, match=r"network\.name = .*: .*; (set|name) ") as caught:
            config_of(tmp_path, name, network)
        assert len(str(caught.value).splitlines()) == 1
        assert REASONS[TABLE[name, network]] in str(caught.value)
        return
    cfg = config_of(tmp_path, name, network)
    torch.manual_seed(0)
    env = make_env(cfg.env.name, num_envs=4, device=torch.device("cpu"), pixels=pixel_options(cfg))
    if name in OFFLINE:
        write_dataset(tmp_path / "recorded", [make_episode(20, spec=env.spec)], env.spec)
    if name == "distillation":
        algorithm = ToyDistillation(cfg, env, make_teacher("seer", cfg.network, env.spec))
    else:
        algorithm = make_algorithm(cfg, env)
    before = {key: value.clone() for key, value in algorithm.policy.named_parameters()}
    for _ in range(1 if name in OFFLINE else -(-32 // (cfg.algorithm.horizon * 4)) + 1):
        algorithm.collect()
        algorithm.update()
    env.close()
    moved = [key for key, value in algorithm.policy.named_parameters() if not torch.equal(value, before[key])]
    assert moved
    assert all(value.isfinite().all() for value in algorithm.policy.parameters())
