"""pass@k."""

from __future__ import annotations

import math


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased probability that at least one of k samples passes, when c of n did:
    1 − C(n − c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, eq. 1).

    Raises:
        ValueError: not 0 ≤ c ≤ n, or not 1 ≤ k ≤ n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}")
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))
