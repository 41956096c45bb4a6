"""Settings as a frozen dataclass: flags of the command line, or a YAML file with the same names."""

import contextlib
import dataclasses
import difflib
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from .._extras import require

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `TrainConfig` and its like share. A subclass has one field for each setting, all with defaults."""

    def __post_init__(self):
        """`ValueError` for a choice that there is not. A subclass with checks of its own calls this one, too."""
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            if typing.get_origin(hints[field.name]) is Literal:
                _convert(
                    type(self).__name__, field.name, getattr(self, field.name), hints[field.name]
                )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls: type[T], values: dict[str, Any], where: str = "configuration") -> T:
        """The inverse of `to_dict`; `ValueError` for unknown names and values of the wrong type."""
        every = typing.get_type_hints(cls)
        hints = {f.name: every[f.name] for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
        converted = {}
        for name, value in values.items():
            if name not in hints:
                near = difflib.get_close_matches(name, hints, n=1)
                hint = f"; did you mean `{near[0]}`?" if near else f". Known: {', '.join(hints)}."
                raise ValueError(f"{where}: unknown setting `{name}`{hint}")
            converted[name] = _convert(where, name, value, hints[name])
        return cls(**converted)

    def save(self, path: Path) -> None:
        """Write the YAML file that `load` reads."""
        require("training")
        import yaml  # here, since it is an extra

        path.write_text(
            yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True), "utf-8"
        )

    @classmethod
    def load(cls, path: Path) -> Any:
        """Read a YAML file; names that are left out keep their defaults."""
        require("training")
        import yaml

        try:
            values = yaml.safe_load(Path(path).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: not a readable YAML file ({error}).") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path}: must hold lines `name: value`, such as `width: 64`.")
        return cls.from_dict(values, str(path))

    def check_above_zero(self, names: str) -> None:
        """`ValueError` for one of these settings (names with blanks between them) that is not above 0."""
        for name in names.split():
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"`{name}` must be above 0, got {value}.")

    def check_not_negative(self, names: str) -> None:
        """`ValueError` for one of these settings that is below 0."""
        for name in names.split():
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"`{name}` must be at least 0, got {value}.")


def _convert(where: str, name: str, value: Any, hint: Any) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) is not Literal else (hint,)
    for option in options or (hint,):
        if typing.get_origin(option) is Literal and value in typing.get_args(option):
            return value
        if option is Path and isinstance(value, str):
            return Path(value)
        if option is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            # YAML reads `3e-3` as a string.
            with contextlib.suppress(ValueError):
                return float(value)
        if isinstance(option, type) and isinstance(value, option):
            if option is int and isinstance(value, bool):
                continue
            return value
    wanted = (
        " or ".join(map(repr, typing.get_args(hint)))
        if typing.get_origin(hint) is Literal
        else getattr(hint, "__name__", str(hint))
    )
    raise ValueError(f"{where}: `{name}` must be {wanted}, got {value!r}.")
