"""The three training objectives, one per step of the method; all compute in float32."""

from .scan import SCANLoss
from .selflabel import NO_VOTE, ConfidenceBasedCE, NeighborVoteCE
from .simclr import SimCLRLoss

# the names that a configuration's `criterion` takes
CRITERIA = {
    "simclr": SimCLRLoss,
    "scan": SCANLoss,
    "confidence-cross-entropy": ConfidenceBasedCE,
    "neighbor-vote-cross-entropy": NeighborVoteCE,
}

__all__ = ["CRITERIA", "NO_VOTE", "ConfidenceBasedCE", "NeighborVoteCE", "SCANLoss", "SimCLRLoss"]
