"""`checkpoint.from`: a new run starts with what another one has learned, and says what it took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pi_incubator
from envs_gpu.errors import SettingError
from pi_incubator import checkpoint
from pi_incubator.checkpoint import Part
from pi_incubator.config import ConfigError, ExperimentConfig, load_config
from pi_incubator.errors import UserError
from pi_incubator.hooks.hook import Hook, Progress
from pi_incubator.run_folder import RunFolder, begin, check_origin, check_resume
from pi_incubator.start_from import start_from
from pi_incubator.training.state import NamedTensors

CONFIG = Path(__file__).parents[1] / "configs" / "ppo" / "cartpole_balance.yaml"
SETTINGS = (
    *("env.num_envs=8", "algorithm.horizon=4", "algorithm.minibatch_size=16", "algorithm.num_epochs=1"),
    *("training.log_every=1", "checkpoint.save_every=1", "tracking.backend=none", "compute.compile=off"),
    *(
        "evaluation.num_episodes=1",
        "evaluation.video=false",
        "deployment.export=none",
        "evaluation.curve=false",
        "compute.device=cpu",
    ),
    "env.name=inverted_pendulum",  # untrained, its episodes are short
)


class Policy(torch.nn.Module):
    """Has the names of a policy's tensors: a network, the normalizers of two groups, and `log_std`."""

    def __init__(self, width: int, privileged: int, actions: int) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(width, 4)
        self.head = torch.nn.Linear(4, actions)
        self.log_std = torch.nn.Parameter(torch.randn(actions))
        self.normalizer = torch.nn.ModuleDict()
        for group, size in (("policy", width), ("critic", privileged)):
            self.normalizer[group] = torch.nn.Module()
            self.normalizer[group].register_buffer("mean", torch.randn(size))


def parts_of(
    width: int = 3, privileged: int = 5, actions: int = 2, temperature: float = 0.0
) -> dict[str, Part]:
    critics = NamedTensors(**{"critic.0": torch.randn(privileged)}, log_temperature=torch.tensor(temperature))
    return {
        "policy": Part(Policy(width, privileged, actions), is_learned=True),
        "critics": Part(critics, is_learned=True),
        "optimizer": Part(NamedTensors(step=torch.randn(1))),
    }


def tensors(part: Part) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in part.value.state_dict().items()}


@pytest.fixture
def source(tmp_path: Path) -> tuple[RunFolder, dict[str, Part]]:
    """A run, and the parts that its checkpoint holds."""
    cfg = make_config(tmp_path, "source")
    folder, parts = RunFolder(cfg), parts_of(temperature=7.0)
    folder.path.mkdir()
    begin(cfg, folder)
    checkpoint.save(folder, 4, 40, parts, cfg, keep=1)
    return folder, parts


def make_config(output_dir: Path, name: str, **sections: Any) -> ExperimentConfig:
    experiment = {"name": name, "output_dir": str(output_dir)}
    return ExperimentConfig.model_validate({"experiment": experiment} | sections)


def test_what_fits_is_taken(source: tuple[RunFolder, dict[str, Part]]) -> None:
    """All that was learned, and nothing of the state of that training; a line says so for each."""
    folder, theirs = source
    ours = parts_of()
    before = tensors(ours["optimizer"])
    found, lines = start_from(str(folder.path), ours, ("policy",))
    assert found.iteration == 4
    for name in ("policy", "critics"):
        for key, tensor in tensors(ours[name]).items():
            assert torch.equal(tensor, tensors(theirs[name])[key]), key
    assert torch.equal(tensors(ours["optimizer"])["step"], before["step"])
    assert lines == [
        f"starting with the weights of {folder.path}, iteration 4",
        "  policy: log_std taken",
        "  policy: normalizer.critic taken",
        "  policy: normalizer.policy taken",
        "  policy: weights taken",
        "  critics: log_temperature taken",
        "  critics: weights taken",
        "  not taken, because they belong to that training: optimizer, random",
    ]


def test_critics_that_do_not_fit_start_anew(source: tuple[RunFolder, dict[str, Part]]) -> None:
    """Other privileged observations change the critic, not the policy: the reason is printed."""
    folder, theirs = source
    ours = parts_of(privileged=6)
    before = tensors(ours["critics"])
    _, lines = start_from(str(folder.path), ours, ("policy",))
    assert torch.equal(tensors(ours["critics"])["critic.0"], before["critic.0"])
    assert tensors(ours["critics"])["log_temperature"] == 7.0
    assert torch.equal(tensors(ours["policy"])["head.weight"], tensors(theirs["policy"])["head.weight"])
    mean = "normalizer.critic.mean is float32 [5] there and float32 [6] here"
    assert f"  policy: normalizer.critic not taken: {mean}" in lines
    assert "  critics: weights not taken: critic.0 is float32 [5] there and float32 [6] here" in lines


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"width": 4}, r"normalizer\.policy\.mean is float32 \[3\] there and float32 \[4\] here"),
        ({"actions": 3}, r"head\.bias is float32 \[2\] there and float32 \[3\] here"),
    ],
    ids=["observations", "actions"],
)
def test_a_policy_that_does_not_fit_is_refused(
    source: tuple[RunFolder, dict[str, Part]], other: dict[str, int], problem: str
) -> None:
    """One line names the setting and the difference, and nothing is loaded."""
    ours = parts_of(**other)
    before = tensors(ours["policy"])
    with pytest.raises(SettingError, match=rf"checkpoint\.from = .*does not fit: {problem}; name a run"):
        start_from(str(source[0].path), ours, ("policy",))
    assert all(torch.equal(value, before[key]) for key, value in tensors(ours["policy"]).items())


