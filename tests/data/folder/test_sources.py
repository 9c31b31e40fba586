"""What can be given as images, besides one folder."""

import io
import shutil
import tarfile
import zipfile
from collections import Counter

import pytest
import torch
from image_folders import build_anywhere, fetch, save
from PIL import Image

import data
from errors import UserError


@pytest.fixture
def photos(tmp_path):
    for name in ("a/photos/1.png", "a/photos/x/2.png", "b/photos/1.png", "3.png", "else/4.png"):
        save(tmp_path / name, red=len(name))
    (tmp_path / "a/photos/notes.md").touch()
    return tmp_path


def found(folder, *sources):
    """The name of each image of the sources -> its path in `folder`, and the suffixes of other files."""
    files, names, ignored = data.images_of([folder / source for source in sources])
    assert len(files) == len(names)
    return dict(zip(names, (file[len(str(folder)) + 1 :] for file in files), strict=True)), ignored


def test_several_folders_and_files(photos):
    """Each image is there once, and all names are different."""
    given = "a/photos", "3.png", "b/photos", "a/photos/x", "else/4.png"
    names, ignored = found(photos, *given)
    assert names == {
        "photos/1.png": "a/photos/1.png",
        "photos/x/2.png": "a/photos/x/2.png",
        "3.png": "3.png",
        "photos (2)/1.png": "b/photos/1.png",
        "4.png": "else/4.png",
    }
    assert ignored == {".md": 1}
    dataset = build_anywhere(photos, image_folder=[str(photos / source) for source in given])
    assert dataset.names() == list(names) and dataset.labels is None
    assert [int(dataset.raw(i)[0, 0, 0]) for i in range(5)] == [len(path) for path in names.values()]


def test_one_folder_has_the_names_it_had(photos):
    assert list(found(photos, "a/photos")[0]) == ["1.png", "x/2.png"]
    assert list(found(photos, "a/photos/x/2.png")[0]) == ["2.png"]


def test_a_list_of_paths(photos):
    """Relative to the list; if one is elsewhere, within the folder that they share."""
    lines = ["photos/x/2.png", "", "photos/notes.md", f"{photos}/else/4.png", " ./photos/1.png ", "../3.png"]
    (photos / "a/list.txt").write_text("\r\n".join([*lines, lines[0]]), "utf-8-sig")
    names, ignored = found(photos, "a/list.txt")
    assert names == {
        "a/photos/x/2.png": "a/photos/x/2.png",
        "else/4.png": "else/4.png",
        "a/photos/1.png": "a/photos/1.png",
        "3.png": "3.png",
    }
    assert ignored == Counter({".md": 1})


def test_a_list_of_whole_paths_does_not_tell_them(photos):
    (photos / "list.txt").write_text(f"{photos}/a/photos/x/2.png\r\n{photos}/a/photos/1.png", "utf-16")
    assert list(found(photos, "list.txt")[0]) == ["x/2.png", "1.png"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("none", "none: no such folder"),
        ("a/photos/notes.md", "notes.md: is a file, and no image; give a folder, an image, an archive"),
        ("b.heic", "b.heic: is a file, and no image; to read .heic: pip install pillow-heif"),
        ("empty.txt", "empty.txt: no images found"),
        ("folders.txt", "folders.txt, line 2: .*/a: is a folder; list its images"),
        ("list.txt", r"list.txt, line 2: .*/5.png: no such file \(2 of its 3 files are missing\)"),
    ],
)
def test_what_is_no_source(photos, source, words):
    (photos / "list.txt").write_text("3.png\n5.png\n6.png\n")
    (photos / "folders.txt").write_text("3.png\na\n")
    for name in ("empty.txt", "b.heic"):
        (photos / name).touch()
    with pytest.raises(UserError, match=words):
        data.images_of([photos / "else", photos / source])


# --- images within files -------------------------------------------------------------------------


def zipped(folder, path):
    shutil.make_archive(path.with_suffix(""), "zip", folder)


def tarred(folder, path):
    """As webdataset writes it: other files of the same key, in no order of the names."""
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for file in sorted(folder.rglob("*.*"), reverse=True):
            archive.add(file, f"../{file.relative_to(folder)}")
            for name in (f"{file.stem}.cls", ".hidden.png"):
                info = tarfile.TarInfo(name)
                info.size = 1
                archive.addfile(info, io.BytesIO(b"7"))


