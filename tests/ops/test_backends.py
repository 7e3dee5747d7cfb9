"""Which backend runs a call, and why the others do not."""

import pytest
import torch

import groupnorm
from backends import COMPILED
from groupnorm import functional
from groupnorm.errors import BackendError
from groupnorm.functional import group_norm
from groupnorm.ops import backends, cpu, dispatch
from groupnorm.ops.backends import BACKENDS, resolve
from groupnorm.ops.spec import CHANNELS_LAST, CONTIGUOUS, Spec, layout_of

LARGE, SMALL = torch.zeros(2, 8, 200, 200), torch.zeros(2, 8, 4, 4)
needs_cpu = pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())


def spec(**changes: object) -> Spec:
    return Spec("cpu", torch.float32, (2, 8, 64, 64), CONTIGUOUS, 4, None, False)._replace(**changes)


@needs_cpu
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("x", [SMALL, LARGE, SMALL.clone().requires_grad_()], ids=["small", "large", "training"])
def test_auto_takes_the_kernels_for_every_size(x: torch.Tensor, activation: str | None) -> None:
    assert groupnorm.explain(x, 4, activation=activation).chosen == "cpu"
    assert groupnorm.explain(x[:0], 4, activation=activation).chosen == "native"


@pytest.mark.parametrize("name", ["reference", "native", *COMPILED])
def test_a_backend_that_is_named_runs_whatever_auto_would_take(name: str) -> None:
    assert {groupnorm.explain(x, 4, backend=name).chosen for x in (LARGE, SMALL)} == {name}


@pytest.mark.parametrize("backend", ["auto", *BACKENDS[:2]])
def test_every_other_backend_has_a_reason(backend: str) -> None:
    explained = groupnorm.explain(LARGE, 4, activation="silu", backend=backend)
    assert {explained.chosen, *explained.reasons} == set(BACKENDS)
    assert all(explained.reasons.values())
    lines = str(explained).splitlines()
    assert lines[0].split() == [explained.chosen, "runs"]
    assert [line.split()[0] for line in lines[1:]] == list(explained.reasons)
    assert repr(explained) == str(explained), "as a console shows it"


def test_the_reason_is_the_one_that_holds() -> None:
    reasons = groupnorm.explain(LARGE.to("meta"), 4).reasons
    assert reasons["cpu"] == "cannot: the input is on meta"
    assert "was not asked for" in groupnorm.explain(LARGE, 4, backend="native").reasons["reference"]
    assert groupnorm.explain(LARGE[:0], 4).reasons["cpu"] == "cannot: the input has no elements"


def test_nothing_is_computed_to_explain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "forward", None)
    monkeypatch.setattr(dispatch, "group_norm", None)
    groupnorm.explain(LARGE, 4)


@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_a_backend_that_is_named_is_never_exchanged(name: str) -> None:
    with pytest.raises(BackendError, match=f"backend='{name}' cannot run this call"):
        group_norm(LARGE.to("meta"), 4, backend=name)
    with pytest.raises(BackendError, match="has no elements"):
        group_norm(LARGE[:0], 4, backend=name)


@needs_cpu
def test_a_crash_inside_a_backend_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cpu, "_library", crash)
    for backend in ("auto", "cpu"):
        with pytest.raises(RuntimeError, match="a bug"):
            group_norm(LARGE, 4, backend=backend)


def test_a_choice_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve.cache_clear()
    asked = []
    monkeypatch.setattr(backends, "refusal", lambda spec, name: asked.append(name) or "no")
    assert {resolve(spec()) for _ in range(3)} == {"native"}
    assert asked == list(backends.COMPILED)
    resolve.cache_clear()


def test_a_spec_is_a_value() -> None:
    assert spec() == spec()
    assert hash(spec()) == hash(spec())
    assert {spec(), spec(groups=2), spec(layout=CHANNELS_LAST)} == {spec(layout=CHANNELS_LAST), spec(groups=2), spec()}
    with pytest.raises(AttributeError):
        spec().groups = 3


@pytest.mark.parametrize(
    ("x", "layout"),
    [
        (torch.empty(2, 3, 4, 5), CONTIGUOUS),
        (torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last), CHANNELS_LAST),
        (torch.empty(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d), CHANNELS_LAST),
        (torch.empty(2, 3, 1, 1).to(memory_format=torch.channels_last), CONTIGUOUS),
        (torch.empty(2, 4, 3).transpose(1, 2), CONTIGUOUS),
        (torch.empty(2, 3, 4, 10)[..., ::2], CONTIGUOUS),
        (torch.empty(2, 6, 4, 5).to(memory_format=torch.channels_last)[:, :3], CHANNELS_LAST),
        (torch.empty(2, 3, 4, 10).to(memory_format=torch.channels_last)[..., ::2], CHANNELS_LAST),
        (torch.empty(1, 3, 4, 10).to(memory_format=torch.channels_last).expand(5, -1, -1, -1), CHANNELS_LAST),
        (torch.empty(4, 5, 3).permute(2, 0, 1)[None], CHANNELS_LAST),
        (torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)[:, :, :1, :1], CONTIGUOUS),
        (torch.empty(2, 1, 4, 10)[..., ::2], CONTIGUOUS),
        (torch.empty(2, 3, 4, 5).transpose(2, 3), CONTIGUOUS),
    ],
)
def test_the_layout_of_an_input(x: torch.Tensor, layout: str) -> None:
    assert layout_of(x) == layout
    assert {layout_of(x[i : i + 1]) for i in range(len(x))} == {layout}, "one sample decides"


def test_the_module_hands_on_its_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plain = functional.compute
    monkeypatch.setattr(functional, "compute", lambda spec, name, *a: seen.append(name) or plain(spec, name, *a))
    norm = groupnorm.GroupNorm(4, 8, backend="reference")
    norm(LARGE)
    assert seen == ["reference"]
    assert repr(norm).endswith(", backend=reference)")


def test_a_module_from_before_there_was_a_choice_takes_auto() -> None:
    norm = groupnorm.GroupNorm(4, 8)
    del norm.__dict__["backend"]
    torch.testing.assert_close(norm(LARGE), torch.zeros_like(LARGE))
