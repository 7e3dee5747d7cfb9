"""Norm and activation in one call: which forms of code it reaches, and that whatever else the code does stays."""

import copy
import functools
import pickle
import types
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import groupnorm
from conversion.acceleration import X, accelerated, activated, gn, left
from groupnorm.conversion.fusion import source

NOTHING = "no ReLU, SiLU or GELU follows it"


class Block(nn.Module):
    """One activation for all."""

    def __init__(self, act=None):
        super().__init__()
        self.norm1, self.norm2, self.conv = gn(), gn(), nn.Conv2d(8, 8, 1)
        self.drop, self.act, self.mode = nn.Identity(), act or nn.SiLU(), "plain"


# Forms that are reached, twice in each of these.


class Sequence(Block):
    def forward(self, x):
        h = self.norm1(x)
        h = self.conv(self.act(h))
        h = self.norm2(h)
        h = self.drop(h)
        h = self.act(h)
        return self.act(h + x)


class Nested(Block):
    def forward(self, x):
        return self.act(self.conv(self.act(self.norm1(x)))) + F.silu(self.drop(self.norm2(x)))


class OtherNames(Block):
    def forward(self, x):
        normed = self.norm1(x)
        h = self.act(normed)
        normed2 = self.norm2(h * 2)
        return torch.relu(normed2)


class InEachBranch(Block):
    def forward(self, x):
        h = self.act(self.norm1(x))
        if self.mode == "plain":
            h = self.norm2(h)
        elif self.mode == "scaled":
            h = self.norm2(h)
            h = h * 3
        elif self.mode == "none":
            return h
        else:
            h = self.norm2(h) + 1
        h = self.act(h)
        return h


class WithoutElse(Block):
    def forward(self, x):
        h = self.act(self.norm1(x))
        for _ in range(1):
            if self.norm2 is not None:
                with torch.enable_grad():
                    h = self.norm2(h)
                    h = self.act(h)
        return h


class ModuleList(nn.Module):
    def __init__(self, act=None):
        super().__init__()
        self.norms, self.act = nn.ModuleList([gn(), gn()]), act or nn.SiLU()
        self.blocks = nn.ModuleList(
            [nn.Sequential(gn(), self.act), nn.Sequential(OrderedDict(n=gn(), i=nn.Identity(), a=self.act))]
        )

    def forward(self, x):
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = block(self.act(norm(x)))
        return x


class Calls(Block):
    def forward(self, x):
        def inner(x):
            return self.act(self.norm1(x))

        return self._second(torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=False))

    def _second(self, x):
        h = self.norm2(x)
        return self.act(h)


class Derived(Calls):
    def __init__(self, act=None):
        super().__init__(act)
        self.__private = 2

    def _second(self, x):
        return super()._second(x) * self.__private


FORMS = [Sequence, Nested, OtherNames, InEachBranch, WithoutElse, ModuleList, Calls]


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("act", [nn.SiLU, lambda: nn.ReLU(inplace=True), nn.GELU, lambda: nn.GELU(approximate="tanh")])
def test_a_form_is_reached(kind, act):
    _, seen = accelerated(kind(act()), X)
    assert len(seen) == 2
    model = kind()
    groupnorm.accelerate_(model)
    assert isinstance(model, kind)
    assert (type(model).__name__, type(model).__qualname__) == (kind.__name__, kind.__qualname__)
    assert type(model.act) is nn.SiLU


def test_the_plan_says_what_is_taken_over():
    plan, _ = accelerated(nn.ModuleDict({"a": Nested(), "b": Block()}).a, X)
    assert [row.why for row in plan.rows] == ["takes over act", "takes over F.silu"]


@pytest.mark.parametrize("mode", ["scaled", "none", "other", "plain"])
def test_settings_may_change_afterwards(mode):
    model = InEachBranch()
    groupnorm.accelerate_(model)
    expected = InEachBranch()
    expected.load_state_dict(model.state_dict())
    model.mode = expected.mode = mode
    torch.testing.assert_close(model(X), expected(X))
    model.act = expected.act = nn.Tanh()
    torch.testing.assert_close(model(X), expected(X))
    assert activated(model, X) == []


