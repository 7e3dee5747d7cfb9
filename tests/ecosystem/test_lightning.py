"""Lightning trains converted models, whether they are converted before, in its hooks, or while it trains."""

import copy

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import groupnorm
from ecosystem.networks import IMAGES, LABELS, images, residual

# of lightning's walk through a batch, whatever the model
pytestmark = pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")


class Classifier(lightning.LightningModule):
    def __init__(self, net=None):
        super().__init__()
        self.net, self.losses = net, []

    def training_step(self, batch, index):
        x, labels = batch
        loss = F.cross_entropy(self.net(x), labels)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Late(Classifier):
    def configure_model(self):
        if self.net is None:  # lightning calls this again to evaluate
            self.net = residual()
            groupnorm.convert_(self.net, "ws+gn", sample_input=torch.zeros(IMAGES))


class Midway(Classifier):
    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.report = groupnorm.convert_(self.net, "frn", optimizer=self.optimizers())


def fit(module, tmp_path, steps=4):
    """Train for some steps, two an epoch."""
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images(), LABELS), batch_size=2)
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, loader)
    assert trainer.global_step == len(module.losses) == steps
    assert all(torch.tensor(module.losses).isfinite())
    return trainer


def norms(net):
    return [type(module) for module in net.modules() if isinstance(module, (nn.GroupNorm, nn.BatchNorm2d))]


def by_hand(net, steps):
    """The losses of the same training without lightning."""
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9), []
    for step in range(steps):
        half = slice(2 * (step % 2), 2 * (step % 2) + 2)
        loss = F.cross_entropy(net(images()[half]), LABELS[half])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("spec", ["gn", "brn"])
def test_a_network_converted_before_trains_as_without_lightning(spec, tmp_path):
    net = groupnorm.convert(residual(), spec)
    twin = copy.deepcopy(net)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    module = Classifier(net)
    fit(module, tmp_path)
    assert module.losses == by_hand(twin, 4)
    assert not any(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_the_lightning_module_itself_may_be_converted(tmp_path):
    module = groupnorm.convert(Classifier(residual()), "gn")
    fit(module, tmp_path)
    assert norms(module) == [groupnorm.GroupNorm] * 2


def test_a_conversion_in_configure_model(tmp_path):
    module = Late()
    fit(module, tmp_path)
    assert norms(module) == [groupnorm.GroupNorm] * 2
    optimizer = module.trainer.optimizers[0]
    learned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert learned == {id(p) for p in module.parameters()}
    assert all("momentum_buffer" in optimizer.state[p] for p in module.parameters())


def test_a_conversion_between_two_epochs_takes_the_optimizer_along(tmp_path):
    module = Midway(residual())
    fit(module, tmp_path)
    assert module.report.counts == {"frn": 2}
    optimizer = module.trainer.optimizers[0]
    assert all("momentum_buffer" in optimizer.state[p] for p in module.parameters())
    assert not any(torch.equal(norm.learned_eps, torch.tensor(1e-4)) for norm in (module.net[0].bn1, module.net[0].bn2))


def test_undo_after_training(tmp_path):
    net = residual()
    report = groupnorm.convert_(net, "gn")
    fit(Classifier(net), tmp_path)
    report.undo()
    assert norms(net) == [nn.BatchNorm2d] * 2
