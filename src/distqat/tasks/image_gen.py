"""Image generation with a GAN: two phases per batch, and the Fréchet distance of what is generated."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distqat.errors import TaskError
from distqat.options import Options
from distqat.tasks.base import Batch, Forward, Phase, Place, Sample, Task
from distqat.tasks.cv import LABEL_COLUMNS, ImageClassification
from distqat.tasks.frechet_distance import features_of, frechet_distance
from distqat.tasks.image_augmentation import ImageOptions
from distqat.tasks.image_file import Background
from distqat.tasks.options import parse_options
from distqat.tasks.png_writer import png, sheet

LATENT = 64
DISCRIMINATOR, GENERATOR = 1, 2  # who learns: `phase` of inputs and labels
HELDOUT = 2000  # real pictures that are compared, at most
GENERATED = 2000
AT_ONCE = 250
GRID = 8  # pictures in each row and column of the sample sheet
UNTRAINED, JUDGED = -1, -2  # epochs of noise that is not for training


class GanOptions(Options):
    """`data.options` of task `image_gen`."""

    loss: Literal["non_saturating", "hinge"] = "non_saturating"
    """Goodfellow et al. (arXiv:1406.2661, section 3), or the hinge of Lim and Ye (arXiv:1705.02894)."""
    background: Background = "white"
    """`white`, `grey` or `black`: what pictures with alpha are composed on."""


class ImageGeneration(Task):
    """Noise and pictures `{"z": [B, L], "real": [B, C, S, S]}` to logits `fake` and `real` [B], and `image`.

    The noise of a training sample depends on seed, epoch and index alone. The discriminator, which is the
    last stage, learns first, on the real and as many generated pictures; then the generator, on the same
    noise, in a batch whose `real` has no channels. `phase`, int64 [B], says so to the loss (as a label) and
    to a model that holds both networks (as an input).
    """

    name = "image_gen"
    metric = "frechet_distance"

    def __init__(
        self,
        *,
        num_channels: int = 3,
        img_size: int = 32,
        latent: int | None = None,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.num_channels, self.img_size = num_channels, img_size
        self.latent = latent or LATENT
        self.seed = seed
        self.options = parse_options(GanOptions, options or {}, self.name)
        alpha = ImageOptions(background=self.options.background)
        self._pictures = ImageClassification(num_channels=num_channels, img_size=img_size, options=alpha)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """For samples outside training; their noise goes by their place in the batch."""
        return self.collate_at(samples, [(UNTRAINED, number) for number in range(len(samples))])

    def collate_at(self, samples: Sequence[Sample], places: Sequence[Place]) -> Batch:
        """Decode and normalise the pictures, draw the noise; TaskError for what is not a picture."""
        batch = self._pictures.collate([{**sample, "label": 0} for sample in samples])
        phase = torch.full((batch.size,), DISCRIMINATOR)
        inputs = {"z": self.noise(places), "real": batch.inputs["x"], "phase": phase}
        return Batch(inputs, {"phase": phase}, batch.size)

    def pictures(self, batch: Batch) -> tuple[Tensor, list[str]]:
        """The real pictures of a batch [B, C, S, S] in [0, 1]; they have no labels."""
        return (batch.inputs["real"] / 2 + 0.5).clamp(0, 1), [""] * batch.size

    def noise(self, places: Iterable[Place]) -> Tensor:
        """[B, L] from a normal distribution, a row for each place."""
        return torch.stack([torch.randn(self.latent, generator=self._generator(place)) for place in places])

    def phases(self, batch: Batch) -> Sequence[tuple[Phase, Batch]]:
        """The discriminator's step, then the generator's."""
        phase = torch.full((batch.size,), GENERATOR)
        inputs = {**batch.inputs, "real": batch.inputs["real"][:, :0], "phase": phase}
        generators = Batch(inputs, {"phase": phase}, batch.size)
        return [(Phase("discriminator", "last"), batch), (Phase("generator", "before_last"), generators)]

    def loss(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
        """The loss of the network whose phase it is, in float32."""
        fake_B, real_B, phase = _outputs(outputs, labels)
        hinge = self.options.loss == "hinge"
        if phase == GENERATOR:
            return -fake_B.mean() if hinge else F.softplus(-fake_B).mean()
        if hinge:
            return F.relu(1 - real_B).mean() + F.relu(1 + fake_B).mean()
        return F.softplus(-real_B).mean() + F.softplus(fake_B).mean()

    def score(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, float]:
        """How many pictures the discriminator took for what they are, real and generated ones."""
        fake_B, real_B, phase = _outputs(outputs, labels)
        told = {"fake_found": float((fake_B < 0).sum()), "count": float(len(fake_B))}
        return told if phase == GENERATOR else {**told, "real_found": float((real_B > 0).sum())}

    def summarize(self, totals: Mapping[str, float]) -> float:
        """Not from sums: see `judge`."""
        raise TaskError("the Fréchet distance is no sum over samples; judge() gives it")

    def judge(self, heldout: Iterable[Sample], forward: Forward) -> tuple[float, float, int]:
        """Fréchet distance of generated to held-out pictures, and the discriminator's loss on the latter."""
        samples = list(itertools.islice(heldout, HELDOUT))
        if len(samples) < 2:
            raise TaskError("the Fréchet distance needs held-out pictures; the held-out part is empty")
        loss, real = 0.0, []
        for start in range(0, len(samples), AT_ONCE):
            batch = self.collate(samples[start : start + AT_ONCE])
            loss += float(self.loss(forward(batch.inputs), batch.labels)) * batch.size
            real.append(batch.inputs["real"])
        real_NCHW, fake_NCHW = torch.cat(real), self.generate(forward, GENERATED)
        network = features_of(real_NCHW, _classes(samples))
        with torch.no_grad():
            distance = frechet_distance(network(real_NCHW), network(fake_NCHW))
        return distance, loss / len(samples), len(samples)

    def show(self, forward: Forward) -> Mapping[str, bytes]:
        """A sheet of 64 generated pictures; none of images that are neither grey nor coloured."""
        if self.num_channels not in (1, 3):
            return {}
        return {"generated.png": png(sheet(self.generate(forward, GRID**2), GRID))}

    def generate(self, forward: Forward, count: int) -> Tensor:
        """The first `count` pictures [N, C, S, S] in [-1, 1], always of the same noise."""
        made = []
        for start in range(0, count, AT_ONCE):
            z_BL = self.noise((JUDGED, number) for number in range(start, min(start + AT_ONCE, count)))
            nothing = torch.zeros(len(z_BL), 0, self.img_size, self.img_size)
            inputs = {"z": z_BL, "real": nothing, "phase": torch.full((len(z_BL),), GENERATOR)}
            made.append(forward(inputs)["image"].float().cpu())
        return torch.cat(made)

    def _generator(self, place: Place) -> torch.Generator:
        seed = 0 if place[0] == JUDGED else self.seed
        digest = hashlib.sha256(f"{seed}|{place[0]}|{place[1]}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _classes(samples: Sequence[Sample]) -> Tensor | None:
    """Class indices [N]; None where a picture has none."""
    found = [next((s[c] for c in LABEL_COLUMNS if s.get(c) is not None), None) for s in samples]
    known = all(isinstance(label, int) and label >= 0 for label in found)
    return torch.tensor(found) if known else None


def _outputs(outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    if not {"fake", "real", "image"} <= set(outputs) or "phase" not in labels:
        found = sorted(outputs), sorted(labels)
        raise TaskError(
            "image_gen needs outputs 'fake', 'real' and 'image' of a discriminator and labels 'phase'; "
            f"the last stage gave {found[0]}, labels {found[1]}"
        )
    return outputs["fake"].float(), outputs["real"].float(), int(labels["phase"][0])
