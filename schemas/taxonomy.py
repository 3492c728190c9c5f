"""The attribute taxonomy: which attributes there are, their values, where they apply, and the precision promised.

A taxonomy is a YAML file; adding an attribute or a value is an edit of that file and a training run, never code.
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


_COMPARED: Final = 100  # characters of a word that are compared with the values' names
SEVERAL: Final = "|"  # joins the words of a single-valued attribute that is given several

# What programs write where there is nothing, folded: never a label, unless a value has this name. Words that a person may
# have meant ("None", "unknown") are the shop's, until an attribute's `ignore` lists them.
_NULLS: Final = frozenset(
    {"na", "n/a", "n.a", "nan", "nil", "null", "(null)", "<null>", "[null]", "undefined", "\\n", "#n/a", "#n/a n/a", "#na",
     "#ref!", "#value!", "#name?", "#div/0!", "#null!", "#num!"}
)  # fmt: skip


class Value(Strict):
    """One value of an attribute. In YAML a bare string will do where there are no aliases."""

    name: Text
    aliases: tuple[Text, ...] = ()


def _value(given: Any) -> Any:
    """Return a value as YAML gives it with its name and aliases as texts. Raises ValueError for true and false."""
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
    """One attribute and all that the pipeline needs to know of it."""

    name: Name = Field(description="snake_case: used in folders, columns and queries")
    label: Text = Field(description="for people")
    field: Text = Field(description="key of the record's `attributes` that holds the catalog's own value")
    values: tuple[Value, ...] = Field(min_length=2)
    multi_valued: bool = False
    target_precision: float = Field(default=0.9, gt=0, lt=1, description="share of accepted values that must be right")
    applies_to: Literal["all"] | tuple[Text, ...] = Field(
        default="all", description="article types, or names of groups"
    )
    ignore: tuple[Text, ...] = Field(
        default=(), description="labels that say nothing, such as NA: dropped, not reported"
    )
    unlisted: Literal["keep", "ignore"] = Field(
        default="keep",
        description="words that are none of the values: keep: they are the shop's own value; ignore: they are no value, as "
        "in a column of tags that holds all sorts of things",
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
                "no attribute can be called mean: tables and verdicts have the mean of all attributes under that name"
            )
        return name

    @field_validator("prompts")
    @classmethod
    def _prompt_names_value(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in prompts:
            try:
                found = [part for part in Formatter().parse(prompt) if part[1] is not None]
            except ValueError as error:
                raise ValueError(f"the prompt {prompt!r} cannot be read: {error}") from None
            for _, name, form, conversion in found:
                if name != "value" or form or conversion:
                    written = f"{{{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}}}"
                    raise ValueError(f"the prompt {prompt!r} has {written}; only {{value}} can be filled in")
            if not found:
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
        """Each folded name and alias to its value."""
        return {fold(word): v.name for v in self.values for word in (v.name, *v.aliases)}

    @functools.cached_property
    def _ignored(self) -> frozenset[str]:
        return frozenset(["", *(fold(word) for word in self.ignore)])

    def read(self, raw: str) -> tuple[bool, str | None]:
        """Return whether `raw` says anything, and the value that it names, by name or alias, as `fold` compares them.

        A word of `ignore`, what programs write for nothing (``NULL``, ``#N/A``), and what has neither letter nor digit
        say nothing, unless they name a value.
        """
        folded = fold(raw)
        value = self._lookup.get(folded)
        says = value is not None or not (
            folded in self._ignored or folded in _NULLS or not any(c.isalnum() for c in folded)
        )
        return says, value

    def read_all(self, words: Iterable[str | None]) -> tuple[list[str], list[str]]:
        """Return the values that the catalog's `words` name, in class order, and the words that name none, as given.

        Each is there once. A single-valued attribute has one value or one word: where `words` say several things, none of
        them is the value, and all of them joined are the word.
        """
        named: dict[str, str] = {}  # value: its first word
        outside: dict[str, str] = {}  # folded: the first word
        said: list[str] = []
        for word in words:
            says, value = self.read(word) if word is not None else (False, None)
            if word is None or not says or (value is None and self.unlisted == "ignore"):
                continue
            known, key = (outside, fold(word)) if value is None else (named, value)
            if key not in known:
                known[key] = word
                said.append(word)
        if not self.multi_valued and len(said) > 1:
            return [], [SEVERAL.join(word.strip() for word in said)]
        return sorted(named, key=self.index.__getitem__), list(outside.values())

    def several(self, word: str) -> tuple[str, ...]:
        """Return the values that an unlisted `word` of a single-valued attribute names, where it names several."""
        if self.multi_valued or SEVERAL not in word:
            return ()
        values = [value for part in word.split(SEVERAL) if (value := self.read(part)[1]) is not None]
        return tuple(dict.fromkeys(values)) if len(set(values)) > 1 else ()

    def nearest(self, word: str) -> str | None:
        """Return the value whose name or alias resembles `word` most; None where none does (difflib, ratio 0.6)."""
        found = difflib.get_close_matches(fold(word)[:_COMPARED], self._lookup, n=1)
        return self._lookup[found[0]] if found else None


class Taxonomy(Strict):
    """All attributes of a catalog."""

    name: Name
    article_type: Name = Field(description="the attribute that says what kind of thing a product is")
    groups: dict[str, tuple[Text, ...]] = Field(default_factory=dict, description="named sets of article types")
    attributes: tuple[Attribute, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Taxonomy:
        names = [a.name for a in self.attributes]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(f"attributes[{i}]: the name {name!r} is taken by attributes[{names.index(name)}]")
        if self.article_type not in names:
            raise ValueError(f"article_type: {self.article_type!r} is none of the attributes {names}")
        types = self[self.article_type]
        if types.applies_to != "all" or types.multi_valued:
            raise ValueError(f"article_type: {self.article_type!r} must be single-valued and apply to all products")
        for group, members in self.groups.items():
            for member in members:
                if member not in types.index:
                    raise ValueError(f"groups.{group}: {member!r} is no value of {self.article_type!r}")
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
        """Return the names of the attributes that apply to `article_type`; of an unknown one, those that apply to all."""
        if article_type in self._applicable:
            return self._applicable[article_type]
        return tuple(a.name for a in self.attributes if a.applies_to == "all")

    def normalise(self, labels: Mapping[str, Iterable[str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Split the catalog's `labels` (source field to raw values) into known and unknown ones.

        A field is found by its name; where no field has that very name, by one that is folded alike ("Colour" for "colour").

        Returns:
            known labels, by attribute name, in the taxonomy's words, in class order; and unknown labels, by attribute name,
            in the shop's words. Ignored labels are in neither. A single-valued attribute has one label at most, known or
            unknown (`Attribute.read_all`).
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
        """Return what another taxonomy asks of a model, or has it promise, otherwise than this one, in words.

        Empty where models of both answer the same questions of the same products, as surely, so that they can be judged together.
        """
        found = [f"attribute {name!r} is gone" for name in self.names if name not in other.names]
        found += [f"attribute {name!r} is new" for name in other.names if name not in self.names]
        if self.article_type != other.article_type:
            found.append(f"the article type is {other.article_type!r} now, not {self.article_type!r}")
        for mine, theirs in self._shared(other):
            if gone := [v for v in mine.value_names if v not in theirs.index]:
                found.append(f"{mine.name}: without {', '.join(gone)}")
            if new := [v for v in theirs.value_names if v not in mine.index]:
                found.append(f"{mine.name}: with {', '.join(new)}")
            if not gone and not new and mine.value_names != theirs.value_names:
                found.append(f"{mine.name}: its values are in another order")
            if mine.multi_valued != theirs.multi_valued:
                found.append(
                    f"{mine.name}: {'several values' if theirs.multi_valued else 'one value'} to a product now"
                )
            if mine.target_precision != theirs.target_precision:
                found.append(
                    f"{mine.name}: the target precision is {theirs.target_precision} now, not {mine.target_precision}"
                )
            # Of article types that only one of them has, nothing is to be said beyond that.
            before, after = self._applies_to(mine.name), other._applies_to(mine.name)
            both = self._kinds & other._kinds
            if lost := (before - after) & both:
                found.append(f"{mine.name}: no longer applies to {_kinds_in_words(lost)}")
            if gained := (after - before) & both:
                found.append(f"{mine.name}: applies to {_kinds_in_words(gained)} too now")
        if not found and self.names != other.names:
            found.append("the attributes are in another order")
        return found

    def differences(self, other: Taxonomy) -> list[str]:
        """Return all that another taxonomy says otherwise than this one, in words, but for names that only people read.

        Empty where a model of one, and its thresholds, are as good as a model of the other.
        """
        found = self.incomparable(other)
        for mine, theirs in self._shared(other):
            if mine.field != theirs.field:
                found.append(f"{mine.name}: read from {theirs.field!r} now, not from {mine.field!r}")
            for word in sorted(mine._lookup.keys() | theirs._lookup.keys()):
                before, after = mine._lookup.get(word), theirs._lookup.get(word)
                # What became of values that only one of them has is told above.
                if before != after and {before, after} - {None} <= set(mine.index) & set(theirs.index):
                    found.append(
                        f"{mine.name}: the label {word!r} means {after or 'nothing'} now, not {before or 'nothing'}"
                    )
            if ignored := mine._ignored ^ theirs._ignored:
                found.append(f"{mine.name}: ignored by one of them alone: {', '.join(sorted(map(repr, ignored)))}")
            if mine.unlisted != theirs.unlisted:
                found.append(
                    f"{mine.name}: unlisted values are {_UNLISTED[theirs.unlisted]} now, not {_UNLISTED[mine.unlisted]}"
                )
            if mine.prompts != theirs.prompts:
                found.append(f"{mine.name}: other prompts")
        return found

    def _shared(self, other: Taxonomy) -> list[tuple[Attribute, Attribute]]:
        return [(mine, other[mine.name]) for mine in self.attributes if mine.name in other.names]

    @functools.cached_property
    def _kinds(self) -> frozenset[str | None]:
        """The article types; None stands for an unknown one."""
        return frozenset([*self[self.article_type].value_names, None])

    def _applies_to(self, name: str) -> frozenset[str | None]:
        """Return which of `_kinds` an attribute applies to, groups resolved."""
        return frozenset(kind for kind in self._kinds if name in self.applicable(kind))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that change when anything in the taxonomy does.

        A setting that came later is left out where it has its default: fingerprints of older taxonomies stay what they were.
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
