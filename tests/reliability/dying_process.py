"""Ends one process of a training, after the forward pass of a step, or of an encoding (RUN_BEFORE of the command server).

DEATH says how: "kill" (as `kill -9`), "raise" (an error of the program), "refuse" (one that the user can mend) or "stop" (it
answers no more, but lives); DEATH_STEP in which step of this process, counted from 0; DEATH_RANK which process.
"""

import os
import signal

from pipeline.core.errors import UserError
from stage1_tokenizer.objective import TokenizerObjective
from stage1_tokenizer.tokenizer import Tokenizer
from stage2_prior.priors import PRIORS

HOW, STEP = os.environ["DEATH"], int(os.environ["DEATH_STEP"])
HERE = os.environ.get("RANK", "0") == os.environ["DEATH_RANK"]
done = 0


def dying(forward):
    def maybe_dying(model, *inputs):
        global done
        out = forward(model, *inputs)
        step, done = done, done + 1
        if HERE and step == STEP:
            end()
        return out

    return maybe_dying


def end():
    if HOW == "raise":
        raise ZeroDivisionError("planted")
    if HOW == "refuse":
        raise UserError("planted: 1; give 2")
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[HOW])


setattr(Tokenizer, "encode", dying(Tokenizer.encode))  # noqa: B010
for kind in (TokenizerObjective, *PRIORS.values()):
    setattr(kind, "forward", dying(kind.forward))  # noqa: B010
