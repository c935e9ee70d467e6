"""The large parts of a cross-modal adapter as autograd functions of few operations that keep little for the backward pass.

Of tokens (B, N, C) an adapter makes eight tensors of that size, each of which autograd would keep. These functions keep
their input, statistics and what is narrow, and compute the rest again from them: products with few latent tokens, with
the bottleneck, and elementwise work. The derivatives are exact, and written for few operations, because a GPU that
trains on few clips waits for the host to launch them: gradients are added up inside of products, parameters change
their dtype all at once. Under autocast, products are in its dtype, norms in float32, as autocast has it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.flop_counter import addmm_flop, flop_registry, register_flop_formula

from avprompt.encoders.base import without_autocast
from avprompt.precision import product_dtype, wide

if torch.ops.aten._addmm_activation not in flop_registry:  # a product with its ReLU: torch counts it as nothing
    register_flop_formula(torch.ops.aten._addmm_activation, get_raw=True)(addmm_flop)


def lower(x: Tensor) -> Tensor:
    """`x` in the dtype of products: autocast's where it is on."""
    kind = product_dtype(x.device)
    return x if kind is None or not x.is_floating_point() or x.dtype == torch.float64 else x.to(kind)


def usable(*norms: nn.Module) -> bool:
    """Whether the functions here may be used: not where a compiler decides what is kept, nor where batch norms talk to
    other processes."""
    return not torch.compiler.is_compiling() and not any(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


def cast(tensors: list[Tensor], kinds: torch.dtype | list[torch.dtype]) -> list[Tensor]:
    """Tensors in other dtypes, all at once; those that have theirs already stay the same objects."""
    kinds = kinds if isinstance(kinds, list) else [kinds] * len(tensors)
    others = [place for place, (tensor, kind) in enumerate(zip(tensors, kinds)) if tensor.dtype != kind]
    if others:
        made = [torch.empty_like(tensors[place], dtype=kinds[place]) for place in others]
        torch._foreach_copy_(made, [tensors[place] for place in others])
        tensors = list(tensors)
        for place, tensor in zip(others, made):
            tensors[place] = tensor
    return tensors


def softmax(logits: Tensor) -> Tensor:
    """Over the last dimension, in the dtype of the logits; what is summed is in float32 at least."""
    return torch._softmax(logits, -1, False)


def padded(latent: Tensor, mean: bool) -> Tensor:
    """Latent tokens (K, C), and one of zeros where the mean is asked for: all scores of zero average what is read."""
    return F.pad(latent, (0, 0, 0, 1)) if mean else latent


def parted(read: Tensor, mean: bool) -> tuple[Tensor, Tensor | None]:
    """(B, K, C), or (B, K + 1, C) with the mean -> what latent tokens have read (B, K, C), and the mean (B, C)."""
    return (read[:, :-1], read[:, -1]) if mean else (read, None)


def joined(to_read: Tensor, to_mean: Tensor | None) -> Tensor:
    """Gradients of what `parted` returns -> that of its input."""
    return to_read if to_mean is None else torch.cat((to_read, to_mean.unsqueeze(1)), 1)


def token_major(x: Tensor) -> Tensor:
    """(B, N, C) -> (N, B * C)."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


class ReadTokens(torch.autograd.Function):
    """Latent tokens R (K, C) read a map p (B, N, C): R + softmax(R p^T) p, (B, K, C); and the mean of p, (B, C)."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, p: Tensor, mean: bool) -> tuple[Tensor, Tensor | None]:
        with without_autocast(p.device):
            rows = padded(latent.to(p.dtype), mean)
            attention = softmax((rows @ p.flatten(0, 1).T).view(len(rows), *p.shape[:2]))
            ctx.save_for_backward(latent, p, attention)
            return parted(torch.baddbmm(rows, attention.transpose(0, 1), p), mean)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_read: Tensor, to_mean: Tensor | None) -> tuple[Tensor | None, ...]:
        latent, p, attention = ctx.saved_tensors
        with without_autocast(p.device):
            count, grad = len(latent), joined(to_read, to_mean)
            to_attention = torch.empty_like(attention)
            torch.bmm(grad, p.mT, out=to_attention.transpose(0, 1))
            logits = torch._softmax_backward_data(to_attention, attention, -1, p.dtype)
            to_latent = torch.addmm(grad.sum(0)[:count], logits.flatten(1)[:count], p.flatten(0, 1))
            rows = padded(latent.to(p.dtype), to_mean is not None)
            to_p = torch.addmm(
                torch.bmm(attention.permute(1, 2, 0), grad).flatten(0, 1), logits.flatten(1).T, rows
            ).view(p.shape)
            return to_latent.to(latent.dtype), to_p, None


