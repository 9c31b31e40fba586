"""head.npz: the clusters' numbers and their identity, kept where the clusters correspond."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from errors import UserError
from workflows import final_head
from workflows.final_head import Earlier, FinalHead, Kept


class Images:
    """A dataset, as far as the numbers need it."""

    def __init__(self, names, contents=None):
        self.names, self.content_hashes = (lambda: names), (lambda: contents)

    def __len__(self):
        return len(self.names())


def numbers(clusters, dataset, earlier, c=3):
    """The new number of each image's cluster."""
    layer = nn.Linear(c, c)
    layer.weight.data, layer.bias.data = torch.eye(c), torch.zeros(c)
    clusters_, known = torch.tensor(clusters), Earlier(earlier)
    head, _ = final_head.number_clusters(layer, "0" * 16, clusters_, dataset, known, {})
    assert head.handles == [str(number) for number in range(c)]
    return head.linear()(torch.eye(c)[clusters]).argmax(1).tolist()


NAMES = [*"abcdefgh"]


@pytest.mark.parametrize(
    ("clusters", "earlier", "expected"),
    [
        ([2, 2, 2, 0, 0, 0, 0, 1], [], [1, 1, 1, 0, 0, 0, 0, 2]),  # by size
        ([2, 2, 1, 1, 2, 1], [], [0, 0, 1, 1, 0, 1]),  # of the same size: by the first image
        ([2, 2, 2, 0, 0, 1, 1, 1], [1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 2, 2, 0, 0, 0]),  # the same, and an image
        ([0, 0, 0, 1, 1, 1, 1, 2], [1, 1, 1, 0, 0, 2, 2, 2], [1, 1, 1, 0, 0, 0, 0, 2]),  # one of them
        ([0, 0, 0, 1, 1, 2], [7, 7, 7, 0, 0, 1], [2, 2, 2, 0, 0, 1]),  # there were more
    ],
)
def test_numbers(clusters, earlier, expected):
    """By size, but those of an earlier clustering are kept where more than half of the union is shared."""
    names = NAMES[: len(clusters)]
    before = {name: Kept(cluster) for name, cluster in zip(names, earlier, strict=False)}
    assert numbers(clusters, Images(names), before) == expected


def test_clusters_that_are_not_found_again():
    """Corrections reach them by their name, unless that is a number or they have none."""
    earlier = {
        name: Kept(cluster) for name, cluster in zip("abcdefghi", [0] * 3 + [1] * 3 + [2] * 3, strict=True)
    }
    known = Earlier(earlier, history={"then": ["0", "1", "2", None, "gnus"]}, handles=["0", "1", "2"])
    clusters, images = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 0]), Images([*"abcdefghi"])
    for called, expected in (("cats", "cats"), ("2020", None), ("", None)):
        named = {"0": called, "2": "cows"}
        head, _ = final_head.number_clusters(nn.Linear(3, 3), "0" * 16, clusters, images, known, named)
        assert head.history["then"] == [expected, None, "2", None, "gnus"]


def test_images_are_known_by_their_content():
    """One file was renamed, another has taken its name."""
    before = {"a": Kept(5, "A"), "b": Kept(6, "B"), "c": Kept(7, "C"), "d": Kept(8)}
    dataset = Images(["b", "a", "c", "d", "e"], ["A", "X", "C", "D", "E"])
    found = final_head.look_up(before, dataset)
    assert [kept and kept.cluster for kept in found] == [5, None, 7, 8, None]


def test_the_file(tmp_path):
    """Its identity is that of the head; a damaged file is refused in one line."""
    linear = torch.rand(3, 4), torch.rand(3)
    head = FinalHead(*linear, "0" * 16, *linear, {"\udcff.png": Kept(1, "A")})
    head = replace(head, history={head.clustering: ["0", "1", "2"]})
    head.write(tmp_path)
    kept = FinalHead.read(tmp_path)
    assert kept.clustering == head.clustering and len(head.clustering) == 12 and kept.images == head.images
    assert final_head.head_of(tmp_path, "1" * 16) is None and final_head.head_of(tmp_path, "0" * 16)
    assert replace(head, biases=head.biases + 1).clustering != head.clustering
    (tmp_path / "earlier-1").mkdir()
    (tmp_path / "head.npz").rename(tmp_path / "earlier-1/head.npz")
    assert final_head.earlier_clustering(tmp_path).clustering == head.clustering
    (tmp_path / "clusters.csv").write_text("file,cluster\na,3\n")  # of an older version
    assert final_head.earlier_clustering(tmp_path).images == {"a": Kept(3)}
    path = tmp_path / "earlier-1/head.npz"
    with np.load(path) as saved:
        arrays = dict(saved)
    np.savez(path, **arrays | {"biases": arrays["biases"] + 1})
    for content in (path.read_bytes(), path.read_bytes()[:-9], b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged; copy it again, or remove it"):
            FinalHead.read(path.parent)