def test_a_run_with_another_network_is_refused_early(
    tmp_path: Path, source: tuple[RunFolder, dict[str, Part]]
) -> None:
    """Before torch is loaded; so is a folder that is no run."""
    origin = {"from": str(source[0].path)}
    check_origin(make_config(tmp_path, "new", checkpoint=origin, network={"init_log_std": -1.0}))
    other = make_config(tmp_path, "new", checkpoint=origin, network={"hidden_sizes": [8]})
    with pytest.raises(
        SettingError, match=r"has network\.hidden_sizes = \[64, 64\], this one \[8\]; set the"
    ):
        check_origin(other)
    with pytest.raises(UserError, match=r"did you mean .*source"):
        check_origin(make_config(tmp_path, "new", checkpoint={"from": str(tmp_path / "sorce")}))


class Iterations(Hook):
    """Notes which iterations were trained."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def due(self, progress: Progress) -> bool:
        return True

    def __call__(self, progress: Progress) -> None:
        self.seen.append(progress.iteration)


def train(output_dir: Path, name: str, *settings: str) -> tuple[RunFolder, list[int]]:
    place = (f"experiment.output_dir={output_dir}", f"experiment.name={name}", "training.total_steps=32")
    hook = Iterations()
    result = pi_incubator.run(CONFIG, [*SETTINGS, *place, *settings], hooks=[hook])
    return RunFolder(result.folder), hook.seen


def test_a_run_starts_from_another_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With another learning rate and number of worlds, into its own folder, and from its own start too."""
    source, _ = train(tmp_path, "source")
    capsys.readouterr()
    # A learning rate of almost nothing: the weights after an iteration are those that it began with.
    still = ("algorithm.lr=1e-30", "env.num_envs=16", "training.total_steps=128")
    new, seen = train(tmp_path, "new", *still, f"checkpoint.from={source.path}")
    printed = capsys.readouterr().out
    assert f"starting with the weights of {source.path}, iteration 0" in printed
    assert "  policy: weights taken" in printed
    assert "  critic: weights taken" in printed
    assert seen == [0, 1]
    for part in ("policy", "critic"):
        theirs, ours = (checkpoint.pin(run, (part,)).states[part] for run in (source, new))
        assert torch.equal(ours[_head(ours)], theirs[_head(theirs)])
    written = json.loads(new.inputs.read_text())["inputs"]["checkpoint.from"]
    sha256 = checkpoint.pin(source).checkpoint.files["policy.safetensors"]
    assert written[0]["path"] == str(source.path)
    assert written[0]["files"]["policy.safetensors"] == sha256
    assert load_config(new.config).checkpoint.from_run == str(source.path)
    # Continued, with or without the setting, it does not start from there again.
    more = ("training.total_steps=192", *still[:2])
    _, seen = train(tmp_path, "new", *more, f"checkpoint.from={source.path}")
    assert seen == [2]
    cfg = load_config(new.config, ["checkpoint.from=null"])
    assert check_resume(cfg, new) is True
    with pytest.raises(
        ConfigError, match=r"checkpoint\.from = .*has begun already, from .*source; leave it out"
    ):
        check_resume(load_config(new.config, [f"checkpoint.from={new.path}"]), new)


def test_a_run_may_start_from_what_it_replaces(tmp_path: Path) -> None:
    """With resume=never: its weights are read before it is moved aside. Where they do not fit, it stays."""
    source, _ = train(tmp_path, "run")
    before = checkpoint.pin(source).states["policy"]
    origin = f"checkpoint.from={source.path}"
    with pytest.raises(ConfigError, match=r"checkpoint\.from = .*network\.hidden_sizes"):
        train(tmp_path, "run", "checkpoint.resume=never", origin, "network.hidden_sizes=[8]")
    with pytest.raises(ConfigError, match=r"checkpoint\.from = .*its policy does not fit"):
        train(tmp_path, "run", "checkpoint.resume=never", origin, "env.observation_history=2")
    assert checkpoint.pin(source).checkpoint.iteration == 0
    assert not source.previous.exists()
    again, seen = train(tmp_path, "run", "checkpoint.resume=never", origin, "algorithm.lr=1e-30")
    assert seen == [0]
    after = checkpoint.pin(again).states["policy"]
    assert torch.equal(after[_head(after)], before[_head(before)])
    assert checkpoint.pin(again.previous / "001").checkpoint.iteration == 0


def _head(state: dict[str, torch.Tensor]) -> str:
    return min(name for name in state if name.startswith("head.") and name.endswith("weight"))
