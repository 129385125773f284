"""A tour through Snakemake's HTML report in headless Chromium: every result is opened as a reader would."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# Runs before the report's own scripts.
LISTEN = """<script>
const errors = [];
addEventListener("error", event => errors.push(String(event.message || event.target.outerHTML)), true);
addEventListener("unhandledrejection", event => errors.push(String(event.reason)));
const said = console.error;
console.error = (...what) => { errors.push(what.join(" ")); said(...what); };
</script>"""

# Runs after the report's scripts: opens each category, and in it the view of each result by its eye button.
TOUR = """<script>
const pause = () => new Promise(done => setTimeout(done, 200));
async function tour() {
    await pause();
    const seen = {};
    const description = document.querySelector(".prose").innerText;
    const rules = document.querySelectorAll("svg, canvas").length;
    const first = document.querySelector(".prose img");
    const glance = { width: first.naturalWidth, top: first.getBoundingClientRect().top };
    const open = async (entry) => {
        [...document.querySelectorAll("li a")].find(link => link.innerText === entry).click();
        await pause();
    };
    await open("Statistics");
    for (const category of Object.keys(categories)) {
        await open(category);
        for (let i = 0; i < document.querySelectorAll("tbody tr").length; i++) {
            const eye = document.querySelectorAll("tbody tr")[i].querySelector("a");
            const download = Object.keys(results).find(path => results[path].data_uri === eye.href);
            if (!download) {
                eye.click();
                await pause();
            }
            const path = download || app.state.resultPath;
            const { data_uri: uri, caption } = results[path];
            const view = [...document.querySelectorAll("img, iframe")].find(it => it.src === uri);
            const page = uri.startsWith("data:text/html") ? atob(uri.split(",")[1]) : "";
            const table = new DOMParser().parseFromString(page, "text/html").querySelector("table");
            seen[path] = {
                category,
                caption,
                shown: Boolean(view),
                width: view?.naturalWidth || 0, // of a picture that could be drawn
                rows: table ? table.tBodies[0].rows.length : 0,
            };
        }
        app.setView({ navbarMode: "menu" });
        await pause();
    }
    return { seen, errors, description, rules, glance };
}
tour().catch(error => ({ failed: error.stack, errors })).then(found => {
    const end = document.createElement("pre");
    end.id = "tour";
    end.textContent = JSON.stringify(found);
    document.body.replaceChildren(end);
});
</script>"""


def tour(report: Path, scratch: Path) -> dict:
    """What a reader of `report` sees: `seen` (a dict by path), `errors`, `description`, `rules` (how many drawings)."""
    text = report.read_text(encoding="utf-8").replace("<head>", f"<head>{LISTEN}", 1)
    copy = scratch / "tour.html"
    copy.write_text(TOUR.join(text.rsplit("</body>", 1)), encoding="utf-8")
    offline = "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"
    how = "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={scratch / 'browser'}", *offline
    command = [BROWSER, *how, "--virtual-time-budget=120000", "--dump-dom", copy.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    seen = re.search(r'<pre id="tour">(.*?)</pre>', run.stdout, re.DOTALL)
    assert seen, run.stderr[-2000:]
    return json.loads(html.unescape(seen[1]))
