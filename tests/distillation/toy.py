"""Distillation on toy worlds, without the runs that teachers are otherwise loaded from."""

import torch

from pi_incubator.algorithms.distillation import Distillation
from pi_incubator.compute import ComputePlan
from pi_incubator.distillation.lessons import Lesson
from pi_incubator.distillation.teacher import Teacher
from pi_incubator.distributed import Distributed
from pi_incubator.networks import make_network
from pi_incubator.policies.actor_critic import ActorCritic, ValueFunction
from pi_incubator.policies.gaussian import GaussianPolicy


def make_actor_critic(network, spec):
    """An untrained policy and value function."""
    policy = GaussianPolicy(network, make_network(network, spec), spec)
    return ActorCritic(policy, ValueFunction(make_network(network, spec), policy))


def make_teacher(name, network, spec):
    """An untrained teacher with a value function."""
    model = make_actor_critic(network, spec)
    return Teacher(name, model.policy, model.critic)


class ToyDistillation(Distillation):
    """One teacher, given as it is, whose worlds are `env`."""

    def __init__(self, cfg, env, teacher):
        torch.set_num_threads(1)
        self._teacher = teacher
        plan = ComputePlan(env.device, "mujoco", 1, 1, False, "none", ())
        super().__init__(cfg, env, Distributed(), plan)

    def _make_lessons(self):
        return [Lesson(self.cfg, self._teacher, self.env)]

    def _make_student(self):
        student = make_actor_critic(self.cfg.network, self.env.spec)
        self.policy = student.policy
        return student

    def collect_with(self, teacher_share):
        """`collect`, with the teacher in this share of the worlds."""
        self.collectors[0].collect(self.buffer, teacher_share)
