"""Which rows a training reads, in what order: pure functions of metadata, settings and seed."""

from weighted_mtp.data.sampling.bins import bin_counts
from weighted_mtp.data.sampling.pairs import draw_pairs
from weighted_mtp.data.sampling.row_order import RowOrder

__all__ = ["RowOrder", "bin_counts", "draw_pairs"]
