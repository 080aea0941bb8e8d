"""report.html in a real browser: opened as a file and from a server, while a run goes on and after its end."""

import functools
import http.server
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

from sdjob.output.layout import OutputLayout
from sdjob.page import page
from sdjob.page.curves import Curves
from sdjob.page.data import Alive, collect

HOSTILE = '</script><img src=x onerror="window.hacked=1"> <b>bold</b> ${1+1} \u202e'
PROMPTS = ["a sks circle", HOSTILE]
OFFLINE = (  # what Chromium would ask of other hosts by itself
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("--headless", "--disable-gpu", f"--user-data-dir={profile}", *OFFLINE):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    yield driver
    driver.quit()


@pytest.fixture(autouse=True)
def quiet(browser):
    """No test leaves a message in the console, or has asked anything of another host."""
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.set_window_size(1280, 1500)
    browser.get_log("browser")
    browser.get_log("performance")
    yield
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith(("file:///", "http://127.0.0.1:", "data:"))] == []


class Run:
    """The output folder of a run, as far as the page reads it."""

    def __init__(self, root: Path) -> None:
        self.layout = OutputLayout(root)
        self.layout.run.mkdir(parents=True)
        settings = {"instance_prompt": {"value": HOSTILE, "source": "environment"}}
        mounts = {"MODEL_DIR": {"uses": "/mnt/model/sd", "found": "stable-diffusion"}}
        plan = {"settings": settings, "mounts": mounts, "warnings": [HOSTILE]}
        (self.layout.run / "plan.json").write_text(json.dumps(plan))
        self.curves = Curves(self.layout.metrics)
        self.log({"step": 0, "time": 1000.0})

    def log(self, *rows):
        with self.layout.metrics.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def train(self, first, last):
        figures = {"learning_rate": 1e-4, "grad_norm": 1.0, "images_per_second": 12.5, "peak_memory_gib": 3.0}
        self.log(*({"step": s, "time": 1000.0 + s, "loss": 1 / s, **figures} for s in range(first, last + 1)))
        self.log({"step": last, "time": 1000.0 + last, "validation_loss": 0.5})
        event = {"kind": "checkpoint", "step": last, "time": 1000.0 + last, "text": HOSTILE}
        with self.layout.events.open("a") as file:
            file.write(json.dumps(event) + "\n")

    def sample(self, step):
        folder = self.layout.samples / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "prompts.json").write_text(json.dumps(PROMPTS))
        for prompt in range(len(PROMPTS)):
            Image.new("RGB", (64, 64), (step % 256, 90, 200)).save(folder / f"prompt{prompt:02d}-00.png")

    def data(self, step):
        return collect(self.layout, self.curves, alive=Alive("train", 1000.0, step, step, 100))


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "an output #1 folder")
    run.train(1, 40)
    run.sample(0)
    run.sample(40)
    page.write(run.layout, run.data(40))
    return run


def text_of(browser, selector):
    return browser.execute_script(f"return document.querySelector({json.dumps(selector)})?.innerText ?? ''")


def wait_until(browser, selector, text):
    WebDriverWait(browser, 30, 0.1).until(lambda _: text in text_of(browser, selector))


def assert_images_are_shown(browser, count):
    script = "return [...document.images].map((image) => [image.complete, image.naturalWidth])"
    # Those far below are loaded once they come into view.
    browser.execute_script(
        "document.querySelectorAll('img').forEach((image) => { image.loading = 'eager'; })"
    )
    WebDriverWait(browser, 30, 0.1).until(lambda _: all(done for done, _ in browser.execute_script(script)))
    assert [width for _, width in browser.execute_script(script)] == [64] * count


def test_a_running_job_opened_as_a_file(browser, run):
    browser.get(run.layout.page.as_uri())
    assert "training" in text_of(browser, "#head")
    assert "step 40 of 100" in text_of(browser, "#head")
    tiles = text_of(browser, "#tiles")
    for figure in ("images/s\n12.5", "1 s", "1e-4", "3.22 GB", "0.5"):
        assert figure in tiles
    titles = browser.execute_script(
        "return [...document.querySelectorAll('[data-chart]')].map((e) => e.dataset.chart)"
    )
    assert titles == ["Loss", "Learning rate", "Gradient norm", "Speed", "Peak memory"]
    inked = """return [...document.querySelectorAll('#curves canvas')].map((canvas) => canvas.getContext('2d')
        .getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0))"""
    assert browser.execute_script(inked) == [True] * 5
    assert_images_are_shown(browser, 4)


