"""Files of pretrained weights."""

from __future__ import annotations

import importlib.util
import pickle
import re
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from vqvae.errors import UserError
from vqvae.storage.files import digest

# torch.hub's names end with the first digits of the file's SHA-256: vgg16-397923af.pth.
HASHED = re.compile(r"-([0-9a-f]{8,})\.pth")
NESTED = ("state_dict", "model")  # where trainers put the weights, beside other things
# What torch.load and safetensors raise for damaged files, depending on where the damage is.
DAMAGE = (OSError, EOFError, LookupError, RuntimeError, ValueError, TypeError, AttributeError, pickle.UnpicklingError)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a .safetensors file, or one of torch.save, without running code in it -> tensors by name.

    Raises UserError for a file that is not there, is damaged, or holds something else.
    """
    if not file.is_file():
        raise UserError(f"file={file} is not there")
    hashed = HASHED.search(file.name)
    if hashed and not digest(file).startswith(hashed[1]):
        raise UserError(f"file={file} is damaged: its content does not match the checksum in its name; get it again")
    try:
        state = load(file)
    except DAMAGE as error:
        raise UserError(
            f"file={file} is damaged, or holds no weights ({type(error).__name__}); get it again"
        ) from error
    for key in NESTED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"file={file} holds no weights by name")
    return state


def downloaded(backbone: str, url: str) -> Path:
    """A file in torch's cache, downloaded if it is not there. Its name ends with its checksum.

    Raises UserError where the download fails.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    checksum = HASHED.search(file.name)
    assert checksum is not None
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), hash_prefix=checksum[1], progress=False)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"backbone={backbone} could not be downloaded ({error}): get {url} elsewhere, "
                f"and put it at {file} or name it with file=..."
            ) from error
    return file


def load(file: Path) -> object:
    if file.suffix != ".safetensors":
        return torch.load(file, map_location="cpu", weights_only=True)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(error) from error


def fill(network: nn.Module, state: dict[str, Tensor], name: str, file: Path) -> None:
    """Load all weights. Raises UserError where they are another network's."""
    wanted = network.state_dict()
    wrong = next((key for key in [*wanted, *state] if shape(wanted.get(key)) != shape(state.get(key))), None)
    if wrong is not None:
        raise UserError(
            f"file={file} holds another network than {name}: {wrong} is {shape(state.get(wrong))} there, "
            f"and should be {shape(wanted.get(wrong))}"
        )
    network.load_state_dict(state)


def shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"a tensor {tuple(tensor.shape)}"


def package_folder(package: str) -> Path | None:
    """Folder of an installed package, which is not imported; None if it is not installed."""
    spec = importlib.util.find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent
