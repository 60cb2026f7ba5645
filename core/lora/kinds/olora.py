"""OLoRA (Büyükakyüz 2024, arXiv 2406.01775): the factors start from the QR decomposition of W.

With W = Q·R: B₀ is the first r columns of Q, and A₀ the first r rows of R.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.lora.kinds._from_weight import FromWeight

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Olora(FromWeight):
    """Trains orthonormal directions of W."""

    name, label, order = "olora", "OLoRA", 31
    help = (
        "LoRA that starts from orthonormal directions of W; stored as a LoRA of twice the rank, which loads "
        "anywhere. Once the learning rate is tuned, such variants lie within 1 to 2 % of LoRA (arXiv "
        "2602.04998)."
    )

    def start(
        self, n_in: int, n_out: int, rank: int, weight: Tensor, generator: Generator, own: Any
    ) -> Mapping[str, Tensor]:
        """The first r columns of Q follow from those of W alone, and R's rows are Qᵀ·W."""
        import torch

        W = weight.float()
        Q = torch.linalg.qr(W[:, :rank]).Q
        A, B = (Q.T @ W).cpu(), Q.cpu().contiguous()
        return {"A": A, "B": B, "A0": A.clone(), "B0": B.clone()}


KIND = Olora()
