"""OLoRA (Büyükakyüz 2024, arXiv 2406.01775): the factors start from the QR decomposition of W.

With W = Q·R: B₀ is the first r columns of Q, and A₀ the first r rows of R.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.lora.kinds._from_weight import FromWeight

if TYPE_CHECKING:
    from torch import Tensor


class Olora(FromWeight):
    """Trains orthonormal directions of W."""

    name, label, order = "olora", "OLoRA", 31
    help = (
        "LoRA that starts from orthonormal directions of W; stored as a LoRA of twice the rank, which loads "
        "anywhere. Once the learning rate is tuned, such variants lie within 1 to 2 % of LoRA (arXiv "
        "2602.04998). A step takes as long as LoRA's."
    )

    def directions(self, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """The first r columns of Q follow from those of W alone, and R's rows are Qᵀ·W."""
        import torch

        Q = torch.linalg.qr(weight[:, :rank]).Q
        return Q.T @ weight, Q


KIND = Olora()
