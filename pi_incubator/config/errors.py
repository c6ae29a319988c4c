"""ConfigError, and how a pydantic report becomes one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from reprlib import Repr
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from envs_gpu.errors import SettingError
from envs_gpu.registry import nearest
from pi_incubator.config.models import UNIONS, ExperimentConfig
from pi_incubator.config.section import choices, fields_within, is_mapping, is_text
from pi_incubator.errors import UserError

DEFAULTS = ExperimentConfig()
SECTIONS = {name: list(type(section).fields_by_key()) for name, section in DEFAULTS}
SECTIONS |= {name: union.all_fields() for name, union in UNIONS.items()}
"""Section -> the keys that it can have; of a union, those of every member."""
FIELDS = [f"{section}.{key}" for section, keys in SECTIONS.items() for key in keys]
TYPES = [
    found
    for section, settings in [
        *((name, type(section)) for name, section in DEFAULTS),
        *((name, member) for name, union in UNIONS.items() for member in union.members.values()),
    ]
    for found in fields_within(settings, section)
]
"""The dotted name and the type of every field at any depth; what several members have comes several times."""
NESTED = {field for field, annotation in TYPES if is_mapping(annotation)}
"""The fields whose value is a mapping, such as `env.pixels` and `randomization.initial_state.position`."""
TEXT = {field for field, annotation in TYPES if is_text(annotation)}
"""The fields whose value is any text."""
OPTIONAL = {field for field, annotation in TYPES if type(None) in choices(annotation)}
"""The fields that may be null."""
MOVED = {"distillation": "algorithm, with algorithm.name = distillation"}
"""Sections of earlier versions, and where their fields are now."""

NO_VALUE: Any = object()
_short = Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 2, 250, 250  # long enough for a path


class ConfigError(UserError):
    """A mistake in a configuration, printed as `file: field = value: problem; fix`.

    Args:
        file: where the value came from: `file`, `file:line` or `command line`.
        field: `section.key`; empty when the mistake is about the file as a whole.
        value: the offending value; NO_VALUE leaves it out.
        problem: what is wrong with it.
        fix: what to write instead.
    """

    def __init__(self, file: str, field: str = "", value: Any = NO_VALUE, *, problem: str, fix: str) -> None:
        self.file, self.field, self.value, self.problem, self.fix = file, field, value, problem, fix
        subject = field if value is NO_VALUE else f"{field} = {show(value)}"
        super().__init__(": ".join(part for part in (file, subject, f"{problem}; {fix}") if part))


class RunSettingError(ConfigError):
    """A setting that does not fit the run folder; who raises it does not know where the value came from.

    It names the run's own settings as the file, until `explain_settings` gives it the true source.
    """


def show(value: Any) -> str:
    """`value` as a file would write it, cut to a readable length."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    try:
        return _short.repr(value)
    except ValueError:  # Python does not write integers of thousands of digits
        return "a number of thousands of digits"


def field_called(key: str) -> str | None:
    """The first "section.key" whose key is `key`, for a key that lost its section."""
    return next((field for field in FIELDS if field.endswith(f".{key}")), None)


def unknown_section(source: str, section: str, value: Any) -> ConfigError:
    """The error for a top-level key that is no section; a field that lost its section is recognized."""
    if section in MOVED:
        fix = f"its fields are now in {MOVED[section]}"
        return ConfigError(source, section, problem="is no section any more", fix=fix)
    field = field_called(section)
    if field and not isinstance(value, Mapping):
        fix = f"did you mean {field}?"
        return ConfigError(source, section, value, problem="is not a section", fix=fix)
    guess = nearest(section, SECTIONS)
    fix = f"did you mean {guess}?" if guess else f"the sections are: {', '.join(SECTIONS)}"
    return ConfigError(source, section, problem="unknown section", fix=fix)


def unknown_key(source: str, section: str, key: str, value: Any, known: list[str]) -> ConfigError:
    """The error for a key that is not `known` in its section, naming the nearest that exists."""
    near = nearest(key, known)
    elsewhere = field_called(key)
    if elsewhere == f"{section}.{key}":  # another member of the union has it
        return _key_of_another_member(source, section, key, value)
    guess = elsewhere or (f"{section}.{near}" if near else nearest(f"{section}.{key}", FIELDS))
    fix = f"did you mean {guess}?" if guess else f"{section} has: {', '.join(known)}"
    return ConfigError(source, f"{section}.{key}", value, problem="unknown field", fix=fix)


