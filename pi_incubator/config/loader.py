"""Read an experiment file, the files it inherits from and the command line into one ExperimentConfig."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from envs_gpu.registry import UnknownNameError, nearest
from pi_incubator.config.by_device import base_file
from pi_incubator.config.errors import (
    NESTED,
    OPTIONAL,
    SECTIONS,
    TEXT,
    ConfigError,
    field_called,
    from_validation,
    show,
    unknown_key,
    unknown_section,
)
from pi_incubator.config.models import UNIONS, ExperimentConfig
from pi_incubator.config.packaged import SUFFIXES, find_config, packaged_configs
from pi_incubator.masking import stored

COMMAND_LINE = "command line"
BASE = "base"  # top-level key: the file to inherit from
FORMAT = "format"  # top-level key of saved settings; those of version 0.1.0 have none
SAVED_FORMAT = 2
SCHEMA = "$schema"  # top-level key by which editors find the schema of a JSON file; not read
MAX_BYTES = 65_536  # larger is some other file, and would take long to parse
MAX_DEPTH = 20  # open brackets and indentations; an experiment needs 4
MAX_KEYS = 10_000  # repeated ones of aliases count each time; an experiment has dozens
# What ruamel's parser and the constructors behind YAML tags raise on malformed text.
YAML_ERRORS = (YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError)

SHORT = {"dataset": "dataset.path"}
"""What may be written for a field on a command line."""
TABLES = ("env.task", "env.limits")
"""Fields that map any names, dots included, to values; null empties them."""

Sources = dict[str, str]  # "section.key" -> "file:line" or "command line"


class Setting(NamedTuple):
    """A value of one field. A mapping is stored as one setting for each entry, so that mappings merge."""

    value: Any
    source: str
    resets: bool = True
    """Whether it drops what was set within this field before. An empty mapping does not."""


Settings = dict[str, Setting]  # by "section.key", or "section.key.entry"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The experiment in `path` (YAML or JSON by suffix) with `section.key=value` overrides applied.

    Where there is no such file, one that comes with the package is taken: `cartpole_balance.yaml`.

    Raises:
        ConfigError: anything wrong with the file, a file it inherits from or an override.
    """
    return load_with_sources(path, overrides)[0]


def load_with_sources(path: str | Path, overrides: Sequence[str] = ()) -> tuple[ExperimentConfig, Sources]:
    """`load_config`, and where each value that is not a default came from.

    Raises:
        ConfigError: as `load_config`.
    """
    overridden: Settings = {}
    for text in overrides:
        for field, setting in _parse_override(text).items():
            _put(overridden, field, setting)
    settings = _merge(_read(find_config(Path(path)), None, (), overridden), overridden)
    _check_union_keys(settings)
    sources = {field: setting.source for field, setting in settings.items()}
    try:
        return ExperimentConfig.model_validate(_nested(settings)), sources
    except ValidationError as error:
        raise from_validation(error, sources, file=str(path)) from None


def _merge(lower: Settings, upper: Settings) -> Settings:
    """`upper` over `lower`; where it names another algorithm or network, without the settings of that one."""
    for section, union in UNIONS.items():
        field = f"{section}.name"
        default = Setting(union.default, "")
        if field in upper and upper[field].value != lower.get(field, default).value:
            kept = union.fields(upper[field].value) if union.keeps_common else []
            lower = {
                name: setting
                for name, setting in lower.items()
                if not name.startswith(f"{section}.") or name.split(".")[1] in kept
            }
    merged = dict(lower)
    for field, setting in upper.items():
        _put(merged, field, setting)
    return merged


def _keys(field: str) -> list[str]:
    """The keys of a dotted name, outermost first: what follows the name of a table is one key."""
    table = next((table for table in TABLES if field.startswith(f"{table}.")), None)
    return field.split(".") if table is None else [*table.split("."), field[len(table) + 1 :]]


def _put(settings: Settings, field: str, setting: Setting) -> None:
    """Set `field`, after what `settings` says: an entry beside the others, null instead of all entries."""
    if setting.resets:
        keys = _keys(field)
        for name in [name for name in settings if name != field and _keys(name)[: len(keys)] == keys]:
            del settings[name]
    elif before := settings.get(field):  # after null, an empty mapping holds the defaults
        setting = setting._replace(resets=before.resets)
    settings[field] = setting


