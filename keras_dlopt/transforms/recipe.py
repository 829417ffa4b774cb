"""A recipe: which transform for which weights, as plain data."""

import dataclasses
import json
import reprlib
import warnings
from collections.abc import Iterable
from typing import Any

from keras_dlopt import checks
from keras_dlopt.config import decode, encode
from keras_dlopt.errors import ConfigError, FormatError
from keras_dlopt.files import parse_json
from keras_dlopt.graph.targets import Target
from keras_dlopt.select import Selector, selector_from_dict
from keras_dlopt.tables import Table, Tabled
from keras_dlopt.transforms.base import Transform


@dataclasses.dataclass(frozen=True)
class Recipe(Tabled):
    """An ordered list of (selector, transform); for each weight the first match wins.

    Args:
        entries: pairs of a selector and a transform; may be empty.

    Raises:
        ConfigError: for anything else.

    Example:
        >>> from keras_dlopt import Prune, named
        >>> recipe = Recipe([(named("kernel"), Prune(0.9))])
        >>> Recipe.from_json(recipe.to_json()) == recipe
        True
    """

    entries: tuple[tuple[Selector, Transform], ...] = ()

    def __init__(self, entries: Iterable[tuple[Selector, Transform]] = ()):
        checked = []
        for entry in entries:
            match entry:
                case (Selector() as selector, Transform() as transform):
                    checked.append((selector, transform))
                case _:
                    raise ConfigError(
                        "A recipe is a list of (selector, transform) pairs, such as "
                        f"[(named('kernel'), Prune(0.9))]. Received: {entry!r}."
                    )
        object.__setattr__(self, "entries", tuple(checked))

    def tables(self) -> tuple[Table, ...]:
        """What happens to which weights."""
        rows = tuple(
            (f"{number}", str(selector), repr(transform))
            for number, (selector, transform) in enumerate(self.entries, 1)
        )
        note = "For each weight the first entry that matches counts." * (len(rows) > 1)
        columns = ("", "weights", "transform")
        return (Table("Recipe", columns, rows, note=note, words=True),)

    def assign(self, targets: Iterable[Target]) -> list[list[Target]]:
        """The targets of each entry.

        Raises:
            ConfigError: if a recipe with entries matches nothing at all.
        """
        groups: list[list[Target]] = [[] for _ in self.entries]
        targets = list(targets)
        for target in targets:
            for group, (selector, transform) in zip(groups, self.entries, strict=True):
                if transform.kind == target.kind and selector(target):
                    group.append(target)
                    break
        if self.entries and not any(groups):
            weights = [t.path for t in targets if t.kind == "weight"]
            raise ConfigError(
                "The recipe matches nothing in this model. "
                f"Selectors: {[s.to_dict() for s, _ in self.entries]}. "
                f"Weights there are: {weights[:20]}"
                f"{' ...' if len(weights) > 20 else ''}. "
                "An entry of activation transforms needs paths that end in "
                "'/input' or '/output'."
            )
        for group, (selector, transform) in zip(groups, self.entries, strict=True):
            if not group:
                warnings.warn(
                    f"The recipe entry {selector.to_dict()} -> {transform!r} matches "
                    "nothing, or only what earlier entries took.",
                    stacklevel=4,
                )
        return groups

    def to_dict(self) -> list[dict[str, Any]]:
        """The recipe as JSON-ready data."""
        return [
            {"select": selector.to_dict(), "transform": encode(transform)}
            for selector, transform in self.entries
        ]

    @classmethod
    def from_dict(cls, data: Any) -> "Recipe":
        """The recipe that `to_dict` wrote.

        Raises:
            ConfigError: for data that is not a recipe.
        """
        readers = {"select": selector_from_dict, "transform": decode}
        if not isinstance(data, list) or any(
            not isinstance(entry, dict) or set(entry) != set(readers) for entry in data
        ):
            raise ConfigError(
                f"A recipe is a list of dicts with the keys {sorted(readers)}. "
                f"Received: {_shown(data)}."
            )
        entries: list[Any] = []
        for number, entry in enumerate(data):
            pair = {}
            for key, read in readers.items():
                try:
                    pair[key] = read(entry[key])
                except (ConfigError, RecursionError) as error:
                    raise ConfigError(
                        f"In entry {number} of the recipe, {key!r}: {error}"
                    ) from error
            if not isinstance(pair["transform"], Transform):
                raise ConfigError(
                    f"In entry {number} of the recipe, 'transform': expected a "
                    f"transform. Received: {_shown(entry['transform'])}."
                )
            entries.append((pair["select"], pair["transform"]))
        return cls(entries)

    def to_json(self) -> str:
        """The recipe as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """The recipe from JSON text.

        Raises:
            ConfigError: for text that is not JSON or not a recipe.
        """
        try:
            data = parse_json(text)
        except FormatError as error:
            raise ConfigError(f"The recipe cannot be read. {error}") from None
        return cls.from_dict(data)


def _shown(data: Any) -> str:
    try:
        return repr(data)
    except RecursionError:  # lists in lists in lists
        return reprlib.repr(data)


_EXAMPLE = "a Recipe, such as Recipe([(named('kernel'), Prune(0.9))])"


def check_recipe(given: Any) -> None:
    """Raises `ConfigError` for anything but a `Recipe`."""
    checks.instance(given, Recipe, name="The recipe", wanted=_EXAMPLE)
