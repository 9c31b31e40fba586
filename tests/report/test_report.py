"""clusters.csv and report.html: whether the right images are listed, and the counts are right."""

import base64
import io
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from digits_steps import rows_of
from PIL import Image

from utils import report
from utils.analysis import calibration, duplicates, health, metrics
from utils.analysis.prototypes import find_prototypes
from utils.files import KeptArrays, write_parquet
from utils.report import assignment, content, context, layout, thumbnails
from utils.report.verdicts import verdicts
from utils.report.words import percent

C = 4
GO = {"verdict": "go", "by_chance": 0.1}


class Dataset:
    """Images of one color each, which is the index of the image."""

    def __init__(self, n, hashes=None, names=None):
        self.n, self.hashes, self._names = n, hashes, names

    def __len__(self):
        return self.n

    def names(self):
        return self._names or [f"{i:05d}.png" for i in range(self.n)]

    def content_hashes(self):
        return self.hashes

    def content_digest(self):
        return str(self.hashes)

    def raw(self, index):
        return torch.full((3, 20, 20), index % 256, dtype=torch.uint8)


def blobs(n=200, c=C, seed=0):
    """Features of c groups, and probabilities by their distance from the middles of the groups."""
    draw = torch.Generator().manual_seed(seed)
    middles = torch.randn(c, 16, generator=draw)
    labels = torch.arange(n) % c
    features = middles[labels] + torch.randn(n, 16, generator=draw)
    return features, (-torch.cdist(features, middles)).softmax(1), labels


def assigned(dataset, features, probabilities):
    prototypes = find_prototypes(features, probabilities)
    return report.build_assignment(dataset, features, probabilities, prototypes), prototypes


def write(folder, dataset, features, probabilities, truth=None, part=None, **more):
    found, prototypes = assigned(dataset, features, probabilities)
    figures = {"prototypes": prototypes, "neighbors": GO, **more, **found.figures(probabilities.size(1))}
    if truth:
        known = truth[0] >= 0
        figures |= metrics.clustering_metrics(probabilities[known], truth[0][known], len(truth[1]))
    context = report.ReportContext(
        title="mine",
        results=Path("my results"),
        facts={"images": "here"},
        advice=health.SCAN_ADVICE,
        truth=truth and report.GroundTruth(*truth),
        columns={"part": part} if part else {},
    )
    report.write_report(folder, dataset, features, found, figures, context)
    return found, figures


@pytest.fixture
def pages(monkeypatch):
    """The contents that were rendered."""
    kept = []
    monkeypatch.setattr(report, "render", lambda page: kept.append(page) or "page")
    return kept


@pytest.fixture(autouse=True)
def quick_map(monkeypatch):
    """The map of most tests: the first two features."""
    monkeypatch.setattr(report, "lay_out", lambda features, *_: (layout._scaled(features[:, :2]), "none"))


# --- the lists -----------------------------------------------------------------------------------


def test_clusters_and_unsure_images(tmp_path, pages):
    features, probabilities, _ = blobs()
    write(tmp_path, Dataset(200), features, probabilities)
    (page,) = pages
    confidence, clusters = probabilities.max(1)
    for number, card in enumerate(page["clusters"]):
        members = (clusters == number).nonzero().flatten().tolist()
        by_confidence = sorted(members, key=lambda i: -confidence[i])
        assert card["size"] == len(members) == sum(card["histogram"])
        assert card["most"] == by_confidence[: content.MOST]
        assert card["least"] == by_confidence[: -content.LEAST - 1 : -1]
        assert card["unsure"] == sum(confidence[members] < 0.8) and card["prototype"] in members
        assert card["confidence"] == pytest.approx(confidence[members].mean().item(), abs=1e-4)
        expected = torch.histc(confidence[members], content.HISTOGRAM_BINS, 0, 1).tolist()
        assert card["histogram"] == expected
    two = probabilities.topk(2, 1).values
    unsure = (confidence < 0.8).nonzero().flatten().tolist()
    assert page["borderline"] == sorted(unsure, key=lambda i: (two[i, 0] - two[i, 1]).item())
    assert page["unsure"] == {"below": 0.8, "count": len(unsure)} and 0 < len(unsure) < content.BORDERLINE


