"""Where the signs of the task vectors agree. Needs torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def sign_agreement(task_vectors: Sequence[Tensor]) -> NDArray[np.int64]:
    """Number of coordinates with |Σ_t sign τ_tj| = 0, 1, …, T, among those that any of the T models changed.

    Shape (T + 1,). The task vectors are finite; a coordinate that no model changed is not counted.
    """
    count = len(task_vectors)
    votes = task_vectors[0].sign()
    changed, sign = votes.abs(), torch.empty_like(votes)
    for task_vector in task_vectors[1:]:
        torch.sign(task_vector, out=sign)
        votes.add_(sign)
        torch.maximum(changed, sign.abs_(), out=changed)
    places = votes.abs_().add_(1).mul_(changed).to(torch.int64).view(-1)  # 0: changed by no model
    counts: NDArray[np.int64] = torch.bincount(places, minlength=count + 2)[1:].cpu().numpy()
    return counts