def _check_union_keys(settings: Settings) -> None:
    """Check that `algorithm` and `network` have names that exist, and keys that those have.

    Raises:
        ConfigError: the first that does not.
    """
    for section, union in UNIONS.items():
        default = Setting(union.default, "")
        name = settings.get(f"{section}.name", default)
        if not isinstance(name.value, str) or name.value not in union.members:
            fix = UnknownNameError(section, str(name.value), list(union.members)).fix
            raise ConfigError(
                name.source, f"{section}.name", name.value, problem=f"unknown {section}", fix=fix
            )
        for field, setting in settings.items():
            key = field.removeprefix(f"{section}.")
            if key != field and key.split(".")[0] not in (known := union.fields(name.value)):
                raise unknown_key(setting.source, section, key, setting.value, known)


def _nested(settings: Settings) -> dict[str, Any]:
    """The values as nested mappings; a deeper field is set within what a shorter one gave.

    A name that has fields within it is the short form of `{name: NAME}`: `network.actor.policy: mlp`.
    """
    values: dict[str, Any] = {}
    for field, setting in sorted(settings.items(), key=lambda item: len(_keys(item[0]))):
        if field in TABLES and setting.value is None:
            continue
        *parents, key = _keys(field)
        mapping = values
        for parent in parents:
            inner = mapping.get(parent)
            if isinstance(inner, str):
                inner = {"name": inner}
            mapping[parent] = mapping = dict(inner) if isinstance(inner, Mapping) else {}
        mapping[key] = setting.value
    return values


def save_config(cfg: ExperimentConfig, path: str | Path) -> None:
    """Write every value of `cfg` as YAML that `load_config` reads back equal, but for credentials.

    Passwords inside of addresses are left out: who continues or exports the run gives them again.

    Raises:
        OSError: `path` cannot be written.
    """
    yaml = _yaml()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    with Path(path).open("w", encoding="utf-8") as file:
        yaml.dump({FORMAT: SAVED_FORMAT} | stored(cfg.model_dump(mode="json")), file)


def load_saved(path: str | Path, overrides: Sequence[str] = ()) -> tuple[ExperimentConfig, Sources]:
    """`load_with_sources` of settings that `save_config` wrote.

    Raises:
        ConfigError: as `load_config`; or version 0.1.0 wrote them, whose settings had other names.
    """
    data, _ = _parse_yaml(_read_text(Path(path), asked_by=None), str(path))
    if isinstance(data, Mapping) and FORMAT not in data:
        problem = "was written by pi_incubator 0.1.0, whose settings this version does not read"
        raise ConfigError(str(path), problem=problem, fix="install that version to use it, or train again")
    return load_with_sources(path, overrides)


def _read(path: Path, asked_by: Setting | None, above: tuple[Path, ...], upper: Settings) -> Settings:
    """The settings of `path` over those of its base.

    `above` are the files that led here, and `upper` are the settings that will replace these.
    """
    text = _read_text(path, asked_by)
    if asked_by is not None and path.resolve() in above:
        chain = " -> ".join(file.name for file in (*above, path))
        problem, fix = f"inherits from itself ({chain})", "remove one of these base lines"
        raise ConfigError(asked_by.source, BASE, asked_by.value, problem=problem, fix=fix)
    parse = _parse_json if path.suffix.lower() == ".json" else _parse_yaml
    data, lines = parse(text, str(path))
    if not isinstance(data, Mapping):
        fix = "write sections such as 'env:' with their fields below"
        raise ConfigError(str(path), problem="the top level is not a mapping", fix=fix)
    if (number := data.get(FORMAT, SAVED_FORMAT)) != SAVED_FORMAT:
        problem, fix = f"this version reads {SAVED_FORMAT}", "use the version that wrote this file"
        raise ConfigError(lines.get(FORMAT, str(path)), FORMAT, number, problem=problem, fix=fix)
    sections = {key: value for key, value in data.items() if key not in (BASE, SCHEMA, FORMAT)}
    settings = _flatten(sections, lines, str(path))
    if FORMAT in data:
        settings |= _model_beside(path, settings)
    if BASE not in data:
        return settings
    upper, source = _merge(settings, upper), lines.get(BASE, str(path))
    file = base_file(data[BASE], source, lambda field: upper[field].value if field in upper else None)
    below = _read(path.parent / file, Setting(file, source), (*above, path.resolve()), upper)
    return _merge(below, settings)


def _model_beside(path: Path, settings: Settings) -> Settings:
    """The robot of saved settings and its folder, named relative to theirs; nothing where it is elsewhere."""
    found = {}
    for field in ("env.model", "env.model_root"):
        named = settings.get(field)
        if named is not None and isinstance(named.value, str):
            beside = path.parent.absolute() / named.value
            if beside.exists():
                found[field] = Setting(str(beside), named.source)
    return found


