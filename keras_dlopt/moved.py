"""Names that a package finds when they are asked for: heavy parts, and old paths.

Old import paths keep working for a while and name the new ones: two tables and the two
ways in which Python asks for a name, as a module (`import keras_dlopt.profile`) and as
an attribute (`transforms.int8_recipe`).
"""

import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = {
    "keras_dlopt.distribute.model_parallel": "keras_dlopt.model_parallel",
    "keras_dlopt.distribute.tpu": "keras_dlopt.tpu",
    "keras_dlopt.profile": "keras_dlopt.measure.profile",
    "keras_dlopt.serialize": "keras_dlopt.config",
}
NAMES = {
    "keras_dlopt.demo.Plan": "keras_dlopt.demo.DemoPlan",
    "keras_dlopt.demo.Progress": "keras_dlopt.report.Progress",
    "keras_dlopt.demo.Silent": "keras_dlopt.report.Silent",
    "keras_dlopt.distribute.Outcome": "keras_dlopt.trials.Outcome",
    "keras_dlopt.distribute.run_tasks": "keras_dlopt.trials.run_tasks",
    "keras_dlopt.model_parallel.State": "keras_dlopt.model_parallel.TrainState",
    "keras_dlopt.select.activation_targets": (
        "keras_dlopt.graph.targets.activation_targets"
    ),
    "keras_dlopt.select.variable_target": "keras_dlopt.graph.targets.variable_target",
    "keras_dlopt.select.weight_targets": "keras_dlopt.graph.targets.weight_targets",
    "keras_dlopt.transforms.FreezeBatchNormalization": (
        "keras_dlopt.callbacks.FreezeBatchNormalization"
    ),
    "keras_dlopt.transforms.HashedKernel": "keras_dlopt.surgery.HashedKernel",
    "keras_dlopt.transforms.cluster.Linear": (
        "keras_dlopt.transforms.cluster.LinearStart"
    ),
    "keras_dlopt.transforms.cluster.Random": (
        "keras_dlopt.transforms.cluster.RandomStart"
    ),
    "keras_dlopt.transforms.factorize": "keras_dlopt.surgery.factorize",
    "keras_dlopt.transforms.hashed_layers": "keras_dlopt.surgery.hashed_layers",
    "keras_dlopt.transforms.int8_recipe": "keras_dlopt.int8.int8_recipe",
    "keras_dlopt.transforms.quantization_recipe": (
        "keras_dlopt.int8.quantization_recipe"
    ),
    "keras_dlopt.transforms.quantize.FreezeBatchNormalization": (
        "keras_dlopt.callbacks.FreezeBatchNormalization"
    ),
    "keras_dlopt.transforms.split_activations": "keras_dlopt.int8.split_activations",
}


def _warn(old: str, new: str) -> None:
    # The caller's line: the frames of the import system do not count.
    warnings.warn(f"{old} has moved: use {new}.", DeprecationWarning, stacklevel=3)


def names(
    module: str, *, homes: Mapping[str, str] | None = None, modules: Sequence[str] = ()
) -> Callable[[str], Any]:
    """The `__getattr__` of a module.

    Args:
        module: its own `__name__`.
        homes: name -> module inside this one that has it, imported on first use.
        modules: names of modules inside this one that are imported on first use.
    """

    def find(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{module}.{name}")
        if homes and name in homes:
            return getattr(importlib.import_module(f"{module}.{homes[name]}"), name)
        old = f"{module}.{name}"
        if old in MODULES:
            _warn(old, MODULES[old])
            found: Any = importlib.import_module(MODULES[old])
        elif old in NAMES:
            home, _, attribute = NAMES[old].rpartition(".")
            _warn(old, NAMES[old])
            found = getattr(importlib.import_module(home), attribute)
        else:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        # `from module import name` asks twice, and should warn once.
        vars(sys.modules[module])[name] = found
        return found

    return find


def _new_name(module: str) -> str | None:
    """Where a module, or one inside it, is now."""
    for old, new in MODULES.items():
        if module == old or module.startswith(f"{old}."):
            return new + module.removeprefix(old)
    return None


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the new module where an old one is imported."""

    def find_spec(
        self, fullname: str, path: Any = None, target: Any = None
    ) -> ModuleSpec | None:
        if _new_name(fullname) is None:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = _new_name(spec.name)
        assert new is not None  # `find_spec` has seen to it
        _warn(spec.name, new)
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Keeps the module as it is: it was run under its new name."""
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Has old module paths found; once a process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        # Before the finder of files, which would load a second copy of a module inside
        # a moved folder.
        sys.meta_path.insert(0, _Finder())
