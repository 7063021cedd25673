"""Activation Clustering: a class whose features fall into two clusters, one of which may be poisoned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import nn

from theriac.core.method import Needs, preset, register
from theriac.core.outcome import Finding
from theriac.core.ranges import Count, Fraction
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.detectors._rows import Divided, agreement, answer, by_class, more_varied, names_of, standing
from theriac.detectors.base import Detector
from theriac.models import run_over

MOST_PAIRED = 2000  # rows of a class among which distances are taken for the silhouette


@register
@dataclass(frozen=True, kw_only=True)
class ActivationClustering(Detector):
    """Divides the features of each class by 2-means; two compact clusters mean that its rows are of two origins.

    Penultimate features of a class are projected on their first principal components and divided by 2-means. The class's score
    is the silhouette of the two clusters, in [-1, 1]. A row's score says how much nearer it is to the center of the suspected
    cluster than to that of the other one, as a share of the larger distance, times its class's score: so rows of a class that
    falls apart rank before rows of one that does not (ours).

    Paper: Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering", SafeAI 2019,
    https://arxiv.org/abs/1811.03728 (grade M). Facts from SCLBD/BackdoorBench @ f02e353 for ten principal components (grade A).

    Threat model: the model trained on the rows, and the rows with the labels that they came with.

    Deviations: the paper reduces by independent components; principal ones here, as in BackdoorBench, over all rows of a class
    and not over those of a batch. The paper suspects the smaller cluster; an attack that fills half of its target class has
    none, so by default the cluster whose raw rows vary more is suspected (ours): it holds rows of several classes. A class is
    flagged only if it passes the safeguard of :func:`theriac.detectors._rows.standing` (ours).

    Cost: two forward passes a row, and ten 2-means a class.

    Known limits: an attack that leaves labels true has rows of one class in both clusters, and which is suspected is then
    guessing. Kinds of pictures within a class make clusters, too.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> rows = th.attacks.BadNets(poison_rate=0.05).poison(data.train).split
        >>> model = th.train("wrn_16_1", rows, recipe="short_2")
        >>> finding = ActivationClustering().detect(model, rows)
    """

    name: ClassVar[str] = "activation_clustering"
    title: ClassVar[str] = "Activation Clustering"
    source: ClassVar[str] = "arXiv:1811.03728"
    needs: ClassVar[Needs] = Needs(model=True, rows=True)

    components: Count = 10  # paper and BackdoorBench
    suspect: Literal["varied", "smaller"] = "varied"  # ours; the paper takes the smaller cluster
    silhouette: Fraction = 0.7  # ours, on tuning seeds; the paper looks at silhouettes and names no fixed bound that holds here

    @classmethod
    @preset
    def paper(cls) -> ActivationClustering:
        """The paper's choice of the cluster."""
        return cls(suspect="smaller")

    def _detect(self, model: nn.Module | None, rows: Split | None, clean: Split | None, run: Run) -> Finding:
        from sklearn.cluster import KMeans  # imported on use, since it is slow
        from sklearn.metrics import silhouette_score

        assert rows is not None
        features, y = run_over(model, rows, "features", run=run).double(), rows.y.cpu()
        scores = torch.zeros(len(rows), dtype=torch.float64)
        classes = torch.zeros(rows.num_classes, dtype=torch.float64)
        member, judged = torch.zeros(len(rows), dtype=torch.bool), torch.zeros(rows.num_classes, dtype=torch.bool)
        sizes = torch.zeros(rows.num_classes)
        for k, at in by_class(rows):
            reduced = principal(features[at], self.components)
            if not float(reduced.var(0).sum()) > 0:
                continue
            seed = run.stream_seed("method", self.name, k) % 2**32
            clusters = KMeans(2, n_init=10, random_state=seed).fit(reduced.numpy())
            second = torch.from_numpy(clusters.labels_ == 1)
            if not 0 < int(second.sum()) < len(at):
                continue
            smaller = second if 2 * int(second.sum()) <= len(at) else ~second
            suspected = more_varied(rows, at, smaller) if self.suspect == "varied" else smaller
            distances = torch.cdist(reduced, torch.from_numpy(clusters.cluster_centers_).to(reduced))
            other, own = distances.T if bool(second[suspected][0]) else distances.flip(1).T
            member[at], judged[k], sizes[k] = suspected, True, float(suspected.double().mean())
            some = np.random.RandomState(seed).permutation(len(at))[:MOST_PAIRED]
            if 0 < int(second[some].sum()) < len(some):  # else the smaller group is a handful, which is not suspected anyhow
                classes[k] = float(silhouette_score(reduced.numpy()[some], clusters.labels_[some]))
            scores[at] = max(0.0, float(classes[k])) * (other - own) / torch.maximum(own, other).clamp_min(1e-12)
        divided = Divided(classes=classes.clamp_min(0), member=member, judged=judged)
        out = standing(divided, y, self.silhouette, agreement(model, rows, run))
        shares = names_of(rows.card.classes, sizes)
        return answer(
            rows, scores, divided, out, self.silhouette, unit="silhouette", compares=False, evidence={"suspected_share": shares}
        )


def principal(features: torch.Tensor, components: int) -> torch.Tensor:
    """Coordinates of rows (N, D) along their first principal components, (N, at most ``components``)."""
    centered = features - features.mean(0)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    coordinates: torch.Tensor = centered @ directions[:components].T
    return coordinates
