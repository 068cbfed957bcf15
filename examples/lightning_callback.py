"""BWCP in any LightningModule, with one callback: pip install "secateur[lightning]".

python examples/lightning_callback.py [folder]
"""

import sys

import lightning.pytorch as lightning
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import secateur
from secateur.integrations.lightning import PruningCallback

EPOCHS = 12

lightning.seed_everything(0, verbose=False)
digits = load_digits()
images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
labels = torch.from_numpy(digits.target)
loader = DataLoader(TensorDataset(images[:1297], labels[:1297]), batch_size=128, shuffle=True)


class Classifier(lightning.LightningModule):
    """An ordinary module that knows nothing of pruning."""

    def __init__(self, network: torch.nn.Module, epochs: int) -> None:
        super().__init__()
        self.network, self.epochs = network, epochs

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        x, y = batch
        return cross_entropy(self.network(x), y)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def fit(network: torch.nn.Module, epochs: int, *callbacks: lightning.Callback) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=epochs, callbacks=[*callbacks], enable_checkpointing=False, **quiet)
    trainer.fit(Classifier(network, epochs), loader)


@torch.no_grad()
def accuracy(network: torch.nn.Module) -> float:
    found = network.cpu().eval()(images[1297:]).argmax(1)
    return (found == labels[1297:]).float().mean().item()


# an ordinary training of the whole network
model = secateur.models.create("resnet8", in_channels=1)
fit(model, EPOCHS // 2)
before = accuracy(model)

# another one with the method at work; the pruner stands for the model, and the callback does the rest
pruner = secateur.methods.create("bwcp", model, images[:1], budget="flops=0.5", steps=EPOCHS * len(loader))
pruning = PruningCallback()
fit(pruner, EPOCHS, pruning)
small, result = pruning.network, pruner.result  # an ordinary ResNet, folded, cut, verified

print(f"before: accuracy {before:.1%}, {result.before.macs:,} MACs, {result.before.params:,} parameters")
print(f"after:  accuracy {accuracy(small):.1%}, {result.after.macs:,} MACs, {result.after.params:,} parameters")

folder = sys.argv[1] if len(sys.argv) > 1 else "pruned"
secateur.runtime.save_model(
    folder, small, reference="zoo:resnet8", arguments={"in_channels": 1}, inputs=images[:1], plan=result.plan
)
print(f"saved: secateur.load({folder!r}) has accuracy {accuracy(secateur.load(folder)):.1%}")
