"""The neighbors' votes on pseudo-labels, an option of self-labeling that is not of the paper."""

import logging
from typing import Any

import torch
import torch.nn.functional as F

import data
from losses import NO_VOTE, NeighborVoting
from models import ClusteringModel
from utils.analysis import duplicates, neighbors
from utils.run import distributed
from utils.run.folder import Run
from utils.training.inference import infer_to_file

log = logging.getLogger(__name__)


class Votes:
    """The cluster that the neighbors of each training image agree on, for losses.NeighborVoteCE.

    Attributes:
        votes: int64 (N,), on the run's device; a part of the checkpoint.

    Raises:
        UserError: fewer images, without copies of others, than neighbors are to vote.
    """

    def __init__(
        self, run: Run, model: ClusteringModel, voting: NeighborVoting, train_set: data.Dataset
    ) -> None:
        self.run = run
        self.model = model
        self.voting = voting
        self.images = data.eval_loader(train_set, run.config, **run.machine.loading(run.config))
        self.first = duplicates.first_copies(train_set)
        n = duplicates.count_distinct(self.first)
        neighbors.require_candidates(n, voting.num_neighbors, len(train_set) - n)
        self.votes = torch.full((len(train_set),), NO_VOTE, device=run.machine.device)
        self.tell = log.info  # once, not in each epoch

    def state_dict(self) -> dict[str, Any]:
        return {"votes": {"votes": self.votes}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.votes = state["votes"]["votes"].to(self.run.machine.device)

    def for_images(self, index: torch.Tensor) -> torch.Tensor:
        """The votes on these images, int64 (B,) on the CPU -> (B,)."""
        return self.votes[data.to_device(index, self.run.machine.device)]

    def update(self) -> None:
        """Vote anew, by what the model, in eval mode, makes of the images now."""
        votes = torch.empty(len(self.images.dataset), dtype=torch.int64, device=self.run.machine.device)
        with self.run.scratch() as scratch:  # the features of many images do not fit in memory
            with self.run.machine.autocast():
                seen = infer_to_file(self.look, self.images, "votes", scratch / "seen.npy")
            if self.run.main:
                votes.copy_(self.count(*seen.tensor_split([-self.run.config.num_classes], dim=1)))
        self.votes = distributed.from_main(votes)

    def look(self, images: torch.Tensor) -> torch.Tensor:
        """What is known of a batch, float32 (B, D + C): normalized features, and probabilities."""
        features = self.model.backbone(images)
        probabilities = self.model.cluster_head(features)[0].softmax(1)
        return torch.cat([F.normalize(features.float(), dim=1), probabilities.float()], dim=1)

    def count(self, features: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        """The votes on all images by what `look` gives of them, int64 (N,)."""
        k, device, library = self.voting.num_neighbors, self.run.machine.device, self.run.config.search
        mined = duplicates.mine_distinct(features, k, self.first, device, library, self.tell)
        self.tell = log.debug
        votes, agreement = neighbors.vote(mined, probabilities)
        return votes.where(agreement >= self.voting.agreement, NO_VOTE)
