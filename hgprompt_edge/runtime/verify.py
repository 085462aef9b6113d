"""Check a model later, anywhere: files, metadata, parity with the logits that it carries."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hgprompt_edge.artifacts.device_bank import adapt_path
from hgprompt_edge.artifacts.metadata import NOT_OURS
from hgprompt_edge.artifacts.model_digest import is_whole
from hgprompt_edge.artifacts.onnx_bytes import read_facts
from hgprompt_edge.artifacts.signature import check_signature, find_signature
from hgprompt_edge.artifacts.tasks.device_files import SUFFIX, files_of, graph_of
from hgprompt_edge.errors import CheckError, FileError, UserError
from hgprompt_edge.files import sha256_file
from hgprompt_edge.runtime.engines.open import open_engine
from hgprompt_edge.runtime.other_cpu import ADVICE
from hgprompt_edge.runtime.predictor import Predictor


@dataclass(frozen=True)
class Check:
    """One thing that was checked; `ok` is None where there was nothing to hold it against."""

    name: str
    ok: bool | None
    detail: str


def verify_model(path: Path, *, key: Path | None = None, bundle: Path | None = None) -> list[Check]:
    """Check a model with what a device has: no onnx, no PyTorch.

    Parameters
    ----------
    key
        Public key that its signature must be of.
    bundle
        The bundle that it must be made from.

    Raises
    ------
    UserError
        The model does not load, is none of ours, or signature or key are missing.
    """
    checks: list[Check] = []
    if key is not None:  # first: nothing of a file that was tampered with is run
        graph = graph_of(path.parent) if path.suffix == SUFFIX else None
        checks = [_signed(file, key) for file in (path, graph) if file is not None]
        if not all(check.ok for check in checks):
            return checks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another CPU: that is one of the checks
        predictor = Predictor(path)
    metadata = predictor.metadata
    # Where the weights are folded in, no device uses it: it is left from an earlier export.
    graph = adapt_path(path)
    if key is not None and metadata.bank_sha256 and graph.exists():
        checks.append(_signed(graph, key))
        if not checks[-1].ok:
            return checks
    if predictor.assumed:
        raise FileError(path, NOT_OURS)
    checks += _digests(path, predictor)
    if metadata.bank_sha256 and graph.exists():
        checks.append(_whole("adapt digest", graph, read_facts(graph).entries))
    checks.append(_made_from("bundle", metadata.bundle_sha256, bundle))
    checks.append(Check("backbone", None, f"{metadata.backbone}, {metadata.backbone_sha256[:12]}"))
    if metadata.more:
        what = f"{metadata.folded_prompts} folded prompts, their probabilities averaged"
        checks.append(Check("prompts", None, what))
    for source in metadata.sources:
        role = source.get("role", "source")
        checks.append(Check(role, None, f"{source['name']}, {source['sha256'][:12]}"))
    recorded = str(metadata.verification.get("runtime", "unknown"))
    same = recorded == predictor.runtime
    then = "" if same else f", verified in {recorded}"
    checks.append(Check("runtime", None, f"{predictor.runtime}{then}"))
    checks.append(_probe(predictor))
    if metadata.precision == "int8":
        checks.append(_on_this_cpu(predictor))
    return checks


def describe_signature(path: Path, checks: list[Check]) -> str:
    """Say in words whether a model is signed, from what was checked of it."""
    found = [check for check in checks if check.name == "signature"]
    if found and all(check.ok for check in found):
        return f"signed: {found[0].detail}; only the holder of its private key can have made it"
    if found:
        return "the signature does not hold: do not use this model"
    signature = find_signature(path)
    if signature is not None:
        return f"signed, but not checked: give the public key of {signature} with `key`"
    return (
        "not signed: the digest shows damage and accidents, but whoever changes the model can "
        "change it, too; sign models with `hgedge export` and `private_key='KEY'`"
    )


def _digests(path: Path, predictor: Predictor) -> list[Check]:
    """Check that files are as they were written; a task is read only if it is."""
    folder = predictor.device_folder
    if folder is None:
        return [_whole("digest", path, predictor.entries)]
    task = Check("digest", True, f"{predictor.path.name} is as it was exported")
    checks = [task, _whole("backbone digest", folder.graph, folder.engine.entries)]
    files = files_of(folder.folder)
    if path.is_dir() and files is not None and (default := path / files.default).exists():
        checks.append(_default(default))
    return checks


def _default(path: Path) -> Check:
    """Check the model of a device folder that plain runtimes take, and no task needs."""
    try:
        return _whole("default digest", path, open_engine(path).entries)
    except UserError as error:
        return Check("default digest", False, str(error))


def _whole(name: str, path: Path, entries: Mapping[str, str]) -> Check:
    ok = is_whole(path, entries)
    detail = f"{path.name} was changed after its export"
    if ok:
        detail = "graph, weights and metadata are as they were exported"
    return Check(name, ok, detail)


def _probe(predictor: Predictor) -> Check:
    try:
        found = predictor.compare_probe()
    except UserError as error:
        return Check("probe", False, str(error))
    return Check("probe", found.ok, str(found))


def _on_this_cpu(predictor: Predictor) -> Check:
    try:
        found = predictor.compare_cpus()
    except UserError as error:
        return Check("cpu", False, str(error))
    if found is None:
        return Check("cpu", None, "runs in bfloat16 here, so its int8 logits were not compared")
    return Check("cpu", found.ok, str(found) if found.ok else f"{found}; {ADVICE}")


def _signed(path: Path, key: Path) -> Check:
    try:
        return Check("signature", True, f"{check_signature(path, key)}, by {key}")
    except CheckError as error:
        return Check("signature", False, str(error))


def _made_from(name: str, recorded: str, path: Path | None) -> Check:
    if path is None:
        return Check(name, None, recorded[:12] or "not recorded")
    if not recorded:  # asked for, and nothing says so
        return Check(name, False, "the model does not record what it was made from")
    found = sha256_file(path)
    if found == recorded:
        return Check(name, True, f"{path}, {found[:12]}")
    here = sorted(path.parent.glob(f"*{path.suffix}"))
    own = next((other for other in here if sha256_file(other) == recorded), None)
    origin = own or f"an earlier {path.name} or another one, which is not here"
    detail = f"{path} is {found[:12]}, the model was made from {recorded[:12]}: {origin}"
    return Check(name, False, detail)
