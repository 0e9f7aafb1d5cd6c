"""The parameters of several agents' networks, stacked, with forward and backward passes as batched products.

Shapes: ``P`` agents, ``B`` samples of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch as th
from torch import nn


class StackedPerceptron:
    """Perceptrons of one shape, one of each agent: linear layers with tanh or ReLU between them.

    :param towers: of each agent, ``nn.Linear`` and activations by turns, a linear layer last
    """

    def __init__(self, towers: Sequence[Sequence[nn.Module]]):
        self._is_tanh = [isinstance(module, nn.Tanh) for module in towers[0][1::2]]
        layers: list[tuple[Any, ...]] = list(zip(*(tower[::2] for tower in towers), strict=True))
        # Weights are (P, n_in, n_out): a batched product takes longer with a transposed factor.
        self._weights = [th.stack([layer.weight.detach().t() for layer in each]).contiguous() for each in layers]
        self._biases = [th.stack([layer.bias.detach() for layer in each]).unsqueeze(1) for each in layers]
        self._memory: dict[tuple[str, int, int], th.Tensor] = {}
        self.tensors = [tensor for pair in zip(self._weights, self._biases, strict=True) for tensor in pair]
        """weight ``(P, n_in, n_out)`` and bias ``(P, 1, n_out)`` of each layer"""
        self.gradients = [th.zeros_like(tensor) for tensor in self.tensors]
        """what the last :meth:`backward` has found, in the order of ``tensors``"""

    def forward(self, x: th.Tensor) -> tuple[th.Tensor, list[th.Tensor]]:
        """The output ``(P, B, n_out)`` for the input ``(P, B, n_in)``, and the input of each layer.

        The hidden layers lie in memory that the next call with as many samples uses again.
        """
        inputs = [x]
        for depth, is_tanh in enumerate(self._is_tanh):
            weight = self._weights[depth]
            x = th.baddbmm(self._biases[depth], x, weight, out=self._reused("forward", depth, x, weight.shape[2]))
            x = x.tanh_() if is_tanh else x.relu_()
            inputs.append(x)
        return th.baddbmm(self._biases[-1], x, self._weights[-1]), inputs

    def backward(self, inputs: Sequence[th.Tensor], gradient: th.Tensor) -> None:
        """Write the parameters' gradients into ``gradients``.

        :param inputs: each layer's input, from :meth:`forward`
        :param gradient: the gradient by the output, ``(P, B, n_out)``
        """
        for depth in reversed(range(len(inputs))):
            x = inputs[depth]
            th.bmm(x.transpose(1, 2), gradient, out=self.gradients[2 * depth])
            th.sum(gradient, dim=1, keepdim=True, out=self.gradients[2 * depth + 1])
            if depth == 0:
                return
            out = self._reused("backward", depth, gradient, x.shape[2])
            gradient = th.bmm(gradient, self._weights[depth].transpose(1, 2), out=out)
            if self._is_tanh[depth - 1]:
                th.ops.aten.tanh_backward.grad_input(gradient, x, grad_input=gradient)
            else:
                gradient.mul_(x > 0)

    def parts_of(self, agent: int, tensors: Sequence[th.Tensor]) -> list[th.Tensor]:
        """One agent's part of tensors in the order of ``tensors``, as its own layers have them: ``(n_out, n_in)``,
        ``(n_out,)``, …"""
        return [tensor[agent].t() if index % 2 == 0 else tensor[agent, 0] for index, tensor in enumerate(tensors)]

    def _reused(self, use: str, depth: int, x: th.Tensor, columns: int) -> th.Tensor:
        key = (use, depth, x.shape[1])
        if key not in self._memory:
            self._memory[key] = x.new_empty(len(x), x.shape[1], columns)
        return self._memory[key]
