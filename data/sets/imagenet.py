"""ImageNet and its published subsets."""

from pathlib import Path

from errors import UserError

from ..folder.image_files import FolderImages
from ..folder.listing import class_folders, labeled_files
from .labels import require_known

SUBSETS = Path(__file__).parent / "imagenet_subsets"


def build_imagenet(data_dir: Path, split: str, size: int, subset: int | None = None) -> FolderImages:
    """ImageNet under `{data_dir}/imagenet/ILSVRC2012_img_{train,val}/<wnid>/*`.

    Args:
        size: side in pixels that the images are brought to.
        subset: 50, 100 or 200 for the published class lists, whose line number is the label; None
            for all classes, labeled in the sorted order of the train split's folders.
    """
    train, val = (data_dir / "imagenet" / f"ILSVRC2012_img_{name}" for name in ("train", "val"))
    root = val if split == "test" else train
    if not root.is_dir():
        raise UserError(f"{root}: ImageNet is not there; set data_dir to the folder that holds imagenet/")
    present = class_folders(root)
    if not present:
        raise UserError(f"{root}: holds no class folders; sort its images into one folder per class (wnid)")
    if subset is None:
        of_train = class_folders(train) if train.is_dir() else []
        wnids = names = of_train or present  # evaluation alone does not need train
        require_known(train, wnids, root, present)
    else:
        lines = (SUBSETS / f"imagenet_{subset}.txt").read_text(encoding="utf-8").splitlines()
        wnids, names = map(list, zip(*(line.split(" ", 1) for line in lines), strict=True))
    missing = [wnid for wnid in wnids if not (root / wnid).is_dir()]
    if missing:
        raise UserError(f"{root}: {len(missing)} class folders are missing ({', '.join(missing[:4])})")
    files, labels, _ = labeled_files(root, wnids)
    if not files:
        raise UserError(f"{root}: no images found in its class folders")
    return FolderImages(files, labels, names, size)
