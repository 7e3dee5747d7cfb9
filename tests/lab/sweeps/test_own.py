"""Data and networks of the user's own: each ends in a right result, or in a message before anything trains.

``GROUPNORM_EXAMPLES=2000`` draws so many examples of each property, other ones each time.
"""

import json
import os
import sys
import tempfile
import traceback
import unicodedata
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from groupnorm.cli import app
from groupnorm.lab.api import Result
from groupnorm.lab.data import load
from lab.inline import inline

EXAMPLES = os.environ.get("GROUPNORM_EXAMPLES")
few = settings(max_examples=int(EXAMPLES or 12), derandomize=EXAMPLES is None)

R = np.random.default_rng(0)
IMAGES = {"train": R.integers(1, 255, (12, 3, 8, 9), dtype=np.uint8), "val": R.integers(1, 255, (6, 3, 8, 9), np.uint8)}
LABELS = {"train": np.arange(12) % 3, "val": np.arange(6) % 3}


class Greyscale(nn.Sequential):
    """Takes any number of channels, so that no error of its own hides that the data were misread."""

    def forward(self, x):
        return super().forward(x.mean(1, keepdim=True))


def good(norm_layer, classes=3):
    conv = nn.Conv2d(1, 4, 3, padding=1)
    return Greyscale(conv, norm_layer(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def invoke(dataset, model=good, *options):
    """The exit code of ``groupnorm compare``, what it printed, and the numbers of each cell."""
    module = ModuleType("users_own")
    module.data, module.model = dataset, model
    name = dataset if isinstance(dataset, str) else "users_own:data"
    arguments = ["compare", "--dataset", name, "--model", "users_own:model", "--norms", "bn,gn:2", "--batch-sizes", "4"]
    arguments += ["--epochs", "1", "--seeds", "1", "--device", "cpu", *options]
    with tempfile.TemporaryDirectory() as out, pytest.MonkeyPatch.context() as patch, inline():
        patch.setitem(sys.modules, "users_own", module)
        patch.setattr(Result, "report", lambda self: "report.html")  # its tests are elsewhere, and it takes a second
        result = CliRunner().invoke(app, [*arguments, "--out", out])
        records = [path.read_text().splitlines() for path in sorted(Path(out).glob("cells/*/records.jsonl"))]
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        traceback.print_exception(result.exception)
        pytest.fail(f"compare ended in {result.exception!r}")
    found = [json.loads(line) for lines in records for line in lines]
    return result.exit_code, result.output, [(r["loss"], r["error"]) for r in found if r["kind"] == "epoch"]


def assert_refused(dataset, model=good, *options):
    code, output, numbers = invoke(dataset, model, *options)
    assert (code, numbers) == (2, []), output
    assert "Nothing was trained; the configuration has these problems:" in output
    assert "Traceback" not in output
    assert " object at 0x" not in output
    return output


def plain():
    return IMAGES["train"], LABELS["train"], IMAGES["val"], LABELS["val"]


@pytest.fixture(scope="module")
def right():
    """The numbers for the data as they are."""
    code, output, numbers = invoke(plain)
    assert code == 0, output
    assert len(numbers) == 2
    return numbers


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


SAME_IMAGES = {
    "as they are": lambda a: a,
    "a column-major array": np.asfortranarray,
    "an array that may not be written": read_only,
    "a view with gaps": lambda a: np.repeat(a, 2, 3)[..., ::2],
    "a view that runs backwards": lambda a: a[::-1].copy()[::-1],
    "an array in a file": lambda a: a.view(np.memmap),
    "a tensor": torch.tensor,
    "a channels-last tensor": lambda a: torch.tensor(a).contiguous(memory_format=torch.channels_last),
    "a parameter": lambda a: nn.Parameter(torch.tensor(a), requires_grad=False),
}
SAME_LABELS = {
    "as they are": lambda a: a,
    "a tensor": torch.tensor,
    "a column": lambda a: np.stack([a, a + 1], 1)[:, 0],
    **{f"dtype {kind}": lambda a, kind=kind: a.astype(kind) for kind in ("i1", "u1", "<u2", ">u2", ">i4", ">i8", "u8")},
}


@given(*[st.sampled_from(sorted(ways)) for ways in (SAME_IMAGES, SAME_LABELS) * 2], st.sampled_from([tuple, list]))
@few
def test_the_same_values_give_the_same_numbers_however_they_are_stored(right, images, labels, val, val_labels, kind):
    ways = SAME_IMAGES[images], SAME_LABELS[labels], SAME_IMAGES[val], SAME_LABELS[val_labels]
    code, output, numbers = invoke(lambda: kind(way(values) for way, values in zip(ways, plain(), strict=True)))
    assert code == 0, output
    assert numbers == right


@given(st.sampled_from(["<f4", ">f4"]), st.sampled_from([1e-30, 1.0, 1e30]))
@few
def test_the_unit_and_the_byte_order_of_the_images_do_not_matter(right, kind, unit):
    code, output, numbers = invoke(lambda: [a if a.ndim == 1 else (a * np.float32(unit)).astype(kind) for a in plain()])
    assert code == 0, output
    np.testing.assert_allclose(numbers, right, rtol=1e-4)


def poked(value):
    """Puts a value into one image."""

    def poke(a):
        a = a.astype(np.float32)
        a[1, 1, 1, 1] = value
        return a

    return poke


WRONG_IMAGES = {
    **{f"dtype {kind}": lambda a, kind=kind: a.astype(kind) for kind in ("?", "i4", "i8", ">f8", "f2", "c8", "g", "O")},
    **{f"holds {value}": poked(value) for value in (np.nan, np.inf, -np.inf, 3e38)},
    "channels last": lambda a: a.transpose(0, 2, 3, 1),
    "channels last in a tensor": lambda a: torch.tensor(a).permute(0, 2, 3, 1),
    "grey, channels last": lambda a: a[:, 0, :, :, None],
    "samples last": lambda a: a.transpose(1, 2, 3, 0),
    "grey without channels": lambda a: a[:, 0],
    "flat": lambda a: a.reshape(len(a), -1),
    "five axes": lambda a: a[:, None],
    "one image fewer": lambda a: a[1:],
    "nothing": lambda a: a[:0],
    "no pixels": lambda a: a[..., :0],
    "sparse": lambda a: torch.tensor(a).float().to_sparse(),
    "quantised": lambda a: torch.quantize_per_tensor(torch.tensor(a).float(), 1.0, 0, torch.quint8),
    "nested": lambda a: torch.nested.nested_tensor(list(torch.tensor(a).float())),
    "on meta": lambda a: torch.tensor(a).to("meta"),
    "masked": lambda a: np.ma.masked_less(a, 5),
    "a list": list,
    "None": lambda a: None,
    "a path": lambda a: "images.npy",
}
WRONG_LABELS = {
    **{f"dtype {kind}": lambda a, kind=kind: a.astype(kind) for kind in ("?", ">f4", "f8", "c8", "O", "U", "M8[s]")},
    "from 1": lambda a: a + 1,
    "from -1": lambda a: a - 1,
    "with a gap": lambda a: a * 2,
    "one-hot": lambda a: np.eye(3, dtype=int)[a],
    "in a column": lambda a: a[:, None],
    "one fewer": lambda a: a[1:],
    "one": lambda a: a[0],
    "unsigned and enormous": lambda a: a.astype("u8") + np.uint64(2**63),
    "a list": lambda a: a.tolist(),
    "names": lambda a: [("cat", "dog", "cow")[i] for i in a],
    "None": lambda a: None,
}


@pytest.mark.filterwarnings("ignore")  # torch's, of nested and quantised tensors
@given(
    st.sampled_from(["train_images", "val_images", "train_labels", "val_labels"]),
    st.data(),
    st.sampled_from([0, 1, 2, 3]),
)
@settings(few, max_examples=int(EXAMPLES or 60))
def test_one_wrong_value_of_the_four_is_refused_by_its_name(which, data, other):
    wrong = WRONG_IMAGES if "images" in which else WRONG_LABELS
    chosen = data.draw(st.sampled_from(sorted(wrong)))
    place = ["train_images", "train_labels", "val_images", "val_labels"].index(which)
    values = list(plain())
    values[place] = wrong[chosen](values[place])
    if other != place:  # what is right may be stored in another way
        ways = SAME_LABELS if other % 2 else SAME_IMAGES
        values[other] = ways[data.draw(st.sampled_from(sorted(ways)))](values[other])
    output = assert_refused(lambda: values)
    if chosen in ("one image fewer", "nothing") or (place == 2 and "dtype" in chosen):
        return  # labels that are too many, or images of two kinds
    assert which in output or "validation images" in output or "samples last" in chosen


def leaves():
    sys.exit(3)


def fails():
    raise RuntimeError("no such table: images")


WRONG_FUNCTIONS = {
    "None": lambda: None,
    "three": lambda: plain()[:3],
    "a dict": lambda: dict(zip("abcd", plain(), strict=True)),
    "a generator": lambda: (a for a in plain()),
    "fails": fails,
    "leaves": leaves,
    "in another order": lambda: [plain()[i] for i in (0, 2, 1, 3)],
    "one class": lambda: [a * 0 if a.ndim == 1 else a for a in plain()],
    "all black": lambda: [a if a.ndim == 1 else a // 255 for a in plain()],
    "validation in other units": lambda: (plain()[0], plain()[1], plain()[2] / np.float32(255), plain()[3]),
    "validation of another size": lambda: (*plain()[:2], plain()[2][..., 1:], plain()[3]),
    "validation of an unseen class": lambda: (plain()[0][:9], plain()[1][:9] % 2, *plain()[2:]),
}


@pytest.mark.parametrize("wrong", sorted(WRONG_FUNCTIONS))
def test_a_function_that_returns_something_else_is_refused(wrong):
    assert "users_own:data" in assert_refused(WRONG_FUNCTIONS[wrong])


class Raises(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


class Returns(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.inner, self.change = good(nn.BatchNorm2d), change

    def forward(self, x):
        return self.change(self.inner(x))


WRONG_NETWORKS = {
    "too few classes": lambda norm_layer: good(norm_layer, 2),
    "too many classes": lambda norm_layer: good(norm_layer, 4),
    "no module": lambda norm_layer: good,
    "None": lambda norm_layer: None,
    "takes nothing": lambda: good(nn.BatchNorm2d),
    "asserts": lambda norm_layer: Raises(AssertionError()),
    "fails": lambda norm_layer: Raises(KeyError("x")),
    "leaves": lambda norm_layer: Raises(SystemExit(0)),
    "groups do not divide": lambda norm_layer: nn.Sequential(norm_layer(3), good(norm_layer)),
    "other channels": lambda norm_layer: nn.Sequential(norm_layer(8), good(norm_layer)),
    "a tuple": lambda norm_layer: Returns(lambda y: (y, y)),
    "a dict": lambda norm_layer: Returns(lambda y: {"logits": y}),
    "maps": lambda norm_layer: Returns(lambda y: y[:, :, None]),
    "one answer for all": lambda norm_layer: Returns(lambda y: y[:1]),
    "ignores norm_layer": lambda norm_layer: good(nn.BatchNorm2d),
}


@pytest.mark.parametrize("wrong", sorted(WRONG_NETWORKS))
def test_a_network_that_cannot_answer_is_refused(wrong):
    output = assert_refused(plain, WRONG_NETWORKS[wrong])
    if wrong == "ignores norm_layer":
        assert "ignores norm 'gn:2'" in output
        return
    norm = "gn:2" if wrong == "groups do not divide" else "bn"
    assert f"model: 'users_own:model' with norm '{norm}' cannot take images of shape (3, 8, 9): " in output
    assert "(3, 8, 9): \n" not in output


def png(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.transpose(1, 2, 0)).save(path)


def save_as(ending, kind=None):
    def save(path):
        with Image.open(path) as image:
            image.save(path.with_suffix(ending), kind)
        path.unlink()

    return save


def linked(path):
    (path.parents[3] / "store").mkdir(exist_ok=True)
    target = path.parents[3] / "store" / f"{path.parent.parent.name}-{path.parent.name}-{path.name}"
    path.rename(target)
    path.symlink_to(target)


def in_a_linked_folder(path):
    store = path.parents[3] / f"store-{path.parent.parent.name}-{path.parent.name}-{path.stem}"
    store.mkdir()
    path.rename(store / path.name)
    (path.parent / f"more{path.stem}").symlink_to(store)


def below(path):
    (path.parent / "a" / "b").mkdir(parents=True, exist_ok=True)
    path.rename(path.parent / "a" / "b" / path.name)


def beside(name, content=b""):
    def add(path):
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).write_bytes(content or path.read_bytes())

    return add


def pipe(path):
    if not (path.parent / "pipe.png").exists():
        os.mkfifo(path.parent / "pipe.png")


def loop(target, name="loop"):
    def add(path):
        if not (path.parent / name).is_symlink():
            (path.parent / name).symlink_to(target)

    return add


def class_spelt_otherwise(path):
    if "é" in unicodedata.normalize("NFC", path.parent.name):
        path.parent.rename(path.parent.with_name(unicodedata.normalize("NFD", path.parent.name)))


def class_linked(path):
    store = path.parents[3] / f"class-{path.parent.parent.name}-{path.parent.name}"
    if not store.exists():
        path.parent.rename(store)
        path.parent.symlink_to(store)


HARMLESS = {
    **{f"as {ending}": save_as(ending) for ending in (".bmp", ".tif", ".TIFF", ".ppm", ".PNG")},
    "a TIFF that ends in .jpg": save_as(".jpg", "TIFF"),
    "linked": linked,
    "in a linked folder": in_a_linked_folder,
    "in a folder below": below,
    "a notebook's copy": beside(".ipynb_checkpoints/copy.png"),
    "a copy by macOS": beside("._copy.png"),
    "notes": beside("notes.txt", b"notes"),
    "another format": beside("copy.gif"),
    "a pipe": pipe,
    "a link to itself": loop("loop"),
    "a link back": loop("../.."),
    "a link to its folder": loop(".", "again"),
    "its class spelt otherwise": class_spelt_otherwise,
    "its class linked": class_linked,
}
HARMFUL = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-60]),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "a page": lambda path: path.write_text("<html>404 not found</html>"),
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("moved")),
    "a link to itself": lambda path: (path.unlink(), path.symlink_to(path.name)),
    "of another size": lambda path: png(path, IMAGES["train"][0][:, 1:]),
    "of floats": lambda path: Image.fromarray(np.ones((8, 9), np.float32)).save(path, "TIFF"),
}
CLASSES = ("cat", "dog", "é")


