"""A training step: precision, waiting for the device, the optimizer, what is kept for the backward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import ROOT
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from open_clip.transformer import VisionTransformer
from small import FBANK, SEGMENTS, SmallCLIP, SmallHTSAT, SmallSwin, enliven, small_clips
from test_conformance import METHODS, PAIRS, cases
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.data import DataLoader, Dataset

from avprompt import AVPromptBackbone
from avprompt.cli import parts_of
from avprompt.encoders import HTSAT, Fbank, ViTSpectrogram
from avprompt.encoders.htsat import FrontEnd
from avprompt.encoders.swin import CosineHeads
from avprompt.errors import NonFiniteLossError
from avprompt.methods import DGSCT, VPT, AVMoE, PromptMethod
from avprompt.reports.efficiency import open_gates
from avprompt.tasks.guard import Guard, Step, fuse

#: an experiment of every task, and of AVE with each objective that reads a mask
TASKS = (
    "quickstart",
    "ave_linear_probe_quickstart",
    "avvp_quickstart",
    "avs_s4_quickstart",
    "avs_ms3_quickstart",
    "avqa_quickstart",
    "avar_avstfp_quickstart",
    "fewshot_ave_quickstart",
    "ave_psp_vgg19",
)


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """Tasks and data modules, built when they are asked for."""
    return {}


def task_of(parts: dict[str, Any], name: str) -> tuple[Any, Any]:
    if name not in parts:
        parts[name] = parts_of(["--config", str(ROOT / "experiments" / f"{name}.yaml")])
    return parts[name]


class Waits(TorchDispatchMode):
    """Counts the operations for which a program waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(own, Tensor) and own.dtype in (torch.bool, torch.uint8) for own in args[1]
        )
        if masks or name in ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero", "_unique2"):
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


class Examples(Dataset):
    """A made batch, whole, as often as it is asked for."""

    def __init__(self, batch: dict[str, Any], count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.batch)


class Watch(Callback):
    """Counts from the first batch on the device to the end of the last step, Lightning's loop and bar included."""

    def __init__(self) -> None:
        self.waits = Waits()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.waits.__enter__()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == len(trainer.train_dataloader) - 1:
            self.waits.__exit__(None, None, None)


def fit(task: Any, batch: dict[str, Any], *callbacks: Callback, steps: int = 3) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        max_epochs=1,
        limit_val_batches=0,
        callbacks=list(callbacks),
        log_every_n_steps=50,
    )
    trainer.fit(task, DataLoader(Examples(batch, steps), batch_size=None))
    return trainer


