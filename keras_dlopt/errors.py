"""The exceptions this package raises on purpose.

Each kind also derives from the built-in exception that a caller would expect
(`ValueError`, `OSError`, ...), so `except ValueError` keeps working. Texts say what
was given, what was expected, and what to do next.
"""

import importlib.util


class DloptError(Exception):
    """Base class of every exception raised on purpose by this package."""


class ConfigError(DloptError, ValueError):
    """An argument, recipe or option is not usable as given."""


class UnknownArgumentError(ConfigError, TypeError):
    """A constructor has no argument of that name."""


class ModelError(DloptError, ValueError):
    """A model is not in the state an operation needs (unbuilt, no targets, ...)."""

    # TensorFlow's AutoGraph keeps the class of such errors only.
    __init__ = Exception.__init__


class FormatError(DloptError, ValueError):
    """A file is damaged, truncated, hostile, or of an unknown version."""


class DataError(DloptError, ValueError):
    """A data set cannot be found or read, or has the wrong shape."""


class ExportError(DloptError, RuntimeError):
    """A model could not be exported, or the file does not hold what was trained."""


class RunError(DloptError, RuntimeError):
    """A process that was started failed, or did not end in time."""


class DiskError(DloptError, OSError):
    """A file could not be written: the disk is full, or the system refused."""


class MissingDependencyError(DloptError, ImportError):
    """An optional package is needed and is not installed."""


def require(*packages: str, extra: str, purpose: str) -> None:
    """Raises `MissingDependencyError` unless these packages are installed."""
    for package in packages:
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            raise missing(package, extra=extra, purpose=purpose)


def missing(package: str, *, extra: str, purpose: str) -> MissingDependencyError:
    """Returns the error for an optional package that is not installed.

    Args:
        package: distribution name, such as `"optuna"`.
        extra: the extra of this package that installs it.
        purpose: what it is needed for, a noun phrase.
    """
    return MissingDependencyError(
        f"{purpose} needs the package {package!r}, which is not installed. "
        f"Install it with: pip install 'keras-dlopt[{extra}]'"
    )
