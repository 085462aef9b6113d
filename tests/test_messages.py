"""Every message of the command line on bad input: complete text and exit code, by snapshot.

A row is a command, run in the folder of `bad_inputs.py`. The snapshots are in
`__snapshots__/test_messages.ambr`; `pytest tests/test_messages.py --snapshot-update` writes them.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from bad_inputs import make_bad_inputs
from command_line import run
from syrupy.assertion import SnapshotAssertion

COMMANDS = """
fit
fit --task digits --tasks
fit --task pest
fit --task dsprites-locations
fit --task pets
fit --task retinopathy
fit --task a/b --data mine
fit --task .. --data mine
fit --task m\udcfcll --data mine
fit --data nowhere
fit --data file
fit --data flat
fit --data one
fit --data lonely
fit --data hollow
fit --data unreadable
fit --data .
fit --data missing
fit --task kitti --data outside
fit --task dmlab
fit --data texts
fit --data rows
fit --data damaged
fit --data archive/images.zip
fit --data hf:cifar100
fit --task cifar100 --data hf:uoft-cs/cifar100
fit --task generated-count --group-by-hash
fit --task generated-count --backbone tiny --resize squash
fit --task digits --sources nowhere
fit --task digits --sources ''
fit --task digits --output blocked.hgbundle
compare --task digits --output blocked.json
fit --task digits --sources empty
fit --task digits --sources a.jpg
fit --task digits --sources truncated
fit --task digits --sources gigabyte
fit --task digits --sources nan
fit --task digits --sources large
fit --task digits --sources flat-prompt
fit --task digits --sources unnamed
fit --task digits --sources newer
fit --data mine --sources tiny --image-size 96
fit --task digits --sources tiny --backbone dinov2-small
fit --task digits --sources bank --preprocessing none
fit --task digits --backbone tiny --preprocessing none
fit --task digits --backbone vit_tiny_patch16_22
fit --task digits --backbone vit_tiny_patch16_224
fit --task digits --backbone swin_tiny_patch4_window7_224
fit --task digits --backbone m\udcfcll
fit --task digits --backbone tiny --image-size 0
fit --task digits --backbone tiny --image-size -64
fit --task digits --backbone tiny --image-size 65
fit --task digits --checkpoint nowhere.pth
fit --task digits --checkpoint file
fit --task digits --checkpoint wrong/x.pth
fit --task digits --checkpoint wrong/zip.pth
fit --task digits --checkpoint wrong/x.safetensors
fit --task digits --checkpoint code.pth
fit --task digits --checkpoint unknown.pth
fit --task digits --backbone tiny --sources none --lambda 0.1
fit --task digits --lambda inf
fit --task digits --conditions fire
fit --task digits --conditions ,
fit --task digits --conditions dark --no-keep-sources
fit --task digits --folded 4
fit --task digits --tune --folded 2
fit --task digits --steps -1
fit --task digits --seed -1
fit --task digits --seed 4294967296
fit --task digits --device cuda
fit --task digits --device mps
fit --task digits --device gpu
fit --task digits --backbone tiny --output file/a.hgbundle
fit --task digits --backbone tiny --output nowhere/a.hgbundle
fit --data mine --output empty
fit --data mine --output a.png

compare
compare --task pest
compare --data nowhere
compare --task digits --methods none,best
compare --task digits --methods ,
compare --task digits --sources none
compare --task digits --backbone tiny --sources none
compare --task digits --backbone tiny --image-size 65
compare --task digits --seed -1
compare --task digits --seed 4294967296
compare --task digits --device cuda
compare --task digits --device mps
compare --task generated-count --backbone tiny --resize squash
compare --task digits 64 72
compare --task digits --image-sizes 64 large
compare --task digits --image-sizes=-64
compare --task digits --image-sizes ,
compare --task digits --image-sizes 64 65 --backbone tiny
compare --task digits --image-sizes 0 --backbone tiny
compare --task digits --image-sizes 64 --methods none
compare --task digits --image-sizes 64 --tune-steps 20
compare --task digits --image-sizes 64 --image-size 64
compare --task digits --image-sizes 64 --sources none --backbone tiny
compare --task digits --output nowhere/a.json
compare --data mine --output empty
compare --data mine --output a.png

