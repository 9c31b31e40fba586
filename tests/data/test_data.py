"""Datasets in their real on-disk formats, the loader, and what each step sees."""

import pickle
import urllib.error

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import data
from data.arrays import ArrayImages
from data.decoding import FolderImages
from data.transforms import center_crop
from errors import UserError
from utils.run import interrupt
from utils.training import engine
from utils.training.resume import Progress


def config(name, data_dir, **more):
    return {"train_db_name": name, "val_db_name": name, "data_dir": str(data_dir), **more}


def pictures(n, height=32, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def fetch(dataset, index):
    return next(dataset.fetch([torch.as_tensor(index)], "cpu"))


# --- the embedded dataset ------------------------------------------------------------------------


def test_digits_split_is_fixed_stratified_and_complete():
    train, test = (data.build_dataset(config("digits", "."), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.shape[1:] == (3, 8, 8)
    assert train.images.max() == 255
    shares = train.labels.bincount() / (train.labels.bincount() + test.labels.bincount())
    assert ((shares - 0.8).abs() < 0.01).all()
    rows = torch.cat([train.images, test.images]).flatten(1)
    from sklearn.datasets import load_digits

    assert len(rows.unique(dim=0)) == len(np.unique(load_digits().data, axis=0))


# --- npz files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("grey", [False, True])
def test_npz(tmp_path, grey):
    train, test = pictures(6, 20, 24), pictures(4, 20, 24, seed=1)
    if grey:
        train, test = train[..., 0], test[..., 0]
    labels = np.array([[0], [1], [2], [0], [1], [2]], dtype=np.uint8)  # (N, 1), as MedMNIST writes them
    np.savez(tmp_path / "mine.npz", train_images=train, train_labels=labels, test_images=test)
    found = data.build_dataset(config("mine", tmp_path), "train")
    assert found.images.shape == (6, 3, 20, 24)
    expected = train if not grey else np.repeat(train[..., None], 3, axis=3)
    np.testing.assert_array_equal(found.images.permute(0, 2, 3, 1), expected)
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.classes == ["0", "1", "2"]
    unlabelled = data.build_dataset(config("mine", tmp_path), "test")
    assert (len(unlabelled), unlabelled.labels, unlabelled.classes) == (4, None, None)


def test_npz_comes_before_the_registry(tmp_path):
    np.savez(tmp_path / "cifar-10.npz", train_images=pictures(3), test_images=pictures(2))
    assert len(data.build_dataset(config("cifar-10", tmp_path), "train")) == 3


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": pictures(2)}, "has no array 'train_images', only images"),
        ({"train_images": pictures(2) / 255}, "must be uint8"),
        ({"train_images": np.zeros((4, 5), np.uint8)}, "must be uint8"),
        ({"train_images": pictures(2).transpose(0, 3, 1, 2)}, r"\(N, H, W, 3\)"),
        ({"train_images": pictures(0)}, "no images"),
        ({"train_images": pictures(2), "train_labels": np.array([0, 1, 2])}, "train_labels must be"),
        ({"train_images": pictures(2), "train_labels": np.array([0.0, 1.0])}, "train_labels must be"),
        ({"train_images": pictures(2), "train_labels": np.array([0, -1])}, "negative"),
        ({"train_images": np.array([{}, {}], dtype=object)}, "cannot be read"),
        (
            {"train_images": pictures(2), "train_labels": np.array([0, 3]), "classes": np.array(["a", "b"])},
            "2 names",
        ),
    ],
)
def test_npz_that_cannot_be_used(tmp_path, arrays, message):
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(UserError, match=message):
        data.build_dataset(config("mine", tmp_path), "train")


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"PK\x03\x04 cut short"])
def test_npz_that_is_none(tmp_path, content):
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(UserError, match="not a readable .npz"):
        data.build_dataset(config("mine", tmp_path), "train")


# --- torchvision's files -------------------------------------------------------------------------


