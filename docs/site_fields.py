"""Docstrings explain arguments and fields in lines `name: text`; on the site they are a list."""

from __future__ import annotations

import re

import griffe

__all__ = ["FieldLists"]

_FIELD = re.compile(r"^((?:\w+, )*\w+): ", re.MULTILINE)


class FieldLists(griffe.Extension):
    """Turns lines that begin with names of the object's arguments or fields into list items."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called for every function and class."""
        if obj.docstring is None or not (obj.is_class or obj.is_function):
            return
        known = {p.name for p in obj.parameters} | set(obj.all_members if obj.is_class else ())

        def item(found: re.Match) -> str:
            names = found[1].split(", ")
            if not known.issuperset(names):
                return found[0]
            return f"- {', '.join(f'`{name}`' for name in names)}: "

        obj.docstring.value = _FIELD.sub(item, obj.docstring.value)
