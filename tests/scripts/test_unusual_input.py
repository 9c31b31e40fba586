"""What looks wrong and is not."""

import numpy as np
import pytest
from digits_files import write_digits
from digits_steps import figures, run


@pytest.mark.parametrize("labels", [[0, 2, 5], [3, 7]])
def test_classes_without_images(labels, tmp_path):
    """The figures are those of the same classes numbered without gaps."""
    found = []
    for name, numbers in (("gaps", labels), ("none", range(len(labels)))):
        root, numbers = tmp_path / name, np.array(numbers)
        root.mkdir()

        def numbered(digits, numbers=numbers):
            return numbers[np.arange(len(digits)) % len(numbers)]

        moved = write_digits(root, "mine", 120, 60, labels=numbered)
        settings = ["train_db_name=mine", "val_db_name=mine", moved, "batch_size=40", "epochs=1"]
        for step in ("pretext", "scan"):
            run(step, root, *settings)
        found.append([figures(root / "mine" / step) for step in ("pretext", "scan")])
    for gaps, none in zip(*found, strict=True):
        assert gaps.keys() == none.keys()
        assert all(gaps[key] == none[key] for key in gaps.keys() - {"num_classes", "matches", "dataset"})
    clusters, same = (dict(run[1]["matches"]) for run in found)
    assert {c: labels[k] for c, k in same.items()}.items() <= clusters.items()
    assert found[0][1]["num_classes"] == max(labels) + 1


def test_damaged_metrics(copied):
    (copied / "digits/pretext/metrics.jsonl").write_text('{"epoch": "one"}\n')
    run("pretext", copied)
    assert (copied / "digits/pretext/metrics.jsonl").read_text() == ""
