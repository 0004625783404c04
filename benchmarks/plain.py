"""The plain formulation, after the paper's protocol and the habits of its released code: what speed is measured by.

N x N attention maps, float32, a call of the semantic module for each scale, a look at the loss in every step; one image
and three forward passes at a time in evaluation, PNG and NIfTI files between prediction and score, medpy on whole
volumes. The weights are those of our networks, so that results can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import ChannelAttention, PositionAttention
from models.kernels.prelu import PReLU
from models.network import Output
from models.semantic import SemanticModule


class PlainPositionAttention(PositionAttention):
    """Eq. 1 and 2 with the N x N map."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (conv(x).flatten(2) for conv in (self.query, self.key, self.value))
        attention = torch.bmm(query.transpose(1, 2), key).softmax(-1)
        return self.gamma * torch.bmm(value, attention.transpose(1, 2)).reshape(x.shape) + x


class PlainChannelAttention(ChannelAttention):
    """Eq. 3 and 4, keeping every intermediate."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        energy = torch.bmm(tokens, tokens.transpose(1, 2))
        if self.inverted:
            energy = energy.max(-1, keepdim=True)[0].expand_as(energy) - energy
        return self.gamma * torch.bmm(energy.softmax(-1), tokens).reshape(x.shape) + x


class PlainSemanticModule(SemanticModule):
    """A call for each scale."""

    def forward(self, scales: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        # In train mode the layers see scale after scale, in whole passes, as in the released code the coarsest first;
        # that encoders come first changes no value.
        latents = [self.encoder(x) for x in reversed(scales)]
        reconstructions = [self.decoder(latent) for latent in latents]
        return latents[::-1], reconstructions[::-1]


class PlainPReLU(PReLU):
    """With PyTorch's gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight)


PLAIN = {
    PReLU: PlainPReLU,
    PositionAttention: PlainPositionAttention,
    ChannelAttention: PlainChannelAttention,
    SemanticModule: PlainSemanticModule,
}


def make_plain(model: nn.Module) -> nn.Module:
    """The same network with the same weights, computed plainly; `model` itself is changed and returned."""
    for module in model.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return model


def plain_loss(output: Output, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Total, segmentation, guided and reconstruction term."""
    segmentation = sum(F.cross_entropy(logits, target) for logits in (*output.raw, *output.refined))
    steps = zip(output.latents, output.latents[1:], strict=False)
    guided = sum(F.mse_loss(a, b) for now, then in steps for a, b in zip(now, then, strict=True))
    reconstruction = sum(F.mse_loss(a, b) for a, b in output.reconstructions)
    return segmentation + 0.25 * guided + 0.1 * reconstruction, segmentation, guided, reconstruction


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor, target: Tensor) -> list[float]:
    """One step, and its loss terms as numbers."""
    optimizer.zero_grad()
    terms = plain_loss(model(image), target)
    terms[0].backward()
    optimizer.step()
    return [term.item() for term in terms]


@torch.no_grad()
def segment(model: nn.Module, image: Tensor) -> np.ndarray:
    """Image (1, C, H, W) -> class indices (H, W)."""
    return model(image).softmax(1).argmax(1)[0].cpu().numpy().astype(np.uint8)


def evaluate(
    model: nn.Module, subjects: dict[str, list[tuple[Tensor, np.ndarray]]], classes: int, folder: Path
) -> dict[str, list[float]]:
    """Dice of each class of each subject, whose slices come as pairs of image (1, C, H, W) and class indices (H, W)."""
    model.eval()
    scores = {}
    for subject, slices in subjects.items():
        for number, (image, target) in enumerate(slices):
            segment(model, image)  # for the loss that is printed
            segment(model, image)  # for the Dice of the slice that is printed
            for kind, labels in (("prediction", segment(model, image)), ("target", target)):
                Image.fromarray(labels).save(folder / f"{kind}_{subject}_{number}.png")
        volumes = []
        for kind in ("prediction", "target"):
            pages = [np.asarray(Image.open(folder / f"{kind}_{subject}_{n}.png")) for n in range(len(slices))]
            path = folder / f"{kind}_{subject}.nii.gz"
            sitk.WriteImage(sitk.GetImageFromArray(np.stack(pages)), path)
            volumes.append(sitk.GetArrayFromImage(sitk.ReadImage(path)))
        prediction, target = volumes
        scores[subject] = [dice(prediction == k, target == k) for k in range(1, classes)]
    return scores


def dice(prediction: np.ndarray, target: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|); NaN where both are empty."""
    size = np.count_nonzero(prediction) + np.count_nonzero(target)
    return 2 * np.count_nonzero(prediction & target) / size if size else np.nan


def score(
    prediction: np.ndarray, target: np.ndarray, classes: Iterable[int], spacing: Sequence[float]
) -> list[dict[str, float]]:
    """What medpy has of `metrics.score_subject`, on the whole volume; each class must be in both volumes."""
    from medpy.metric import binary  # not everywhere where the rest is measured

    rows = []
    for k in classes:
        a, b = prediction == k, target == k
        row = {"dsc": binary.dc(a, b), "vs": 1 - abs(int(a.sum()) - int(b.sum())) / (int(a.sum()) + int(b.sum()))}
        for suffix, unit in (("", None), ("_mm", spacing)):
            row |= {f"msd{suffix}": binary.assd(a, b, unit), f"hd95_pooled{suffix}": binary.hd95(a, b, unit)}
        rows.append(row)
    return rows
