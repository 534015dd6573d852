"""Time of every move in a saved explorer of 2048 features, in Chromium: this version's scripts and those of a revision.

    python benchmarks/explorer.py [revision] [repeats]

Both versions take turns, because other programs may share the machine. `ms` is the time from an event until the frame
that shows its result is laid out, `cpu_ms` the time that the processor works on it in the page's main thread.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
from playwright.sync_api import CDPSession, Page, sync_playwright

from hsic_lab.correlation import cross_correlation, standardize
from hsic_lab.explorer import CorrelationExplorer
from hsic_lab.training import Run, TrainConfig

FEATURES, STEPS = 2048, (0, 100, 200, 300)
ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [f"hsic_lab/explorer/{name}.js" for name in ("heatmap", "charts", "store", "panel", "explorer", "page")]
PRELUDE = """
const root = document.querySelector(".hsic-explorer"), control = (name) => root.querySelector(`[data-control=${name}]`);
const canvas = root.querySelector(".map canvas"), box = canvas.getBoundingClientRect();
canvas.setPointerCapture = () => {}; // events that no pointer made have nothing to capture
const fire = (name, event, value) => {
  control(name).value = value;
  control(name).dispatchEvent(new Event(event, { bubbles: true }));
};
const pointer = (name, x, y) => canvas.dispatchEvent(new PointerEvent(name, {
  clientX: box.left + x * box.width, clientY: box.top + y * box.height, pointerId: 1, button: 0, bubbles: true }));
const samples = () => root.querySelector(".behind figcaption")?.textContent, old = [canvas.dataset.step, samples()];
const ordered = () => root.querySelector(".columns").textContent.includes("position 0");
"""
MOVES = {  # what happens, and what holds once it is shown
    "training step": (
        "fire('step', 'input', (Number(control('step').value) + 1) % 4)",
        "canvas.dataset.step !== old[0]",
    ),
    "order by clustering": ("fire('order', 'change', 'cluster')", "ordered()"),
    "order by diagonal": ("fire('order', 'change', 'diagonal')", "ordered()"),
    "color limit": ("fire('limit', 'input', 0.3 + 0.5 * Math.random())", "true"),
    "hover": ("pointer('pointermove', Math.random(), Math.random())", "true"),
    "click": ("for (const name of ['down', 'up']) pointer(`pointer${name}`, 0.3, at)", "samples() !== old[1]"),
    "zoom in": ("control('in').click()", "canvas.width === 512"),
    "zoom out": ("control('out').click()", "canvas.width === 512"),
    "order by index": ("fire('order', 'change', 'index')", "!ordered()"),
}


def saved_page(path: Path) -> None:
    """Write the explorer of a run that kept four matrices and the samples of 256 pairs."""
    generator = torch.Generator().manual_seed(0)
    run = Run(Path("a run"), TrainConfig(), torch.nn.Identity(), torch.nn.Identity())
    shared = torch.randn(512, 64, generator=generator) @ torch.randn(64, FEATURES, generator=generator) / 8
    for step in STEPS:
        z_a, z_b = (shared + (1 + step / 100) * torch.randn(shared.shape, generator=generator) for _ in range(2))
        run.snapshots[step] = cross_correlation(z_a, z_b)
        run.samples[step] = torch.stack([standardize(z[:256]).half() for z in (z_a, z_b)])
    CorrelationExplorer(run).save_html(path)


def timed(page: Page, cdp: CDPSession, code: str, done: str) -> tuple[float, float]:
    """Return `ms` and `cpu_ms` of a move."""
    frame = "await new Promise((act) => requestAnimationFrame(() => setTimeout(act)))"  # until after it is laid out
    script = f"{PRELUDE} const at = Math.random(), start = performance.now(); {code};"
    script += f"do {{ {frame}; }} while (!({done})); return performance.now() - start;"
    before = main_thread(cdp)
    return page.evaluate(f"async () => {{ {script} }}"), 1000 * (main_thread(cdp) - before)


def main_thread(cdp: CDPSession) -> float:
    return {one["name"]: one["value"] for one in cdp.send("Performance.getMetrics")["metrics"]}["TaskDuration"]


def main() -> None:
    revision, repeats = (sys.argv[1:] + ["HEAD", "7"][len(sys.argv) - 1 :])[:2]
    rows = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        files = {version: Path(folder) / f"{version}.html" for version in ("now", revision)}
        saved_page(files["now"])
        text = files["now"].read_text(encoding="utf-8")
        for name in SCRIPTS:
            then = subprocess.run(["git", "show", f"{revision}:{name}"], cwd=ROOT, capture_output=True, check=True)
            text = text.replace((ROOT / name).read_text(encoding="utf-8").rstrip(), then.stdout.decode().rstrip())
        files[revision].write_text(text, encoding="utf-8")
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for _ in range(int(repeats)):
            for version, path in files.items():
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                cdp = page.context.new_cdp_session(page)
                cdp.send("Performance.enable", {"timeDomain": "threadTicks"})
                page.goto(path.as_uri())
                page.wait_for_selector("canvas[data-step]")
                rows.append((version, "open", page.evaluate("performance.now()"), 1000 * main_thread(cdp)))
                for _ in STEPS:  # so that the matrices of all steps are there
                    timed(page, cdp, *MOVES["training step"])
                for move, (code, done) in MOVES.items():
                    rows.append((version, move, *timed(page, cdp, code, done)))
                page.close()
    table = pd.DataFrame(rows, columns=["version", "move", "ms", "cpu_ms"]).groupby(["move", "version"], sort=False)
    table = table.agg(["median", "max"]).round(1)
    table.columns = ["_".join(names) for names in table.columns]
    table.to_csv(ROOT / "data" / "results" / "explorer_speed.csv")
    print(table.to_string())


if __name__ == "__main__":
    main()
