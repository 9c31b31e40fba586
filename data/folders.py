"""Images in folders, decoded by worker processes: ImageNet, its subsets, and anybody's own."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
SUBSETS = Path(__file__).parent / "imagenet_subsets"


class FolderImages(torch.utils.data.Dataset):
    """One split of a large dataset: files that are read when a batch asks for them.

    Each image is brought to `size` x `size` pixels: shorter side resized, then the center cropped, so
    that batches can be made. Center crops of evaluation are torchvision's to the pixel; the random
    crops of training are drawn within that square, not within the whole of a longer image.

    Args:
        files: paths, one per image; kept as one array of bytes: a million Path objects would be
            300 MB that each worker process copies as it touches them.
        labels: integers (N,), or None.
        classes: names of the classes, or None.
        size: side in pixels of the images that `fetch` gives.
    """

    def __init__(self, files, labels, classes, size):
        self.files = np.array([os.fsencode(path) for path in files])
        self.labels = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
        self.classes = classes
        self.size = size

    def __len__(self):
        return len(self.files)

    def raw(self, index):
        """The image as it is fetched, uint8 (3, size, size), on the CPU."""
        path = os.fsdecode(self.files[index])
        try:
            with Image.open(path) as image:
                return _resize_and_crop(image.convert("RGB"), self.size)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: cannot be read as an image ({error})") from None

    __getitem__ = raw

    def fetch(self, index_batches, device, num_workers=0):
        """Yield the uint8 images of each index batch, (*index.shape, 3, size, size), on `device`."""
        index_batches = list(index_batches)
        loader = torch.utils.data.DataLoader(
            self,
            batch_sampler=[index.flatten().tolist() for index in index_batches],
            num_workers=num_workers,
            pin_memory=torch.device(device).type == "cuda",
        )
        try:
            for index, images in zip(index_batches, loader, strict=True):
                yield images.to(device, non_blocking=True).unflatten(0, index.shape)
        except UserError as error:  # a worker process puts its traceback before the message
            raise UserError(str(error).strip().splitlines()[-1].removeprefix("errors.UserError: ")) from None


def _resize_and_crop(image, size):
    # torchvision's Resize(size) and CenterCrop(size), pixel by pixel
    width, height = image.size
    short = min(width, height)
    width, height = int(size * width / short), int(size * height / short)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    pixels = np.array(image.crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _image_files(folder):
    with os.scandir(folder) as entries:
        return sorted(entry.path for entry in entries if os.path.splitext(entry.name)[1].lower() in SUFFIXES)


def _class_folders(root):
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _read_classes(root, folders, names, size):
    """The images of `{root}/{folder}/`; the label is the place in `folders`."""
    files, labels = [], []
    for label, folder in enumerate(folders):
        found = _image_files(root / folder) if (root / folder).is_dir() else []
        files += found
        labels += [label] * len(found)
    if not files:
        raise UserError(f"{root}: no images found")
    return FolderImages(files, labels, names, size)


def build_imagenet(data_dir, split, size, subset=None):
    """ImageNet under `{data_dir}/imagenet/ILSVRC2012_img_{train,val}/<wnid>/*`.

    Args:
        subset: 50, 100 or 200 for the published class lists, whose line number is the label; None
            for all classes, labelled in the sorted order of the train split's folders.
    """
    train, val = (Path(data_dir) / "imagenet" / f"ILSVRC2012_img_{name}" for name in ("train", "val"))
    root = val if split == "test" else train
    if not root.is_dir():
        raise UserError(f"{root}: ImageNet is not there; set data_dir to the folder that holds imagenet/")
    present = _class_folders(root)
    if not present:
        raise UserError(f"{root}: holds no class folders; sort its images into one folder per class (wnid)")
    if subset is None:
        of_train = _class_folders(train) if train.is_dir() else []
        wnids = names = of_train or present  # those who only evaluate may lack train
        unknown = sorted(set(present) - set(wnids))
        if unknown:
            raise UserError(f"{train}: has no class folder {', '.join(unknown[:4])}, but {root} has")
    else:
        lines = (SUBSETS / f"imagenet_{subset}.txt").read_text().splitlines()
        wnids, names = zip(*(line.split(" ", 1) for line in lines), strict=True)
    missing = [wnid for wnid in wnids if not (root / wnid).is_dir()]
    if missing:
        raise UserError(f"{root}: {len(missing)} class folders are missing ({', '.join(missing[:4])})")
    return _read_classes(root, wnids, list(names), size)


def build_folder(data_dir, split, size, name):
    """Anybody's images under `{data_dir}/{name}/{train,test}/`: a folder per class, or none and no labels."""
    root = Path(data_dir) / name
    train, folder = root / "train", root / split
    for part in (train, folder):
        if not part.is_dir():
            raise UserError(f"{part}: no such folder; a dataset of image files needs train/ and test/")
    present, classes = _class_folders(folder), _class_folders(train)
    unknown = sorted(set(present) - set(classes))
    if unknown:
        raise UserError(f"{folder}: train/ has no class folder {', '.join(unknown[:4])}")
    if present:
        return _read_classes(folder, classes, classes, size)
    files = _image_files(folder)
    if not files:
        raise UserError(f"{folder}: no images found ({', '.join(sorted(SUFFIXES))})")
    return FolderImages(files, None, None, size)
