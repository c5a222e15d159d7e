"""Several processes that train one model: each computes its part of every batch, and the gradients are added up.

Started by torchrun, one process a GPU (or several on a CPU, to test it):

    torchrun --nproc-per-node 4 --no-python frcnn train --data ... --out ...

Gradients are summed explicitly, because ``DistributedDataParallel`` takes the mean over processes: a process that
sampled fewer regions than another would weigh too much. Here every loss is divided by the samples of all processes
beforehand (``losses.py``), so that the sum is exact. Gradients are sent as one flat tensor after the backward pass.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from model.training.losses import Losses


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; by default it is the only one, and nothing is sent.

    rank: this process's number, from 0. world: how many processes there are. local: its number on this machine, which
    is its GPU's.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def join(cls, device: torch.device) -> Processes:
        """Join the processes that torchrun started with this one; without torchrun's environment it is the only one.

        device: where the model trains; its type chooses the backend, nccl for GPUs and gloo otherwise.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), world, int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def first(self) -> bool:
        """Tell whether this is the process that writes files and prints."""
        return self.rank == 0

    def positions(self, batch_size: int) -> range:
        """Return the positions of this process's images in a batch of ``batch_size``, as ``Batches`` assigns them."""
        return range(self.rank, batch_size, self.world)

    def total(self, count: int) -> int:
        """Return the sum of every process's ``count``; all processes must call this."""
        if self.world == 1:
            return count
        summed = torch.tensor(count, device=self._device)
        dist.all_reduce(summed)
        return int(summed)

    def sum_losses(self, losses: Losses) -> Losses:
        """Return the sum of every process's losses, detached."""
        values = torch.stack([loss.detach().float() for loss in losses])
        if self.world > 1:
            dist.all_reduce(values)
        return Losses(*values.unbind())

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the gradient of each parameter by the sum over processes; a missing one counts as 0."""
        if self.world == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))  # into its own memory format

    @torch.no_grad()
    def broadcast_weights(self, model: nn.Module) -> None:
        """Copy the first process's weights and buffers to all others."""
        if self.world == 1:
            return
        for tensor in model.state_dict().values():
            contiguous = tensor.contiguous()  # broadcast refuses channels-last tensors
            dist.broadcast(contiguous, src=0)
            tensor.copy_(contiguous)

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.world > 1:
            dist.barrier()

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda", self.local) if dist.get_backend() == "nccl" else torch.device("cpu")


def shutdown() -> None:
    """End the process group at the end of a process's work; do nothing where there is none."""
    if dist.is_initialized():
        dist.destroy_process_group()
