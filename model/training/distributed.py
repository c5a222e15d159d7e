"""Several processes that train one model: each takes its part of every batch, and their gradients are added up.

Started by torchrun, one process a GPU (or several on a CPU, to test it):

    torchrun --nproc-per-node 4 --no-python frcnn train --data ... --out ...

An explicit sum and not ``DistributedDataParallel``, which takes the mean over processes: a process that sampled fewer
regions than another would count too much. Here every loss is divided by the count of all processes beforehand
(``losses.py``), so that the sum is exact. Gradients travel as one flat tensor once the backward pass is done.
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
    """This process among those that train together; alone by default, and then nothing is sent anywhere.

    rank: this one's number, from 0. world: how many there are. local: its number on this machine, which is its GPU's.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def join(cls, device: torch.device) -> Processes:
        """Join those that torchrun started with this one (it says so in the environment); alone without it.

        device: where the model trains; its kind chooses how tensors travel, nccl between GPUs and gloo otherwise.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), world, int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and talks."""
        return self.rank == 0

    def positions(self, batch_size: int) -> range:
        """The places of this process's pictures in a batch of ``batch_size``, as ``augment.Batches`` deals them."""
        return range(self.rank, batch_size, self.world)

    def total(self, count: int) -> int:
        """The sum of every process's ``count``; all of them must ask."""
        if self.world == 1:
            return count
        summed = torch.tensor(count, device=self._device)
        dist.all_reduce(summed)
        return int(summed)

    def sum_losses(self, losses: Losses) -> Losses:
        """Every process's share of the losses added up, detached."""
        values = torch.stack([loss.detach().float() for loss in losses])
        if self.world > 1:
            dist.all_reduce(values)
        return Losses(*values.unbind())

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the gradient of each parameter by the sum over processes; one that has none counts as 0."""
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
    def agree(self, model: nn.Module) -> None:
        """Give every process the first one's weights and buffers."""
        if self.world == 1:
            return
        for tensor in model.state_dict().values():
            whole = tensor.contiguous()  # a channels-last tensor does not travel
            dist.broadcast(whole, src=0)
            tensor.copy_(whole)

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda", self.local) if dist.get_backend() == "nccl" else torch.device("cpu")


def leave() -> None:
    """End the group, where there is one: at the end of a process's work."""
    if dist.is_initialized():
        dist.destroy_process_group()
