"""Writing tokens with a model: greedy or sampled, plain or self-speculative, whole or streamed."""

from weighted_mtp.decoding.calibration import measure_token_cost
from weighted_mtp.decoding.decoder import Decoder
from weighted_mtp.decoding.generate import Stream, complete, generate
from weighted_mtp.decoding.reference import complete_naively
from weighted_mtp.decoding.report import Report
from weighted_mtp.decoding.rows import Completion, Piece
from weighted_mtp.decoding.sampling import Sampling
from weighted_mtp.decoding.speculative import Speculation
from weighted_mtp.decoding.stopping import Stopping
from weighted_mtp.decoding.verify import LossyTypical

__all__ = [
    "Completion",
    "Decoder",
    "LossyTypical",
    "Piece",
    "Report",
    "Sampling",
    "Speculation",
    "Stopping",
    "Stream",
    "complete",
    "complete_naively",
    "generate",
    "measure_token_cost",
]