class ReadMap(torch.autograd.Function):
    """Latent tokens R (K, C) read a prompt map p = (W u + b) F^T + f that is not built.

    Args:
        latent: R (K, C).
        other: u (B, M, D).
        weight: W (N, M).
        bias: b (N,).
        project: F (C, D).
        project_bias: f (C,), which a softmax over the map's tokens does not see.
        mean: whether the mean over the map's tokens is asked for.

    Returns:
        R + softmax(R p^T) p, (B, K, C); the mean of p, (B, C), or `None`.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor | None]:
        (latent, other, weight, bias, project, project_bias), mean = inputs[:6], inputs[6]
        with without_autocast(other.device):
            low, weight_, bias_, project_, project_bias_ = cast(
                [latent, weight, bias, project, project_bias], other.dtype
            )
            rows = padded(low, mean)
            projected, batch = rows @ project_, len(other)
            mapped = torch.baddbmm(bias_.unsqueeze(1), weight_.expand(batch, -1, -1), other)
            attention = softmax((projected @ mapped.flatten(0, 1).T).view(len(rows), *mapped.shape[:2]))
            seen = torch.bmm(attention.transpose(0, 1), mapped)
            read = torch.addmm(project_bias_, seen.flatten(0, 1), project_.T).view(batch, *rows.shape).add_(rows)
            ctx.save_for_backward(*inputs[:6], projected, mapped, attention, seen)
            return parted(read, mean)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_read: Tensor, to_mean: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, projected, mapped, attention, seen = ctx.saved_tensors
        latent, other, weight, _, project, _ = inputs
        with without_autocast(other.device):
            count, batch, shape = len(latent), len(other), attention.shape
            low, weight, project = cast([latent, weight, project], other.dtype)
            grad = joined(to_read, to_mean)
            flat, summed = grad.flatten(0, 1), grad.sum(0)
            to_seen = (flat @ project).view(seen.shape)
            to_attention = torch.empty_like(attention)
            torch.bmm(to_seen, mapped.mT, out=to_attention.transpose(0, 1))
            logits = torch._softmax_backward_data(to_attention, attention, -1, other.dtype)
            to_projected = (logits.view(shape[0], -1) @ mapped.flatten(0, 1))[:count]
            by_token = mapped.new_empty(shape[2], batch, mapped.shape[2])  # (N, B, D), which W's gradient reads
            to_mapped = by_token.transpose(0, 1)
            torch.bmm(attention.permute(1, 2, 0), to_seen, out=to_mapped)
            to_mapped.baddbmm_(logits.permute(1, 2, 0), projected.expand(batch, -1, -1))
            by_token = by_token.flatten(1)
            found = [
                torch.addmm(summed[:count], to_projected, project.T),
                by_token @ token_major(other).T,
                by_token.sum(1),
                torch.addmm(flat.T @ seen.flatten(0, 1), low.T, to_projected),
                summed.sum(0),
            ]
            to_other = None
            if ctx.needs_input_grad[1]:
                to_other = torch.bmm(weight.T.expand(batch, -1, -1), to_mapped)
            to_latent, *rest = cast(found, [latent.dtype] * 5)
            return to_latent, to_other, *rest, None


class ReadMapAssociated(torch.autograd.Function):
    """`ReadMap`, with the products in the order (R F) u^T W^T, in which there is no tensor (B, N, D) at all."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor | None]:
        (latent, other, weight, bias, project, project_bias), mean = inputs[:6], inputs[6]
        with without_autocast(other.device):
            low, weight_, bias_, project_, project_bias_ = cast(
                [latent, weight, bias, project, project_bias], other.dtype
            )
            rows = padded(low, mean)
            count, batch, places = len(rows), len(other), other.shape[1]
            projected = rows @ project_
            sums = projected.sum(1)
            scored = projected @ other.flatten(0, 1).T  # (K, B * M)
            scores = (sums.view(-1, 1, 1).expand(-1, batch, 1) * bias_).flatten(0, 1)
            scores = scores.addmm_(scored.view(-1, places), weight_.T).view(count, batch, -1)
            attention = softmax(scores)
            flat = attention.flatten(0, 1)
            spread = (flat @ weight_).view(count, batch, places)
            shift = (flat @ bias_).view(count, batch, 1)
            seen = torch.baddbmm(shift.transpose(0, 1), spread.transpose(0, 1), other)
            read = torch.addmm(project_bias_, seen.flatten(0, 1), project_.T).view(batch, *rows.shape).add_(rows)
            ctx.save_for_backward(*inputs[:6], projected, sums, scored, attention, spread, seen)
            return parted(read, mean)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_read: Tensor, to_mean: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, projected, sums, scored, attention, spread, seen = ctx.saved_tensors
        latent, other, weight, bias, project, _ = inputs
        with without_autocast(other.device):
            count, batch, places = len(latent), len(other), other.shape[1]
            low, weight, bias, project = cast([latent, weight, bias, project], other.dtype)
            grad = joined(to_read, to_mean)
            flat, summed = grad.flatten(0, 1), grad.sum(0)
            to_seen = (flat @ project).view(seen.shape)
            to_spread = torch.empty_like(spread)
            torch.bmm(to_seen, other.mT, out=to_spread.transpose(0, 1))
            to_shift = to_seen.sum(-1).T.reshape(-1)  # (K * B,)
            pairs = to_spread.flatten(0, 1)
            to_attention = torch.addmm(to_shift.unsqueeze(1) * bias, pairs, weight.T).view(attention.shape)
            logits = torch._softmax_backward_data(to_attention, attention, -1, other.dtype)
            by_pair, by_row, attended = logits.flatten(0, 1), logits.sum(1), attention.flatten(0, 1)
            to_scored = (by_pair @ weight).view(len(sums), -1)
            to_projected = torch.addmm((by_row @ bias).unsqueeze(1), to_scored, other.flatten(0, 1))[:count]
            found = [
                torch.addmm(summed[:count], to_projected, project.T),
                torch.addmm(attended.T @ pairs, by_pair.T, scored.view(-1, places)),
                torch.addmv(attended.T @ to_shift, by_row.T, sums),
                torch.addmm(flat.T @ seen.flatten(0, 1), low.T, to_projected),
                summed.sum(0),
            ]
            to_other = None
            if ctx.needs_input_grad[1]:
                to_other = torch.bmm(spread.permute(1, 2, 0), to_seen).flatten(0, 1)
                to_other = to_other.addmm_(to_scored.T, projected).view(batch, places, -1)
            to_latent, *rest = cast(found, [latent.dtype] * 5)
            return to_latent, to_other, *rest, None


