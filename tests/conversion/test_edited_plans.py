"""Plans that were edited, or are of another model: carried out as they say, or refused before anything is touched."""

import numpy as np
import pytest
import torch
from torch import nn

import groupnorm
from groupnorm.errors import ArgumentError, ConversionError, DivisibilityError

X = torch.randn(2, 3, 8, 8)


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.GroupNorm(4, 8))


def edited(at="1", to="gn", **values):
    model = network()
    plan = groupnorm.plan(model, to, sample_input=X)
    for name, value in values.items():
        setattr(plan[at], name, value)
    return model, plan


def test_a_skipped_norm_may_be_replaced_after_all():
    model, plan = edited("3", action="replace")
    assert plan["3"].channels == 8
    assert type(groupnorm.convert(model, plan)[3]) is groupnorm.GroupNorm
    plan = groupnorm.plan(model, "gn:2", where="3")
    plan["1"].action = "replace"
    assert groupnorm.convert(model, plan)[1].num_groups == 2
    assert plan.summary == "2 of 2 norms become gn:2"


@pytest.mark.parametrize(
    ("values", "becomes"),
    [
        ({"new": "gn:2"}, "gn:2"),
        ({"new": "gn:c4"}, "gn:2"),
        ({"new": "ln"}, "ln"),
        ({"number": None}, "gn:4"),
        ({"number": np.int64(2)}, "gn:2"),
        ({"new": "bgn:3"}, "bgn:3"),
        ({"new": "brn", "number": None}, "brn"),
    ],
)
def test_what_a_row_may_say(values, becomes):
    model, plan = edited(**values)
    report = groupnorm.convert_(model, plan)
    assert report.counts == {becomes: 1}
    assert report.plan["1"].lost == (() if becomes == "brn" else ("running statistics",))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"number": 0}, ConversionError, "the row of '1' has number=0; expected an integer of at least 1"),
        ({"number": -1}, ConversionError, "number=-1; expected"),
        ({"number": "4"}, ConversionError, "number='4'; expected"),
        ({"number": True}, ConversionError, "number=True; expected"),
        ({"number": 3}, DivisibilityError, "num_channels=8 cannot be divided by num_groups=3"),
        ({"action": "replce"}, ConversionError, "action='replce'; expected 'replace', .*did you mean 'replace'"),
        ({"new": "ws+gn"}, ConversionError, r"new='ws\+gn'; expected a spec without 'ws\+': set standardized"),
        ({"new": "group"}, ArgumentError, "did you mean 'gn'"),
        ({"standardized": "nowhere"}, ConversionError, "the weight of 'nowhere', before '1', cannot be standardised"),
        ({"standardized": "3"}, ConversionError, "no weight of at least two axes"),
        ({"path": "5"}, ConversionError, r"the plan has BatchNorm2d\(8\) at '5', and the model nothing"),
        ({"new": "gn:16"}, DivisibilityError, "cannot be divided"),
    ],
)
def test_what_a_row_may_not_say(values, error, message):
    model, plan = edited(**values)
    norms = model[1], model[3]
    with pytest.raises(error, match=message):
        groupnorm.convert_(model, plan)
    assert (model[1], model[3]) == norms


def test_a_row_may_name_a_weight_to_standardise():
    model, plan = edited(standardized="0")
    assert plan["1"].becomes == "ws+gn:4"
    assert groupnorm.convert(model, plan)[0].parametrizations.weight is not None


def test_an_edited_row_obeys_what_the_plan_would():
    model, plan = edited("3", new="frozen", action="replace")
    with pytest.raises(ConversionError, match="3 cannot become frozen: it has no running mean"):
        groupnorm.convert_(model, plan)
    small = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    plan = groupnorm.plan(small, sample_input=X)
    plan["1"].number = 3
    with pytest.raises(ConversionError, match="1 cannot become gn:3: 3 groups of 3 channels at 1 position"):
        groupnorm.convert_(small, plan, sample_input=X)


def test_the_summary_counts_what_the_rows_become():
    _, plan = edited("3", action="replace", new="ln")
    assert plan.summary == "1 of 2 norms become gn and 1 ln; 1 lose running statistics"
    _, plan = edited(to="gn:8", number=2)
    assert plan.summary.startswith("1 of 2 norms become gn:2 and 1 gn:8")
    assert groupnorm.plan(network(), "gn:c2", sample_input=X).summary.startswith("1 of 2 norms become gn:c2, 1 left")


def test_a_plan_of_images_is_none_of_volumes():
    plan = groupnorm.plan(nn.Sequential(nn.BatchNorm2d(8)))
    with pytest.raises(ConversionError, match=r"the plan has BatchNorm2d\(8\) at '0', and the model BatchNorm3d\(8"):
        groupnorm.convert(nn.Sequential(nn.BatchNorm3d(8)), plan)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"to": "gn", "rows": [{"paht": ""}]}', '{"to": "gn", "rows": 5}'])
def test_a_text_that_is_no_plan_is_told(text):
    with pytest.raises(ArgumentError, match=r"the text is no plan.*expected what Plan.to_json\(\) wrote"):
        groupnorm.Plan.from_json(text)


def test_norms_that_a_plan_does_not_have_are_named():
    small, large = network(), nn.Sequential(*network(), *(nn.BatchNorm2d(8) for _ in range(7)))
    plan = groupnorm.plan(small, "gn")
    missing = r"norms that the plan does not have, \['4', '5', '6', '7', '8'\] and 2 more; expected the model that was"
    for convert in (groupnorm.convert, groupnorm.convert_):
        with pytest.raises(ConversionError, match=missing):
            convert(large, plan)
    assert type(large[1]) is nn.BatchNorm2d
    large[4] = nn.Identity()
    with pytest.raises(ConversionError, match=r"\['5', '6', '7', '8', '9'\] and 1 more"):
        groupnorm.convert_(large, plan)
    del plan.rows[1]
    with pytest.raises(ConversionError, match=r"does not have, \['3'\]; expected"):
        groupnorm.convert_(small, plan)


def test_group_norms_that_a_plan_of_acceleration_does_not_have_are_named():
    plan = groupnorm.accelerate_.plan(network())
    model = nn.Sequential(*network(), nn.GroupNorm(2, 8))
    with pytest.raises(ConversionError, match=r"norms that the plan does not have, \['4'\]"):
        groupnorm.accelerate_(model, plan)
    assert type(model[3]) is nn.GroupNorm
