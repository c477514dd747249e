"""The network and one epoch of its training, in plain PyTorch."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Digits(nn.Module):
    """8 × 8 pixels from 0 to 16, flat, to ten log probabilities."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(2 * channels * 16, 10),
            nn.LogSoftmax(dim=1),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.layers(pixels / 16)


def device_of(name: str) -> torch.device:
    """The device called `name`; for ``auto`` a GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def batches(pixels: np.ndarray, digits: np.ndarray, *, size: int) -> "DataLoader[Any]":
    """Shuffled batches; the order comes from torch's own random numbers, which checkpoints keep."""
    data = TensorDataset(torch.from_numpy(pixels), torch.from_numpy(digits))
    return DataLoader(data, batch_size=size, shuffle=True)


def train_one_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, loader: "DataLoader[Any]") -> float:
    """The mean loss over the batches."""
    model.train()
    device = next(model.parameters()).device
    losses = []
    for pixels, digits in loader:
        loss = nn.functional.nll_loss(model(pixels.to(device)), digits.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def accuracy(model: nn.Module, pixels: np.ndarray, digits: np.ndarray) -> float:
    """The share of digits that the model reads right."""
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        told = model(torch.from_numpy(pixels).to(device)).argmax(1).cpu().numpy()
    return float((told == digits).mean())