def draw(root):
    """A folder of the images, with every path and its label."""
    found = []
    for split, images in IMAGES.items():
        for i, (image, label) in enumerate(zip(images, LABELS[split], strict=True)):
            path = root / split / CLASSES[label] / f"{i:02}.png"
            png(path, image)
            found.append(path)
    return found


@given(st.lists(st.tuples(st.integers(0, 17), st.sampled_from(sorted(HARMLESS))), max_size=6, unique_by=lambda c: c[0]))
@few
def test_a_folder_with_all_that_lies_in_folders_gives_its_images(changes):
    with tempfile.TemporaryDirectory() as root:
        paths = draw(Path(root, "pets"))
        for index, change in changes:
            if paths[index].is_file():  # its class may have another name by now
                HARMLESS[change](paths[index])
        data = load(f"{root}/pets")
        for images, labels, split in (
            (data.train_images, data.train_labels, "train"), (data.val_images, data.val_labels, "val"),
        ):  # fmt: skip
            got = sorted((label, image.numpy().tobytes()) for image, label in zip(images, labels.tolist(), strict=True))
            assert got == sorted((n, i.tobytes()) for i, n in zip(IMAGES[split], LABELS[split].tolist(), strict=True))
        code, output, numbers = invoke(f"folder:{root}/pets")
        assert (code, len(numbers)) == (0, 2), output