def test_one_logged_step_is_one_point(browser, tmp_path):
    run = Run(tmp_path / "output")
    run.log({"step": 1, "time": 1001.0, "loss": 1.3556587100028992})  # its mean differs in the last digit
    page.write(run.layout, run.data(1))
    browser.get(run.layout.page.as_uri())
    rows = """const canvas = document.querySelector('[data-chart=Loss] canvas'), { width, height } = canvas;
        const pixels = canvas.getContext('2d').getImageData(0, 0, width, height).data;
        const isBlue = (at) => pixels[at + 2] - pixels[at] > 150 && pixels[at + 3] > 200;
        const row = (y) => [...Array(width).keys()].some((x) => isBlue(4 * (y * width + x)));
        return [...Array(height).keys()].filter(row)"""
    blue = browser.execute_script(rows)
    assert blue and blue[-1] - blue[0] < 20


def test_an_update_leaves_scroll_and_slider_where_they_are(browser, run):
    run.sample(20)
    page.write(run.layout, run.data(40))
    browser.get(run.layout.page.as_uri())
    browser.execute_script("""
        const slider = document.querySelector('#samples input[type=range]');
        slider.value = 1;
        slider.dispatchEvent(new Event('input'));
        document.querySelector('#samples').scrollIntoView();
    """)
    where = "return [scrollY, document.querySelector('#samples input[type=range]').value]"
    before = browser.execute_script(where)
    assert before[0] > 100 and before[1] == "1"
    assert "after step 20" in text_of(browser, "#samples")
    run.train(41, 60)
    run.sample(60)
    page.write_data(run.layout, run.data(60))
    wait_until(browser, "#head", "step 60 of 100")
    assert browser.execute_script(where) == before
    assert browser.execute_script("return document.querySelector('#samples input[type=range]').max") == "3"
    assert "after step 20" in text_of(browser, "#samples")


def test_an_open_page_sees_the_end_and_how_to_load_the_result(browser, run):
    browser.get(run.layout.page.as_uri())
    report = {
        "model": "stable-diffusion",
        "pretrained_model_name_or_path": "/mnt/model/sd",
        "max_train_steps": 100,
    }
    run.train(41, 100)
    page.write(run.layout, collect(run.layout, run.curves, report=report))
    wait_until(browser, "#head", "finished")
    assert "bash train.sh generate" in text_of(browser, "#result")
    assert "from_pretrained" in text_of(browser, "#result")
    browser.get_log("performance")
    time.sleep(6)  # longer than between two refreshes
    assert browser.get_log("performance") == [], "a finished run is not asked for again"


def test_texts_of_a_run_stay_texts(browser, run):
    browser.get(run.layout.page.as_uri())
    assert browser.execute_script("return window.hacked") is None
    assert HOSTILE in browser.execute_script("return document.querySelector('#samples').textContent")
    assert HOSTILE in browser.execute_script("return document.querySelector('#warnings').textContent")
    assert HOSTILE in browser.execute_script("return document.querySelector('#settings').textContent")
    assert HOSTILE in browser.execute_script("return document.querySelector('#events').textContent")
    assert browser.execute_script("return document.querySelectorAll('#page b').length") == len(
        browser.execute_script("return [...document.querySelectorAll('.tile b')]")
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_both_themes_from_a_phone_to_a_desk(browser, run, scheme, width, tmp_path):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    metrics = {"width": width, "height": 1500, "deviceScaleFactor": 1, "mobile": width < 700}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(run.layout.page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width, (
        "nothing sticks out"
    )
    cut = (
        "return [...document.querySelectorAll('.tile b')].filter((e) => e.scrollWidth > e.clientWidth).length"
    )
    assert browser.execute_script(cut) == 0
    back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(246, 247, 249)") is (scheme == "light")
    assert browser.save_screenshot(str(tmp_path / f"{scheme}-{width}.png"))
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_run_that_failed_before_its_first_step(browser, tmp_path):
    run = Run(tmp_path / "output")
    problem = {"subject": "lr", "found": HOSTILE, "remedy": "Give a number, such as 1e-4."}
    failure = {
        "class": "refused",
        "code": 64,
        "problems": [problem],
        "node": 0,
        "root_rank": None,
        "step": None,
    }
    page.write(run.layout, collect(run.layout, run.curves, failure=failure))
    browser.get(run.layout.page.as_uri())
    shown = text_of(browser, "#failure")
    assert "exit code 64" in shown and "Give a number, such as 1e-4." in shown
    assert "failed" in text_of(browser, "#head")
    assert "No step was logged." in text_of(browser, "#curves")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_from_a_server_inside_a_frame(browser, run):
    """As in the file browser of a platform, whose frame forbids storage and more."""
    frame = '<iframe sandbox="allow-scripts" src="report.html" width="1200" height="1400"></iframe>'
    (run.layout.root / "frame.html").write_text(f'<link rel="icon" href="data:,">{frame}')
    handler = functools.partial(Quiet, directory=str(run.layout.root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.get(f"http://127.0.0.1:{server.server_port}/frame.html")
        browser.switch_to.frame(0)
        wait_until(browser, "#head", "step 40 of 100")
        run.train(41, 60)
        page.write_data(run.layout, run.data(60))
        wait_until(browser, "#head", "step 60 of 100")
        browser.switch_to.default_content()
        browser.get("about:blank")
        server.shutdown()
