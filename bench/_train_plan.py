"""What `pi-bench train` compares: which loops at which settings, checked before anything is started."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench._loops import brax, cleanrl_sac, envpool, flashsac, sb3, sb3_sac, sb3_td3, sbx, sbx_sac, torchrl
from bench._loops._off_policy import OffPolicyPeer, is_off_policy, named_only
from bench._loops._peer import Peer, Settings, horizon_for
from bench._machine import fresh_environment
from bench._worker import Budget, Worker
from pi_incubator.config import ExperimentConfig, check_names, load_with_sources
from pi_incubator.config.models import OPEN
from pi_incubator.errors import UserError
from pi_incubator.evaluation.table import show

OURS, PHYSICS = "pi_incubator", "physics"
PEERS: Mapping[str, Peer] = {
    "sb3": sb3.PEER,
    "sbx": sbx.PEER,
    "torchrl": torchrl.PEER,
    "envpool": envpool.PEER,
    "brax": brax.PEER,
    "sb3_sac": sb3_sac.PEER,
    "sb3_td3": sb3_td3.PEER,
    "sbx_sac": sbx_sac.PEER,
    "cleanrl_sac": cleanrl_sac.PEER,
    "flashsac": flashsac.PEER,
    "holosoma": named_only("holosoma", "install github.com/amazon-far/holosoma"),
    "unilab": named_only("unilab", "pip install 'unilab[mujoco]' in a separate environment"),
}
DEFAULT_PEER = "sb3"
"""Of on-policy algorithms; the others meet all of their peers."""
ALL, NONE = "all", "none"
BESIDE = "beside"
"""The label of another checkout's loop."""
RESOLVE = (
    "import sys; from pi_incubator.config import load_config; "
    "print(load_config(sys.argv[1], sys.argv[2:]).model_dump_json())"
)
# Settings that both sides can have; Stable-Baselines3's PPO does not normalize observations by itself.
IDENTICAL = (
    "env.num_envs=8",
    "algorithm.horizon=256",
    "algorithm.num_epochs=10",
    "algorithm.minibatch_size=512",
    "algorithm.lr_schedule=constant",
    "algorithm.max_grad_norm=0.5",
    "network.hidden_sizes=[64, 64]",
    "network.activation=tanh",
    "network.normalize_observations=false",
)
IDENTICAL_OFF_POLICY = ("network.normalize_observations=false",)
SWEEP_BUDGET = Budget(seconds=1)
OUR_SIZES = (64, 256)
"""Numbers of worlds among which a sweep looks for our fastest."""
MINIBATCHES = 8
"""Of a rollout where our batch is sized."""


@dataclass(frozen=True)
class Entry:
    """One loop of a comparison."""

    loop: str
    """A file in `bench/_loops`."""
    settings: Settings
    checkout: str | None = None
    """Folder of another checkout of this project whose loop it is."""


@dataclass(frozen=True)
class Comparison:
    """Loops that are measured together."""

    name: str
    cfg: ExperimentConfig
    """Of our loop."""
    entries: dict[str, Entry]
    """Label -> loop, in the order of their turns; ours is first, at `cfg`."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Peer -> why it is not measured."""

    @property
    def learners(self) -> list[str]:
        """The labels of all that learns."""
        return [label for label in self.entries if label != PHYSICS]

    @property
    def ours(self) -> list[str]:
        """The labels of our loops."""
        return [label for label, entry in self.entries.items() if entry.loop == OURS and not entry.checkout]


def peers_of(cfg: ExperimentConfig) -> list[str]:
    """The peers that learn as the algorithm of `cfg` does, off-policy or not."""
    return [name for name, peer in PEERS.items() if isinstance(peer, OffPolicyPeer) == is_off_policy(cfg)]


