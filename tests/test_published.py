"""What users of the original bring: checkpoints to start from, MoCo's file, ImageNet's and STL-10's files."""

import hashlib
import json
import re

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from steps import arguments, fails, official_moco, run, same, weights

import data
import eval as evaluation
import moco
import scan
import selflabel
import simclr
from errors import UserError
from models import build_model
from utils.analysis import neighbors
from utils.run import checkpoint
from utils.run.config import load_config
from utils.run.script import parse_arguments


def publish(state, path, **more):
    """Save as the published files were: by an old torch, trained on several GPUs, the head a NumPy scalar."""
    state = {f"module.{key}": value for key, value in state.items()}
    torch.save({"model": state, **more} if more else state, path, _use_new_zipfile_serialization=False)
    return path


# --- starting in the middle ----------------------------------------------------------------------


@pytest.fixture
def published_pretext(results, tmp_path):
    return publish(weights(results / "pretext/model.pth.tar"), tmp_path / "simclr_digits.pth.tar")


def start(file, *more):
    return ("--pretrained", str(file), *more)


def test_simclr_mines_with_a_given_model(results, tmp_path, published_pretext):
    run("pretext", tmp_path, flags=start(published_pretext))
    folder = tmp_path / "digits/pretext"
    for name in ("topk-train-neighbors.npy", "topk-val-neighbors.npy"):
        np.testing.assert_array_equal(np.load(folder / name), np.load(results / "pretext" / name))
    assert same(weights(folder / "model.pth.tar"), weights(results / "pretext/model.pth.tar"))
    now, then = (json.loads((f / "metrics.json").read_text()) for f in (folder, results / "pretext"))
    assert now.pop("pretrained") == str(published_pretext)
    assert now == then
    assert {path.name for path in folder.iterdir()} == {
        *("model.pth.tar", "topk-train-neighbors.npy", "topk-val-neighbors.npy"),
        *("metrics.json", "metrics.jsonl", "config.yml", "log.txt", "fingerprint.json"),
    }


@pytest.mark.parametrize("setup", ["original", "file"])
def test_published_pretext_file_under_the_name_checkpoint(results, tmp_path, setup):
    """Users of the original store the published file where a training would leave its checkpoint."""
    folder = tmp_path / "digits/pretext"
    folder.mkdir(parents=True)
    file = publish(weights(results / "pretext/model.pth.tar"), folder / "checkpoint.pth.tar")
    before = file.read_bytes()
    run("pretext", tmp_path, flags=() if setup == "original" else start(file, "--fresh"))
    for name in ("topk-train-neighbors.npy", "topk-val-neighbors.npy"):
        np.testing.assert_array_equal(np.load(folder / name), np.load(results / "pretext" / name))
    assert same(weights(folder / "model.pth.tar"), weights(results / "pretext/model.pth.tar"))
    assert file.read_bytes() == before  # not even --fresh removes what the run starts from


def test_given_weights_do_not_replace_a_training(tmp_path, published_pretext, capsys):
    run("pretext", tmp_path, "epochs=1")
    trained = weights(tmp_path / "digits/pretext/model.pth.tar")
    argv = arguments("pretext", tmp_path, flags=start(published_pretext))
    assert "holds the training of an earlier run" in fails(capsys, simclr.main, argv)
    assert same(weights(tmp_path / "digits/pretext/model.pth.tar"), trained)
    simclr.main([*argv, "--fresh"])
    assert same(weights(tmp_path / "digits/pretext/model.pth.tar"), weights(published_pretext))
    assert not (tmp_path / "digits/pretext/checkpoint.pth.tar").exists()
    (tmp_path / "digits/pretext/mine.pth.tar").write_text("")
    simclr.main([*argv, "--fresh"])
    assert (tmp_path / "digits/pretext/mine.pth.tar").exists()  # only what the program writes is removed


def test_a_new_model_is_never_beside_the_neighbors_of_another(tmp_path, published_pretext, monkeypatch):
    """Interrupted between the model and its neighbors, a run leaves no neighbors."""
    run("pretext", tmp_path, flags=start(published_pretext))
    other = {
        key: value * 1.01 if value.is_floating_point() else value
        for key, value in weights(published_pretext).items()
    }

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(neighbors, "mine", interrupt)
        run("pretext", tmp_path, flags=start(publish(other, tmp_path / "other.pth.tar")))
    folder = tmp_path / "digits/pretext"
    assert same(weights(folder / "model.pth.tar"), other)
    assert not [*folder.glob("topk-*"), *folder.glob("metrics.json"), *folder.glob("scratch*")]


