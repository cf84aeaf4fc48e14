"""The values of a search in a file, from which a killed search goes on."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """One value a line, behind a line that says of which search; another search begins a new file.

    Args:
        path: the file.
        settings: all that the values depend on, as JSON.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._head = json.dumps(settings, sort_keys=True) + "\n"

    def read(self) -> list[float]:
        """Returns the values; a line that a kill has cut off is taken away."""
        text = self.path.read_text() if self.path.is_file() else ""
        text = text[: text.rfind("\n") + 1]
        if not text.startswith(self._head):
            text = self._head
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(text)
        return [float.fromhex(line) for line in text.splitlines()[1:]]

    def add(self, value: float) -> None:
        """Adds a value."""
        with open(self.path, "a") as file:
            file.write(f"{value.hex()}\n")
