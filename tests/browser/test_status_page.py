"""The status page in a real browser: what it shows, to whom, and what it refuses to do."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright, expect
from status_documents import (
    LONG,
    RIGHT_TO_LEFT,
    SCRIPT,
    Document,
    dead_letter,
    healthy,
    hostile,
    idle,
    many_partitions,
    stalled,
)

from service.observability.http import HEADERS, HttpServer
from service.observability.metrics import Metrics
from service.observability.status import Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from playwright.async_api import ConsoleMessage, Request, ViewportSize

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT: Final = Path(__file__).resolve().parents[2]
FILES: Final = ROOT / "service" / "observability" / "status_page"
ARGUMENTS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TO: Final = "\N{EN DASH}"
PATIENCE_MS: Final = 30_000
DESKTOP: Final[ViewportSize] = {"width": 1280, "height": 900}
PHONE: Final[ViewportSize] = {"width": 360, "height": 740}
Scheme = Literal["light", "dark"]
SCHEMES: Final[tuple[Scheme, ...]] = ("light", "dark")

expect.set_options(timeout=PATIENCE_MS)


class StatusServer:
    """The page's files and a document that tests change, behind a prefix as a proxy would put them."""

    def __init__(self) -> None:
        self.document = healthy()
        self.answers = 0
        self.failure = ""
        self._port = 0
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}/behind/a/proxy/"

    async def start(self) -> None:
        """Listen, on the port of the last time if there was one."""
        app = web.Application()
        app.router.add_get("/behind/a/proxy/{file:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()
        self._runner = None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        file = request.match_info["file"] or "index.html"
        headers = HEADERS
        if file != "status.json":
            return web.FileResponse(FILES / file, headers=headers)
        self.answers += 1
        if self.failure:
            return web.Response(text=self.failure, headers=headers)
        return web.json_response(self.document, headers=headers)


@dataclass
class Visit:
    """A page that is open, and all that went wrong on it."""

    page: Page
    server: StatusServer
    problems: list[str] = field(default_factory=list)
    # While the server is away, requests fail by intent.
    lenient: bool = False

    def listen(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("request", self._request)
        self.page.on("requestfailed", self._failed)

    def _console(self, message: ConsoleMessage) -> None:
        if not self.lenient and message.type in {"error", "warning"}:
            self.problems.append(f"console: {message.text}")

    def _request(self, request: Request) -> None:
        if not request.url.startswith(self.server.address):
            self.problems.append(f"elsewhere: {request.url}")

    def _failed(self, request: Request) -> None:
        if not self.lenient:
            self.problems.append(f"failed: {request.url} {request.failure}")

    async def shows(self, document: Document) -> None:
        """Wait until the page is at this document."""
        self.server.document = document
        seen = self.server.answers
        await eventually(lambda: self.server.answers > seen + 1, self.page)

    async def texts(self, selector: str) -> list[str]:
        return [plain(text) for text in await self.page.locator(selector).all_inner_texts()]

    async def has(self, selector: str, text: str) -> None:
        await expect(self.page.locator(selector)).to_have_text(text)


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ").strip()


async def eventually(true: Callable[[], bool], page: Page) -> None:
    """Let the page live until it is true."""
    for _ in range(PATIENCE_MS // 50):
        if true():
            return
        await page.wait_for_timeout(50)
    pytest.fail("It did not become true in time")


def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("Chromium is missing: apt-get install chromium")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(
            executable_path=chromium(), args=ARGUMENTS, headless=True, timeout=2 * PATIENCE_MS
        )
        try:
            yield running
        finally:
            await running.close()


@pytest_asyncio.fixture(loop_scope="module")
async def server() -> AsyncIterator[StatusServer]:
    serving = StatusServer()
    await serving.start()
    try:
        yield serving
    finally:
        await serving.stop()


@contextlib.asynccontextmanager
async def visiting(
    browser: Browser,
    server: StatusServer,
    document: Document,
    scheme: Scheme = "light",
    viewport: ViewportSize = DESKTOP,
) -> AsyncIterator[Visit]:
    """Open the page; in the end nothing must have gone wrong on it."""
    server.document = document
    context = await browser.new_context(
        color_scheme=scheme, viewport=viewport, reduced_motion="reduce", timezone_id="UTC"
    )
    try:
        context.set_default_timeout(PATIENCE_MS)
        visit = Visit(await context.new_page(), server)
        visit.listen()
        await visit.page.goto(server.address)
        await expect(visit.page.locator("#updated")).not_to_be_empty()
        yield visit
        visit.lenient = True
        assert visit.problems == []
    finally:
        await context.close()


# --- what it shows --------------------------------------------------------------------------


async def test_every_figure_is_shown_for_people(browser: Browser, server: StatusServer) -> None:
    async with visiting(browser, server, healthy()) as visit:
        await visit.has("#state", "Ready")
        await visit.has("#why", "running")
        await expect(visit.page).to_have_title("Ready · Softmax Service")
        for identity, text in {
            "updated": "As of 14:13:20",
            "route": "images.logits → images.probabilities",
            "dead-letter-topic": "images.dead-letter",
            "group": "softmax-images",
            "guarantee": "at least once",
            "uptime": "3 h 12 min",
            "throughput": "12.3 k/s",
            "consumed": "12.5 k/s",
            "dead-letter-rate": "0.3/s",
            "in-flight": "1.2 k records, 1.2 MiB",
            "lag": "2.0 k records, 610 ms",
            "spark-start": "1 min 59 s ago",
            "p50": "2.4 ms",
            "p90": "4.8 ms",
            "p99": "18.7 ms",
            "p999": "42.3 ms",
            "batch-rate": "10.4/s",
            "batch-records": "1.2 k",
            "batch-bytes": "1.2 MiB",
            "versions": "Softmax Service 0.1.0 · Python 3.11.7 · numpy 2.4.1 · aiokafka 0.14.0",
        }.items():
            await visit.has(f"#{identity}", text)
        assert await visit.texts("#trouble div") == ["Retries of produce\n4", "Rebalances\n2", "Offsets lost\n0"]
        assert set(await visit.texts(".window")) == {"last 10 s"}


async def test_every_table_is_shown_in_its_order(browser: Browser, server: StatusServer) -> None:
    async with visiting(browser, server, healthy()) as visit:
        assert await cells(visit, "latency-models") == [
            ["default", "98.8 k", "2.2 ms", "4.1 ms", "15.6 ms", "39.8 ms"],
            ["digits", "24.7 k", "3.1 ms", "6.3 ms", "21.9 ms", "44.7 ms"],
        ]
        assert await cells(visit, "stages") == [
            ["wait", "", "120 µs", "104", "12.5 ms"],
            ["layout", "", "310 µs", "104", "32.2 ms"],
            ["decode", "", "460 µs", "104", "47.8 ms"],
            ["softmax", "", "920 µs", "104", "95.7 ms"],
            ["encode", "", "580 µs", "104", "60.3 ms"],
            ["general", "", "210 µs", "10", "2.1 ms"],
            ["deliver", "", "2.7 ms", "104", "282 ms"],
            ["commit", "", "1.3 ms", "10", "13.3 ms"],
        ]
        assert await cells(visit, "batch-sizes") == [
            ["1", "", "1"],
            [f"2{TO}4", "", "2"],
            [f"5{TO}16", "", "5"],
            [f"17{TO}64", "", "9"],
            [f"65{TO}256", "", "21"],
            [f"257{TO}1024", "", "38"],
            [f"1025{TO}4096", "", "19"],
            [f"4097{TO}16384", "", "8"],
            ["over 16384", "", "0"],
        ]
        assert await cells(visit, "closed-by") == [
            ["enough records", "", "7"],
            ["enough bytes", "", "2"],
            ["waited enough", "", "1"],
            ["nothing more", "", "93"],
            ["stopping", "", "0"],
        ]
        assert await cells(visit, "partitions") == [
            ["images.logits-3", "", "1.9 k", "610 ms", "3.1 k/s"],
            ["images.logits-0", "", "112", "9.0 ms", "3.1 k/s"],
            ["images.logits-1", "", "48", "4.0 ms", "3.1 k/s"],
            ["images.logits-2", "", "0", "0 s", "3.1 k/s"],
        ]
        assert await cells(visit, "paths") == [["columnar", "", "99.8%", "123 k"], ["general", "", "0.2%", "245"]]
        assert await cells(visit, "predictions") == [
            ["default", "98.8 k", "0.713", "0.905 nat"],
            ["digits", "24.7 k", "0.939", "0.211 nat"],
        ]


async def cells(visit: Visit, table: str) -> list[list[str]]:
    found: list[list[str]] = await visit.page.locator(f"#{table}").evaluate(
        "body => [...body.rows].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return [[plain(cell) for cell in row] for row in found]


async def test_the_stages_follow_each_other_without_a_gap(browser: Browser, server: StatusServer) -> None:
    async with visiting(browser, server, healthy()) as visit:
        bars = await visit.page.locator("#stages .bar span").evaluate_all(
            "bars => bars.map(bar => bar.getBoundingClientRect()).map(box => [box.left, box.right])"
        )
        assert len(bars) == 8
        for (_, end), (start, _) in itertools.pairwise(bars):
            assert start == pytest.approx(end, abs=2.5)


async def test_dead_letters_are_shown_with_reason_place_time_and_payload(
    browser: Browser, server: StatusServer
) -> None:
    async with visiting(browser, server, healthy()) as visit:
        assert await visit.texts("#reasons li") == ["nan31", "not_numeric4", "too_many_classes1"]
        assert await visit.texts("#letters .reason") == ["nan", "not_numeric", "too_many_classes"]
        assert await visit.texts("#letters .where") == [
            "images.logits-3 @918273",
            "images.logits-3 @918020",
            "images.logits-3 @917411",
        ]
        assert (await visit.texts("#letters time"))[0] == "2026-09-21 14:13:17"
        assert (await visit.texts("#letters .detail"))[0] == "element 17 of 1000 is NaN"
        assert await visit.texts("#letters code") == ["82a2696407a66c6f6769747393cb7ff8"]


async def test_settings_are_flat_and_can_be_filtered(browser: Browser, server: StatusServer) -> None:
    async with visiting(browser, server, healthy()) as visit:
        await visit.page.locator("summary").click()
        shown = await visit.texts("#settings li")
        assert len(shown) == 18
        assert {
            "kafka.group_id = softmax-images",
            "kafka.sasl_password = **********",
            "kafka.client_rack = null",
            'headers.drop = ["ce_*"]',
            "models.digits.temperature = 0.5",
            "models_strict = false",
        } < set(shown)
        await visit.page.locator("#filter").fill("GROUP_id")
        await expect(visit.page.locator("#settings li:visible")).to_have_text(["kafka.group_id = softmax-images"])
        await visit.has("#filter-count", "1 of 18")
        await visit.shows(healthy())
        await expect(visit.page.locator("#settings li:visible")).to_have_count(1)


async def test_the_raw_figures_are_linked_relative_to_the_page(browser: Browser, server: StatusServer) -> None:
    async with visiting(browser, server, healthy()) as visit:
        links = await visit.page.locator("nav a").evaluate_all("links => links.map(link => link.href)")
        assert links == [server.address + name for name in ("metrics", "livez", "readyz", "status.json")]


async def test_nothing_to_show_is_said_in_words(browser: Browser, server: StatusServer) -> None:
    async with visiting(browser, server, idle()) as visit:
        await visit.has("#latency-empty", "No records in the last 10 s")
        await visit.has("#stages-empty", "No micro-batches in the last 10 s")
        await visit.has("#batches-empty", "No micro-batches in the last 10 s")
        await visit.has("#partitions-empty", "No partitions are assigned")
        await visit.has("#paths-empty", "No records in the last 10 s")
        await visit.has("#dead-letters-empty", "No dead letters")
        await visit.has("#throughput", "0/s")
        await visit.has("#p99", TO)
        await expect(visit.page.locator("#predictions-section")).to_be_hidden()


@pytest.mark.parametrize(
    ("health", "state", "why"),
    [
        ({"ready": True, "stalled": False, "why": "running"}, "Ready", "running"),
        ({"ready": False, "stalled": False, "why": "joining the group"}, "Not ready", "joining the group"),
        (stalled()["health"], "Stalled", "nothing has moved for 61 s"),
    ],
)
async def test_the_state_is_in_the_title_too(
    browser: Browser, server: StatusServer, health: Document, state: str, why: str
) -> None:
    async with visiting(browser, server, healthy() | {"health": health}) as visit:
        await visit.has("#state", state)
        await visit.has("#why", why)
        await expect(visit.page).to_have_title(f"{state} · Softmax Service")


async def test_of_many_partitions_the_worst_are_listed_and_the_rest_summed_up(
    browser: Browser, server: StatusServer
) -> None:
    async with visiting(browser, server, many_partitions()) as visit:
        rows = visit.page.locator("#partitions tr")
        await expect(rows).to_have_count(200)
        await expect(rows.first).to_contain_text("wide-999")
        await visit.has("#partitions-more", "and 800 more partitions with 320 k records of lag")
        await visit.page.get_by_role("button", name="Partition").click()
        await expect(rows.first).to_contain_text("wide-0")
        header = visit.page.locator("th[data-sort=partition]")
        await expect(header).to_have_attribute("aria-sort", "ascending")


# --- how it changes ---------------------------------------------------------------------------


async def test_nodes_are_kept_while_their_figures_change(browser: Browser, server: StatusServer) -> None:
    async with visiting(browser, server, many_partitions()) as visit:
        region = visit.page.locator(".tall")
        await region.focus()
        await region.evaluate("node => { node.scrollTop = 500; node.querySelector('tbody').firstChild.id = 'kept'; }")
        await visit.shows(many_partitions() | {"rebalances": 77})
        await expect(visit.page.locator("#trouble")).to_contain_text("77")
        await expect(visit.page.locator("#kept")).to_contain_text("wide-999")
        await expect(region).to_be_focused()
        assert await region.evaluate("node => node.scrollTop") == 500


async def test_rows_come_go_and_change_places(browser: Browser, server: StatusServer) -> None:
    async with visiting(browser, server, healthy()) as visit:
        changed = healthy()
        changed["partitions"][2]["lag_records"] = 5000
        del changed["partitions"][0]
        changed["dead_letters"]["last"].insert(0, dead_letter(0, "new", "just now", 1))
        server.document = changed
        await expect(visit.page.locator("#partitions th")).to_have_text([f"images.logits-{i}" for i in (2, 3, 1)])
        await expect(visit.page.locator("#letters .reason")).to_have_text(
            ["new", "nan", "not_numeric", "too_many_classes"]
        )


async def test_a_service_that_is_gone_is_announced_and_its_return_noticed(
    browser: Browser, server: StatusServer
) -> None:
    async with visiting(browser, server, healthy()) as visit:
        banner = visit.page.get_by_role("alert")
        await expect(visit.page.locator("#banner")).to_be_hidden()
        visit.lenient = True
        await server.stop()
        await expect(banner).to_contain_text(re.compile(r"No answer for ([2-9]|\d\d)\ss\."))
        await expect(visit.page).to_have_title("No answer · Softmax Service")
        await expect(visit.page.locator("body.stale")).to_have_count(1)
        await visit.has("#throughput", "12.3 k/s")
        await accessible(visit.page)
        await server.start()
        await expect(visit.page.locator("#banner")).to_be_hidden()
        await visit.has("#state", "Ready")
        await expect(visit.page.locator("body.stale")).to_have_count(0)


@pytest.mark.parametrize(
    ("failure", "words"),
    [("<html>Log in</html>", "The answer is not JSON"), ("{}", "The answer was not understood")],
)
async def test_an_answer_that_says_nothing_is_announced(
    browser: Browser, server: StatusServer, failure: str, words: str
) -> None:
    async with visiting(browser, server, healthy()) as visit:
        visit.lenient = True
        server.failure = failure
        await expect(visit.page.get_by_role("alert")).to_contain_text(words)
        server.failure = ""
        await expect(visit.page.locator("#banner")).to_be_hidden()


async def test_paused_it_asks_no_more_until_resumed(browser: Browser, server: StatusServer) -> None:
    async with visiting(browser, server, healthy()) as visit:
        # A question that is dropped under way counts as a failed request.
        visit.lenient = True
        pause = visit.page.get_by_role("button", name="Pause updates")
        await pause.click()
        await expect(pause).to_have_attribute("aria-pressed", "true")
        await expect(visit.page).to_have_title("Ready (paused) · Softmax Service")
        asked = server.answers
        await visit.page.wait_for_timeout(2500)
        assert server.answers <= asked + 1
        await pause.click()
        await expect(pause).to_have_attribute("aria-pressed", "false")
        await eventually(lambda: server.answers > asked + 2, visit.page)


HIDE: Final = """hidden => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


async def test_hidden_it_asks_no_more_until_seen(browser: Browser, server: StatusServer) -> None:
    async with visiting(browser, server, healthy()) as visit:
        visit.lenient = True
        await visit.page.evaluate(HIDE, arg=True)
        asked = server.answers
        await visit.page.wait_for_timeout(2500)
        assert server.answers <= asked + 1
        await visit.page.evaluate(HIDE, arg=False)
        await eventually(lambda: server.answers > asked + 2, visit.page)


# --- what it refuses --------------------------------------------------------------------------


async def test_hostile_texts_are_texts(browser: Browser, server: StatusServer) -> None:
    async with visiting(browser, server, hostile()) as visit:
        await visit.shows(hostile())
        await visit.has("#why", SCRIPT)
        await expect(visit.page).to_have_title("Ready · Softmax Service")
        assert await visit.page.locator("main img, main script, main b:not(#reasons b)").count() == 0
        details = await visit.page.locator("#letters .detail").all_text_contents()
        assert details[0] == SCRIPT
        assert details[1] == f"{LONG[:1000]}… (9.0\N{NO-BREAK SPACE}k characters more)"
        assert details[2] == RIGHT_TO_LEFT
        assert details[3] == "the same record again"
        assert await visit.page.locator("#letters code").first.text_content() == SCRIPT
        models = await visit.page.locator("#latency-models th").all_text_contents()
        assert {SCRIPT, RIGHT_TO_LEFT, "__proto__", "constructor"} < set(models)
        assert not await overflows(visit)


@pytest.mark.parametrize("document", [healthy, idle, hostile, many_partitions])
async def test_a_phone_never_scrolls_sideways(
    browser: Browser, server: StatusServer, document: Callable[[], Document]
) -> None:
    async with visiting(browser, server, document(), viewport=PHONE) as visit:
        await visit.page.locator("summary").click()
        await visit.shows(document())
        assert not await overflows(visit)


async def overflows(visit: Visit) -> bool:
    wider: bool = await visit.page.evaluate(
        "document.scrollingElement.scrollWidth > document.documentElement.clientWidth"
    )
    return wider


# --- for whom ---------------------------------------------------------------------------------


async def test_light_and_dark_differ_and_follow_the_system(browser: Browser, server: StatusServer) -> None:
    lightness = {}
    for scheme in SCHEMES:
        async with visiting(browser, server, healthy(), scheme) as visit:
            lightness[scheme] = await visit.page.evaluate(
                "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b)"
            )
    assert lightness["light"] > 700
    assert lightness["dark"] < 100


@pytest.mark.parametrize("document", [healthy, idle, hostile, stalled, many_partitions])
async def test_axe_finds_nothing(browser: Browser, server: StatusServer, document: Callable[[], Document]) -> None:
    async with visiting(browser, server, document()) as visit:
        await visit.page.locator("summary").click()
        for viewport, scheme in itertools.product((DESKTOP, PHONE), SCHEMES):
            await visit.page.set_viewport_size(viewport)
            await visit.page.emulate_media(color_scheme=scheme)
            await accessible(visit.page)


async def accessible(page: Page) -> None:
    found = await Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


async def test_the_keyboard_reaches_everything(browser: Browser, server: StatusServer) -> None:
    async with visiting(browser, server, many_partitions()) as visit:
        page = visit.page
        await page.keyboard.press("Tab")
        await expect(page.locator(".skip")).to_be_focused()
        await expect(page.locator(".skip")).to_be_in_viewport()
        await page.keyboard.press("Tab")
        await expect(page.locator("#pause")).to_be_focused()
        assert await page.locator("#pause").evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
        await tab_until(page, ".tall")
        await tab_until(page, "summary")
        await page.keyboard.press("Enter")
        await tab_until(page, "#filter")
        await tab_until(page, "nav a")


async def tab_until(page: Page, selector: str) -> None:
    for _ in range(20):
        await page.keyboard.press("Tab")
        if await page.evaluate("wanted => document.activeElement.matches(wanted)", selector):
            return
    pytest.fail(f"The Tab key does not reach {selector}")


async def test_the_skip_link_leads_to_the_figures(browser: Browser, server: StatusServer) -> None:
    async with visiting(browser, server, healthy()) as visit:
        await visit.page.keyboard.press("Tab")
        await visit.page.keyboard.press("Enter")
        await expect(visit.page.locator("main")).to_be_focused()


async def test_headings_are_one_h1_and_a_named_section_for_each_h2(browser: Browser, server: StatusServer) -> None:
    async with visiting(browser, server, healthy()) as visit:
        page = visit.page
        await expect(page.get_by_role("heading", level=1)).to_have_count(1)
        sections = await page.locator("section").evaluate_all(
            "nodes => nodes.map(node => document.getElementById(node.getAttribute('aria-labelledby'))?.tagName)"
        )
        assert sections == ["H2"] * await page.locator("h2").count()
        assert await page.locator("html").get_attribute("lang") == "en"


@dataclass
class WellHealth:
    """A service that runs."""

    ready: bool = True
    stalled: bool = False
    why: str = "running"


async def test_the_service_serves_the_page_as_it_was_tested_here(browser: Browser) -> None:
    metrics, health = Metrics({"version": "1"}, 100, 1000, ["nan"]), WellHealth()
    status = Status(metrics, healthy()["service"], {}, lambda: health)
    metrics.outputs_acknowledged(0, "digits", np.full(10, 0.2))
    metrics.lag("in", 3, 42, 1.5)
    http = HttpServer("127.0.0.1", 0, metrics.registry, lambda: health, status.document)
    address = await http.start()
    context = await browser.new_context()
    try:
        problems: list[str] = []
        page = await context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.on("response", lambda answer: problems.append(answer.url) if answer.status >= 400 else None)
        await page.goto(f"{address}/")
        await expect(page.locator("body")).to_contain_text("digits")
        await expect(page.locator("body")).to_contain_text("in-3")
        await expect(page).to_have_title(re.compile("Ready"))
        assert problems == []
    finally:
        await context.close()
        await http.stop()