tune
tune nowhere.hgbundle
tune empty
tune wrong/x.hgbundle
tune wrong/x.xml
tune tiny/truncated.hgbundle
tune tiny/gone.hgbundle
tune tiny/pets.hgbundle
tune tiny/pets.hgbundle --data others
tune tiny/folded.hgbundle --data mine
tune tiny/other-weights.hgbundle --data mine
tune tiny/no-checkpoint.hgbundle --data mine
tune tiny/many.hgbundle --data many --batch-size 16
tune tiny/pets.hgbundle --batch-size 1
tune tiny/pets.hgbundle --learning-rate 0
tune tiny/pets.hgbundle --learning-rate inf
tune tiny/pets.hgbundle --data mine --output nowhere/a.hgbundle
tune tiny/pets.hgbundle --output empty
tune tiny/pets.hgbundle --output a.onnx

condition
condition nowhere.hgbundle
condition wrong/x.hgbundle
condition wrong/x.onnx
condition tiny/gone.hgbundle
condition tiny/pets.hgbundle --data others
condition tiny/pets.hgbundle --conditions dark,sandstorm
condition tiny/pets.hgbundle --conditions ,
condition tiny/folded.hgbundle --conditions dark
condition tiny/no-sources.hgbundle --data mine
condition tiny/pets.hgbundle --data mine --output nowhere/a.hgbundle
condition tiny/pets.hgbundle --output empty

export
export nowhere.hgbundle
export empty
export wrong/x.hgbundle
export wrong/x.onnx
export tiny/truncated.hgbundle
export tiny/other-weights.hgbundle
export tiny/no-checkpoint.hgbundle
export tiny/pets.hgbundle --checkpoint nowhere.pth
export tiny/no-sources.hgbundle --adapt
export tiny/pets.hgbundle --format tflite
export tiny/pets.hgbundle --output pets
export tiny/pets.hgbundle --output pets.xml
export tiny/pets.hgbundle --output pets.hgbundle
export tiny/pets.hgbundle --output .
export tiny/pets.hgbundle --output nowhere/pets.onnx
export tiny/pets.hgbundle --format openvino --output pets.onnx
export tiny/pets.hgbundle --format openvino --precision int8 --task digits --output pets.onnx
export tiny/pets.hgbundle --format openvino --opset 20
export tiny/pets.hgbundle --format openvino --precision int8 --task digits --adapt
export tiny/pets.hgbundle --format openvino --precision int8 --task digits --weights runtime
export tiny/pets.hgbundle --opset 0
export tiny/pets.hgbundle --adapt --precision int8 --output new/
export tiny/no-sources.hgbundle --adapt --output new/
export tiny/pets.hgbundle --opset 19
export tiny/pets.hgbundle --precision fp16
export tiny/pets.hgbundle --data mine
export tiny/pets.hgbundle --task digits
export tiny/pets.hgbundle --max-drop 1
export tiny/pets.hgbundle --precision int8
export tiny/pets.hgbundle --precision int8 --data nowhere
export tiny/pets.hgbundle --precision int8 --data others
export tiny/pets.hgbundle --precision int8 --task digits
export tiny/pets.hgbundle --precision int8 --task digits --opset 20
export tiny/pets.hgbundle --precision int8 --task digits --max-drop -1
export tiny/pets.hgbundle --precision int8 --task digits --accuracy-control
export tiny/gone.hgbundle --precision int8
export tiny/pets.hgbundle --sign nowhere.pem
export tiny/pets.hgbundle --sign wrong/x.pem
export tiny/pets.hgbundle --sign keys/ec.pub
export tiny/pets.hgbundle --sign keys/rsa.pem
export tiny/pets.hgbundle --sign keys/koblitz.pem
export tiny/pets.hgbundle --sign keys/ed25519.pem
export tiny/pets.hgbundle --sign keys/locked.pem

