"""Every public object of the package, one `Case` each.

A module here per folder of the package holds a list `CASES`. Being in it means being
held to every contract in `tests/contracts`.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

CONTRACTS = (
    "config",
    "keras_file",
    "xla",
    "mixed_bfloat16",
    "steps_per_execution",
    "no_retrace",
    "built_late",
    "replicas",
    "jax",
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One public object under contract.

    Attributes:
        name: shown in the test id.
        kind: `"optimizer"`, `"schedule"`, `"callback"`, `"layer"`, `"transform"`,
            `"model"` or `"term"`; decides how `contracts.building` puts it in a model.
        make: builds a new object, without arguments.
        input_shape: of one example, for layers and models.
        images: whether inputs are from 0 to 1.
        random: draws random numbers in training, so only finiteness and shapes are
            compared between backends and strategies.
        optimizer: builds what the model trains with, where the contracts' SGD does
            not do.
        exempt: contract name -> the documented reason why it does not apply.
    """

    name: str
    kind: str
    make: Callable[[], Any]
    input_shape: tuple[int, ...] = (8,)
    images: bool = False
    random: bool = False
    optimizer: Callable[[], Any] | None = None
    exempt: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        unknown = set(self.exempt) - set(CONTRACTS)
        assert not unknown, f"{self.name}: unknown contracts {unknown}"


def modules() -> list[str]:
    """The names of the modules in this folder."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__))


def cases_of(module: str) -> list[Case]:
    """The cases of one module in this folder."""
    return importlib.import_module(f"catalogue.{module}").CASES


def all_cases() -> list[Case]:
    """The cases of every module in this folder, sorted by module name."""
    cases = [case for module in modules() for case in cases_of(module)]
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "two cases share a name"
    return cases