@pytest.fixture
def any_checksum(monkeypatch):
    """Accept small files in place of the real ones, whose MD5 sums torchvision knows."""
    for dataset in (torchvision.datasets.CIFAR10, torchvision.datasets.STL10):
        monkeypatch.setattr(dataset, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args: True)


def write_pickle(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def test_cifar10_files(tmp_path, any_checksum):
    folder = tmp_path / "cifar-10" / "cifar-10-batches-py"
    images = pictures(12)
    rows = images.transpose(0, 3, 1, 2).reshape(12, -1)
    for i in range(5):
        write_pickle(folder / f"data_batch_{i + 1}", data=rows[2 * i : 2 * i + 2], labels=[i, 9])
    write_pickle(folder / "test_batch", data=rows[10:], labels=[3, 4])
    write_pickle(folder / "batches.meta", label_names=[f"class {i}" for i in range(10)])
    train, test = (data.build_dataset(config("cifar-10", tmp_path), split) for split in ("train", "test"))
    np.testing.assert_array_equal(train.images.permute(0, 2, 3, 1), images[:10])
    np.testing.assert_array_equal(test.images.permute(0, 2, 3, 1), images[10:])
    assert train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert test.classes[4] == "class 4"


def test_cifar20_takes_the_coarse_labels(tmp_path, any_checksum):
    folder = tmp_path / "cifar-20" / "cifar-100-python"
    images = pictures(4)
    rows = images.transpose(0, 3, 1, 2).reshape(4, -1)
    write_pickle(folder / "train", data=rows, fine_labels=[99, 50, 3, 2], coarse_labels=[19, 4, 0, 7])
    write_pickle(folder / "test", data=rows[:1], fine_labels=[98], coarse_labels=[5])
    names = [f"coarse {i}" for i in range(20)]
    write_pickle(folder / "meta", fine_label_names=[str(i) for i in range(100)], coarse_label_names=names)
    train, test = (data.build_dataset(config("cifar-20", tmp_path), split) for split in ("train", "test"))
    assert train.labels.tolist() == [19, 4, 0, 7]
    assert test.labels.tolist() == [5]
    assert train.classes == names


def test_stl10_files(tmp_path, any_checksum):
    folder = tmp_path / "stl-10" / "stl10_binary"
    folder.mkdir(parents=True)
    images = pictures(9, 96, 96)
    for name, part, labels in (("train", images[:3], [1, 2, 10]), ("test", images[3:5], [4, 5])):
        part.transpose(0, 3, 2, 1).tofile(folder / f"{name}_X.bin")  # columns first, as STL-10 is
        np.array(labels, dtype=np.uint8).tofile(folder / f"{name}_y.bin")
    images[5:].transpose(0, 3, 2, 1).tofile(folder / "unlabeled_X.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    train = data.build_dataset(config("stl-10", tmp_path), "train")
    np.testing.assert_array_equal(train.images.permute(0, 2, 3, 1), images[:3])
    assert train.labels.tolist() == [0, 1, 9]
    assert len(data.build_dataset(config("stl-10", tmp_path), "test")) == 2
    everything = data.build_dataset(config("stl-10", tmp_path), "train+unlabeled")
    assert (len(everything), everything.labels) == (7, None)


@pytest.mark.parametrize("name", ["cifar-10", "cifar-20", "stl-10"])
def test_download_without_network(tmp_path, monkeypatch, name):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(UserError, match=f"{name}: the dataset is not there and could not be downloaded"):
        data.build_dataset(config(name, tmp_path), "train")


# --- folders of image files ----------------------------------------------------------------------


def write_images(folder, n, size=(300, 260), mode="RGB", suffix="JPEG"):
    folder.mkdir(parents=True)
    for i in range(n):
        Image.fromarray(pictures(1, *size, seed=i)[0]).convert(mode).save(folder / f"{i}.{suffix}")


def test_imagenet_folders(tmp_path):
    root = tmp_path / "imagenet" / "ILSVRC2012_img_train"
    write_images(root / "n02", 2, size=(600, 300))
    write_images(root / "n01", 1, mode="L", size=(100, 180))
    write_images(root / "n03", 1, mode="CMYK")
    found = data.build_dataset(config("imagenet", tmp_path), "train")
    assert found.classes == ["n01", "n02", "n03"]
    assert found.labels.tolist() == [0, 1, 1, 2]
    assert fetch(found, [0, 3]).shape == (2, 3, 256, 256)
    assert fetch(found, [[0, 3], [1, 2]]).shape == (2, 2, 3, 256, 256)
    with pytest.raises(UserError, match="ILSVRC2012_img_val: ImageNet is not there"):
        data.build_dataset(config("imagenet", tmp_path), "test")


def test_imagenet_classes_are_those_of_train(tmp_path):
    """A class without validation images must not shift the labels of the others."""
    for split, wnids in (("train", ("n01", "n02", "n03")), ("val", ("n01", "n03"))):
        for wnid in wnids:
            write_images(tmp_path / f"imagenet/ILSVRC2012_img_{split}" / wnid, 1)
    with pytest.raises(UserError, match=r"1 class folders are missing \(n02\)"):
        data.build_dataset(config("imagenet", tmp_path), "test")
    (tmp_path / "imagenet/ILSVRC2012_img_val/n04").mkdir()
    with pytest.raises(UserError, match="has no class folder n04"):
        data.build_dataset(config("imagenet", tmp_path), "test")
    (tmp_path / "imagenet/ILSVRC2012_img_val/n04").rename(tmp_path / "imagenet/ILSVRC2012_img_val/n02")
    assert data.build_dataset(config("imagenet", tmp_path), "test").labels.tolist() == [0, 2]


def test_imagenet_validation_images_that_were_not_sorted(tmp_path):
    write_images(tmp_path / "imagenet/ILSVRC2012_img_val", 2)
    with pytest.raises(UserError, match="no class folders; sort its images"):
        data.build_dataset(config("imagenet", tmp_path), "test")


def test_imagenet_subset_follows_the_published_list(tmp_path):
    lines = (data.imagenet.SUBSETS / "imagenet_50.txt").read_text().splitlines()
    root = tmp_path / "imagenet" / "ILSVRC2012_img_val"
    (root / "n99999999").mkdir(parents=True)  # a class outside the subset
    for line in lines:
        (root / line.split()[0]).mkdir()
    write_images(root / lines[7].split()[0] / "x", 0)
    Image.new("RGB", (40, 40)).save(root / lines[7].split()[0] / "a.JPEG")
    found = data.build_dataset(config("imagenet_50", tmp_path), "test")
    assert found.labels.tolist() == [7]
    assert len(found.classes) == 50
    assert found.classes[7] == lines[7].split(" ", 1)[1]
    (root / lines[3].split()[0]).rmdir()
    with pytest.raises(UserError, match="1 class folders are missing"):
        data.build_dataset(config("imagenet_50", tmp_path), "test")


def test_subset_sizes():
    for n in (50, 100, 200):
        lines = (data.imagenet.SUBSETS / f"imagenet_{n}.txt").read_text().splitlines()
        assert len({line.split()[0] for line in lines}) == n


def test_folder_of_unlabelled_images(tmp_path):
    for split, n in (("train", 3), ("test", 2)):
        write_images(tmp_path / "holiday" / split, n, suffix="png")
    found = data.build_dataset(config("holiday", tmp_path), "train")
    assert (len(found), found.labels, found.classes) == (3, None, None)


@pytest.mark.parametrize(("height", "width"), [(400, 300), (332, 500), (256, 343), (99, 1000), (257, 256)])
@pytest.mark.parametrize(("size", "crop"), [(256, 224), (37, None)])
def test_decoding_equals_the_plain_way(tmp_path, height, width, size, crop):
    """Resize(256) and CenterCrop(224) of torchvision, to the byte."""
    write_images(tmp_path / "a", 1, size=(height, width), suffix="png")
    dataset = FolderImages([tmp_path / "a" / "0.png"], None, None, size)
    image = torchvision.transforms.functional.resize(Image.open(tmp_path / "a" / "0.png"), size)
    expected = np.asarray(torchvision.transforms.functional.center_crop(image, size))
    np.testing.assert_array_equal(dataset.raw(0).permute(1, 2, 0), expected)
    if size == 256:
        direct = np.asarray(torchvision.transforms.functional.center_crop(image, crop))
        np.testing.assert_array_equal(center_crop(dataset.raw(0), crop).permute(1, 2, 0), direct)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_image_is_named(tmp_path, workers):
    write_images(tmp_path / "a", 2)
    (tmp_path / "a" / "1.JPEG").write_bytes(b"no image")
    dataset = FolderImages(sorted((tmp_path / "a").iterdir()), None, None, 256)
    with pytest.raises(UserError, match=f"^{tmp_path}/a/1.JPEG: cannot be read[^\n]*$"):
        list(dataset.fetch([torch.tensor([0, 1])], "cpu", workers))


def test_folder_classes_are_those_of_train(tmp_path):
    for name, n in (("cat", 2), ("dog", 1), ("ox", 1)):
        write_images(tmp_path / "zoo/train" / name, n)
    write_images(tmp_path / "zoo/test/dog", 1)
    write_images(tmp_path / "zoo/test/ox", 2)
    (tmp_path / "zoo/test/.ipynb_checkpoints").mkdir()
    small = config("zoo", tmp_path, transformation_kwargs={"crop_size": 32})
    found = data.build_dataset(small, "test")
    assert (found.labels.tolist(), found.classes) == ([1, 2, 2], ["cat", "dog", "ox"])
    assert fetch(found, [0]).shape == (1, 3, 37, 37)
    write_images(tmp_path / "zoo/test/emu", 1)
    with pytest.raises(UserError, match="zoo/train: has no class folder emu, but .*zoo/test has"):
        data.build_dataset(small, "test")


# --- names ---------------------------------------------------------------------------------------


def test_unknown_dataset(tmp_path):
    with pytest.raises(UserError, match="did you mean 'cifar-10'"):
        data.build_dataset(config("cifar10", tmp_path), "train")
    with pytest.raises(ValueError, match="split"):
        data.build_dataset(config("digits", tmp_path), "validation")


# --- loader and views ----------------------------------------------------------------------------


def numbered(n):
    """Image i has the constant value i."""
    return ArrayImages(torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 4, 4).clone())


def values(images):
    return images[:, 0, 0, 0].tolist()


def test_training_batches_are_shuffled_complete_and_full():
    torch.manual_seed(0)
    loader = data.Loader(numbered(23), data.PlainView(lambda x: x), 5, train=True)
    batches = [values(images) for images in loader]
    assert [len(batch) for batch in batches] == [5] * 4 == [5] * len(loader)
    seen = sum(batches, [])
    assert len(set(seen)) == 20
    assert seen != sorted(seen)
    assert [values(images) for images in loader] != batches  # another order each epoch


def test_evaluation_batches_are_in_order_and_complete():
    loader = data.Loader(numbered(23), data.PlainView(lambda x: x), 5, train=False)
    assert sum((values(images) for images in loader), []) == list(range(23))
    assert len(loader) == 5


def test_split_smaller_than_a_batch():
    with pytest.raises(UserError, match="set batch_size to 3"):
        data.Loader(numbered(3), data.PlainView(None), 4, train=True)


def test_two_views_are_interleaved():
    loader = data.Loader(numbered(4), data.TwoViews(lambda x: x), 4, train=False)
    assert values(next(iter(loader))) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_neighbors_are_drawn_uniformly_from_the_first_entries():
    torch.manual_seed(0)
    lists = torch.tensor([[i, 10 + i, 20 + i, 30 + i] for i in range(10)] * 4)
    view = data.AnchorNeighborView(lambda x: x, lists, num_neighbors=2)
    counts = torch.zeros(3)
    for _ in range(300):
        for anchors, neighbors in data.Loader(numbered(40), view, 10, train=True):
            offset = torch.tensor(values(neighbors)) - torch.tensor(values(anchors)) % 10
            counts += (offset / 10).long().bincount(minlength=3)  # bincount refuses what is out of range
    assert (counts - counts.sum() / 3).abs().max() < 5 * (counts.sum() / 3) ** 0.5


def test_anchor_and_neighbor_are_augmented_on_their_own():
    view = data.AnchorNeighborView(None, torch.arange(6).view(6, 1), num_neighbors=0)
    view.transform = lambda images: torch.rand(images.shape)
    anchors, neighbors = next(iter(data.Loader(numbered(6), view, 6, train=False)))
    assert not torch.equal(anchors, neighbors)


def test_more_neighbors_than_mined():
    with pytest.raises(UserError, match="num_neighbors 5 is more than the 3"):
        data.AnchorNeighborView(None, torch.zeros(9, 4, dtype=torch.int64), 5)


def test_weak_and_strong_show_the_same_images():
    view = data.WeakStrongView(lambda x: x, lambda x: x.float() + 100)
    weak, strong = next(iter(data.Loader(numbered(5), view, 5, train=True)))
    assert torch.equal(weak + 100.0, strong)


# --- several batches in one call, as on a GPU ----------------------------------------------------


class NoisyPairs:
    """A view of two tensors, with random numbers of its own; notes how many anchors each call sees."""

    def __init__(self):
        self.calls = []

    def index(self, anchors):
        return torch.stack([anchors, anchors + 1], 1)

    def __call__(self, images):
        self.calls.append(len(images))
        pixel = images[:, :, 0, 0, 0].float()  # (B, 2)
        return pixel[:, 0], pixel[:, 1] + torch.rand(len(images))


def small_batches(bytes_at_once):
    images = torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1).expand(60, 3, 2, 2)
    view = NoisyPairs()
    loader = data.Loader(ArrayImages(images), view, 4, train=True, anchors=torch.arange(59))
    loader.at_once = bytes_at_once
    return loader, view


