"""Tables as images, how their columns are scaled, and the condition number of the result."""

import pytest
import torch

from groupnorm.errors import UnknownNameError
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.data import DataError, load
from groupnorm.lab.experiments import tables
from groupnorm.lab.experiments.inputs import Scaled, condition_number

TABLES = "groupnorm.lab.experiments.tables:"


@pytest.fixture(scope="module")
def wine():
    return load(TABLES + "wine")


def scaled(wine, scaling, norm="none"):
    return Scaled(
        Cell(
            dataset=TABLES + "wine", data_digest=wine.digest, model=TABLES + "wine_mlp", norm=norm, batch_size=32,
            normalization_batch=None, seed=0, epochs=1, learning_rate=0.01, momentum=0.9, weight_decay=0.0,
            limit_train=None, limit_val=None, image_size=None, device="cpu", precision="fp32", threads=1,
            options={"scaling": scaling},
        ),
        wine,
    )  # fmt: skip


def test_inputs_are_raw_or_from_0_to_1_or_of_mean_0_and_deviation_1_over_the_training_rows(wine):
    raw, minmax, standard = (
        scaled(wine, scaling).inputs(wine.train_images)[:, :, 0, 0] for scaling in ("raw", "minmax", "standard")
    )
    assert torch.equal(raw, wine.train_images[:, :, 0, 0])
    assert raw.max() > 1000
    torch.testing.assert_close(minmax.amin(0), torch.zeros(13))
    torch.testing.assert_close(minmax.amax(0), torch.ones(13))
    torch.testing.assert_close(standard.mean(0), torch.zeros(13), rtol=0, atol=1e-5)
    torch.testing.assert_close(standard.std(0, correction=0), torch.ones(13))


def test_validation_rows_are_scaled_with_the_numbers_of_the_training_rows(wine):
    run = scaled(wine, "minmax")
    row = wine.train_images[:1]
    assert torch.equal(run.inputs(row)[0], run.inputs(wine.train_images)[0])


def test_an_unknown_scaling_is_named_with_the_known_ones(wine):
    with pytest.raises(UnknownNameError, match="'log'; expected one of: raw, minmax, standard"):
        scaled(wine, "log")


def test_the_condition_number_is_that_of_the_covariance():
    rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 100.0, 0.5]) + 7
    assert condition_number(rows) == pytest.approx(torch.linalg.cond(torch.cov(rows.double().T)).item(), rel=1e-6)


def test_the_record_has_the_condition_number_which_standardising_lowers(wine):
    raw, standard = (scaled(wine, scaling).epoch()["condition"] for scaling in ("raw", "standard"))
    assert raw > 1e4 * standard


@pytest.mark.parametrize(("name", "columns", "classes"), [("breast_cancer", 30, 2), ("wine", 13, 3)])
def test_tables_are_images_of_one_pixel_with_a_channel_for_each_column(name, columns, classes):
    dataset = load(TABLES + name)
    assert dataset.train_images.shape[1:] == (columns, 1, 1)
    assert dataset.num_classes == classes
    assert dataset.train_images.amax((0, 2, 3)).max() > 1000 > 10 > dataset.train_images.amax((0, 2, 3)).min()


def test_a_missing_table_says_where_it_was_looked_for_and_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUPNORM_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=r"not in .*; expected what scikit-learn's fetch_california_housing"):
        tables.california_housing()
