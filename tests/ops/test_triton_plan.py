"""How calls are cut up for the GPU: the routes, offsets beyond 32 bits, the order of programs, what is refused."""

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from groupnorm.ops.spec import CHANNELS_LAST, CONTIGUOUS, Spec
from groupnorm.ops.triton import drawback, plan, refusal
from groupnorm.ops.triton.blocks import group_start, place
from ops.triton_calls import DEVICE

HALF, FULL, DOUBLE = torch.bfloat16, torch.float32, torch.float64
LAST = "channels last"


def spec_of(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype = HALF, layout: str = CONTIGUOUS, activation: str = "silu"
) -> Spec:
    return Spec("cuda", dtype, shape, layout, groups, activation, True)


@pytest.mark.parametrize(
    ("spec", "route"),
    [
        (spec_of((2, 320, 64, 64), 32), plan.LOOPED),
        (spec_of((2, 640, 32, 32), 32), plan.LOOPED),
        (spec_of((2, 1920, 16, 16), 32), plan.RESIDENT),
        (spec_of((2, 2560, 8, 8), 32), plan.RESIDENT),
        (spec_of((1, 256, 512, 512), 32), plan.STREAMED),
        (spec_of((1, 128, 20, 256, 256), 32), plan.STREAMED),
        (spec_of((32, 256, 56, 56), 32), plan.LOOPED),
        (spec_of((2, 2048, 7, 7), 32), plan.RESIDENT),
        (spec_of((2, 256, 200, 336), 32, FULL), plan.STREAMED),
        (spec_of((4, 64, 64, 64, 64), 8, FULL), plan.STREAMED),
        (spec_of((1024, 512), 8), plan.RESIDENT),
        (spec_of((1, 128, 16128, 1200), 16), plan.STREAMED),
        (spec_of((2, 320, 64, 64), 32, layout=LAST), plan.SPLIT),
        (spec_of((2, 1920, 16, 16), 32, layout=LAST), plan.RESIDENT),
        (spec_of((2, 2560, 8, 8), 32, layout=LAST), plan.RESIDENT),
        (spec_of((2, 320, 8, 8), 32, layout=LAST), plan.RESIDENT),
        (spec_of((32, 256, 56, 56), 32, layout=LAST), plan.SPLIT),
        (spec_of((1, 128, 20, 256, 256), 32, layout=LAST), plan.SPLIT),
    ],
    ids=str,
)
def test_the_route_follows_from_the_spec(spec: Spec, route: str) -> None:
    assert plan.route(spec) == route


specs = st.builds(
    lambda N, G, D, shape, dtype, layout: spec_of((N, G * D, *shape), G, dtype, layout),
    N=st.integers(1, 64),
    G=st.sampled_from([1, 2, 3, 8, 32, 96]),
    D=st.sampled_from([1, 2, 3, 10, 60, 64, 80]),
    shape=st.lists(st.sampled_from([1, 7, 16, 56, 120, 1000]), max_size=3).map(tuple),
    dtype=st.sampled_from([HALF, FULL, DOUBLE]),
    layout=st.sampled_from([CONTIGUOUS, CHANNELS_LAST]),
)


@given(specs)
def test_blocks_cover_every_channel_and_position_once(spec: Spec) -> None:
    for cut in (plan.split(spec), plan.streamed(spec), plan.looped(spec)):
        at = cut.geometry
        assert cut.slab * (at.slabs - 1) < at.width <= cut.slab * at.slabs
        assert at.chunk * (at.chunks - 1) < at.positions <= at.chunk * at.chunks
        assert at.chunk % cut.tile == 0
        assert cut.spans * at.width == at.rows
        assert cut.blocks == cut.spans * at.slabs * at.chunks


@given(specs)
def test_offsets_within_a_block_fit_32_bits(spec: Spec) -> None:
    for cut in (plan.split(spec), plan.streamed(spec), plan.looped(spec)):
        at = cut.geometry
        across, along = (1, at.width) if spec.layout == CHANNELS_LAST else (at.positions, 1)
        assert (cut.slab - 1) * across + at.chunk * along < 2**31
    if (cut := plan.resident(spec)) is not None:
        assert cut.groups * spec.channels * spec.positions < 2**31


