"""How the networks' weights begin, where that is not SB3's way."""

from __future__ import annotations

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

# Norms of each output unit's weight vector (openai/baselines ppo1, mlp_policy; the paper is silent).
HIDDEN_NORM = 1.0  # hidden layers and the value head
ACTION_NORM = 0.01  # the policy's last layer: the first actions are nearly the same in every state

# Layers whose weights are (units, inputs, …). A transposed convolution's are not, and no policy of SB3's has one.
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@th.no_grad()
def normc_(policy: ActorCriticPolicy) -> None:
    """Draw a policy's weights anew, in place, as the authors' code did for MuJoCo (openai/baselines ppo1, mlp_policy).

    Each weight is drawn from N(0, 1), then the weight vector of each output unit is scaled to norm 1, in the
    policy's last layer to 0.01. Biases become 0. A convolution's weight vector is that of an output channel, of
    shape ``(in_channels, *kernel)``; the authors' own convolutions were drawn uniformly instead. Parameters of
    other modules and the log standard deviation stay as they are.

    The draws come from torch's global generator, in the order of ``policy.modules()``: the same seed gives the same
    weights.

    :param policy: an actor-critic policy as SB3 builds it, with its ``action_net``
    """
    last = [module for module in policy.action_net.modules() if isinstance(module, WEIGHTED)][-1:]
    for module in policy.modules():
        if not isinstance(module, WEIGHTED):
            continue
        norm = ACTION_NORM if module in last else HIDDEN_NORM
        weight = module.weight
        weight.normal_()
        per_unit = weight.flatten(start_dim=1).norm(dim=1)  # (units,)
        weight.mul_(norm / per_unit.view(-1, *[1] * (weight.dim() - 1)))
        if module.bias is not None:
            module.bias.zero_()
