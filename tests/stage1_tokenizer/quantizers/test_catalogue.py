"""The table and the page of the registry are made from it, and the page that lies in docs is the present one."""

import re
import sys
from pathlib import Path

import pytest

from stage1_tokenizer.quantizers import QUANTIZERS
from stage1_tokenizer.quantizers.__main__ import main

PAGE = Path(__file__).parents[3] / "docs" / "quantizers.md"


def test_the_table_of_the_registry_is_generated(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quantizers", "hypervq", "fsq"])
    main()
    text = capsys.readouterr().out
    assert re.search(r"hypervq +codebook +8 +1024 +10.00 +9216 +HyperVQ: codes as hyperplanes", text)
    assert "All of training is INFERRED" in text
    assert re.search(r"fsq +scalar levels +4 +1000 +9.97 +0 ", text)


def test_a_mistaken_name_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quantizers", "lqg"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "did you mean lgq" in capsys.readouterr().err


def test_the_page_in_docs_is_current(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["quantizers", "--markdown", str(tmp_path / "page.md")])
    main()
    remedy = "make it anew: python -m stage1_tokenizer.quantizers --markdown docs/quantizers.md"
    assert PAGE.read_text(encoding="utf-8") == (tmp_path / "page.md").read_text(encoding="utf-8"), remedy


def test_every_name_has_a_row_with_its_paper():
    rows = re.findall(r"^\| \[`(\w+)`\].* (\S.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(QUANTIZERS)
    assert all(paper for _, paper in rows)
