"""The built-in chat page in headless Chromium: by keyboard alone, dark and light, on a phone, without any foreign request."""
# Quick: `cargo xtask test` runs it.

import json
import os
import pathlib
import shutil

import _server
from support import scratch

scratch.inside("playwright==1.65.2")

from playwright.sync_api import expect, sync_playwright  # noqa: E402

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def contrast(page):
    """Contrast of text to background as WCAG defines it."""
    colours = page.evaluate(
        "() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]; }"
    )

    def luminance(colour):
        parts = [float(p) / 255 for p in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted(map(luminance, colours), reverse=True)
    return (high + 0.05) / (low + 0.05)


def talk(page):
    """A conversation without a mouse."""
    status = page.locator("#status")
    expect(page.locator("#input")).to_be_focused()
    page.keyboard.type("Hello")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there")
    page.keyboard.press("Enter")
    expect(page.locator("article.user")).to_have_text("Hello\nthere")
    expect(status).to_contain_text("tokens", timeout=60_000)
    assert page.locator("article.assistant").inner_text()
    # The last message comes back for editing.
    page.keyboard.press("ArrowUp")
    expect(page.locator("#input")).to_have_value("Hello\nthere")
    expect(page.locator("article")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(status).to_contain_text("tokens", timeout=60_000)
    page.keyboard.type("Second")
    page.keyboard.press("Enter")
    expect(page.locator("article.assistant")).to_have_count(2)
    expect(status).to_contain_text("tokens", timeout=60_000)
    # Settings by keyboard; a long answer is stopped.
    page.keyboard.press("Alt+s")
    expect(page.locator("#system")).to_be_focused()
    page.keyboard.type("Be long")
    page.locator("#max_tokens").fill("1500")
    page.keyboard.press("Alt+s")
    page.keyboard.press("Escape")
    expect(page.locator("#input")).to_be_focused()
    page.keyboard.press("Alt+n")
    expect(page.locator("article")).to_have_count(0)


def main():
    if not CHROMIUM:
        scratch.leave_out("no Chromium here: install it, or name it in CHROMIUM")
    folder = _server.scratch()
    pictures = os.environ.get("SHARP_INTEROP_PICTURES")
    _, packed = _server.small_model(folder)
    with _server.serve(packed) as url, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            for name, size in (("desk", (1200, 800)), ("phone", (360, 640))):
                context = browser.new_context(
                    color_scheme=scheme, viewport={"width": size[0], "height": size[1]}, is_mobile=name == "phone"
                )
                page = context.new_page()
                foreign, problems = [], []
                page.on("request", lambda r: r.url.startswith((url, "data:")) or foreign.append(r.url))
                page.on("console", lambda m: m.type == "error" and problems.append(m.text))
                page.on("pageerror", lambda e: problems.append(str(e)))
                page.goto(url)
                expect(page.locator("#model")).to_have_text("small")
                if name == "desk":
                    talk(page)
                page.keyboard.type("For the picture")
                page.keyboard.press("Enter")
                expect(page.locator("#status")).to_contain_text("tokens", timeout=60_000)
                assert contrast(page) >= 7, f"{scheme}: contrast {contrast(page):.1f}"
                wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                assert wide <= 0, f"{name}: {wide} pixels wider than the window"
                assert page.locator("#input").bounding_box()["y"] < size[1], "the input is out of sight"
                if pictures:
                    page.screenshot(path=pathlib.Path(pictures) / f"chat-{name}-{scheme}.png")
                assert not foreign and not problems, (foreign, problems)
                context.close()
        version = browser.version
        browser.close()
        assert json.loads(_server.get(f"{url}/health"))["status"] == "ok"
    print(f"Chromium {version}: keyboard, dark and light, desk and phone, nothing from elsewhere")


main()
