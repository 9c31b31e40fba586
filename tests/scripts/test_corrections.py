"""What the user makes of a clustering: corrections, names, and cells of clusters.csv that were changed."""

import shutil

import numpy as np
import pytest
from digits_steps import ROOT, figures, rows_of
from PIL import Image

import cluster

KINDS = {"a": 40, "b": 30, "c": 20, "d": 20}  # images, of which d looks like a


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A command line that has run; and the folder of its results."""
    folder = tmp_path_factory.mktemp("corrections")
    (folder / "in").mkdir()
    random = np.random.default_rng(0)
    centers = np.eye(12)[[0, 1, 2, 0]] + 0.25 * np.eye(12)[[5, 5, 5, 4]]
    vectors = []
    for center, (kind, n) in zip(centers, KINDS.items(), strict=True):
        for i in range(n):
            pixels = random.integers(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"in/{kind}{i:02d}.png")
            vectors.append(center + 0.03 * random.normal(size=12))
    np.save(folder / "x.npy", np.float32(vectors))
    argv = [str(folder / "in"), "--clusters", "3", "--features", str(folder / "x.npy"), "--root_dir"]
    argv += [str(folder / "out"), "--set", "num_workers=0", "device=cpu", "epochs=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        cluster.main(argv)
    return argv, folder / "out/in"


@pytest.fixture
def copied(command, tmp_path):
    """The same command with a copy of its results."""
    argv, folder = command
    shutil.copytree(folder, tmp_path / "in")
    return [str(tmp_path) if arg == str(folder.parent) else arg for arg in argv], tmp_path / "in"


def clusters_of(folder):
    return {row["file"]: row["cluster"] for row in rows_of(folder / "clusters.csv")}


def in_cluster(folder):
    """The kinds in each cluster, with their numbers."""
    found = {}
    for file, number in clusters_of(folder).items():
        kinds = found.setdefault(int(number), {})
        kinds[file[0]] = kinds.get(file[0], 0) + 1
    return found


def written(folder):
    return {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "log.txt"
    }


def test_corrections(copied, capsys):
    """Moved images stay, similar ones follow, others do not; without the file all is as before."""
    argv, folder = copied
    before, first = in_cluster(folder), clusters_of(folder)
    assert before == {0: {"a": 40, "d": 20}, 1: {"b": 30}, 2: {"c": 20}}
    was = figures(folder)["clustering"]
    rows = [f"move,d{i:02d}.png,dogs,{was}" for i in range(6)] + [
        f"move,b00.png,2,{was}",
        "move,c00.png,None,",
    ]
    (folder / "corrections.csv").write_text("\n".join(["action,what,to,clustering", *rows]))
    (folder / "names.csv").write_text("cluster,name\n0,cats\n1,1\n2,cows\n")
    cluster.main(argv)
    out = capsys.readouterr().out
    assert "8 corrections: 8 images are where they were moved, and 14 others followed" in out
    assert "names were carried over; clusters without a name: 1" in out
    assert in_cluster(folder) == {0: {"a": 40}, 1: {"b": 29}, 2: {"c": 20, "b": 1}, 3: {"d": 20}}
    table = {row["file"]: row for row in rows_of(folder / "clusters.csv")}
    assert table["d03.png"]["corrected"] == "yes" and table["d03.png"]["confidence"] == "1.0000"
    assert table["d09.png"]["corrected"] == "" and table["d09.png"]["name"] == "dogs"
    assert table["c00.png"]["corrected"] == "none"
    now = figures(folder)["clustering"]
    assert now != was and figures(folder)["num_clusters"] == 4
    names = rows_of(folder / "names.csv")
    assert [(row["name"], row["clustering"]) for row in names] == [
        (n, now) for n in ("cats", "1", "cows", "dogs")
    ]
    assert "0,cats\n1,1\n2,cows" in (folder / "earlier-1/names.csv").read_text()

    same = written(folder)  # nothing new is written
    cluster.main(argv)
    assert written(folder) == same

    # the page knows only what was done on it: the rest stays. Numbers close up, names follow
    (folder / "corrections.csv").write_text(f"action,what,to,clustering\nmerge,1,2,{now}\nsplit,0,,{now}\n")
    cluster.main(argv)
    found = in_cluster(folder)
    assert (
        found[1] == {"c": 20, "b": 30}
        and found[2] == {"d": 20}
        and sum(found[0].values()) + found[3]["a"] == 40
    )
    assert [row["name"] for row in rows_of(folder / "names.csv")] == ["cats", "cows", "dogs", "0 (2)"]
    assert len(rows_of(folder / "corrections.csv")) == 10

    (folder / "corrections.csv").unlink()
    cluster.main(argv)
    assert clusters_of(folder) == first and figures(folder)["clustering"] == was
    assert [row["name"] for row in rows_of(folder / "names.csv")] == ["cats", "1", "cows"]
