"""Images to an archive, and back."""

from __future__ import annotations

import hashlib
import itertools
import platform
from collections.abc import Iterable
from contextlib import suppress
from os.path import splitext
from pathlib import PurePosixPath

import torch
from torch import Tensor

from vqvae import distributed
from vqvae.compression.coder import coding_prior, decode_codes, encode_codes
from vqvae.compression.file import Archive
from vqvae.errors import UserError
from vqvae.images import x_of
from vqvae.inference.trained_model import CHUNK, TrainedModel
from vqvae.storage.checkpoint import fingerprint
from vqvae.storage.files import path_part


def compressed(
    trained: TrainedModel, images: Iterable[tuple[str, Tensor]], search: int = 0
) -> tuple[Archive, list[Tensor]]:
    """Named items (C, *S) -> their archive, and their codes M x (n, *s_m). search: sweeps of code search.

    Raises UserError for a model that cannot code, and where there are no images.
    """
    prior = coding_prior(trained)
    names, parts = [], []
    stream = iter(images)
    while some := list(itertools.islice(stream, CHUNK)):
        names += [name for name, _ in some]
        x = x_of(torch.stack([item for _, item in some]).to(trained.device))
        parts.append(trained.in_chunks(lambda inputs: trained.encode(inputs[0], search), [x]))
    if not parts:
        raise UserError("there is no image that can be read")
    codes = [torch.cat(maps) for maps in zip(*parts)]
    batch = prior.samples_at_a_time
    archive = Archive(
        names=names,
        tokenizer=trained.fingerprint,
        prior=fingerprint(prior.state_dict()),
        batch=batch,
        computed=computed_by(trained.device),
        codes_sha256=digest_of(codes),
        data=encode_codes(prior, codes, batch),
    )
    return archive, codes


def decompressed(trained: TrainedModel, archive: Archive) -> list[Tensor]:
    """Code maps M x (n, *s_m) of an archive.

    Raises UserError for an archive of another model, and where the codes are not the ones that were put in: probabilities
    that round otherwise, on another device or with another version of PyTorch, lead elsewhere.
    """
    prior = coding_prior(trained)
    own = {"tokenizer": trained.fingerprint, "prior": fingerprint(prior.state_dict())}
    for part, value in own.items():
        if getattr(archive, part) != value:
            raise UserError(
                f"this file was made with another {part} ({getattr(archive, part)}, and run_dir has {value})"
            )
    codes: list[Tensor] | None = None
    with suppress(AssertionError):  # how constriction says that these bits stand for no digit
        codes = decode_codes(prior, archive.data, len(archive.names), archive.batch)
    if codes is None or digest_of(codes) != archive.codes_sha256:
        here = computed_by(trained.device)
        differing = [
            f"{key} was {value}, is {here.get(key)}"
            for key, value in archive.computed.items()
            if here.get(key) != value
        ]
        raise UserError(
            "the codes that were found are not those that were put in, because probabilities were rounded otherwise: "
            + ("; ".join(differing) or "try device=cpu at both ends")
        )
    return codes


def file_names(names: list[str]) -> list[str]:
    """A relative path without suffix for each image, none twice. Names in a file may be a stranger's: no part leads upward."""
    taken: set[str] = set()
    found = []
    for name in names:
        stem = "/".join(path_part(part) for part in PurePosixPath(splitext(name)[0] or "image").parts)
        number = next(n for n in itertools.count() if (f"{stem}-{n}" if n else stem) not in taken)
        found.append(f"{stem}-{number}" if number else stem)
        taken.add(found[-1])
    return found


def digest_of(codes: list[Tensor]) -> str:
    total = hashlib.sha256()
    for m in codes:
        total.update(str(tuple(m.shape)).encode())
        total.update(m.cpu().numpy().astype("<i8").tobytes())
    return total.hexdigest()


def computed_by(device: torch.device) -> dict[str, str]:
    """What rounding depends on."""
    name = torch.cuda.get_device_name(device) if distributed.uses_cuda() else platform.machine()
    capability = "" if distributed.uses_cuda() else torch.backends.cpu.get_cpu_capability()
    return {
        "torch": torch.__version__,
        "device": f"{name} {capability}".strip(),
        "threads": str(torch.get_num_threads()),
    }