# Code that uses the norms, the activations, or their containers in other ways, before or beside.


class Taps(nn.Module):
    """As perceptual losses do: it walks through a sequence within another module."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Sequential(gn(), nn.SiLU(), nn.Conv2d(8, 8, 1), gn(), nn.ReLU()))

    def forward(self, x):
        taps = [self.net(x), self.net[0][:4](x)]
        for layer in self.net[0]:
            x = layer(x)
            taps.append(x)
        return sum(taps)


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Nested()

    def forward(self, x):
        y = self.net(x) + getattr(self.net, "norm1")(x)  # noqa: B009
        for name in ("norm1", "act", "norm2"):
            y = y + self.net._modules[name](x)
        return y + sum(child(x) for child in self.net.children())


class Bound(Block):
    """Has a bound method from before."""

    def __init__(self):
        super().__init__()
        self.body, self.table = self._pre, {"post": self._post}
        self.partial = functools.partial(self._pre)

    def _pre(self, x):
        return self.conv(self.act(self.norm1(x)))

    def _post(self, x):
        return self.act(self.norm2(self.conv(x)))

    def forward(self, x):
        return self.body(x) + self.table["post"](x) + self.partial(x) + self._pre(x)


class Switched(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms, self.act, self.domain = nn.ModuleList([gn(), gn()]), nn.SiLU(), 0

    def forward(self, x):
        self.domain = 0
        first = self.act(self.norms[self.domain](x))
        self.domain = 1
        return first + 2 * self.act(self.norms[self.domain](x))


class Kept(Block):
    """The norm's output is used elsewhere."""

    def forward(self, x):
        h = self.norm1(x)
        y = self.act(h)
        self.last = [h]
        g = self.norm2(x)
        g = self.act(g) + g
        return y + h + g + self.last[0]


class Finally(Block):
    def forward(self, x):
        try:
            h = self.norm1(x)
            return self.act(h)
        finally:
            self.last = h.detach().mean()
            x.data.mul_(1)


class Closure(Block):
    def forward(self, x):
        peek = lambda: h  # noqa: E731
        h = self.norm1(x)
        y = self.act(h)
        return y + peek()


class Comprehension(Block):
    def forward(self, x):
        h = self.norm1(x)
        parts = [self.act(h) for h in (x, 2 * x)]
        return sum(parts) + h


class Shadows(Block):
    def forward(self, x):
        from torch.nn.functional import relu6 as relu

        def silu(x):
            return -x

        return relu(self.norm1(x)) + silu(self.norm2(x))


class AnotherSelf(Block):
    def forward(self, x):
        def run(self, x):
            return self.act(self.norm1(x))

        other = types.SimpleNamespace(act=torch.tanh, norm1=self.conv)
        return run(other, x) + run(self, x) + type(self)._on(other, x)

    def _on(self, x):
        return self.act(self.norm1(x))


class InPlace(Block):
    def forward(self, x):
        h = self.norm1(x)
        h += 1
        h = self.act(h)
        g = k = self.norm2(x)
        g = self.act(g)
        return h + g + k


class Arguments(Block):
    def forward(self, x):
        return F.gelu(self.norm1(x), approximate="tanh") + torch.relu(input=self.norm2(x))


class Local(Block):
    def forward(self, x):
        h = self.norm1(x)
        y = self.act(h)
        return y + locals()["h"]


class Prepares(Block):
    """An argument changes what has been looked up before it, and what is looked up after it."""

    def prepare(self, x, act):
        self.norm1, self.norm2, self.act = self.norm2, self.norm1, act
        return x

    def forward(self, x):
        self.act = nn.SiLU()
        h = self.act(self.norm1(self.prepare(x, nn.ReLU())))
        h = self.norm1(self.prepare(h, nn.GELU()))
        h = self.act(h)
        g = self.norm1(self.prepare(x, nn.SiLU()))
        g = self.drop(g)
        return h + self.act(self.prepare(g, nn.SiLU()))


