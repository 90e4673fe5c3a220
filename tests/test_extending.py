"""Parts from outside of the repository: a .py and a .yaml each, and no file of this project is touched."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from conftest import SMALL_CODEBOOK, TINY, call_inside, lines

# group -> its class, and the YAML that names it as mine.<file>
EXTENSIONS = {
    "quantizer": (
        """
        import torch
        from vqvae.quantizers.base import FlatQuantized, Quantizer


        class Sign(Quantizer):
            def __init__(self, dim: int, bits: int) -> None:
                super().__init__(dim, code_dim=bits, codebook_sizes=[2**bits])
                self.register_buffer("place", 2 ** torch.arange(bits), persistent=False)

            def quantize(self, inside):
                codes = ((inside > 0).long() * self.place).sum(1, keepdim=True)
                return FlatQuantized(self.lookup(codes), codes)

            def lookup(self, codes):
                return (codes // self.place % 2 * 2 - 1).float()
        """,
        """
        _target_: mine.quantizer.Sign
        dim: 64
        bits: 4
        """,
    ),
    "quantizer/lookup": (
        """
        from vqvae.quantizers.lookup import Lookup, LookupResult
        from vqvae.quantizers.nearest import nearest_code


        class FirstCoordinates(Lookup):
            picks_nearest = False

            def __init__(self, count: int) -> None:
                super().__init__()
                self.count = count

            def forward(self, z, codes):
                return LookupResult(nearest_code(z[:, : self.count].contiguous(), codes[:, : self.count].contiguous()))
        """,
        """
        _target_: mine.quantizer_lookup.FirstCoordinates
        count: 4
        """,
    ),
    "model": (
        """
        from torch import nn
        from vqvae.networks import blocks


        class Encoder(blocks.Encoder):
            def __init__(self, ndim: int, channels: int, dim: int, patch: int) -> None:
                super().__init__()
                self.stride = patch
                self.layers = nn.Sequential(blocks.SpaceToDepth(patch), blocks.conv(ndim, channels * patch**ndim, dim, 1))

            def forward(self, x):
                return self.layers(x)


        class Decoder(blocks.Decoder):
            def __init__(self, ndim: int, channels: int, dim: int, patch: int) -> None:
                super().__init__()
                self.channels = channels
                self.layers = nn.Sequential(blocks.conv(ndim, dim, channels * patch**ndim, 1), blocks.DepthToSpace(patch))

            def forward(self, z_q):
                return self.layers(z_q)
        """,
        """
        _target_: vqvae.model.VQVAE
        encoders:
          - _target_: mine.model.Encoder
            ndim: ${data.ndim}
            channels: ${data.channels}
            dim: ${quantizer.dim}
            patch: 4
        quantizers: ["${quantizer}"]
        decoders:
          - _target_: mine.model.Decoder
            ndim: ${data.ndim}
            channels: ${data.channels}
            dim: ${quantizer.dim}
            patch: 4
        """,
    ),
    "prior": (
        """
        import math
        from torch import nn
        from vqvae.priors.autoregressive import AutoregressivePrior, MapNetwork
        from vqvae.priors.heads import Head


        class Bigrams(MapNetwork):
            def __init__(self, digits: list[int], grid: tuple[int, ...], width: int) -> None:
                super().__init__()
                self.grid, self.embedding = grid, nn.Embedding(math.prod(digits), width)
                self.head = Head(width, digits)

            def forward(self, codes, condition):
                x = condition.flatten(2).transpose(1, 2).clone()  # (B, N, width)
                x[:, 1:] += self.embedding(codes.flatten(1)[:, :-1])
                return x.relu().transpose(1, 2).unflatten(2, self.grid)  # (B, width, *s)

            def begin(self, condition):
                return condition.flatten(2)  # (B, width, N)

            def next_hidden(self, cache, codes, position):
                x = cache[:, :, position]
                return (x + self.embedding(codes[:, position - 1]) if position else x).relu()


        class BigramPrior(AutoregressivePrior):
            def __init__(
                self, code_shapes: list[tuple[int, ...]], digits: list[list[int]], num_classes: int, width: int
            ) -> None:
                super().__init__(code_shapes, digits, num_classes, width, lambda d, grid: Bigrams(d, grid, width))
        """,
        """
        defaults:
          - /prior_defaults@_here_
          - _self_
        network:
          _target_: mine.prior.BigramPrior
          width: 8
        """,
    ),
    "loss/term": (
        """
        from vqvae.losses.terms import Term


        class Brightness(Term):
            def value(self, x_hat, x):
                return (x_hat - x).flatten(1).mean(1).square().mean()
        """,
        """
        _target_: mine.loss_term.Brightness
        weight: 1.0
        """,
    ),
    "loss/head": (
        """
        from vqvae.losses.heads import Head


        class Tanh(Head):
            def decoder_channels(self, channels):
                return channels

            def reconstruct(self, output):
                return output.float().tanh()
        """,
        """
        _target_: mine.loss_head.Tanh
        """,
    ),
    "adversary": (
        """
        from torch import nn
        from vqvae.networks.discriminator import Discriminator


        class Rows(Discriminator):
            def __init__(self, channels: int) -> None:
                super().__init__()
                self.conv = nn.Conv2d(channels, 1, (1, 5))

            def forward(self, x):
                return self.conv(x)
        """,
        """
        defaults:
          - /adversary_defaults@_here_
          - _self_
        network:
          _target_: mine.adversary.Rows
          channels: ${data.channels}
        """,
    ),
    "adversary/term": (
        """
        from vqvae.losses.adversarial import DiscriminatorTerm


        class SmallLogits(DiscriminatorTerm):
            def value(self, judge, x, real, fake, means):
                return real.square().mean() + fake.square().mean()
        """,
        """
        _target_: mine.adversary_term.SmallLogits
        weight: 0.01
        """,
    ),
    "data": (
        """
        from dataclasses import dataclass
        import torch
        from vqvae.data.base import TensorSplit, fingerprint, no_labels
        from vqvae.data.images import Images


        @dataclass(kw_only=True)
        class Ramps(Images):
            train_count: int
            val_count: int

            @property
            def class_names(self) -> list[str]:
                return []

            def split(self, name):
                count = self.train_count if name == "train" else self.val_count
                ramp = torch.linspace(0, 255, self.image_size).round()
                shade = torch.linspace(0, 1, count).view(-1, 1, 1, 1)
                images = (ramp * shade).expand(-1, self.channels, self.image_size, -1).to(torch.uint8)
                return TensorSplit(name, no_labels(count), fingerprint(["ramps", name, count]), images.contiguous())
        """,
        """
        _target_: mine.data.Ramps
        ndim: 2
        channels: 3
        image_size: 32
        flip: false
        limit: null
        resident: auto
        workers: 0
        cache_dir: data_cache
        train_count: 96
        val_count: 20
        """,
    ),
}
NETWORK_OF_CONV = [word for word in TINY if word.startswith("model")]
ADDED = {  # what is not exchanged, but added
    "loss/term": ["+loss/term@loss.terms.mine=mine"],
    "adversary/term": ["adversary=patch", "+adversary/term@adversary.terms.mine=mine"],
}
WITHOUT = {  # overrides of a tiny run that name what is exchanged
    "quantizer": SMALL_CODEBOOK,
    "model": NETWORK_OF_CONV,
    "prior": ["prior.network.layers=2"],
}


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a user: mine/<part>.py and configs/<group>/mine.yaml."""
    folder = tmp_path_factory.mktemp("outside")
    for group, (code, config) in EXTENSIONS.items():
        module, yaml = folder / "mine" / f"{group.replace('/', '_')}.py", folder / "configs" / group / "mine.yaml"
        for file, text in {module: code, yaml: config}.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))
    return folder


@pytest.mark.parametrize("group", EXTENSIONS)
def test_a_class_and_a_yaml_outside_of_the_repository_are_enough(
    group: str, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(outside))
    usual = [word for word in [*TINY, *SMALL_CODEBOOK] if word not in WITHOUT.get(group, [])]
    stages = [] if group == "prior" else ["stages=[autoencoder]"]
    own = [
        *ADDED.get(group, [f"{group}=mine"]),
        "allow_targets=[mine.]",
        "trainer.steps=2",
        "prior.trainer.steps=2",
        f"run_dir={tmp_path}",
    ]
    call_inside("train", "--config-dir", str(outside / "configs"), *usual, *stages, *own)
    stage = "prior" if group == "prior" else "autoencoder"
    assert lines(tmp_path / stage / "metrics.jsonl")[-1]["step"] == 2
    assert "mine." in (tmp_path / "config.yaml").read_text()
