"""Choice of the columns that are a record's fields: id, title, description, brand, price, time of change, article type."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from jobs.drafting.analysis.column_profiles import ColumnProfile

Profiles = Mapping[str, ColumnProfile]

# Names of a field, best first, in lower case without punctuation. A column matches if its name, or the end of its path, is one.
_HINTS: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(words.split())
    for name, words in {
        "product_id": (
            "productid id sku itemid articleid uniqid articlenumber itemnumber productcode productnumber itemcode "
            "asin uid uuid code ean gtin barcode upc handle slug artikelnummer artikelnr artnr artikelid "
            "produktid bestellnummer referencia reference ref référence codice numeroarticolo codigo kod numer "
            "артикул 商品编号 商品番号"
        ),
        "title": (
            "title name productname producttitle itemname productdisplayname displayname itemtitle titel "
            "bezeichnung artikelbezeichnung produktname artikelname nom nomproduit titre nombre titulo título "
            "nome titolo naam nazwa namn navn ürünadı название наименование 商品名 标题 商品名称"
        ),
        "description": (
            "description productdescription longdescription bodyhtml body details text content shortdescription "
            "summary bulletpoints bulletpoint features beschreibung artikelbeschreibung langtext kurzbeschreibung "
            "descripcion descripción descrizione descrição descricao omschrijving opis beskrivning beskrivelse "
            "açıklama описание 説明 描述"
        ),
        "brand": (
            "brand brandname vendor manufacturer maker makername label marke markenname hersteller marque "
            "fabricant marca fabricante produttore merk fabrikant producent märke marka бренд производитель ブランド "
            "品牌"
        ),
        "price": (
            "price saleprice currentprice sellingprice regularprice listprice retailprice unitprice variantprice "
            "priceusd priceeur amount preis verkaufspreis vkpreis prix precio prezzo preço preco prijs cena pris "
            "fiyat цена 価格 价格 pricemin priceminusd minprice msrp rrp uvp"
        ),
        "updated_at": (
            "updatedat updated lastupdated modifiedat modified lastmodified changed changedat lastchange "
            "datemodified moddate modificationdate geändert geaendert änderungsdatum aktualisiert letzteänderung "
            "modifié fechamodificacion изменено"
        ),
        "article_type": (
            "articletype producttype attributesetcode attributeset itemtype producttypename type "
            "productcategory category categoryname kind "
            "class classname categories subcategory subcategoryname googleproductcategory categoryfullpath "
            "categorypath department mastercategory productgroup warengruppe produkttyp artikelart produktart "
            "artikeltyp kategorie produktkategorie typeproduit catégorie categorie tipo tipoproducto categoría "
            "categoria tipologia soort productsoort kategoria kategori typ тип категория カテゴリ 类别 分类"
        ),
    }.items()
}
_LONG: Final = 6.0  # mean words of a value above which it is a text, not a label


@dataclass(frozen=True, slots=True)
class Role:
    """A field's column, with the reason for its choice."""

    field: str
    column: str
    why: str


@dataclass(slots=True)
class Roles:
    """The fields' columns; `notes` say what a person should look at."""

    chosen: list[Role] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, name: str) -> list[str]:
        """Return the columns of a field."""
        return [role.column for role in self.chosen if role.field == name]

    def first(self, name: str) -> str:
        """Return the column of a field; empty if it has none."""
        return next(iter(self.of(name)), "")

    def add(self, name: str, column: str, why: str) -> None:
        """Add a column of a field."""
        self.chosen.append(Role(name, column, why))

    @property
    def used(self) -> frozenset[str]:
        """All columns that are a field."""
        return frozenset(role.column for role in self.chosen)


def bare(name: str) -> str:
    """Return a column's name in lower case without punctuation."""
    return re.sub(r"[\W_]+", "", name[:200].casefold())


def hint(field_name: str, column: str) -> int | None:
    """Return the rank of a column's name among the usual names of a field, 0 for the best; None if it is none of them."""
    names = _HINTS[field_name]
    plain = re.sub(r"\[[^\]]{0,100}\](\.value)?|_(leaf|list)$", "", column)
    for part in dict.fromkeys((bare(plain), bare(plain.rsplit(".", 1)[-1]))):
        if part in names:
            return names.index(part)
    return None


def choose_roles(profiles: Profiles) -> Roles:
    """Return the columns of the fields of a shop system that is not known."""
    roles = Roles()
    _choose_id(profiles, roles)
    _choose_title(profiles, roles)
    _choose_descriptions(profiles, roles)
    for name, fits, fact in _SINGLE:
        ranked = _hinted(name, (p for p in profiles.values() if p.name not in roles.used and p.filled and fits(p)))
        if ranked:
            roles.add(name, ranked[0].name, f"its name; {fact(ranked[0])}")
    return roles