merge
merge nowhere.json --bundle tiny/pets.hgbundle
merge empty --bundle tiny/pets.hgbundle
merge wrong/x.json --bundle tiny/pets.hgbundle
merge tiny/cut --bundle tiny/pets.hgbundle
merge tiny/foreign --bundle tiny/pets.hgbundle
merge tiny/sent
merge tiny/sent --task digits
merge tiny/sent --bundle nowhere.hgbundle
merge tiny/sent --bundle wrong/x.hgbundle
merge tiny/sent --bundle device/pets.hgbundle
merge tiny/sent --bundle tiny/folded.hgbundle
merge tiny/sent --bundle tiny/no-sources.hgbundle
merge tiny/sent --bundle tiny/pets.hgbundle --output nowhere/new.hgbundle
merge tiny/sent --bundle tiny/pets.hgbundle --output empty

predict
predict a.jpg
predict --model device/pets.onnx
predict --model nowhere.onnx a.jpg
predict --model empty a.jpg
predict --model wrong/x.hgbundle a.jpg
predict --model wrong/x.onnx a.jpg
predict --model wrong/x.xml a.jpg
predict --model device/half.onnx a.jpg
predict --model device/no-bank/pets.onnx a.jpg
predict --model device/other-bank/pets.onnx a.jpg
predict --model device/pets.onnx nowhere.jpg
predict --model device/pets.onnx empty
predict --model device/pets.onnx broken.jpg
predict --model device/pets.onnx a.jpg --top 0
predict --model device/pets.onnx a.jpg --batch-size 0
predict --model device/pets.onnx a.jpg --device GPU
predict --model device/pets.onnx a.jpg --bf16
predict --model device/fixed.onnx a.jpg --state device/first.state
predict --model device/pets.onnx a.jpg --state device/foreign.state
predict --model device/pets.onnx a.jpg --state a.jpg
predict --model device/pets.onnx a.jpg --json --csv
predict --model device/pets.onnx a.jpg --watch empty
predict --model device/pets.onnx --watch nowhere
predict --model device/pets.onnx --watch a.jpg
monitor
monitor --model device/pets.onnx
monitor --model device/pets.onnx nowhere.jpg
monitor --model device/pets.onnx a.jpg
monitor --model device/pets.onnx a.jpg --watch empty
monitor --model device/fixed.onnx a.jpg --adapt
predict --model device/two --task pets --task cars a.jpg --state device/two/pets.state
device adapters empty
device add device/two-fixed device/two-lost/pets.hgtask
device list device/two-broken
device remove device/two-lost birds
predict --model device/two --task ../two/pets a.jpg
monitor --model device/pets.onnx --adapt
predict --model device/fixed.onnx a.jpg --monitor

evaluate
evaluate device/pets.onnx
evaluate nowhere.onnx --data device/seen
evaluate empty --data device/seen
evaluate wrong/x.hgbundle --data device/seen
evaluate device/pets.onnx --data nowhere
evaluate device/pets.onnx --data empty
evaluate device/pets.onnx --data flat
evaluate device/pets.onnx --data device/unreadable
evaluate device/pets.onnx --data device/broken
evaluate device/bad-record.onnx --data device/seen
evaluate device/pets.onnx --data mine
evaluate device/pets.onnx --data damaged
evaluate device/pets.onnx --data device/seen --split best
evaluate device/pets.onnx --data device/seen --map cat
evaluate device/pets.onnx --data device/seen --map cat=dog
evaluate device/pets.onnx --data mine --map Birman=dog
evaluate device/pets.onnx --data mine --map 'Birman=class 0, ä' --map 'Birman=class 1, ä'
evaluate device/pets.onnx device/fixed.onnx --data device/seen --state device/first.state
evaluate device/nameless.onnx --data device/seen
evaluate device/pets.onnx --data device/seen --csv nowhere/rows.csv
evaluate device/pets.onnx --data device/seen --csv empty
evaluate device/pets.onnx --data device/seen --state a.jpg

