"""Parts of an observation: where they are in it, and an encoder for each.

Letters: B samples, D observation width, P width of a part, F features, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from envs_gpu.pixels import GROUP as PIXELS
from envs_gpu.vec_env import EnvSpec, ObservedTerm
from pi_incubator.layers.encoder import StatelessEncoder


@dataclass(frozen=True)
class Part:
    """A part of what `layers.encoder.observation_of` gives for some groups."""

    slices: tuple[slice, ...]
    """Its entries among the D, in order."""
    shape: tuple[int, int, int] | None = None
    """C, H and W where they are pictures or a grid."""

    @property
    def width(self) -> int:
        """P."""
        return sum(entries.stop - entries.start for entries in self.slices)

    def of(self, observation: Tensor) -> Tensor:
        """`[B, D]` -> `[B, P]`, or `[B, C, H, W]` where it has a shape."""
        parts = [observation[:, entries] for entries in self.slices]
        part = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return part if self.shape is None else part.unflatten(-1, self.shape)


def find_parts(spec: EnvSpec, names: Iterable[str]) -> dict[str, Part]:
    """Where the parts `names` are, in an observation of the groups that they are of, in this order.

    Args:
        spec: of the env, which has these groups and terms.
        names: `GROUP/TERM`, or `GROUP` for what of it no other name stands for.

    Raises:
        ValueError: nothing of a group is left for its name; the message is the group.
    """
    names, parts, start = list(names), {}, 0
    for group in groups_of(names):
        named = {name.partition("/")[2]: name for name in names if name.split("/")[0] == group}
        if group == PIXELS:
            assert spec.pixels_shape is not None
            width = math.prod(spec.pixels_shape)
            parts[group] = Part((slice(start, start + width),), spec.pixels_shape)
            start += width
            continue
        width = spec.obs_dims[group]
        terms = spec.terms.get(group) or (ObservedTerm(group, width),)
        rest = [term.name for term in terms if term.name not in named]
        if "" in named and not rest:
            raise ValueError(group)
        for term, name in named.items():
            parts[name] = _part(terms, rest if term == "" else [term], start, width)
        start += width
    return {name: parts[name] for name in names}


def groups_of(names: Iterable[str]) -> tuple[str, ...]:
    """The groups that parts are of, each once."""
    return tuple(dict.fromkeys(name.split("/")[0] for name in names))


def _part(terms: Sequence[ObservedTerm], chosen: Sequence[str], start: int, width: int) -> Part:
    """Some terms of a group that begins at `start` and is `width` wide, with its whole history."""
    slices: list[slice] = []
    stop = start + width
    while start < stop:
        for term in terms:
            end = start + term.width
            if term.name in chosen:
                if slices and slices[-1].stop == start:
                    slices[-1] = slice(slices[-1].start, end)
                else:
                    slices.append(slice(start, end))
            start = end
    grids = [term.grid for term in terms if term.name in chosen]
    frames = width // sum(term.width for term in terms)
    shape = (frames, *grids[0]) if len(grids) == 1 and grids[0] else None
    return Part(tuple(slices), shape)


class LayersEncoder(StatelessEncoder):
    """Further layers behind an encoder.

    Args:
        first: reads the observation.
        layers: behind it.
        num_features: F, of the last layer.
    """

    def __init__(self, first: StatelessEncoder, layers: Iterable[nn.Module], num_features: int) -> None:
        super().__init__()
        self.first, self.layers, self.num_features = first, nn.Sequential(*layers), num_features

    def encode(self, observation: Tensor) -> Tensor:
        features: Tensor = self.layers(self.first.encode(observation))
        return features


class PartsEncoder(StatelessEncoder):
    """Features of all parts side by side, in their order.

    Args:
        parts: where they are.
        encoders: of each, from `[B, P]`, or `[B, C, H, W]` where it has a shape.
    """

    def __init__(self, parts: Sequence[Part], encoders: Sequence[StatelessEncoder]) -> None:
        super().__init__()
        self._parts, self.encoders = tuple(parts), nn.ModuleList(encoders)
        self.num_features = sum(encoder.num_features for encoder in encoders)

    def encode(self, observation: Tensor) -> Tensor:
        """`[B, D]`, or pictures `[B, C, H, W]` alone -> features `[B, F]`."""
        rows, features = observation.flatten(1), []
        for part, encoder in zip(self._parts, self.encoders, strict=True):
            assert isinstance(encoder, StatelessEncoder)
            features.append(encoder.encode(part.of(rows)))
        return torch.cat(features, -1)
