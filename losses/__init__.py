"""The three training objectives, one per step of the method; all compute in float32."""

from .scan import SCANLoss
from .selflabel import ConfidenceBasedCE
from .simclr import SimCLRLoss

__all__ = ["ConfidenceBasedCE", "SCANLoss", "SimCLRLoss"]
