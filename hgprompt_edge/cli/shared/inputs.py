"""Which images, which backbone and which prompt bank a command works with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hgprompt_edge import models
from hgprompt_edge.cli.shared.console import note, note_backbone, note_bank
from hgprompt_edge.cli.shared.progress import working
from hgprompt_edge.errors import UserError

if TYPE_CHECKING:
    from hgprompt_edge.artifacts.bundle import Bundle
    from hgprompt_edge.backbones.backbone import Backbone
    from hgprompt_edge.cli.shared.options import Pixels
    from hgprompt_edge.data import FoundTask
    from hgprompt_edge.prompts.bank import PromptBank
    from hgprompt_edge.prompts.prompt import Normalization

NO_BANK = "none"
"""What `--sources` takes where no prompts are to be used."""


def find_images(
    task: str | None,
    data: Path | None,
    *,
    seed: int,
    download: bool = False,
    group_by_hash: bool = False,
) -> FoundTask:
    """Find what `--task` and `--data` name, before a backbone is loaded; no image is decoded.

    Raises
    ------
    UserError
        Neither is given, or as of `find_task`.
    """
    from hgprompt_edge.data import find_task

    with working("looking for images"):
        found = find_task(
            task, data=data, seed=seed, download=download, group_by_hash=group_by_hash
        )
    if found.own:
        note(
            f"{found.name} is a local task: the images in {found.data}, not the built-in task of "
            "that name"
        )
    return found


def find_images_of(bundle: Bundle, task: str | None, data: Path | None) -> FoundTask:
    """Find the images that a bundle was fitted on, where it says, or where the options say.

    Raises
    ------
    UserError
        They are gone, or as of `find_task`.
    """
    from hgprompt_edge.data import find_task
    from hgprompt_edge.data.layouts.hub import is_hub_id

    if data is None and bundle.data and task in (None, bundle.task):
        data = Path(bundle.data)
        if not (is_hub_id(data) or data.exists()):
            raise UserError(
                f"the bundle of {bundle.task} was fitted on the images in {data}, and they are "
                "gone; name their folder with --data"
            )
    with working("looking for images"):
        return find_task(
            task or bundle.task,
            data=data,
            seed=bundle.seed,
            group_by_hash=bundle.group_by_hash and task in (None, bundle.task),
        )


def bank_and_backbone(
    sources: str | None,
    backbone: str | None,
    checkpoint: Path | None,
    image_size: int | None,
    pixels: Pixels | None = None,
) -> tuple[PromptBank | None, Backbone]:
    """Do as `_read_both`, show on a terminal that it goes on, and say what was found.

    The backbone's input is normalised as that of the prompts was, or without prompts as `pixels`
    say.

    Raises
    ------
    UserError
        As of `_read_both` and `check_bank`, or the prompts were trained on other pixels than these.
    """
    from hgprompt_edge.fit.checks import check_bank

    with working("loading the backbone"):
        bank, vit = _read_both(sources, backbone, checkpoint, image_size)
    note_backbone(vit)
    if bank is None:
        return None, normalized_as(vit, pixels)[0]
    check_bank(bank, vit)
    wanted, own = normalized_as(vit, pixels)[0], vit.normalized(bank.normalization)
    if pixels is not None and wanted.normalization != own.normalization:
        raise UserError(
            f"--preprocessing {pixels.value}: the prompts were trained on pixels normalised by "
            f"{own.normalization}, not by {wanted.normalization}; leave it out, or use no prompts "
            f"with --sources {NO_BANK}"
        )
    note_bank(bank)
    return bank, own


def normalized_as(
    backbone: Backbone, pixels: Pixels | None
) -> tuple[Backbone, Normalization | None]:
    """Return the backbone for pixels normalised like that, and how, where it is not its own."""
    from hgprompt_edge.training.import_prompt import NORMALIZATIONS

    wanted = None if pixels is None else NORMALIZATIONS.get(pixels.value)
    if wanted == backbone.normalization:
        wanted = None
    return backbone.normalized(wanted), wanted


def _read_both(
    sources: str | None, backbone: str | None, checkpoint: Path | None, image_size: int | None
) -> tuple[PromptBank | None, Backbone]:
    """Read what `--sources`, `--backbone`, `--checkpoint` and `--image-size` name.

    Without `--sources` the bank is the bundled one with the backbone's fingerprint and image size;
    None where there is none, which a note says.

    Raises
    ------
    UserError
        As of `read_bank` and `load_backbone`.
    """
    from hgprompt_edge.prompts.bank import read_bank

    if sources == "":
        raise UserError("--sources: the name is empty; name a folder of prompts, or leave it out")
    bank = None if sources in (None, NO_BANK) else read_bank(str(sources))

    from hgprompt_edge.backbones.load import load_backbone
    from hgprompt_edge.fit.checks import check_same_weights

    if bank is None:
        vit = load_backbone(backbone, checkpoint=checkpoint, image_size=image_size)
        bank = bundled_bank_of(vit) if sources is None else None
    else:
        name = backbone or bank.backbone
        vit = load_backbone(name, checkpoint=checkpoint, image_size=image_size)
        check_same_weights(bank, vit)  # before their image size is asked of this one
        if image_size is None and vit.image_size != bank.image_size:
            vit = load_backbone(name, checkpoint=checkpoint, image_size=bank.image_size)
    return bank, vit


def bundled_bank_of(backbone: Backbone) -> PromptBank | None:
    """Return the bundled bank that was trained on a backbone at its image size, if there is one."""
    from hgprompt_edge.prompts.bank import read_bank

    if not models.are_installed():  # the backbone came from elsewhere
        return None
    for bank in (read_bank(name) for name in models.NAMES):
        if bank.backbone_sha256 == backbone.sha256:
            if bank.image_size == backbone.image_size:
                return bank
            note(
                f"the bundled prompts for {bank.backbone} are for images of {bank.image_size} px, "
                f"these have {backbone.image_size} px, so none are used; leave --image-size out, "
                "or train prompts with `hgedge prompt train`"
            )
    return None


def needs_bank(bank: PromptBank | None, backbone: Backbone, sources: str | None) -> PromptBank:
    """Refuse to go on without a bank.

    Raises
    ------
    UserError
        There is none.
    """
    if bank is None and sources == NO_BANK:
        raise UserError(f"--sources {NO_BANK}: there would be nothing to compare; leave it out")
    if bank is None:
        raise UserError(
            f"--sources: there are no bundled prompts for {backbone.name} at "
            f"{backbone.image_size} px; name a folder of prompts, as `hgedge prompt train` writes"
        )
    return bank
