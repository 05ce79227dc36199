"""Optional packages: imported when they are needed, asked for by name when they are not there."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import MissingPackage


def require(module_name: str, *, purpose: str, install: str) -> ModuleType:
    """Import a module, or raise MissingPackage saying what needs it and how to install it.

    ``purpose`` begins a sentence ("Grounding detection"); ``install`` is the command's last words
    ("likeness[grounding]"). A package that is there and broken is named with its own error.
    """
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module_name.split(".")[0]
        state = "is not installed" if missing else f"is installed and does not load ({error})"
        raise MissingPackage(
            f"{purpose} needs the package {module_name.split('.')[0]}, which {state}",
            fix=f"Install it with: python -m pip install {install}",
        ) from error