def _read_text(path: Path, asked_by: Setting | None) -> str:
    """The text of `path`; an error names the `base` setting that asked for it, if one did."""

    def error(problem: str, fix: str) -> ConfigError:
        if asked_by is None:
            return ConfigError(str(path), problem=problem, fix=fix)
        return ConfigError(asked_by.source, BASE, asked_by.value, problem=f"{path}: {problem}", fix=fix)

    try:
        if path.is_dir():
            raise error("is a directory", "name a file in it")
        if not path.exists():
            raise error("file not found", _fix_of_missing(path))
        if path.suffix.lower() not in SUFFIXES:
            raise error("is neither YAML nor JSON", f"rename it to end in {', '.join(SUFFIXES)}")
        if path.stat().st_size > MAX_BYTES:
            raise error(f"is larger than {MAX_BYTES} bytes", "name an experiment file")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"is not UTF-8 text (byte {problem.start})", "save it as UTF-8") from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise error(f"cannot be read ({reason})", "check the path and its permissions") from None


def _fix_of_missing(path: Path) -> str:
    """What to write instead: a packaged file of that name in another folder, or a file beside it."""
    moved = [name for name in packaged_configs() if Path(name).stem == path.stem]
    if moved:
        return f"did you mean {' or '.join(moved)}?"
    files = path.parent.iterdir() if path.parent.is_dir() else ()
    siblings = {file.stem: file for file in files if file.suffix in SUFFIXES}
    guess = nearest(path.stem, siblings)
    return f"did you mean {siblings[guess]}?" if guess else "check the path"


def _parse_yaml(text: str, file: str) -> tuple[Any, Sources]:
    """The document and the source of each key of its first four levels.

    Raises:
        ConfigError: a key appears twice, or the text is not one YAML document.
    """
    try:
        _check_depth(text)
        yaml = _yaml()
        node = yaml.compose(text)
        lines: Sources = {}
        for path, line in _key_lines(node, file):
            lines[path] = line
            if len(lines) > MAX_KEYS:
                raise YAMLError(f"it has more than {MAX_KEYS} keys")
        return yaml.constructor.construct_document(node) if node else None, lines
    except YAML_ERRORS as error:
        if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
            file, reason = f"{file}:{error.problem_mark.line + 1}", error.problem
        else:
            reason = str(error)
        fix = "check the indentation, quotes and brackets there"
        raise ConfigError(file, problem=f"is not valid YAML ({reason})", fix=fix) from None


def _yaml() -> YAML:
    """A parser of YAML 1.2: 1e-3 is a number, on and off are words. The C parser would read YAML 1.1."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    return yaml


class _Representer(SafeRepresenter):
    """Writes texts with characters that are not printed, such as line breaks, with escapes."""

    def represent_str(self, data: str) -> ScalarNode:
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Representer.add_representer(str, _Representer.represent_str)


def _check_depth(text: str) -> None:
    """Refuse deep nesting early: the scanner's time grows with the square of the depth.

    Raises:
        YAMLError: deeper than MAX_DEPTH, or the text is malformed.
    """
    depth = 0
    for event in _yaml().parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise MarkedYAMLError(problem="nested too deeply", problem_mark=event.start_mark)


def _key_lines(node: Node | None, file: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, "file:line") for the keys of a mapping and of the mappings up to three levels below."""
    first_line: dict[str, int] = {}
    for key, value in node.value if isinstance(node, MappingNode) else []:
        if not isinstance(key, ScalarNode):
            continue
        path, line = f"{prefix}{key.value}", key.start_mark.line + 1
        source = f"{file}:{line}"
        if path in first_line:
            problem = f"appears twice, on lines {first_line[path]} and {line}"
            raise ConfigError(source, path, problem=problem, fix="keep one of the two")
        first_line[path] = line
        yield path, source
        if path.count(".") < 3:
            yield from _key_lines(value, file, f"{path}.")


