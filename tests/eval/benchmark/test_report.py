"""The page of a benchmark: one file that needs nothing else, sorts its tables and fits a phone, in a real browser."""

import base64
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from eval.benchmark import report
from eval.benchmark.collect import collect
from eval.benchmark.page import gather, render
from eval.benchmark.verdict import judge
from pipeline.core.errors import UserError

WATCH = """<script>
const errors = [];
window.addEventListener("error", event => errors.push(event.message), true);
window.addEventListener("load", () => {
  const table = document.querySelector("#numbers table.sortable"), last = table.tHead.rows[0].cells.length - 1;
  const button = table.tHead.rows[0].cells[last].querySelector("button");
  const state = () => [...table.tBodies[0].rows].map(row => row.cells[last].dataset.value ?? "none");
  const sorted = [];
  for (let i = 0; i < 2; i++) {
    button.click();
    sorted.push([table.tHead.rows[0].cells[last].getAttribute("aria-sort"), state()]);
  }
  document.querySelectorAll("details").forEach(part => { part.open = true; });
  const pictures = [...document.images];
  document.body.dataset.seen = btoa(JSON.stringify({
    pictures: pictures.length, broken: pictures.filter(p => !p.naturalWidth).length, errors, sorted,
    requests: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
    wide: document.documentElement.scrollWidth - window.innerWidth,
    marked: table.tHead.querySelectorAll('[aria-sort="ascending"], [aria-sort="descending"]').length,
  }));
});
</script>"""


@pytest.fixture(scope="module")
def folder(write_benchmark, all_methods, tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark") / "results"
    methods = {("a & <b>" if label == "ibq" else label): truth for label, truth in all_methods.items() if label != "bsq"}
    write_benchmark(folder, methods, bits=(8, 10), seeds=(0, 1), priors=("maskgit",))
    (folder / "jobs/generation/fsq-10b-s0-maskgit/result.json").unlink()
    (folder / "jobs/generation/fsq-10b-s1-maskgit/result.json").unlink()  # a cell without a number
    return folder


@pytest.fixture(scope="module")
def page(folder):
    benchmark = collect(folder)
    return render(gather(benchmark, judge(benchmark)))


def test_the_page_needs_nothing_else(page):
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert not [address for address in addresses if not address.startswith(("data:", "#"))]
    assert "@import" not in page and len(re.findall("<img ", page)) > 20 and len(re.findall("<svg", page)) > 15


def test_it_shows_answers_errors_counts_gaps_and_what_it_cannot_say(page):
    for text in ("lgq", "\u00b1", "2 seeds, n = 2,048 each", "2 of the plan are missing", "they are not FID", "Spearman \u03c1",
                 "The contract", "sha256 5793", "generation/fsq-10b-s0-maskgit", "Memorisation: MaskGIT at 10 bits"):
        assert text in page, text
    assert "<b>" not in page and "a &amp; &lt;b&gt;" in page  # names bring no markup into the page


def test_the_command_writes_three_files(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", str(folder)])
    report.main()
    assert "2 missing" in capsys.readouterr().out
    verdict = json.loads((folder / "verdict.json").read_text())
    assert (folder / "rankings.png").read_bytes().startswith(b"\x89PNG")
    assert verdict["format"] == "lgq-benchmark-verdict" and (folder / "summary.md").read_text().startswith("# synthetic: ")
    assert verdict["answers"][0]["answer"] in (folder / "report.html").read_text().replace("&#39;", "'")


def test_a_damaged_picture_is_one_clear_line(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "jobs/quality/lgq-8b-s0/reconstructions.png").unlink()
    benchmark = collect(copy)
    with pytest.raises(UserError, match=r"reconstructions\.png"):
        gather(benchmark, judge(benchmark))


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium here; apt-get install chromium")
    return found


@pytest.mark.parametrize("width", [400, 1280])
def test_a_real_browser_shows_and_sorts_it(browser, page, tmp_path, width):
    file = tmp_path / "report.html"
    file.write_text(page.replace("<head>", f"<head>{WATCH}", 1), encoding="utf-8")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
               f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},3000", "--enable-logging=stderr",
               "--virtual-time-budget=3000", "--dump-dom", f"--screenshot={tmp_path / 'page.png'}"]  # fmt: skip
    found = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=240, check=False)
    if found.returncode or 'data-seen="' not in found.stdout:  # once more: a browser may starve on a busy machine
        found = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=240, check=True)
    seen = re.search(r'data-seen="([^"]*)"', found.stdout)
    assert seen, found.stderr[-2000:]
    state = json.loads(base64.b64decode(seen[1]))
    assert state["pictures"] == page.count("<img ") and not state["broken"] and not state["errors"]
    assert not state["requests"] and "CONSOLE" not in found.stderr  # nothing leaves the file
    assert state["wide"] <= 0  # nothing sticks out to the right
    (up, ascending), (down, descending) = state["sorted"]
    assert (up, down, state["marked"]) == ("ascending", "descending", 1)
    values = [float(value) for value in ascending if value != "none"]
    assert values == sorted(values) and len(values) == 13 and ascending[-1] == "none"  # what is missing comes last
    assert [float(value) for value in descending[:13]] == values[::-1] and descending[-1] == "none"

    with Image.open(tmp_path / "page.png") as picture:
        pixels = np.asarray(picture.convert("L"), dtype=float)
    assert pixels.shape == (3000, width)
    assert (pixels.reshape(10, 300, width).std(axis=(1, 2)) > 4).all()  # no part of it is blank
