"""Reports as one HTML file that needs no other."""

from __future__ import annotations

import base64
from typing import Any


def render(package: str, pictures: dict[str, bytes], **values: Any) -> str:
    """`report.html.j2` of a package, which extends `page.html.j2` of this one, with the pictures inside."""
    import jinja2

    loader = jinja2.ChoiceLoader([jinja2.PackageLoader(name, ".") for name in (package, "steepest.runs")])
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    images = {name: f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in pictures.items()}
    return environment.get_template("report.html.j2").render(images=images, **values)
