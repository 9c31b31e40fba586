"""The three training objectives, one per step of the method; all compute in float32."""

from .scan import SCANLoss
from .selflabel import ConfidenceBasedCE
from .simclr import SimCLRLoss

# the names that a configuration's `criterion` takes
CRITERIA = {"simclr": SimCLRLoss, "scan": SCANLoss, "confidence-cross-entropy": ConfidenceBasedCE}

__all__ = ["CRITERIA", "ConfidenceBasedCE", "SCANLoss", "SimCLRLoss"]
