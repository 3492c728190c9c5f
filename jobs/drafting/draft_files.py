"""The drafted YAML files: every word quoted where YAML would read it as anything else, with comments for the person who edits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from jobs.drafting.analysis.attribute_drafts import DraftAttribute, Drafts
from jobs.drafting.analysis.label_promise import statement
from jobs.drafting.analysis.spellings import DraftValue
from jobs.pages.display_text import plain
from schemas.taxonomy import Attribute

# A word that needs no quotes: it begins with a letter and has no sign with a meaning in YAML.
_PLAIN: Final = re.compile(r"[^\W\d_][\w /.()+'&%*-]*[\w).+%*]|[^\W\d_]")
_MEANINGS: Final = frozenset(["yes", "no", "on", "off", "true", "false", "null", "none", "y", "n", "nan", "inf"])
_WIDTH: Final = 128
_COMMENT: Final = 180  # characters of a comment
_RARE: Final = 15  # values that are named in a comment
_GROUP: Final = 6  # article types from which on a list of them becomes a group


def quoted(word: str) -> str:
    """Return a text as a YAML scalar that every reader takes for that text."""
    if _PLAIN.fullmatch(word) and word.casefold() not in _MEANINGS and not word.endswith(" "):
        return word
    return '"' + "".join(map(_escaped, word)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    code = ord(character)
    if character.isprintable() and code != 0xFEFF and not 0xD800 <= code < 0xE000:
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def flow(value: Any) -> str:
    """Return a value in YAML's flow style, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(str(key))}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else str(value) if isinstance(value, int | float) else quoted(str(value))


def comment(text: str) -> str:
    """Return a text of any origin as a comment of one line."""
    return "# " + plain(" ".join(text.split()), _COMMENT)


def _wrapped(items: Sequence[Any], indent: int) -> str:
    """Return a list in flow style, on as many lines as it needs."""
    lines, line = [], ""
    for i, item in enumerate(items):
        text = flow(item) + (", " if i < len(items) - 1 else "")
        if line and indent + len(line) + len(text) > _WIDTH:
            lines.append(line.rstrip())
            line = ""
        line += text
    lines.append(line)
    if len(lines) == 1:
        return f"[{lines[0]}]"
    inner = ("\n" + " " * (indent + 2)).join(lines)
    return f"[\n{' ' * (indent + 2)}{inner},\n{' ' * indent}]"


def mapping_text(document: dict[str, Any], comments: dict[str, list[str]], head: Iterable[str]) -> str:
    """Return a mapping as YAML, each key after its comments."""
    lines = [comment(line) for line in head] + [""]
    for key, value in document.items():
        lines += [comment(text) for text in comments.get(key, ()) if text]
        if isinstance(value, dict) and value:
            lines.append(f"{key}:")
            lines += [f"  {quoted(str(name))}: {flow(item)}" for name, item in value.items()]
        elif isinstance(value, list | tuple):
            lines.append(f"{key}: {_wrapped(value, 0)}")
        else:
            lines.append(f"{key}: {flow(value)}")
    return "\n".join(lines) + "\n"


def taxonomy_text(name: str, drafts: Drafts, suggestions: Sequence[DraftAttribute], head: Iterable[str]) -> str:
    """Return a taxonomy as YAML; suggested attributes follow as comments."""
    groups, group_of = _groups(drafts.attributes)
    lines = [
        *(comment(line) for line in head),
        "",
        f"name: {quoted(name)}",
        f"article_type: {quoted(drafts.article_type)}",
        "",
    ]
    if groups:
        lines.append("groups:")
        lines += [f"  {quoted(group)}: {_wrapped(members, 2)}" for group, members in groups.items()]
        lines.append("")
    lines.append("attributes:")
    for attribute in drafts.attributes:
        lines += [*_attribute_lines(attribute, group_of.get(attribute.applies_to, "")), ""]
    for attribute in suggestions:
        lines.append(comment("A suggestion: give it a name and a label, or delete it."))
        lines += [f"# {line}" if line else "#" for line in _attribute_lines(attribute, "")] + [""]
    return "\n".join(lines).rstrip() + "\n"


def _groups(attributes: Sequence[DraftAttribute]) -> tuple[dict[str, tuple[str, ...]], dict[tuple[str, ...], str]]:
    groups: dict[str, tuple[str, ...]] = {}
    group_of: dict[tuple[str, ...], str] = {}
    for attribute in attributes:
        if len(attribute.applies_to) >= _GROUP and attribute.applies_to not in group_of:
            group = f"{attribute.name[:55]}_types"
            groups[group] = attribute.applies_to
            group_of[attribute.applies_to] = group
    return groups, group_of


def _attribute_lines(attribute: DraftAttribute, group: str) -> list[str]:
    precision = Attribute.model_fields["target_precision"].default
    lines = [
        "  " + comment(statement(attribute.products, len(attribute.values), precision)),
        *(["  " + comment(attribute.why)] if attribute.why else []),
        f"  - name: {quoted(attribute.name)}",
        f"    label: {quoted(attribute.label)}",
        f"    field: {quoted(attribute.field)}",
    ]
    if attribute.multi_valued:
        lines.append("    multi_valued: true")
    if group:
        lines.append(f"    applies_to: [{quoted(group)}]")
    elif attribute.applies_to:
        lines.append(f"    applies_to: {_wrapped(attribute.applies_to, 4)}")
    if attribute.ignore:
        lines.append(f"    ignore: {_wrapped(attribute.ignore, 4)}")
    if attribute.unlisted != "keep":
        lines.append(f"    unlisted: {attribute.unlisted}")
    lines.append("    values:")
    lines += [f"      - {_value(value)}  # {value.products:,}" for value in attribute.values]
    if attribute.rare:
        shown = ", ".join(f"{value.name} ({value.products:,})" for value in attribute.rare[:_RARE])
        more = f", and {len(attribute.rare) - _RARE:,} more" if len(attribute.rare) > _RARE else ""
        lines.append("      " + comment(f"too rare: {shown}{more}"))
    return lines


def _value(value: DraftValue) -> str:
    return flow({"name": value.name, "aliases": list(value.aliases)}) if value.aliases else quoted(value.name)