class Lazy(Block):
    """An argument makes a module that is called after the activation."""

    def prepare(self, x):
        self.conv2 = self.conv
        return x

    def forward(self, x):
        if "conv2" in self._modules:
            del self.conv2
        h = self.norm1(self.prepare(x))
        h = self.conv2(self.act(h))
        del self.conv2
        return self.act(self.norm2(h))


class Fails(Block):
    """A handler reads the norm's output."""

    def __init__(self):
        super().__init__()
        self.other = nn.Conv2d(4, 8, 1)

    def forward(self, x):
        h = x
        try:
            h = self.norm1(x)
            h = self.other(self.act(h))
        except RuntimeError:
            h = h * 2
        return h + self.act(self.norm2(x))


class Backwards(nn.Sequential):
    def __iter__(self):
        return reversed(self._modules.values())


class Replaces(nn.Module):
    """Changes the sequence that it is in."""

    def forward(self, x):
        self.sequence[0][2] = nn.ReLU() if isinstance(self.sequence[0][2], nn.GELU) else nn.GELU()
        return x


def replaced():
    sequence = nn.Sequential(Replaces(), gn(), nn.GELU())
    sequence[0].sequence = [sequence]
    return sequence


class Dispatch(nn.Sequential):
    """Another forward than that of a sequence."""

    def forward(self, x):
        for layer in self:
            x = layer(x) + 1
        return x


class OtherSequence(nn.Sequential):
    def taps(self, x):
        return sum(layer(x) for layer in self)


class UsesTaps(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = OtherSequence(gn(), nn.SiLU())

    def forward(self, x):
        return self.f.taps(x) + self.f(x)


ODD = [
    Taps, ByName, Bound, Switched, Kept, Finally, Closure, Comprehension, Shadows, AnotherSelf, InPlace, Arguments,
    Local, lambda: Dispatch(gn(), nn.SiLU(), gn()), UsesTaps, Derived, Prepares, Lazy, Fails,
    lambda: Backwards(nn.SiLU(), gn(), nn.ReLU(), gn()),
]  # fmt: skip


@pytest.mark.parametrize("make", ODD)
def test_whatever_the_code_does_stays(make):
    accelerated(make(), X)


def test_a_step_that_replaces_a_later_one_is_followed():
    model = replaced()
    expected = [model(X), model(X)]
    assert not torch.equal(*expected)
    groupnorm.accelerate_(model)
    torch.testing.assert_close([model(X), model(X)], expected)
    assert activated(model, X) == ["relu"]


def test_a_shared_norm_takes_over_what_follows_it_in_each_place():
    norm = gn()
    model = nn.Sequential(norm, nn.SiLU(), norm, nn.ReLU(), norm, nn.Tanh())
    assert accelerated(model, X)[1] == ["silu", "relu"]


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (type("Mine", (nn.ReLU,), {})(), "Mine is a subclass of an activation"),
        (nn.Mish(), NOTHING),
    ],
)
@pytest.mark.parametrize("make", [Sequence, lambda act: nn.Sequential(gn(), act)])
def test_other_activations_are_left_alone(make, act, why):
    plan, seen = accelerated(make(act), X)
    assert seen == []
    assert set(left(plan)) == {why}


@pytest.mark.parametrize("place", ["norm1", "act"])
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
@pytest.mark.parametrize("late", [False, True])
def test_who_looks_at_norm_or_activation_sees_what_was_seen_before(place, kind, late):
    model, seen = Nested(nn.SiLU()), []

    def values(given):
        every = [t for part in given for t in (part if isinstance(part, tuple) else [part])]
        return [t.detach().clone() for t in every if t is not None]

    def run(hooked):
        seen.clear()
        getattr(model.get_submodule(place), f"register_{kind}")(lambda m, *given: seen.append(values(given)))
        model(X.clone().requires_grad_()).mean().backward()
        return len(seen), seen[:1]

    def clear():
        for module in model.modules():
            for name in vars(module):
                if name.endswith("_hooks"):
                    vars(module)[name].clear()

    expected = run(model)
    if late:
        clear()
    groupnorm.accelerate_(model)
    clear()
    torch.testing.assert_close(run(model), expected)