def chosen_peers(names: Iterable[str], cfg: ExperimentConfig) -> list[str]:
    """The peers that `--peer` names for the algorithm of `cfg`.

    Raises:
        UserError: there is no such peer, or `none` stands beside another.
    """
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in (*PEERS, ALL, NONE):
            raise UserError(f"--peer {name}: no such peer; take of: {', '.join((*PEERS, ALL, NONE))}")
    if NONE in names:
        if len(names) > 1:
            raise UserError(f"--peer {' '.join(names)}: none stands alone; leave the others or it out")
        return []
    return peers_of(cfg) if ALL in names else names


def load(arguments: argparse.Namespace, *first: str) -> ExperimentConfig:
    """The config of the command line, whose overrides come after `first`.

    Raises:
        UserError: it is not a config, or its env has no physics of ours.
    """
    cfg, sources = load_with_sources(arguments.config, [*first, *arguments.overrides])
    check_names(cfg, sources)
    if "/" in cfg.env.name:
        problem = "brings its own physics, beside which nothing can be measured"
        raise UserError(f"env.name = {cfg.env.name!r}: {problem}; take a task of pi-envs list")
    return settle(cfg)


def settle(cfg: ExperimentConfig) -> ExperimentConfig:
    """`cfg` with a number of worlds, chosen here where it says auto.

    Raises:
        UserError: as `choose_num_envs`.
    """
    if cfg.env.num_envs != OPEN:
        return cfg
    # They import torch, which is slow, and which the comparisons leave to other processes.
    from pi_incubator.autosize import choose_num_envs
    from pi_incubator.compute import plan_compute

    cfg, plan = choose_num_envs(cfg, plan_compute(cfg))
    print(plan.reasons[-1], file=sys.stderr)
    return cfg


def comparisons(arguments: argparse.Namespace) -> list[Comparison]:
    """What the command line asks for.

    Raises:
        UserError: the config is none, or a peer that was named cannot be compared with it.
    """
    cfg, planned = load(arguments), []
    names = named_peers(arguments, cfg)
    peers, lenient = chosen_peers(names, cfg), ALL in names
    if arguments.sweep and is_off_policy(cfg):
        raise UserError("--sweep: it sizes rollouts, which off-policy algorithms have not; leave it out")
    if not arguments.identical:
        planned.append(_own(cfg, peers, lenient, _other_checkout(arguments)))
    if arguments.identical or peers:
        same = load(arguments, *(IDENTICAL_OFF_POLICY if is_off_policy(cfg) else IDENTICAL))
        planned.append(_identical(same, peers, lenient, arguments.sb3_vec))
    return planned


def named_peers(arguments: argparse.Namespace, cfg: ExperimentConfig) -> list[str]:
    """What stands after `--peer`, or what is meant where it is left out."""
    return arguments.peer or [ALL if is_off_policy(cfg) else DEFAULT_PEER]


def with_best_sizes(comparison: Comparison) -> Comparison:
    """`comparison` with every loop once more, at the number of worlds that a short turn found fastest."""
    entries = {label: comparison.entries[label] for label in comparison.learners}
    for name in (OURS, *PEERS):
        if any(entry.loop == name for entry in entries.values()):
            label, entry = _fastest(name, comparison.cfg)
            if entry == entries[OURS]:
                continue  # the config is it already
            entries = {old: kept for old, kept in entries.items() if kept != entry} | {label: entry}
    return Comparison(
        comparison.name,
        comparison.cfg,
        entries | {PHYSICS: comparison.entries[PHYSICS]},
        comparison.left_out,
    )


def lacking(name: str, cfg: ExperimentConfig, lenient: bool) -> str | None:
    """Why the peer `name` cannot be compared with `cfg`; None where it can.

    Raises:
        UserError: it cannot, and is not `lenient`ly left out.
    """
    lack = PEERS[name].lacks(cfg)
    if lack and not lenient:
        raise UserError(f"--peer {name}: {lack[0]}; {lack[1]}, or add --peer none")
    return "; ".join(lack) if lack else None


