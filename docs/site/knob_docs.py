"""What the API reference shows of our docstrings beyond Griffe's own reading: knobs, and examples as sessions."""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe


class KnobDocs(griffe.Extension):
    """Gives attributes that are declared with ``knob(default, effect, …)`` their effect and unit as their docstring."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by Griffe with every object: it knows no ``Example:``, whose session would become a quotation."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **_: Any) -> None:
        """Called by Griffe with every attribute that it finds."""
        value = getattr(node, "value", None)
        if not isinstance(value, ast.Call) or getattr(value.func, "id", "") != "knob" or attr.docstring is not None:
            return
        effect = value.args[1]
        if isinstance(effect, ast.Constant) and isinstance(effect.value, str):
            unit = next((k.value for k in value.keywords if k.arg == "unit"), None)
            ending = f" Unit: {unit.value}." if isinstance(unit, ast.Constant) and unit.value else ""
            attr.docstring = griffe.Docstring(effect.value + ending, lineno=node.lineno, parent=attr)
