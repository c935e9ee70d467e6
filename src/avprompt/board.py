"""Names of curves in TensorBoard, which shows them in groups: `train/loss`, `val/accuracy`, the selected metric on top."""

from __future__ import annotations

#: group of the metric that selects the checkpoint; it comes first in the order of the alphabet
TOP = "metric"


def grouped(name: str) -> str:
    """The tag of a logged value; a tag stays as it is.

    Example:
        >>> [grouped(name) for name in ("train_loss_epoch", "train_loss_step", "train_gate", "val_accuracy", "lr-AdamW")]
        ['train/loss', 'train/loss_step', 'train/gate', 'val/accuracy', 'rate/AdamW']
        >>> grouped("epoch"), grouped("best_val_accuracy"), grouped("val/accuracy")
        ('train/epoch', 'metric/best_val_accuracy', 'val/accuracy')
    """
    if name == "train_loss_epoch":
        return "train/loss"
    if name == "epoch":
        return "train/epoch"
    for start, group in (("train_", "train"), ("val_", "val"), ("test_", "test"), ("lr-", "rate"), ("best_", TOP)):
        if name.startswith(start):
            return f"{group}/{name if group == TOP else name.removeprefix(start)}"
    return name


def tags(name: str, monitor: str | None = None) -> tuple[str, ...]:
    """The tags that a logged value is shown under, the group on top last.

    Args:
        name: of the value.
        monitor: of the metric that selects the checkpoint, such as `val_accuracy`.

    Example:
        >>> tags("test_accuracy", monitor="val_accuracy"), tags("val_loss", monitor="val_accuracy")
        (('test/accuracy', 'metric/test_accuracy'), ('val/loss',))
    """
    selected = monitor is not None and name in (monitor, f"test_{monitor.removeprefix('val_')}")
    return (grouped(name), *([f"{TOP}/{name}"] if selected else []))
