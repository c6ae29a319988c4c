"""From a trained run to what every target ships: a checked file, and the contract that goes with it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import onnx

from envs_gpu.vec_env import VecEnv
from pi_incubator.checkpoint_files import Checkpoint
from pi_incubator.config import ExperimentConfig
from pi_incubator.deploy.bundle import ONNX
from pi_incubator.deploy.contract import Contract, Origin, make_contract, metadata, to_json
from pi_incubator.deploy.graph import DeployablePolicy
from pi_incubator.deploy.precision import convert
from pi_incubator.deploy.program import to_bytes, to_onnx
from pi_incubator.deploy.record import Recording, action_error, check_parity
from pi_incubator.deploy.session import ExportedPolicy, Session
from pi_incubator.envs import evaluation_seed
from pi_incubator.evaluation.evaluate import evaluate
from pi_incubator.policies.policy import Policy
from pi_incubator.run_folder import RunFolder


@dataclass(frozen=True)
class Artifact:
    """One exported policy."""

    model: bytes
    """The ONNX file."""
    contract: Contract
    action_error: float
    """The largest difference of an action, or of a target, from the policy in torch."""

    @property
    def name(self) -> str:
        """What its files are called after: the experiment's name."""
        return self.contract["name"]

    @property
    def contract_json(self) -> bytes:
        return to_json(self.contract).encode()


@dataclass(frozen=True)
class Source:
    """A trained policy, what it is exported with, and what it met in simulation."""

    cfg: ExperimentConfig
    env: VecEnv
    policy: Policy
    origin: Origin
    recording: Recording

    def artifact(self, precision: str = "fp32") -> Artifact:
        """The policy in `precision`, one of `deploy.PRECISIONS`.

        The float32 file that every other one is made from is checked against the policy.

        Raises:
            UserError: that file does not act like the policy, or no robot could run it.
        """
        interface, deployment = self.env.interface(), self.cfg.deployment
        graph = DeployablePolicy(self.policy, interface).eval()
        model = to_onnx(graph, graph.example(2), graph.input_names, graph.output_names, deployment.opset)
        exact = model.SerializeToString()
        error = check_parity(exact, ONNX, self.recording, interface.targets, deployment.tolerance)
        normalizer = self.policy.normalizer["policy"]
        contract = make_contract(
            self.cfg, self.env.spec, interface, graph.states, normalizer, self.origin, precision
        )
        content = to_bytes(convert(model, precision, self.recording), metadata(contract))
        if precision != "fp32":
            error = action_error(Session(content), self.recording, interface.targets)
        onnx.checker.check_model(content)
        sha256 = hashlib.sha256(content).hexdigest()
        entry = {"file": ONNX, "sha256": sha256, "opset": deployment.opset}
        return Artifact(content, contract | {"onnx": entry}, error)

    def simulated_return(self, artifact: Artifact, num_episodes: int) -> float:
        """Mean return of the exported file in the evaluation's worlds."""
        policy = ExportedPolicy(Session(artifact.model), self.env.interface())
        evaluation = evaluate(self.env, policy, num_episodes, evaluation_seed(self.cfg))
        return evaluation.summary()["return"]["mean"]


def origin_of(found: Checkpoint, folder: RunFolder) -> Origin:
    """Where the policy of a checkpoint comes from.

    Args:
        found: the checkpoint that the policy was loaded from.
        folder: of its run.
    """
    weights = found.files["policy.safetensors"]
    git = (found.git_commit, found.git_dirty)
    return Origin(found.config_sha256, weights, *git, _written_return(folder.evaluation, found))


def _written_return(path: Path, found: Checkpoint) -> float | None:
    """The mean return in a run's `evaluation.json`, if it is of the same checkpoint."""
    if not path.is_file():
        return None
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        return float(written["return"]["mean"]) if written["checkpoint"] == found.progress else None
    except (ValueError, KeyError, TypeError):
        return None  # half written: the policy is worth no less
