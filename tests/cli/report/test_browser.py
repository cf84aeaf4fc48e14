"""The page in a real browser: it fits a phone, follows the colour scheme, and reads values under the pointer."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from leyden.cli.report.command import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = """<iframe id="phone" style="width:390px; height:800px; border:0"></iframe><pre id="measured"></pre><script>
const phone = document.getElementById("phone");
phone.srcdoc = PAGE;
phone.onload = () => {
  const page = phone.contentDocument, chart = page.querySelector("svg.chart[data-x]");
  const box = chart.getBoundingClientRect();
  chart.dispatchEvent(new phone.contentWindow.PointerEvent("pointermove",
    {clientX: box.left + box.width * WHERE, clientY: box.top + box.height / 2}));
  document.getElementById("measured").textContent = JSON.stringify({
    width: phone.contentWindow.innerWidth, needed: page.documentElement.scrollWidth,
    readout: page.querySelector(".readout").textContent,
    ground: phone.contentWindow.getComputedStyle(page.body).backgroundColor,
  });
};
</script>"""


def measure(page, where, folder, *options):
    """Shows the page in a frame as wide as a phone, points at a place of the first chart, and says what is seen."""
    script = MEASURE.replace("PAGE", json.dumps(page).replace("</", "<\\/")).replace("WHERE", str(where))
    (folder / "frame.html").write_text(f"<!doctype html><meta charset=utf-8>{script}")
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
        *(f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", *options),
        (folder / "frame.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return json.loads(html.unescape(re.search(r'<pre id="measured">(.*?)</pre>', done.stdout)[1]))


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_a_page_on_a_phone(tmp_path):
    run = tmp_path / ("a_run_with_a_long_name_" * 4)
    (run / "record").mkdir(parents=True)
    rows = [f"{step},{100 - step},{0.5},{'9' * 60}" for step in range(0, 101, 10)]
    (run / "metrics.csv").write_text("\n".join(["step,val/loss,val/accuracy,other", *rows]) + "\n")
    names = [f"a class with a long name, number {number}" for number in range(12)]
    values = {f"measurement {number}": 1.0 for number in range(12)}
    worst = [{"loss": 1.0, "index": 0, "prediction": names[0], "target": names[1], "values": values}]
    test = {"num_samples": 12, "confusion": [[1] * 12] * 12, "class_names": names, "worst": worst}
    (run / "record" / "test.json").write_text(json.dumps(test))
    write_report([run], Path(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()

    middle = (54 + (420 - 10)) / 2 / 420  # of the plot, which has 54 units on its left and 10 on its right
    seen = measure(page, middle, tmp_path)
    assert seen["needed"] <= seen["width"] <= 390
    assert seen["readout"].startswith("step 50: validation ≈ 50")
    light = seen["ground"]
    dark = measure(page, middle, tmp_path, "--blink-settings=preferredColorScheme=0")["ground"]
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(21, 22, 26)")
