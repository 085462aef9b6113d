"""New weights reach a predictor that runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from planted import Planted
from small_vits import make_backbone, make_mixable

from hgprompt_edge.errors import UserError
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.runtime.learned import open_history
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.runtime.watching.watch import watch


@pytest.fixture(scope="module", params=["learned", "none"])
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted"), request.param)


class TestLive:
    def test_new_weights_reach_a_running_predictor(self, planted: Planted, tmp_path: Path) -> None:
        state = tmp_path / "state"
        with open_history(state, planted.bank, planted.predictor.metadata) as history:
            live = Predictor(planted.path, state=state)
            old = live.logits(planted.images[:3])
            assert not live.refresh()
            mix = np.roll(planted.bank.initial, 1)
            bias = planted.bank.head.bias + np.float32(1)
            history.commit(mix, method="labelled", images=1, figures={}, head_bias=bias)
            assert live.refresh()
            assert not live.refresh()
        fresh = Predictor(planted.path)
        np.testing.assert_allclose(fresh.logits(planted.images[:3]), old, rtol=1e-5, atol=1e-5)
        fresh.set_weights(mix)
        wanted = fresh.logits(planted.images[:3]) + 1
        np.testing.assert_allclose(live.logits(planted.images[:3]), wanted, rtol=1e-4, atol=1e-4)

    def test_a_state_that_is_deleted_or_replaced_is_followed_too(
        self, planted: Planted, tmp_path: Path
    ) -> None:
        """Each history here has a version 2, and each is another one."""
        state, bank = tmp_path / "state", planted.bank
        mixes = [np.roll(bank.initial, shift) for shift in (1, 2)]
        images, live = planted.images[:3], Predictor(planted.path, state=state)
        initial = live.logits(images)

        def learn(folder: Path, mix: npt.NDArray[np.float32]) -> None:
            with open_history(folder, bank, planted.predictor.metadata) as history:
                assert history.commit(mix, method="labelled", images=1, figures={}).id == 2

        def serves(mix: npt.NDArray[np.float32]) -> None:
            assert live.refresh()
            assert not live.refresh()
            fresh = Predictor(planted.path)
            fresh.set_weights(mix)
            np.testing.assert_array_equal(live.logits(images), fresh.logits(images))

        learn(state, mixes[0])
        serves(mixes[0])
        shutil.rmtree(state)
        serves(bank.initial)
        np.testing.assert_array_equal(live.logits(images), initial)
        learn(state, mixes[0])
        serves(mixes[0])
        shutil.rmtree(state)
        learn(state, mixes[1])
        serves(mixes[1])
        state.rename(tmp_path / "kept")
        learn(tmp_path / "another", mixes[0])
        (tmp_path / "another").rename(state)
        serves(mixes[0])

    def test_the_state_of_another_model_is_never_served(
        self, planted: Planted, tmp_path: Path
    ) -> None:
        state, bank = tmp_path / "state", planted.bank
        open_history(state, bank, planted.predictor.metadata).close()
        live = Predictor(planted.path, state=state)
        others = planted.predictor.metadata.model_copy(update={"classes": ("cat", "dog")})
        with open_history(tmp_path / "another", bank, others) as other:
            mix = np.roll(bank.initial, 1)
            other.commit(mix, method="labelled", images=1, figures={})
        state.rename(tmp_path / "kept")
        (tmp_path / "another").rename(state)
        for _ in range(2):
            with pytest.raises(UserError, match="for a model with other classes"):
                live.refresh()
        assert live.version is not None
        assert live.version.id == 1

    def test_watch_serves_new_images_with_new_weights(
        self, planted: Planted, tmp_path: Path
    ) -> None:
        state, folder = tmp_path / "state", tmp_path / "in"
        folder.mkdir()
        Image.fromarray(planted.images[0]).save(folder / "0.png")
        with open_history(state, planted.bank, planted.predictor.metadata) as history:
            served = watch(Predictor(planted.path, state=state), folder, sleep=lambda _: None)
            prediction, version = next(served)
            assert prediction.path == folder / "0.png"
            assert version is not None
            assert version.id == 1
            history.commit(planted.bank.initial, method="labelled", images=1, figures={})
            Image.fromarray(planted.images[1]).save(folder / "1.png")
            prediction, version = next(served)
            assert prediction.path == folder / "1.png"
            assert version is not None
            assert version.id == 2

    def test_watch_serves_a_file_each_time_that_it_is_written(
        self, planted: Planted, tmp_path: Path
    ) -> None:
        """As of a camera that always writes `latest.bmp`: its files have one size."""
        copies = [tmp_path / f"{index}.bmp" for index in range(4)]
        for copy, pixels, side in zip(copies, planted.images, (24, 24, 12, 24), strict=False):
            Image.fromarray(pixels[:side]).save(copy)
        path = tmp_path / "in" / "latest.bmp"
        path.parent.mkdir()

        def write(index: int) -> None:
            shutil.copyfile(copies[index], path)
            os.utime(path, ns=(0, index))

        write(0)
        between: list[Callable[[], object]] = [
            bool, bool, bool,  # nothing happens: served once
            lambda: write(1), bool,  # of the same size
            lambda: write(2), bool, bool,
            lambda: write(3), bool, bool,  # of an earlier size again
            path.unlink, lambda: write(3), bool,  # gone, and back as it was
            path.unlink, path.parent.rmdir,
        ]  # fmt: skip
        looks, predictor = iter(between), Predictor(planted.path)
        served = watch(predictor, path.parent, sleep=lambda _: next(looks)())
        found: list[object] = []
        with pytest.raises(UserError, match="no such folder"):
            found.extend(prediction.labels for prediction, _ in served)
        wanted = predictor.predict_paths([*copies, copies[3]], batch_size=1)
        assert found == [prediction.labels for prediction in wanted]

    def test_folded_model_has_no_state(self, tmp_path: Path) -> None:
        backbone = make_backbone("tanh gelu")
        path = tmp_path / "p.onnx"
        export_onnx(make_mixable(backbone), backbone, path)
        with pytest.raises(UserError, match="are folded into it"):
            Predictor(path, state=tmp_path)
