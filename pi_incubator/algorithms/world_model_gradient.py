"""Policy gradients through a learned model: the imagined return is differentiated by the policy's weights.

A model of the dynamics is fitted to windows of real steps. From states of these windows the policy acts for
some steps in the model, where reward, termination and observation are the task's own functions. The return
of these steps, with a critic's value behind them, is a differentiable function of the policy's weights:
stochastic value gradients (Heess et al. 2015, arXiv 1510.09142), over a short horizon with a critic (Clavera
et al. 2020, arXiv 2005.08068; Xu et al. 2022, arXiv 2204.07137), with lambda returns (Hafner et al. 2020,
arXiv 1912.01603, eq. 6 to 8). Unlike in these papers, reward and termination are not learned.

Letters: n windows of T steps, k rollouts that start in a window, B = n k, H imagined steps, A actions, W
width of a row, D observation width, K shards, M models.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from tensordict import TensorDict
from torch import Tensor

from envs_gpu.errors import EnvError, SettingError
from envs_gpu.imagination import PHYSICS, Imagination
from envs_gpu.vec_env import EnvSpec, StepResult, VecEnv
from kernels.lambda_return import lambda_return
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithms.world_model_gradient import WorldModelGradientSettings
from pi_incubator.data.replay.replay import NEXT, OBS, Replay
from pi_incubator.data.replay.sequences import STARTS, Windows
from pi_incubator.distributed import Distributed
from pi_incubator.layers.critic import NUM_CRITICS, StateValue
from pi_incubator.networks import make_network
from pi_incubator.policies.squashed_gaussian import SquashedGaussianPolicy
from pi_incubator.registry import algorithm
from pi_incubator.training.adam import Adam, clip_by_norm
from pi_incubator.training.buffered import Buffered, Choice
from pi_incubator.training.compiled import compiled_piece
from pi_incubator.training.repeated_noise import RepeatedNoise
from pi_incubator.training.state import NamedTensors
from pi_incubator.training.step import Phase, make_step
from pi_incubator.training.targets import follow
from pi_incubator.world_models.dynamics import Dynamics, Window
from pi_incubator.world_models.imagine import Noise, Rollout, at_states, imagine, make_imagined_step


@algorithm("world_model_gradient")
class WorldModelGradient(Buffered[WorldModelGradientSettings]):
    """A model, a squashed Gaussian policy, two critics of states, and a temperature tuned to an entropy."""

    policy: SquashedGaussianPolicy
    report_names = (
        "loss/model",
        "loss/actor",
        "loss/critic",
        "policy/entropy",
        "policy/temperature",
        "imagined/reward",
    )

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        self.imagination = _imagination_of(env)
        super().__init__(cfg, env, distributed, compute)
        settings, device = self.settings, env.device
        motion = self.imagination.motion
        num_actions = env.spec.action_dim
        self.repeated = RepeatedNoise(env.num_envs, num_actions, settings.noise_repeat, device)
        dynamics = Dynamics(motion, num_actions, settings.model_sizes, settings.num_models)
        self.dynamics = dynamics.to(device)
        critics = [StateValue(self.network) for _ in range(NUM_CRITICS)]
        self.critics = torch.nn.ModuleList(critics).to(device)
        self.targets = copy.deepcopy(self.critics)
        self.log_temperature = torch.tensor(settings.initial_temperature, device=device).log()
        self.model_weights = list(self.dynamics.parameters())
        self.actor_weights = list(self.policy.parameters())
        self.critic_weights = list(self.critics.parameters())
        self.model_optimizer = Adam(self.model_weights, torch.tensor(settings.lr_model, device=device))
        self.actor_optimizer = Adam(self.actor_weights, torch.tensor(settings.lr_actor, device=device))
        self.critic_optimizer = Adam(self.critic_weights, torch.tensor(settings.lr_critic, device=device))
        self.scheduled = (
            (self.model_optimizer.lr, settings.lr_model),
            (self.actor_optimizer.lr, settings.lr_actor),
            (self.critic_optimizer.lr, settings.lr_critic),
        )
        """Learning rates that fall, and where they begin."""
        lr_temperature = torch.tensor(settings.lr_temperature, device=device)
        self.temperature_optimizer = Adam([self.log_temperature], lr_temperature)
        model = Phase(self._model_gradients, self._apply_to_model)
        policy = Phase(self._policy_gradients, self._apply_to_policy)
        compile_piece = compiled_piece if compute.compiled else lambda function: function
        self.window_step = compile_piece(self.dynamics.window_step)
        self.imagined_step = compile_piece(make_imagined_step(self.imagination, self.dynamics, self.policy))
        # Functions that are called in a loop are compiled, not the whole step: it would unroll the loop.
        uncompiled = replace(compute, compiled=False)
        self._step = make_step([model, policy], distributed, uncompiled, self.skipped)

    @staticmethod
    def make_policy(cfg: ExperimentConfig, spec: EnvSpec) -> SquashedGaussianPolicy:
        return SquashedGaussianPolicy(cfg.network, make_network(cfg.network, spec), spec).to(spec.device)

    def make_buffer(self) -> tuple[tuple[str, ...], Replay]:
        settings, groups = self.settings, (PHYSICS,)
        sizes = {"length": settings.sequence_length, "burn_in": 0, "state_width": 0}
        return groups, Windows(settings.buffer_size, self.env.spec, groups, self.sampling, **sizes)

    def step(self, minibatch: TensorDict) -> Tensor:
        share = 1.0 - (1.0 - self.settings.lr_share_at_end) * self.iteration / self.num_iterations
        for lr, first in self.scheduled:
            lr.fill_(share * first)
        *report, entropy, temperature, reward, weight = self._step(minibatch)
        return torch.stack((*report, entropy / weight, temperature, reward / weight))

    def make_noise(self) -> Tensor:
        length = torch.empty(1, self.env.num_envs, device=self.env.device)
        self.noise.normal_(length)
        return self.repeated.next(super().make_noise(), length[0])

    def commit(self) -> None:
        super().commit()
        self.dynamics.commit(self.distributed.merge_moments)

    def _store(self, choice: Choice, result: StepResult) -> None:
        before, after = self._states(choice.obs[PHYSICS]), self._states(result.final_obs[PHYSICS])
        self.dynamics.observe(before, after, ~result.broken)
        super()._store(choice, result)

    def parts(self) -> dict[str, Part]:
        return super().parts() | {
            "dynamics": Part(self.dynamics, is_learned=True),
            "critics": Part(self.critics, is_learned=True),
            "targets": Part(self.targets, is_learned=True),
            "temperature": Part(NamedTensors(log_temperature=self.log_temperature), is_learned=True),
            "repeated_noise": Part(self.repeated, per_rank=True),
            "model_optimizer": Part(self.model_optimizer),
            "actor_optimizer": Part(self.actor_optimizer),
            "critic_optimizer": Part(self.critic_optimizer),
            "temperature_optimizer": Part(self.temperature_optimizer),
        }

    def minibatch(self, size: int) -> TensorDict:
        """Windows `[n]` in the order of the models that learn from them, with noise for their rollouts."""
        settings, windows = self.settings, self.replay.sample(size)
        num_windows, starts = len(windows), settings.starts_per_window
        spec = self.env.spec
        widths = (spec.action_dim, sum(spec.obs_dims[group] for group in self.policy.groups))
        noise = torch.empty(
            settings.imagined_steps, num_windows * starts, sum(widths), device=self.env.device
        )
        self.learning_noise.normal_(noise)
        action, observation = noise.transpose(0, 1).unflatten(0, (num_windows, starts)).split(widths, -1)
        windows["action_noise"], windows["observation_noise"] = action, observation  # [n, k, H, ...]
        task = self.learning_noise.integers(2**62, num_windows * starts // len(self.shards))
        windows["task_random"] = torch.cat(task).view(num_windows, starts)
        order = torch.arange(num_windows, device=self.env.device)
        order = order.view(len(self.shards), settings.num_models, -1).transpose(0, 1).flatten()
        return windows[order].contiguous()

    def _model_gradients(self, minibatch: TensorDict) -> tuple[list[Tensor], Tensor]:
        names = (OBS + PHYSICS, NEXT + PHYSICS, "action", STARTS, "valid")
        before, after, action, start, valid = (minibatch[name].transpose(0, 1) for name in names)  # [T, n]
        unit = self.policy.to_unit(action)
        steps = Window(self._states(before), self._states(after), unit, start, valid)
        with self.autocast():
            loss = self.dynamics.window_loss(steps, self.window_step)
        gradients = torch.autograd.grad(loss, self.model_weights)
        return list(gradients), loss.detach().view(1)

    def _apply_to_model(self, gradients: list[Tensor], sound: Tensor) -> None:
        self.model_optimizer.step(clip_by_norm(gradients, self.settings.max_grad_norm), sound)

    def _policy_gradients(self, minibatch: TensorDict) -> tuple[list[Tensor], Tensor]:
        """Gradients of policy and critics, then the sums from which the temperature's gradient follows.

        Weighted means over imagined steps are divided after the exchange: the sum of the weights depends on
        how many rollouts of a rank end, so a mean over the ranks of their means would be another number.

        Returns:
            The gradients, behind them `[2]`: the weighted entropy and the weight, each summed and divided
            by the number of steps. The report: losses of actor and critic, weighted entropy, temperature,
            weighted reward, weight.
        """
        with self.autocast():
            rollout = self._imagine(minibatch)
            value = torch.stack([critic(rollout.observation[1:]) for critic in self.targets]).mean(0)
            discount = self.settings.gamma * (~rollout.terminated).to(value.dtype)
            reward = self.settings.reward_scale * rollout.reward
            returns = lambda_return(reward, value, discount, self.settings.return_lambda)  # [H, B]
            # Discounted weights of the steps, zero behind the end of a rollout.
            weight = torch.cat((torch.ones_like(discount[:1]), discount[:-1])).cumprod(0)
            temperature = self.log_temperature.exp()
            actor_loss = -(weight * (returns - temperature * rollout.log_prob)).mean()
            critic_loss = self._critic_loss(rollout, returns.detach(), weight)
        of_actor = torch.autograd.grad(actor_loss, self.actor_weights)
        of_critic = torch.autograd.grad(critic_loss, self.critic_weights)
        entropy, total = -(weight * rollout.log_prob.detach()).mean(), weight.mean()
        weighted_reward = (weight * rollout.reward.detach()).mean()
        report = (actor_loss.detach(), critic_loss.detach(), entropy, temperature, weighted_reward, total)
        return [*of_actor, *of_critic, torch.stack((entropy, total))], torch.stack(report)

    def _critic_loss(self, rollout: Rollout, returns: Tensor, weight: Tensor) -> Tensor:
        """Half the squared distance of the critics from the imagined returns `[H, B]`."""
        observation = rollout.observation[:-1].detach()
        errors = [(critic(observation) - returns).square() for critic in self.critics]
        return 0.5 * (weight * torch.stack(errors)).mean((1, 2)).sum()

    def _apply_to_policy(self, gradients: list[Tensor], sound: Tensor) -> None:
        num_actor, limit = len(self.actor_weights), self.settings.max_grad_norm
        self.actor_optimizer.step(clip_by_norm(gradients[:num_actor], limit), sound)
        self.critic_optimizer.step(clip_by_norm(gradients[num_actor:-1], limit), sound)
        entropy, weight = gradients[-1]
        target = self.settings.target_entropy * self.env.spec.action_dim
        of_temperature = self.log_temperature.exp() * (entropy / weight - target)  # by its logarithm
        self.temperature_optimizer.step([of_temperature], sound)
        follow(self.targets.parameters(), self.critic_weights, self.settings.tau, sound)

    def _imagine(self, minibatch: TensorDict) -> Rollout:
        """Rollouts from some states of the windows."""
        settings, noise = self.settings, minibatch["observation_noise"]
        every = settings.sequence_length // settings.starts_per_window
        start = minibatch[OBS + PHYSICS][:, ::every].flatten(0, 1)  # [B, W]
        start = start.to(self.dynamics.inputs.mean.dtype)
        random = Noise(
            action=minibatch["action_noise"].flatten(0, 1).transpose(0, 1),
            observation=settings.observation_noise * noise.flatten(0, 1).transpose(0, 1),
            task=minibatch["task_random"].flatten(),
        )
        moment = at_states(self.imagination, self.policy, start, random.task)
        return imagine(moment, self.network.critic_groups, random, self.imagined_step)

    def _states(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Positions `[..., nq]` and velocities `[..., nv]` in rows `[..., W]`."""
        positions, velocities = self.imagination.state
        rows = rows.to(self.dynamics.inputs.mean.dtype)
        return rows[..., positions], rows[..., velocities]


def _imagination_of(env: VecEnv) -> Imagination:
    """The task's functions on predicted states.

    Raises:
        SettingError: the task cannot be imagined.
    """
    try:
        return env.imagination()
    except EnvError as error:
        fix = "choose another task or algorithm"
        raise SettingError("env.name", env.spec.name, str(error), fix) from error
