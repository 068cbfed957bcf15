"""BWCP in a training loop of one's own, with plain PyTorch.

python examples/plain_pytorch.py [folder]
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import secateur

EPOCHS = 12

torch.manual_seed(0)
digits = load_digits()
images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
labels = torch.from_numpy(digits.target)
loader = DataLoader(TensorDataset(images[:1297], labels[:1297]), batch_size=128, shuffle=True)


@torch.no_grad()
def accuracy(network: torch.nn.Module) -> float:
    found = network.eval()(images[1297:]).argmax(1)
    return (found == labels[1297:]).float().mean().item()


# an ordinary training of the whole network
model = secateur.models.create("resnet8", in_channels=1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
for _ in range(EPOCHS // 2):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
before = accuracy(model)

# another one with the method at work; the pruner stands for the model, and trains the model's own parameters
pruner = secateur.methods.create("bwcp", model, images[:1], budget="flops=0.5", steps=EPOCHS * len(loader))
optimizer = torch.optim.SGD(pruner.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
for _ in range(EPOCHS):
    pruner.train()
    for x, y in loader:
        optimizer.zero_grad()
        pruner.before_forward(y)
        output = pruner(x)
        pruner.after_forward(output, y)
        loss = cross_entropy(output, y) + pruner.loss()
        loss.backward()
        pruner.after_backward()
        optimizer.step()
        pruner.after_step()
    pruner.after_epoch()
    schedule.step()
small = pruner.finish()  # folded, cut, verified: an ordinary ResNet

result = pruner.result
print(f"before: accuracy {before:.1%}, {result.before.macs:,} MACs, {result.before.params:,} parameters")
print(f"after:  accuracy {accuracy(small):.1%}, {result.after.macs:,} MACs, {result.after.params:,} parameters")

folder = sys.argv[1] if len(sys.argv) > 1 else "pruned"
secateur.runtime.save_model(
    folder, small, reference="zoo:resnet8", arguments={"in_channels": 1}, inputs=images[:1], plan=result.plan
)
print(f"saved: secateur.load({folder!r}) has accuracy {accuracy(secateur.load(folder)):.1%}")
