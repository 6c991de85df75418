"""What no run folder may keep: the recipe in it is read by whoever gets the folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from luthier.errors import Problem, RunError
from luthier.secrets import VARIABLES, masked

if TYPE_CHECKING:
    from luthier.recipe.schema import Recipe


def refuse_secrets(recipe: Recipe) -> None:
    """Raises RunError for settings that no run folder may keep: a token, or an address with a password or key."""
    found = dict.fromkeys(_secret_settings(recipe.model_dump(mode="json")))
    kept = "and the run folder keeps the recipe"
    in_address = f"holds a password or key in its address, {kept}"
    as_it_is = f"holds an access token or key, {kept}"
    if found:
        raise RunError(
            *(
                Problem("recipe", f"{host} {in_address}", "download the file first and give its path")
                if host
                else Problem(
                    f"recipe, {setting}", as_it_is, f"take it out; tokens are read from {', '.join(VARIABLES)}"
                )
                for setting, host in found
            )
        )


_ADDRESS = re.compile(r"https?://(?:[^/@\s]*@)?([^/?#\s]*)")


def _secret_settings(value: Any, setting: str = "") -> Iterator[tuple[str, str]]:
    """Each setting with a secret in it, and the host where it is a web address."""
    if isinstance(value, str) and masked(value) != value:
        address = _ADDRESS.match(value)
        yield setting, address[1] if address else ""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _secret_settings(item, f"{setting}.{key}".lstrip("."))
    if isinstance(value, list):
        for item in value:
            yield from _secret_settings(item, setting)
