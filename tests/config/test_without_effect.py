"""A setting that would do nothing in a combination is refused there in one line, and accepted elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from envs_gpu.errors import SettingError
from pi_incubator.cli.eval import on_backend
from pi_incubator.config import ConfigError, ExperimentConfig, load_config
from pi_incubator.config.algorithms.distillation import ONLINE, training_worlds_only
from pi_incubator.config.errors import FIELDS
from pi_incubator.config.models import UNIONS
from pi_incubator.config.randomization import RandomizationSection
from pi_incubator.config.without_effect import RULES
from pi_incubator.envs import check_policy_reads

ZOO = "env.name=brax/ant"
RSSM = ["algorithm.name=dreamer", "network.name=rssm"]
RSSM_PIXELS = ["algorithm.name=dreamer", "network.name=rssm_pixels", "env.pixels={}"]
CNN = ["network.name=cnn", "env.pixels={}"]
DISTIL = ["algorithm.name=distillation", "algorithm.teachers=[runs/a]"]
OFFLINE = [*DISTIL, "algorithm.dataset=data.npz"]
SAC = ["algorithm.name=sac"]
BC = ["algorithm.name=bc", "dataset=data", "training.total_steps=0"]
IQL = ["algorithm.name=iql", "dataset=data"]
FLASH = ["algorithm.name=flash_sac", "network.name=flash"]
DREAMER = ["algorithm.name=dreamer", "network.name=rssm"]
NOISE = "randomization.observation_noise={low: -0.1, high: 0.1}"


class Case(NamedTuple):
    """A setting, a combination in which it does nothing, and one in which it does something."""

    setting: str
    without: list[str]
    beside: list[str] = []  # noqa: RUF012 - nothing changes it


TABLE = [
    # environments
    Case("env.mjx_impl=warp", ["env.backend=mujoco"], ["env.backend=mjx"]),
    Case("env.mjx_impl=warp", [], ["env.backend=mjx"]),
    Case("env.keyframe=home", ["env.name=hold_pose"], ["env.name=hold_pose", "env.model=robot.xml"]),
    *(
        Case(f"env.{limit}=100", without, beside)
        for limit in ("max_contacts", "max_constraints")
        for without, beside in (
            (["env.backend=mujoco"], ["env.backend=warp"]),
            (["env.backend=mjx"], ["env.backend=mjx", "env.mjx_impl=warp"]),
            ([ZOO], ["env.backend=newton"]),
        )
    ),
    Case("env.episode_length_s=3", [ZOO]),
    Case("env.observation_history=5", [ZOO]),
    Case("env.observation_history=5", CNN),
    Case("env.task.speed=3", [ZOO]),
    Case("env.model_root=/tmp", [], ["env.name=hold_pose", "env.model=a.xml"]),
    Case("env.limits.speed=[-1, 1]", [], ["env.name=hold_pose", "env.model=a.xml"]),
    Case("env.pixels={}", [ZOO], ["network.name=cnn"]),
    Case("env.pixels.frame_gap=4", [*CNN, "env.pixels.frames=1"], CNN),
    Case("guards.history_steps=5", [ZOO]),
    Case("guards.history_steps=5", ["guards.max_dumps=0"]),
    Case("guards.max_dumps=5", [ZOO]),
    Case("guards.energy_margin=5", [ZOO]),
    Case("compute.physics_threads=2", [ZOO]),
    *(
        Case(f"compute.{setting}", [], ["compute.launcher=ray"])
        for setting in ("num_workers=2", "cpus_per_worker=2", "gpus_per_worker=0.5", "max_restarts=0")
    ),
    Case("compute.cluster=10.0.0.1:6379", [], ["compute.launcher=ray"]),
    # randomization
    Case(NOISE, CNN),
    *(
        Case(f"randomization.{name}={{low: 1, high: 2, per: interval}}", [ZOO])
        for name in RandomizationSection.model_fields
        if name not in ("observation_noise", "initial_state", "action_delay")
    ),
    Case(NOISE, [ZOO]),
    Case("randomization.action_delay={high: 2}", [ZOO]),
    Case("randomization.initial_state={position: {low: 0, high: 1}}", [ZOO]),
    Case(
        "randomization.mass.interval_s=3",
        ["randomization.mass={low: 1, high: 2}"],
        ["randomization.mass={low: 1, high: 2, per: interval}"],
    ),
    # networks
    Case("network.observation_clip=5", ["network.normalize_observations=false"]),
    Case("network.observation_clip=5", CNN),
    Case("network.normalize_observations=true", RSSM_PIXELS, RSSM),
    Case("network.activation=elu", ["network.name=gru", "network.hidden_sizes=[32]"], ["network.name=gru"]),
    Case("network.init_log_std=-1", ["algorithm.name=sac"]),
    *(Case("network.state_dependent_std=true", without) for without in (SAC, BC, IQL, FLASH, DREAMER)),
    Case("network.state_dependent_std=true", [*DISTIL, "algorithm.loss=mse"], DISTIL),
    # algorithms
    *(
        Case(
            f"algorithm.{key}={value}", [f"algorithm.lr_schedule={name}"], ["algorithm.lr_schedule=adaptive"]
        )
        for key, value in (("desired_kl", 0.02), ("lr_min", 1e-6), ("lr_max", 0.1))
        for name in ("constant", "linear")
    ),
    *(Case(setting, DISTIL) for setting in ("training.overlap=true", "compute.autocast=bfloat16")),
    *(
        Case(
            f"algorithm.{key}=0.5",
            ["algorithm.name=sac"],
            ["algorithm.name=sac", "algorithm.replay=prioritized"],
        )
        for key in ("priority_exponent", "priority_correction")
    ),
    Case("algorithm.symmetry=true", ["algorithm.name=sac", "algorithm.batch_size=1"], ["algorithm.name=sac"]),
    Case("algorithm.relabelled_share=0.5", SAC, [*SAC, "algorithm.replay=her"]),
    *(
        Case(f"algorithm.{key}=8", SAC, [*SAC, "algorithm.replay=sequences", "network.name=gru"])
        for key in ("sequence_length", "burn_in")
    ),
    *(
        Case(f"algorithm.{key}={value}", [*IQL, "training.total_steps=0"], IQL)
        for key, value in (
            *(("horizon", 2), ("updates_per_step", 0.5), ("save_buffer", "always"), ("dataset_share", 0.1)),
        )
    ),
    *(Case(f"algorithm.{key}={value}", BC, IQL) for key, value in (("gamma", 0.9), ("n_step", 3))),
    Case("algorithm.learning_starts=10", IQL, SAC),
    Case("training.overlap=true", IQL, SAC),
    Case("training.record=data", DISTIL, SAC),
    Case("compute.shards=2", DISTIL, ["algorithm.name=ppo"]),
    Case("algorithm.normalizer=teacher", [*DISTIL, "network.normalize_observations=false"], DISTIL),
    Case("algorithm.fake_quantize_phase=0.5", DISTIL, [*DISTIL, "algorithm.fake_quantize=int8"]),
    *(
        Case(f"algorithm.{key}={value}", OFFLINE, DISTIL)
        for key, value in (
            *(("weights", [2.0]), ("teacher_phase", 0.5), ("exploration", 0.1), ("buffer_size", 300_000)),
        )
    ),
    Case("env.episode_length_s=3", OFFLINE, DISTIL),
    Case(NOISE, OFFLINE, DISTIL),
    Case("dataset.path=data", SAC, ["algorithm.name=iql"]),
    Case("algorithm.rnd_lr=1e-3", ["algorithm.name=ppo"], ["algorithm.rnd_coef=1"]),
    Case("algorithm.entropy_share=0.3", ["algorithm.name=cql", "dataset.path=data"], SAC),
    # what follows training
    Case("tracking.uri=http://localhost", ["tracking.backend=none"]),
    Case("deployment.max_rate_per_s=3", CNN),
]

ALWAYS = {
    "experiment.name experiment.output_dir experiment.seed checkpoint.from",
    "env.name env.backend env.num_envs env.model",  # check_names refuses what does not fit
    "guards.max_broken_share guards.max_skipped_updates",
    "training.total_steps training.log_every",
    "compute.device compute.num_threads compute.compile compute.launcher compute.tf32",
    "tracking.backend",
    "evaluation.num_episodes evaluation.curve evaluation.video evaluation.every",
    "evaluation.video_length_s evaluation.video_worlds",  # pi-eval --video reads them
    "checkpoint.save_every checkpoint.keep checkpoint.resume",
    "deployment.export deployment.opset deployment.num_check_observations deployment.tolerance",  # pi-export
    "network.name network.hidden_sizes network.channels",
    "network.num_layers network.dependency_steps network.num_states network.num_taps network.num_heads",
    "network.window network.actor network.critic",
    "algorithm.name algorithm.loss algorithm.num_epochs algorithm.minibatch_size",
    "algorithm.lr",
    "algorithm.lr_schedule algorithm.gae_lambda algorithm.clip_ratio algorithm.value_coef",
    "algorithm.clip_value_loss algorithm.normalize_value algorithm.entropy_coef algorithm.max_grad_norm",
    "algorithm.group_size algorithm.normalize algorithm.lookahead algorithm.kl_coef",
    "algorithm.rnd_coef",
    "algorithm.normalize_advantage algorithm.reward_scale algorithm.batch_size",
    "algorithm.lr_actor algorithm.lr_critic algorithm.lr_temperature algorithm.tau",
    "algorithm.lr_share_at_end",
    "algorithm.initial_temperature algorithm.target_entropy algorithm.teachers algorithm.dataset",
    "algorithm.record algorithm.feature_coef algorithm.num_updates algorithm.fake_quantize",
    "algorithm.symmetry_coef algorithm.optimizer",
    "algorithm.storage algorithm.replay",
    "algorithm.lr_end algorithm.actor_every algorithm.target_std algorithm.num_bins algorithm.largest_value",
    "algorithm.noise_repeat algorithm.exploration_std algorithm.exploration_std_min",
    "algorithm.smoothing_std algorithm.smoothing_clip",
    "algorithm.offline_updates algorithm.updates_per_iteration algorithm.expectile algorithm.num_actions",
    "algorithm.inverse_temperature algorithm.value_weight algorithm.conservative_weight",
    "algorithm.num_models algorithm.model_sizes algorithm.imagined_steps algorithm.starts_per_window",
    "algorithm.return_lambda algorithm.observation_noise algorithm.lr_model",
    "network.actor_width network.critic_width network.num_blocks network.expansion network.critic_sizes",
    "algorithm.imagined_steps algorithm.start_every algorithm.td_lambda algorithm.max_relative_gradient",
    "algorithm.largest_symlog",
    "algorithm.dynamics_coef algorithm.representation_coef algorithm.free_nats algorithm.replay_value_coef",
    "network.recurrent_size network.num_latents network.num_classes",
}
"""Fields that have an effect wherever they exist, or that another check refuses."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text("{}")
    return path


