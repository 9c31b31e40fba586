"""report.html: the page is safe whatever files are called, and does what it says in a real browser."""

import base64
import functools
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from digits_steps import rows_of
from PIL import Image

from utils import report
from utils.analysis import health
from utils.report import page as pages
from utils.report import thumbnails, words
from utils.report.content import choose_sample, cluster_cards, image_columns, page_head
from utils.report.page import render
from workflows.cluster_names import read_names

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
HOSTILE = [
    "<img src=x onerror=window.hacked=1>.jpg",
    '"></script><script>window.hacked=1</script>.jpg',
    "javascript:window.hacked=1",
    "<!--<script>",
    "{{ 7 * 7 }}{% raw %}.jpg",
    "\u202egpj.exe",
    "&lt;b&gt;&amp;.jpg",
    'a,"b"\u2028.jpg',
    "=1+1",
    "x" * 300 + ".jpg",
    "with space/ü 100% #1?.jpg",
]
NUMBERS = [
    {"clusters": k, "modularity": 0.5, "silhouette": 0.25, "stability": 1, "smallest": 9, "largest": 1234}
    for k in (4, 5, 7)
]
CLASSES = ["cats", "<b>dogs</b>", "y" * 300]


class Colors:
    """Images, each of a color of its own."""

    def __init__(self, side):
        self.side = side

    def raw(self, row):
        color = torch.tensor([row * 37 % 256, row * 11 % 256, row * 5 % 256], dtype=torch.uint8)
        return color[:, None, None].expand(3, self.side, self.side)


def bare(count=300, clusters=5, side=32):
    """Content without labels, copies, pairs and so on; the last cluster is empty."""
    rows, full, draw = torch.arange(count), clusters - 1, torch.Generator().manual_seed(0)
    names = [f"folder/image {row}.jpg" for row in range(count)]
    confidence = (0.3 + 0.6999 * torch.rand(count, generator=draw)).round(decimals=4)
    found = report.Assignment(
        cluster=rows % full,
        confidence=confidence,
        runner_up=(rows + 1) % full,
        runner_up_confidence=(1 - confidence) / 2,
        prototype_similarity=confidence,
        neighbors=(rows[:, None] + torch.arange(1, 5)) % count,
        unlike=100 * confidence,
        first=rows,
        near_duplicate_of=torch.full((count,), -1),
        near_duplicate_similarity=confidence,
    )
    figures = {**found.figures(clusters), "neighbors": {"verdict": "go", "by_chance": 0.1}}
    context = report.ReportContext("photos", Path("results/photos"), {}, health.SCAN_ADVICE)
    sample, places = choose_sample(count, {}), torch.rand(count, 2, generator=draw)
    return {
        **page_head(names, found, figures, context),
        **dict.fromkeys(("borderline", "pairs", "copies", "near", "outliers"), []),
        "clusters": cluster_cards(found, [*range(full), None]),
        "labels": None,
        "sample": None,
        "images": image_columns(names, confidence, found, sample, places, context),
        "thumbnails": thumbnails.draw_sheets(Colors(side), range(count)),
        "map_method": "PCA",
    }


