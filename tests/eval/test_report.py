"""The report: one file that needs nothing else, shows every number with what it stands on, and renders in a real browser."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from eval.page import gather, render
from eval.results import Metric
from eval.tables import error, number
from pipeline.core.errors import UserError

PLACES = [f"{region} {latitude} {longitude}E" for region, latitude in (("sahara", "24N"), ("siberia", "60N"), ("congo", "4S"))
          for longitude in (8, 16, 24, 32)]
WATCH = """<script>
const errors = [];
window.addEventListener("error", event => errors.push(event.message), true);
window.addEventListener("load", () => {
  const pictures = [...document.images];
  document.body.dataset.seen = JSON.stringify({
    pictures: pictures.length, broken: pictures.filter(p => !p.naturalWidth).length, errors,
    wide: document.documentElement.scrollWidth - window.innerWidth,
  }).replaceAll('"', "'");
});
</script>"""


@pytest.fixture(scope="module")
def run(write_run, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "demo", PLACES)


@pytest.fixture(scope="module")
def page(run):
    return render(gather(run))


def test_the_page_needs_nothing_else(page):
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    foreign = [address for address in addresses if not address.startswith(("data:", "#"))]
    assert not foreign
    assert "@import" not in page and len(re.findall("<img ", page)) > 50


def test_every_number_is_there_with_its_name_error_count_and_floor(page):
    for text in ("gFD (EfficientNet-Lite0)", "60.0", "± 0.6", "real images: 38.2", "decoded 55.0", "blurred 131.0", "27.63",
                 "2,048", "131,072 tokens", "Prior bits per token", "6.31", "reference 0123456789abcdef", "87.9 %"):
        assert text in page, text
    assert "cannot be compared with FID" in page


def test_the_same_files_give_the_same_page(run, page):
    assert render(gather(run)) == page


def test_names_cannot_bring_markup_into_the_page(write_run, tmp_path):
    folder = write_run(tmp_path / "runs", ["<script>alert(1)</script> a", "b & c", "d e", "d f"])
    assert "<script>alert" not in render(gather(folder))


def test_a_tokenizer_alone_and_a_prior_that_is_not_finished(write_run, tmp_path):
    folder = write_run(tmp_path / "runs", PLACES)
    (folder / "eval" / "ar" / "result.json").unlink()
    assert "Autoregressive" not in render(gather(folder))
    for part in ("maskgit", "real", "validation", "blurred", "decoded"):
        shutil.rmtree(folder / "eval" / part)
    page = render(gather(folder))
    assert "27.63" in page and "LGQ tokens" in page


def test_what_is_missing_or_damaged_is_one_clear_line(write_run, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        gather(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"python -m eval\.run"):
        gather(tmp_path)
    folder = write_run(tmp_path / "runs", PLACES)
    picture = folder / "eval" / "maskgit" / "samples.png"
    picture.write_bytes(picture.read_bytes()[:200])
    with pytest.raises(UserError, match=r"samples\.png"):
        gather(folder)
    picture.unlink()
    with pytest.raises(UserError, match=r"samples\.png"):
        gather(folder)


@pytest.mark.parametrize(
    ("value", "standard_error", "label", "shown", "uncertainty"),
    [
        (60.04, 0.63, "FD", "60.0", "0.6"),
        (60.04, 0.13, "FD", "60.04", "0.13"),
        (1234.5, 31.0, "FD", "1234", "31"),
        (0.00244, 0.0031, "KID", "0.002", "0.003"),
        (0.583, 0.0112, "Class accuracy", "58.3 %", "1.1"),
        (0.812, None, "SSIM", "0.812", ""),
        (512.34, None, "Perplexity", "512", ""),
        (0.0, None, "FD", "0", ""),
        (-0.0001, 0.003, "KID", "0.000", "0.003"),
    ],
)
def test_numbers_end_where_they_become_uncertain(value, standard_error, label, shown, uncertainty):
    metric = Metric(label, value, 100, "lower", standard_error)
    assert (number(metric), error(metric)) == (shown, uncertainty)


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium here; apt-get install chromium")
    return found


def browse(browser, folder, page, *options, expects=""):
    """Show a page; once more where the browser fails or what it prints lacks the words: it may starve on a busy machine."""
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
               f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    if found.returncode or expects not in found.stdout:
        found = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return found


@pytest.mark.parametrize("width", [1280, 420])
def test_a_real_browser_shows_it(browser, page, tmp_path, width):
    file = tmp_path / "report.html"
    file.write_text(page.replace("<head>", f"<head>{WATCH}", 1), encoding="utf-8")
    size = f"--window-size={width},3000"
    options = (size, "--enable-logging=stderr", "--dump-dom", "--virtual-time-budget=3000")
    found = browse(browser, tmp_path, file, *options, expects='data-seen="')
    seen = re.search(r'data-seen="([^"]*)"', found.stdout)
    assert seen, found.stderr[-2000:]
    assert f"'pictures':{page.count('<img ')}" in seen[1] and "'broken':0" in seen[1] and "'errors':[]" in seen[1]
    assert int(re.findall(r"'wide':(-?\d+)", seen[1])[0]) <= 0  # nothing sticks out to the right
    assert "CONSOLE" not in found.stderr

    browse(browser, tmp_path, file, size, f"--screenshot={tmp_path / 'page.png'}")
    with Image.open(tmp_path / "page.png") as picture:
        pixels = np.asarray(picture.convert("L"), dtype=float)
    assert pixels.shape == (3000, width)
    rows = pixels.reshape(10, 300, width)
    assert (rows.std(axis=(1, 2)) > 4).all()  # no part of it is blank
