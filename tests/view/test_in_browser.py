"""The page in a real browser: hostile text stays text, ten thousand trajectories stay quick, values are exact.

Needs Debian's package chromium (or Chrome), which no list of Python packages can install; see CONTRIBUTING.md.
"""

from __future__ import annotations

import shutil
import socket
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gspo_rllib.view.page import page
from gspo_rllib.view.sources import Source
from tests.view.rows import make_row, make_source, make_turn

pytestmark = pytest.mark.slow

HOSTILE = (
    "<script>hacked = 1</script></script><script>hacked = 1</script><img src=x onerror='hacked = 1'>"
    "<svg onload='hacked = 1'>\u2028\u2029\x1b[2J\x1b]0;title\x07\u202e\x00javascript:hacked=1 &lt;b&gt; ${hacked=1}"
)
LONGEST_MS = 200.0

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    assert found, "these tests drive a real browser: install the package chromium (apt-get install chromium)"
    with sync_playwright() as playwright:
        # Containers run as root, and have neither user namespaces nor a large /dev/shm.
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a page of sources from a file, offline; at the end nothing has failed and nobody was asked for anything."""
    wrong: list[str] = []
    contexts: list[Any] = []

    def open_page(*sources: Source, title: str = "run", **settings: Any) -> Any:
        file = tmp_path / f"{len(contexts)}.html"
        file.write_text(page(sources, title=title), encoding="utf-8")
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **settings}))
        contexts[-1].set_offline(True)
        shown = contexts[-1].new_page()
        shown.on("pageerror", lambda error: wrong.append(str(error)))
        shown.on("console", lambda message: wrong.append(message.text))
        shown.on("dialog", lambda dialog: wrong.append(dialog.message))
        shown.on("request", lambda request: request.url == file.as_uri() or wrong.append(request.url))
        shown.goto(file.as_uri())
        shown.wait_for_selector("html[data-ready=yes]")
        return shown

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def _detail(shown: Any) -> str:
    shown.wait_for_selector("#detail .turn")
    text: str = shown.text_content("#detail")
    return text


def test_hostile_text_is_shown_and_never_runs(opened: Open) -> None:
    turn = make_turn(
        observation=HOSTILE, reply=f'<tool_call>{{"name": "x", "arguments": {{"a": "{"<b>" * 3}"}}}}</tool_call>'
    )
    row = make_row(HOSTILE, truncated_by=HOSTILE, last_observation=HOSTILE, turns=[turn])
    row["turns"].append(make_turn(reply=HOSTILE, sampled_ids=[], logp=[], updated_logp=[], advantage=[], sampled=0))
    result = {"training_iteration": 1, "env_runners/success_mean": 0.5}
    for sources in ([make_source(row, name=HOSTILE)], [make_source(row, name=HOSTILE, results=[result])] * 2):
        shown = opened(*sources, title=HOSTILE)
        text = _detail(shown)
        for part in (
            "<script>hacked = 1</script>",
            "onerror='hacked = 1'",
            "␛[2J",
            "⟨U+202E⟩",
            "⟨U+2028⟩",
            "&lt;b&gt;",
        ):
            assert part in text, part
        shown.click("#tab-curves")
        shown.wait_for_timeout(100)
        assert shown.evaluate("typeof hacked") == "undefined"
        assert shown.evaluate("document.querySelectorAll('img, iframe, b, #detail script, #list script').length") == 0
        assert not set(text + shown.text_content("header") + shown.title()) & {
            "\x1b",
            "\x00",
            "\x07",
            "\u202e",
            "\u2028",
        }


def test_the_policy_stops_what_the_program_would_let_through(browser: Any, tmp_path: Path) -> None:
    # As if text had become HTML after all: only the page's own policy is left to stop it.
    file = tmp_path / "page.html"
    file.write_text(page([make_source(make_row())], title="run"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        shown = browser.new_page()
        shown.goto(file.as_uri())
        shown.wait_for_selector("html[data-ready=yes]")
        shown.evaluate(
            """(there) => {
                document.body.insertAdjacentHTML('beforeend', `<img src="${there}/x" onerror="hacked = 1">`);
                const script = document.createElement('script');
                script.textContent = 'hacked = 1';
                document.body.append(script);
                fetch(`${there}/y`).catch(() => 0);
            }""",
            f"http://127.0.0.1:{listening.getsockname()[1]}",
        )
        shown.wait_for_timeout(300)
        assert shown.evaluate("typeof hacked") == "undefined"
        with pytest.raises(TimeoutError):
            listening.accept()
        shown.close()


def test_every_token_says_its_exact_values(opened: Open) -> None:
    turn = make_turn(5, sampled=4, token_versions=[2, 2, 3, 3], version=2)
    shown = opened(make_source(make_row(turns=[turn, make_turn(6, starts_segment=True)])))
    text = _detail(shown)
    assert text.count("context tokens, no loss") == 2 and "a new context begins" in text
    shown.hover("#detail .sampled >> nth=2")
    said = shown.text_content("#values")
    logp, updated = np.float32(turn["logp"][2]), np.float32(turn["updated_logp"][2])
    fields = dict(part.rsplit(" ", 1) for part in said.split(" · "))
    assert np.float32(fields["log-prob"]) == logp and np.float32(fields["after the update"]) == updated
    assert float(fields["ratio"]) == pytest.approx(float(np.exp(np.float64(updated) - np.float64(logp))), rel=1e-8)
    assert (fields["id"], fields["advantage"], fields["version"]) == ("22", "0.5", "3")
    # The keys do the same, and colours follow the value: none at ratio 1.
    shown.focus("#detail")
    shown.keyboard.press("ArrowRight")
    assert shown.text_content("#values").startswith("id 23 ")
    colours = {}
    for key in ("l", "r", "a"):
        shown.keyboard.press(key)
        colours[key] = shown.eval_on_selector_all("#detail .sampled", "all => all.map(s => s.style.backgroundColor)")
    assert len({tuple(found) for found in colours.values()}) == 3
    assert len(set(colours["a"])) == 1 and len(set(colours["l"])) > 1
    # The loss mask: what the turn was shown is there on demand, and carries nothing.
    shown.keyboard.press("m")
    shown.wait_for_selector("#detail .context")
    shown.hover("#detail .context >> nth=0")
    assert shown.text_content("#values") == "id 10 · context: not sampled, no loss"


def test_outcomes_are_told_apart_and_keys_do_everything(opened: Open) -> None:
    rows = [
        make_row("a", 0),
        make_row("a", 1, success=False, **{"return": 0.0}),
        make_row("a", 2, success=False, truncated_by="turns", **{"return": -1.0}),
        make_row("b", 0, iteration=2, success=None),
    ]
    shown = opened(make_source(*rows))

    def members() -> list[str]:
        found: list[str] = shown.eval_on_selector_all("#list .member", "all => all.map(r => r.textContent)")
        return found

    assert [row.split("adv")[0] for row in members()] == ["0success1", "1failure0", "2cut: turns-1", "0ended1"]
    for key, count in (("2", 1), ("3", 1), ("4", 1), ("1", 4)):
        shown.keyboard.press(key)
        assert len(members()) == count, key
        assert shown.text_content("#count") == f"{count} of 4 trajectories"
    shown.keyboard.press("Home")
    assert shown.text_content(".row[aria-selected=true]").startswith("1 · group areturn 0 ± 0.816 · 1 of 3 succeed")
    shown.wait_for_function("document.querySelectorAll('.trajectory').length === 3")
    shown.keyboard.press("]")
    shown.wait_for_function("document.querySelector('.trajectory h2').textContent.startsWith('iteration 2 · b/0')")
    shown.keyboard.press("[")
    shown.keyboard.press("ArrowDown")
    shown.keyboard.press("ArrowDown")
    shown.wait_for_function("document.querySelector('.trajectory h2').textContent === 'iteration 1 · a/1 · failure'")
    shown.keyboard.press("c")
    shown.wait_for_function("document.querySelectorAll('.trajectory').length === 3")
    shown.keyboard.press("Escape")
    shown.wait_for_function("document.querySelectorAll('.trajectory').length === 1")
    shown.keyboard.press("/")
    shown.keyboard.type("b")
    assert len(members()) == 4  # "observation 0" holds a b, too
    shown.keyboard.type("x")
    assert shown.text_content("#detail") == "No trajectory is like that."
    shown.keyboard.press("Escape")
    assert shown.evaluate("document.activeElement.id") == "list"
    # Every control is reached by Tab and has a name.
    assert shown.evaluate(
        "[...document.querySelectorAll('button, select, input, [tabindex]')].every(e => e.tabIndex >= 0 && "
        "(e.ariaLabel || e.textContent || e.labels?.length))"
    )


def test_two_policies_are_compared_task_by_task(opened: Open) -> None:
    before = [make_row(group, i, **{"return": 0.0}, success=False) for group in "ab" for i in range(2)]
    after = [make_row("a", i) for i in range(2)] + before[2:]
    shown = opened(make_source(*before, name="one"), make_source(*after, name="two"))
    heads = shown.eval_on_selector_all("#list .group", "all => all.map(r => r.textContent)")
    assert [head.split(" · ")[0] for head in heads] == ["group areturn A 0 → B 1", "group breturn A 0 → B 0"]
    shown.keyboard.press("Home")
    shown.wait_for_function("document.querySelectorAll('.trajectory').length === 4")
    titles = shown.eval_on_selector_all(".trajectory h2", "all => all.map(t => t.textContent)")
    assert [title[0] for title in titles] == list("ABAB") and "two" in titles[3]
    shown.select_option("#order", label="difference")
    assert shown.text_content("#list .group >> nth=0").startswith("group a")


def test_curves_of_several_runs_are_a_median_and_a_band(opened: Open) -> None:
    def results(shift: float) -> list[dict[str, Any]]:
        return [{"training_iteration": at, "env_runners/success_mean": at / 10 + shift} for at in range(1, 6)]

    shown = opened(*(make_source(results=results(shift), name=f"seed{shift}") for shift in (0.0, 0.1, 0.4)))
    assert shown.is_visible("#curves")  # there are no trajectories
    assert shown.text_content("figure figcaption") == "Success"
    assert shown.locator("figure polygon").count() == 1
    shown.focus("figure svg")
    shown.keyboard.press("ArrowRight")
    assert shown.text_content(".legend") == "sampled, median of 3 runs 1: 20 % (10 % to 50 %)"


def test_numbers_that_differ_late_are_told_apart_at_the_axis(opened: Open) -> None:
    name = "learners/default_policy/ratio_quantiles/p50"
    results = [{"training_iteration": at, name: 1 + at * 1e-5} for at in range(3)]
    shown = opened(make_source(results=results))
    labels = shown.locator("figure svg text[text-anchor=end]").all_text_contents()
    assert len(labels) == len(set(labels)) == 4 and labels[0] == "1" and labels[3] == "1.00002"


def test_huge_texts_are_shown_in_parts(opened: Open) -> None:
    turns = [make_turn(0, observation="x" * 3_000_000, sampled=30_000)] + [make_turn(n) for n in range(1, 300)]
    shown = opened(make_source(make_row(turns=turns)))
    _detail(shown)
    assert shown.locator("#detail .sampled").count() < 5_000
    assert shown.locator("#detail .turn").count() < 100
    assert len(shown.text_content("#detail .text")) < 25_000
    shown.click("#detail .text .chip")
    assert len(shown.text_content("#detail .text >> nth=0")) > 150_000
    shown.click("#detail .tokens > .chip:has-text('tokens are left')")
    assert shown.locator("#detail .turn >> nth=0 >> .sampled").count() == 20_000


_TIMED = """async ([act, argument]) => {
    const frame = () => new Promise(requestAnimationFrame);
    const started = performance.now();
    const acts = {
        key: (key) => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true })),
        scroll: (to) => { document.getElementById('list').scrollTop = to; },
        find: (text) => set('find', text),
        order: (name) => set('order', name),
        tab: (name) => showTab(name),
    };
    acts[act](argument);
    // Until what was asked for last is there, and has been painted.
    do await frame(); while (document.getElementById('detail').dataset.shown !== String(serial));
    await frame();
    return performance.now() - started;
}"""


def test_ten_thousand_trajectories_stay_quick(opened: Open) -> None:
    rows = [
        make_row(
            str(group), index, iteration=1 + group // 25, success=index % 3 == 0, **{"return": float(index % 3)},
            turns=[make_turn(number, sampled=20, prompt=30) for number in range(6)],
        )
        for group in range(1250)
        for index in range(8)
    ]  # fmt: skip
    shown = opened(
        make_source(*rows, results=[{"training_iteration": i, "env_runners/success_mean": 0.5} for i in range(500)])
    )
    assert shown.text_content("#count") == "10,000 of 10,000 trajectories"
    assert shown.locator("#list .row").count() < 100
    actions = {
        "next trajectory": [("key", "ArrowDown")] * 15,
        "a page further": [("key", "PageDown")] * 15,
        "next group side by side": [("key", "]")] * 7,
        "to the end and back": [("key", "End"), ("key", "Home")] * 3,
        "scrolling": [("scroll", place * 20_000) for place in range(10)],
        "outcome": [("key", key) for key in "231423"] + [("key", "1")],
        "find": [("find", text) for text in ("1", "12", "124", "1249", "")],
        "order": [("order", name) for name in ("spread", "low", "high", "time")],
        "colour": [("key", key) for key in "ralra"],
        "context tokens": [("key", "m")] * 4,
        "curves and back": [("tab", "curves"), ("tab", "trajectories")] * 3,
    }
    took = {what: [shown.evaluate(_TIMED, list(act)) for act in acts] for what, acts in actions.items()}
    for what, times in took.items():
        print(f"{what:<24} median {statistics.median(times):5.0f} ms, longest {max(times):5.0f} ms, of {len(times)}")
    slow = {what: times for what, times in took.items() if statistics.median(times) > LONGEST_MS}
    assert not slow


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_cut_off_and_text_is_readable(opened: Open, scheme: str, width: int) -> None:
    shown = opened(
        make_source(make_row(), results=[{"training_iteration": 1, "env_runners/success_mean": 0.5}]),
        color_scheme=scheme,
        viewport={"width": width, "height": 800},
    )
    _detail(shown)
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
    contrast = shown.evaluate(
        """() => {
            const light = (colour) => {
                const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255);
                const [r, g, b] = parts.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const ground = (e) => { for (; e; e = e.parentElement) {
                const c = getComputedStyle(e).backgroundColor; if (!c.endsWith(', 0)')) return c; } };
            const all = document.querySelectorAll('.row span, .facts, .text, .turn h3 span, .chip');
            return Math.min(...[...all].map((e) => {
                const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
                return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            }));
        }"""
    )
    assert contrast >= 4.5  # WCAG AA