class ReadLatent(torch.autograd.Function):
    """x + gate softmax(x R^T) R: tokens x (B, N, C) read latent ones R (B, K, C), with gate (1,) -> (B, N, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, latent: Tensor, gate: Tensor) -> Tensor:
        with without_autocast(x.device):
            low = latent.to(x.dtype)
            attention = softmax(x @ low.mT)
            gated = low * gate.view(())
            ctx.save_for_backward(x, latent, gate, attention, gated)
            return torch.baddbmm(x, attention, gated)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, latent, gate, attention, gated = ctx.saved_tensors
        with without_autocast(x.device):
            grad, low = grad.to(x.dtype), latent.to(x.dtype)
            read = attention.mT @ grad
            logits = torch._softmax_backward_data(grad @ gated.mT, attention, -1, x.dtype)
            to_latent = torch.addcmul(logits.mT @ x, read, gate.view(()))
            to_gate = (read * low).sum(dtype=gate.dtype).view(1)
            to_x = torch.baddbmm(grad, logits, low) if ctx.needs_input_grad[0] else None
            return to_x, to_latent.to(latent.dtype), to_gate


def grouped(x: Tensor, weight: Tensor) -> Tensor:
    """x (M, inputs) through contiguous channel groups, weight (groups, outputs / groups, inputs / groups)."""
    groups, outputs, _ = weight.shape
    if groups == 1:
        return x @ weight[0].mT
    out = x.new_empty(len(x), groups * outputs)
    torch.bmm(by_group(x, groups), weight.mT, out=by_group(out, groups))
    return out


def by_group(x: Tensor, groups: int) -> Tensor:
    """(M, C) -> (groups, M, C / groups), a view."""
    return x.unflatten(1, (groups, -1)).transpose(0, 1)


class Adapt(torch.autograd.Function):
    """What an adapter does to its own tokens x (B, N, C), guided by one vector g (B, C) for each segment.

    Channel attention w = sigmoid(excite relu(squeeze(relu(guide g) mean relu(own x)))), spatial attention
    s = sigmoid(relu(own ((1 + w) x)) (relu(guide g) score)), a temporal gate t = sigmoid(score g), then
    x (alpha w + 1 - alpha + beta s + gamma t) -> norm -> down -> [batch norm] -> [relu] -> up -> [batch norm] -> norm.
    What there are no parameters for is left out; without all three x goes into the bottleneck as it is.

    It keeps x, the signs of one layer, up to three layers of half width or less, and statistics. `settings` are put
    together by `Bottleneck.adapt` of methods/dgsct.py: `names` of the parameters in their order, `alpha`, `beta`,
    `gamma`, `eps` and `after_eps` of the norms, `relu`, `inside` (the gate stands inside of the last norm), `norms`
    (the batch norms, whose running statistics are updated in place) and `training`.

    Returns:
        (B, N, C), and the spatial scores before the sigmoid, (B, N), or `None`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, g: Tensor | None, settings: dict[str, Any], *given: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        names = settings["names"]
        p = dict(zip(names, given))
        with without_autocast(x.device):
            kept, low = {"x": x, "g": g}, _lowered(p, x.dtype)
            flat, channel, spatial = x.flatten(0, 1), None, None
            if "channel_own.weight" in p:
                hidden = _relu(flat, low, "channel_own")
                kept["positive"] = (hidden > 0).view(x.shape)
                kept["seen"] = hidden.view(x.shape).mean(1)
                kept["guide"] = _relu(g, low, "channel_guide")
                kept["joint"] = kept["guide"] * kept["seen"]
                kept["squeezed"] = _relu(kept["joint"], low, "squeeze")
                kept["w"] = _linear(kept["squeezed"], low, "excite").sigmoid_()
                kept["scale"] = (kept["w"] + 1).unsqueeze(1)
                alpha = settings["alpha"]
                channel = torch.rsub(kept["w"], 1 - alpha, alpha=-alpha).unsqueeze(1)
            if "temporal_score.weight" in p:
                kept["t"] = _linear(g, low, "temporal_score").sigmoid_()
                gate, gamma = kept["t"].unsqueeze(1), settings["gamma"]
                channel = (
                    torch.rsub(gate, 1, alpha=-gamma) if channel is None else torch.add(channel, gate, alpha=gamma)
                )
            scores = None
            if "spatial_own.weight" in p:
                kept["spatial_guide"] = _relu(g, low, "spatial_guide")
                kept["reader"] = kept["spatial_guide"] * low["score.weight"]
                seen = x if "scale" not in kept else x * kept["scale"]
                kept["spatial_own"] = _relu(seen.flatten(0, 1), low, "spatial_own").view(*x.shape[:2], -1)
                scores = torch.baddbmm(
                    low["score.bias"].view(1, 1, 1), kept["spatial_own"], kept["reader"].unsqueeze(-1)
                )
                kept["s"] = spatial = torch.sigmoid(scores)
                scores = scores.squeeze(-1)
            normed = "norm_before.weight" in p
            kept["channel"] = channel if channel is None or not normed else wide(channel)
            factor = _factor(kept["channel"], spatial, settings["beta"])
            y = x if factor is None else x * factor
            if normed:
                y, kept["mean"], kept["rstd"] = torch.native_layer_norm(
                    wide(y), [x.shape[-1]], p["norm_before.weight"], p["norm_before.bias"], settings["eps"]
                )
            hidden = grouped(y.to(x.dtype).flatten(0, 1), low["down.weight"])
            if settings["training"]:
                torch._foreach_add_([norm.num_batches_tracked for norm in settings["norms"]], 1)
            if "bn_down.weight" in p:
                kept["narrow"] = hidden
                hidden = _batch_norm(hidden, kept, p, settings, "bn_down")
            kept["hidden"] = hidden = hidden.relu_() if settings["relu"] else hidden
            out = grouped(hidden, low["up.weight"])
            if "bn_up.weight" in p:
                out = _batch_norm(out, kept, p, settings, "bn_up")
            out, kept["after"] = wide(out), torch.cat((p["norm_after.weight"], p["norm_after.bias"]))
            if "gate" in p and settings["inside"]:
                out = p["gate"] * out
            kept["gated"] = p["gate"] * kept["after"] if "gate" in p and not settings["inside"] else kept["after"]
            out, kept["mean2"], kept["rstd2"] = torch.native_layer_norm(
                out, [x.shape[-1]], *kept["gated"].chunk(2), settings["after_eps"]
            )
            ctx.settings, ctx.kept = settings, tuple(kept)
            ctx.save_for_backward(*kept.values(), *given)
            return out.view(x.shape), scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, to_scores: Tensor | None) -> tuple[Tensor | None, ...]:
        settings, count = ctx.settings, len(ctx.kept)
        saved = ctx.saved_tensors  # once: with checkpointing it can be read once
        kept, p = dict(zip(ctx.kept, saved[:count])), dict(zip(settings["names"], saved[count:]))
        found: dict[str, Tensor] = {}
        x = kept["x"]
        with without_autocast(x.device):
            low = _lowered(p, x.dtype, ".weight")
            factor = _factor(kept["channel"], kept.get("s"), settings["beta"])
            grad = torch.zeros_like(x) if grad is None else grad
            to_x, to_g = _to_bottleneck(kept, p, low, settings, factor, grad, found), None
            if factor is not None:
                to_x, to_g = _to_attention(kept, low, settings, factor, to_x, to_scores, found)
            names = settings["names"]
            gradients = cast([found[name] for name in names], [p[name].dtype for name in names])
            return to_x, to_g, None, *(own.view(p[name].shape) for name, own in zip(names, gradients))