def _percent(share: float) -> str:
    return f"{share:.0%}" if share in (0, 1) or 0.01 <= share <= 0.99 else f"{share:.1%}"


_SINGLE: Final[tuple[tuple[str, Callable[[ColumnProfile], bool], Callable[[ColumnProfile], str]], ...]] = (
    ("brand", lambda p: p.mean_words <= _LONG and not p.addresses, lambda p: f"{p.distinct:,} different values"),
    (
        "price",
        lambda p: p.share(p.prices) > 0.9,
        lambda p: f"{_percent(p.share(p.prices))} of its values are prices or numbers",
    ),
    (
        "updated_at",
        lambda p: p.share(p.times) > 0.99,
        lambda p: f"{_percent(p.share(p.times))} of its values are times",
    ),
)


def _hinted(name: str, columns: Iterable[ColumnProfile]) -> list[ColumnProfile]:
    ranked = [
        (rank, -column.fill, i, column)
        for i, column in enumerate(columns)
        if (rank := hint(name, column.name)) is not None
    ]
    return [column for *_, column in sorted(ranked, key=lambda r: r[:3])]


def _choose_id(profiles: Profiles, roles: Roles) -> None:
    candidates = [
        p for p in profiles.values()
        if p.filled and p.fill > 0.95 and p.mean_words < 3 and p.longest <= 200 and not p.objects and not p.lists and not p.times
    ]  # fmt: skip
    unique = [p for p in candidates if p.distinct == p.filled and p.fill > 0.99]
    for p in _hinted("product_id", unique):
        roles.add("product_id", p.name, f"its name; {_percent(p.fill)} of the rows have a value, and no two are equal")
        return
    named = _hinted("product_id", candidates)
    repeated = [p for p in named if p.filled / max(p.distinct, 1) > 1]
    if repeated and (not unique or 1.05 < repeated[0].filled / repeated[0].distinct < 100):
        p = repeated[0]
        per = p.filled / p.distinct
        roles.add("product_id", p.name, f"its name; {p.distinct:,} different values in {p.filled:,} rows")
        if per > 1.05:
            roles.add(
                "group_by", p.name, f"{per:.1f} rows share a value: they are the variants or pictures of one product"
            )
        else:
            roles.notes.append(
                f"{p.filled - p.distinct:,} rows repeat a value of {p.name!r}: they count as the same product, or group them by `group_by`"
            )
        return
    texts = sorted((p for p in unique if not p.addresses), key=lambda p: (p.mean_length, p.name))
    if texts:
        roles.add(
            "product_id",
            texts[0].name,
            "no column is named like an id; no two values of this one are equal, and they are short",
        )
        roles.notes.append(
            f"no column is named like an id; check that {texts[0].name!r} identifies a product every day"
        )


def _choose_title(profiles: Profiles, roles: Roles) -> None:
    texts = [
        p for p in profiles.values()
        if p.name not in roles.used and p.filled and not p.objects and p.share(p.addresses) < 0.1 and p.share(p.numbers) < 0.5
        and p.share(p.times) < 0.5
    ]  # fmt: skip
    named = _hinted("title", [p for p in texts if p.mean_words < 40])
    for p in named[:1]:
        roles.add(
            "title",
            p.name,
            f"its name; {p.mean_words:.1f} words on average, {_percent(p.uniqueness)} of the values differ",
        )
    if named:
        return
    free = [p for p in texts if 2 <= p.mean_words <= 20 and p.uniqueness > 0.5 and p.fill > 0.5]
    if free:
        best = max(free, key=lambda p: (p.fill * p.uniqueness, -p.mean_words))
        roles.add(
            "title", best.name, f"no column is named like a title; this one has {best.mean_words:.1f} words on average"
        )


def _choose_descriptions(profiles: Profiles, roles: Roles) -> None:
    texts = [
        p
        for p in profiles.values()
        if p.name not in roles.used and p.filled and p.mean_words > _LONG / 2 and not p.objects
    ]
    texts = [p for p in texts if p.share(p.addresses) < 0.1 and p.uniqueness > 0.05]
    named = _hinted("description", texts)
    for p in named[:3]:
        roles.add(
            "description", p.name, f"its name; {p.mean_words:.0f} words on average{', with markup' if p.markup else ''}"
        )
    if not named:
        long = [p for p in texts if p.mean_words > 15 and p.uniqueness > 0.3]
        if long:
            best = max(long, key=lambda p: p.fill * p.mean_words)
            roles.add("description", best.name, f"the longest texts: {best.mean_words:.0f} words on average")