def in_parquet(folder, path, with_paths=True):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = sorted(folder.rglob("*.png"))
    rows = [{"bytes": f.read_bytes(), "path": str(f.relative_to(folder)) * with_paths} for f in files]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"label": pa.array(range(len(rows))), "image": pa.array(rows, kind)})
    pq.write_table(table, path, row_group_size=2)


@pytest.mark.parametrize(
    ("name", "write"), [("a.zip", zipped), ("a.tar", tarred), ("a.tgz", tarred), ("a.PARQUET", in_parquet)]
)
def test_images_within_a_file_are_those_of_the_folder(photos, name, write):
    """Their names, order and pixels; each process has the file open for itself."""
    for i in range(20):
        save(photos / f"a/photos/y/{i}.png", red=i)
    write(photos / "a/photos", photos / name)
    names, ignored = found(photos, name)
    expected = sorted(found(photos, "a/photos")[0])
    assert sorted(names) == expected and (name == "a.tgz" or [*names] == expected)
    assert ignored == {"a.zip": {".md": 1}, "a.PARQUET": {}}.get(name, {".md": 1, ".cls": 21})
    plain = build_anywhere(photos / "a/photos", folder_labels="none")
    dataset = build_anywhere(photos / name, num_workers=2)
    assert sorted(dataset.content_hashes()) == sorted(plain.content_hashes())
    order = [dataset.names().index(name) for name in expected]
    assert torch.equal(fetch(dataset, order), fetch(plain, range(len(expected))))
    file = f"{photos / name}/y/7.png"
    assert data.read_file(file) == (photos / "a/photos/y/7.png").read_bytes()
    if name != "a.PARQUET":
        assert data.stat_file(file)[0] == (photos / "a/photos/y/7.png").stat().st_size


def test_rows_without_paths_are_numbered(photos):
    in_parquet(photos / "a/photos", photos / "a.parquet", with_paths=False)
    assert list(found(photos, "a.parquet")[0]) == ["0.png", "1.png"]


def test_a_folder_of_archives(photos):
    (photos / "shards").mkdir()
    for name in ("0.zip", "1.zip"):
        zipped(photos / "a/photos", photos / "shards" / name)
    names, _ = found(photos, "shards", "a/photos")
    assert [*names] == [f"shards/{i}.zip/{name}" for i in (0, 1) for name in ("1.png", "x/2.png")] + [
        "photos/1.png",
        "photos/x/2.png",
    ]
    save(photos / "shards/a.png")
    assert found(photos, "shards") == ({"a.png": "shards/a.png"}, {".zip": 2})  # and the log says what to do


def test_frames_of_a_video(photos):
    """One every second, by their times."""
    av = pytest.importorskip("av")
    with av.open(photos / "film.mp4", "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for i in range(35):
            image = Image.new("L", (32, 32), 7 * i).convert("RGB")
            film.mux(stream.encode(av.VideoFrame.from_image(image)))
        film.mux(stream.encode())
    names, _ = found(photos, "film.mp4")
    assert [*names] == [f"00000{i}.000s.png" for i in range(4)]
    dataset = build_anywhere(photos / "film.mp4", every=1.5)
    assert dataset.names() == ["000000.000s.png", "000001.500s.png", "000003.000s.png"]
    grays = [int(dataset.raw(i)[0, 9, 9]) for i in (2, 0, 1)]
    assert grays == pytest.approx([7 * 30, 0, 7 * 15], abs=4)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz", "a.parquet", "a.mkv"])
def test_damaged_containers(photos, name):
    """Also where what reads them is not installed."""
    (photos / name).write_bytes(b"\x1f\x8b no such file")
    with pytest.raises(UserError, match=f"{name}: (cannot be read .*is it complete|to read it: pip install)"):
        data.images_of([photos / name])


def test_a_damaged_member(photos):
    with zipfile.ZipFile(photos / "a.zip", "w") as archive:
        for name in ("1.png", "x/2.png"):
            archive.write(photos / "a/photos" / name, name)
    content = (photos / "a.zip").read_bytes()
    (photos / "a.zip").write_bytes(content.replace(b"IDAT", b"IDOT", 1))
    dataset = build_anywhere(photos / "a.zip")
    assert dataset.names() == ["x/2.png"]
    assert dataset.decoded.unreadable == {"1.png": "Bad CRC-32 for file '1.png'"}


def test_an_archive_with_a_password(photos):
    zipped(photos / "a/photos", photos / "a.zip")
    content = bytearray((photos / "a.zip").read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # as an encrypted member is marked
    (photos / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match="a.zip: needs a password; unpack it, and give the folder"):
        data.images_of([photos / "a.zip"])
