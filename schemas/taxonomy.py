"""The attribute taxonomy: all attributes with their values, their article types, and the promised precision.

A taxonomy is a YAML file. A new attribute or value needs an edit of that file and a training run, but no code.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from schemas.characters import fold
from schemas.loading import Strict, load_shipped

BUILT_IN = Path(__file__).parent / "taxonomies"

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


_COMPARED: Final = 100  # leading characters of a word that are compared with the values' names
SEVERAL: Final = "|"  # joins the words of a single-valued attribute that has several

# Words, folded, that programs write for a missing value: never a label, unless a value has this name. Words that a
# person may have meant ("None", "unknown") are the shop's own, until an attribute's `ignore` lists them.
_NULLS: Final = frozenset(
    {"na", "n/a", "n.a", "nan", "nil", "null", "(null)", "<null>", "[null]", "undefined", "\\n", "#n/a", "#n/a n/a", "#na",
     "#ref!", "#value!", "#name?", "#div/0!", "#null!", "#num!"}
)  # fmt: skip


class Value(Strict):
    """One value of an attribute. In YAML, a value without aliases may be a plain string."""

    name: Text
    aliases: tuple[Text, ...] = ()


def _value(given: Any) -> Any:
    """Return a value from YAML with its name and aliases as texts. Raises ValueError for true and false."""
    if isinstance(given, dict):
        aliases = given.get("aliases")
        changed = {"name": _word(given.get("name"))}
        return given | changed | ({"aliases": [_word(a) for a in aliases]} if isinstance(aliases, list) else {})
    word = _word(given)
    return {"name": word} if isinstance(word, str) else given


def _word(given: Any) -> Any:
    if isinstance(given, bool):
        raise ValueError("YAML reads Yes, No, On and Off as true and false: write the word in quotes")
    return str(given) if isinstance(given, int | float) else given


class Attribute(Strict):
    """One attribute, with everything that the pipeline needs to know about it."""

    name: Name = Field(description="snake_case; used in folders, columns and queries")
    label: Text = Field(description="for people")
    field: Text = Field(description="key of the record's `attributes` that holds the catalog's own value")
    values: tuple[Value, ...] = Field(min_length=2)
    multi_valued: bool = False
    target_precision: float = Field(default=0.9, gt=0, lt=1, description="share of accepted values that must be right")
    applies_to: Literal["all"] | tuple[Text, ...] = Field(
        default="all", description="article types, or names of groups"
    )
    ignore: tuple[Text, ...] = Field(
        default=(), description="labels without meaning, such as NA; they are dropped and not reported"
    )
    unlisted: Literal["keep", "ignore"] = Field(
        default="keep",
        description="treatment of words that are not listed values: keep: the shop's own value; ignore: not a value, for "
        "example in a column of mixed tags",
    )
    prompts: tuple[Text, ...] = Field(default=("a photo of a product, {value}",), description="zero-shot templates")

    @field_validator("values", mode="before")
    @classmethod
    def _bare_values(cls, values: Any) -> Any:
        return [_value(v) for v in values] if isinstance(values, list) else values

    @field_validator("name")
    @classmethod
    def _not_the_mean(cls, name: str) -> str:
        if name == "mean":
            raise ValueError(
                "no attribute can be called mean: tables and verdicts use that name for the mean of all attributes"
            )
        return name

    @field_validator("prompts")
    @classmethod
    def _prompt_names_value(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in prompts:
            try:
                fields = [part for part in Formatter().parse(prompt) if part[1] is not None]
            except ValueError as error:
                raise ValueError(f"the prompt {prompt!r} cannot be read: {error}") from None
            for _, name, form, conversion in fields:
                if name != "value" or form or conversion:
                    written = f"{{{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}}}"
                    raise ValueError(f"the prompt {prompt!r} has {written}; only {{value}} can be filled in")
            if not fields:
                raise ValueError(f"the prompt {prompt!r} has no {{value}}")
        return prompts

    @model_validator(mode="after")
    def _unambiguous(self) -> Attribute:
        owner: dict[str, str] = {}
        for value in self.values:
            for word in (value.name, *value.aliases):
                other = owner.setdefault(fold(word), value.name)
                if other != value.name or (word == value.name and [v.name for v in self.values].count(word) > 1):
                    raise ValueError(f"attribute {self.name!r}: {word!r} stands for both {other!r} and {value.name!r}")
        for word in self.ignore:
            if fold(word) in owner:
                raise ValueError(
                    f"attribute {self.name!r}: {word!r} is both ignored and a name of {owner[fold(word)]!r}"
                )
        return self

    @functools.cached_property
    def value_names(self) -> tuple[str, ...]:
        """The values' names, in class order: index i is the model's class i."""
        return tuple(v.name for v in self.values)

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Value name to class index."""
        return {name: i for i, name in enumerate(self.value_names)}

    @functools.cached_property
    def _lookup(self) -> dict[str, str]:
        """Folded name or alias to value name."""
        return {fold(word): v.name for v in self.values for word in (v.name, *v.aliases)}

    @functools.cached_property
    def _ignored(self) -> frozenset[str]:
        return frozenset(["", *(fold(word) for word in self.ignore)])

    def read(self, raw: str) -> tuple[bool, str | None]:
        """Return whether `raw` has a meaning, and the value whose folded name or alias it is.

        These have no meaning, unless they name a value:

        * words of `ignore`;
        * words that programs write for a missing value (``NULL``, ``#N/A``);
        * texts without a letter or digit.
        """
        folded = fold(raw)
        value = self._lookup.get(folded)
        has_meaning = value is not None or not (
            folded in self._ignored or folded in _NULLS or not any(c.isalnum() for c in folded)
        )
        return has_meaning, value

    def read_all(self, words: Iterable[str | None]) -> tuple[list[str], list[str]]:
        """Return the values that the catalog's `words` name, in class order, and the words that name none, as given.

        Neither list has repetitions. A single-valued attribute has at most one value or one word. If its `words` have
        several meanings, none of them is the value, and all of them joined form one word.
        """
        named: dict[str, str] = {}  # value to its first word
        outside: dict[str, str] = {}  # folded word to its first form
        distinct: list[str] = []
        for word in words:
            has_meaning, value = self.read(word) if word is not None else (False, None)
            if word is None or not has_meaning or (value is None and self.unlisted == "ignore"):
                continue
            seen, key = (outside, fold(word)) if value is None else (named, value)
            if key not in seen:
                seen[key] = word
                distinct.append(word)
        if not self.multi_valued and len(distinct) > 1:
            return [], [SEVERAL.join(word.strip() for word in distinct)]
        return sorted(named, key=self.index.__getitem__), list(outside.values())

    def several(self, word: str) -> tuple[str, ...]:
        """Return the values that an unlisted `word` of a single-valued attribute names, if there are several."""
        if self.multi_valued or SEVERAL not in word:
            return ()
        values = [value for part in word.split(SEVERAL) if (value := self.read(part)[1]) is not None]
        return tuple(dict.fromkeys(values)) if len(set(values)) > 1 else ()

    def nearest(self, word: str) -> str | None:
        """Return the value whose name or alias is most similar to `word`; None if none is (difflib, ratio 0.6)."""
        matches = difflib.get_close_matches(fold(word)[:_COMPARED], self._lookup, n=1)
        return self._lookup[matches[0]] if matches else None