def test_clusters_that_share_neighbors(tmp_path, pages):
    """One group in two clusters: an image's neighbors are in either."""
    features, probabilities, labels = blobs(seed=1)
    split = (labels == 2) & (torch.arange(200) % 8 < 4)
    features[labels == 3] = features[labels == 0] + 0.01
    labels[labels == 3] = 0
    one_hot = F.one_hot(torch.where(split, 3, labels), C).float()
    found, _ = write(tmp_path, Dataset(200), features, one_hot)
    (pair,) = pages[0]["pairs"]
    a, b = pair["clusters"]
    assert {a, b} == {2, 3}
    expected = (found.cluster[found.neighbors[found.cluster == a]] == b).double().mean().item()
    assert pair["share"] == pytest.approx(expected)
    assert f"{percent(expected)} are in cluster {b}" in pair["text"]
    for i in pair["between"]:
        other = ({a, b} - {found.cluster[i].item()}).pop()
        assert other in found.cluster[found.neighbors[i]]
    assert [found.cluster[rows].unique().tolist() for rows in pair["most"]] == [[a], [b]]


def test_copies_near_duplicates_and_outliers(tmp_path, pages):
    features, probabilities, _ = blobs()
    features[[50, 60]], probabilities[[50, 60]] = features[[10]], probabilities[[10]]
    features[70] = features[20] + 1e-3
    features[99] = -features.mean(0) * 9
    hashes = ["same" if i in (10, 50, 60) else str(i) for i in range(200)]
    write(tmp_path, Dataset(200, hashes), features, probabilities)
    (page,) = pages
    assert page["copies"] == [[10, 50, 60]] and page["num_copies"] == 2
    first, second, similarity = page["near"][0]
    assert (first, second) == (20, 70) and similarity == pytest.approx(1, abs=1e-3)
    assert page["outliers"][0][0] == 99 and len(page["outliers"]) == content.OUTLIERS
    assert page["outliers"] == sorted(page["outliers"], key=lambda row: -row[1])
    assert page["outliers"][0][1] == pytest.approx(197 / 198)  # copies count once
    table = rows_of(tmp_path / "clusters.csv")
    assert [i for i, row in enumerate(table) if row["copy_of"] == "00010.png"] == [50, 60]
    assert table[99]["unlike"] == "99.49" and table[10]["unlike"] == table[50]["unlike"]
    assert table[70]["near_duplicate_of"] == "00020.png"


@pytest.fixture
def parquet():
    return pytest.importorskip("pyarrow.parquet")


