"""BWCP in a loop with Hugging Face Accelerate: one process or many, CPU or GPU, mixed precision.

python examples/accelerate_loop.py [folder]
accelerate launch examples/accelerate_loop.py [folder]
"""

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import secateur

EPOCHS = 12

accelerator = Accelerator()
set_seed(0)
digits = load_digits()
images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
labels = torch.from_numpy(digits.target)
batch = 128 // accelerator.num_processes  # of each process
loader = DataLoader(TensorDataset(images[:1297], labels[:1297]), batch_size=batch, shuffle=True)
loader = accelerator.prepare(loader)


@torch.no_grad()
def accuracy(network: torch.nn.Module) -> float:
    found = network.cpu().eval()(images[1297:]).argmax(1)
    return (found == labels[1297:]).float().mean().item()


# an ordinary training of the whole network
model = secateur.models.create("resnet8", in_channels=1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
network, optimizer = accelerator.prepare(model, optimizer)
for _ in range(EPOCHS // 2):
    network.train()
    for x, y in loader:
        optimizer.zero_grad()
        accelerator.backward(cross_entropy(network(x), y))
        optimizer.step()
model = accelerator.unwrap_model(network, keep_fp32_wrapper=False)
before = accuracy(model)

# another one with the method at work; the pruner stands for the model, and trains the model's own parameters
pruner = secateur.methods.create("bwcp", model, images[:1], budget="flops=0.5", steps=EPOCHS * len(loader))
optimizer = torch.optim.SGD(pruner.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
network, optimizer = accelerator.prepare(pruner, optimizer)
for _ in range(EPOCHS):
    network.train()
    for x, y in loader:
        optimizer.zero_grad()
        # forward through what Accelerate made of the pruner, all else on the pruner itself
        loss = cross_entropy(network(x), y) + pruner.loss()
        accelerator.backward(loss)
        pruner.after_backward()
        optimizer.step()
        pruner.after_step()
    pruner.after_epoch()
    schedule.step()
small = pruner.to("cpu").finish()  # folded, cut, verified: an ordinary ResNet

if accelerator.is_main_process:
    result = pruner.result
    print(f"before: accuracy {before:.1%}, {result.before.macs:,} MACs, {result.before.params:,} parameters")
    print(f"after:  accuracy {accuracy(small):.1%}, {result.after.macs:,} MACs, {result.after.params:,} parameters")
    folder = sys.argv[1] if len(sys.argv) > 1 else "pruned"
    secateur.runtime.save_model(
        folder, small, reference="zoo:resnet8", arguments={"in_channels": 1}, inputs=images[:1], plan=result.plan
    )
    print(f"saved: secateur.load({folder!r}) has accuracy {accuracy(secateur.load(folder)):.1%}")
accelerator.end_training()