@given(
    st.dictionaries(st.integers(0, 17), st.sampled_from(sorted(HARMFUL)), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 17), st.sampled_from(sorted(HARMLESS))), max_size=3),
)
@few
def test_broken_images_are_refused_all_in_one_list(broken, changes):
    with tempfile.TemporaryDirectory() as root:
        paths = draw(Path(root, "pets"))
        for index, change in broken.items():
            HARMFUL[change](paths[index])
        for index, change in changes:
            if index not in broken and paths[index].is_file() and "class" not in change:
                HARMLESS[change](paths[index])
        output = assert_refused(f"{root}/pets")
        named = [i for i, change in broken.items() if change != "of another size"]
        assert all(str(paths[i]) in output for i in named)
        if len(named) < len(broken):
            assert "differ from it; expected one size" in output or "expected the same: convert one" in output


WRONG_NAMES = [
    "", "folder:", "folder:nowhere", "nowhere/pets", "C:\\pets", "~nobody-there/x", "users_own", "users_own:",
    "pets.zip", "users_own:nothing", "\0", "x" * 5000, "folder:\udce9", "digits ", "../" * 40 + "nowhere",
]  # fmt: skip


@pytest.mark.parametrize("name", WRONG_NAMES, ids=range(len(WRONG_NAMES)))
def test_a_name_that_stands_for_no_data_is_refused(name):
    assert "dataset" in assert_refused(name)
