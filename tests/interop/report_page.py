"""The report page of a run in headless Chromium: on a desk, on a phone of 375 pixels and on paper, light and dark: every section is
there, nothing is wider than the window, text can be read, and nothing is asked of anybody else.

SHARP_INTEROP_RUN names the folder of a run to look at instead of small ones made here; SHARP_INTEROP_PICTURES a folder for pictures."""
# Quick: `cargo xtask test` runs it.

import os
import pathlib
import shutil
import subprocess
import tempfile

from support import scratch

scratch.inside("playwright==1.65.2")

from playwright.sync_api import sync_playwright  # noqa: E402

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SHARP = os.environ["SHARP_BIN"]
SECTIONS = ["Size", "Quality", "Recovery", "Speed and memory", "Sample text", "How alike the layers are", "How this was made"]
PRUNED = [
    "plan.strategy=even",
    "plan.form=pruned",
    "plan.targets=none",
    "plan.remove=0.3",
    "analyze.delta_nll_tokens=none",
]
PICTURES = ["against size", "training loss", "warm-up", "roofline"]

# The least contrast of any text to what lies behind it, as WCAG defines it; and the smallest text, in pixels as shown.
LOOK = """() => {
  const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const parts = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parts(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  let contrast = [99, ""], small = [99, ""];
  for (const e of document.querySelectorAll("h1,h2,h3,p,td,th,pre,summary,svg text")) {
    if (!e.textContent.trim() || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), svg = e.closest("svg");
    const [a, b] = [light(parts(svg ? style.fill : style.color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < contrast[0]) contrast = [ratio, e.textContent];
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const size = parseFloat(style.fontSize) * scale;
    if (size < small[0]) small = [size, e.textContent];
  }
  const root = document.documentElement;
  const beyond = [...document.querySelectorAll("body *")].filter(e => {
    if (e.closest(".scroll") && !e.matches(".scroll")) return false;
    return e.getClientRects().length && e.getBoundingClientRect().right > root.clientWidth + 1;
  }).map(e => e.tagName);
  const cut = [...document.querySelectorAll("svg")].filter(e => e.getBoundingClientRect().right > root.clientWidth + 1).length;
  return { contrast, small, beyond, cut, wide: root.scrollWidth - root.clientWidth };
}"""


def made(folder, name, settings):
    """A small run, by the driver as built."""
    xtask = pathlib.Path(SHARP).with_name("xtask")
    if not (xtask.exists() and xtask.with_name("sharp-train").exists()):
        scratch.leave_out(f"no xtask and sharp-train beside {SHARP}: build the workspace, or name a run in SHARP_INTEROP_RUN")
    run = folder / name
    line = [xtask, "pipeline", "--config", "configs/tiny.toml", "--out", run]
    for setting in settings:
        line += ["--set", setting]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ, "SHARP_BIN_DIR": str(xtask.parent)})
    assert done.returncode == 0, done.stderr[-4000:]
    return run


def look(browser, page_file, first_section, name, whole):
    pictures = os.environ.get("SHARP_INTEROP_PICTURES")
    for scheme in ("light", "dark"):
        for place, size in (("desk", (1200, 900)), ("phone", (375, 740)), ("paper", (700, 1000))):
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": size[0], "height": size[1]}, is_mobile=place == "phone"
            )
            page = context.new_page()
            foreign, problems = [], []
            page.on("request", lambda r: r.url.startswith(("file:", "data:")) or foreign.append(r.url))
            page.on("console", lambda m: m.type == "error" and problems.append(m.text))
            page.on("pageerror", lambda e: problems.append(str(e)))
            page.goto(page_file.as_uri())
            where = f"{name}, {place}, {scheme}"
            if place == "paper":
                page.emulate_media(media="print", color_scheme=scheme)
            if pictures:
                page.screenshot(path=pathlib.Path(pictures) / f"report-{name}-{place}-{scheme}.png", full_page=True)
            assert page.locator("h2").all_inner_texts() == [first_section, *SECTIONS], where
            titles = page.locator("svg > title").evaluate_all("all => all.map(e => e.textContent)")
            if whole:
                for wanted in [*PICTURES, *(["neurons"] if name == "pruned" else ["MLP is changed"])]:
                    assert any(wanted in title for title in titles), f"{where}: no picture of {wanted} in {titles}"
                assert page.locator("svg.heat").count() > 0, f"{where}: no heat map"
                assert page.locator("p.missing").count() == 0, page.locator("p.missing").all_inner_texts()
            found = page.evaluate(LOOK)
            assert found["wide"] <= 0 and not found["beyond"], f"{where}: wider than the window: {found}"
            assert found["contrast"][0] >= 4.5, f"{where}: contrast {found['contrast']}"
            if place == "paper":
                assert found["cut"] == 0, f"{where}: {found['cut']} pictures beyond the edge of the paper"
            else:
                assert found["small"][0] >= 9, f"{where}: text of {found['small'][0]:.1f} pixels: {found['small'][1]}"
            assert not foreign and not problems, (where, foreign, problems)
            context.close()


def main():
    if not CHROMIUM:
        scratch.leave_out("no Chromium here: install it, or name it in CHROMIUM")
    with tempfile.TemporaryDirectory(prefix="sharp-interop-") as folder, sync_playwright() as p:
        folder = pathlib.Path(folder)
        given = os.environ.get("SHARP_INTEROP_RUN")
        if given:
            runs = {pathlib.Path(given).name: pathlib.Path(given)}
        else:
            runs = {"sharing": made(folder, "sharing", []), "pruned": made(folder, "pruned", PRUNED)}
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, run in runs.items():
            file = folder / f"{name}.html"
            prompts = [] if given else ["--prompt", "The lighthouse", "--sample-tokens", "16"]
            subprocess.run([SHARP, "report", "--run", run, "--out", file, *prompts], check=True, stdout=subprocess.DEVNULL)
            look(browser, file, "How each layer is changed", name, not given)
        version = browser.version
        browser.close()
    print(f"Chromium {version}: {', '.join(runs)}: desk, phone and paper, light and dark, nothing from elsewhere")


main()