def full():
    """Content with everything, and hostile text wherever text comes from outside."""
    page = bare()
    images, bad = page["images"], HOSTILE[1]
    images["name"][: len(HOSTILE)] = HOSTILE
    images["label"] = [row % 3 for row in range(300)]
    images["copy_of"][21] = 20
    images["near_duplicate_of"][23] = 22
    images["part"] = [row // 4 % 2 for row in range(300)]
    for cluster in page["clusters"][:4]:
        cluster["parts"] = [38, 37]
    page["clusters"][0]["name"] = CLASSES[1]
    return {
        **page,
        "title": bad,
        "id": "4567",
        "clustering": "0123456789ab",
        "groups": [
            {"number": 0, "size": 225, "members": [0, {"number": 1, "size": 150, "members": [1, 3]}]},
            {"number": 1, "size": 75, "members": [2, 4]},
        ],
        "numbers": {"suggestion": 5, "alike": [5, 7], "numbers": NUMBERS},
        "about": [["images", HOSTILE[0]], [bad, "x" * 300]],
        "sample": 300,
        "num_images": 123_456,
        "verdicts": [
            {"level": "good", "text": "All is well.", "advice": ""},
            {"level": "warning", "text": bad, "advice": HOSTILE[0]},
            {"level": "bad", "text": "x" * 300, "advice": "--clusters 4"},
        ],
        "borderline": list(range(12)),
        "pairs": [{"clusters": [0, 1], "text": HOSTILE[0], "between": [0, 1], "most": [[4, 8], [5, 9]]}],
        "copies": [[20, 21]],
        "num_copies": 1,
        "near": [[22, 23, 0.991]],
        "num_near": 7,
        "outliers": [[30, 0.2], [31, 0.25]],
        "labels": {
            "what": "subfolders",
            "classes": CLASSES,
            "figures": [["ACC", "97.3 %"]],
            "columns": ["0", "1", "2", "3", "4", "(none)"],
            "matrix": [[0.5, 0.25, 0.25, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0.001, 0, 0.999, 0, 0, 0]],
            "wrong": [[0, HOSTILE[0]], [1, bad]],
            "note": bad,
        },
        "folder": "../my%20photos/",
        "map_method": bad,
    }


@functools.cache
def rendered(content):
    """The page of content given as JSON."""
    return render(json.loads(content))


# --- without a browser ---------------------------------------------------------------------------


class Elements(HTMLParser):
    """Tags with their attributes, and the text of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.raw = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.raw.append((tag, dict(attrs), ""))

    def handle_data(self, data):
        if self.cdata_elem:
            tag, attrs, text = self.raw[-1]
            self.raw[-1] = (tag, attrs, text + data)


@pytest.fixture(scope="module")
def elements():
    return Elements(render(full()))


def test_text_from_outside_makes_no_element(elements):
    kinds = [(tag, attrs.get("type")) for tag, attrs, _ in elements.raw]
    assert kinds == [("style", None), ("script", "application/json"), ("script", None)]
    text = render(full())
    assert text.startswith("<!doctype html>") and "{{ 7 * 7 }}" in text
    assert "<img" not in text and "<b>dogs" not in text
    assert "&lt;img src=x onerror=window.hacked=1&gt;.jpg" in text


def test_policy(elements):
    """Only the page's own style and script; and it has no attribute that this forbids."""
    (policy,) = (attrs["content"] for _, attrs in elements.tags if "http-equiv" in attrs)
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    for tag, attrs, text in elements.raw:
        if "type" not in attrs:
            expected = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert rules[f"{tag}-src"] == f"'sha256-{expected}'"
    assert rules.keys() == {"default-src", "img-src", "style-src", "script-src", "base-uri", "form-action"}
    assert rules["default-src"] == "'none'"
    names = {name for _, attrs in elements.tags for name in attrs}
    assert not {name for name in names if name == "style" or name.startswith("on")}
    links = [attrs["href"] for tag, attrs in elements.tags if tag == "a" and "href" in attrs]
    assert links and all(link.startswith("#") for link in links)


def test_ids(elements):
    ids = [attrs["id"] for _, attrs in elements.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in elements.tags:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert set(attrs.get(name, "").split()) <= set(ids)
        if attrs.get("href", "#")[1:]:
            assert attrs["href"][1:] in ids


def test_data(elements):
    (text,) = (text for _, attrs, text in elements.raw if "type" in attrs)
    data = json.loads(text)
    content = full()
    assert data["images"] == content["images"]
    assert data["thumbnails"] == content["thumbnails"]
    assert [cluster["name"] for cluster in data["clusters"]] == [CLASSES[1], None, None, None, None]
    content["images"]["x"][3] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        render(content)


def test_words():
    shares = 0, 0.00001, 0.004, 0.125, 0.5, 0.973, 0.9999, 1
    texts = ["0 %", "<0.1 %", "0.4 %", "13 %", "50 %", "97 %", "99.9 %", "100 %"]
    assert [words.percent(share) for share in shares] == texts
    assert [words.plural(count, "image") for count in (1, 12345)] == ["1 image", "12,345 images"]


def test_bars():
    bars = pages.bars_of([0, 1, 0, 4], below=0.5)
    assert [(bar["index"], bar["count"], bar["height"], bar["unsure"]) for bar in bars] == [
        (1, 1, 10.8, True),
        (3, 4, 40, False),
    ]
    assert bars[1]["range"] == "75 to 100\xa0%"


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright (requirements-test.txt)")
    names = ("chromium", "google-chrome", "chromium-browser")
    program = next(filter(None, map(shutil.which, names)), None)
    if not program:
        pytest.skip(f"needs one of {', '.join(names)}")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Function content -> the page in the browser; in the end it must have been quiet, and not gone out."""
    contexts, noise, requests = [], [], []

    def answer(dialog):
        if dialog.type != "beforeunload":
            noise.append(dialog.message)
        dialog.accept()

    def open_page(content, **options):
        path = tmp_path / f"{content['id']}.html"
        path.write_text(rendered(json.dumps(content)), encoding="utf-8")
        if not contexts or options:
            contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: noise.append(message.text))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("dialog", answer)
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        for page in context.pages:
            assert page.evaluate("window.hacked") is None
        context.close()
    assert not noise
    assert not [url for url in requests if not url.startswith(("file:", "blob:", "data:image/"))]
    pages = {path.as_uri() for path in tmp_path.glob("*.html")}
    assert {url for url in requests if url.startswith("file:")} <= pages


def count_of(page):
    return page.locator("#shown-count").inner_text()


def each(page, selector, expression):
    """The value of a JavaScript expression of `element`, for each element."""
    return page.locator(selector).evaluate_all(f"(found) => found.map((element) => {expression})")


def settled(page):
    """Wait for what the next frame does."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")


def downloaded(page, button):
    with page.expect_download() as download:
        page.locator(button).first.click()
    return download.value


@pytest.mark.parametrize("content", [full, bare])
@pytest.mark.parametrize("width", [400, 1400])
def test_width_and_links(visit, content, width):
    """Nothing is wider than the window, and links lead to their headings."""
    page = visit(content(), viewport={"width": width, "height": 700}, reduced_motion="reduce")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for link in page.locator("nav a").all():
        link.click()
        settled(page)
        top = page.locator(link.get_attribute("href")).bounding_box()["y"]
        assert -5 < top < 200 or page.evaluate("scrollY + innerHeight >= document.body.scrollHeight - 2")
    page.locator("#gallery .thumb").nth(9).click()
    box = page.locator("#detail").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    assert page.evaluate("dialog.scrollWidth <= dialog.clientWidth")


def test_sections_headings_and_labels(visit):
    optional = {"borderline", "pairs", "copies", "outliers", "labels"}
    for content, expected in ((bare(), set()), (full(), optional)):
        page = visit(content)
        found = each(page, "main > section", "element.id")
        assert set(found) - {"summary", "explore", "clusters"} == expected
        assert each(page, "nav a", "element.hash.slice(1)") == found
    levels = each(page, "main :is(h1, h2, h3, h4)", "Number(element.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    page.locator("#gallery .thumb").first.click()
    nameless = (
        "element.hidden || element.textContent.trim() || element.labels?.length || element.ariaLabel "
        "|| element.hasAttribute('aria-labelledby') ? '' : element.outerHTML"
    )
    controls = each(page, "button, input, select, a, canvas, [role=region]", nameless)
    assert len(controls) > 200 and not any(controls)


def test_colors_and_numbers(visit):
    page = visit(bare(10))
    brightness = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness.append(sum(map(int, re.findall(r"\d+", color))))
    assert brightness[0] > 600 > 100 > brightness[1]
    shares = [0, 0.00001, 0.004, 0.0025, 0.0099, 0.01, 0.123, 0.125, 0.5, 0.99, 0.993, 0.9999, 1]
    found = page.evaluate("(shares) => shares.map(percent)", shares)  # as the template writes them
    assert found == [words.percent(share).replace(" ", "\xa0") for share in shares]


def test_clusters(visit):
    """Their cards and their order; of many, those near the window are filled."""
    content = bare()
    content["clusters"][2].update(size=1000, unsure=1)
    page = visit(content)
    assert page.locator("#cluster-3 .thumb").count() == 19
    assert "No image is in this cluster" in page.locator("#cluster-4").inner_text()
    page.locator("#order").select_option("size")
    for items in ("#size-list > li", "#cards > article"):
        order = each(page, items, "Number(element.dataset.cluster)")
        assert order[0] == 2 and order[-1] == 4
    page = visit(bare(5000, clusters=250, side=8), viewport={"width": 1000, "height": 600})
    assert count_of(page) == "5,000 of 5,000 images"
    assert page.locator("#gallery .thumb").count() == 200
    assert page.locator("#cluster-200 .thumb").count() == 0
    page.locator("#cluster-200").scroll_into_view_if_needed()
    page.locator("#cluster-200 .thumb").last.wait_for()
    page.locator("#cluster-200 .thumb").first.click()
    assert page.locator("#detail").is_visible()
    assert page.evaluate("map.packed.length") > 50


def test_thumbnails_show_their_image(visit, monkeypatch):
    monkeypatch.setattr(thumbnails, "SHEET_SIDE", 11 * 32)
    page = visit(bare())
    for row in (0, 17, 130):  # of other lines, and of another sheet
        place = page.locator(f"#gallery .thumb[data-row='{row}']")
        place.scroll_into_view_if_needed()
        box = place.bounding_box()
        settled(page)
        where = place.evaluate("element => getComputedStyle(element).backgroundPosition")
        shot = Image.open(io.BytesIO(page.screenshot(clip={**box, "height": box["width"]}))).convert("RGB")
        expected = (row * 37 % 256, row * 11 % 256, row * 5 % 256)
        middle = shot.getpixel((shot.width // 2, shot.height // 2))
        assert all(abs(a - b) < 12 for a, b in zip(middle, expected, strict=True))
        place.hover()
        assert where != "0% 0%"
        assert place.evaluate("element => getComputedStyle(element).backgroundPosition") == where


def test_filter(visit):
    content = full()
    images = content["images"]
    images["confidence"][14] = 0.8  # the upper bound, which is excluded
    images["confidence"][18] = 0.5  # the lower one, which is not
    page = visit(content)
    assert count_of(page) == "300 of 300 images"
    page.locator("#in-cluster").select_option("2")
    page.locator("#search").fill("IMAGE 1")
    page.locator("#from").fill("50")
    page.locator("#to").fill("80")
    settled(page)
    columns = zip(images["cluster"], images["name"], images["confidence"], strict=True)
    expected = [
        row for row, (c, name, p) in enumerate(columns) if c == 2 and "image 1" in name and 0.5 <= p < 0.8
    ]
    assert 3 < len(expected) < 60 and 18 in expected and 14 not in expected
    assert count_of(page) == f"{len(expected)} of 300 images"
    assert each(page, "#gallery .thumb", "Number(element.dataset.row)") == expected
    assert page.evaluate("passes.reduce((sum, pass) => sum + pass)") == len(expected)
    assert page.locator(".chip[aria-pressed=true]").get_attribute("data-cluster") == "2"
    page.locator("#gallery-order").select_option("least")
    settled(page)
    least = min(expected, key=lambda row: images["confidence"][row])
    assert page.locator("#gallery .thumb").first.get_attribute("data-row") == str(least)
    page.locator("#search").fill("no such file")
    settled(page)
    assert count_of(page) == "0 of 300 images; nothing matches the filter"
    page.locator("#filters [type=reset]").click()
    page.locator("#shown-count", has_text="300 of 300").wait_for()
    page.locator(".tiles a").first.click()  # links to filters
    below = sum(value < 0.8 for value in images["confidence"])
    page.locator("#shown-count", has_text=f"{below} of 300").wait_for()
    assert page.locator("#gallery-order").input_value() == "least"
    page.locator("#cluster-1 .all a").click()
    page.locator("#shown-count", has_text="75 of 300").wait_for()
    assert page.locator("#gallery-order").input_value() == "most"
    page.locator(".chip").nth(1).click()
    page.locator("#shown-count", has_text="300 of 300").wait_for()
    assert page.locator("#gallery .thumb").count() == 200  # the rest when they are near
    page.locator("#gallery").evaluate("(gallery) => { gallery.scrollTop = gallery.scrollHeight; }")
    page.locator("#gallery .thumb").nth(299).wait_for()
    assert page.locator("#more").is_hidden()


def test_names(visit, tmp_path):
    page = visit(full())
    assert page.locator("#title-0").text_content() == f"{CLASSES[1]} (0)"  # came with the clusters
    page.locator("input[data-cluster='0']").fill("")
    page.locator("input[data-cluster='1']").focus()
    page.reload()
    assert page.locator("#title-0").text_content() == "Cluster 0"
    typed = ['big, "fat" cats', "  ", "=1+1", "a\tb\u2028c", HOSTILE[1]]
    for cluster, name in enumerate(typed):
        page.locator(f"input[data-cluster='{cluster}']").fill(name)
    download = downloaded(page, ".save-names")
    assert download.suggested_filename == "names.csv"
    download.save_as(tmp_path / "names.csv")
    assert read_names(tmp_path / "names.csv", 5) == [typed[0], "1", "=1+1", "a b c", typed[4]]
    assert {row["clustering"] for row in rows_of(tmp_path / "names.csv")} == {"0123456789ab"}
    places = each(page, "[data-name='0']", "element.textContent")
    assert len(places) > 5 and set(places) == {f"{typed[0]} (0)"}
    assert page.locator(".named").first.inner_text() == "4 of 5 named; saved"
    page.locator("input[data-cluster='2']").fill(typed[0])
    assert page.locator(".named").first.inner_text() == "4 of 5 named, 3 different names"
    thumb = page.locator("#gallery .thumb").first
    assert f"{typed[0]} (0)" in thumb.get_attribute("aria-label")
    thumb.click()
    assert f"{typed[0]} (0)" in page.locator("#facts").inner_text()
    page.reload()
    assert page.locator("input[data-cluster='0']").input_value() == typed[0]
    assert page.locator("#title-0").text_content() == f"{typed[0]} (0)"
    page = visit(bare())
    assert page.locator("input[data-cluster='0']").input_value() == ""
    for kept in ("no JSON", '{"0": 1}', "[1, null, {}]"):  # storage that cannot be used
        page.evaluate("(kept) => localStorage.setItem(namesKey, kept)", kept)
        page.reload()
        assert page.locator("#title-1").text_content() == "Cluster 1"


def test_selection(visit, tmp_path):
    content = full()
    page = visit(content)
    assert page.locator("#basket").is_hidden()
    thumbs = page.locator("#gallery .thumb")
    thumbs.nth(7).focus()
    page.keyboard.press("s")
    for row in (9, 1, 1):  # the second time it is taken out again
        thumbs.nth(row).click(modifiers=["Control"])
    thumbs.nth(5).click()
    page.keyboard.press("s")
    assert page.locator("#select").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    assert page.locator("#selected-count").inner_text() == "3 selected"
    assert thumbs.nth(5).get_attribute("aria-label").endswith(", selected")
    download = downloaded(page, "#save-selection")
    assert download.suggested_filename == "selection.csv"
    download.save_as(tmp_path / "selection.csv")
    rows, images = rows_of(tmp_path / "selection.csv"), content["images"]
    assert [row["file"] for row in rows] == [images["name"][row] for row in (5, 7, 9)]
    assert [int(row["cluster"]) for row in rows] == [1, 3, 1]
    assert [float(row["confidence"]) for row in rows] == [images["confidence"][row] for row in (5, 7, 9)]
    page.locator("#only-selected").check()
    settled(page)
    assert count_of(page) == "3 of 300 images"
    page.locator("#clear-selection").click()
    assert page.locator("#basket").is_hidden()
    page.locator("#filters [type=reset]").click()
    page.locator("#in-cluster").select_option("1")
    settled(page)
    page.locator("#select-shown").click()
    assert page.locator("#selected-count").inner_text() == "75 selected"


def corrections_of(page, tmp_path):
    download = downloaded(page, "#save-corrections")
    assert download.suggested_filename == "corrections.csv"
    download.save_as(tmp_path / "corrections.csv")
    rows = rows_of(tmp_path / "corrections.csv")
    assert {row["clustering"] for row in rows} == {"0123456789ab"}
    return [(row["action"], row["what"], row["to"]) for row in rows]


def select(page, *rows):
    for row in rows:
        page.locator(f"#gallery .thumb[data-row='{row}']").click(modifiers=["Control"])


def move(page, to, *rows):
    select(page, *rows)
    page.locator("#basket select").select_option(label=to)
    page.locator("#basket .move button").click()


def sizes_of(page):
    """The sizes of the clusters that are shown, as the list and the cards say them."""
    shown = [
        each(page, f"{items}:not([hidden])", f"[element.dataset.cluster, {size}].join(': ')")
        for items, size in (
            ("#size-list > li", "element.querySelector('.figure').textContent"),
            ("#cards > article", "element.querySelector('.count').textContent.split(' ')[0]"),
        )
    ]
    assert shown[0] == shown[1]
    return dict(entry.split(": ") for entry in shown[0])


def test_corrections(visit, tmp_path):
    """Moves, to new clusters and to none, a merge, a split; undone, saved, and there again after a reload."""
    content = full()
    content["num_images"], content["clusters"][1]["size"] = 310, 85  # ten are not in the sample
    content["clusters"][1]["parts"] = [38, 47]
    name = content["images"]["name"]
    page = visit(content)
    assert page.locator("#corrections").is_hidden()
    assert sizes_of(page) == {"0": "75", "1": "85", "2": "75", "3": "75", "4": "0"}
    move(page, "Cluster 4", 0, 7)
    assert page.locator("#basket").is_hidden() and page.locator("#cluster-4 .empty").is_hidden()
    assert each(page, "#cluster-4 .thumb", "element.dataset.row").count("7") == 2  # prototype, most confident
    assert page.locator("#gallery .thumb.corrected").count() == 2
    assert page.locator("#gallery .thumb").nth(7).get_attribute("aria-label").endswith(", corrected")
    assert page.evaluate("images.cluster[7]") == 4  # what the map, too, takes its colors from
    page.locator("#gallery .thumb").nth(9).click()  # from the dialog
    page.locator("#detail select").focus()
    for key in ("s", "ArrowRight"):  # the select's own
        page.keyboard.press(key)
    assert page.locator("#select").get_attribute("aria-pressed") == "false"
    assert page.locator("#detail-name").inner_text() == name[9]
    page.locator("#detail select").select_option(label="a new cluster")
    page.locator("#detail .move button").click()
    assert page.locator("#facts").inner_text().startswith("Corrected\nNew cluster 1 (new)\nBy the model\n")
    page.keyboard.press("Escape")
    page.locator("input[data-cluster='6']").fill('odd, "ones"')
    move(page, 'odd, "ones" (new)', 10)
    move(page, "Belongs nowhere", 11)
    page.locator("#cluster-1 .correct").click()
    assert page.locator("#part-sizes").inner_text().endswith(": 37 and 47 images")  # without image 9
    page.locator("#split").click()
    in_all = {"0": "74", "1": "37", "2": "74", "3": "73", "4": "2", "5": "1", "6": "2", "7": "47"}
    assert sizes_of(page) == in_all
    page.locator("#pairs .correct").click()
    page.locator("#merge").click()
    assert page.locator("#pairs .correct").is_hidden()
    assert sizes_of(page) == {**{k: v for k, v in in_all.items() if k != "0"}, "1": "111"}
    expected = [
        ("move", name[0], "4"), ("move", name[7], "4"), ("move", name[9], 'odd, "ones"'),
        ("move", name[10], 'odd, "ones"'), ("move", name[11], "none"),
        ("split", "1", "New cluster 2 of 0123"), ("merge", "0", "1"),
    ]  # fmt: skip
    assert page.locator("#where-to").is_hidden()
    assert corrections_of(page, tmp_path) == expected
    assert "6 corrections saved. Put corrections.csv into" in page.locator("#corrections").inner_text()
    page.locator("#undo").click()
    page.keyboard.press("Control+z")
    assert sizes_of(page) == {**{k: v for k, v in in_all.items() if k != "7"}, "1": "84"}
    assert page.locator("#where-to").is_hidden()  # the file says something else
    with page.expect_event("dialog", lambda dialog: dialog.type == "beforeunload"):
        page.reload()
    assert corrections_of(page, tmp_path) == expected[:5]
    page.reload()
    assert page.locator("#where-to").is_visible()  # and nobody was asked
    assert page.locator("#title-6").text_content() == 'odd, "ones" (new)'
    for _ in range(4):
        page.locator("#undo").click()
    assert page.locator("#corrections").is_hidden() and page.locator(".corrected").count() == 0
    assert sizes_of(page) == {"0": "75", "1": "85", "2": "75", "3": "75", "4": "0"}
    assert page.locator("#cluster-1 .confidence").is_visible()
    for kept in ("no JSON", '{"corrections": 1}', '{"corrections": [{"to": 1, "files": ["gone"]}, null]}'):
        page.evaluate("(kept) => localStorage.setItem(correctionsKey, kept)", kept)
        page.reload()
        assert page.locator("#corrections").is_hidden() and count_of(page) == "300 of 300 images"


def test_corrected_before(visit, tmp_path):
    """What an earlier corrections.csv said is marked, and an image of none can be moved back."""
    content = full()
    content["images"]["corrected"] = ["none" if row == 1 else "yes" * (row == 2) for row in range(300)]
    page = visit(content)
    assert page.locator("#corrections").is_hidden()
    assert sizes_of(page) == {"0": "75", "1": "74", "2": "75", "3": "75", "4": "0", "5": "1"}
    assert each(page, "#gallery .corrected", "element.dataset.row") == ["1", "2"]
    move(page, "a new cluster", 1)
    page.locator("input[data-cluster='6']").fill("None")  # which would mean something else in the table
    assert corrections_of(page, tmp_path) == [("move", content["images"]["name"][1], "Cluster None")]
    move(page, "Cluster 1", 1)
    assert sizes_of(page) == {"0": "75", "1": "75", "2": "75", "3": "75", "4": "0"}


def test_names_given_before(visit):
    """Names of names.csv are there; those typed before that file changed are not."""
    page = visit(full() | {"names": ["birds", "1", None, "=1+1", HOSTILE[1]]})
    values = each(page, "input[data-cluster]", "element.value")
    assert values == ["birds", "", "", "=1+1", HOSTILE[1]]
    page.locator("input[data-cluster='0']").fill("geese")
    page = visit(full() | {"names": ["ducks", "1", None, "=1+1", HOSTILE[1]]})
    assert page.locator("#title-0").text_content() == "ducks (0)"


def test_groups_and_numbers(visit):
    page = visit(full())
    assert "Group 1, 150 images" in page.locator(".tree").inner_text()
    assert each(page, ".tree a", "element.textContent")[1:3] == ["Cluster 1", "Cluster 3"]
    page.locator("#summary summary").first.click()
    rows = page.locator("#summary tbody tr").all_inner_texts()
    assert rows[1:] == [
        f"{k}\t9 to 1,234\t0.500\t0.250\t1.000\t{what}" for k, what in ((5, "taken"), (7, "may be as good"))
    ]


def test_dialog(visit):
    content = full()
    names = content["images"]["name"]
    page = visit(content)
    title, dialog = page.locator("#detail-name"), page.locator("#detail")
    page.locator("#gallery .thumb").nth(20).click()
    assert title.inner_text() == names[20]
    page.keyboard.press("ArrowRight")
    assert title.inner_text() == names[21]
    assert page.locator("#position").inner_text() == "22 of 300"
    assert f"Copy of\n{names[20]}" in page.locator("#facts").inner_text()
    assert f"Class\n{CLASSES[0]}" in page.locator("#facts").inner_text()
    page.locator("#neighbors .thumb").nth(2).click()
    assert title.inner_text() == names[24]
    assert page.locator("#position").inner_text() == "3 of 4"
    page.keyboard.press("ArrowLeft")
    assert title.inner_text() == names[23]
    assert f"Near duplicate of\n{names[22]}" in page.locator("#facts").inner_text()
    page.locator("#facts button").click()
    assert title.inner_text() == names[22]
    page.locator("#back").click()
    page.locator("#back").click()
    assert title.inner_text() == names[21]
    assert page.locator("#back").is_hidden()
    page.locator("#previous").click()
    assert title.inner_text() == names[20]
    page.keyboard.press("Escape")
    assert dialog.is_hidden()
    assert page.evaluate("document.activeElement.dataset.row") == "20"
    page.keyboard.press("Enter")
    assert title.inner_text() == names[20]
    page.mouse.click(3, 300)  # beside it
    assert dialog.is_hidden()
    page.locator("#outliers").scroll_into_view_if_needed()
    page.locator("#outliers .thumb").first.click()
    page.keyboard.press("ArrowLeft")  # nothing is before the first
    assert page.locator("#position").inner_text() == "1 of 2"
    page.locator("#next").click()
    page.keyboard.press("Enter")
    assert page.locator("#position").inner_text() == "2 of 2"
    assert page.locator("#next").get_attribute("aria-disabled") == "true"


def test_hostile_names_are_shown_and_linked_as_they_are(visit):
    page = visit(full())
    page.locator("#gallery .thumb").first.click()
    links = []
    for name in HOSTILE:
        assert page.locator("#detail-name").text_content() == name
        links.append(page.locator("#open").get_attribute("href"))
        page.keyboard.press("ArrowRight")
    assert [links[row] for row in (0, 2, 10)] == [
        "../my%20photos/%3Cimg%20src%3Dx%20onerror%3Dwindow.hacked%3D1%3E.jpg",
        "../my%20photos/javascript%3Awindow.hacked%3D1",
        "../my%20photos/with%20space/%C3%BC%20100%25%20%231%3F.jpg",
    ]
    assert page.title() == f"{HOSTILE[1]}: 5 clusters"
    assert page.locator("h1").text_content() == HOSTILE[1]
    assert HOSTILE[0] in page.locator("#labels .figures").text_content()
    assert page.locator("img").count() == 0
    page = visit(bare())  # without the images' folder
    page.locator("#gallery .thumb").first.click()
    assert page.locator("#open").is_hidden()


def on_map(page, row):
    """The place of an image in the window."""
    x, y = page.evaluate("(row) => toScreen(row)", row)
    box = page.locator("#map canvas").bounding_box()
    return box["x"] + x, box["y"] + y


def test_thumbnails_on_the_map_do_not_overlap(visit):
    content = bare()
    page = visit(content)
    prototypes = [cluster["prototype"] for cluster in content["clusters"][:4]]
    x, y = content["images"]["x"], content["images"]["y"]
    before = 0
    for zoom in (1, 3, 9):
        page.evaluate("(zoomed) => { zoom(zoomed / map.zoom); }", zoom)
        settled(page)
        packed, size, scale = page.evaluate("[map.packed, map.size, scale()]")
        assert packed[0] == prototypes[0]
        for a in packed:
            for b in packed:
                apart = max(abs(x[a] - x[b]), abs(y[a] - y[b])) * scale
                assert a == b or apart >= size
        for row in range(300):  # as many as fit
            near = [max(abs(x[row] - x[b]), abs(y[row] - y[b])) * scale < size + 2 for b in packed]
            assert any(near)
        assert len(packed) > before
        before = len(packed)
    page.locator("#in-cluster").select_option("3")
    settled(page)
    settled(page)
    assert {row % 4 for row in page.evaluate("map.packed")} == {3}


def test_map(visit):
    content = bare()
    page = visit(content, viewport={"width": 1400, "height": 1000})
    page.locator("#map").scroll_into_view_if_needed()
    settled(page)
    row = content["clusters"][2]["prototype"]
    page.mouse.move(*on_map(page, row))
    assert content["images"]["name"][row] in page.locator("#tip").inner_text()
    page.mouse.click(*on_map(page, row))
    assert page.locator("#detail-name").inner_text() == content["images"]["name"][row]
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.tagName") == "CANVAS"
    view = "[map.x, map.y, map.zoom]"
    x, y = on_map(page, 5)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -300)
    page.evaluate("() => new Promise((done) => setTimeout(done, 50))")
    zoomed = page.evaluate(view)
    assert zoomed[2] > 1.5
    assert on_map(page, 5) == pytest.approx((x, y), abs=1)  # what is under the pointer stays there
    page.mouse.down()
    page.mouse.move(x + 40, y + 30, steps=4)
    page.mouse.up()
    assert on_map(page, 5) == pytest.approx((x + 40, y + 30), abs=5)
    assert page.locator("#detail").is_hidden()
    page.locator("[data-zoom=reset]").click()
    assert page.evaluate(view) == [0.5, 0.5, 1]
    page.locator("[data-zoom=in]").click()
    page.locator("[data-zoom=out]").click()
    assert page.evaluate("map.zoom") == pytest.approx(1)
    page.locator("#map canvas").focus()
    for key in ("+", "+", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    moved = page.evaluate(view)
    assert moved[0] > 0.5 and moved[1] > 0.5 and moved[2] > 2
    assert page.locator("#tip").is_visible()
    name = page.locator("#tip .file").inner_text()
    page.keyboard.press("Enter")
    assert page.locator("#detail-name").inner_text() == name


def test_pinch(visit):
    page = visit(bare())
    page.evaluate(
        """() => {
            const canvas = document.querySelector('#map canvas');
            canvas.setPointerCapture = () => {};
            const send = (type, pointerId, x, y) => {
                const box = canvas.getBoundingClientRect();
                const at = { clientX: box.x + x, clientY: box.y + y };
                canvas.dispatchEvent(new PointerEvent(type, { pointerId, button: 0, ...at }));
            };
            send('pointerdown', 1, 100, 100);
            send('pointerdown', 2, 200, 100);
            send('pointermove', 2, 300, 100);
            send('pointerup', 1, 100, 100);
            send('pointerup', 2, 300, 100);
        }"""
    )
    assert page.evaluate("map.zoom") == pytest.approx(2, rel=0.02)
    assert page.locator("#detail").is_hidden()


def test_large_matrix(visit):
    content = bare()
    content["labels"] = {"what": "true classes", "figures": [], "wrong": [], "note": ""}
    content["labels"] |= {
        "classes": [f"class {row}" for row in range(40)],
        "columns": [*map(str, range(5)), *["(none)"] * 30],
        "matrix": [[float(row == column) for column in range(35)] for row in range(40)],
    }
    row = visit(content).locator("#labels tbody tr").nth(3).inner_text()
    assert row.split("\t") == ["class 3", "Cluster 3", "100\xa0%"]
