"""names.csv: what the user calls the clusters. Clusters of one name are merged."""

from dataclasses import dataclass
from pathlib import Path

import torch

from data.csv_tables import read_table
from data.messages import shown
from errors import UserError


@dataclass(frozen=True)
class ClusterNames:
    """What the C clusters of a model are called."""

    names: list[str]  # M different ones
    index: torch.Tensor  # int64 (C,), of each cluster's name
    from_file: bool  # or the clusters' numbers

    def best_two(self, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The best two names of each image, by the sum of their clusters' probabilities.

        Args:
            probabilities: float (B, C).

        Returns:
            (B, 2) each: index of the name, its probability, and its most probable cluster.
        """
        index = self.index.to(probabilities.device)
        sums = probabilities.new_zeros(len(probabilities), len(self.names))
        confidence, best = sums.index_add_(1, index, probabilities).topk(2)
        others = index != best.unsqueeze(2)  # (B, 2, C)
        clusters = probabilities.unsqueeze(1).masked_fill(others, -1).argmax(2)
        return best, confidence, clusters


def cluster_names(path: Path | None, num_clusters: int, clustering: str | None = None) -> ClusterNames:
    """The names of names.csv or, without a file, the clusters' numbers.

    Raises UserError as `read_names`, and if all clusters have one name.
    """
    named = read_names(path, num_clusters, clustering) if path else list(map(str, range(num_clusters)))
    names = list(dict.fromkeys(named))
    if len(names) < 2:
        raise UserError(f"{path}: all clusters have one name, so there is nothing to tell apart")
    return ClusterNames(names, torch.tensor([names.index(name) for name in named]), path is not None)


def read_names(path: Path, num_clusters: int, clustering: str | None = None) -> list[str]:
    """The names of clusters 0 to C - 1 from a table with the columns cluster and name.

    Raises UserError as `read_table`, and for a cluster that is unknown, missing or there twice. If the table
    has a column `clustering`, then also for another identity than the given one.
    """
    names: dict[int, str] = {}
    for line, row in read_table(path, ("cluster", "name"), ("clustering",)):
        where, number, name = f"{path}, line {line}", row["cluster"], row["name"]
        if clustering and row["clustering"] not in ("", clustering):
            raise UserError(
                f"{where}: names clustering {shown(row['clustering'])}, but this is {clustering}; name it in "
                "report.html, or put the file into the results folder that had that clustering and give "
                "cluster.py's command again, which carries the names over"
            )
        if not number.isdecimal() or len(number) > 9 or int(number) >= num_clusters:
            raise UserError(
                f"{where}: {shown(number)!r} is no cluster; the model's are 0 to {num_clusters - 1}"
            )
        if int(number) in names:
            raise UserError(f"{where}: cluster {int(number)} has a name already; give each one once")
        if not name:
            raise UserError(f"{where}: cluster {int(number)} has no name; give it one")
        names[int(number)] = name
    missing = [str(cluster) for cluster in range(num_clusters) if cluster not in names]
    if missing:
        raise UserError(
            f"{path}: no name for cluster {', '.join(missing[:5])}{', ...' * (len(missing) > 5)}; give each "
            f"of the {num_clusters} clusters a row"
        )
    return [names[cluster] for cluster in range(num_clusters)]


def named_clustering(path: Path) -> str:
    """The identity of the clustering that a table names; "" if it does not say. Raises as `read_table`."""
    rows = read_table(path, ("cluster", "name"), ("clustering",))
    return next((row["clustering"] for _, row in rows if row["clustering"]), "")