def _lowered(p: dict[str, Tensor], kind: torch.dtype, ending: str = "") -> dict[str, Tensor]:
    """The parameters of products in their dtype, by name."""
    names = [name for name in p if not name.startswith(("norm", "bn", "gate")) and name.endswith(ending)]
    return dict(zip(names, cast([p[name] for name in names], kind)))


def _linear(x: Tensor, low: dict[str, Tensor], name: str) -> Tensor:
    """x (M, inputs) through a linear layer."""
    return torch.addmm(low[f"{name}.bias"], x, low[f"{name}.weight"].T)


def _relu(x: Tensor, low: dict[str, Tensor], name: str) -> Tensor:
    """x (M, inputs) through a linear layer and a ReLU, which is part of the product where a device can."""
    return torch._addmm_activation(low[f"{name}.bias"], x, low[f"{name}.weight"].T)


def _factor(channel: Tensor | None, spatial: Tensor | None, beta: float) -> Tensor | None:
    """What the tokens are multiplied by, broadcasting to (B, N, C); `None` is 1."""
    if spatial is None:
        return channel
    return torch.rsub(spatial, 1, alpha=-beta) if channel is None else torch.add(channel, spatial, alpha=beta)


def _batch_norm(x: Tensor, kept: dict[str, Any], p: dict[str, Tensor], settings: dict[str, Any], name: str) -> Tensor:
    """x (M, C) through a batch norm; what its backward pass reads is added to `kept`."""
    norm, training = settings["norms"][name == "bn_up"], settings["training"]
    out, mean, rstd = torch.native_batch_norm(
        x,
        p[f"{name}.weight"],
        p[f"{name}.bias"],
        norm.running_mean,
        norm.running_var,
        training,
        norm.momentum,
        norm.eps,
    )
    if not training:
        mean, rstd = norm.running_mean.clone(), (norm.running_var + norm.eps).rsqrt()
    kept[f"{name}.mean"], kept[f"{name}.rstd"] = mean, rstd
    return out


