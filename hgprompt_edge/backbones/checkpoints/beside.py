"""What lies beside a checkpoint: `config.json` and `preprocessor_config.json`.

Those of transformers and of timm are read. They say what the weights cannot: the number of heads,
the activation, and how pixels are resized and normalised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm

from hgprompt_edge.backbones.checkpoints.checkpoint_file import TensorFile
from hgprompt_edge.backbones.checkpoints.translate import Translated
from hgprompt_edge.errors import FileError, ParameterError

CONFIG = "config.json"
METADATA = "the file's metadata"
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Version 5 of transformers writes some to the second, under `image_processor`."""

RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Numbers of Pillow, as transformers writes them."""

FAMILIES = {
    "dinov2": "vit_small_patch14_dinov2.lvd142m",
    "dino": "vit_small_patch16_224.dino",
    "deit": "deit_small_patch16_224.fb_in1k",
    "clip-vit": "vit_base_patch16_clip_quickgelu_224.openai",
}
"""Part of a model's name to the timm id whose preprocessing models of that name share."""

DataConfig = dict[str, Any]
"""As timm's `pretrained_cfg`: mean, std, interpolation, crop_pct, crop_mode, input_size."""


def read_config(checkpoint: Path) -> dict[str, Any]:
    """Return the `config.json` beside a checkpoint; empty: there is none."""
    return _read_json(checkpoint.parent / CONFIG)


def preprocessing(
    path: Path, file: TensorFile, found: Translated, config: Mapping[str, Any]
) -> tuple[DataConfig | None, str, bool]:
    """Return how pixels are prepared, who says so, and whether a file does.

    Raises
    ------
    UserError
        The file that says it is damaged, or asks for what the one resize rule does not cover.
    """
    if "data_config" in file.metadata:
        return read_json(path, file.metadata["data_config"]), METADATA, True
    if (beside := _read_preprocessor(path)) is not None:
        return *beside, True
    if (own := _timm_data_config(config)) is not None:
        return own, CONFIG, True
    if found.layout.family is not None:
        source = f"those of {found.layout.name} models"
        return _of_timm(found.layout.family), source, False
    if file.container == "teacher":
        return _of_timm(FAMILIES["dino"]), "those of DINO's training", False
    is_timms = timm.is_model(path.stem.partition(".")[0])
    if is_timms and (known := _of_timm(path.stem)) is not None:
        return known, f"by the name {path.stem}", False
    for name in (str(config.get("_name_or_path", "")), path.stem, path.parent.name):
        for part, timm_id in FAMILIES.items():
            if part in name.lower():
                return _of_timm(timm_id), f"by the name {name}", False
    return None, "", False


def _of_timm(timm_id: str) -> DataConfig | None:
    try:
        published: Any = timm.models.get_pretrained_cfg(timm_id)
    except RuntimeError:  # timm knows the architecture, not the tag
        return None
    return None if published is None else _timm_data_config({"pretrained_cfg": published.to_dict()})


def _read_preprocessor(checkpoint: Path) -> tuple[DataConfig, str] | None:
    """Return what transformers' preprocessor does, and the name of its file; None: no file."""
    for name in PREPROCESSORS:
        path = checkpoint.parent / name
        config = _read_json(path)
        config = config.get("image_processor", config)
        if "image_mean" in config or "image_processor_type" in config:
            return _data_config(path, config), name
    return None


def _timm_data_config(config: Mapping[str, Any]) -> DataConfig | None:
    """Return the preprocessing that timm's `config.json` holds; None: it is not timm's."""
    known = config.get("pretrained_cfg")
    if not isinstance(known, Mapping) or not {"mean", "std"} <= known.keys():
        return None
    keys = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "input_size")
    return {key: known[key] for key in keys if key in known}


def read_json(path: Path, text: str) -> dict[str, Any]:
    """Return a JSON object that the metadata of a checkpoint hold."""
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise ParameterError(
            "checkpoint", path, f"its metadata are damaged ({text[:40]!r}); write it again"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FileError(path, "cannot be read as JSON; copy or download it again") from error
    if not isinstance(content, dict):
        raise FileError(path, "must be a JSON object; copy or download it again")
    return content


def _data_config(path: Path, config: Mapping[str, Any]) -> DataConfig:
    try:
        size, crops = config.get("size", 224), bool(config.get("do_center_crop"))
        shorter = isinstance(size, Mapping) and "shortest_edge" in size
        resized = int(size["shortest_edge"]) if shorter else _side(size)
        cropped = _side(config["crop_size"]) if crops else resized
        if not config.get("do_resize", True) or (shorter and not crops) or cropped > resized:
            raise ValueError("images are not brought to a square")
        scale = float(config.get("rescale_factor", 1 / 255))
        if not config.get("do_rescale", True) or abs(scale * 255 - 1) > 1e-3:
            raise ValueError("pixels are not divided by 255")
        normalised = config.get("do_normalize", True)
        return {
            "mean": _three(config["image_mean"]) if normalised else (0.0, 0.0, 0.0),
            "std": _three(config["image_std"]) if normalised else (1.0, 1.0, 1.0),
            "interpolation": RESAMPLE[int(config.get("resample", 2))],
            "crop_pct": cropped / resized,
            # Of an image that is resized and then cropped the shorter side is resized, as models
            # are trained; some of transformers' preprocessors squeeze it to a square first.
            "crop_mode": "center" if crops else "squash",
            "input_size": (3, cropped, cropped),
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        why = f"has no or an unknown {error}" if isinstance(error, KeyError) else f"{error}"
        raise FileError(
            path,
            f"preprocessing that is not supported ({why}); move the file away and name the "
            "model's timm id with `backbone`",
        ) from error


def _side(size: Any) -> int:
    if isinstance(size, Mapping):
        if size["height"] != size["width"]:
            raise ValueError("images are not brought to a square")
        size = size["height"]
    return int(size)


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