def _other_checkout(arguments: argparse.Namespace) -> Entry | None:
    """Our loop as the checkout in `--beside` has it, with the same file and overrides as it reads them.

    Raises:
        UserError: it is no checkout of this project, or cannot read them.
    """
    if arguments.beside is None:
        return None
    checkout, config = str(arguments.beside.resolve()), str(Path(arguments.config).resolve())
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, config, *arguments.overrides],
        cwd=checkout,
        env=fresh_environment(PYTHONPATH=checkout),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.splitlines() or ["no reason given"])[-1]
        raise UserError(f"--beside {arguments.beside}: cannot read the config ({reason}); name a checkout")
    return Entry(OURS, json.loads(done.stdout), checkout)


def _own(cfg: ExperimentConfig, peers: list[str], lenient: bool, beside: Entry | None) -> Comparison:
    entries, left_out = {OURS: _our_entry(cfg)}, {}
    if beside:
        entries[BESIDE] = beside
    for name in peers:
        if reason := lacking(name, cfg, lenient):
            left_out[name] = reason
            continue
        peer = PEERS[name]
        if peer.default:
            entries[name] = Entry(name, peer.default(cfg))
        else:
            entries[_label(name, peer.sizes[0])] = sized(name, cfg, peer.sizes[0])
    return Comparison("own", cfg, entries | {PHYSICS: Entry(PHYSICS, entries[OURS].settings)}, left_out)


def _identical(cfg: ExperimentConfig, peers: list[str], lenient: bool, sb3_vec: str) -> Comparison:
    entries, left_out = {OURS: _our_entry(cfg)}, {}
    for name in peers:
        same = PEERS[name].same
        if reason := lacking(name, cfg, lenient):
            left_out[name] = reason
        elif same is None:
            left_out[name] = "cannot have these settings"
        else:
            settings = same(cfg)
            if "vec_env" in settings:
                settings["vec_env"] = sb3.VEC_ENVS[sb3_vec]
            entries[name] = Entry(name, settings)
    return Comparison("identical", cfg, entries | {PHYSICS: Entry(PHYSICS, entries[OURS].settings)}, left_out)


def _fastest(name: str, cfg: ExperimentConfig) -> tuple[str, Entry]:
    sizes = OUR_SIZES if name == OURS else PEERS[name].sizes
    entries, speeds = {num_envs: sized(name, cfg, num_envs) for num_envs in sizes}, {}
    for num_envs, entry in entries.items():
        with Worker(name, entry.settings) as worker:
            speeds[num_envs] = worker.run(SWEEP_BUDGET).steps_per_s
        print(f"sweep: {name} with {num_envs} envs: {show(speeds[num_envs])} steps/s", file=sys.stderr)
    best = max(speeds, key=lambda num_envs: speeds[num_envs])
    return _label(name, best), entries[best]


def sized(name: str, cfg: ExperimentConfig, num_envs: int) -> Entry:
    """A loop with so many worlds and a batch to suit them; ours also overlaps."""
    if name != OURS:
        make_settings = PEERS[name].sized
        assert make_settings is not None
        return Entry(name, make_settings(cfg, num_envs))
    horizon = horizon_for(num_envs)
    batch_size = num_envs * horizon
    algorithm = {"horizon": horizon, "minibatch_size": batch_size // MINIBATCHES}
    training = {"overlap": True, "total_steps": max(batch_size, cfg.training.total_steps)}
    return _our_entry(_with(cfg, env={"num_envs": num_envs}, algorithm=algorithm, training=training))


def _our_entry(cfg: ExperimentConfig) -> Entry:
    return Entry(OURS, cfg.model_dump(mode="json"))


def _with(cfg: ExperimentConfig, **changes: dict[str, Any]) -> ExperimentConfig:
    """`cfg` with some settings of some sections changed."""
    sections = cfg.model_dump(mode="json")
    changed = {name: sections[name] | values for name, values in changes.items()}
    return ExperimentConfig.model_validate(sections | changed)


def _label(name: str, num_envs: int) -> str:
    return f"{name} x{num_envs}"


def settings_of(planned: Iterable[Comparison]) -> dict[str, Any]:
    """What makes two results comparable: our config in every comparison, flat."""
    from pi_incubator.provenance import flatten

    return {comparison.name: flatten(comparison.cfg) for comparison in planned}
