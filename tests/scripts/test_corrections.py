"""What the user makes of a clustering: corrections, names, and cells of clusters.csv that were changed."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from digits_steps import ROOT, fails, figures, rows_of
from PIL import Image

import cluster
import predict
from errors import UserError
from workflows import user_edits
from workflows.corrections import Corrected, do_again, followers, read_corrections
from workflows.final_head import FinalHead

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
    assert "0,cats\n1,1\n2,cows" in (folder / f"earlier-tables/names-{was}.csv").read_text()

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


@pytest.mark.parametrize(("kinds", "least", "most"), [(1, 0, 0), (2, 15, 21)])
def test_a_whole_cluster_does_not_follow(kinds, least, most):
    random = np.random.default_rng(0)
    of = np.arange(60) // 20 % kinds  # with two kinds, images 20 to 39 are the second
    features = torch.from_numpy(np.float32(np.eye(12)[of] + 0.05 * random.normal(size=(60, 12))))
    shares = torch.tensor([[1.0, 0.0]]).repeat(60, 1)
    moved = torch.zeros(60, dtype=torch.bool)
    moved[20:26] = True
    wanted = Corrected(shares, moved.long(), moved, ["0", "new"], [0, 0], 0, [])
    follow = followers(features, wanted, torch.arange(60))
    assert least <= int((follow[:, 1] > 0.5).sum()) <= most


def test_a_cell_that_was_changed(copied, capsys, tmp_path):
    """It is a move. Images that were moved are sorted where they are, also from another folder."""
    argv, folder = copied
    table = folder / "clusters.csv"
    text = table.read_text()
    for file, to in (("a00.png", "1"), ("a01.png", "none"), ("a02.png", "dogs")):
        text = text.replace(f"\n{file},0,", f"\n{file},{to},")
    table.write_text(text.replace(",", ";"))
    vectors = argv[4]
    cluster.main(argv)
    out = capsys.readouterr().out
    assert "3 images have another cluster there: as moves in" in out
    (copy,) = folder.glob("earlier-tables/clusters-*.csv")
    assert copy.read_text().startswith("file;cluster;")
    found = {row["file"]: (row["cluster"], row["corrected"]) for row in rows_of(table)}
    assert [found[f"a0{i}.png"] for i in range(4)] == [("1", "yes"), ("0", "none"), ("3", "yes"), ("0", "")]
    assert [row["to"] for row in rows_of(folder / "corrections.csv")] == ["1", "none", "dogs"]

    files = sorted(found)
    np.savez(tmp_path / "new.npz", names=files, features=np.load(vectors))
    predict.main([str(folder), str(tmp_path / "new.npz"), "--device", "cpu"])  # with names.csv
    rows = {row["file"]: row for row in rows_of(folder / "predictions/new.npz.csv")}
    assert [rows[f"a0{i}.png"]["note"] for i in range(4)] == ["corrected", "none", "corrected", ""]
    assert rows["a02.png"]["name"] == "dogs" and rows["a00.png"]["cluster"] == "1"
    assert {file: row["cluster"] for file, row in rows.items()} == clusters_of(folder)
    (folder / "corrections.csv").unlink()
    table.write_text(table.read_text().replace("\na03.png,0,", "\na03.png,,"))
    assert user_edits.changed_tables(folder) == [str(table)]
    assert "clusters.csv, line 5: no cluster; give one" in fails(capsys, cluster.main, argv)


def test_names_after_another_training(copied, capsys, tmp_path):
    """By the images that both have; and refused where they are of another clustering."""
    argv, folder = copied
    (folder / "names.csv").write_text("cluster;name\n0;cats\n1;horses\n2;cows\n")
    (folder / "corrections.csv").write_text("action,what,to\nmove,b00.png,0\nmove,b01.png,gnus\nmerge,1,2\n")
    cluster.main(argv)
    first = (folder / "names.csv").read_bytes()
    assert [row["name"] for row in rows_of(folder / "names.csv")] == ["cats", "cows", "gnus"]
    corrections = (folder / "corrections.csv").read_text()
    (folder / "corrections.csv").write_text(f"{corrections}shift,b02.png,0\n")
    assert "'shift' is no action" in fails(capsys, cluster.main, [*argv[:2], "4", *argv[3:]])
    assert not list(folder.glob("earlier-[0-9]*"))  # nothing was trained or moved for it
    (folder / "corrections.csv").write_text(corrections)
    cluster.main([*argv[:2], "4", *argv[3:]])  # a and d are apart now
    assert [path.name for path in folder.glob("earlier-1/*.csv")] == ["clusters.csv"]
    table = {row["file"]: row for row in rows_of(folder / "clusters.csv")}
    assert [table[f"{kind}.png"]["name"] for kind in ("a00", "b00", "b01", "b02", "c00", "d00")] == [
        "cats", "cats", "gnus", "cows", "cows", "cats",
    ]  # fmt: skip
    (tmp_path / "names.csv").write_bytes(first)
    message = fails(capsys, predict.main, [str(folder), argv[4], "--names", str(tmp_path / "names.csv")])
    assert "names.csv, line 2: names clustering" in message and len(message.strip().splitlines()) == 1


def test_a_head_that_cannot_be_read(copied, capsys):
    """It is made anew if no corrections are lost. A merged cluster keeps the only name there is."""
    argv, folder = copied
    (folder / "names.csv").write_text("cluster,name\n0,bees\n1,1\n2,2\n")
    (folder / "corrections.csv").write_text("action,what,to\nmerge,0,2\n")
    cluster.main(argv)
    assert [row["name"] for row in rows_of(folder / "names.csv")] == ["0", "bees"]
    head = (folder / "head.npz").read_bytes()
    (folder / "head.npz").write_bytes(head[:-99])
    assert "head.npz: damaged" in fails(capsys, cluster.main, argv)
    (folder / "head.npz").write_bytes(head)
    (folder / "corrections.csv").unlink()
    cluster.main(argv)
    (folder / "head.npz").write_bytes(head[:-99])
    cluster.main(argv)
    assert "head.npz: cannot be read, and is made anew" in capsys.readouterr().out
    assert "bees" in [row["name"] for row in rows_of(folder / "names.csv")]
    (folder / "names.csv").write_text("cluster,name,clustering\n0,a,0123\n1,b,0123\n2,c,0123\n")
    predict.main([str(folder), argv[4], "--device", "cpu"])
    assert "name" not in rows_of(folder / "predictions/x.npy.csv")[0]


def test_broken_tables(command, tmp_path):
    """Names and corrections that were broken at random: they are read, or refused in one line."""
    argv, folder = command
    head = FinalHead.read(folder)
    files = sorted(head.images)
    dataset = SimpleNamespace(names=lambda: files, content_hashes=lambda: [""] * len(files))
    good = {
        "names.csv": f"cluster,name,clustering\n0,cats,{head.clustering}\n1,dogs,\n2,cows,\n",
        "corrections.csv": f"action,what,to,clustering\nmove,a01.png,none,{head.clustering}\nmove,a02.png,2\n"
        "merge,1,2,\nsplit,0,,\nmove,b01.png,new,\n",
    }
    random = np.random.default_rng(0)
    pieces = [
        b"",
        b",",
        b'"',
        b"\n",
        b"\0",
        b"\xff",
        b";",
        b"99999999999",
        b"-1",
        b"\t",
        b"move",
        "²".encode(),
    ]
    refused = 0
    for number in range(300):
        name = sorted(good)[number % 2]
        content, path = good[name].encode(), tmp_path / name
        for _ in range(random.integers(1, 4)):
            at, size = random.integers(0, len(content) + 1), random.integers(0, 9)
            content = content[:at] + pieces[random.integers(len(pieces))] + content[at + size :]
        path.write_bytes(content)
        try:
            if name == "names.csv":
                user_edits.names_by_handle(path, head.clustering, head, None)
            else:
                rows = read_corrections(path, head, dataset)
                do_again(rows, torch.eye(3)[[head.images[file].cluster for file in files]], dataset, head, {})
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and name in str(error)
        assert path.read_bytes() == content and len(list(tmp_path.iterdir())) <= 2
    assert 100 < refused < 290


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ([[10, 0, 0], [0, 9, 0], [0, 1, 8]], ["cats", "dogs", "cows"]),
        ([[20, 4, 20], [0, 3, 0], [0, 3, 0]], ["cats", "dogs", "dogs"]),  # half of each new one
        ([[30, 9, 0], [5, 0, 0], [0, 0, 9]], ["cats", "cats", "cows"]),
        ([[4, 7, 4], [5, 3, 4], [5, 3, 4]], ["dogs", None, None]),  # half of an earlier one
        ([[4, 4, 4], [5, 5, 5], [5, 5, 5]], [None, None, None]),
    ],
)
def test_names_go_with_most_images(command, tmp_path, table, expected):
    (tmp_path / "names.csv").write_text("cluster,name\n0,cats\n1,dogs\n2,cows\n")
    head = FinalHead.read(command[1])
    named = user_edits.names_by_handle(tmp_path / "names.csv", "", head, np.array(table))
    assert [named.get(str(i)) for i in range(3)] == expected


def test_an_end_while_names_are_written(copied, monkeypatch):
    """The next command carries them over."""
    argv, folder = copied
    (folder / "names.csv").write_text("cluster,name,clustering\n0,cats,\n1,dogs,\n2,cows,\n")
    cluster.main(argv)
    (folder / "corrections.csv").write_text("action,what,to\nmove,b00.png,cats\nmove,b01.png,gnus\n")
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(FinalHead, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        cluster.main(argv)
    cluster.main(argv)
    assert [row["name"] for row in rows_of(folder / "names.csv")] == ["cats", "dogs", "cows", "gnus"]