adapt
adapt --data device/seen
adapt --model device/pets.onnx
adapt --model wrong/x.hgbundle --data device/seen
adapt --model device/fixed.onnx --data device/seen
adapt --model device/no-bank/pets.onnx --data device/seen
adapt --model device/no-graph/pets.onnx --data device/seen --state device/first.state
adapt --model device/pets.onnx --data nowhere
adapt --model device/pets.onnx --data a.jpg
adapt --model device/pets.onnx --data nowhere --unlabelled
adapt --model device/pets.onnx --data empty
adapt --model device/pets.onnx --data empty --unlabelled
adapt --model device/pets.onnx --data mine
adapt --model device/pets.onnx --data device/strange
adapt --model device/pets.onnx --data device/single
adapt --model device/pets.onnx --data device/seen --expect-classes bird
adapt --model device/pets.onnx --data device/seen --expect-classes 'class 0, ä'
adapt --model device/pets.onnx --data device/seen --method cma --head bias
adapt --model device/pets.onnx --data device/seen --unlabelled --head weights
adapt --model device/pets.onnx --data device/seen --state device/foreign.state
adapt --model device/pets.onnx --data device/seen --state file
adapt --model device/pets.onnx --data device/seen --steps 0
adapt --model device/pets.onnx --data device/seen --seed -1
adapt --model device/pets.onnx --data device/seen --seed 4294967296
adapt --model device/plain.onnx --data device/seen --method cma
adapt --model device/plain.onnx --data device/seen --head none
adapt --model device/folded.onnx --data device/seen --method cma
adapt --model device/folded.onnx --data device/seen --head none
adapt --model device/pets.onnx --task pets --data device/seen
adapt --model device/two --data device/seen
adapt --model device/two --task birds --data device/seen
adapt --model device/two --task cars --data device/seen --state device/two/pets.state
adapt --model device/two-fixed --task cars --data device/seen
adapt --model device/two-lost --task cars --data device/seen

state undo
state history
state history --model nowhere.onnx
state history --model device/fixed.onnx
state history --model device/pets.onnx --state nowhere
state history --model device/pets.onnx --state a.jpg
state history --model device/pets.onnx --state device/foreign.state
state history --model device/two
state rollback --model device/two --task cars
state rollback --model device/pets.onnx --state nowhere
state rollback --model device/pets.onnx --state device/first.state
state rollback --model device/pets.onnx --state device/first.state --to 9
state rollback --model device/pets.onnx --state device/first.state --to 0
state reset --model device/pets.onnx --state nowhere
state reset --model device/fixed.onnx
state send --model device/pets.onnx
state send v.json --model device/pets.onnx --state nowhere
state send v.json --model device/plain.onnx
state send v.json --model device/folded.onnx
state send nowhere/v.json --model device/pets.onnx --state device/first.state

verify
verify nowhere.onnx
verify wrong/x.hgbundle
verify wrong/x.onnx
verify device/half.onnx
verify device/nameless.onnx
verify device/fixed.onnx --bundle nowhere.hgbundle
verify device/fixed.onnx --bundle empty
verify device/fixed.onnx --checkpoint nowhere.safetensors
verify device/other-bank/pets.onnx
verify device/fixed.onnx --key nowhere.pub
verify device/fixed.onnx --key empty
verify device/fixed.onnx --key keys/ec.pub
verify device/fixed.onnx --key keys/ec.pem
verify device/fixed.onnx --key keys/rsa.pub
verify device/fixed.onnx --key keys/empty.pub
verify device/fixed.onnx --key keys/damaged.pub
verify device/fixed.onnx --key keys/certificate.pub

