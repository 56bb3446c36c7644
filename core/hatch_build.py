"""Takes the plugin templates along, which lie beside this project in the repository and inside of it in an sdist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLACE = "kernel_worker/cli/templates"


class Templates(BuildHookInterface):
    """Adds the templates to a wheel or an sdist built in the repository; in an sdist they are part of the sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a build of any kind."""
        templates = Path(self.root).parent / "templates"
        if version != "editable" and templates.is_dir():
            build_data["force_include"][str(templates)] = f"src/{PLACE}" if self.target_name == "sdist" else PLACE
