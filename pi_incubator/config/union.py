"""A section whose fields depend on its `name`: one settings class a file of a package.

The classes are found by importing every file of the package: a new algorithm or network is a new file, and no
other line changes.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Discriminator, Tag


class Union:
    """The settings classes of one package, by name.

    Args:
        kind: what a member is, for messages: `algorithm` or `network`.
        package: holds a file for each member, which defines one subclass of `base` with that `name`.
        base: what the members share.
        default: the name where a file gives none.
        keeps_common: whether a file that names another member inherits the keys that both have. The sizes of
            layers mean the same in every network; a learning rate does not in another algorithm.
    """

    def __init__(self, kind: str, package: str, base: type, default: str, keeps_common: bool) -> None:
        self.kind, self.default, self.keeps_common = kind, default, keeps_common
        folder = importlib.import_module(package)
        names = [module.name for module in pkgutil.iter_modules(folder.__path__)]
        self.members: dict[str, Any] = {name: _member(f"{package}.{name}", base) for name in sorted(names)}

    def annotation(self) -> Any:
        """The type of the section, discriminated by `name`."""
        tagged = [Annotated[member, Tag(name)] for name, member in self.members.items()]
        return Annotated[reduce(or_, tagged), Discriminator(self._tag)]

    def fields(self, name: Any) -> list[str]:
        """The keys that the member `name` has; none where there is no such member."""
        return (
            list(self.members[name].fields_by_key()) if isinstance(name, str) and name in self.members else []
        )

    def all_fields(self) -> list[str]:
        """The keys that any member has, the default's first."""
        keys = [key for name in (self.default, *self.members) for key in self.fields(name)]
        return list(dict.fromkeys(keys))

    def _tag(self, value: Any) -> str:
        name = value.get("name", self.default) if isinstance(value, dict) else getattr(value, "name", None)
        return name if isinstance(name, str) else self.default


def _member(module: str, base: type) -> Any:
    """The subclass of `base` that `module` defines.

    Raises:
        TypeError: it defines none, or several.
    """
    values = vars(importlib.import_module(module)).values()
    own = [v for v in values if isinstance(v, type) and issubclass(v, base) and v.__module__ == module]
    if len(own) != 1:
        raise TypeError(f"{module}: must define one subclass of {base.__name__}, defines {len(own)}")
    return own[0]
