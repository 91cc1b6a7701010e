"""Text that came from a queue is untrusted: whoever can enqueue a job chooses its names, arguments and error messages.

A terminal obeys what it is sent (a new title, a cleared screen, on some even typed input), and text that runs from
right to left can make one thing look like another. So whatever is not printable is shown as its Python escape.
"""

from __future__ import annotations


def escaped(text: str) -> str:
    """The text with every unprintable character, line ends included, as its escape: ``\\x1b``, ``\\n``, ``\\u202e``."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def escaped_lines(text: str) -> list[str]:
    """The lines of a text, each escaped."""
    return [escaped(line.expandtabs(4)) for line in text.rstrip("\n").split("\n")]


def one_line(text: str) -> str:
    """A message as one escaped line; an ellipsis stands for the lines that are left out."""
    first, *more = text.strip().split("\n")
    return escaped(first.rstrip()) + (" …" if more else "")
