"""Changes to the XML of OpenVINO's IR that leave the weights in its `.bin` as they are.

OpenVINO's own writer would write the weights again, in an order of its own, so that two graphs
could not share them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.metadata import PREFIX
from hgprompt_edge.runtime.engines.openvino_engine import RT_INFO

ALIGNMENT = 64
"""Bytes at whose multiples OpenVINO likes a tensor to begin."""

Floats = npt.NDArray[np.float32]


def set_entries(xml: Path, entries: Mapping[str, str]) -> None:
    """Put metadata into the runtime information of a graph, as `read_entries` reads them."""
    tree = ElementTree.parse(xml)
    info = _child(_child(tree.getroot(), "rt_info"), RT_INFO)
    for name, text in entries.items():
        _child(info, name.removeprefix(PREFIX)).set("value", text)
    tree.write(xml)


def fold_inputs(xml: Path, weights: Path, given: Mapping[str, Floats], path: Path) -> None:
    """Write a graph with constants in place of some inputs to `path`.

    The constants are added at the end of the file `weights`, where the graph in `xml` does not
    look.
    """
    tree = ElementTree.parse(xml)
    missing = dict(given)
    with weights.open("ab") as file:
        for layer in tree.getroot().iterfind("layers/layer"):
            name = layer.get("name", "")
            if layer.get("type") != "Parameter" or name not in missing:
                continue
            array = np.ascontiguousarray(missing.pop(name))
            file.write(bytes(-file.tell() % ALIGNMENT))
            _make_constant(layer, array, file.tell())
            file.write(array.tobytes())
    if missing:
        raise ValueError(f"The graph must take {', '.join(missing)}.")
    tree.write(path)


def _make_constant(layer: Element, array: Floats, offset: int) -> None:
    """Turn an input into a constant that lies at an offset in the file of weights."""
    layer.set("type", "Const")
    data, port = layer.find("data"), layer.find("output/port")
    if data is None or port is None:
        raise ValueError("An input must have a type and a port.")
    data.attrib = {
        "element_type": "f32",
        "shape": ", ".join(map(str, array.shape)),
        "offset": str(offset),
        "size": str(array.nbytes),
    }
    for dim in port.findall("dim"):
        port.remove(dim)
    for size in array.shape:
        SubElement(port, "dim").text = str(size)


def _child(parent: Element, name: str) -> Element:
    """Return the child of that name, made where it is missing."""
    found = parent.find(name)
    return SubElement(parent, name) if found is None else found
