"""Tables as spreadsheets and hands write them, and what is refused."""

import logging

import pytest
from mistakes import refused

from data.csv_tables import read_table

ROWS = [{"cluster": "0", "name": "Käfer, grün"}, {"cluster": "1", "name": ""}, {"cluster": "2", "name": "c"}]
NAMED = "cluster,name\n0,Käfer\n1,b\n2,c\n"
COMMAS = 'cluster,name\n0,"Käfer, grün"\n1,\n2,c\n'


@pytest.mark.parametrize(
    ("text", "encoding", "words"),
    [
        (COMMAS, "utf-8", "3 rows, separated by commas"),
        (COMMAS.replace("\n", "\r"), "utf-8-sig", "commas"),
        (COMMAS.replace(",\n", "\n").replace("\n", "\r\n\r\n"), "cp1252", "commas, in cp1252"),
        ("Cluster ;NAME;;\n0;Käfer, grün;;\n;;;\n1\n 2 ; c ;;\n", "cp1252", "semicolons, in cp1252"),
        ("cluster\tname\r\n0\tKäfer, grün\r\n1\t\r\n2\tc\r\n", "utf-16", "tabs, in utf-16"),
        ("sep=;\nnote;name;cluster\nx;Käfer, grün;0\n;;1\n;c;2", "utf-8", "3 rows, separated by semicolons"),
        ("\n,\nlabel,cluster\n'Käfer, grün',0\n,1\nc,2".replace("'", '"'), "utf-8", "3 rows"),
    ],
)
def test_the_same_table(tmp_path, caplog, text, encoding, words):
    caplog.set_level(logging.INFO)
    (tmp_path / "t.csv").write_text(text, encoding=encoding, newline="")
    rows = read_table(tmp_path / "t.csv", ["cluster", "name|label"], ["clustering"])
    assert [row for _, row in rows] == [{**row, "clustering": ""} for row in ROWS]
    assert words in caplog.messages[-1]
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert all(row["cluster"] in lines[line - 1] for line, row in rows)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", ["must be cluster,name, found nothing"]),
        (b"cluster,x\n0,a\n", ["found cluster,x"]),
        (b"cluster,name,name\n0,a\n", ["found cluster,name,name"]),
        (b"cluster,name\n0,a,b\n", ["line 2", "more than 2 columns", "quotes"]),
        (b'cluster,name\n0,a\n1,"b\n2,c\n', ["line 3 cannot be read as CSV"]),
        (b"cluster,name\n0,\x81\xff\n", ["line 1 cannot be read as CSV", "CSV in UTF-8"]),
        (b"PK\x03\x04", ["is a workbook"]),
        (None, ["No such file"]),
    ],
)
def test_what_is_refused(tmp_path, text, words):
    if text is not None:
        (tmp_path / "t.csv").write_bytes(text)
    refused(["t.csv", *words], read_table, tmp_path / "t.csv", ["cluster", "name|label"])


def test_a_folder(tmp_path):
    refused(["cannot be read"], read_table, tmp_path, ["cluster"])
