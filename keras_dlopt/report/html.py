"""A report as one HTML file that needs nothing else."""

import os
import pathlib

from keras_dlopt.files import write_atomic
from keras_dlopt.report.document import Document

TEMPLATES = pathlib.Path(__file__).parent / "templates"


def to_html(document: Document) -> str:
    """The page as text: style and plots inside, no script, no request.

    Example:
        >>> "<h1>Size</h1>" in to_html(Document("Size", "Smaller.", ()))
        True
    """
    import jinja2
    import markupsafe

    # Everything is escaped: names of layers and classes come from the user's files.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        document=document, svg=lambda figure: markupsafe.Markup(figure.svg)
    )


def write_html(document: Document, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the page; the file appears whole or not at all.

    Raises:
        ConfigError: if the file cannot be written.
    """
    path = pathlib.Path(path)
    write_atomic(path, to_html(document).encode())
    return path