def test_several_small_batches_are_augmented_in_one_call():
    passes = []
    for bytes_at_once in (0, 3 * 4 * 2 * 12 + 11):  # one batch, and three
        loader, view = small_batches(bytes_at_once)
        torch.manual_seed(0)
        passes.append([(loader.ahead, *batch) for batch in loader])
    assert view.calls == [12, 12, 12, 12, 8] and len(passes[0]) == len(passes[1]) == 14
    assert [ahead for ahead, *_ in passes[0]] == [0] * 14
    assert [ahead for ahead, *_ in passes[1]] == [2, 1, 0] * 4 + [1, 0]
    for (_, anchors, noisy), (_, same_anchors, others) in zip(*passes, strict=True):
        assert torch.equal(anchors, same_anchors) and torch.equal(noisy.floor(), others.floor())


def test_a_pass_goes_on_from_where_nothing_is_ahead(monkeypatch):
    """The training loop stops there only, so that the rest of the pass is the same."""
    seen, stop = [], []
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), fused=True)

    def step(batch):
        seen.append(batch[1])
        return {"loss": model(batch[1].unsqueeze(1)).mean()}

    def epoch(progress=None):
        loader, _ = small_batches(3 * 4 * 2 * 12)
        torch.manual_seed(0)
        if progress:
            loader.skip(progress.batches, progress.random_state)
        progress = progress or Progress()
        engine._train_epoch(model, optimizer, loader, step, None, "", progress)
        return progress

    monkeypatch.setattr(interrupt, "noted", lambda: stop and len(seen) >= stop[0])
    assert epoch().batches == 14
    whole, seen[:] = list(seen), []
    stop.append(5)
    progress = epoch()
    assert progress.batches == len(seen) == 6
    stop.clear()
    assert epoch(progress).batches == 14
    assert all(torch.equal(a, b) for a, b in zip(seen, whole, strict=True))