@pytest.mark.parametrize(
    "case", TABLE, ids=lambda case: " ".join((case.setting.split("={")[0], *case.without))
)
def test_a_setting_without_effect_is_refused(path: Path, case: Case) -> None:
    """It is one line that names the setting; the combination without it, and another with it, are fine."""
    assert isinstance(load_config(path, case.without), ExperimentConfig)
    assert isinstance(load_config(path, [*case.beside, case.setting]), ExperimentConfig)
    with pytest.raises(ConfigError) as caught:
        load_config(path, [*case.without, case.setting])
    field = case.setting.partition("=")[0]
    assert str(caught.value).startswith(f"command line: {field}".removesuffix(".speed"))
    assert "no effect" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_table_holds_every_field() -> None:
    """A new setting has to be entered: it has an effect everywhere, or it is refused where it has none."""
    always = {field for line in ALWAYS for field in line.split()}
    refused = {case.setting.partition("=")[0] for case in TABLE}
    refused |= {".".join(field.split(".")[:2]) for field in refused}
    assert set(FIELDS) - always == refused & set(FIELDS)
    rules = (
        {rule.field for rule in RULES} | {f"algorithm.{key}" for key in ONLINE} | set(training_worlds_only())
    )
    rules |= {field for member in UNIONS["algorithm"].members.values() for field in member.unused}
    assert {".".join(field.split(".")[:2]) for field in rules} <= refused


