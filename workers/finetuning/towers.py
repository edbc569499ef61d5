"""CLIP models of open_clip: by name and pretrained tag, or from a checkpoint directory in its layout."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import open_clip
import PIL.Image
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from taumerge.errors import InvalidRequest
from workers.checkpoints.checkpoint import CheckpointError, companions, open_checkpoint
from workers.checkpoints.local_copy import on_disk

CONFIG = "open_clip_config.json"
SCHEME = "open_clip://"
TOKENIZER_OPTIONS = frozenset({"clean", "strip_sep_token", "language", "tokenizer_mode"})
"""What a configuration may say in ``tokenizer_kwargs``: open_clip hands all of it to transformers, which would run code
that lies beside it (``trust_remote_code``) or read files anywhere."""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Clip:
    """A CLIP model with its text tokenizer and image preprocessing."""

    model: Any
    """open_clip's module, float32: ``visual``, ``encode_text``, ``logit_scale``."""
    tokenizer: Any
    """Texts to token ids, int64 [n, context length]."""
    config: dict[str, Any]
    """Contents of ``open_clip_config.json``."""
    dtypes: Mapping[str, torch.dtype]
    """Stored types of the base's tensors, by name; empty for a model by name, whose output is float32."""
    companions: tuple[Path, ...] = ()
    """Tokenizer files of the base."""

    @cached_property
    def preprocessing(self) -> PreprocessCfg:
        """Size, mean, standard deviation and resizing of the images that the tower takes."""
        return PreprocessCfg(**self.model.visual.preprocess_cfg)

    @cached_property
    def evaluation_transform(self) -> Callable[[PIL.Image.Image], Tensor]:
        """An RGB image of any size to float32 [3, height, width]: resized, centred, normalised."""
        return cast(
            Callable[[PIL.Image.Image], Tensor], image_transform_v2(self.preprocessing, is_train=False)
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an input image in pixels."""
        size = self.preprocessing.size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def normalised(self, image: PIL.Image.Image) -> Tensor:
        """An RGB image of the right size as float32 [3, height, width]."""
        pixels: Tensor = to_tensor(image)
        mean, deviation = (torch.tensor(x) for x in (self.preprocessing.mean, self.preprocessing.std))
        return (pixels - mean[:, None, None]) / deviation[:, None, None]

    def save_tokenizer(self, directory: Path) -> None:
        """Copy or write the tokenizer's files; open_clip's own tokenizer has none."""
        for path in self.companions:
            shutil.copyfile(path, directory / path.name)
        if not self.companions and hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(directory)


def load_clip(base: str) -> Clip:
    """The model that ``base`` names, ``open_clip://NAME/PRETRAINED`` or the URI of a directory, on the CPU.

    Raises:
        InvalidRequest: at ``base``: ``unknown_model``, ``model_unavailable``, ``not_open_clip``, or what is wrong
            with the checkpoint.
    """
    if base.startswith(SCHEME):
        return _load_pretrained(base.removeprefix(SCHEME))
    try:
        return _load_directory(base)
    except CheckpointError as error:
        raise InvalidRequest.at(["base"], error.code, error.message) from error


def _load_pretrained(model: str) -> Clip:
    name, _, tag = model.partition("/")
    if name not in open_clip.list_models():
        raise _refused(
            "unknown_model", f"open_clip has no model {name!r}; open_clip.list_models() lists them"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        known = ", ".join(tags) or "none"
        raise _refused("unknown_model", f"{name} has no pretrained weights {tag!r}; there are: {known}")
    # OpenAI's weights were trained with QuickGELU, whatever the plain name of the model says.
    quick = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    try:
        loaded = open_clip.create_model(name, pretrained=tag, force_quick_gelu=quick)
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError) as error:
        message = f"{model} could not be downloaded or loaded: {error}; give a checkpoint directory in open_clip layout"
        raise _refused("model_unavailable", message) from error
    architecture = open_clip.get_model_config(name) | ({"quick_gelu": True} if quick else {})
    return Clip(loaded, tokenizer, {"model_cfg": architecture, "preprocess_cfg": _preprocessing(loaded)}, {})


def _load_directory(base: str) -> Clip:
    checkpoint, directory = on_disk(open_checkpoint(base))
    try:
        config = json.loads((directory / CONFIG).read_text())
        options = config["model_cfg"]["text_cfg"].get("tokenizer_kwargs") or {}
        if unknown := sorted(options.keys() - TOKENIZER_OPTIONS):
            raise ValueError(
                f"tokenizer_kwargs.{unknown[0]} is not among {', '.join(sorted(TOKENIZER_OPTIONS))}"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Weights come from the checked safetensors file only; nothing is fetched or unpickled.
            model = open_clip.create_model(
                f"local-dir:{directory}", load_weights=False, pretrained_text=False
            )
            tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        message = f"{CONFIG} of {base} describes no CLIP model that open_clip can build: {error}"
        raise _refused("not_open_clip", message) from error
    weights: dict[str, Tensor] = {}
    for file in checkpoint.files:
        weights |= load_file(directory / file.name)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise _refused("not_open_clip", f"the weights of {base} do not fit its {CONFIG}: {error}") from error
    dtypes = {
        name: _DTYPES[stored.info.dtype]
        for name, stored in checkpoint.tensors.items()
        if stored.info.dtype in _DTYPES
    }
    kept = tuple(directory / path.name for path in companions(checkpoint) if path.name != CONFIG)
    return Clip(model, tokenizer, config, dtypes, kept)


def _preprocessing(model: Any) -> dict[str, Any]:
    config = asdict(PreprocessCfg(**model.visual.preprocess_cfg))
    return {key: config[key] for key in ("mean", "std", "interpolation", "resize_mode")}


def _refused(code: str, message: str) -> InvalidRequest:
    return InvalidRequest.at(["base"], code, message)
