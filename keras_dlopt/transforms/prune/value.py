"""What scores, patterns and distributions are: small frozen values with a config."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Value:
    """A frozen dataclass whose fields are its config."""

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, in order."""
        return {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Builds the value from its `get_config()`."""
        return cls(**config)


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