@pytest.mark.parametrize(
    ("env", "randomization", "field"),
    [
        ({"observation_history": 3}, {}, "env.observation_history"),
        ({}, {"observation_noise": {"low": -1.0, "high": 1.0}}, "randomization.observation_noise"),
    ],
)
def test_a_policy_that_acts_on_another_group_is_refused(
    env: dict[str, Any], randomization: dict[str, Any], field: str
) -> None:
    """Noise and history are on the group `policy` alone; which group a policy reads depends on the task."""
    network = {"name": "encoders", "actor": {"critic": "mlp"}}
    sections = {"env": env, "randomization": randomization, "network": network}
    cfg = ExperimentConfig.model_validate(sections)
    check_policy_reads(cfg, ("policy",))
    with pytest.raises(SettingError, match=r"the policy does not see it.*'critic'") as caught:
        check_policy_reads(cfg, ("critic",))
    assert caught.value.field == field


def test_a_run_without_worlds_has_no_number_of_them_to_choose(path: Path) -> None:
    """The fix is one that works."""
    with pytest.raises(ConfigError, match=r"env.num_envs = 'auto': has nothing to choose .*; set it to 1$"):
        load_config(path, [*BC, "env.num_envs=auto"])
    load_config(path, [*BC, "env.num_envs=1"])
    load_config(path, [*IQL, "env.num_envs=auto"])


@pytest.mark.parametrize("backend", ["mujoco", "warp", "mjx", "newton"])
def test_a_run_is_judged_on_another_backend(path: Path, backend: str) -> None:
    """`pi-eval --backend` drops what the run says about its own backend, which would have no effect there."""
    path.write_text("env: {backend: mjx, mjx_impl: warp, max_contacts: 9, max_constraints: 9}")
    assert load_config(path, on_backend(backend)).env.backend == backend
