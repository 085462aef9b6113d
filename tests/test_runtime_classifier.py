"""`hgprompt_edge.load`: a photograph in any form gives what `predict` gives for its file."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from planted import Planted
from small_vits import make_backbone, make_bundle

import hgprompt_edge
from hgprompt_edge import Classification, Classifier, Predictor, UserError
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.images.decode import UnreadableImageError
from hgprompt_edge.runtime.learned import open_history, state_folder


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "pets.onnx"
    export_onnx(make_bundle(make_backbone()), make_backbone(), path)
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> Classifier:
    return hgprompt_edge.load(path, threads=1)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Wide, and lying on its side."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    return tmp_path / "photo.png"


def predicted(path: Path, photo: Path) -> Classification:
    """What the predictor gives for the file."""
    (prediction,) = Predictor(path, threads=1).predict_paths([photo], top=99)
    labels, probabilities = zip(*prediction.labels, strict=True)
    return Classification(labels, probabilities)


def test_a_photograph_gives_the_same_in_any_form(
    path: Path, model: Classifier, photo: Path
) -> None:
    expected = predicted(path, photo)
    upright = np.array(Image.open(photo).transpose(Image.Transpose.ROTATE_270))
    with Image.open(photo) as opened:
        content = photo.read_bytes()
        files = [photo, str(photo), content, bytearray(content), memoryview(content)]
        fortran = np.asfortranarray(upright)
        forms = [*files, opened, upright, fortran, Image.fromarray(upright)]
        assert [model(form) for form in forms] == [expected] * len(forms)
        assert model(forms) == [expected] * len(forms)
        assert model(form for form in forms) == [expected] * len(forms)
    assert model(np.stack([upright] * 2)) == [expected] * 2
    assert model([]) == []
    assert hgprompt_edge.load(str(path))(str(photo)) == expected
    assert (expected.label, expected.probability) == (
        expected.labels[0],
        max(expected.probabilities),
    )
    assert sum(expected.probabilities) == pytest.approx(1)
    assert sorted(expected.labels) == sorted(model.classes)
    assert repr(expected).startswith(f"Classification('{expected.label}', 0.")


@given(
    pixels=arrays.arrays(
        np.uint8,
        st.tuples(st.integers(1, 50), st.integers(1, 50)).flatmap(
            lambda side: st.sampled_from([side, (*side, 3), (*side, 4)])
        ),
    )
)
def test_pixels_give_what_their_file_gives(model: Classifier, pixels: np.ndarray) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="png")
    assert model(pixels) == model(content.getvalue())


def test_more_than_a_batch_keeps_its_order(path: Path, model: Classifier) -> None:
    images = np.random.default_rng(1).integers(0, 256, (37, 24, 24, 3), np.uint8)
    together = model(images)
    for image, found in zip(images[::9], together[::9], strict=True):
        alone = model(image)
        assert alone.labels == found.labels
        np.testing.assert_allclose(alone.probabilities, found.probabilities, atol=1e-5)


BAD = {
    "floats": (np.zeros((9, 9, 3)), ValueError, r"The image must be uint8 .* Got float64 \[9, 9"),
    "channels first": (np.zeros((3, 9, 9), np.uint8), ValueError, r"Got uint8 \[3, 9, 9\]"),
    "no pixels": (np.zeros((0, 9, 3), np.uint8), ValueError, r"Got uint8 \[0, 9, 3\]"),
    "a number": (3, TypeError, "must be photographs: paths, .* Got int instead"),
    "an open file": (io.BytesIO(b"hello"), TypeError, "Got BytesIO instead"),
    "a dictionary": ({"photo.jpg": 1}, TypeError, "Got dict instead"),
    "a folder": (Path(), UnreadableImageError, r"not a readable image \(is a directory\)"),
    "several, one of them none": ([b"", None], UnreadableImageError, "image 0: not a readable"),
    "several with nothing": ([np.zeros((9, 9), np.uint8), None], TypeError, "The image 1 must be"),
    "no file": ("none.jpg", UnreadableImageError, "none.jpg: no such file"),
    "no image": (b"hello", UnreadableImageError, "image: not a readable image"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_photograph_is_named(name: str, model: Classifier) -> None:
    images, error, words = BAD[name]
    with pytest.raises(error, match=words):
        model(images)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]
)
def test_pillow_images_of_every_mode_are_taken(mode: str, model: Classifier) -> None:
    grey = Image.linear_gradient("L").resize((30, 20))
    image = grey.convert("LA").convert("La") if mode == "La" else grey.convert("RGB").convert(mode)
    assert image.mode == mode
    plain = image.convert("LA").convert("RGB") if mode == "La" else image.convert("RGB")
    assert model(image).probabilities == pytest.approx(model(plain).probabilities, abs=1e-6)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pixels_that_do_not_say_how_bright_white_is_are_refused(
    mode: str, model: Classifier
) -> None:
    with pytest.raises(UnreadableImageError, match=r"read as black|floating-point pixels"):
        model(Image.linear_gradient("L").convert(mode))


def test_an_image_whose_file_was_closed_is_unreadable(model: Classifier, photo: Path) -> None:
    with Image.open(photo) as image:
        pass
    with pytest.raises(UnreadableImageError, match="image: not a readable image"):
        model(image)


def test_a_file_that_is_no_model_is_refused(photo: Path) -> None:
    with pytest.raises(UserError, match=r"photo\.png"):
        hgprompt_edge.load(photo)


def test_what_the_device_learned_is_in_force(tmp_path: Path) -> None:
    """From `MODEL.state` or the folder that is named, also while the model is in use."""
    planted = Planted(tmp_path, "learned")
    model, image = hgprompt_edge.load(planted.path), planted.images[0]
    initial = model(image)
    bias = np.zeros_like(planted.bank.head.bias)
    bias[-1] = 99
    state = state_folder(planted.path)
    with open_history(state, planted.bank, model.predictor.metadata) as history:
        history.commit(
            planted.bank.initial, method="labelled", images=1, figures={}, head_bias=bias
        )
    for found in (model, hgprompt_edge.load(planted.path)):
        assert found(image).label == model.classes[-1]
    assert hgprompt_edge.load(planted.path, state=tmp_path / "none")(image) == initial
    shutil.copytree(state, tmp_path / "other")
    shutil.rmtree(state)
    assert hgprompt_edge.load(planted.path, state=tmp_path / "other")(image).probability > 0.99
