"""Settings of a network with an encoder for each part of the observation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from pi_incubator.config.network import HiddenSettings
from pi_incubator.config.section import Section, Sizes, cross_field_error

EncoderName = Literal["mlp", "cnn", "identity"]
OF_ENCODER = {"mlp": ("hidden_sizes",), "cnn": ("hidden_sizes", "channels"), "identity": ()}
"""Encoder -> the settings that it has."""


class EncoderSection(Section):
    """How a part of the observation becomes features."""

    name: EncoderName
    """mlp: fully connected layers; cnn: convolutions of a grid or of pixels; identity: as it is."""
    hidden_sizes: Sizes = (64,)
    """Width of each fully connected layer, in units; those of a cnn are behind its convolutions."""
    channels: Sizes = (16, 32)
    """Channels of each convolution of a cnn."""


def _named(value: Any) -> Any:
    """An encoder that is given by its name, as a mapping."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, (dict, EncoderSection)):
        return value
    fix = "write mlp, cnn or identity, or a mapping such as {name: mlp, hidden_sizes: [64]}"
    raise PydanticCustomError("text", "{problem}; {fix}", {"problem": "must be an encoder", "fix": fix})


Parts = Annotated[
    dict[
        str,
        Annotated[
            EncoderSection, BeforeValidator(_named, json_schema_input_type=EncoderSection | EncoderName)
        ],
    ],
    Field(min_length=1),
]


class EncodersSettings(HiddenSettings):
    """An encoder for each part of the observation; their features side by side go into the heads."""

    name: Literal["encoders"] = "encoders"
    """Network: the name of a file in pi_incubator/networks."""
    hidden_sizes: Sizes = (64,)
    """Width of each hidden layer of the heads, in units."""
    actor: Parts = Field(default_factory=lambda: {"policy": EncoderSection(name="mlp")})
    """What the policy reads: GROUP or GROUP/TERM -> encoder; GROUP is what of it no other entry names."""
    critic: Parts | None = None
    """The same of critics; null is an mlp of the group critic, or of policy where the task has no critic."""

    @property
    def reads_pixels(self) -> bool:
        return any(part == "pixels" for _, part, _ in self.encoders())

    @property
    def acts_on_pixels(self) -> bool:
        return "pixels" in self.actor

    @property
    def reads_vectors(self) -> bool:
        return self.critic is None or any(part != "pixels" for _, part, _ in self.encoders())

    def encoders(self) -> Iterator[tuple[str, str, EncoderSection]]:
        """Yield the field, the part and the encoder of every entry of `actor` and `critic`."""
        for role, parts in (("actor", self.actor), ("critic", self.critic or {})):
            for part, encoder in parts.items():
                yield f"network.{role}.{part}", part, encoder

    def pixels_error(self, drawn: bool) -> Exception:
        for field, part, encoder in self.encoders():
            if part == "pixels" and not drawn:
                problem = "env.pixels = null draws nothing for it to see"
                fix = "set env.pixels to {}, or remove this entry"
                return cross_field_error(field=field, value=encoder.name, problem=problem, fix=fix)
        problem = "none of its encoders reads env.pixels"
        fix = "set network.actor.pixels or network.critic.pixels to cnn, or env.pixels to null"
        return cross_field_error(field="network.name", value=self.name, problem=problem, fix=fix)

    def layers(self) -> dict[str, tuple[int, ...]]:
        encoders = {f"{field}.hidden_sizes": encoder.hidden_sizes for field, _, encoder in self.encoders()}
        return super().layers() | encoders

    @model_validator(mode="after")
    def _parts_fit(self) -> EncodersSettings:
        for field, part, encoder in self.encoders():
            group, slash, term = part.partition("/")
            if not group or bool(slash) != bool(term):
                fix = "write GROUP or GROUP/TERM, such as policy or critic/height_scan"
                raise cross_field_error(
                    field=field, value=encoder.name, problem="names no part of the observation", fix=fix
                )
            if group == "pixels" and (term or encoder.name != "cnn"):
                problem, fix = "pixels are whole pictures, for convolutions", "write pixels: cnn"
                raise cross_field_error(field=field, value=encoder.name, problem=problem, fix=fix)
            _check_effect(field, encoder)
        return self


def _check_effect(field: str, encoder: EncoderSection) -> None:
    """Refuse a setting of another kind of encoder."""
    for key in ("hidden_sizes", "channels"):
        value = getattr(encoder, key)
        if key not in OF_ENCODER[encoder.name] and value != EncoderSection.model_fields[key].default:
            problem = f"has no effect with {field}.name = {encoder.name}"
            raise cross_field_error(
                field=f"{field}.{key}", value=list(value), problem=problem, fix="remove it"
            )
