"""Files with bytes changed or missing: a sentence, or data that can be read; never another exception."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from _sets import Config, cifar, folder, npz, shards
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.data import open_data
from secateur.errors import DataError

pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install pillow")

# A set, the file of it that is damaged, and its options.
FORMS = {
    "cifar10": (lambda root: cifar(root, images=2), "data_batch_2.bin", {}),
    "npz": (lambda root: npz(root / "a.npz"), "a.npz", {}),
    "folder": (lambda root: folder(root, per_class=2), "train/cat/001.png", {"size": 8}),
    "webdataset": (shards, "train-001.tar", {"size": 8}),
}


@st.composite
def damages(draw):
    """Where in a file (as a share of it), and what goes there; or the share of it that is left."""
    if draw(st.booleans()):
        return [(draw(st.floats(0, 1, exclude_max=True)), None)]
    near_start = st.floats(0, 0.02) if draw(st.booleans()) else st.floats(0, 1, exclude_max=True)
    return draw(st.lists(st.tuples(near_start, st.binary(min_size=1, max_size=4)), min_size=1, max_size=3))


def damage(path, harms):
    content = bytearray(path.read_bytes())
    for share, replacement in harms:
        place = int(share * len(content))
        if replacement is None:
            del content[place:]
        else:
            content[place : place + len(replacement)] = replacement
    path.write_bytes(content)


def refusal(config):
    """What is wrong with a set, or None if all of it can be read."""
    try:
        data = open_data(config, seed=0)
        for images, labels in data.train.batches(8):
            assert torch.isfinite(images).all()
            assert ((labels >= 0) & (labels < data.classes)).all()
    except DataError as error:
        return str(error)
    return None


@pytest.mark.fuzz
@pytest.mark.parametrize("form", FORMS)
@given(harms=damages())
@settings(max_examples=settings.default.max_examples // 8)
def test_damaged_files_are_read_or_refused_in_a_sentence(form, harms):
    make, victim, options = FORMS[form]
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow says of odd headers
        path = make(Path(name))
        damage(Path(name) / victim, harms)
        said = refusal(Config(form, str(path), batch_size=1, options=options))
    assert said is None or (said.endswith(".") and "\n" not in said)