@given(specs)
def test_no_program_waits_for_one_that_starts_after_it(spec: Spec) -> None:
    """Program t waits until the whole span of block ``t - lead`` is measured, and has measured block t itself."""
    cut = plan.streamed(spec)
    of_span = cut.geometry.slabs * cut.geometry.chunks
    for ticket in {cut.lead, cut.lead + 1, cut.lead + of_span, cut.blocks, cut.blocks + cut.lead - 1}:
        last_of_span = (ticket - cut.lead) // of_span * of_span + of_span - 1
        assert last_of_span <= ticket


@given(specs)
def test_resident_groups_are_covered_once_and_fit_the_registers(spec: Spec) -> None:
    cut = plan.resident(spec)
    if cut is not None:
        D = spec.channels // spec.groups
        assert D <= cut.members < 2 * D
        assert spec.positions <= cut.tile < 2 * spec.positions
        assert cut.groups * cut.members * cut.tile <= plan.HELD[spec.accumulates.itemsize]
        assert cut.programs * cut.groups >= spec.samples * spec.groups
        if not cut.of_samples:
            assert cut.programs * cut.groups == spec.samples * spec.groups
            assert spec.groups % cut.groups == 0


@triton.jit
def corners_kernel(corners, block, group, at, SLAB: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    _, _, _, first = place(block + tl.program_id(0), at, SLAB, CHANNELS_LAST)
    tl.store(corners, first)
    start = group_start(group + tl.program_id(0), at.channels, at.members, at.positions, CHANNELS_LAST)
    tl.store(corners + 1, start)


@pytest.mark.parametrize("layout", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("cut_by", [plan.split, plan.streamed])
def test_offsets_of_blocks_and_groups_have_64_bits(layout: str, cut_by) -> None:
    spec = spec_of((3, 128, 16128, 1200), 16, layout=layout)
    cut = cut_by(spec)
    at, last = cut.geometry, layout == CHANNELS_LAST
    corners = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    corners_kernel[(1,)](corners, cut.blocks - 1, 3 * 16 - 1, at, cut.slab, last)
    channel, position = (at.slabs - 1) * cut.slab, (at.chunks - 1) * at.chunk
    of_channel, of_position = (1, at.width) if last else (at.positions, 1)
    before = (cut.spans - 1) * at.width * at.positions
    block = before + channel * of_channel + position * of_position
    group = 2 * 128 * at.positions + 15 * 8 * (1 if last else at.positions)
    assert block > 2**32
    assert corners.tolist() == [block, group]


def test_few_programs_keep_more_tiles_on_their_way() -> None:
    assert plan.looped(spec_of((2, 320, 64, 64), 32)).stages > plan.looped(spec_of((32, 256, 56, 56), 32)).stages == 1


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (spec_of((2, 4, 8), 2, torch.float8_e4m3fn), "no kernel for torch.float8_e4m3fn"),
        (spec_of((2, 4, 8), 2, activation="mish"), "no kernel for the activation 'mish'"),
        (spec_of((1, 4, 2**31), 2), "up to 2**31 - 1"),
        (spec_of((2**25, 64), 2), "up to 2**31 - 1"),
    ],
    ids=["dtype", "activation", "positions", "rows"],
)
def test_a_refusal_names_what_it_refuses(spec: Spec, reason: str) -> None:
    assert reason in refusal(spec)


def test_the_interpreter_runs_where_it_is_asked_for_and_is_never_the_fastest() -> None:
    spec = spec_of((2, 4, 8), 2)
    assert refusal(spec) == ""
    assert ("interpreter" in drawback(spec)) == (DEVICE == "cpu")


@pytest.mark.parametrize(
    ("device", "gpu", "reason"),
    [
        ("cpu", None, "the input is on cpu: move it with x.cuda()"),
        ("cuda", None, "torch sees no GPU"),
        ("cuda", "sm_75", "architecture sm_75, and Triton needs sm_80"),
        ("cuda", "sm_90", ""),
        ("cuda", "sm_120", ""),
        ("cuda", "gfx942", ""),
    ],
)
def test_without_the_interpreter_it_needs_a_gpu(
    device: str, gpu: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groupnorm.ops.triton.INTERPRETED", False)
    found = refusal(spec_of((2, 4, 8), 2)._replace(device=device, gpu=gpu))
    assert reason in found
    assert bool(found) == bool(reason)
