"""The large parts of a cross-modal adapter as autograd functions that keep little for the backward pass.

Of tokens (B, N, C) an adapter makes eight tensors of that size, each of which autograd would keep. These functions keep
their input, statistics and what is narrow, and compute the rest again from them: products with few latent tokens, with
the bottleneck, and elementwise work. The derivatives are exact. Under autocast, products are in its dtype, norms and
softmax in float32, as autocast has it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from avprompt.precision import wide


def lower(x: Tensor) -> Tensor:
    """`x` in the dtype of products: autocast's where it is on."""
    kind = x.device.type
    on = kind != "meta" and x.is_floating_point() and torch.is_autocast_enabled(kind)
    return x.to(torch.get_autocast_dtype(kind)) if on and x.dtype != torch.float64 else x


def usable(*norms: nn.Module) -> bool:
    """Whether the functions here may be used: not where a compiler decides what is kept, nor where batch norms talk to
    other processes."""
    return not torch.compiler.is_compiling() and not any(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


class ReadLatent(torch.autograd.Function):
    """x + gate softmax(x R^T) R: tokens x (B, N, C) read latent ones R (B, K, C), with gate (1,) -> (B, N, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, latent: Tensor, gate: Tensor) -> Tensor:
        low = latent.to(x.dtype)
        attention = torch.softmax(wide(x @ low.mT), dim=-1).to(x.dtype)
        ctx.save_for_backward(x, latent, gate, attention)
        return torch.baddbmm(x, attention, (gate * latent).to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, latent, gate, attention = ctx.saved_tensors
        grad, low = grad.to(x.dtype), latent.to(x.dtype)
        read = attention.mT @ grad
        logits = torch._softmax_backward_data(grad @ (gate * latent).to(x.dtype).mT, attention, -1, x.dtype)
        to_latent = torch.addcmul((logits.mT @ x).to(latent.dtype), gate, read.to(latent.dtype))
        return torch.baddbmm(grad, logits, low), to_latent, (read * latent).sum().reshape(1).to(gate.dtype)


class MeanRelu(torch.autograd.Function):
    """mean over N of relu(x W^T + b): x (B, N, C) -> (B, H); it keeps x and the signs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        hidden = F.linear(x, weight.to(x.dtype), bias.to(x.dtype))
        ctx.save_for_backward(x, weight, hidden > 0)
        return hidden.relu_().mean(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight, positive = ctx.saved_tensors
        hidden = positive * (grad.to(x.dtype) / x.shape[1]).unsqueeze(1)
        flat = hidden.flatten(0, 1)
        return hidden @ weight.to(x.dtype), (flat.mT @ x.flatten(0, 1)).to(weight.dtype), flat.sum(0).to(weight.dtype)


class Score(torch.autograd.Function):
    """relu((x w) W^T + b) r: x (B, N, C), w (B, 1, C), r (B, H, 1) -> (B, N, 1); it keeps x and the hidden layer.

    The weights w may be `None`, which is 1.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | None, weight: Tensor, bias: Tensor, reader: Tensor) -> Tensor:
        seen = x if scale is None else x * scale.to(x.dtype)
        hidden = F.linear(seen, weight.to(x.dtype), bias.to(x.dtype)).relu_()
        ctx.save_for_backward(x, scale, weight, reader, hidden)
        return hidden @ reader.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, weight, reader, hidden = ctx.saved_tensors
        grad = grad.to(x.dtype)
        to_reader = (hidden.mT @ grad).to(reader.dtype)
        inner = torch.ops.aten.threshold_backward(grad * reader.to(x.dtype).mT, hidden, 0)
        flat, seen = inner.flatten(0, 1), x if scale is None else x * scale.to(x.dtype)
        to_weight, to_bias = (flat.mT @ seen.flatten(0, 1)).to(weight.dtype), flat.sum(0).to(weight.dtype)
        to_x, to_scale = inner @ weight.to(x.dtype), None
        if scale is not None:
            to_scale = (to_x * x).sum(1, keepdim=True).to(scale.dtype)
            to_x = to_x * scale.to(x.dtype)
        return to_x, to_scale, to_weight, to_bias, to_reader


class MapTokens(torch.autograd.Function):
    """W u + b over tokens: u (B, M, D), W (N, M), b (N,) -> (B, N, D); it keeps u as it lies, not its transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.mT, weight.to(x.dtype), bias.to(x.dtype)).mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight = ctx.saved_tensors
        flat = grad.to(x.dtype).mT.flatten(0, 1)
        to_x = (flat @ weight.to(x.dtype)).view(len(x), -1, x.shape[1]).mT
        return to_x, (flat.mT @ x.mT.flatten(0, 1)).to(weight.dtype), flat.sum(0).to(weight.dtype)


def grouped(x: Tensor, weight: Tensor) -> Tensor:
    """x (M, inputs) through contiguous channel groups, weight (groups, outputs / groups, inputs / groups)."""
    if len(weight) == 1:
        return x @ weight[0].mT
    out = x.new_empty(len(x), weight.shape[0] * weight.shape[1])
    for part, own, matrix in zip(out.chunk(len(weight), 1), x.chunk(len(weight), 1), weight):
        torch.mm(own, matrix.mT, out=part)
    return out


class Squeeze(torch.autograd.Function):
    """What an adapter ends with: x f -> norm -> down -> [batch norm] -> [relu] -> up -> [batch norm] -> norm.

    x is (B, N, C), the factor f = channel (B or 1, 1, C) + spatial (B or 1, N or 1, 1). It keeps x, up to
    two narrow layers and statistics. `settings` are put together by `Bottleneck.bottleneck` of methods/dgsct.py (eps,
    after_eps, relu, inside, norms, training); running statistics are updated in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        channel: Tensor | None,
        spatial: Tensor | None,
        norm_w: Tensor | None,
        norm_b: Tensor | None,
        down: Tensor,
        bn_w: Tensor | None,
        bn_b: Tensor | None,
        up: Tensor,
        bn2_w: Tensor | None,
        bn2_b: Tensor | None,
        after_w: Tensor,
        after_b: Tensor,
        gate: Tensor | None,
        settings: dict[str, Any],
    ) -> Tensor:
        kind, shape, wide_shape = x.dtype, x.shape, [x.shape[-1]]
        y, mean, rstd = Squeeze._factor(x, channel, spatial), None, None
        if norm_w is not None:
            y, mean, rstd = torch.native_layer_norm(wide(y), wide_shape, norm_w, norm_b, settings["eps"])
        narrow = grouped(y.to(kind).flatten(0, 1), down.to(kind))
        first_stats = second_stats = None
        hidden = narrow
        if bn_w is not None:
            first, second = settings["norms"]
            hidden, *first_stats = Squeeze._batch_norm(narrow, bn_w, bn_b, first)
        hidden = hidden.relu() if settings["relu"] else hidden
        out = grouped(hidden, up.to(kind))
        if bn_w is not None:
            out, *second_stats = Squeeze._batch_norm(out, bn2_w, bn2_b, second)
        weight, bias, inside = after_w, after_b, None
        if gate is not None and settings["inside"]:
            inside = wide(gate * out)
        elif gate is not None:
            weight, bias = gate * after_w, gate * after_b
        out, mean2, rstd2 = torch.native_layer_norm(
            wide(out) if inside is None else inside, wide_shape, weight, bias, settings["after_eps"]
        )
        ctx.settings, ctx.shape = settings, shape
        ctx.save_for_backward(
            x,
            channel,
            spatial,
            norm_w,
            norm_b,
            down,
            bn_w,
            bn_b,
            up,
            bn2_w,
            bn2_b,
            after_w,
            after_b,
            gate,
            mean,
            rstd,
            narrow,
            hidden if hidden is not narrow else None,
            *(first_stats or (None, None)),
            *(second_stats or (None, None)),
            mean2,
            rstd2,
        )
        return out.view(shape)

    @staticmethod
    def _factor(x: Tensor, channel: Tensor | None, spatial: Tensor | None) -> Tensor:
        return x if channel is None else x * (channel + spatial).to(x.dtype)

    @staticmethod
    def _batch_norm(x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor, Tensor]:
        if norm.training:
            norm.num_batches_tracked.add_(1)
        out, mean, invstd = torch.native_batch_norm(
            x, weight, bias, norm.running_mean, norm.running_var, norm.training, norm.momentum, norm.eps
        )
        if not norm.training:
            mean, invstd = norm.running_mean.clone(), (norm.running_var + norm.eps).rsqrt()
        return out, mean, invstd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (
            x,
            channel,
            spatial,
            norm_w,
            norm_b,
            down,
            bn_w,
            _bn_b,
            up,
            bn2_w,
            bn2_b,
            after_w,
            after_b,
            gate,
            mean,
            rstd,
            narrow,
            hidden,
            bn_mean,
            bn_rstd,
            bn2_mean,
            bn2_rstd,
            mean2,
            rstd2,
        ) = ctx.saved_tensors
        settings, kind, wide_shape = ctx.settings, x.dtype, [x.shape[-1]]
        hidden = narrow if hidden is None else hidden
        low_down, low_up = down.to(kind), up.to(kind)
        raw = grouped(hidden, low_up)
        out = raw
        if bn_w is not None:
            scale = bn2_rstd * bn2_w
            out = torch.addcmul(bn2_b - bn2_mean * scale, raw, scale)
        out, to_gate = wide(out), None
        outside = gate is not None and not settings["inside"]
        weight, bias = (gate * after_w, gate * after_b) if outside else (after_w, after_b)
        grad = grad.reshape(out.shape).to(out.dtype)
        inner = gate * out if gate is not None and settings["inside"] else out
        to_out, to_w, to_b = torch.ops.aten.native_layer_norm_backward(
            grad, inner, wide_shape, mean2, rstd2, weight, bias, [True, True, True]
        )
        if outside:
            to_gate = ((to_w * after_w).sum() + (to_b * after_b).sum()).reshape(1)
            to_w, to_b = gate * to_w, gate * to_b
        elif gate is not None:
            to_gate, to_out = (to_out * out).sum().reshape(1), gate * to_out
        to_bn: list[Tensor | None] = [None, None]
        to_bn2 = to_bn
        to_raw = to_out.to(kind)
        if bn_w is not None:
            first, second = settings["norms"]
            to_raw, *to_bn2 = Squeeze._batch_norm_backward(
                to_raw, raw, bn2_w, bn2_mean, bn2_rstd, second, settings["training"]
            )
        to_up = Squeeze._gradient(to_raw, hidden, len(up)).to(up.dtype)
        to_hidden = grouped(to_raw, low_up.mT)
        if settings["relu"]:
            to_hidden = torch.ops.aten.threshold_backward(to_hidden, hidden, 0)
        if bn_w is not None:
            to_hidden, *to_bn = Squeeze._batch_norm_backward(
                to_hidden, narrow, bn_w, bn_mean, bn_rstd, first, settings["training"]
            )
        plain = Squeeze._factor(x, channel, spatial)
        y, to_norm = plain, (None, None)
        if norm_w is not None:
            plain = wide(plain)
            y = torch.native_layer_norm(plain, wide_shape, norm_w, norm_b, settings["eps"])[0].to(kind)
        to_down = Squeeze._gradient(to_hidden, y.flatten(0, 1), len(down)).to(down.dtype)
        to_y = grouped(to_hidden, low_down.mT).view(x.shape)
        if norm_w is not None:
            to_y, *to_norm = torch.ops.aten.native_layer_norm_backward(
                to_y.to(plain.dtype), plain, wide_shape, mean, rstd, norm_w, norm_b, [True, True, True]
            )
        to_x, to_channel, to_spatial = to_y.to(kind), None, None
        if channel is not None:
            product = to_x * x
            to_channel = product.sum_to_size(channel.shape).to(channel.dtype)
            to_spatial = product.sum_to_size(spatial.shape).to(spatial.dtype)
            to_x = to_x * (channel + spatial).to(kind)
        return (to_x, to_channel, to_spatial, *to_norm, to_down, *to_bn, to_up, *to_bn2, to_w, to_b, to_gate, None)

    @staticmethod
    def _gradient(grad: Tensor, x: Tensor, groups: int) -> Tensor:
        """Gradient of the weight of `grouped`."""
        return torch.stack([own.mT @ read for own, read in zip(grad.chunk(groups, 1), x.chunk(groups, 1))])

    @staticmethod
    def _batch_norm_backward(
        grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, invstd: Tensor, norm: nn.BatchNorm1d, training: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        if training:
            return torch.ops.aten.native_batch_norm_backward(
                grad, x, weight, None, None, mean, invstd, True, norm.eps, [True, True, True]
            )
        to_weight = (grad * (x - mean) * invstd).sum(0).to(weight.dtype)
        return (grad * (invstd * weight)).to(grad.dtype), to_weight, grad.sum(0).to(weight.dtype)