@pytest.mark.parametrize("name, lag", [*((name, 0) for name in TASKS), ("quickstart", 1)])  # the guard is the same
def test_a_training_step_waits_for_nothing(
    name: str, lag: int, parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No value is read back and nothing is selected by a mask; a video with two questions is still encoded once."""
    task, data = task_of(parts, name)
    batch = data.example_batch(2)
    if name == "avqa_quickstart":
        batch = {key: value[[0, 0]] if torch.is_tensor(value) else [value[0]] * 2 for key, value in batch.items()}
    task.guard.lag, watch = lag, Watch()
    if name == "avqa_quickstart":  # videos are compared on the host, before the batch goes to the device
        compare = task.on_before_batch_transfer

        def unseen(batch: dict[str, Any], index: int) -> dict[str, Any]:
            with _disable_current_modes():
                return compare(batch, index)

        monkeypatch.setattr(task, "on_before_batch_transfer", unseen)
    trainer = fit(task, batch, watch)
    assert trainer.global_step == 3 and not watch.waits.found, watch.waits.found
    assert trainer.progress_bar_metrics["loss"] > 0


def test_a_bad_loss_among_accumulated_batches_holds_the_update_back() -> None:
    """Its gradient may be finite: the guard takes all losses of the step."""
    layer = torch.nn.Linear(3, 1)
    optimizer, guard, before = torch.optim.Adam(layer.parameters()), Guard(lag=1), layer.weight.detach().clone()
    guard.able = fuse(optimizer)
    layer(torch.ones(2, 3)).sum().backward()
    for number, loss in enumerate((float("inf"), 1.0)):
        guard.begin(Step(number, {}, torch.tensor(loss), {}))
    guard.gradients(optimizer, layer.named_parameters())
    optimizer.step()
    assert torch.equal(layer.weight, before)
    assert guard.look(1)[0].number == 0


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_an_update_is_held_back_until_the_guard_has_looked(where: str, optimizer: Any, parts: dict[str, Any]) -> None:
    """With the lag of a GPU the error comes a step later, names the step and the clip, and no parameter has moved."""
    task, data = task_of(parts, "ave_linear_probe_quickstart")
    task.optimizer, task.guard.lag, before = (lambda groups: optimizer(groups, lr=1e-3)), 1, {}
    batch, losses, seen = {**data.example_batch(2), "id": ["good", "bad"]}, task.losses, []

    class Spoil(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.append(batch_idx)
            if batch_idx == 2:
                before.update({name: p.detach().clone() for name, p in pl_module.named_parameters()})
                batch["spoilt"] = torch.tensor([0.0, 1.0])

    def spoilt(outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        terms = losses(outputs, batch)
        if "spoilt" in batch and where == "loss":
            terms["segment"] = terms["segment"] / (1 - batch["spoilt"]).min()
        elif "spoilt" in batch:  # the square root of zero: finite, with a slope that is not
            terms["segment"] = terms["segment"] + (outputs["logits"][batch["spoilt"] == 1] * 0).abs().sqrt().sum()
        return terms

    task.losses = spoilt
    try:
        with pytest.raises(NonFiniteLossError) as error:
            fit(task, batch, Spoil(), steps=5)
    finally:
        del task.losses
        task.optimizer, task.guard.lag = torch.optim.Adam, None
    assert seen == [0, 1, 2, 3] and str(error.value).startswith(f"{where}: got")
    assert "at step 2" in str(error.value) and "clip bad" in str(error.value), str(error.value)
    for name, parameter in task.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_optimizers_are_fused_where_nothing_else_is_asked_for() -> None:
    """And a fused step is the plain one, up to rounding."""
    layers = [torch.nn.Linear(7, 5) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    plain, fused = (torch.optim.Adam(layer.parameters(), lr=0.01) for layer in layers)
    assert fuse(fused) and fused.param_groups[0]["fused"]
    for _ in range(3):
        for layer, optimizer in zip(layers, (plain, fused)):
            optimizer.zero_grad()
            layer(torch.ones(1, 7)).square().sum().backward()
            optimizer.step()
    assert all(torch.allclose(p, q, rtol=1e-6) for p, q in zip(layers[0].parameters(), layers[1].parameters()))
    former = fused.state_dict()  # a checkpoint from before optimizers were fused
    former["param_groups"][0].update(fused=None, foreach=None)
    fused.load_state_dict(former)
    assert fused.param_groups[0]["fused"]
    asked = torch.optim.Adam(layers[0].parameters(), foreach=True)
    assert not fuse(asked) and not asked.param_groups[0]["fused"]
    assert not fuse(torch.optim.LBFGS(layers[0].parameters()))


@pytest.mark.parametrize("name", TASKS)
def test_every_task_computes_in_float64(name: str, parts: dict[str, Any]) -> None:
    """`.double()` reaches every part, front ends and losses included: the step is in float64 from end to end."""
    task, data = task_of(parts, name)
    batch = data.example_batch(1 if name != "fewshot_ave_quickstart" else 2)
    try:
        task.double().train()
        loss, _ = task.total_loss(task(batch), batch)
        loss.backward()
        assert loss.dtype is torch.float64
        assert {p.grad.dtype for p in task.parameters() if p.grad is not None} == {torch.float64}
    finally:
        task.float().zero_grad()


# --- the compiler


def small_net(method: PromptMethod, **options: Any) -> AVPromptBackbone:
    torch.manual_seed(0)
    net = AVPromptBackbone(SmallSwin(), SmallHTSAT(), method, **options)
    for name, parameter in net.prompts.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.constant_(parameter, 0.5)
    return net.train()


@pytest.fixture
def whole_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.compile` that refuses a break, and runs what it has traced as it is: no kernels."""
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compiler(function, backend="eager", fullgraph=True, **options)
    )
    torch._dynamo.reset()


def test_a_compiled_walk_is_the_plain_one(whole_graphs: None) -> None:
    """In one graph, without a break."""
    batch, found = small_clips(), []
    for compile in ("none", "model"):
        found.append(small_net(VPT(num_tokens=2), compile=compile)(batch))
    assert torch.allclose(found[0].visual, found[1].visual, atol=1e-5)
    assert torch._dynamo.config.recompile_limit >= 64


class OneSwin(SmallSwin):
    """One block: dynamo goes through a walk as fast as it is short."""

    def _build(self, model: str) -> SwinTransformerV2:
        return SwinTransformerV2(32, 8, num_classes=0, embed_dim=16, depths=(1,), num_heads=(2,), window_size=4)


class OneHTSAT(SmallHTSAT):
    """One block over half-second segments at 16 kHz."""

    def _build(self, front_end: FrontEnd, **sizes: object) -> torch.nn.Module:
        small = FrontEnd(sample_rate=16000, window_size=512, hop_size=800, mel_bins=16, fmin=50, fmax=8000)
        return HTSAT._build(self, small, spec_size=32, embed_dim=16, depths=[1], num_heads=[2], window_size=4)


class OneCLIP(SmallCLIP):
    """One block of CLIP's transformer."""

    def _build(self, model: str) -> torch.nn.Module:
        net = VisionTransformer(32, 8, 24, 1, 3, 4.0, output_dim=16)
        enliven(net)
        return net