def _to_batch_norm(
    grad: Tensor,
    x: Tensor,
    kept: dict[str, Any],
    p: dict[str, Tensor],
    settings: dict[str, Any],
    name: str,
    found: dict[str, Tensor],
) -> Tensor:
    """Gradient of what a batch norm gives -> that of x (M, C); those of its parameters are added to `found`."""
    weight, mean, rstd = p[f"{name}.weight"], kept[f"{name}.mean"], kept[f"{name}.rstd"]
    if settings["training"]:
        norm = settings["norms"][name == "bn_up"]
        to_x, found[f"{name}.weight"], found[f"{name}.bias"] = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, rstd, True, norm.eps, [True, True, True]
        )
        return to_x
    found[f"{name}.weight"], found[f"{name}.bias"] = (grad * (x - mean) * rstd).sum(0), grad.sum(0)
    return (grad * (rstd * weight)).to(grad.dtype)


def _to_grouped(grad: Tensor, x: Tensor, groups: int) -> Tensor:
    """Gradient of the weight of `grouped`."""
    return torch.bmm(by_group(grad, groups).mT, by_group(x, groups))


def _to_bottleneck(
    kept: dict[str, Any],
    p: dict[str, Tensor],
    low: dict[str, Tensor],
    settings: dict[str, Any],
    factor: Tensor | None,
    grad: Tensor,
    found: dict[str, Tensor],
) -> Tensor:
    """Gradient of what the bottleneck gives (B, N, C) -> that of what goes into it, in the dtype of the tokens."""
    x, hidden, up, down = kept["x"], kept["hidden"], low["up.weight"], low["down.weight"]
    kind, shape = x.dtype, [x.shape[-1]]
    raw = out = grouped(hidden, up)
    if "bn_up.weight" in p:  # the same values as in the forward pass, whatever has moved since then
        variance = kept["bn_up.rstd"].pow(-2)
        out = torch.native_batch_norm(
            raw, p["bn_up.weight"], p["bn_up.bias"], kept["bn_up.mean"], variance, False, 0.0, 0.0
        )[0]
    out = wide(out)
    inside = "gate" in p and settings["inside"]
    grad = grad.reshape(out.shape).to(out.dtype)
    to_out, to_weight, to_bias = torch.ops.aten.native_layer_norm_backward(
        grad,
        p["gate"] * out if inside else out,
        shape,
        kept["mean2"],
        kept["rstd2"],
        *kept["gated"].chunk(2),
        [True, True, True],
    )
    if "gate" in p and not inside:
        to_gated = torch.cat((to_weight, to_bias))
        found["gate"] = torch.dot(to_gated, kept["after"])
        to_weight, to_bias = (p["gate"] * to_gated).chunk(2)
    elif inside:
        found["gate"], to_out = (to_out * out).sum(), p["gate"] * to_out
    found["norm_after.weight"], found["norm_after.bias"] = to_weight, to_bias
    to_raw = to_out.to(kind)
    if "bn_up.weight" in p:
        to_raw = _to_batch_norm(to_raw, raw, kept, p, settings, "bn_up", found)
    found["up.weight"] = _to_grouped(to_raw, hidden, len(up))
    to_hidden = grouped(to_raw, up.mT)
    if settings["relu"]:
        to_hidden = torch.ops.aten.threshold_backward(to_hidden, hidden, 0)
    if "bn_down.weight" in p:
        to_hidden = _to_batch_norm(to_hidden, kept["narrow"], kept, p, settings, "bn_down", found)
    y = plain = x if factor is None else x * factor
    normed = "norm_before.weight" in p
    if normed:
        plain = wide(plain)
        y = torch.native_layer_norm(plain, shape, p["norm_before.weight"], p["norm_before.bias"], settings["eps"])[0]
    found["down.weight"] = _to_grouped(to_hidden, y.to(kind).flatten(0, 1), len(down))
    to_y = grouped(to_hidden, down.mT).view(x.shape)
    if normed:
        to_y, found["norm_before.weight"], found["norm_before.bias"] = torch.ops.aten.native_layer_norm_backward(
            to_y.to(plain.dtype),
            plain,
            shape,
            kept["mean"],
            kept["rstd"],
            p["norm_before.weight"],
            p["norm_before.bias"],
            [True, True, True],
        )
    return to_y.to(kind)