def test_mining_again_keeps_the_curves(tmp_path):
    run("pretext", tmp_path, "epochs=1")
    folder = tmp_path / "digits/pretext"
    before = (folder / "metrics.jsonl").read_text()
    run("pretext", tmp_path, "epochs=1", flags=start(folder / "checkpoint.pth.tar"))
    assert (folder / "metrics.jsonl").read_text() == before != ""


def test_fresh_from_its_own_checkpoint(results, after):
    root = after("pretext", "scan")
    run("selflabel", root, "epochs=1")
    folder = root / "digits/selflabel"
    run("selflabel", root, "epochs=1", flags=start(folder / "checkpoint.pth.tar", "--fresh"))
    assert not same(weights(folder / "model.pth.tar"), weights(results / "selflabel/model.pth.tar"))


def test_the_best_model_is_missing(results, after, capsys):
    """A plain state dict or the original's training checkpoint cannot stand for scan's best epoch."""
    root = after("pretext")
    (root / "digits/scan").mkdir()
    torch.save(weights(results / "scan/model.pth.tar"), root / "digits/scan/checkpoint.pth.tar")
    assert "it has no model, optimizer, epoch" in fails(capsys, scan.main, arguments("scan", root))


@pytest.mark.parametrize("given", ["", "https://example.org/model.pth.tar"])
def test_no_file_is_given(tmp_path, capsys, given):
    with pytest.raises(SystemExit):
        simclr.main(arguments("pretext", tmp_path, flags=("--pretrained", given)))
    assert "expected a file on this machine" in capsys.readouterr().err


def test_scan_from_a_given_model(results, tmp_path, published_pretext, capsys):
    folder = tmp_path / "digits/pretext"
    folder.mkdir(parents=True)  # neighbors, but no model
    for name in ("topk-train-neighbors.npy", "topk-val-neighbors.npy"):
        (folder / name).symlink_to(results / "pretext" / name)
    run("scan", tmp_path, flags=start(published_pretext))
    assert same(weights(tmp_path / "digits/scan/model.pth.tar"), weights(results / "scan/model.pth.tar"))
    other = publish({k: v + 1 for k, v in weights(published_pretext).items()}, tmp_path / "other.pth.tar")
    last = fails(capsys, scan.main, arguments("scan", tmp_path, flags=start(other)))
    assert "inputs.pretext/model.pth.tar" in last  # the trained run is not resumed on other weights


def test_selflabel_from_a_given_model(results, tmp_path):
    state = checkpoint.load(results / "scan/model.pth.tar")
    file = publish(state["model"], tmp_path / "scan_digits.pth.tar", head=np.int64(state["head"]))
    run("selflabel", tmp_path, flags=start(file))
    expected = weights(results / "selflabel/model.pth.tar")
    assert same(weights(tmp_path / "digits/selflabel/model.pth.tar"), expected)


@pytest.mark.parametrize(
    ("main", "step", "given", "message"),
    [
        (simclr.main, "pretext", "scan", "a clustering model .*, but a pretext model"),
        (scan.main, "scan", "selflabel", "a clustering model .*, but a pretext model"),
        (selflabel.main, "selflabel", "pretext", "a pretext model .*, but a clustering model"),
        (evaluation.main, "scan", "pretext", "a pretext model .*, but a clustering model"),
        (evaluation.main, "pretext", "scan", "a clustering model .*, but a pretext model"),
    ],
)
def test_checkpoint_of_another_step(results, tmp_path, capsys, main, step, given, message):
    option = "--model" if main is evaluation.main else "--pretrained"
    argv = arguments(step, tmp_path, flags=(option, str(results / given / "model.pth.tar")))
    assert re.search(message, fails(capsys, main, argv))


def test_checkpoint_of_another_network(results, tmp_path, capsys):
    flags = start(results / "pretext/model.pth.tar")
    last = fails(capsys, simclr.main, arguments("pretext", tmp_path, "backbone=resnet18", flags=flags))
    assert "its backbone is not this configuration's" in last and "--set backbone=resnet10_narrow:" in last
    assert "backbone.layer4.1.bn2.running_var" in (tmp_path / "digits/pretext/log.txt").read_text()
    flags = start(results / "scan/model.pth.tar")
    last = fails(capsys, selflabel.main, arguments("selflabel", tmp_path, "num_classes=7", flags=flags))
    assert "it was made with num_classes 10, try --set num_classes=10" in last


# --- MoCo and ImageNet ---------------------------------------------------------------------------

