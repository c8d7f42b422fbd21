"""Where settings are written: variables, files and arguments, how they are read, and how they are told of in errors."""

import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, DotEnvSettingsSource, TomlConfigSettingsSource

from workers_module.clock import duration_text
from workers_module.errors import ConfigurationError
from workers_module.url import SecretUrl

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Names:
    """The variables a field is read from, first one first, in place of ``WORKERS_<PATH>`` (which is read as well)."""

    names: tuple[str, ...]
    ordered: bool = False
    """Whether several may be set to different values; the first one then counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One setting as the environment knows it.

    Attributes:
        name: The variable to document and to set.
        names: All variables that are read, first one first.
        path: The field, dotted: ``queue.uri``.
        default: As it would be written in a file; empty if there is none, or if it follows from other settings.
        description: One line, lower case, without a full stop.
        secret: Whether its value must not be shown.
        ordered: Whether several of ``names`` may be set to different values.
    """

    name: str
    names: tuple[str, ...]
    path: str
    default: str
    description: str
    secret: bool
    ordered: bool


def variables_of(model: type[BaseModel], parents: tuple[str, ...] = ()) -> Iterator[Variable]:
    """Return every setting of a model and its sections, in the order of the fields."""
    for field_name, field in model.model_fields.items():
        path = (*parents, field_name)
        if field.exclude:
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from variables_of(field.annotation, path)
            continue
        own = f"WORKERS_{'__'.join(path).upper()}"
        given = next((part for part in field.metadata if isinstance(part, Names)), Names(()))
        yield Variable(
            name=(*given.names, own)[0],
            # Its own name is the most telling one, so it goes before names others may have set (REDIS_URL).
            names=tuple(dict.fromkeys((own, *given.names))),
            path=".".join(path),
            default="" if field.default_factory else setting_text(field.default),
            description=field.description or "",
            secret=_is_secret(field),
            ordered=given.ordered,
        )


def _is_secret(field: FieldInfo) -> bool:
    return "Secret" in str(field.annotation)


