"""CBD's critic: a Wasserstein-style surrogate for the mutual information of the two models' embeddings.

It scores pairs (r, z) of f_B's and f_C's embeddings of one row higher than pairs of different rows, as far as its Lipschitz
constant allows; f_C lowers the difference. Zero means independence only as far as this class of functions can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.card import Augment
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.data.augment import augment
from theriac.models.network import to_input
from theriac.training import optimizers


class Critic(nn.Module):
    """(r, z) joined, dropout, linear to h, leaky ReLU (0.01), dropout, linear to 1; 8,321 parameters at h = 64.

    Args:
        hidden: h, the size of either embedding.
        dropout: Share of inputs dropped, here always: the released code never puts its critic into eval mode.
    """

    def __init__(self, hidden: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.dropout = dropout
        self.inner = nn.Linear(2 * hidden, hidden)
        self.outer = nn.Linear(hidden, 1)

    def forward(self, r: torch.Tensor, z: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Scores (N,) of pairs (N, h), (N, h); masks come from ``generator``, and without one nothing is dropped."""
        pairs = torch.cat([r, z], 1)
        if pairs.dtype == torch.float64:  # of a network in double precision
            pairs = pairs.to(self.inner.weight.dtype)
        hidden = F.leaky_relu(self.inner(self._drop(pairs, generator)), 0.01)
        scores: torch.Tensor = self.outer(self._drop(hidden, generator))[:, 0]
        return scores

    def _drop(self, x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        if generator is None or not self.dropout:
            return x
        keep = torch.rand(x.shape, generator=generator) >= self.dropout  # on the CPU: the same on every device
        return x * keep.to(x.device) / (1 - self.dropout)


def contrast(critic: Critic, r: torch.Tensor, z: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Mean score of pairs of one row minus that of pairs of different rows.

    Args:
        critic: The critic.
        r: f_B's embeddings (B, h).
        z: f_C's embeddings (B, h). They are the ones moved up by one row, the first to the end: they carry the gradient.
        generator: Of the dropout masks.

    Returns:
        A scalar; exactly 0 for a single row, which has no other to be paired with.
    """
    if len(z) < 2:
        return (z * 0).sum()
    scores: torch.Tensor = critic(torch.cat([r, r]), torch.cat([z, z.roll(-1, 0)]), generator)
    return scores[: len(z)].mean() - scores[len(z) :].mean()


def root_of_norm(weight: torch.Tensor) -> torch.Tensor:
    """What the released code divides by: the **square root** of the spectral norm, from five power iterations.

    Iterations start at all ones; a bias counts as a matrix of one column. Where the official estimate would be zero or NaN
    (a zero matrix, rows orthogonal to all ones) this returns 1.
    """
    matrix = weight.reshape(len(weight), -1)
    v = torch.ones(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    u = matrix @ v
    for _ in range(5):
        u = matrix @ v
        u = u / u.norm()
        v = matrix.T @ u
        v = v / v.norm()
    root = (u @ (matrix @ v)).abs().sqrt()
    return torch.where(root.isfinite() & (root > 0), root, torch.ones_like(root))


def spectral_norm(matrix: torch.Tensor) -> torch.Tensor:
    """Largest singular value of a matrix, to 1e-3 or better, without a starting vector that could be orthogonal to it."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    power = gram / gram.norm().clamp_min(1e-30)
    for _ in range(6):  # the 64th power; its longest column lies along the top direction
        power = power @ power
        power = power / power.norm().clamp_min(1e-30)
    top = power.index_select(1, power.norm(dim=0).argmax().view(1))[:, 0]
    squared: torch.Tensor = (top @ gram @ top) / (top @ top).clamp_min(1e-30)
    return squared.clamp_min(0).sqrt()


class Adversary:
    """The critic with its optimizer, learning-rate drops and normalization.

    Args:
        hidden: Size of either embedding.
        run: Device and streams ``init`` and ``method``.
        scale: c in E = c * contrast.
        lr: Of Adam.
        drop_every: Epochs between divisions of the rate by 10, counted as the released code does (one epoch early); 0 = never.
        quirk: Divide weights and biases by the root of the norm as the released code does; otherwise weights by the norm.
        dropout: Of the critic.
    """

    def __init__(
        self, hidden: int, run: Run, *, scale: float, lr: float, drop_every: int, quirk: bool, dropout: float = 0.2
    ) -> None:
        with run.init_scope("cbd", "critic"):
            self.critic = Critic(hidden, dropout).to(run.device)
        self.optimizer = optimizers.Adam(self.critic.parameters(), lr=lr)
        self.run, self.scale, self.lr, self.drop_every, self.quirk = run, scale, lr, drop_every, quirk

    def lr_at(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0. The official scheduler steps first, so its drops come at 19, 39, ..."""
        return self.lr * 0.1 ** ((epoch + 1) // self.drop_every) if self.drop_every else self.lr

    def ascend(self, r: torch.Tensor, z: torch.Tensor, epoch: int = 0, *salt: object) -> None:
        """One step of the critic up E, then its normalization; nothing for a batch of one row."""
        if len(z) < 2:
            return
        self.critic.requires_grad_(True)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(epoch)
        self.optimizer.zero_grad(set_to_none=True)
        (-self.value(r.detach(), z.detach(), "up", epoch, *salt)).backward()
        self.optimizer.step()
        self.normalize()

    def normalize(self) -> None:
        """Divide the weights, in quirk mode the biases too, so that the critic's slope stays bounded."""
        with torch.no_grad():
            for parameter in self.critic.parameters():
                if self.quirk:
                    parameter.div_(root_of_norm(parameter))
                elif parameter.dim() == 2:
                    parameter.div_(spectral_norm(parameter).clamp_min(1e-12))

    def value(self, r: torch.Tensor, z: torch.Tensor, *salt: object) -> torch.Tensor:
        """E at the present critic, a scalar with its gradient."""
        draw = self.run.generator("method", "cbd", "critic", *salt) if self.critic.dropout else None
        with torch.autocast(z.device.type, enabled=False):  # differences of means this small need full precision
            return self.scale * contrast(self.critic, r, z, draw)

    def penalty(self, r: torch.Tensor, z: torch.Tensor, *salt: object) -> torch.Tensor:
        """E for f_C's step: the critic is fixed, only ``z`` carries a gradient."""
        self.critic.requires_grad_(False)
        return self.value(r, z, "down", *salt)

    def state_dict(self) -> dict[str, Any]:
        """Critic and optimizer, for a checkpoint."""
        return {"critic": self.critic.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])


def critic_pass(
    adversary: Adversary,
    embeddings: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    split: Split,
    run: Run,
    policy: Augment | None,
    batch_size: int,
    epoch: int,
) -> None:
    """One pass of critic steps over all rows, with its own order and augmentation, as the released code alternates.

    Args:
        adversary: The critic.
        embeddings: From model input, labels and positions (B,) to r and z, (B, h) each.
        split: Training rows.
        run: Streams ``order`` and ``augment``.
        policy: Augmentation of the rows; None leaves them as they are.
        batch_size: Rows a step; a single last row is skipped.
        epoch: Counted from 0.
    """
    order = torch.randperm(len(split), generator=run.generator("order", "cbd_critic", epoch))
    draws = run.generator("augment", "cbd_critic", epoch)
    for number, at in enumerate(run.each("critic pass", order.split(batch_size))):
        if len(at) < 2:
            continue
        rows = split.rows(at)
        rows = rows if policy is None else augment(rows, policy, draws)
        with torch.no_grad():
            r, z = embeddings(to_input(rows.to(run.device)), split.y[at.to(split.device)].to(run.device), at.to(run.device))
        adversary.ascend(r, z, epoch, number)