ONE_BLOCK: dict[str, Callable[[], tuple[Any, Any]]] = {
    "swin-htsat": lambda: (OneSwin(), OneHTSAT()),
    "clip-htsat": lambda: (OneCLIP(), OneHTSAT()),
    "clip": lambda: (OneCLIP(segments=SEGMENTS, train_norm=True), "shared"),
    "dual-clip": lambda: (OneCLIP(), ViTSpectrogram(OneCLIP(seed=1), FBANK)),
    "swin": lambda: (OneSwin(fbank=Fbank(mel_bins=32, frames=32, shift_ms=15.0, seconds=0.5)), "shared"),
}
#: one row of the conformance suite for each class of methods
KINDS = {
    type(METHODS[method]()).__name__: (method, pair)
    for method, pair in reversed(cases(list(METHODS)))
    if not method.startswith("toy")
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_compiles_in_one_graph(kind: str, whole_graphs: None) -> None:
    """`fullgraph` refuses a break; with what is recomputed too, where the method has parts for it."""
    method, pair = KINDS[kind]
    deep = kind in ("MBT", "MaPLe")  # two layers of their own
    encoders, batch = (PAIRS if deep else ONE_BLOCK)[pair](), small_clips(1)
    net = AVPromptBackbone(*encoders, METHODS[method]()).train()
    open_gates(net)
    torch.manual_seed(0)
    plain = net(batch)
    net.checkpointing = "adapters" if net.prompts.has_adapters else "all"
    net._compile("model")
    torch.manual_seed(0)
    compiled = net(batch)
    assert torch.allclose(plain.visual, compiled.visual, atol=1e-4)
    assert torch.allclose(plain.audio, compiled.audio, atol=1e-4)


def test_frozen_layers_in_bfloat16_change_nothing_under_autocast() -> None:
    """Bit for bit; norms, position biases and front ends stay in float32, and the fingerprint that of the file."""
    batch, net = small_clips(), small_net(DGSCT(num_tokens=4, reduction=4)).eval()
    known = net.visual.fingerprint(), net.audio.fingerprint()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = net(batch)
        net.store(torch.bfloat16)
        after = net(batch)
    assert torch.equal(before.visual, after.visual) and torch.equal(before.audio, after.audio)
    assert (net.visual.fingerprint(), net.audio.fingerprint()) == known
    kinds = {name: p.dtype for name, p in net.named_parameters()}
    low = [name for name, kind in kinds.items() if kind is torch.bfloat16]
    assert low and all(
        ".stages." in name and not any(part in name for part in ("norm", "cpb_mlp", "bias_table")) for name in low
    )
    assert all(kind is torch.float32 for name, kind in kinds.items() if name.startswith("prompts."))


def test_no_gradient_before_the_first_trained_part() -> None:
    """Neither frozen blocks nor merges before it have a graph."""
    net, graphs = small_net(AVMoE(num_tokens=4, reduction=4, stages=[1])), []
    for stage in (net.visual.stages[0], net.audio.stages[0]):
        for module in stage.modules():
            module.register_forward_hook(lambda module, inputs, output: graphs.append(output.requires_grad))
    assert net(small_clips()).visual.requires_grad and graphs and not any(graphs)


def test_a_frozen_layer_keeps_no_input() -> None:
    """PyTorch's own product keeps the weight alone where the weight is frozen: no function of ours is needed."""
    layer, kept = torch.nn.Linear(6, 5).requires_grad_(False), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tuple(tensor.shape)), lambda tensor: tensor
    ):
        layer(torch.ones(2, 3, 6, requires_grad=True))
    assert kept == [(6, 5)] or kept == [(5, 6)], kept


def test_cosine_heads_are_the_plain_computation() -> None:
    """In float64, with the derivatives; under autocast within bfloat16's rounding, in its dtype."""
    torch.manual_seed(0)
    qkv, scale = torch.randn(2, 3, 5, 3, 2, 4, dtype=torch.float64, requires_grad=True), torch.tensor([[[3.0], [7.0]]])
    scales = torch.cat((scale, torch.ones_like(scale), scale**-2))

    def plain(qkv: Tensor) -> tuple[Tensor, ...]:
        q, k, v = (part.transpose(-2, -3) for part in qkv.unbind(-3))
        normal = torch.nn.functional.normalize
        return normal(q, dim=-1) * scale[0].unsqueeze(-1), normal(k, dim=-1), v

    assert torch.autograd.gradcheck(lambda qkv: CosineHeads.apply(qkv, scales.double()), (qkv,))
    for one, two in zip(CosineHeads.apply(qkv, scales.double()), plain(qkv)):
        assert torch.allclose(one, two, atol=1e-12) and one.is_contiguous()
    low = qkv.detach().bfloat16()
    for one, two in zip(CosineHeads.apply(low, scales), plain(low.float())):
        assert one.dtype is torch.bfloat16 and torch.allclose(one.float(), two, rtol=1e-2)
