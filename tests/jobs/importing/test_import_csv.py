"""`make test TESTS=tests/jobs/importing/test_import_csv.py`."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.importing.formats import csv_rows, sources
from jobs.records.rejected_lines import RejectedLine, read_rejected
from tests.jobs.importing.test_import_catalog import MAPPING, Shop, fails, shop

__all__ = ["shop"]  # the fixture

COLUMNS = "{records: items.csv, product_id: id, title: name, description: text, price: price, labels: [kind, colour]}"
HEADER = ["id", "name", "text", "price", "kind", "colour"]


@pytest.fixture
def items(tmp_path: Path) -> Shop:
    """A shop whose mapping names six columns and no pictures."""
    return Shop(tmp_path, COLUMNS)


def write(shop: Shop, data: str | bytes, name: str = "items.csv") -> None:
    shop.put(name, data)


def rows_of(count: int, first: int = 0) -> list[list[str]]:
    return [
        [
            f"A{i:03d}",
            f"Shirt {i}",
            f"Soft, light, number {i}",
            f"{i + 10}.50",
            ("Shirt", "Bag")[i % 2],
            ("Red", "Blue")[i % 2],
        ]
        for i in range(first, first + count)
    ]


def table(rows: Sequence[Sequence[str]], delimiter: str = ",", **options: Any) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n", **options).writerows([HEADER, *rows])
    return text.getvalue()


def plain(rows: Sequence[Sequence[str]], delimiter: str = "\t") -> str:
    """Return the rows without any quoting."""
    return "".join(delimiter.join(row) + "\n" for row in [HEADER, *rows])


def read(shop: Shop) -> tuple[list[dict[str, Any]], list[RejectedLine]]:
    """Import; return the records and the rejected lines."""
    shop.run()
    rejected = [parsed for line in shop.lines() if (parsed := read_rejected(line))]
    return [json.loads(line) for line in shop.lines() if not read_rejected(line)], rejected


def csv_lines(shop: Shop, data: bytes) -> list[Any]:
    write(shop, data)
    shop.run()
    return [json.loads(line) for line in shop.lines()]


# --- as it should be


def test_csv(shop: Shop) -> None:
    rows = csv_lines(
        shop,
        b'\xef\xbb\xbfid,name,photo,price,facts,text\r\n1,"A ""fine"" shirt",,895,"{""Colour"": ""Blue""}","two\r\nlines"\r\n'
        b"2,Bag,,19.50,Blue,NA\r\n\r\n3,Hat,,on request,,\r\n4,Cap,,1e999,,a\x00b\r\n5,Cap,,1_000,,\r\n",
    )
    assert [row["product_id"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert [row["price"] for row in rows] == [895, 19.5, "on request", "1e999", "1_000"]
    assert rows[0]["title"] == 'A "fine" shirt'
    assert rows[0]["description"] == "two\r\nlines"
    assert rows[0]["attributes"] == {"Colour": "Blue"}
    assert rows[1]["attributes"] == {"facts": "Blue"}
    assert rows[1]["description"] is None
    assert rows[3]["description"] == "a\x00b"
    manifest = shop.lake.read_raw_manifest("2026-11-20")
    assert manifest is not None
    assert manifest.notes == {
        "records that span lines": 1,
        "further lines of these records": 1,
        "labels that cannot be read": 1,
    }


@pytest.mark.parametrize("name", ["items.csv.gz", "ITEMS.CSV", "ITEMS.CSV.GZ", "items.Tsv", "items.txt", "items"])
def test_csv_is_known_by_its_content_whatever_its_name(shop: Shop, name: str) -> None:
    shop.mapping.write_text(MAPPING.replace("[items.jsonl, items.jsonl.gz, items.csv]", name))
    data = b'id,name,photo,facts\n1,"A, b",,"{""Colour"": ""Blue""}"\n'
    (shop.export / name).write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    assert shop.run().rows == 1
    record = json.loads(shop.lines()[0])
    assert (record["product_id"], record["title"], record["attributes"]) == ("1", "A, b", {"Colour": "Blue"})


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_csv_with_other_delimiters(shop: Shop, delimiter: str) -> None:
    rows = csv_lines(
        shop, delimiter.join(["id", "name", "photo"]).encode() + f"\n1{delimiter}A, b{delimiter}\n".encode()
    )
    assert (rows[0]["product_id"], rows[0]["title"]) == ("1", "A, b")


def test_the_delimiter_is_the_one_that_the_header_s_names_show(items: Shop) -> None:
    items.mapping.write_text(
        '{records: items.csv, product_id: id, title: "name, in full, as sold, here", price: price}'
    )
    write(items, 'id;"name, in full, as sold, here";price\n1;Shirt;"10,50"\n2;Bag;"1.299,00"\n')
    records, _ = read(items)
    assert [(r["product_id"], r["title"], r["price"]) for r in records] == [("1", "Shirt", 10.5), ("2", "Bag", 1299)]


def test_a_delimiter_that_no_other_file_has_can_be_set(items: Shop) -> None:
    write(items, plain(rows_of(3), "^"))
    fails(items, r"the first line has none of the mapping's columns.*`delimiter`")
    items.set_mapping(delimiter="^")
    assert len(read(items)[0]) == 3


def test_lines_before_the_header_are_passed_over_and_counted(items: Shop) -> None:
    write(items, "sep=;\n" + table(rows_of(3), ";"))
    assert len(read(items)[0]) == 3
    write(items, "Products of 20 Nov,,,,,\n,,,,,\n" + table(rows_of(3)))
    assert items.run().notes == {"lines before the header, skipped": 2}
    assert items.run().rows == 3


def test_blanks_and_marks_around_the_header_s_names_are_none_of_them(items: Shop) -> None:
    write(items, "\ufeff\ufeff id ,name , text,price,kind,colour\nA1,a,b,1,c,d\n")
    assert read(items)[0][0]["product_id"] == "A1"


def test_joined_files_may_each_begin_with_a_mark(items: Shop) -> None:
    write(items, table(rows_of(3)) + "\ufeff" + table(rows_of(3, 3)))
    records, rejected = read(items)
    assert [r["product_id"] for r in records] == [f"A{i:03d}" for i in range(6)]
    assert [line.detail for line in rejected] == ["a repeated header"]


# --- no record swallows another


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
@pytest.mark.parametrize("lines", [1, 2, 5])
@pytest.mark.parametrize("column", [1, 2, 4])
def test_a_stray_quote_takes_no_product_with_it(items: Shop, delimiter: str, lines: int, column: int) -> None:
    rows = [[cell.replace(delimiter, " ") for cell in row] for row in rows_of(40)]
    rows[10][column] = '"' + rows[10][column]
    rows[10 + lines][column] += '"'
    rows[30][1] = f'"wide{delimiter} and proper"'
    write(items, plain(rows, delimiter))
    fails(
        items,
        rf"line 12: a quote opens there.*up to line {12 + lines} looks like {lines} other records? .*`quote: none`",
    )
    rows[30][1] = "narrow"
    write(items, plain(rows, delimiter))
    items.set_mapping(quote="none")
    records, rejected = read(items)
    assert ([r["product_id"] for r in records], rejected) == ([row[0] for row in rows], [])
    assert records[10]["title" if column == 1 else "description" if column == 2 else "attributes"]


def test_a_stray_quote_that_shifts_columns_takes_no_product_with_it_either(items: Shop) -> None:
    rows = [[cell.replace(",", " ") for cell in row] for row in rows_of(40)]
    rows[10][1] = '"' + rows[10][1]
    rows[13][4] += '"'
    write(items, plain(rows, ","))
    fails(items, "line 12: a quote opens there.*other records")


@pytest.mark.parametrize("short", [False, True])
def test_a_stray_quote_takes_no_product_of_another_kind_with_it(items: Shop, short: bool) -> None:
    rows = rows_of(40)
    for row in rows[11:15]:
        row[0] = row[0] if short else f"x-{row[0]}"
        del row[4 if short else 6 :]
    rows[10][1] = '"' + rows[10][1]
    rows[15][1] += '"'
    write(items, plain(rows))
    fails(items, "line 12: a quote opens there.*looks like 5 other records")


def test_a_stray_quote_takes_no_cell_of_its_row_with_it(items: Shop) -> None:
    rows = [[cell.replace(",", " ") for cell in row] for row in rows_of(40)]
    rows[10][1:] = ['"Retro', "Soft", "12.50", "Bag", 'Red"']
    rows[11][1:] = ['"Shirt, long, warm"', "Soft", "12.50"]
    write(items, plain(rows, ","))
    records, rejected = read(items)
    assert [r.detail for r in rejected] == [
        "2 cells where the header has 6, and 6 if its quotes are ordinary characters"
    ]
    assert (records[10]["title"], records[10]["price"]) == ("Shirt, long, warm", 12.5)


def test_blanks_between_delimiters_and_quotes_are_no_part_of_a_text(items: Shop) -> None:
    lines = [", ".join([row[0], *(f'"{cell}"' for cell in row[1:])]) for row in rows_of(20)]
    write(items, ", ".join(HEADER) + "\n" + "\n".join(lines) + "\n")
    records, rejected = read(items)
    assert (len(records), rejected) == (20, [])
    assert (records[3]["title"], records[3]["price"], records[3]["attributes"]["colour"]) == ("Shirt 3", 13.5, "Blue")


def test_a_quote_after_a_blank_may_be_a_character(items: Shop) -> None:
    rows = rows_of(20)
    for row in rows[::2]:
        row[1] = ' "Retro" shirt'
    write(items, plain(rows))
    assert [r["title"] for r in read(items)[0]][:2] == [' "Retro" shirt', "Shirt 1"]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_texts_of_several_lines_are_texts(items: Shop, delimiter: str, quoting: int) -> None:
    choose = random.Random(5)
    words = [
        "soft,",
        "light;",
        "warm",
        "of",
        "cotton",
        "with",
        "a",
        "red",
        "blue",
        "<b>belt</b>",
        "5",
        "10,5",
        "A1",
        "size",
    ]
    rows = rows_of(300)
    for row in rows:
        row[2] = "\n".join(
            " ".join(choose.choices(words, k=choose.randint(0, 12))) for _ in range(choose.randint(1, 6))
        )
    write(items, table(rows, delimiter, quoting=quoting))
    records, rejected = read(items)
    assert ([r["description"] or "" for r in records], rejected) == (
        [row[2] if row[2].strip() else "" for row in rows],
        [],
    )


def test_a_text_that_holds_a_table_can_be_allowed(items: Shop) -> None:
    rows = rows_of(20)
    rows[5][2] = "our other shirts:\n" + "\n".join(",".join(row).replace(", ", " ") for row in rows_of(5, 50))
    write(items, table(rows))
    fails(items, "looks like 4 other records.*`multiline: allow`")
    items.set_mapping(multiline="allow")
    records, _ = read(items)
    assert records[5]["description"] == rows[5][2]


@pytest.mark.parametrize(
    "rest",
    [b"3,c,\n" * 5, b'3,c,"quoted"\n', b"3," + b"c" * 3000 + b",\n"],
    ids=["open to the end", "met by another", "longer than a row"],
)
def test_a_csv_quote_never_closed_takes_no_product_with_it(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, rest: bytes
) -> None:
    monkeypatch.setattr(csv_rows, "MAX_LINE", 1000)
    write(shop, b'id,name,photo\n1,"a\nb",\n2,b,"open\n' + rest)
    fails(shop, r"items\.csv: after 1 records: line 4: a quote is never closed.*nothing was imported.*`quote: none`")


def test_quotes_that_can_only_be_characters_are_read_as_such(items: Shop) -> None:
    rows = [[cell.replace(",", " ") for cell in row] for row in rows_of(30)]
    rows[3][1], rows[4][1], rows[5][2] = '5" heel', '"Classic" shirt', '" inch mark first'
    write(items, plain(rows))
    records, rejected = read(items)
    assert [r["title"] for r in records] == [row[1] for row in rows]
    assert (records[5]["description"], rejected) == ('" inch mark first', [])


def test_quotes_that_enclose_cells_only_late_in_a_file_are_asked_for(
    items: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SAMPLE", 2000)
    rows = [[cell.replace(",", " ") for cell in row] for row in rows_of(200)]
    rows[3][1], rows[190][1] = '"Classic" shirt', '"Classic shirt"'
    write(items, plain(rows))
    fails(items, r"line 192: a cell in quotes.*set `quote`")
    items.set_mapping(quote="none")
    assert read(items)[0][190]["title"] == '"Classic shirt"'


def test_one_such_cell_beside_cells_that_are_quoted(items: Shop) -> None:
    write(items, table(rows_of(5)) + 'A010,"Classic" shirt,soft,1,Shirt,Red\n')
    records, _ = read(items)
    assert records[5]["title"] == '"Classic" shirt'


@pytest.mark.parametrize("line", [b'2,"a "fine" shirt",', b'2,"a" ,', b'2,"', b'2,"a"b', b'2,"a, "b" c"'])
def test_a_csv_line_of_wrong_quotes_is_kept_as_it_is(shop: Shop, line: bytes) -> None:
    write(shop, b'id,name,photo\n1,"a, b",\n' + line + b"\r\n" + b'3,"c, d",\n' * (line != b'2,"'))
    records, rejected = read(shop)
    assert [(r.raw, r.detail, r.line) for r in rejected] == [(line, "a quote inside a quoted text is not doubled", 3)]
    assert [r["product_id"] for r in records] in (["1", "3"], ["1"])


def test_a_row_that_is_json_by_chance_is_no_record(shop: Shop) -> None:
    write(shop, 'id,name,photo\n1,"a, b",\n{"product_id":"9","title":"x"}\n2,b,\n')
    records, rejected = read(shop)
    assert ([r["product_id"] for r in records], len(rejected)) == (["1", "2"], 1)


# --- escapes


def test_backslashes_before_quotes_are_escapes_where_nothing_else_can_be_read(items: Shop) -> None:
    rows = [[cell.replace(",", " ") for cell in row] for row in rows_of(30)]
    text = plain(rows, ",").splitlines()
    text[5] = r'A900,"5\" heel, red","She said \"wow\" twice",1,Shirt,Red'
    text[9] = r'A901,"ends with inch \"","folder C:\\",1,Shirt,Red'
    text[12] = r"A902,plain \n text,C:\temp,1,Shirt,Red"
    write(items, "\n".join(text) + "\n")
    records = {r["product_id"]: r for r in read(items)[0]}
    assert len(records) == 30
    assert (records["A900"]["title"], records["A900"]["description"]) == ('5" heel, red', 'She said "wow" twice')
    assert (records["A901"]["title"], records["A901"]["description"]) == ('ends with inch "', "folder C:\\")
    assert (records["A902"]["title"], records["A902"]["description"]) == (r"plain \n text", r"C:\temp")


def test_an_escape_can_be_set(items: Shop) -> None:
    items.set_mapping(escape="^")
    write(items, table(rows_of(2)) + 'A9,"a ^"b^", c",t,1,Shirt,Red\n')
    assert read(items)[0][2]["title"] == 'a "b", c'


# --- rows of another length


def test_rows_with_empty_cells_beyond_the_header_are_read(items: Shop) -> None:
    write(items, table(rows_of(20)).replace("Red\n", "Red,\n").replace("Blue\n", "Blue,,\n"))
    records, rejected = read(items)
    assert (len(records), rejected) == (20, [])
    assert records[0]["attributes"] == {"kind": "Shirt", "colour": "Red"}


def test_short_rows_are_read_where_only_last_cells_can_lack(items: Shop) -> None:
    rows = rows_of(40)
    write(items, table([row[:5] if i % 3 else row for i, row in enumerate(rows)]))
    records, rejected = read(items)
    assert (len(records), rejected) == (40, [])
    assert records[1]["attributes"] == {"kind": "Bag"}
    assert items.run().notes == {"short rows, read with empty last cells": 26}


def test_a_delimiter_in_a_text_is_no_row_with_empty_cells_beyond_the_header(items: Shop) -> None:
    lines = [",".join(cell.replace(",", "") for cell in row) for row in rows_of(30)]
    write(items, "\n".join([",".join(HEADER), *lines, "A900,Shirt,soft, warm,10,Shirt,"]) + "\n")
    records, rejected = read(items)
    assert (len(records), [r.detail for r in rejected]) == (30, ["7 cells where the header has 6"])


def test_a_record_broken_over_two_lines_is_no_two_products(items: Shop) -> None:
    lines = [",".join(cell.replace(",", "") for cell in row) for row in rows_of(30)]
    write(items, "\n".join([",".join(HEADER), *lines, "A900,Shirt,soft", "and warm,10,Shirt,Red"]) + "\n")
    records, rejected = read(items)
    assert len(records) == 30
    assert [(r.line, r.raw) for r in rejected] == [(32, b"A900,Shirt,soft"), (33, b"and warm,10,Shirt,Red")]


def test_a_file_in_which_every_record_is_broken_in_two_is_refused(items: Shop) -> None:
    write(items, table([]) + "".join(f"A{i},Shirt\nSoft,1,Bag,Red\n" for i in range(50)))
    fails(items, r"100 of 100 rows are not records.*cells where the header has 6")


def test_a_short_row_where_rows_end_with_empty_cells_is_broken(items: Shop) -> None:
    rows = rows_of(10)
    rows[4][5] = ""
    write(items, table(rows) + "A900,Shirt,soft,1,Shirt\n")
    assert [r.detail for r in read(items)[1]] == ["5 cells where the header has 6"]


def test_csv_rows_that_do_not_fit_carry_their_reason_and_place(shop: Shop) -> None:
    write(shop, b"id,name,photo\n1,a,\n2,b\n3,c,,,extra\n4,d,\n")
    records, rejected = read(shop)
    assert [r["product_id"] for r in records] == ["1", "4"]
    assert [(r.reason, r.detail, r.file, r.line, r.raw) for r in rejected] == [
        ("csv_cells", "2 cells where the header has 3", "items.csv", 3, b"2,b"),
        ("csv_cells", "5 cells where the header has 3", "items.csv", 4, b"3,c,,,extra"),
    ]
    assert shop.run().unreadable == {r.detail: 1 for r in rejected}


def test_an_export_of_which_most_rows_do_not_fit_is_refused_with_the_reason(items: Shop) -> None:
    write(items, table(rows_of(3)))
    before = items.run()
    write(items, "id,name,text,price,kind,colour\n" + "A1,Shirt,10,50,Shirt,Red,x\n" * 5 + "A2,b,c,1,Bag,Red\n")
    fails(
        items, r"5 of 6 rows are not records; 5 of them: 7 cells where the header has 6 \(items\.csv, line 2: 'A1,Shirt"
    )
    assert items.lake.read_raw_manifest("2026-11-20") == before


# --- rows that are no products


def test_a_header_again_and_a_row_of_totals_are_no_products(items: Shop) -> None:
    body = table(rows_of(5)).split("\n", 1)[1]
    write(items, table(rows_of(5, 10)) + ",".join(HEADER) + "\n" + body + "Total,10 products,,,,\nSumme:,,,199.50,,\n")
    records, rejected = read(items)
    assert len(records) == 10
    assert [r.detail for r in rejected] == ["a repeated header", *["a row of totals, not a product"] * 2]


@pytest.mark.parametrize("header", [["ID", "Name", "TEXT", "Price", "Kind", "Colour"], ["id", " name "], [*HEADER, ""]])
def test_a_header_again_is_known_however_it_is_written(items: Shop, header: list[str]) -> None:
    write(items, table([*rows_of(5), header, *rows_of(5, 5)]))
    records, rejected = read(items)
    assert (len(records), [r.detail for r in rejected]) == (10, ["a repeated header"])


@pytest.mark.parametrize("types", ["string,string,string,float,string,string", "Number,Name,Text,in EUR,Kind,Colour"])
def test_a_line_below_the_header_that_describes_its_columns_is_no_product(items: Shop, types: str) -> None:
    named, body = table([["x-1", "Shirt", "Soft", "on request", "Shirt", "Red"], *rows_of(20)]).split("\n", 1)
    write(items, f"{named}\n{types}\n{body}")
    records, rejected = read(items)
    assert [record["product_id"] for record in records[:2]] == ["x-1", "A000"]
    assert [r.detail for r in rejected] == ["a second line of the header"]


@pytest.mark.parametrize("header", [["name", "id", *HEADER[2:]], ["id", "title", *HEADER[2:]]])
def test_rows_below_another_header_are_not_read_by_the_first(items: Shop, header: list[str]) -> None:
    write(items, table([*rows_of(5), header, *rows_of(5, 5)]))
    fails(items, "line 7: a different header .*a file of their own")


def test_a_product_may_have_a_word_of_the_header(items: Shop) -> None:
    write(items, table([*rows_of(5), ["kind", "Colour", "a text of a price", "9", "Shirt", "Red"]]))
    assert read(items)[0][5]["product_id"] == "kind"


@pytest.mark.parametrize("row", ["Count,40,,,,", "Average,,,17.25,,", "Anzahl: 40,,,,,"])
def test_a_row_that_counts_others_is_no_product(items: Shop, row: str) -> None:
    write(items, table(rows_of(10)) + row + "\n")
    assert [r.detail for r in read(items)[1]] == ["a row of totals, not a product"]


def test_a_product_may_be_named_total(items: Shop) -> None:
    write(items, table([*rows_of(5), ["Total", "Total Shirt", "Soft", "9", "Shirt", "Red"]]))
    assert read(items)[0][5]["product_id"] == "Total"


# --- encodings


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("packed", [False, True])
def test_encodings_that_the_bytes_show_are_read(items: Shop, encoding: str, packed: bool) -> None:
    data = table([["A1", "Größe “M”", "soft, light\nand warm", "1.5", "Shirt", "Grün"]] * 3).encode(encoding)
    write(items, gzip.compress(data) if packed else data)
    records, _ = read(items)
    assert [(r["title"], r["description"]) for r in records] == [("Größe “M”", "soft, light\nand warm")] * 3


@pytest.mark.parametrize("column", [0, 1], ids=["in the header", "in rows"])
def test_an_encoding_that_the_bytes_do_not_show_is_asked_for(items: Shop, column: int) -> None:
    text = table([["A1", "Café", "soft", "1.5", "Shirt", "Red"]] * 3 + rows_of(50))
    write(
        items, (text if column else text.replace("colour", "colour,Größe", 1).replace("\nA", ",\nA")).encode("cp1252")
    )
    fails(items, r"not UTF-8; cp1252 would read it as '.*(Café|Größe).*set `encoding`")
    items.set_mapping(encoding="cp1252")
    if column:
        assert read(items)[0][0]["title"] == "Café"


@pytest.mark.parametrize("script", ["windows-1251", "gbk", "shift_jis"])
def test_no_encoding_is_offered_that_would_read_nonsense(items: Shop, script: str) -> None:
    names = {"windows-1251": "Платье красное", "gbk": "红色连衣裙", "shift_jis": "赤いワンピース"}
    data = table([[f"A{i}", names[script], "", "1.5", "Shirt", "Red"] for i in range(9)]).encode(script)
    write(items, data)
    fails(items, r"9 lines are not UTF-8 \(line 2\).*set `encoding`")
    items.set_mapping(encoding=script)
    assert read(items)[0][0]["title"] == names[script]


def test_a_damaged_line_that_is_utf_8_otherwise_is_not_said_to_be_cp1252(items: Shop) -> None:
    write(items, table([*rows_of(9), ["A9", "Größe", "?", "1", "Shirt", "Grün"]]).encode().replace(b"?", b"\xff"))
    assert [r.detail for r in read(items)[1]] == ["not UTF-8"]


def test_text_that_is_utf_8_is_read_in_no_other_encoding(items: Shop) -> None:
    text = table([["A1", "Größe", "süß", "1.5", "Shirt", "Grün"]] * 3)
    items.set_mapping(encoding="cp1252")
    write(items, text)
    fails(items, "its text is UTF-8, but the mapping's `encoding` is cp1252.*leave `encoding` out")
    write(items, text.encode("utf-8-sig"))
    assert read(items)[0][0]["title"] == "Größe"
    write(items, text.encode("cp1252"))
    assert read(items)[0][0]["title"] == "Größe"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8", "utf-32"])
@pytest.mark.parametrize("written", ["utf-16-be", "utf-16-le"])
def test_a_byte_order_mark_says_what_the_mapping_does_not(items: Shop, encoding: str, written: str) -> None:
    items.set_mapping(encoding=encoding)
    write(items, ("\ufeff" + table([["A1", "Größe", "", "1.5", "Shirt", "Grün"]])).encode(written))
    assert read(items)[0][0]["title"] == "Größe"


def test_utf_16_without_a_mark_is_known_by_its_header(items: Shop) -> None:
    write(items, table([["A1", "红色连衣裙夏季新款女装长裙" * 200, "", "1", "Shirt", "红"]]).encode("utf-16-le"))
    assert read(items)[0][0]["title"].startswith("红色")
    items.set_mapping(encoding="utf-16")
    write(items, table([["A1", "Größe", "", "1", "Shirt", "Red"]]).encode("utf-16-be"))
    assert read(items)[0][0]["title"] == "Größe"
    write(items, table(rows_of(3)))
    fails(items, "items.csv")


def test_nul_bytes_in_each_line_make_no_utf_16(items: Shop) -> None:
    write(items, "id,name,text,price,kind,colour\n" + "".join(f"A{i:03d},Shirt\0,,1,Bag,Red\n" for i in range(500)))
    assert len(read(items)[0]) == 500


def test_a_delimiter_may_be_a_control_character(items: Shop) -> None:
    items.set_mapping(delimiter="\x01")
    write(items, plain(rows_of(9), "\x01"))
    assert len(read(items)[0]) == 9


@pytest.mark.parametrize("first", ["ORC", "PAR1"])
def test_a_text_may_begin_as_another_format_does(items: Shop, first: str) -> None:
    items.mapping.write_text(COLUMNS.replace("product_id: id", f"product_id: {first}"))
    write(items, plain([*rows_of(9)]).replace("id", first, 1))
    assert len(read(items)[0]) == 9


def test_mustard_is_no_archive(items: Shop) -> None:
    text = table([["A1", "", "", "1", "Shirt", "Red"]]).split("A1,")[0] + "A1,"
    write(items, text + "x" * (256 - len(text)) + "mustard,,1,Shirt,Red\n")
    assert read(items)[0][0]["title"].endswith("xmustard")


def test_a_column_twice_that_nothing_reads_does_no_harm(items: Shop) -> None:
    write(items, "id,name,text,price,kind,colour,note,note\nA1,Shirt,Soft,1,Shirt,Red,x,y\n")
    assert read(items)[0][0]["title"] == "Shirt"
    write(items, "id,name,name,text,price,kind,colour\nA1,Shirt,Bag,Soft,1,Shirt,Red\n")
    fails(items, r"columns \['name'\] more than once")


def test_a_file_that_is_cut_within_a_character_is_named(items: Shop) -> None:
    write(items, table(rows_of(3)).encode("utf-16")[:-1])
    fails(items, r"items\.csv: after \d records: not UTF-16-LE \(truncated data\)")


def test_a_damaged_line_of_a_utf_8_file_is_kept_byte_for_byte(shop: Shop) -> None:
    write(shop, 'id,name,photo\n1,"Crêpe\nblue",\n2,Crêpe,\n3,Crêpe,\n'.encode() + b'4,"Cr\xeape\nblue",\n5,b,\n')
    records, rejected = read(shop)
    assert [r["product_id"] for r in records] == ["1", "2", "3", "5"]
    assert [(r.reason, r.detail, r.raw) for r in rejected] == [
        ("bad_utf8", "not UTF-8; cp1252 would read it", b'4,"Cr\xeape\nblue",')
    ]


# --- lengths


def test_a_csv_field_of_eight_megabytes(shop: Shop) -> None:
    text = b"x" * 8_000_000
    assert len(csv_lines(shop, b"id,name,photo\n1," + text + b",\n")[0]["title"]) == 8_000_000


def test_a_longer_line_is_no_record_and_only_its_start_is_kept(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "MAX_LINE", 5000)
    write(shop, b"id,name,photo\n1,a,\n2," + b"x" * 20_000 + b",\n3,c,\n")
    records, rejected = read(shop)
    assert [r["product_id"] for r in records] == ["1", "3"]
    assert [(r.reason, r.line, len(r.raw)) for r in rejected] == [("line_too_long", 3, sources.LINE_START)]


def test_a_row_that_is_rejected_is_no_longer_than_a_record(shop: Shop) -> None:
    write(shop, b"id,name,photo\n1,a,\n2," + b"\xe9" * 4_000_000 + b"\n3,c,\n")
    assert [len(r.raw) for r in read(shop)[1]] == [sources.LINE_START]


def test_a_row_of_endless_lines_is_a_quote_never_closed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "_ROW_LINES", 100)
    write(shop, b'id,name,photo\n1,a,\n2,"' + b"\n" * 200 + b'",\n')
    fails(shop, "line 3: a quote is never closed")


# --- headers


def test_csv_header_of_wrong_quotes_or_with_a_name_twice(shop: Shop) -> None:
    write(shop, b'"id"x,name,photo\n1,"a, b",\n')
    fails(shop, r"items\.csv: .*line 1: the quotes of the header are wrong")
    write(shop, b"id,name,name,photo\n1,a,b,\n")
    fails(shop, r"items\.csv: .*the header has the columns \['name'\] more than once")
    assert csv_lines(shop, b"id,name,photo,,\n1,a,,,\n")[0]["title"] == "a"  # columns without a name are nobody's


def test_a_file_without_a_header_is_named(items: Shop) -> None:
    items.mapping.write_text(COLUMNS.replace("items.csv", "'*.csv'"))
    write(items, table(rows_of(3)))
    write(items, table(rows_of(3, 3)).split("\n", 1)[1], "more.csv")
    fails(
        items, r"more\.csv: the first line has none of the mapping's columns, such as 'id', but 'A003, Shirt 3.*header"
    )


def test_names_in_other_capitals_are_said_to_be_so(items: Shop) -> None:
    write(items, table(rows_of(3)).replace("id,name,text,price,kind,colour", "ID,Name,Text,Price,Kind,Colour"))
    fails(items, "They differ only in case")


def test_of_a_name_twice_in_a_csv_cell_no_value_is_chosen(shop: Shop) -> None:
    rows = csv_lines(shop, b'id,name,photo,facts\n1,a,,"{""Neck"": ""V"", ""Neck"": ""U""}"\n')
    assert rows[0]["attributes"] == {"Neck": ["V", "U"]}