@pytest.mark.usefixtures("pages")
def test_parquet_beside_the_table(tmp_path, parquet):
    features, probabilities, _ = blobs()
    for _ in range(2):  # it replaces its own
        write(tmp_path, Dataset(200, [str(i // 2) for i in range(200)]), features, probabilities)
        table, typed = rows_of(tmp_path / "clusters.csv"), parquet.read_table(tmp_path / "clusters.parquet")
        assert typed.column_names == list(table[0])
        for row, expected in zip(typed.to_pylist(), table, strict=True):
            assert (row["file"], row["copy_of"]) == (expected["file"], expected["copy_of"])
            assert row["cluster"] == int(expected["cluster"])
            assert row["confidence"] == float(expected["confidence"])


def test_other_parquet_files_are_not_replaced(tmp_path, parquet, caplog):
    (tmp_path / "t.csv").write_text('file,cluster,name\n0,1,"a\nb"\n01,,2024-01-01\n')
    write_parquet(tmp_path / "t.csv")
    rows = [
        (row["file"], row["cluster"], row["name"])
        for row in parquet.read_table(tmp_path / "t.parquet").to_pylist()
    ]
    assert rows == [("0", 1, "a\nb"), ("01", None, "2024-01-01")] and not caplog.messages
    (tmp_path / "t.parquet").rename(tmp_path / "mine.parquet")
    (tmp_path / "mine.csv").write_text("file\na\n")
    before = (tmp_path / "mine.parquet").read_bytes()
    write_parquet(tmp_path / "mine.csv")
    assert (tmp_path / "mine.parquet").read_bytes() == before
    assert "mine.parquet: not written (it exists, and was not made of mine.csv)" in caplog.messages[-1]


def test_neighbors_are_the_nearest_others():
    features, probabilities, _ = blobs(60)
    found, _ = assigned(Dataset(60), features, probabilities)
    normalized = F.normalize(features, dim=1)
    similarity = (normalized @ normalized.T).fill_diagonal_(-2)
    values, expected = similarity.topk(assignment.MAX_NEIGHBORS, 1)
    assert torch.equal(found.neighbors, expected)
    fifth = values[:, 4]
    share = (fifth[:, None] < fifth).double().mean(1) * 100
    torch.testing.assert_close(found.unlike, share, atol=2, rtol=0)


def test_equally_probable_clusters():
    """The cluster is that of argmax, everywhere."""
    probabilities = torch.tensor([[0.2, 0.4, 0.4], [0.4, 0.2, 0.4], [1 / 3, 1 / 3, 1 / 3]])
    found = report.build_assignment(Dataset(3), torch.eye(3), probabilities, [0, 0, 0])
    assert found.cluster.tolist() == probabilities.argmax(1).tolist()
    assert found.runner_up.tolist() == [2, 2, 1]


def test_two_images_and_one_of_a_kind():
    for hashes, k in ((None, 1), (["same", "same"], 0)):
        found = report.build_assignment(Dataset(2, hashes), torch.eye(2), torch.eye(2), [0, 1])
        assert found.neighbors.shape == (2, k)
        assert len(content.outliers(found)) == 2 * (k > 0)


# --- labels --------------------------------------------------------------------------------------


def test_what_labels_say(tmp_path, pages):
    features, probabilities, labels = blobs()
    labels[::10] = -1
    found, figures = write(tmp_path, Dataset(200), features, probabilities, (labels, list("abcd"), "folders"))
    page = pages[0]["labels"]
    clusters = found.cluster
    assert dict(figures["matches"]) == {i: i for i in range(C)}
    wrong = [i for i in range(200) if labels[i] >= 0 and clusters[i] != labels[i]]
    wrong = sorted(wrong, key=lambda i: -found.confidence[i])
    assert [i for i, _ in page["wrong"]] == wrong and wrong
    assert page["wrong"][0][1] == f"{'abcd'[labels[wrong[0]]]}, not {'abcd'[clusters[wrong[0]]]}"
    assert page["figures"][0] == ["ACC", f"{100 * figures['acc']:.1f} %"]
    assert page["note"] == "180 of the 200 images have a class; the others do not count."
    assert [card["name"] for card in pages[0]["clusters"]] == list("abcd")
    known = labels >= 0
    right, confidence = (clusters == labels)[known], found.confidence[known]
    error = calibration.expected_calibration_error(confidence, right)
    shares = [100 * right[part].double().mean() for part in (confidence >= 0.8, confidence < 0.8)]
    assert page["figures"][3:] == [
        ["expected calibration error", f"{100 * error:.1f} %"],
        ["sure images (≥ 0.8) that are right", f"{shares[0]:.1f} %"],
        ["other images that are right", f"{shares[1]:.1f} %"],
    ]
    assert pages[0]["images"]["label"] == labels.tolist()


def test_more_clusters_than_classes(tmp_path, pages):
    """A cluster without a match is judged by the class of most of its images."""
    features, probabilities, labels = blobs()
    write(tmp_path, Dataset(200), features, probabilities, (labels // 2, ["low", "high"], "folders"))
    assert [card["name"] for card in pages[0]["clusters"]] == ["low", "low", "high", "high"]
    page = pages[0]["labels"]
    assert "4 clusters for 2 classes" in page["note"] and page["figures"][3][0] == "ACC by majority vote"
    assert len(page["columns"]) == 4 and len(page["matrix"]) == 2


# --- more images than the page shows -------------------------------------------------------------


def test_a_sample_with_exact_counts(tmp_path, pages, monkeypatch):
    features, probabilities, labels = blobs(600)
    features[599] = features[11]
    hashes = ["same" if i in (11, 599) else str(i) for i in range(600)]
    truth = labels, list("abcd"), "folders"
    write(tmp_path / "..", Dataset(600, hashes), features, probabilities, truth)
    monkeypatch.setattr(content, "MAX_IMAGES", 300)
    write(tmp_path, Dataset(600, hashes), features, probabilities, truth)
    whole, page = pages
    names = page["images"]["name"]
    assert page["sample"] == len(names) == 300 and names == sorted(names)
    assert (page["num_images"], page["unsure"]) == (600, whole["unsure"])
    assert (page["num_copies"], whole["sample"]) == (1, None)
    indices = [int(name[:5]) for name in names]  # of the sample's images among all
    for card, full in zip(page["clusters"], whole["clusters"], strict=True):
        shortened = {"most": 0, "least": 0, "prototype": 0}
        assert card | shortened == full | shortened
        assert [indices[i] for i in card["most"]] == full["most"][: len(card["most"])]
        assert indices[card["prototype"]] == full["prototype"]
    assert [indices[i] for i in page["borderline"]] == whole["borderline"]
    assert [indices[i] for i, _ in page["outliers"]] == [i for i, _ in whole["outliers"]]
    first, copy = indices.index(11), indices.index(599)
    assert page["copies"] == [[first, copy]] and page["images"]["copy_of"][copy] == first
    normalized = F.normalize(features[indices], dim=1)
    similarity = (normalized @ normalized.T).fill_diagonal_(-2)
    similarity[:, copy] = -2  # a copy is nobody's neighbor
    similarity[copy, first] = -2
    neighbors = torch.tensor(page["images"]["neighbors"])
    torch.testing.assert_close(
        similarity.gather(1, neighbors), similarity.topk(assignment.MAX_NEIGHBORS, 1).values
    )
    assert [row["file"] for row in rows_of(tmp_path / "clusters.csv") if row["x"]] == names


# --- the files -----------------------------------------------------------------------------------


def test_the_whole_page(tmp_path):
    features, probabilities, labels = blobs(60)
    names = [f"<i>{i}</i>" for i in range(59)] + ["\udcff.png"]
    write(tmp_path, Dataset(60, names=names), features, probabilities, (labels, list("abcd"), "folders"))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "60 images" in page and "<i>" not in page and "http" not in page.replace("http-equiv", "")
    assert r"\\udcff.png" in page


@pytest.mark.parametrize(
    ("images", "url", "told"),
    [
        ("here/my photos", "../../my%20photos/", "my photos"),
        ("here/2024/photos", "../../2024/photos/", "2024/photos"),
        ("photos", "../../../photos/", "photos"),
        ("secret/photos", None, "photos"),
        ("here/somebody/photos", None, "photos"),  # the user's name
        ("here/results", "../", "results"),
    ],
)
def test_the_way_to_the_images(tmp_path, monkeypatch, images, url, told):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "somebody")
    assert report.relative_url(tmp_path / images, Path("results/photos")) == url
    assert context.told(tmp_path / images) == told


@pytest.mark.parametrize("name", ["render", "lay_out"])
def test_a_page_that_cannot_be_made_is_a_warning(tmp_path, monkeypatch, caplog, name):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(report, name, fail)
    features, probabilities, _ = blobs(60)
    (tmp_path / "report.html").write_text("old")
    write(tmp_path, Dataset(60), features, probabilities)
    assert "no page (OSError: no space left)" in caplog.text and not (tmp_path / "report.html").exists()
    clusters = [int(row["cluster"]) for row in rows_of(tmp_path / "clusters.csv")]
    assert clusters == probabilities.argmax(1).tolist()


# --- the map -------------------------------------------------------------------------------------


def test_groups_are_apart_on_the_map():
    features, _, labels = blobs()
    features[50:130:4] = features[50]  # more copies than neighbors
    places, method = layout.lay_out(features)
    assert method.startswith("neighbor layout") and places.shape == (200, 2) and places.dtype == torch.float32
    assert places.min() >= 0 and places.max() <= 1 and (places.amax(0) - places.amin(0)).min() > 0.99
    nearest = torch.cdist(places, places).fill_diagonal_(9).argmin(1)
    assert (labels[nearest] == labels).double().mean() > 0.93
    assert torch.equal(places, layout.lay_out(features)[0])


def test_a_map_is_kept(tmp_path):
    """Images keep their places, whichever come and go; new ones lie where they are like others."""
    features, _, labels = blobs()
    kept = KeptArrays(tmp_path / "kept.npz")
    places = layout.lay_out(features[:180], 0, kept)[0]
    kept.write()
    kept = KeptArrays(tmp_path / "kept.npz")
    assert torch.equal(layout.lay_out(features[:180], 0, kept)[0], places)
    grown = layout.lay_out(features[10:], 0, kept)[0]
    assert torch.equal(grown[:170], places[10:])
    nearest = torch.cdist(grown[170:], places).argmin(1)
    assert (labels[nearest] == labels[180:]).double().mean() > 0.8
    content = (tmp_path / "kept.npz").read_bytes()
    for damaged in (b"", b"PK", content[:-99], content[:200] + b"?" + content[201:]):
        (tmp_path / "kept.npz").write_bytes(damaged)
        assert not KeptArrays(tmp_path / "kept.npz").arrays


@pytest.mark.parametrize(
    "features", [torch.ones(1, 5), torch.eye(2), torch.ones(30, 5), torch.rand(30, 1) - 0.5, torch.eye(9)]
)
def test_maps_of_few_or_equal_images(features):
    places, method = layout.lay_out(features)
    assert method == "principal components" and places.shape == (len(features), 2)
    assert places.min() >= 0 and places.max() <= 1


# --- thumbnails ----------------------------------------------------------------------------------


def test_each_thumbnail_is_at_its_place(monkeypatch):
    monkeypatch.setattr(thumbnails, "SHEET_SIDE", 96)
    indices = [200, 3, 90, 250, 40, 7, 120, 33, 66, 180, 15]
    drawn = thumbnails.draw_sheets(Dataset(256), indices)
    assert (drawn["side"], drawn["columns"], drawn["per_sheet"], len(drawn["sheets"])) == (32, 3, 9, 2)
    for row, index in enumerate(indices):
        sheet, place = divmod(row, drawn["per_sheet"])
        y, x = (32 * part for part in divmod(place, drawn["columns"]))
        with Image.open(io.BytesIO(base64.b64decode(drawn["sheets"][sheet]))) as image:
            colors = image.crop((x, y, x + 32, y + 32)).convert("L").getextrema()
        assert max(abs(color - index) for color in colors) <= 2


@pytest.mark.parametrize(
    ("count", "largest", "side"),
    [(100, 8, 16), (100, 28, 32), (100, 32, 32), (100, 500, 96), (10_000, 224, 48), (10_000, 32, 32)],
)
def test_thumbnail_sides(count, largest, side):
    assert thumbnails.thumbnail_side(count, largest) == side
    assert count * side**2 <= thumbnails.MAX_PIXELS and thumbnails.SHEET_SIDE % side == 0


# --- verdicts ------------------------------------------------------------------------------------

HEALTHY = {"cluster_sizes": [5, 5, 6], "neighbors": GO, "copy": 0, "near_duplicate": 0}
HEALTHY |= {"unsure": 0.125, "unsure_by_cluster": [0.1, 0.3, 0.2]}
NO_GO = {"verdict": "no-go", "by_chance": 0.1}
TWICE = "more than once (exact copies of others: 1,200, near duplicates: 3)."


@pytest.mark.parametrize(
    ("found", "level", "text", "advice"),
    [
        ({"neighbors": NO_GO}, "bad", "hardly any groups", "another --backbone"),
        ({"groups": {"verdict": "groups"}}, "good", "The features show groups", ""),
        ({"groups": {"verdict": "unclear"}}, "warning", "do not show clear groups", "borderline images"),
        ({"groups": {"verdict": "series"}}, "warning", "a series", "sections"),
        ({"groups": {"verdict": "none"}}, "bad", "The features show no groups", "other features"),
        ({"groups": {"verdict": "few"}}, "note", "too few images", ""),
        ({}, "good", "unsure of 13 %", ""),
        ({"cluster_sizes": [5, 0, 6]}, "warning", "Cluster 1 is empty.", "entropy_weight"),
        ({"cluster_sizes": [5, 0, 0, 6]}, "warning", "Clusters 1, 2 are empty.", "entropy_weight"),
        ({"cluster_sizes": [50, 1, 1]}, "warning", "Cluster 0 holds 96 % of the images.", "entropy_weight"),
        ({"unsure": 0.4}, "warning", "unsure of 40 %", "clusters 1 (30 %), 2 (20 %), 0 (10 %). Look"),
        ({"troubles": ["merged"]}, "warning", "merged clusters", "apply_class_balancing"),
        ({"troubles": ["uncovered"]}, "warning", "no confident image", "confidence_threshold"),
        ({"agreement": {"kmeans": {"matched": 0.3}}}, "warning", "K-means on the same", "other numbers"),
        ({"agreement": {"ward": {"matched": 0.7}}}, "good", "Ward's linkage on the same", "it disagrees"),
        ({"agreement": {"ward": {"matched": 0.9}}}, "good", "for 90 % of the images", ""),
        ({"copy": 1200, "near_duplicate": 3}, "note", TWICE, "separate images"),
        ({"near_duplicate": 3}, "note", "more than once (near duplicates: 3).", "separate images"),
    ],
)
def test_verdicts(found, level, text, advice):
    said = verdicts({**HEALTHY, **found}, health.SELFLABEL_ADVICE | health.SCAN_ADVICE)
    (verdict,) = [verdict for verdict in said if text in verdict.text]
    assert verdict.level == level and advice in verdict.advice and bool(advice) == bool(verdict.advice)
    assert found or {verdict.level for verdict in said} == {"good"}


def test_learned_with_labels(tmp_path, pages):
    features, probabilities, _ = blobs(60)
    for known, text in ((True, "learned with labels"), (None, "it is unknown")):
        write(tmp_path, Dataset(60), features, probabilities, labels_in_pretraining=known)
        assert text in pages[-1]["how"]


def test_groups_and_parts(tmp_path, pages):
    """Coarser clusters as a tree, and the two parts of each cluster for the page that splits them."""
    levels = [{"of_cluster": of} for of in ([0, 1, 0, 1], [0, 2, 1, 2], [0, 1, 2, 3])]
    features, probabilities, _ = blobs(60)
    part = [i % 3 % 2 for i in range(60)]
    found, figures = write(tmp_path, Dataset(60), features, probabilities, part=part, levels=levels)
    sizes = figures["cluster_sizes"]
    inner = [{"number": n, "size": sizes[c], "members": [c]} for n, c in ((0, 0), (1, 2))]
    both = sizes[1] + sizes[3]
    assert pages[0]["groups"] == [
        {"number": 0, "size": sizes[0] + sizes[2], "members": inner},
        {"number": 1, "size": both, "members": [{"number": 2, "size": both, "members": [1, 3]}]},
    ]
    assert pages[0]["images"]["part"] == part
    second = found.cluster[torch.tensor(part) == 1].bincount(minlength=C).tolist()
    assert [card["parts"] for card in pages[0]["clusters"]] == [
        [size - count, count] for size, count in zip(sizes, second, strict=True)
    ]


def test_the_quality_of_neighbors_counts_distinct_images(tmp_path):
    """Copies are nobody's neighbors, which says nothing about the features."""
    features, probabilities, _ = blobs(100)
    copies = Dataset(300, [str(i % 100) for i in range(300)])
    found, _ = assigned(copies, features.repeat(3, 1), probabilities.repeat(3, 1))
    alone, _ = assigned(Dataset(100), features, probabilities)
    distinct = duplicates.among_distinct(found.neighbors, found.first)
    assert torch.equal(distinct, alone.neighbors)
