"""Reads the docstrings of this package for the site: `Example:` holds doctests."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Griffe knows the section by its plural alone."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M
            )