def _to_attention(
    kept: dict[str, Any],
    low: dict[str, Tensor],
    settings: dict[str, Any],
    factor: Tensor,
    to_y: Tensor,
    to_scores: Tensor | None,
    found: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Gradient of x times its factor -> gradients of x (B, N, C) and of the guiding vectors (B, C)."""
    x, g, kind = kept["x"], kept["g"], kept["x"].dtype
    to_x, product = (to_y * factor).to(kind), to_y * x
    flat, flat_to_x = x.flatten(0, 1), to_x.view(-1, x.shape[-1])
    #: gradients (B, outputs) of linear layers' outputs, whose sums over B are those of the biases
    outputs: dict[str, Tensor] = {}
    to_scale = None
    if "s" in kept:
        to_s = product.sum(2, keepdim=True) * settings["beta"]
        to_spatial = torch.ops.aten.sigmoid_backward(to_s, kept["s"])
        if to_scores is not None:
            to_spatial = to_spatial + to_scores.unsqueeze(-1)
        own, weight = kept["spatial_own"], low["spatial_own.weight"]
        found["score.bias"] = to_spatial.sum()
        to_reader = (own.mT @ to_spatial).squeeze(-1)
        inner = torch.ops.aten.threshold_backward(to_spatial * kept["reader"].unsqueeze(1), own, 0).flatten(0, 1)
        seen = flat if "scale" not in kept else (x * kept["scale"]).flatten(0, 1)
        found["spatial_own.weight"], found["spatial_own.bias"] = inner.T @ seen, inner.sum(0)
        if "scale" in kept:
            to_seen = (inner @ weight).view(x.shape)
            to_x.addcmul_(to_seen, kept["scale"])
            to_scale = to_seen
        else:
            flat_to_x.addmm_(inner, weight)
        outputs["score"] = to_reader * kept["spatial_guide"]
        outputs["spatial_guide"] = torch.ops.aten.threshold_backward(
            to_reader * low["score.weight"], kept["spatial_guide"], 0
        )
    if "t" in kept:
        to_t = product.sum((1, 2)).unsqueeze(1) * settings["gamma"]
        outputs["temporal_score"] = torch.ops.aten.sigmoid_backward(to_t, kept["t"])
    if "w" in kept:
        to_w = product.mul_(settings["alpha"])
        to_w = (to_w if to_scale is None else to_w.addcmul_(to_scale, x)).sum(1)
        outputs["excite"] = torch.ops.aten.sigmoid_backward(to_w, kept["w"])
        outputs["squeeze"] = torch.ops.aten.threshold_backward(
            outputs["excite"] @ low["excite.weight"], kept["squeezed"], 0
        )
        to_joint = outputs["squeeze"] @ low["squeeze.weight"]
        outputs["channel_guide"] = torch.ops.aten.threshold_backward(to_joint * kept["seen"], kept["guide"], 0)
        to_seen = to_joint * kept["guide"] / x.shape[1]
        hidden = (kept["positive"] * to_seen.unsqueeze(1)).flatten(0, 1)
        found["channel_own.weight"], found["channel_own.bias"] = hidden.T @ flat, hidden.sum(0)
        flat_to_x.addmm_(hidden, low["channel_own.weight"])
        found["excite.weight"] = outputs["excite"].T @ kept["squeezed"]
        found["squeeze.weight"] = outputs["squeeze"].T @ kept["joint"]
    to_g = None
    for name in ("channel_guide", "spatial_guide", "temporal_score"):
        if name in outputs:
            found[f"{name}.weight"], weight = outputs[name].T @ g, low[f"{name}.weight"]
            to_g = outputs[name] @ weight if to_g is None else to_g.addmm_(outputs[name], weight)
    sums = torch.cat(list(outputs.values()), 1).sum(0).split([own.shape[1] for own in outputs.values()])
    for name, own in zip(outputs, sums):
        found["score.weight" if name == "score" else f"{name}.bias"] = own
    return to_x, to_g