class Taxonomy(Strict):
    """All attributes of a catalog."""

    name: Name
    article_type: Name = Field(description="the attribute that gives the kind of product")
    groups: dict[str, tuple[Text, ...]] = Field(default_factory=dict, description="named sets of article types")
    attributes: tuple[Attribute, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Taxonomy:
        names = [a.name for a in self.attributes]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(f"attributes[{i}]: the name {name!r} is taken by attributes[{names.index(name)}]")
        if self.article_type not in names:
            raise ValueError(f"article_type: {self.article_type!r} is not one of the attributes {names}")
        types = self[self.article_type]
        if types.applies_to != "all" or types.multi_valued:
            raise ValueError(f"article_type: {self.article_type!r} must be single-valued and apply to all products")
        for group, members in self.groups.items():
            for member in members:
                if member not in types.index:
                    raise ValueError(f"groups.{group}: {member!r} is not a value of {self.article_type!r}")
        for i, attribute in enumerate(self.attributes):
            for member in () if attribute.applies_to == "all" else attribute.applies_to:
                if member not in self.groups and member not in types.index:
                    raise ValueError(
                        f"attributes[{i} {attribute.name!r}].applies_to: {member!r} is neither a group nor a value of "
                        f"{self.article_type!r}"
                    )
        return self

    def __getitem__(self, name: str) -> Attribute:
        try:
            return self._by_name[name]
        except KeyError:
            raise KeyError(f"no attribute {name!r} in taxonomy {self.name!r}; it has {sorted(self._by_name)}") from None

    @functools.cached_property
    def _by_name(self) -> dict[str, Attribute]:
        return {a.name: a for a in self.attributes}

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The attributes' names, in order."""
        return tuple(a.name for a in self.attributes)

    @functools.cached_property
    def _applicable(self) -> dict[str, tuple[str, ...]]:
        def applies(attribute: Attribute, article_type: str) -> bool:
            if attribute.applies_to == "all":
                return True
            return any(article_type == m or article_type in self.groups.get(m, ()) for m in attribute.applies_to)

        return {
            article_type: tuple(a.name for a in self.attributes if applies(a, article_type))
            for article_type in self[self.article_type].value_names
        }

    def applicable(self, article_type: str | None) -> tuple[str, ...]:
        """Return the names of the attributes that apply to `article_type`, or to all types if it is unknown."""
        if article_type in self._applicable:
            return self._applicable[article_type]
        return tuple(a.name for a in self.attributes if a.applies_to == "all")

    def normalise(self, labels: Mapping[str, Iterable[str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Split the catalog's `labels` (source field to raw values) into known and unknown ones.

        A field is looked up by its exact name, and otherwise by its folded name ("Colour" for "colour").

        Returns:
            known labels by attribute name, in the taxonomy's words and in class order; and unknown labels by attribute
            name, in the shop's words. Ignored labels are in neither. A single-valued attribute has at most one label,
            known or unknown (`Attribute.read_all`).
        """
        known: dict[str, list[str]] = {}
        unknown: dict[str, list[str]] = {}
        alike: dict[str, list[str]] | None = None
        for attribute in self.attributes:
            words = labels.get(attribute.field)
            if words is None and attribute.field not in labels:
                if alike is None:
                    alike = {}
                    for field, given in labels.items():
                        alike.setdefault(fold(field), []).extend(given or ())
                words = alike.get(fold(attribute.field))
            if not words:
                continue
            values, outside = attribute.read_all(words)
            if values:
                known[attribute.name] = values
            if outside:
                unknown[attribute.name] = outside
        return known, unknown

    def incomparable(self, other: Taxonomy) -> list[str]:
        """Return, in words, how another taxonomy differs in the answers and the precision that it requires of a model.

        If the list is empty, models of both taxonomies answer the same questions about the same products with the same
        precision, so they can be compared.
        """
        changes = [f"attribute {name!r} is gone" for name in self.names if name not in other.names]
        changes += [f"attribute {name!r} is new" for name in other.names if name not in self.names]
        if self.article_type != other.article_type:
            changes.append(f"the article type is {other.article_type!r} now, not {self.article_type!r}")
        for mine, theirs in self._shared(other):
            if gone := [v for v in mine.value_names if v not in theirs.index]:
                changes.append(f"{mine.name}: without {', '.join(gone)}")
            if new := [v for v in theirs.value_names if v not in mine.index]:
                changes.append(f"{mine.name}: with {', '.join(new)}")
            if not gone and not new and mine.value_names != theirs.value_names:
                changes.append(f"{mine.name}: its values are in another order")
            if mine.multi_valued != theirs.multi_valued:
                changes.append(
                    f"{mine.name}: {'several values' if theirs.multi_valued else 'one value'} per product now"
                )
            if mine.target_precision != theirs.target_precision:
                changes.append(
                    f"{mine.name}: the target precision is {theirs.target_precision} now, not {mine.target_precision}"
                )
            # Compare only article types that both taxonomies have. The others are reported above.
            before, after = self._applies_to(mine.name), other._applies_to(mine.name)
            both = self._kinds & other._kinds
            if lost := (before - after) & both:
                changes.append(f"{mine.name}: no longer applies to {_kinds_in_words(lost)}")
            if gained := (after - before) & both:
                changes.append(f"{mine.name}: applies to {_kinds_in_words(gained)} too now")
        if not changes and self.names != other.names:
            changes.append("the attributes are in another order")
        return changes

    def differences(self, other: Taxonomy) -> list[str]:
        """Return, in words, how another taxonomy differs in anything except names that only people read.

        If the list is empty, a model of one taxonomy, with its thresholds, is as good as a model of the other.
        """
        changes = self.incomparable(other)
        for mine, theirs in self._shared(other):
            if mine.field != theirs.field:
                changes.append(f"{mine.name}: read from {theirs.field!r} now, not from {mine.field!r}")
            for word in sorted(mine._lookup.keys() | theirs._lookup.keys()):
                before, after = mine._lookup.get(word), theirs._lookup.get(word)
                # Values that only one of them has are reported above.
                if before != after and {before, after} - {None} <= set(mine.index) & set(theirs.index):
                    changes.append(
                        f"{mine.name}: the label {word!r} means {after or 'nothing'} now, not {before or 'nothing'}"
                    )
            if ignored := mine._ignored ^ theirs._ignored:
                changes.append(f"{mine.name}: ignored by one of them alone: {', '.join(sorted(map(repr, ignored)))}")
            if mine.unlisted != theirs.unlisted:
                changes.append(
                    f"{mine.name}: unlisted values are {_UNLISTED[theirs.unlisted]} now, not {_UNLISTED[mine.unlisted]}"
                )
            if mine.prompts != theirs.prompts:
                changes.append(f"{mine.name}: other prompts")
        return changes

    def _shared(self, other: Taxonomy) -> list[tuple[Attribute, Attribute]]:
        return [(mine, other[mine.name]) for mine in self.attributes if mine.name in other.names]

    @functools.cached_property
    def _kinds(self) -> frozenset[str | None]:
        """All article types, and None for an unknown one."""
        return frozenset([*self[self.article_type].value_names, None])

    def _applies_to(self, name: str) -> frozenset[str | None]:
        """Return the article types of `_kinds` that an attribute applies to, with groups resolved."""
        return frozenset(kind for kind in self._kinds if name in self.applicable(kind))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that change when anything in the taxonomy changes.

        A setting that was added later is left out if it has its default, so that the fingerprints of older taxonomies
        stay the same.
        """
        defaults = {i: {"unlisted"} for i, attribute in enumerate(self.attributes) if attribute.unlisted == "keep"}
        return hashlib.sha256(self.model_dump_json(exclude={"attributes": defaults}).encode()).hexdigest()[:12]


_UNLISTED: Final = {"keep": "kept", "ignore": "ignored"}


def _kinds_in_words(kinds: Iterable[str | None]) -> str:
    return ", ".join(sorted("products of unknown type" if kind is None else kind for kind in kinds))


def load_taxonomy(path: str | Path) -> Taxonomy:
    """Return the taxonomy at `path`, or the shipped one of that name (``sample``, ``fashion``).

    Raises:
        ContractError: it is missing or wrong; the message says where and why.
    """
    return load_shipped(path, Taxonomy, BUILT_IN, "taxonomy file")
