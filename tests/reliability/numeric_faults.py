"""Numbers that are not finite, put into a training (RUN_BEFORE of the command server).

FAULT says where: "loss" (of a step), "gradient" (one number of it), "weight" (for good) or "discriminator" (its loss);
FAULT_STEPS in which steps of this process, counted from 0; FAULT_RANK in which process; FAULT_VALUE what.
"""

import dataclasses
import os

import torch
from torch.distributed.tensor import DTensor

from stage1_tokenizer import training
from stage1_tokenizer.objective import TokenizerObjective
from stage2_prior.priors import PRIORS

KIND, VALUE = os.environ["FAULT"], float(os.environ.get("FAULT_VALUE", "nan"))
STEPS = {int(step) for step in os.environ["FAULT_STEPS"].split(",")}
HERE = os.environ.get("RANK", "0") == os.environ.get("FAULT_RANK", os.environ.get("RANK", "0"))
done = 0


def spoilt(forward):
    def spoiling(model, *inputs):
        global done
        step, done = done, done + 1
        if not (HERE and step in STEPS):
            return forward(model, *inputs)
        here = [parameter for parameter in model.parameters() if not isinstance(parameter, DTensor)]  # whole ones
        parameter = max(here, key=lambda weight: weight.requires_grad * weight.numel())
        if KIND == "weight":
            with torch.no_grad():
                parameter.copy_(with_first(parameter, VALUE))
        out = forward(model, *inputs)
        if KIND == "gradient":
            handle = parameter.register_hook(lambda gradient: (handle.remove(), with_first(gradient, VALUE))[1])
        if KIND != "loss":
            return out
        # added, so that only the value is spoilt, not the gradient
        return out + VALUE if isinstance(out, torch.Tensor) else dataclasses.replace(out, loss=out.loss + VALUE)

    return spoiling


def with_first(tensor, value):
    tensor = tensor.clone()
    tensor[(0,) * tensor.ndim] = value
    return tensor


def hinge_loss(real, fake, plain=training.hinge_loss):
    return plain(real, fake) + (VALUE if HERE and done - 1 in STEPS else 0)


if KIND == "discriminator":
    training.hinge_loss = hinge_loss
    KIND = ""
for kind in (TokenizerObjective, *PRIORS.values()):
    setattr(kind, "forward", spoilt(kind.forward))  # noqa: B010