def test_hooks_on_all_modules_see_every_module():
    model, seen = Sequence(), []
    groupnorm.accelerate_(model)
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        model(X)
    finally:
        handle.remove()
    assert seen.count("SiLU") == 3


def decorated(forward):
    @functools.wraps(forward)
    def inner(self, x):
        return forward(self, x) + forward(self, 2 * x)

    return inner


class Decorated(Block):
    @decorated
    def forward(self, x):
        return self.act(self.norm1(x))


def made(factor, act):
    class Inner(Block):
        def forward(self, x):
            return factor * act(self.norm1(x)) + super().__getattr__("norm2")(x)

    return Inner


class Registered(Block):
    kinds: list[type] = []  # noqa: RUF012

    def __init_subclass__(cls, **options):
        Registered.kinds.append(cls)


class Entry(Registered):
    def forward(self, x):
        return self.act(self.norm1(x))


def test_what_cannot_be_rewritten_says_so():
    assert left(accelerated(Decorated(), X)[0])[0].endswith("Decorated.forward is decorated, or cannot be read as text")
    assert left(accelerated(Entry(), X)[0])[0] == "Entry wants to know its subclasses"
    assert Registered.kinds == [Entry]
    replaced = Nested()
    replaced.forward = types.MethodType(lambda self, x: self.norm1(x), replaced)
    assert left(accelerated(replaced, X)[0])[0] == "the forward of this very Nested was replaced"
    namespace = {"Block": Block}
    exec("class Unread(Block):\n    def forward(self, x):\n        return self.act(self.norm1(x))", namespace)
    assert "cannot be read as text" in left(accelerated(namespace["Unread"](), X)[0])[0]


def test_a_class_made_in_a_function_is_reached():
    kind = made(3, F.silu)
    plan, seen = accelerated(kind(), X)
    assert seen == []  # the name of the activation is one of the function around it
    assert left(plan) == [NOTHING, NOTHING]

    class Inner(Block):
        def forward(self, x):
            return X.shape[0] * self.act(self.norm1(x)) + len(seen)

    assert accelerated(Inner(), X)[1] == ["silu"]


def test_a_text_that_is_not_what_runs_is_not_believed(monkeypatch):
    monkeypatch.setattr(source, "_codes", lambda text: {})
    assert "cannot be read as text" in left(accelerated(Sequence(), X)[0])[0]


@pytest.mark.parametrize("kind", [*FORMS, Bound, Derived, Taps])
def test_copies_pickles_and_compiled_models_compute_the_same(kind):
    model = kind().eval()
    expected = model(X)
    groupnorm.accelerate_(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(X), expected)
        assert activated(twin, X) == activated(model, X)
        assert str(twin) == str(model)
    if kind not in (Calls, Derived):
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(X), expected)
        torch.testing.assert_close(torch.export.export(model, (X,)).module()(X), expected)


def test_modules_that_are_rewritten_alike_have_one_class():
    model = nn.Sequential(Sequence(), Sequence(), nn.Sequential(gn(), nn.ReLU()), nn.Sequential(gn(), nn.ReLU()))
    groupnorm.accelerate_(model)
    assert type(model[0]) is type(model[1]) is not Sequence
    assert type(model[2]) is type(model[3]) is not nn.Sequential
    assert isinstance(model[2][:1], nn.Sequential)


def test_a_class_that_changed_in_the_meantime_is_read_again():
    class Changing(Block):
        def forward(self, x):
            return self.act(self.norm1(x))

    def forward(self, x):
        return self.conv(self.act(self.norm2(x)))

    groupnorm.accelerate_(Changing())
    Changing.forward = forward
    accelerated(Changing(), X)


def test_the_text_of_the_changed_method_is_shown_in_tracebacks():
    import inspect

    model = Sequence()
    groupnorm.accelerate_(model)
    text = inspect.getsource(type(model).forward)
    assert "_groupnorm_held = _groupnorm_hold(self.norm2, h)" in text
    assert "h = _groupnorm_flow(self.act, _groupnorm_held)" in text
    assert "return self.act(h + x)" in text
