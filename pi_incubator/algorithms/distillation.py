"""Distillation by DAgger (Ross et al. 2011): a student acts, and trained policies label the states it meets.

    for every iteration
        for each world, chance decides who acts: the teacher, ever more rarely, or the student
        T steps of every world; the teacher labels every observation
        optimizer steps on the newest labelled steps

A student that learned only in worlds where its teacher acts would not know what to do after a mistake.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from envs_gpu.errors import SettingError
from envs_gpu.vec_env import EnvSpec, VecEnv
from pi_incubator.checkpoint import Part
from pi_incubator.compute import ComputePlan
from pi_incubator.config import ExperimentConfig
from pi_incubator.config.algorithms.distillation import DistillationSettings
from pi_incubator.distillation.buffer import FIRST_STATE, OBSERVATION, STARTS, LabelBuffer
from pi_incubator.distillation.collect import Collector
from pi_incubator.distillation.dataset import read_dataset, write_dataset
from pi_incubator.distillation.lessons import Lesson, check_same, lesson_configs, load_teacher
from pi_incubator.distillation.loss import gaussian_kl, mean_loss, unexplained
from pi_incubator.distillation.quantize import FakeQuantizedLinear, make_plain, watch_ranges
from pi_incubator.distillation.report import compare, size_rows
from pi_incubator.distillation.teacher import FEATURES, LABELS, MEAN, STD, VALUE, LastHidden
from pi_incubator.distributed import Distributed
from pi_incubator.envs import evaluation_env, make_training_env
from pi_incubator.evaluation.table import print_table, write_json
from pi_incubator.networks import make_network
from pi_incubator.policies.actor_critic import ActorCritic, ValueFunction
from pi_incubator.policies.gaussian import GaussianPolicy
from pi_incubator.registry import algorithm
from pi_incubator.run_folder import RunFolder
from pi_incubator.training.adam import Adam, clip_by_norm
from pi_incubator.training.algorithm import Algorithm
from pi_incubator.training.skipped import is_sound

METRICS = ("loss/distillation", "policy/kl", "loss/value", "loss/features")


@algorithm("distillation")
class Distillation(Algorithm[DistillationSettings]):
    """The student learns the action distributions, and if asked the values and features, of its teachers."""

    policy: GaussianPolicy

    def __init__(
        self, cfg: ExperimentConfig, env: VecEnv, distributed: Distributed, compute: ComputePlan
    ) -> None:
        super().__init__(cfg, env, distributed, compute)
        self.lessons = self._make_lessons()
        self.student = self._make_student()
        self._make_learner()
        self._prepare_student()
        if distributed.is_main:
            print_table(size_rows(self.student, self.lessons), title="parameters")

    @classmethod
    def make_env(
        cls, cfg: ExperimentConfig, compute: ComputePlan, folder: RunFolder | None, distributed: Distributed
    ) -> VecEnv:
        """The worlds of the first teacher's task."""
        return _lesson_env(
            lesson_configs(cfg, cast(DistillationSettings, cfg.algorithm))[0], compute, folder, distributed
        )

    @staticmethod
    def make_policy(cfg: ExperimentConfig, spec: EnvSpec) -> GaussianPolicy:
        return GaussianPolicy(cfg.network, make_network(cfg.network, spec), spec).to(spec.device)

    def collect(self) -> None:
        if not self.collectors:
            return
        for collector in self.collectors:
            collector.collect(self.buffer, self._teacher_share())
        if self.settings.normalizer == "gather":
            self.policy.normalizer.commit(self.distributed.merge_moments)

    def update(self) -> dict[str, Tensor]:
        settings, share = self.settings, self._teacher_share()
        done = self.iteration / self.num_iterations
        self.lr.fill_(settings.lr * (1.0 - done))
        for layer in self.rounding_layers:
            layer.rounds = done >= 1.0 - settings.fake_quantize_phase
        totals = torch.zeros(len(METRICS), device=self.lr.device)
        for _ in range(settings.num_updates):
            loss, report = self._loss(self.buffer.sample(self._rows(settings.minibatch_size)))
            # Weights that do not affect the loss get a gradient of zero.
            gradients = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
            *means, report = self.distributed.mean([*gradients, report])
            sound = is_sound(means, report)
            self.optimizer.step(clip_by_norm(means, settings.max_grad_norm), sound)
            self.skipped.note(sound)
            totals += report
        metrics = dict(zip(METRICS, (totals / settings.num_updates).unbind(), strict=True))
        metrics["policy/lr"] = self.lr.clone()
        metrics |= self.policy.metrics()
        metrics["teacher_share"] = torch.full_like(self.lr, share)
        self._finish_iteration()
        return metrics

    def parts(self) -> dict[str, Part]:
        parts = super().parts() | {
            "critic": Part(self.student.critic, is_learned=True),
            "optimizer": Part(self.optimizer),
            "feature_map": Part(self.feature_map),
        }
        if self.rounding_layers:
            parts["ranges"] = Part(_Ranges(self.rounding_layers))
        if self.collectors:
            parts["buffer"] = Part(self.buffer, saved="last", per_rank=True, any_size=True, is_large=True)
        else:  # the rows are read from the dataset's file again
            del parts["env"]
        for index, (lesson, collector) in enumerate(zip(self.lessons, self.collectors, strict=False)):
            parts["env" if index == 0 else f"env_{index}"] = Part(lesson.env, per_rank=True)
            if collector.state_dict():
                parts[f"state_{index}"] = Part(collector, per_rank=True)
        return parts

    def pop_metrics(self) -> dict[str, float]:
        """The metrics of the first lesson's worlds, and those of further ones under their teachers' names."""
        if not self.collectors:
            return {}
        metrics = self.lessons[0].env.pop_metrics()
        for lesson in self.lessons[1:]:
            metrics |= {f"{lesson.teacher.name}/{name}": x for name, x in lesson.env.pop_metrics().items()}
        return metrics

    def check(self) -> None:
        for lesson in self.lessons[1:]:
            lesson.env.check()
        super().check()

    def conclude(self, folder: RunFolder) -> Iterator[Path]:
        """Judge the student beside its teachers, and write the demonstrations if that was asked for."""
        self._hidden.remove()
        if self.settings.record:
            write_dataset(self.buffer, self.env.spec, Path(self.settings.record))
        results: dict[str, Any] = {}
        if self.rounding_layers:
            for layer in self.rounding_layers:
                layer.rounds = True
            results["fake_quantized_int8"] = self._compare("rounded to int8: ")
            make_plain(self._actor_layers())
        results["teachers"] = self._compare()
        write_json(results, folder.distillation)
        yield folder.distillation

    def close(self) -> None:
        for lesson in self.lessons:
            lesson.env.close()

    def _make_lessons(self) -> list[Lesson]:
        """A lesson for each teacher; the first one's worlds are `env`."""
        cfg, settings, lessons = self.cfg, self.settings, []
        for index, lesson_cfg in enumerate(lesson_configs(cfg, settings)):
            env = self.env
            if index:
                env = _lesson_env(lesson_cfg, self.compute, RunFolder(cfg), self.distributed)
            teacher = load_teacher(settings.teachers[index], env.spec, settings.value_coef, self.distributed)
            lessons.append(Lesson(lesson_cfg, teacher, env))
        return lessons

    def _make_student(self) -> ActorCritic:
        """The untrained student, for its own task.

        Raises:
            UserError: the student cannot act in the worlds of a lesson.
        """
        cfg = self.cfg
        worlds = evaluation_env(cfg, 1, self.env.device)
        worlds.close()
        self.policy = self.make_policy(cfg, worlds.spec)
        critic = ValueFunction(make_network(cfg.network, worlds.spec), self.policy).to(self.env.device)
        student = ActorCritic(self.policy, critic)
        for lesson in self.lessons:
            where = f"{lesson.teacher.name}: its task {lesson.env.spec.name}"
            check_same(where, lesson.env.spec, worlds.spec, student.groups)
        return student

    def _make_learner(self) -> None:
        settings, device = self.settings, self.env.device
        self.rounding_layers: list[FakeQuantizedLinear] = []
        if settings.fake_quantize == "int8":
            self.rounding_layers = watch_ranges(self._actor_layers())
        self._hidden = LastHidden(self.policy.head)
        feature_width = self.lessons[0].teacher.feature_width
        # FitNets (Romero et al. 2015): the student's features only have to determine those of the teacher.
        self.feature_map = nn.Linear(self._hidden.width, feature_width).to(device)
        self.parameters = [*self.student.parameters(), *self.feature_map.parameters()]
        self.lr = torch.tensor(settings.lr, device=device)
        self.optimizer = Adam(self.parameters, self.lr)
        self.collectors: list[Collector] = []
        if settings.dataset:
            features = feature_width if settings.feature_coef else None
            groups, has_value = self.student.groups, settings.value_coef > 0
            self.buffer = read_dataset(settings.dataset, self.env.spec, groups, has_value, features)
        else:
            self.buffer = LabelBuffer(self._rows(settings.buffer_size), device)
            self.collectors = [Collector(settings, lesson, self.student) for lesson in self.lessons]

    def _actor_layers(self) -> nn.ModuleList:
        """The student's policy from its observation to its output, in this order."""
        return nn.ModuleList([self.policy.encoder, self.policy.head])

    def _prepare_student(self) -> None:
        """Give the student the first teacher's standard deviation, where neither depends on the observation,
        and a normalizer where none is collected.

        Raises:
            SettingError: the teacher has no normalizer that the student could keep.
        """
        teacher, normalizer = self.lessons[0].teacher.policy, self.policy.normalizer
        ours, theirs = self.policy.log_std, getattr(teacher, "log_std", None)
        if isinstance(teacher, GaussianPolicy) and ours is not None and theirs is not None:
            with torch.no_grad():
                ours.copy_(theirs)
        if self.settings.normalizer == "teacher":
            for group in normalizer:
                known = group in teacher.normalizer
                if not known or type(teacher.normalizer[group]) is not type(normalizer[group]):
                    problem = (
                        f"the teacher has no such normalizer of the group {group!r}, which the student reads"
                    )
                    raise SettingError("algorithm.normalizer", "teacher", problem, "set it to gather")
                normalizer[group].load_state_dict(teacher.normalizer[group].state_dict())
        elif not self.collectors:
            held = self.buffer.held()
            normalizer.observe({group: held[OBSERVATION + group] for group in self.student.groups})
            normalizer.commit()

    def _teacher_share(self) -> float:
        """Expected share of the worlds in which the teacher acts: from 1 linearly to 0."""
        phase = self.settings.teacher_phase * self.num_iterations
        return max(0.0, 1.0 - self.iteration / phase) if phase else 0.0

    def _rows(self, steps: int) -> int:
        """How many rows of the buffer hold `steps` steps, at least one."""
        return max(1, steps // self.settings.horizon) if self.student.state_width else steps

    def _loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss of a minibatch, and the numbers of METRICS `[4]`."""
        settings = self.settings
        (features, critic_features), batch = encode(self.student, batch)
        mean, std = self.policy.moments_of(features)
        labels = batch[MEAN], batch[STD]
        loss = mean_loss(settings.loss, *labels, mean, std)
        kl = gaussian_kl(*labels, mean.detach(), std.detach()).mean()
        value_loss = feature_loss = torch.zeros_like(kl)
        if settings.value_coef:
            value_loss = unexplained(batch[VALUE], self.student.critic.head(critic_features).squeeze(-1))
        if settings.feature_coef:
            feature_loss = unexplained(batch[FEATURES], self.feature_map(self._hidden.features))
        total = loss + settings.value_coef * value_loss + settings.feature_coef * feature_loss
        return total, torch.stack([part.detach() for part in (loss, kl, value_loss, feature_loss)])

    def _compare(self, prefix: str = "") -> list[dict[str, Any]]:
        """Print what the student kept of each teacher; returns the numbers."""
        comparisons = [compare(self.cfg, lesson, self.student) for lesson in self.lessons]
        for comparison in comparisons:
            print(f"{prefix}{comparison.sentence()}")
        return [comparison.as_json() for comparison in comparisons]


def encode(student: ActorCritic, batch: dict[str, Tensor]) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """Features `[B, F]` for both heads, and the labels beside them; B counts the steps of sequences."""
    normalizer = student.policy.normalizer
    normalized = {group: normalizer[group](batch[OBSERVATION + group]) for group in student.groups}
    if not student.state_width:
        return student.encode(normalized), batch
    by_time = {group: value.transpose(0, 1).contiguous() for group, value in normalized.items()}
    features = student.sequence(by_time, batch[FIRST_STATE], batch[STARTS].T.contiguous())
    actor, critic = (value.transpose(0, 1).flatten(0, 1) for value in features)
    return (actor, critic), {name: batch[name].flatten(0, 1) for name in LABELS if name in batch}


class _Ranges:
    """The ranges of inputs that fake-quantized layers have seen, as a part of a checkpoint."""

    def __init__(self, layers: list[FakeQuantizedLinear]) -> None:
        self._layers = layers

    def state_dict(self) -> dict[str, Tensor]:
        return {str(i): torch.stack((layer.low, layer.high)) for i, layer in enumerate(self._layers)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for index, layer in enumerate(self._layers):
            layer.low.copy_(state[str(index)][0])
            layer.high.copy_(state[str(index)][1])


def _lesson_env(
    cfg: ExperimentConfig, compute: ComputePlan, folder: RunFolder | None, distributed: Distributed
) -> VecEnv:
    return make_training_env(cfg, compute, folder, first_world=distributed.rank * cfg.env.num_envs)
