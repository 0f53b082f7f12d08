"""Where a parameter, a gate or a change of an attached mixture is: one typed tuple, converted to text and back only here."""

from typing import NamedTuple

from unipelt.errors import SpecError

HEAD = "head"
WHOLE_STACK = "stack"
"""text in place of the layer for what belongs to all layers of a stack, or to none"""


class Location(NamedTuple):
    """A stack, a layer, a change, and a part of it. `str(location)` is the parameter's path in an attached model and in files."""

    stack: str
    """`encoder`, `decoder`, or the name that `attach(stacks=)` gives; empty for the head"""
    layer: int | None
    """counted from 0 in its stack; None for what belongs to all layers, or to none"""
    change: str
    """name of a change, of a group of gates, or `head`"""
    part: str = ""
    """site and parameter, with dots as in the base's own paths, such as `query.down.weight`"""

    def __str__(self) -> str:
        """`stack.layer.change.part`; `head.part` for the head."""
        if self.change == HEAD:
            return f"{HEAD}.{self.part}"
        layer = WHOLE_STACK if self.layer is None else str(self.layer)
        name = self.change.replace("%", "%25").replace(".", "%2E")  # a module's name has no dot
        return ".".join([self.stack, layer, name, *filter(None, [self.part])])

    @classmethod
    def parse(cls, path: str) -> "Location":
        """The location that `str` has written. Raises SpecError for another text."""
        if path.startswith(f"{HEAD}."):
            return cls("", None, HEAD, path.removeprefix(f"{HEAD}."))
        stack, layer, name, part = [*path.split(".", 3), "", "", ""][:4]
        if not name or not (layer.isdecimal() or layer == WHOLE_STACK):
            raise SpecError(
                f"{path!r} is not a location; expected stack.layer.change.part, such as encoder.0.bottleneck_ffn.ffn"
            )
        change = name.replace("%2E", ".").replace("%25", "%")
        return cls(stack, None if layer == WHOLE_STACK else int(layer), change, part)

    @property
    def is_cross(self) -> bool:
        """Whether it is at a cross-attention."""
        return self.part.startswith("cross")
