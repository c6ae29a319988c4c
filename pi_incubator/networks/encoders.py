"""An encoder for each part of the observation, by settings; policy and critics share nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from torch import nn

from envs_gpu.errors import SettingError
from envs_gpu.pixels import GROUP as PIXELS
from envs_gpu.registry import nearest
from envs_gpu.vec_env import EnvSpec
from pi_incubator.config.network import NetworkSettings
from pi_incubator.config.networks.encoders import EncoderSection, EncodersSettings
from pi_incubator.layers.convolution import GridEncoder, PixelEncoder
from pi_incubator.layers.encoder import Encoder, Identity, StatelessEncoder
from pi_incubator.layers.mlp import ACTIVATIONS, embedding, mlp
from pi_incubator.layers.network import Network
from pi_incubator.layers.parts import LayersEncoder, Part, PartsEncoder, find_parts, groups_of
from pi_incubator.registry import network


@network("encoders")
class Encoders(Network[EncodersSettings]):
    """The features of all parts side by side go into the heads.

    Parts are sorted by name, so that weights do not depend on the order of the settings.

    Raises:
        SettingError: the env has no such group or term, or an encoder does not fit it.
    """

    def __init__(self, settings: NetworkSettings, spec: EnvSpec) -> None:
        super().__init__(settings, spec)
        group = "critic" if "critic" in spec.obs_dims else "policy"
        of_critic = self.settings.critic or {group: EncoderSection(name="mlp")}
        self._encoders = {"actor": _sorted(self.settings.actor), "critic": _sorted(of_critic)}
        self._parts = {role: self._find(role) for role in self._encoders}

    @property
    def actor_groups(self) -> tuple[str, ...]:
        return groups_of(self._parts["actor"])

    @property
    def critic_groups(self) -> tuple[str, ...]:
        return groups_of(self._parts["critic"])

    def actor_encoder(self) -> Encoder:
        return self._encoder("actor")

    def critic_encoder(self) -> Encoder:
        return self._encoder("critic")

    def head(self, num_features: int, num_outputs: int, output_gain: float) -> nn.Module:
        return mlp([num_features, *self.settings.hidden_sizes, num_outputs], self._activation, output_gain)

    @property
    def _activation(self) -> type[nn.Module]:
        return ACTIVATIONS[self.settings.activation]

    def _find(self, role: str) -> dict[str, Part]:
        """Where the parts of a role are, checked."""
        encoders = self._encoders[role]
        for name in encoders:
            self._check_name(role, name)
        try:
            parts = find_parts(self.spec, encoders)
        except ValueError as error:
            name = str(error.args[0])
            problem = f"all terms of {name} have encoders of their own, and nothing is left for this one"
            raise self._error(role, name, problem, "remove it") from None
        for name, encoder in encoders.items():
            if encoder.name == "cnn" and parts[name].shape is None:
                raise self._error(role, name, f"{name} is no grid, for convolutions", self._grids(name))
        return parts

    def _check_name(self, role: str, name: str) -> None:
        """The env has the group, and the group the term."""
        group, _, term = name.partition("/")
        groups = [*self.spec.obs_dims, *([PIXELS] if self.spec.pixels_shape else [])]
        if group not in groups:
            problem = f"{self.spec.name} has no observation group {group!r}"
            raise self._error(role, name, problem, _choice(group, groups))
        terms = [found.name for found in self.spec.terms.get(group, ())]
        if term and term not in terms:
            problem = f"the observation group {group!r} of {self.spec.name} has no term {term!r}"
            fix = _choice(term, terms) if terms else f"name {group} as a whole"
            raise self._error(role, name, problem, fix)

    def _grids(self, name: str) -> str:
        """What to write instead of a cnn for a part that is no grid."""
        group, _, term = name.partition("/")
        grids = [found.name for found in self.spec.terms.get(group, ()) if found.grid]
        if term or not grids:
            return "set it to mlp"
        return f"set it to mlp, and {group}/{grids[0]} to cnn"

    def _error(self, role: str, name: str, problem: str, fix: str) -> SettingError:
        return SettingError(f"network.{role}.{name}", self._encoders[role][name].name, problem, fix)

    def _encoder(self, role: str) -> PartsEncoder:
        parts = {name: self._read(role, name) for name in self._encoders[role]}
        return PartsEncoder(
            list(parts.values()), [self._layers(role, name, part) for name, part in parts.items()]
        )

    def _read(self, role: str, name: str) -> Part:
        """The part as its encoder reads it: only convolutions see its shape."""
        part = self._parts[role][name]
        return part if self._encoders[role][name].name == "cnn" else replace(part, shape=None)

    def _layers(self, role: str, name: str, part: Part) -> StatelessEncoder:
        settings = self._encoders[role][name]
        first: StatelessEncoder = Identity(part.width)
        sizes = [part.width, *settings.hidden_sizes]
        if settings.name == "identity":
            return first
        if part.shape is not None:
            kind = PixelEncoder if name == PIXELS else GridEncoder
            sizes = list(settings.hidden_sizes)
            first = kind(part.shape, settings.channels, sizes[0], self._activation)
        layers = [embedding(fan_in, fan_out, self._activation) for fan_in, fan_out in pairwise(sizes)]
        return LayersEncoder(first, layers, sizes[-1])


def _sorted(encoders: Mapping[str, EncoderSection]) -> dict[str, EncoderSection]:
    return {name: encoders[name] for name in sorted(encoders)}


def _choice(name: str, known: Sequence[str]) -> str:
    """What to write instead of an unknown name."""
    guess = nearest(name, known)
    return f"did you mean {guess}?" if guess else f"name one of {', '.join(known)}"
