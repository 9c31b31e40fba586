"""A plain implementation of what this project does, for bench.py to compare with.

It is written as one would at first: one Pillow image at a time in DataLoader workers, float32, channels
first, eager, a number read back in every iteration, an N x N matrix in the validation objective.
"""

import random

import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy.optimize import linear_sum_assignment
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

# name: (function of image and magnitude, low, high, mirrored)
OPERATIONS = {
    "Identity": (lambda image, v: image, 0, 0, False),
    "AutoContrast": (lambda image, v: ImageOps.autocontrast(image), 0, 0, False),
    "Equalize": (lambda image, v: ImageOps.equalize(image), 0, 0, False),
    "Rotate": (lambda image, v: image.rotate(v), -30, 30, True),
    "Solarize": (ImageOps.solarize, 0, 256, False),
    "Color": (lambda image, v: ImageEnhance.Color(image).enhance(v), 0.05, 0.95, False),
    "Contrast": (lambda image, v: ImageEnhance.Contrast(image).enhance(v), 0.05, 0.95, False),
    "Brightness": (lambda image, v: ImageEnhance.Brightness(image).enhance(v), 0.05, 0.95, False),
    "Sharpness": (lambda image, v: ImageEnhance.Sharpness(image).enhance(v), 0.05, 0.95, False),
    "ShearX": (lambda image, v: _affine(image, 1, v, 0, 0, 1, 0), -0.1, 0.1, True),
    "TranslateX": (lambda image, v: _affine(image, 1, 0, v * image.width, 0, 1, 0), -0.1, 0.1, True),
    "TranslateY": (lambda image, v: _affine(image, 1, 0, 0, 0, 1, v * image.height), -0.1, 0.1, True),
    "Posterize": (lambda image, v: ImageOps.posterize(image, int(v)), 4, 8, False),
    "ShearY": (lambda image, v: _affine(image, 1, 0, 0, v, 1, 0), -0.1, 0.1, True),
}


def _affine(image, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


class StrongOperations:
    """`count` operations on a PIL image, drawn with replacement."""

    def __init__(self, count):
        self.count = count

    def __call__(self, image):
        for function, low, high, mirrored in random.choices(list(OPERATIONS.values()), k=self.count):
            magnitude = random.uniform(low, high)
            image = function(image, -magnitude if mirrored and random.random() < 0.5 else magnitude)
        return image


class Cutout:
    """Square holes of 0 in a normalized image (3, H, W)."""

    def __init__(self, n_holes, length, random=True):
        self.n_holes, self.length, self.random = n_holes, length, random

    def __call__(self, image):
        half = (random.randint(1, self.length) if self.random else self.length) // 2
        for _ in range(self.n_holes):
            row, column = (random.randrange(side) for side in image.shape[1:])
            image[:, max(0, row - half) : row + half, max(0, column - half) : column + half] = 0
        return image


def train_transform(config):
    """A training augmentation of `config`, of one PIL image."""
    kwargs = config["augmentation_kwargs"]
    to_tensor = [transforms.ToTensor(), transforms.Normalize(**kwargs["normalize"])]
    flip = transforms.RandomHorizontalFlip()
    if config["augmentation_strategy"] == "ours":
        crop, strong = transforms.RandomCrop(kwargs["crop_size"]), StrongOperations(kwargs["num_strong_augs"])
        return transforms.Compose([flip, crop, strong, *to_tensor, Cutout(**kwargs["cutout_kwargs"])])
    color = []
    if config["augmentation_strategy"] == "simclr":
        jitter = transforms.ColorJitter(**kwargs["color_jitter"])
        color = [
            transforms.RandomApply([jitter], **kwargs["color_jitter_random_apply"]),
            transforms.RandomGrayscale(**kwargs["random_grayscale"]),
        ]
    crop = transforms.RandomResizedCrop(**kwargs["random_resized_crop"])
    return transforms.Compose([crop, flip, *color, *to_tensor])


def eval_transform(config):
    """The evaluation transform of `config`, of one PIL image."""
    kwargs = config["transformation_kwargs"]
    to_tensor = [transforms.ToTensor(), transforms.Normalize(**kwargs["normalize"])]
    return transforms.Compose([transforms.CenterCrop(kwargs["crop_size"]), *to_tensor])


class Views(Dataset):
    """Item i: the views of image i, one per transform, or of image i and a neighbor.

    Args:
        images: uint8 array (N, H, W, 3).
        view_transforms: functions of a PIL image.
        neighbors: int array (N, k); the second view is of one of them.
    """

    def __init__(self, images, view_transforms, neighbors=None):
        self.images, self.transforms, self.neighbors = images, view_transforms, neighbors

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        indices = [index] * len(self.transforms)
        if self.neighbors is not None:
            indices[1] = random.choice(self.neighbors[index])
        return [
            transform(Image.fromarray(self.images[i]))
            for i, transform in zip(indices, self.transforms, strict=True)
        ]


def loader(views, batch_size, workers, train=True):
    """Batches, a list of one tensor (B, 3, S, S) per view."""
    return DataLoader(
        views,
        batch_size,
        shuffle=train,
        drop_last=train,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


def validation_objective(probabilities, neighbors):
    """SCAN's objective from the N x N matrix of all similarities: (consistency, entropy)."""
    similarity = probabilities @ probabilities.T
    consistency = -similarity.gather(1, neighbors).log().clamp(min=-100).mean()
    mean = probabilities.mean(0).clamp(min=1e-8)
    return consistency.item(), -(mean * mean.log()).sum().item()


def count_matches(clusters, labels, pairs):
    """How many images are in both of each (cluster, class) pair; a pass over the images for each pair."""
    return [int(((clusters == cluster) & (labels == label)).sum()) for cluster, label in pairs]


def assign(table):
    """One-to-one matching of a table of counts."""
    return linear_sum_assignment(table, maximize=True)