def setting_text(value: object) -> str:
    """Return a value as it would be written in a file; secrets are masked."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case Enum():
            return str(value.value)
        case timedelta():
            return duration_text(value)
        case frozenset():
            return ",".join(sorted(map(str, value)))  # pyright: ignore[reportUnknownArgumentType]
        case tuple():
            return ",".join(map(str, value))  # pyright: ignore[reportUnknownArgumentType]
        case _:
            return str(value)


@dataclass(frozen=True, slots=True)
class Sources:
    """The places where settings are looked for.

    Attributes:
        settings: The class they are for.
        table: All its settings.
    """

    settings: type[BaseSettings]
    table: Sequence[Variable]

    def read(
        self,
        arguments: Mapping[str, Any],
        environ: Mapping[str, str | None],
        dotenv: Any,
        secrets: Any,
        *,
        environment: str,
    ) -> tuple[dict[str, Any], ...]:
        """Return what each source says, strongest first, by field; ``origins`` among it is where each value stood.

        Args:
            arguments: Fields by name.
            environ: The environment, names in lower case.
            dotenv: One or several ``.env`` files, or None.
            secrets: One or several folders of secret files, or None.
            environment: Which files are read too when no source names an environment.

        Raises:
            ConfigurationError: A file cannot be read, or two names of one setting differ.
        """
        given = self._fields(arguments, "argument {path}")
        found = self._variables(environ, "")
        env_file = self._dotenv(dotenv)
        toml_file = self._toml("workers.toml")
        chosen: str = next(
            (str(one["environment"]) for one in (given, found, env_file, toml_file) if "environment" in one),
            environment,
        )
        return (
            given,
            # It chose the files, so no file may change it.
            {"environment": chosen},
            found,
            self._dotenv([f"{file}.{chosen}" for file in _paths(dotenv)]),
            env_file,
            self._toml(f"workers.{chosen}.toml"),
            toml_file,
            *(self._variables(self._secret_files(folder), f" ({folder})") for folder in reversed(_paths(secrets))),
        )

    def _variables(self, given: Mapping[str, str | None], where: str) -> dict[str, Any]:
        """Return what a set of variables says; their names in ``given`` are in lower case."""
        values: dict[str, Any] = {"origins": {}}
        for variable in self.table:
            # An empty variable is what compose files and shells make of one that is not set.
            texts = {name: text for name in variable.names if (text := given.get(name.lower()) or "").strip()}
            if not texts:
                continue
            if (
                not variable.ordered
                and len({frozenset(map(str.strip, text.split(","))) for text in texts.values()}) > 1
            ):
                raise ConfigurationError(
                    f"{' and '.join(texts)}{where} are the same setting and differ; set one of them"
                )
            name, text = next(iter(texts.items()))
            section = values
            *parents, leaf = variable.path.split(".")
            for parent in parents:
                section = section.setdefault(parent, {})
            section[leaf] = (
                SecretUrl(text) if variable.path == "queue.uri" else SecretStr(text) if variable.secret else text
            )
            values["origins"][variable.path] = f"{name}{where}"
        self._warn_of_unknown(given, where)
        return values

    def _warn_of_unknown(self, given: Iterable[str], where: str) -> None:
        known = [name for variable in self.table for name in variable.names]
        for name in sorted(map(str.upper, given)):
            # WORKERS_TEST_* steer the tests, not the workers.
            if name.startswith("WORKERS_") and not name.startswith("WORKERS_TEST_") and name not in known:
                _log.warning("%s%s is not a setting%s", name, where, _nearest(name, known))

    def _fields(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return what nested fields say; ``where`` is their origin, with ``{path}`` for the field."""
        values = _plain(given)
        queue = values.get("queue")
        if _is_section(queue) and "num_workers" in queue:
            alias = queue.pop("num_workers")
            if values.setdefault("concurrency", alias) != alias:
                raise ConfigurationError(
                    "concurrency and queue.num_workers are the same setting and differ; set one of them"
                )
        names = {variable.path: variable.name for variable in self.table}
        places = {path: where.format(path=path) for path in _leaves(values)}
        origins = {path: f"{names[path]} ({place})" if path in names else place for path, place in places.items()}
        return {**values, "origins": origins}

    def _dotenv(self, files: Any) -> dict[str, Any]:
        given = DotEnvSettingsSource(self.settings, env_file=files).env_vars
        return self._variables(given, f" ({', '.join(_paths(files))})")

    def _toml(self, file: str) -> dict[str, Any]:
        try:
            given = TomlConfigSettingsSource(self.settings, Path(file))()
        except ValueError as error:
            raise ConfigurationError(f"{file}: {error}") from None
        return self._fields(given, f"{{path}} in {file}")

    def _secret_files(self, folder: str) -> dict[str, str]:
        """Return the contents of the files in a folder that are named like variables, by name in lower case."""
        known = {name.lower() for variable in self.table for name in variable.names}
        found: dict[str, str] = {}
        if not Path(folder).is_dir():
            return found
        for path in Path(folder).iterdir():
            if path.name.lower() in known and path.is_file():
                try:
                    found[path.name.lower()] = path.read_text(encoding="utf-8").strip()
                except (OSError, UnicodeDecodeError) as error:
                    raise ConfigurationError(f"{path}: cannot be read: {type(error).__name__}") from None
        return found


def fault_lines(table: Sequence[Variable], error: ValidationError, data: object) -> Iterator[str]:
    """Render a line for each fault of what the sources said, which names the variable as it was found."""
    origins: dict[str, str] = data.get("origins", {}) if _is_section(data) else {}
    names = {variable.path: variable.name for variable in table}
    for fault in error.errors(include_url=False, include_input=False):
        path = ".".join(map(str, fault["loc"]))
        where = origins.get(path) or names.get(path) or path
        match fault["type"]:
            case "default_factory_not_called":
                continue  # it depends on a setting that has a fault of its own
            case "extra_forbidden":
                text = f"there is no such setting{_nearest(path, names)}"
            case "value_error":
                text = str(fault.get("ctx", {}).get("error"))
            case _:
                text = fault["msg"]
        yield f"{where}: {text}" if where else text


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """Turn sections into mappings of what was set on them, so that weaker sources fill in the rest."""
    plain: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, BaseModel):
            plain[name] = _plain({field: getattr(value, field) for field in value.model_fields_set})
        else:
            plain[name] = _plain(value) if _is_section(value) else value
    return plain


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if _is_section(value):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _is_section(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _paths(given: Any) -> list[str]:
    """Return the one or several files that ``_env_file`` or ``_secrets_dir`` name; later ones are stronger."""
    if given is None:
        return []
    return [str(given)] if isinstance(given, str | Path) else [str(path) for path in given]


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