SIDE = 37  # of the images brought to one size, for crops of 32


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """ImageNet's real layout for the published 50 classes: JPEGs of all sizes, grey and CMYK ones, a PNG."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = (data.imagenet.SUBSETS / "imagenet_50.txt").read_text().splitlines()
    modes = ["RGB", "RGB", "L", "CMYK"]
    for split, n in (("train", 2), ("val", 1)):
        for label, line in enumerate(lines):
            folder = root / f"imagenet/ILSVRC2012_img_{split}" / line.split()[0]
            folder.mkdir(parents=True)
            for i in range(n):
                height, width = rng.integers(30, 90, 2)
                image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
                form = "PNG" if label == 7 else "JPEG"  # one of the real files is a PNG under another name
                image.convert(modes[(label + i) % 4] if form == "JPEG" else "RGB").save(
                    folder / f"{line.split()[0]}_{i}.JPEG", form
                )
    return root


@pytest.fixture(scope="module")
def moco_file(tmp_path_factory):
    """torchvision's network with MoCo's head, and its file in the layout of the official checkpoint."""
    network = torchvision.models.resnet50(num_classes=128)
    network.fc = torch.nn.Sequential(torch.nn.Linear(2048, 2048), torch.nn.ReLU(), network.fc)
    own = {
        f"contrastive_head.{key[3:]}" if key.startswith("fc.") else f"backbone.{key}": value
        for key, value in network.state_dict().items()
    }
    path = tmp_path_factory.mktemp("moco") / "moco_v2_800ep_pretrain.pth.tar"
    torch.save(official_moco(own), path, _use_new_zipfile_serialization=False)
    return network, path


def imagenet_arguments(config, imagenet, root, *overrides):
    overrides = (f"root_dir={root}", f"data_dir={imagenet}", "transformation_kwargs.crop_size=32", *overrides)
    return ["--config_exp", f"configs/{config}", "--set", "batch_size=50", "num_workers=0", *overrides]


def test_every_file_is_decoded_as_the_plain_way_does(imagenet):
    config = {"val_db_name": "imagenet_50", "data_dir": imagenet, "transformation_kwargs": {"crop_size": 32}}
    dataset = data.build_dataset(config, "test")
    assert dataset.labels.tolist() == list(range(50))
    plain = torchvision.transforms.Compose(
        [torchvision.transforms.Resize(SIDE), torchvision.transforms.CenterCrop(SIDE)]
    )
    modes = set()
    for i, path in enumerate(dataset.files):
        with Image.open(path.decode()) as image:
            modes.add((image.mode, image.format))
            np.testing.assert_array_equal(
                dataset.raw(i).permute(1, 2, 0), np.asarray(plain(image.convert("RGB")))
            )
    assert modes == {("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG")}


@pytest.mark.slow
def test_imagenet_from_moco_to_the_end(imagenet, moco_file, tmp_path):
    """The published files of ImageNet-50, on small images and a short budget."""
    network, file = moco_file
    pretext = imagenet_arguments("pretext/moco_imagenet50.yml", imagenet, tmp_path)
    moco.main([*pretext, "--pretrained", str(file)])
    folder = tmp_path / "imagenet_50/pretext"
    model = weights(folder / "model.pth.tar")
    assert torch.equal(model["backbone.layer4.2.conv3.weight"], network.layer4[2].conv3.weight)
    assert torch.equal(model["contrastive_head.2.weight"], network.fc[2].weight)
    assert {path.name for path in folder.iterdir()} == {
        *("model.pth.tar", "topk-train-neighbors.npy", "topk-val-neighbors.npy"),
        # and no features, which are large
        *("metrics.json", "metrics.jsonl", "config.yml", "log.txt", "fingerprint.json"),
    }
    mined = [np.load(folder / f"topk-{split}-neighbors.npy") for split in ("train", "val")]
    assert [array.shape for array in mined] == [(100, 51), (50, 6)]
    similarity = backbone_similarity(network, imagenet)
    np.testing.assert_array_equal(mined[1][:, 0], np.arange(50))
    best = similarity.sort(1, descending=True).values[:, :6]  # their order may differ where they are equal
    np.testing.assert_allclose(similarity.gather(1, torch.from_numpy(mined[1])), best, rtol=0, atol=1e-6)

    evaluation.main([*pretext, "--model", str(folder / "model.pth.tar"), "--output", str(tmp_path / "e")])
    then, now = (json.loads((f / "metrics.json").read_text()) for f in (folder, tmp_path / "e"))
    for k in (1, 5, 20):
        assert now[f"top{k}_neighbor_accuracy"] == then[f"top{k}_neighbor_accuracy"]

    small = ("epochs=1", "augmentation_kwargs.random_resized_crop.size=32")
    scan.main(imagenet_arguments("scan/scan_imagenet_50.yml", imagenet, tmp_path, *small))
    clustering = weights(tmp_path / "imagenet_50/scan/model.pth.tar")
    assert torch.equal(clustering["backbone.conv1.weight"], network.conv1.weight)  # heads only
    assert len({key for key in clustering if key.startswith("cluster_head.")}) == 20
    small = ("epochs=1", "augmentation_kwargs.crop_size=32", "confidence_threshold=0.01")
    selflabel.main(imagenet_arguments("selflabel/selflabel_imagenet_50.yml", imagenet, tmp_path, *small))
    figures = json.loads((tmp_path / "imagenet_50/selflabel/metrics.json").read_text())
    assert (figures["num_clusters"], figures["num_classes"], figures["num_images"]) == (50, 50, 50)


@torch.no_grad()
def backbone_similarity(network, imagenet):
    """Cosines of the test images' 2048 features before the MLP, the plain way: torchvision's network."""
    argv = imagenet_arguments("pretext/moco_imagenet50.yml", imagenet, "unused")
    config = load_config(parse_arguments(argv, ""), ["moco"])
    images = data.build_dataset(config, "test")
    batch = data.build_eval_transform(config)(torch.stack([images.raw(i) for i in range(len(images))]))
    body = torch.nn.Sequential(*list(network.eval().children())[:-1])
    features = torch.nn.functional.normalize(body(batch).flatten(1), dim=1)
    return features @ features.T


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's cache, in a temporary folder."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub/checkpoints"


def test_official_checkpoint_is_downloaded_once(moco_file, hub, monkeypatch):
    monkeypatch.setattr(moco, "URL", moco_file[1].as_uri())
    monkeypatch.setattr(moco, "MD5", hashlib.md5(moco_file[1].read_bytes()).hexdigest()[:8])
    path = moco.download()
    assert path == hub / "moco_v2_800ep_pretrain.pth.tar"
    assert path.read_bytes() == moco_file[1].read_bytes()
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)  # a second download would fail
    assert moco.download() == path


@pytest.mark.parametrize("content", [None, b"<html>down for maintenance</html>", "half", "another"])
def test_official_checkpoint_that_does_not_arrive(moco_file, hub, tmp_path, monkeypatch, content):
    """Nothing, a page, or half of it: said so, and not taken for the checkpoint the next time."""
    served = tmp_path / "served.pth.tar"
    if content is not None:
        whole = moco_file[1].read_bytes()
        parts = {"half": whole[:1_000_000], "another": whole}  # it is not the authors' file
        served.write_bytes(parts.get(content, content))
    monkeypatch.setattr(moco, "URL", served.as_uri())
    with pytest.raises(UserError, match="cannot be downloaded.*--pretrained"):
        moco.download()
    assert not list(hub.iterdir())


# --- the walk of the tutorial on STL-10 ----------------------------------------------------------


@pytest.mark.slow
def test_stl10_from_a_published_checkpoint(tmp_path, monkeypatch):
    """The tutorial's commands on files in STL-10's format; no unlabelled images are needed for them."""
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)
    folder = tmp_path / "data/stl-10/stl10_binary"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, n in (("train", 22), ("test", 6)):
        rng.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8).tofile(folder / f"{split}_X.bin")
        rng.integers(1, 11, n, dtype=np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))

    def argv(config, *more):
        common = [f"root_dir={tmp_path}", f"data_dir={tmp_path / 'data'}", "batch_size=11", "epochs=1"]
        return ["--config_exp", f"configs/{config}", *more, "--set", *common]

    config = load_config(parse_arguments(argv("pretext/simclr_stl10.yml"), ""), ["simclr"])
    file = publish(build_model(config).state_dict(), tmp_path / "simclr_stl-10.pth.tar")
    simclr.main(argv("pretext/simclr_stl10.yml", "--pretrained", str(file)))
    scan.main(argv("scan/scan_stl10.yml"))
    selflabel.main([*argv("selflabel/selflabel_stl10.yml"), "confidence_threshold=0.05"])
    model = tmp_path / "stl-10/selflabel/model.pth.tar"
    evaluation.main(argv("selflabel/selflabel_stl10.yml", "--model", str(model), "--visualize_prototypes"))
    assert np.load(tmp_path / "stl-10/pretext/topk-train-neighbors.npy").shape == (22, 21)
    assert (tmp_path / "stl-10/selflabel/eval/model/prototypes.png").is_file()
    with pytest.raises(UserError, match="unlabeled"):  # training does need them
        simclr.main(argv("pretext/simclr_stl10.yml", "--fresh"))