bench
bench nowhere.onnx
bench wrong/x.hgbundle
bench device/half.onnx
bench device/fixed.onnx --runs 0
bench device/fixed.onnx --batch 1000000000000
bench device/fixed.onnx --split test
bench device/fixed.onnx --data nowhere

prompt train
prompt train --task pest --backbone tiny
prompt train --data nowhere --backbone tiny
prompt train --data one --backbone tiny
prompt train --task digits --backbone tiny --image-size 65
prompt train --task digits --backbone tiny --seed -1
prompt train --task digits --backbone tiny --seed 4294967296
prompt train --task digits --backbone tiny --device cuda --output bank
prompt train --task digits --backbone tiny --device mps --output bank
prompt train --task generated-count --backbone tiny --resize squash
prompt train --data many --backbone tiny --batch-size 16 --output bank
prompt train --data mine --backbone tiny --output bank --tokens 10
prompt train --data mine --backbone tiny --output bank --preprocessing none
prompt train --task digits --backbone tiny --output file

prompt import
prompt import good.pth --backbone tiny --name a
prompt import good.pth --preprocessing imagenet --name a
prompt import good.pth --backbone tiny --preprocessing imagenet
prompt import nowhere.pth --backbone tiny --preprocessing imagenet --name a
prompt import . --backbone tiny --preprocessing imagenet --name a
prompt import good.pth --backbone tiny --preprocessing imagenet --name ../a
prompt import good.pth --backbone tiny --preprocessing imagenet --name=
prompt import good.pth --backbone vit_tin --preprocessing imagenet --name a
prompt import narrow.pth --backbone tiny --preprocessing imagenet --name a
prompt import half.pth --backbone tiny --preprocessing imagenet --name a
prompt import code.pth --backbone tiny --preprocessing imagenet --name a
prompt import unknown.pth --backbone tiny --preprocessing imagenet --name a
prompt import good.pth --backbone tiny --preprocessing imagenet --name a --output bank
prompt import good.pth --backbone tiny --preprocessing none --name a --output bank

prompt show
prompt show nowhere
prompt show empty
prompt show truncated
prompt show wrong/x.safetensors
prompt list

backbone list --all
tasks pets
cache list
cache show all
cache clear --all
doctor --fix
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    make_bad_inputs(folder)
    return folder


def out_of_reach(*_: object, **__: object) -> None:
    raise ConnectionError("name or service not known")


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of what is below a folder."""
    found = {}
    for place, _, names in os.walk(folder):
        found[place] = (0, 0)
        for name in names:
            stat = Path(place, name).stat()
            found[f"{place}/{name}"] = (stat.st_size, stat.st_mtime_ns)
    return found


OTHERS = {
    r"(invalid value for '.*?'): .*?; see": r"\1: <reason>; see",
    r"computing in .*": "computing in <how>",
    r"(not a readable parquet file|not a safetensors file) \(.*\);": r"\1 (<reason>);",
    r"timm id; did you mean .*\?": "timm id; did you mean <timm ids>?",
    r"\b[0-9a-f]{12}\b": "<digest>",
}
"""What is not ours to word, or differs from machine to machine, and what stands for it."""


def message(text: str, place: Path) -> str:
    text = text.replace(str(place), "<tmp>")
    for pattern, instead in OTHERS.items():
        text = re.sub(pattern, instead, text)
    return text


@pytest.mark.parametrize("command", [line for line in COMMANDS.splitlines() if line])
def test_bad_input(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, snapshot: SnapshotAssertion
) -> None:
    monkeypatch.chdir(place)
    for call in ("list_repo_files", "snapshot_download", "get_hf_file_metadata"):
        monkeypatch.setattr(f"huggingface_hub.{call}", out_of_reach)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.delenv("HGEDGE_KEY_PASSPHRASE", raising=False)
    before = files(place)
    result = run(*shlex.split(command))
    assert files(place) == before, "bad input left something behind"
    output = f"{result.stdout}{result.stderr}".rstrip("\n")
    assert f"exit code {result.exit_code}\n{message(output, place)}" == snapshot