def _key_of_another_member(source: str, section: str, key: str, value: Any) -> ConfigError:
    having = [name for name in UNIONS[section].members if key in UNIONS[section].fields(name)]
    problem = f"only {section}.name = {' or '.join(having)} has it"
    return ConfigError(source, f"{section}.{key}", value, problem=problem, fix="remove it")


@contextmanager
def explain_settings(sources: Mapping[str, str], file: str) -> Iterator[None]:
    """Turn a `SettingError` of a lower layer, or a `RunSettingError`, into a ConfigError that says where the
    value came from.

    Args:
        sources: `section.key` -> where its value came from; see `load_with_sources`.
        file: stands in for values that are defaults.
    """
    try:
        yield
    except (SettingError, RunSettingError) as error:
        source = _source(error.field, sources) or file
        raise ConfigError(source, error.field, error.value, problem=error.problem, fix=error.fix) from error


def from_validation(error: ValidationError, sources: Mapping[str, str], file: str) -> ConfigError:
    """The first mistake that pydantic reports; `file` stands in for values that are defaults."""
    details = error.errors(include_url=False)
    first, others = details[0], len(details) - 1
    more = f" (and {others} more)" if others else ""
    if first["type"] == "cross_field":
        field, value, problem, fix = (first["ctx"][key] for key in ("field", "value", "problem", "fix"))
        source = _source(field, sources)
        problem = problem if source else f"{problem} (this value is the default)"
        return ConfigError(source or file, field, value, problem=problem, fix=fix + more)
    section, *path = map(str, first["loc"])
    settings = UNIONS[section].members[path.pop(0)] if section in UNIONS else type(getattr(DEFAULTS, section))
    key, *index = path
    field = f"{section}.{key}"
    source = _source(".".join((section, *path)), sources) or file
    default = settings.fields_by_key()[key].get_default(call_default_factory=True)
    problem, fix = _explain(first, default=None if isinstance(default, dict) else default)
    where = "".join(f"[{i}]" if i.isdigit() else f".{i}" for i in index)
    value = NO_VALUE if first["type"] == "missing" else first["input"]
    return ConfigError(source, field + where, value, problem=problem, fix=fix + more)


def _source(field: str, sources: Mapping[str, str]) -> str | None:
    """Where `field`, an entry of it, or the nearest field that holds it came from; None: it is a default."""
    while "." in field:
        within = (source for name, source in sources.items() if name.startswith(f"{field}."))
        if source := sources.get(field) or next(within, None):
            return source
        field = field.rpartition(".")[0]
    return None


def _explain(details: ErrorDetails, default: Any) -> tuple[str, str]:
    """The problem and the fix for one bad value of a field whose default is `default`."""
    kind, value = details["type"], details["input"]
    problem = details["msg"].replace("Input should be", "must be")
    shown = show(list(default) if isinstance(default, tuple) else default)
    example = "" if default is None else f", for example {shown}"
    match kind:
        case "int_type" if isinstance(value, float) and value.is_integer():
            return "must be an integer", f"write {int(value)}, without a point or an exponent"
        case "int_type" | "int_from_float" if isinstance(value, float):
            return "must be an integer", f"write a whole number{example}"
        case "int_type":
            return "must be an integer", f"write a plain number without quotes{example}"
        case "float_type":
            return "must be a number", f"write a plain number without quotes{example}"
        case "bool_type":
            return "must be true or false", f"write true or false without quotes{example}"
        case "string_type":
            return "must be text", f"write it in quotes{example}"
        case "tuple_type":
            return "must be a list", f"write it in brackets{example}"
        case "literal_error":
            choices = details["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            guess = nearest(value, choices) if isinstance(value, str) else None
            return problem, f"did you mean {guess}?" if guess else f"write one of them{example}"
        case "text":
            return details["ctx"]["problem"], details["ctx"]["fix"]
        case "string_unicode":
            return "holds bytes that are not UTF-8 text", "set a name in UTF-8"
        case "dict_type":
            return "must be a mapping of names to values", "write them in braces: {NAME: value}"
        case "model_type":
            return "must be a mapping of fields", "write fields in braces, for example {low: 0.8, high: 1.2}"
        case "extra_forbidden":
            return "unknown field", "remove it, or see configs/schema.json for what there is"
        case "missing":
            return "a field is missing", "set it"
        case "too_short" | "string_too_short":
            return "must not be empty", f"set a value{example}"
        case "greater_than" if details["ctx"]["gt"] == 0:
            return problem, f"set a positive number{example}"
    return problem, f"set another value{example}"
