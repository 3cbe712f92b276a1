"""A training step is right when its loss and gradients are: those of the first batch, for comparing."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from gmoe_ext.train.fit_state import Task
from gmoe_ext.train.tasks.student import StudentTask


def first_epoch(task: Task) -> int:
    """The first epoch in which the experts are routed to."""
    return task.pretrain_epochs if isinstance(task, StudentTask) else 0


def first_step(task: Task) -> list[Tensor]:
    """Loss and gradients of the first batch, with seeded noise, on a copy that may move its memories."""
    trial = copy.deepcopy(task.model).train()
    model, task.model = task.model, trial
    if isinstance(task, StudentTask):
        task.learners = trial.learners()
    try:
        task.enter_epoch(first_epoch(task))
        torch.manual_seed(1)
        loss = task.losses(task.load(next(iter(task.batches(first_epoch(task))))))["loss"]
        weights = [weight for weight in trial.parameters() if weight.requires_grad]
        found = torch.autograd.grad(loss, weights, allow_unused=True)
    finally:
        task.model = model
        if isinstance(task, StudentTask):
            task.learners = model.learners()
    return [loss.detach(), *(grad for grad in found if grad is not None)]
