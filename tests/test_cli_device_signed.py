"""Signed tasks and folders."""

from __future__ import annotations

import shutil
from pathlib import Path

from command_line import run
from test_device_folder import backbone as backbone
from test_device_folder import copy as copy
from test_device_folder import folder as folder
from test_runtime_verify import keys as keys

from hgprompt_edge.artifacts.signature import sign, signature_path
from hgprompt_edge.runtime.verify import verify_model


def test_verifying_a_folder_takes_the_default_model_along(copy: Path) -> None:
    for name in ("cars", "birds"):
        (copy / f"{name}.hgtask").unlink()
    default = copy / "default.onnx"
    whole = default.read_bytes()
    assert "default digest" in run("verify", str(copy)).stdout
    for broken in (whole[: len(whole) // 2], whole.replace(b"pets", b"cats")):
        default.write_bytes(broken)
        result = run("verify", str(copy))
        assert result.exit_code == 1
        assert "does not pass (default digest)" in result.stderr
    default.unlink()  # no task needs it
    assert run("verify", str(copy)).exit_code == 0


def test_a_signed_task_needs_its_signed_backbone(copy: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    task, graph = copy / "cars.hgtask", copy / "backbone.onnx"
    for path in (task, graph):
        sign(path, private)
    checks = verify_model(task, key=public)
    assert [check.ok for check in checks if check.name == "signature"] == [True, True]
    shutil.copy(signature_path(task), signature_path(graph))  # one of another file
    checks = verify_model(task, key=public)
    assert [check.ok for check in checks] == [True, False]  # and nothing was run


def test_adding_a_task_takes_the_signature_of_the_old_one_away(
    copy: Path, keys: tuple[Path, Path]
) -> None:
    sign(copy / "cars.hgtask", keys[0])
    new = copy.parent / "new"
    new.mkdir()
    shutil.copy(copy / "cars.hgtask", new)
    assert run("device", "add", str(copy), str(new / "cars.hgtask")).exit_code == 0
    assert not signature_path(copy / "cars.hgtask").exists()