def _parse_json(text: str, file: str) -> tuple[Any, Sources]:
    """The document; JSON keeps no line numbers, so the sources are empty.

    Raises:
        ConfigError: a key appears twice, or the text is not JSON.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, value in pairs:
            if key in mapping:
                raise ConfigError(file, key, value, problem="appears twice", fix="keep one of the two")
            mapping[key] = value
        return mapping

    fix = "check the quotes, commas and brackets there"
    try:
        return json.loads(text, object_pairs_hook=unique), {}
    except json.JSONDecodeError as error:
        problem = f"is not valid JSON ({error.msg})"
        raise ConfigError(f"{file}:{error.lineno}", problem=problem, fix=fix) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(file, problem=f"is not valid JSON ({error})", fix=fix) from None


def _flatten(data: Mapping[Any, Any], lines: Sources, file: str) -> Settings:
    """The settings of one document by dotted name; its keys may be dotted too (`env.pixels.width: 32`).

    Raises:
        ConfigError: an unknown section or key, a section that is no mapping, or a field that is set twice.
    """
    entries: Settings = {}
    for name, value in data.items():
        section, dot, rest = str(name).partition(".")
        source = lines.get(str(name), file)
        if section not in SECTIONS:
            raise unknown_section(source, section, value)
        if not dot and not isinstance(value, Mapping):
            fix = f"write fields below it, for example '{SECTIONS[section][0]}:', or remove it"
            raise ConfigError(source, section, value, problem="must be a section of fields", fix=fix)
        for key, inner in {rest: value}.items() if dot else value.items():
            field = f"{section}.{key}"
            _check_key(lines.get(field, source), section, str(key), inner)
            for found, setting in _entries(field, inner, lines, lines.get(field, source)):
                if found in entries:
                    problem, fix = "is set twice, once with a dotted key", "keep one of the two"
                    raise ConfigError(setting.source, found, setting.value, problem=problem, fix=fix)
                entries[found] = setting
    settings: Settings = {}
    for field in sorted(entries, key=lambda field: len(_keys(field))):  # null first, then what is set within
        _put(settings, field, entries[field])
    return settings


def _entries(field: str, value: Any, lines: Sources, source: str) -> Iterator[tuple[str, Setting]]:
    """`value` of `field`, entry by entry where it is a mapping of fields."""
    if not isinstance(value, Mapping) or field not in NESTED:
        yield field, Setting(value, source)
        return
    if not value:
        yield field, Setting({}, source, resets=False)
    for key, inner in value.items():
        name = f"{field}.{key}"
        yield from _entries(name, inner, lines, lines.get(name, source))


def _check_key(source: str, section: str, key: str, value: Any) -> None:
    """Check that a section has `key`, of which all but the last part hold entries.

    Raises:
        ConfigError: it does not.
    """
    top, *within = key.split(".")
    if top not in SECTIONS[section]:
        raise unknown_key(source, section, top, value, SECTIONS[section])
    if within and f"{section}.{top}" not in NESTED:
        raise unknown_key(source, section, key, value, SECTIONS[section])


def _parse_override(text: str) -> Settings:
    """The settings in `section.key=value` or `section.key.entry=value`, the value read as YAML.

    Where any text is allowed, the value is the text as it stands: `experiment.name=1e3` is a name. Only text
    in quotes is read as YAML, and `null`, `~` or nothing where the field may be null.

    Raises:
        ConfigError: there is no '=', no such field, or the value is not valid YAML.
    """
    name, equals, value = text.partition("=")
    field = SHORT.get(name.strip(), name.strip())
    section, dot, key = field.partition(".")
    if not (equals and section and dot and key):
        guess = field_called(field)
        fix = f"did you mean {guess}={value.strip()}?" if guess else "for example algorithm.lr=3e-4"
        raise ConfigError(COMMAND_LINE, show(text), problem="is not section.key=value", fix=fix)
    if name.endswith(" "):  # written as `key = value`
        value = value.strip()
    data = _text(value, field in OPTIONAL) if field in TEXT else _yaml_value(field, value)
    return _flatten({field: data}, {}, COMMAND_LINE)


def _text(value: str, is_optional: bool) -> str | None:
    """The text that `value` of an override says."""
    if value[:1] in ("'", '"'):
        try:
            text = _yaml().load(value)
        except YAML_ERRORS:
            return value
        return text if isinstance(text, str) else value
    return None if is_optional and value in ("", "null", "~") else value


def _yaml_value(field: str, value: str) -> Any:
    """What `value` of the override of `field` is as YAML.

    Raises:
        ConfigError: it is not valid YAML.
    """
    try:
        _check_depth(value)
        return _yaml().load(value)
    except YAML_ERRORS:
        fix = "check its quotes and brackets, and quote it for the shell"
        raise ConfigError(COMMAND_LINE, field, value, problem="is not valid YAML", fix=fix) from None


def override(field: str, value: str | Sequence[str]) -> str:
    """An override that sets `field` to this text, or these texts, whatever characters are in it."""
    if isinstance(value, str):
        return f"{field}={_quoted(value)}"
    return f"{field}=[{', '.join(map(_quoted, value))}]"


def _quoted(text: str) -> str:
    """`text` in double quotes, for YAML."""
    safe = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{"".join(safe)}"'
